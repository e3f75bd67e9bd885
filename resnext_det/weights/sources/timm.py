"""timm's plain ResNets and ResNeXts (timm/models/resnet.py), which have torchvision's names.

Its other networks of that name differ in their layers and are refused: deep stems and average-pool
shortcuts (`resnext50d`), squeeze-and-excitation (`seresnext`), attention (`skresnext`).
"""

from collections.abc import Mapping

from torch import Tensor

from .rules import Conversion, convert_by_rules
from .torchvision import RULES


def from_timm(tensors: Mapping[str, Tensor]) -> Conversion:
    """Rename a timm ResNet or ResNeXt state dict to Detectron2's names.

    Raises:
        ValueError: if two tensors get one name.
    """
    return convert_by_rules(tensors, RULES)
