"""Detectron2's own names: its ImageNet files, trained detectors, and what this package writes."""

from collections.abc import Mapping

from torch import Tensor

from ...modeling import convert_form, form_of
from .rules import Conversion, convert_by_rules, drop_reason, explained_name, rename

# a detector's names -> the backbone's, e.g.
#   backbone.bottom_up.res2.0.conv1.weight  -> res2.0.conv1.weight   (FPN)
#   backbone.stem.conv1.weight              -> stem.conv1.weight     (C4)
#   roi_heads.res5.0.conv1.weight           -> res5.0.conv1.weight   (C4)
#   stem.fc.weight                          -> linear.weight         (convert-torchvision-to-d2.py)
# and forms a and b -> c, whose tensors are the paths' put together:
#   res2.0.paths.31.conv1.norm.bias         -> res2.0.conv1.norm.bias
#   res2.0.norm.bias                        -> res2.0.conv3.norm.bias
RULES = (
    (r"^backbone\.(bottom_up\.)?(?=(stem|res\d)\.)", ""),
    (r"^roi_heads\.(?=res5\.)", ""),
    (r"^stem\.fc\.", "linear."),
    (r"\.paths\.\d+\.", "."),
    (r"^(res\d\.\d+)\.norm\.", r"\1.conv3.norm."),
)
_PREFIX_RULES = RULES[:2]
DROPS = (
    (r"^(proposal_generator|head|anchor_generator|sem_seg_head)\.", "the detector's own layers"),
    (r"^roi_heads\.(?!res5\.)", "the detector's own layers"),
    (r"^backbone\.(fpn_(lateral|output)\d|top_block)\.", "the detector's own layers"),
    (r"^pixel_(mean|std)$", "a record of mean and std"),
)


def from_detectron2(tensors: Mapping[str, Tensor]) -> Conversion:
    """Take a backbone in any form of Fig. 3 out of a Detectron2 state dict, in form (c).

    Raises:
        ValueError: if two tensors get one name, or a block cannot be in form (c).
    """
    if form_of(tensors) == "c":
        return convert_by_rules(tensors, RULES, DROPS, own_names=True)
    result = Conversion(notes=[f"form ({form_of(tensors)}) of Fig. 3 put together, exactly"])
    in_form: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (reason := drop_reason(name, DROPS)) is not None:
            result.dropped.setdefault(reason, []).append(name)
        elif (new_name := explained_name(name, RULES, own_names=True)) is None:
            result.unexplained.append(name)
        else:
            result.renamed[name] = new_name
            in_form[rename(name, _PREFIX_RULES)] = tensor
    result.tensors = convert_form(in_form, "c")
    return result
