"""The paper's block in its three equivalent forms (Fig. 3), and without its shortcut (Section 5.1).

Form (c), a bottleneck with a grouped 3x3 layer, is Detectron2's `BottleneckBlock`. The others are
here: (a) sums C separate paths, (b) concatenates them before the last 1x1 layer. A state dict moves
between forms exactly with `resnext_det.modeling.forms.convert_form`.
"""

import math

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

FORMS = ("a", "b", "c")


def _check_divides(cardinality: int, channels: int) -> None:
    if channels % cardinality:
        raise ValueError(
            f"cardinality {cardinality} does not divide the bottleneck's {channels} channels"
        )


class _Path(nn.Module):
    """One transformation tau_i: 1x1 and 3x3 layers of d channels, in form (a) also the last 1x1.

    Batch norm and ReLU follow the first two layers (Section 4); the last has neither, as its norm
    acts after the sum.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int | None, **layers: object
    ) -> None:
        super().__init__()
        norm, dilation = layers["norm"], layers["dilation"]
        stride_1x1, stride_3x3 = layers["strides"]
        self.conv1 = Conv2d(
            in_channels, width, 1, stride=stride_1x1, bias=False, norm=get_norm(norm, width)
        )
        self.conv2 = Conv2d(
            width,
            width,
            3,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
            bias=False,
            norm=get_norm(norm, width),
        )
        self.conv3 = None if out_channels is None else Conv2d(width, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return x if self.conv3 is None else self.conv3(x)


class _BlockOfPaths(CNNBlockBase):
    """What forms (a) and (b) share: C paths and the shortcut.

    Takes the arguments of Detectron2's `BottleneckBlock`, and `residual`.

    Raises:
        ValueError: if `num_groups` does not divide `bottleneck_channels`, or if the norm mixes
            channels of different paths, as group norm does, so that the forms would differ.
    """

    sums_paths: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        residual: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        _check_divides(num_groups, bottleneck_channels)
        if not norm.endswith("BN"):
            raise ValueError(f"norm {norm!r} is not per channel: use form c, or a batch norm")
        self.shortcut = None
        self.residual = residual
        if residual and in_channels != out_channels:
            self.shortcut = Conv2d(
                in_channels,
                out_channels,
                1,
                stride=stride,
                bias=False,
                norm=get_norm(norm, out_channels),
            )
        self.paths = nn.ModuleList(
            _Path(
                in_channels,
                bottleneck_channels // num_groups,
                out_channels if self.sums_paths else None,
                strides=(stride, 1) if stride_in_1x1 else (1, stride),
                norm=norm,
                dilation=dilation,
            )
            for _ in range(num_groups)
        )
        if self.sums_paths:
            self.norm = get_norm(norm, out_channels)
        else:
            self.conv3 = Conv2d(
                bottleneck_channels, out_channels, 1, bias=False, norm=get_norm(norm, out_channels)
            )
        self._initialise(bottleneck_channels)

    def _initialise(self, bottleneck_channels: int) -> None:
        """Draw every layer from the distribution that form (c) draws it from (MSRA, fan out)."""
        for name, weight in self.named_parameters():
            if weight.dim() == 4:
                in_path = name.startswith("paths.") and ".conv3." not in name
                fan_out = bottleneck_channels if in_path else weight.shape[0]
                nn.init.normal_(weight, std=math.sqrt(2 / (fan_out * weight[0, 0].numel())))

    def _transform(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self._transform(x)
        if self.residual:
            out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu_(out)


class AggregatedBlock(_BlockOfPaths):
    """Fig. 3(a), Eqn. 3: y = x + sum of tau_i(x). One batch norm follows the sum."""

    sums_paths = True

    def _transform(self, x: Tensor) -> Tensor:
        out = self.paths[0](x)
        for path in self.paths[1:]:
            out = out + path(x)
        return self.norm(out)


class ConcatenatedBlock(_BlockOfPaths):
    """Fig. 3(b): the paths' outputs are concatenated before one 1x1 layer."""

    sums_paths = False

    def _transform(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([path(x) for path in self.paths], dim=1))


class PlainBottleneckBlock(BottleneckBlock):
    """Form (c) without a shortcut, neither identity nor projection (Section 5.1)."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: object) -> None:
        _check_divides(kwargs.get("num_groups", 1), kwargs["bottleneck_channels"])
        super().__init__(in_channels, out_channels, **kwargs)
        self.shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return F.relu_(self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))))


def last_norm(block: CNNBlockBase) -> nn.Module:
    """The norm that ends a block's residual branch, in any form."""
    return block.norm if isinstance(block, AggregatedBlock) else block.conv3.norm
