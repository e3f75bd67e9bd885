"""Faster training and inference on CPUs with Detectron2's own modules, up to rounding the same.

`accelerate` gives instances another class with the same parameters, buffers and attributes. It
touches no class of Detectron2 or torchvision, so that other models in the process stay as they are.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from .fast_roi_align import FastROIPooler

_SPARSE = 1 / 8  # share of positions up to which gathering them beats a dense convolution


def accelerate(model: nn.Module) -> nn.Module:
    """Change a built detector in place so that it trains and infers faster on a CPU.

    - Convolutions with frozen batch norm apply it to their weights, which are small, and not to
      their outputs: a pass over the activations less in each direction.
    - RoIAlign runs on all threads (see `fast_roi_align`): a third of a training step before.
    - The backward pass of the RPN's 3x3 layer skips the positions of anchors that were not sampled
      for the loss, all but 256 an image.

    Parameters, buffers, their names and the results up to rounding stay the same; what cannot be
    made faster is left alone. Copies, DDP, and changes of mode, device or type work as before. Call
    it before or after weights are loaded, and best on a model in channels_last.

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
        elif isinstance(module, StandardRPNHead):
            for conv in module.conv.modules():
                if type(conv) is Conv2d and _takes_sparse(conv):
                    conv.__class__ = SparseGradConv2d
    return model


def _is_plain(pooler: ROIPooler) -> bool:
    levels = list(pooler.level_poolers)
    return all(
        type(level) is ROIAlign
        and (level.sampling_ratio, level.aligned) == (levels[0].sampling_ratio, levels[0].aligned)
        for level in levels
    )


def _takes_sparse(conv: Conv2d) -> bool:
    sides = {*conv.stride, *conv.dilation, conv.groups, *conv.padding}
    return conv.norm is None and conv.kernel_size == (3, 3) and sides == {1}


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
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.running_var is not None and norm.affine
    return isinstance(norm, FrozenBatchNorm2d)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, each (C,)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class SparseGradConv2d(Conv2d):
    """A 3x3 `Conv2d`, stride 1, whose backward pass skips positions without gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        untraced = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        if not (untraced and torch.is_grad_enabled() and x.device.type == "cpu"):
            return super().forward(x)
        x = _SparseGradConv.apply(x, self.weight, self.bias)
        return x if self.activation is None else self.activation(x)


class _SparseGradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = F.conv2d(x, weight, bias, padding=1)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
        active = rows.any(1).nonzero()[:, 0]
        with torch.autocast("cpu", enabled=False):
            if len(active) > _SPARSE * len(rows):
                return _dense_backward(ctx, grad, x, weight)
            return _sparse_backward(ctx, rows[active].to(weight.dtype), active, x, weight)


def _dense_backward(ctx, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    kind = grad.dtype
    by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
        grad,
        x.to(kind),
        weight.to(kind),
        [len(weight)],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        ctx.needs_input_grad,
    )
    return (
        by_x.to(x.dtype) if ctx.needs_input_grad[0] else None,
        by_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
        by_bias.to(weight.dtype) if ctx.needs_input_grad[2] else None,
    )


def _sparse_backward(
    ctx, grad: Tensor, active: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients from rows (n, C_out) of the output's, at positions `active` of (N * H * W)."""
    batch, channels, height, width = x.shape
    image = active // (height * width)
    y, column = active // width % height, active % width
    # the 9 pixels under the kernel, as rows of a map with a border of one pixel
    corner = (image * (height + 2) + y) * (width + 2) + column
    under = torch.arange(3)[:, None] * (width + 2) + torch.arange(3)
    pixels = (corner[:, None] + under.flatten()).flatten()

    by_x = by_weight = by_bias = None
    if ctx.needs_input_grad[0]:
        kernel = weight.permute(0, 2, 3, 1).reshape(len(weight), 9 * channels)
        padded = grad.new_zeros(batch * (height + 2) * (width + 2), channels)
        padded.index_add_(0, pixels, (grad @ kernel).view(-1, channels))
        padded = padded.view(batch, height + 2, width + 2, channels)[:, 1:-1, 1:-1]
        by_x = padded.permute(0, 3, 1, 2).to(x.dtype)
    if ctx.needs_input_grad[1]:
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, channels)
        patches = padded[pixels].to(weight.dtype).view(len(grad), 9 * channels)
        by_weight = (grad.t() @ patches).view(len(weight), 3, 3, channels).permute(0, 3, 1, 2)
    if ctx.needs_input_grad[2]:
        by_bias = grad.sum(0)
    return by_x, by_weight, by_bias
