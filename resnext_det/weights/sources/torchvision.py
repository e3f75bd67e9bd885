"""torchvision's names, which OpenMMLab's `third_party` files and timm's plain ResNeXts share.

torchvision/models/resnet.py: `conv1`, `bn1`, `layer1.0.conv2`, `layer1.0.downsample.0`, `fc`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# torchvision -> Detectron2, e.g.
#   conv1.weight                      -> stem.conv1.weight
#   bn1.running_var                   -> stem.conv1.norm.running_var
#   layer1.0.conv2.weight             -> res2.0.conv2.weight
#   layer1.0.bn2.bias                 -> res2.0.conv2.norm.bias
#   layer4.0.downsample.1.weight      -> res5.0.shortcut.norm.weight
#   fc.bias                           -> linear.bias
_RULES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"(?<=\d)\.bn([123])\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
_DROPPED = re.compile(
    r"\.num_batches_tracked$"
)  # a counter that frozen and fixed-momentum BN ignore
_KNOWN = re.compile(r"^(stem|res[2-5]|linear)\.")


def rename(name: str) -> str:
    """Rename one tensor; a name that no rule knows comes back as it was."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a torchvision ResNet or ResNeXt state dict to Detectron2's names.

    Raises:
        ValueError: if a tensor is unknown or two tensors get one name.
    """
    kept = [name for name in state_dict if not _DROPPED.search(name)]
    converted = {rename(name): state_dict[name] for name in kept}
    unknown = [name for name in kept if not _KNOWN.match(rename(name))]
    if unknown:
        raise ValueError(f"not torchvision's names: {', '.join(unknown[:5])}")
    if len(converted) != len(kept):
        raise ValueError("two tensors of the file get the same name")
    return converted
