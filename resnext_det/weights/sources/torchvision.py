"""torchvision's names, which many share: timm's plain ResNeXts, the WSL, SSL and SWSL files of
Facebook, MoCo's encoders and OpenMMLab's `third_party` files.

torchvision/models/resnet.py: `conv1`, `bn1`, `layer1.0.conv2`, `layer1.0.downsample.0`, `fc`.
"""

from collections.abc import Mapping

from torch import Tensor

from .rules import Conversion, convert_by_rules

# torchvision -> Detectron2, e.g.
#   conv1.weight                      -> stem.conv1.weight
#   bn1.running_var                   -> stem.conv1.norm.running_var
#   layer1.0.conv2.weight             -> res2.0.conv2.weight
#   layer1.0.bn2.bias                 -> res2.0.conv2.norm.bias
#   layer4.0.downsample.1.weight      -> res5.0.shortcut.norm.weight
#   fc.bias                           -> linear.bias
RULES = (
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

DROPS = ((r"^fc\.\d+\.", "a projection head of contrastive learning"),)

# Detectron2 -> torchvision, for trained weights that are to serve elsewhere
BACK = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res2\.", "layer1."),
    (r"^res3\.", "layer2."),
    (r"^res4\.", "layer3."),
    (r"^res5\.", "layer4."),
    (r"\.conv([123])\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^linear\.", "fc."),
)


def from_torchvision(tensors: Mapping[str, Tensor]) -> Conversion:
    """Rename a torchvision ResNet or ResNeXt state dict to Detectron2's names.

    Raises:
        ValueError: if two tensors get one name.
    """
    return convert_by_rules(tensors, RULES, DROPS)
