"""An RPN head in float32 with fewer multiplications than its convolution has.

A third of the multiply-adds of a detector with FPN are those of two 3 x 3 convolutions at stride 4.
Winograd's algorithm (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR16)
needs a fifth of them, and rounds more: by 1e-5 of the largest value where a plain convolution has
3e-7. The RPN head only proposes regions, so that boxes move by less than a thousandth of a pixel;
feature maps, which all else is computed from, are left to the engine.
"""

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.proposal_generator import StandardRPNHead
from torch import Tensor, nn

from .engines import Run

_LEAST_PIXELS = 2048  # of a map; for smaller ones, of the largest anchors, there is little to gain


def rpn_head_by_winograd(head: nn.Module) -> Run | None:
    """Run an RPN head's 3 x 3 convolution by PyTorch's NNPACK.

    Args:
        head: with norms folded, in float32 on a CPU.

    Returns:
        A function of the head's maps (N, C, H, W), which gives its logits and then its deltas;
        None for another kind of head, or where PyTorch has no NNPACK for this CPU.
    """
    conv = getattr(head, "conv", None)
    known = type(head) is StandardRPNHead and type(conv) is Conv2d and _is_plain(conv)
    if not known or not torch._nnpack_available():
        return None
    weight, bias = conv.weight.contiguous(), conv.bias
    predictors = head.objectness_logits, head.anchor_deltas

    @torch.no_grad()
    def run(*features: Tensor) -> list[Tensor]:
        hidden = []
        for x in features:
            if x.shape[2] * x.shape[3] < _LEAST_PIXELS:
                hidden.append(conv(x))
                continue
            x = torch._nnpack_spatial_convolution(x.contiguous(), weight, bias, padding=1)
            hidden.append(x.relu_())
        return [_pointwise(layer, x) for layer in predictors for x in hidden]

    return run


def _is_plain(conv: Conv2d) -> bool:
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    is_relu = isinstance(conv.activation, nn.ReLU)
    same = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    return same and conv.norm is None and is_relu and conv.bias is not None


def _pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as a matrix product, which reads the map as it lies."""
    out = torch.matmul(layer.weight.flatten(1), x.flatten(2)) + layer.bias[:, None]
    return out.unflatten(2, x.shape[2:])
