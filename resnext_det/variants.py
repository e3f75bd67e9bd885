"""The paper's notation for a network: depth, cardinality C and bottleneck width d.

A ResNeXt is named by its depth and the template of conv2 (Section 5.1), e.g. ResNeXt-50 (32x4d):
32 paths (cardinality C), each 4 channels wide (bottleneck width d). Detectron2 calls C
`MODEL.RESNETS.NUM_GROUPS` and d `MODEL.RESNETS.WIDTH_PER_GROUP`. A ResNet has C = 1, d = 64.
"""

import math
import re
from dataclasses import dataclass

# Blocks in res2..res5. Depth counts the stem, three convolutions a block and the classifier.
# 50, 101, 152: He et al. 2016, Table 1; 200: the ResNet-200 of Table 4 (its reference [15]);
# 26: two blocks a stage, for small data.
BLOCKS_PER_STAGE = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclass(frozen=True)
class Variant:
    """A network of the ResNeXt family, e.g. `Variant(50, 32, 4)`, printed as `X-50-32x4d`.

    Attributes:
        depth: number of layers with weights; one of `BLOCKS_PER_STAGE`.
        cardinality: C, the number of paths in a block, at least 1.
        width: d, the channels of one path's bottleneck in res2, at least 1; it doubles per stage.

    Raises:
        ValueError: for a depth without a known layout, or C or d below 1.
    """

    depth: int
    cardinality: int = 1
    width: int = 64

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"depth {self.depth} is not one of {sorted(BLOCKS_PER_STAGE)}")
        for name, value in (("cardinality", self.cardinality), ("width", self.width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} {value} is not a positive integer")

    @classmethod
    def from_group_width(cls, depth: int, cardinality: int, group_width: int) -> "Variant":
        """Name a network by the width of its grouped layer in res2, Table 2's last row.

        Raises:
            ValueError: if `cardinality` does not divide `group_width`.
        """
        if cardinality < 1 or group_width % cardinality:
            raise ValueError(f"cardinality {cardinality} does not divide group width {group_width}")
        return cls(depth, cardinality, group_width // cardinality)

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Read a name such as `X-50-32x4d`, `R-101`, `X-101-2x64d`.

        Raises:
            ValueError: if `name` has another form or an unknown depth.
        """
        match = re.fullmatch(r"R-(\d+)|X-(\d+)-(\d+)x(\d+)d", name)
        if match is None:
            raise ValueError(
                f"{name!r} is not a variant; expected a form such as X-50-32x4d or R-50"
            )
        resnet_depth, *resnext = match.groups()
        if resnet_depth is not None:
            return cls(int(resnet_depth))
        return cls(*map(int, resnext))

    def __str__(self) -> str:
        if (self.cardinality, self.width) == (1, 64):
            return f"R-{self.depth}"
        return f"X-{self.depth}-{self.cardinality}x{self.width}d"

    @property
    def blocks_per_stage(self) -> tuple[int, ...]:
        """Number of blocks in res2, res3, res4 and res5."""
        return BLOCKS_PER_STAGE[self.depth]

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the grouped 3x3 convolution in res2: C times d. They double per stage."""
        return self.cardinality * self.width

    @property
    def template_parameters(self) -> int:
        """Weights of one block of res2 by Eqn. 4: C (256 d + 3 * 3 d d + d 256)."""
        d = self.width
        return self.cardinality * (256 * d + 9 * d * d + d * 256)

    def with_cardinality(self, cardinality: int) -> "Variant":
        """Return the variant of another cardinality that preserves complexity, as in Table 2.

        The width is the solution of Eqn. 4 for this variant's template, rounded to whole channels:
        `Variant.parse("R-50").with_cardinality(32)` is X-50-32x4d.

        Args:
            cardinality: C of the new variant, at least 1.

        Raises:
            ValueError: if C is below 1, or so large that less than half a channel would be left.
        """
        if cardinality < 1:
            raise ValueError(f"cardinality {cardinality} is not a positive integer")
        # 9 d^2 + 512 d - parameters / C = 0
        width = (math.sqrt(512**2 + 36 * self.template_parameters / cardinality) - 512) / 18
        if round(width) < 1:
            raise ValueError(f"cardinality {cardinality} leaves {width:.2f} channels a path")
        return Variant(self.depth, cardinality, round(width))
