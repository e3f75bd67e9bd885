"""What is cut out of an image to test a classifier: one crop, ten, or whole images of some sizes.

Resizing and crops equal torchvision's `Resize`, `CenterCrop` and `TenCrop` on PIL images.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images import MAX_PIXELS
from ..weights.catalog import PublishedWeights

# He et al., CVPR 2016, Section 3.4: shorter sides of the fully-convolutional test
DENSE_SCALES = (224, 256, 384, 480, 640)
CROPS = ("1", "10", "dense")
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = tuple(RESAMPLING)
SMALLEST, LARGEST = 32, 4096  # pixels; the networks have stride 32

# How the publishers resized for their errors at 224 pixels: shorter side and interpolation.
# fb.resnet.torch, datasets/imagenet.lua: Scale(256), which is bicubic, of whose files openmmlab's
# are copies. Torch's bicubic does not average over what it skips, Pillow's does, so that a small
# difference from these errors remains.
_AUTHORS = (256, "bicubic")
# torchvision's weight records, V1; pretrainedmodels' TransformImage; MMPretrain's ResizeEdge(256),
# by OpenCV, which does not average either; timm's records of ssl, swsl and wsl
_USUAL = (256, "bilinear")
_TORCHVISION_V2 = (232, "bilinear")
# timm's default_cfgs: shorter side floor(224 / crop_pct)
_TIMM_875, _TIMM_95 = (256, "bicubic"), (235, "bicubic")

_OF_PUBLISHER = {"authors": _AUTHORS, "openmmlab": _AUTHORS, "timm": _TIMM_875}
_OF_NAME = {
    "torchvision/X-50-32x4d.v2": _TORCHVISION_V2,
    "torchvision/X-101-32x8d.v2": _TORCHVISION_V2,
    "torchvision/X-101-64x4d": _TORCHVISION_V2,
    "timm/X-50-32x4d.a1": _TIMM_95,
    "timm/X-50-32x4d.a1h": _TIMM_95,
    "timm/X-50-32x4d.a2": _TIMM_95,
    "timm/X-50-32x4d.a3": _TIMM_95,
    "timm/X-101-64x4d.c1": _TIMM_95,
    "openmmlab/X-101-32x8d.detectron2": _USUAL,
}


@dataclass(frozen=True)
class Protocol:
    """How an image is tested. All logits of its views are averaged.

    - "1": the shorter side to `resize`, then the centre crop of `size` (Section 4 of the paper).
    - "10": of that, the four corners, the centre, and their mirror images (Krizhevsky et al. 2012).
      They averaged probabilities; here logits are, as in the authors' code (fb.resnet.torch,
      train.lua, computeScore).
    - "dense": the whole image with its shorter side at each of `scales`, and its mirror image,
      through the convolutions; the maps of res5 are averaged over all of their positions, which as
      the classifier is linear averages its logits (He et al., CVPR 2016, Section 3.4; there too
      scores are averaged over the sizes).

    Attributes:
        size: side of a crop in pixels, at least 32; of no use for "dense".
        resize: shorter side in pixels before the crop, at least `size`.
        interpolation: "bilinear" or "bicubic", both averaging where they shrink.
        crops: "1", "10" or "dense".
        scales: shorter sides for "dense".

    Raises:
        UserError: for other values.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    crops: str = "1"
    scales: tuple[int, ...] = DENSE_SCALES

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise UserError(f"crops {self.crops} is not one of {', '.join(CROPS)}")
        if self.interpolation not in INTERPOLATIONS:
            known = " or ".join(INTERPOLATIONS)
            raise UserError(f"interpolation {self.interpolation} is not {known}")
        named = (
            ("size", self.size),
            ("resize", self.resize),
            *(("scales", s) for s in self.scales),
        )
        for name, value in named:
            if not SMALLEST <= value <= LARGEST:
                raise UserError(f"{name} {value} is not in {SMALLEST}..{LARGEST} pixels")
        if self.resize < self.size:
            raise UserError(
                f"resize {self.resize} is less than size {self.size}: no crop fits the image"
            )
        if not self.scales:
            raise UserError("scales: name at least one shorter side")

    @property
    def views(self) -> int:
        """How many there are of an image."""
        return {"1": 1, "10": 10, "dense": 2 * len(self.scales)}[self.crops]

    def __str__(self) -> str:
        if self.crops == "dense":
            sizes = ", ".join(map(str, self.scales))
            return (
                f"whole images and their mirror images, shorter sides {sizes}, {self.interpolation}"
            )
        crops = "centre crop" if self.crops == "1" else "ten crops"
        return f"{crops} of {self.size} from shorter side {self.resize}, {self.interpolation}"

    def cut(self, image: Image.Image) -> list[np.ndarray]:
        """Make the views of one image.

        Args:
            image: RGB, of any size.

        Returns:
            Arrays of (V, H, W, 3), RGB, uint8, 0..255: one of all crops; for "dense" one for each
            scale, of the image and its mirror image.

        Raises:
            UserError: see `resize`.
        """
        if self.crops == "dense":
            pixels = [np.asarray(resize(image, s, self.interpolation)) for s in self.scales]
            return [np.stack((p, p[:, ::-1])) for p in pixels]
        pixels = np.asarray(resize(image, self.resize, self.interpolation))
        if self.crops == "1":
            return [centre_crop(pixels, self.size)[None]]
        return [ten_crops(pixels, self.size)]


def resize(image: Image.Image, shorter: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize to a shorter side of `shorter` pixels; the longer one is rounded down.

    Raises:
        UserError: if that has more pixels than an image may have.
    """
    width, height = image.size
    if width <= height:
        size = (shorter, int(shorter * height / width))
    else:
        size = (int(shorter * width / height), shorter)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"{width} x {height} pixels resized to a shorter side of {shorter} are "
            f"{size[0]} x {size[1]}, more than {MAX_PIXELS}"
        )
    return image if size == image.size else image.resize(size, RESAMPLING[interpolation])


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Cut (size, size, 3) from the middle of (H, W, 3) with both sides at least `size`."""
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def ten_crops(pixels: np.ndarray, size: int) -> np.ndarray:
    """Cut (10, size, size, 3): upper left, upper right, lower left, lower right, centre; mirrored.

    Args:
        pixels: (H, W, 3) with both sides at least `size`.
        size: side of a crop in pixels.
    """
    height, width = pixels.shape[:2]
    corners = [(y, x) for y in (0, height - size) for x in (0, width - size)]

    def five(pixels: np.ndarray) -> list[np.ndarray]:
        crops = [pixels[y : y + size, x : x + size] for y, x in corners]
        return [*crops, centre_crop(pixels, size)]

    # torchvision and Torch7 mirror the image, then cut
    return np.stack(five(pixels) + five(pixels[:, ::-1]))


def resizing_for(size: int, published: PublishedWeights | None, source: str) -> tuple[int, str]:
    """How to resize before a crop: as the publisher of the weights did.

    Args:
        size: of the crop. At 224 the publisher's; at any other size the shorter side is the crop's,
            as for the 320 x 320 of Table 5 (He et al., ECCV 2016, Section 5).
        published: the weights' entry of the catalog, None for others.
        source: the layout that the weights came in.

    Returns:
        The shorter side in pixels, and the interpolation.
    """
    if published is not None:
        usual = _OF_PUBLISHER.get(published.publisher, _USUAL)
        shorter, interpolation = _OF_NAME.get(published.name, usual)
    else:
        shorter, interpolation = _AUTHORS if source == "torch7" else _USUAL
    return (shorter if size == 224 else size), interpolation
