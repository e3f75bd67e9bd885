"""Detectron's pickles, and those pickles of Detectron2 that keep Caffe2's names.

Detectron (detectron/modeling/ResNet.py) has merged each batch norm into a scale `_s` and a shift
`_b`; Detectron2's files keep the four arrays of a batch norm.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..recipe import BN_EPS
from .rules import Conversion, convert_by_rules

# Caffe2 -> Detectron2, e.g.
#   conv1_w                           -> stem.conv1.weight
#   res_conv1_bn_s                    -> stem.conv1.norm.weight
#   res2_0_branch2a_w                 -> res2.0.conv1.weight
#   res2_0_branch2b_bn_b              -> res2.0.conv2.norm.bias
#   res2_0_branch1_bn_running_var     -> res2.0.shortcut.norm.running_var
#   pred_w                            -> linear.weight
RULES = (
    (r"^conv1_", "stem_conv1_"),
    (r"^res_conv1_bn_", "stem_conv1_bn_"),
    (r"^(res\d)_(\d+)_branch1_", r"\1_\2_shortcut_"),
    (r"^(res\d)_(\d+)_branch2a_", r"\1_\2_conv1_"),
    (r"^(res\d)_(\d+)_branch2b_", r"\1_\2_conv2_"),
    (r"^(res\d)_(\d+)_branch2c_", r"\1_\2_conv3_"),
    (r"^(pred|fc1000)_", "linear_"),
    (r"_bn_(s|gamma)$", ".norm.weight"),
    (r"_bn_(b|beta)$", ".norm.bias"),
    (r"_bn_(running_mean|rm)$", ".norm.running_mean"),
    (r"_bn_(running_var|riv)$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
    (r"^stem_", "stem."),
    (r"^(res\d)_(\d+)_", r"\1.\2."),
)
DROPS = (
    (r"_momentum$", "momentum of the solver"),
    (r"^(lr|weight_order)$", "the solver's own state"),
)


def from_caffe2(tensors: Mapping[str, Tensor]) -> Conversion:
    """Rename the blobs; a merged batch norm gets mean 0 and variance 1 - eps, so that it is exact.

    Raises:
        ValueError: if two tensors get one name.
    """
    result = convert_by_rules(tensors, RULES, DROPS)
    if merged := complete_merged_norms(result.tensors):
        result.merged_norms = True
        result.notes.append(f"{merged} merged batch norms got mean 0 and variance 1 - {BN_EPS}")
    return result


def complete_merged_norms(tensors: dict[str, Tensor]) -> int:
    """Give norms that are a scale and a shift the mean and variance of a frozen batch norm.

    Detectron2 would take a variance of 1, which scales each layer by 1 / sqrt(1 + eps).

    Args:
        tensors: by Detectron2's names; changed in place.

    Returns:
        The number of norms that lacked statistics.
    """
    norms = [name.removesuffix("weight") for name in tensors if name.endswith(".norm.weight")]
    merged = [norm for norm in norms if f"{norm}running_var" not in tensors]
    for norm in merged:
        scale = tensors[f"{norm}weight"]
        tensors[f"{norm}running_mean"] = torch.zeros_like(scale)
        tensors[f"{norm}running_var"] = torch.full_like(scale, 1 - BN_EPS)
    return len(merged)
