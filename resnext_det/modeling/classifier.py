"""The paper's CIFAR networks (Section 5.3, Appendix A): three stages of the same blocks."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling import ResNet
from torch import Tensor

from .resnext import make_resnext_stage


class CifarStem(CNNBlockBase):
    """One 3x3 layer of 64 filters at stride 1, with norm and ReLU."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        return F.relu_(self.conv1(x))


class CifarResNeXt(ResNet):
    """ResNeXt-29 and its deeper kin for 32x32 images.

    Stages res2, res3, res4 have maps of 32, 16 and 8 pixels, outputs of 256, 512 and 1024 channels
    and widths d, 2d and 4d.

    Input: (N, 3, 32, 32). Output: {"linear": logits (N, num_classes)}.
    """

    def __init__(
        self,
        depth: int = 29,
        cardinality: int = 8,
        width: int = 64,
        *,
        num_classes: int = 10,
        norm: str = "BN",
        form: str = "c",
        residual: bool = True,
    ) -> None:
        """
        Args:
            depth: 9 n + 2 layers, for n blocks in each of the three stages.
            cardinality: C, the number of paths.
            width: d, channels of a path in the first stage.
            num_classes: number of classes.
            norm: a name that `detectron2.layers.get_norm` knows.
            form: "a", "b" or "c" of Fig. 3.
            residual: False leaves out every shortcut.

        Raises:
            ValueError: if `depth` is not 9 n + 2.
        """
        num_blocks, rest = divmod(depth - 2, 9)
        if num_blocks < 1 or rest:
            raise ValueError(f"depth {depth} is not 9 n + 2, e.g. 29 or 38")
        stages, channels = [], 64
        for index in range(3):
            stages.append(
                make_resnext_stage(
                    num_blocks,
                    in_channels=channels,
                    out_channels=256 * 2**index,
                    cardinality=cardinality,
                    width=width * 2**index,
                    first_stride=1 if index == 0 else 2,
                    norm=norm,
                    form=form,
                    residual=residual,
                )
            )
            channels = 256 * 2**index
        super().__init__(CifarStem(norm=norm), stages, num_classes=num_classes)
