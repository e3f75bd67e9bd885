"""OpenMMLab's checkpoints: MMPretrain's classifiers and MMDetection's detectors.

Their backbones have torchvision's names (mmpretrain/models/backbones/resnet.py), under `backbone.`.
"""

from collections.abc import Mapping

from torch import Tensor

from . import torchvision
from .rules import Conversion, convert_by_rules

# OpenMMLab -> Detectron2, e.g.
#   backbone.layer1.0.bn2.bias        -> res2.0.conv2.norm.bias
#   head.fc.weight                    -> linear.weight
RULES = (
    (r"^backbone\.", ""),
    (r"^head\.fc\.", "fc."),
    *torchvision.RULES,
)
DROPS = (
    (r"^(neck|rpn_head|roi_head|bbox_head|mask_head)\.", "a detector's neck and heads"),
    (r"^data_preprocessor\.", "a record of mean and std"),
)


def from_openmmlab(tensors: Mapping[str, Tensor]) -> Conversion:
    """Rename an OpenMMLab classifier's or detector's state dict to Detectron2's names.

    Raises:
        ValueError: if two tensors get one name.
    """
    return convert_by_rules(tensors, RULES, DROPS)
