"""Batch norm that is part of the convolution before it, for inference."""

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modeling.fast import FoldingConv2d


def fold_norms(module: nn.Module) -> nn.Module:
    """Copy a module for inference with its batch norms folded into its convolutions.

    y = scale * (w * x + b) + shift becomes one convolution with weights scale * w and bias
    scale * b + shift, computed in float64. Norms that are no constant scale and shift per channel,
    such as group norm, and norms that follow a sum (`AggregatedBlock.norm`) stay as they are.

    Args:
        module: any module of Detectron2's `Conv2d` layers; it is not changed.

    Returns:
        A copy in evaluation mode, in channels_last, whose parameters need no gradient.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in module.modules():
        if type(layer) in (Conv2d, FoldingConv2d):
            layer.__class__ = Conv2d
            if _is_constant(layer.norm):
                _fold(layer)
    return module.to(memory_format=torch.channels_last)


def _is_constant(norm: nn.Module | None) -> bool:
    if isinstance(norm, _BatchNorm):
        return norm.running_var is not None and norm.affine
    return isinstance(norm, FrozenBatchNorm2d)


def _fold(layer: Conv2d) -> None:
    norm = layer.norm
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale
    kind = layer.weight.dtype
    weight = layer.weight.double() * scale[:, None, None, None]
    layer.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(kind), requires_grad=False)
    layer.norm = None
