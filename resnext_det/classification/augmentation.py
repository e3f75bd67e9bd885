"""What is done to training images: the authors' augmentation for ImageNet, the paper's for CIFAR.

The first is that of the authors' code (fb.resnet.torch, datasets/transforms.lua and imagenet.lua):
random sized crop, jitter of brightness, contrast and saturation, PCA lighting, flip. Pillow's
resizing averages over the pixels that it skips, Torch's did not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import UserError
from .protocols import INTERPOLATIONS, LARGEST, RESAMPLING, SMALLEST

# of random boxes: area as a part of the image's, aspect ratio, and draws before the fallback
_AREAS = (0.08, 1.0)
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_GREY = np.array([0.299, 0.587, 0.114])  # of RGB, ITU-R BT.601
# principal components of ImageNet's RGB values in 0..1: eigenvalues, and a component in each column
# (fb.resnet.torch, datasets/imagenet.lua; after Krizhevsky et al. 2012, Section 4.1)
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


@dataclass(frozen=True)
class ImageNetAugmentation:
    """The authors' augmentation. Colours are not changed here, but told as one affine map.

    Jitter and lighting are affine in RGB, and so are their compositions; the map is for the device
    that trains, on floats: nothing is rounded or clipped, as in the authors' code.

    Attributes:
        size: side of the crop in pixels, 32 to 4096.
        jitter: 0 to 1; factors of brightness, contrast and saturation are within 1 +- this.
        lighting: 0 to 1; standard deviation of the weight of each principal component.
        interpolation: "bicubic" or "bilinear".
        flip: whether half of the images are mirrored.

    Raises:
        UserError: for other values.
    """

    size: int = 224
    jitter: float = 0.4
    lighting: float = 0.1
    interpolation: str = "bicubic"
    flip: bool = True

    def __post_init__(self) -> None:
        if not SMALLEST <= self.size <= LARGEST:
            raise UserError(
                f"CLASSIFIER.SIZE {self.size}: set it to {SMALLEST} to {LARGEST} pixels"
            )
        for key in ("jitter", "lighting"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(
                    f"CLASSIFIER.{key.upper()} {getattr(self, key)}: set it to a number from 0 to 1"
                )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"CLASSIFIER.INTERPOLATION {self.interpolation}: set it to "
                f"{' or '.join(INTERPOLATIONS)}"
            )

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: RGB, of any size.
            rng: all that is random is drawn from it.

        Returns:
            The crop, (size, size, 3) RGB, uint8, 0..255, and the (3, 4) float32 map of its colours:
            a pixel x becomes `colour[:, :3] @ x + colour[:, 3]`, in the units of 0..255.
        """
        # In one step; next to the edges Pillow also sees the pixels just outside of the box.
        crop = image.resize(
            (self.size, self.size),
            RESAMPLING[self.interpolation],
            box=random_box(*image.size, rng),
        )
        if rng.random() < 0.5 and self.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(crop)
        return pixels, self._draw_colour(pixels, rng).astype(np.float32)

    def _draw_colour(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        colour = np.eye(3, 4)
        if self.jitter:
            factors = 1 + self.jitter * (2 * rng.random(3) - 1)
            colour = jitter_map(mean_colour(pixels), *factors)
        if self.lighting:
            weights = self.lighting * rng.standard_normal(3)
            colour[:, 3] += lighting_shift(weights)
        return colour


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw what is cut out of an image: 8 % to 100 % of its area, aspect ratio 3/4 to 4/3.

    Where no draw of ten fits into the image, it is the largest square in the middle: the shorter
    side resized to the crop's size, and the centre cropped.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * rng.random())
        aspect = _ASPECTS[0] + (_ASPECTS[1] - _ASPECTS[0]) * rng.random()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:  # else wide boxes would be more frequent than upright ones
            w, h = h, w
        if 1 <= w <= width and 1 <= h <= height:
            left, upper = (int(rng.integers(0, room + 1)) for room in (width - w, height - h))
            return left, upper, left + w, upper + h
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    """The mean (3,) of (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    # rows first, which is several times as fast as a mean over both axes
    columns = pixels.reshape(height, width * 3).sum(axis=0, dtype=np.uint32)
    return columns.reshape(width, 3).sum(axis=0) / (height * width)


def jitter_map(
    mean: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Compose changes of brightness, contrast and saturation.

    Each is `factor * image + (1 - factor) * other`, and the other one is black, everywhere the mean
    of the grey values, or the grey image. The authors' random order of the three is left out: it
    makes no difference where nothing is clipped, as contrast and saturation keep the mean grey and
    a grey image is its own grey image.

    Args:
        mean: of the image's RGB values, (3,).
        brightness, contrast, saturation: factors, 0 or more; 1 changes nothing.

    Returns:
        (3, 4), a matrix and a shift, in the units of `mean`.
    """
    colour = np.empty((3, 4))
    colour[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _GREY)
    colour[:, 3] = brightness * (1 - contrast) * (_GREY @ mean)
    return colour


def lighting_shift(weights: np.ndarray) -> np.ndarray:
    """What is added to RGB values of 0..255, (3,), for the weights (3,) of the components."""
    return 255 * _EIGENVECTORS @ (_EIGENVALUES * weights)


def crop_and_flip(
    pixels: np.ndarray,
    seeds: Sequence[int],
    padding: int = 4,
    fill: Sequence[int] = (0, 0, 0),
    *,
    flip: bool = True,
) -> np.ndarray:
    """Cut each image at random out of its padded self, and flip half of them (Appendix A).

    Args:
        pixels: (N, H, W, 3) uint8, in any colour order.
        seeds: of each image, random numbers of 63 bits; nothing else decides what becomes of it.
        padding: pixels on each side, 0 or more.
        fill: colour of the padding, 0..255, in the images' order.
        flip: False leaves out the mirroring.

    Returns:
        (N, H, W, 3) uint8, a copy.
    """
    count, height, width, channels = pixels.shape
    offsets = 2 * padding + 1
    bits = np.array(seeds, dtype=np.int64)
    flipped, bits = (bits & 1).astype(bool), bits >> 1
    top, left = bits % offsets, bits // offsets % offsets
    padded = np.empty((count, height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[...] = fill
    padded[:, padding : padding + height, padding : padding + width] = pixels
    # whole rows of a crop are copied at once where pixels and channels are one axis
    rows = padded.reshape(count, height + 2 * padding, -1)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (height, width * channels), (1, 2))
    crops = windows[np.arange(count), top, channels * left].reshape(pixels.shape)
    if flip:
        crops[flipped] = crops[flipped, :, ::-1]
    return crops
