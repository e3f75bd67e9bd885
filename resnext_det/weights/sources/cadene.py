"""Cadene's pretrained-models.pytorch (pretrainedmodels/models/resnext.py): nested Sequentials.

The numbers are those of the Torch7 modules that its converter printed.
"""

from collections.abc import Mapping

from torch import Tensor

from .rules import Conversion, convert_by_rules

# Cadene -> Detectron2, e.g.
#   features.0.weight                 -> stem.conv1.weight
#   features.1.running_mean           -> stem.conv1.norm.running_mean
#   features.4.0.0.0.0.0.weight       -> res2.0.conv1.weight
#   features.4.0.0.0.0.4.running_var  -> res2.0.conv2.norm.running_var
#   features.4.0.0.0.2.bias           -> res2.0.conv3.norm.bias
#   features.4.0.0.1.1.weight         -> res2.0.shortcut.norm.weight
#   last_linear.weight                -> linear.weight
RULES = (
    (r"^features\.0\.(?=[a-z])", "stem.conv1."),
    (r"^features\.1\.(?=[a-z])", "stem.conv1.norm."),
    (r"^features\.4\.(\d+)\.0\.", r"res2.\1."),
    (r"^features\.5\.(\d+)\.0\.", r"res3.\1."),
    (r"^features\.6\.(\d+)\.0\.", r"res4.\1."),
    (r"^features\.7\.(\d+)\.0\.", r"res5.\1."),
    (r"^(res\d\.\d+)\.0\.0\.0\.", r"\1.conv1."),
    (r"^(res\d\.\d+)\.0\.0\.1\.", r"\1.conv1.norm."),
    (r"^(res\d\.\d+)\.0\.0\.3\.", r"\1.conv2."),
    (r"^(res\d\.\d+)\.0\.0\.4\.", r"\1.conv2.norm."),
    (r"^(res\d\.\d+)\.0\.1\.", r"\1.conv3."),
    (r"^(res\d\.\d+)\.0\.2\.", r"\1.conv3.norm."),
    (r"^(res\d\.\d+)\.1\.0\.", r"\1.shortcut."),
    (r"^(res\d\.\d+)\.1\.1\.", r"\1.shortcut.norm."),
    (r"^last_linear\.", "linear."),
)


def from_cadene(tensors: Mapping[str, Tensor]) -> Conversion:
    """Rename a pretrainedmodels ResNeXt state dict to Detectron2's names.

    Raises:
        ValueError: if two tensors get one name.
    """
    return convert_by_rules(tensors, RULES)
