"""Faster training and inference on CPUs with Detectron2's own modules, up to rounding the same.

`accelerate` gives instances another class with the same parameters, buffers and attributes. It
touches no class of Detectron2 or torchvision, so that other models in the process stay as they are.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fast_roi_align import FastROIPooler


def accelerate(model: nn.Module) -> nn.Module:
    """Change a built detector in place so that it trains and infers faster on a CPU.

    - Convolutions with frozen batch norm apply it to their weights, which are small, and not to
      their outputs: a pass over the activations less in each direction.
    - RoIAlign runs on all threads (see `fast_roi_align`): a third of a training step before.

    Parameters, buffers, their names and the results up to rounding stay the same; what cannot be
    made faster is left alone. Copies, DDP, and changes of mode, device or type work as before. Call
    it before or after weights are loaded, and best on a model in channels_last. A norm with hooks
    is called as before. `torch.jit.script` cannot compile the changed modules; tracing can.

    Args:
        model: any module; other modules than these are not changed.

    Returns:
        The same module.
    """
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, (FrozenBatchNorm2d, _BatchNorm)):
            module.__class__ = FoldingConv2d
        elif type(module) is ROIPooler and _is_plain(module):
            module.__class__ = FastROIPooler
    return model


def _is_plain(pooler: ROIPooler) -> bool:
    levels = list(pooler.level_poolers)
    return all(
        type(level) is ROIAlign
        and (level.sampling_ratio, level.aligned) == (levels[0].sampling_ratio, levels[0].aligned)
        for level in levels
    )


class FoldingConv2d(Conv2d):
    """Detectron2's `Conv2d` that folds a frozen norm into its weights, anew in each pass.

    The weights' gradient passes through the folding. A norm that is being trained, and any other
    norm, runs as before.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        if not _is_constant(self.norm):
            return super().forward(x)
        scale, shift = _affine(self.norm)
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias, scale)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def _is_constant(norm: nn.Module | None) -> bool:
    """Whether a norm is y = scale * x + shift with numbers that do not depend on x."""
    if norm is None or norm._forward_hooks or norm._forward_pre_hooks:  # which want to be called
        return False
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.running_var is not None and norm.affine
    return isinstance(norm, FrozenBatchNorm2d)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, each (C,)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
