"""Images as a detector takes them: arrays, PIL images, files, all turned into arrays.

Needs NumPy and Pillow alone: the runner of exported detectors has no Detectron2, whose reading of
images this equals.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .errors import UserError, one_line

ImageInput = np.ndarray | Image.Image | str | Path

# Raster formats only: Pillow would start Ghostscript for an EPS file.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow's own bound against decompression bombs, 89 million; RGB takes three bytes a pixel.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16-bit grey images


_ORIENTATION = 274  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_array(image: ImageInput, order: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Turn whatever shows one image into an array.

    Args:
        image: (H, W, 3) uint8, 0..255, taken to be in `order`; or a PIL image, or the path of a
            file: see `pil_to_bgr` and `read_image`.
        order: of the channels, "BGR" or "RGB".
        max_pixels: largest H * W.

    Returns:
        (H, W, 3) in `order`, uint8, 0..255.

    Raises:
        UserError: for anything else, an empty or too large image, or a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        return _in_order(read_image(Path(image), max_pixels), order)
    if isinstance(image, Image.Image):
        _require_size(image.width, image.height, "a PIL image", max_pixels)
        return _in_order(pil_to_bgr(image), order)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image is a NumPy array, a PIL image or a path, not a {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"an array of shape {image.shape} is no image: give (H, W, 3) in {order} order"
            + ("; for a grey one np.stack([grey] * 3, axis=2)" if image.ndim == 2 else "")
            + ("; several images go in a list" if image.ndim == 4 else "")
        )
    if image.dtype != np.uint8:
        raise UserError(f"an array of dtype {image.dtype} is no image: give uint8, 0 to 255")
    _require_size(image.shape[1], image.shape[0], "an array", max_pixels)
    return image


def _in_order(bgr: np.ndarray, order: str) -> np.ndarray:
    return bgr if order == "BGR" else bgr[:, :, ::-1]


def read_image(file: Path | BinaryIO, max_pixels: int = MAX_PIXELS, name: str = "") -> np.ndarray:
    """Read and decode an image file; of several frames or pages the first.

    Args:
        file: a path, or an open binary file such as an upload.
        max_pixels: largest width * height; larger files are refused before they are decoded.
        name: what messages call it; a path by default.

    Returns:
        (H, W, 3) BGR, uint8, 0..255; see `pil_to_bgr`.

    Raises:
        UserError: if it is absent, a folder, damaged, cut off, too large, or none of `FORMATS`.
    """
    name = name or str(file)
    if isinstance(file, Path) and not file.is_file():
        reason = "it is a folder" if file.is_dir() else "there is no such file"
        raise UserError(f"cannot read image {name}: {reason}")
    try:
        with Image.open(file, formats=FORMATS) as image:
            _require_size(image.width, image.height, "it", max_pixels)
            return pil_to_bgr(image)
    except Image.DecompressionBombError as error:
        reason, cause = f"it has far more than {MAX_PIXELS} pixels", error
    except Image.UnidentifiedImageError as error:
        reason, cause = f"it is none of {', '.join(FORMATS)}, or damaged", error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason, cause = one_line(error), error
    raise UserError(f"cannot read image {name}: {reason}") from cause


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS, name: str = "image") -> np.ndarray:
    """Decode the content of an image file; see `read_image`."""
    return read_image(io.BytesIO(content), max_pixels, name)


def pil_to_bgr(image: Image.Image) -> np.ndarray:
    """Convert a PIL image as Detectron2 reads images for training.

    EXIF's orientation is applied; for the rest see `pil_to_rgb`.

    Returns:
        (H, W, 3) BGR, uint8, 0..255.

    Raises:
        UserError: for an image of floating-point or 32-bit numbers.
    """
    return np.asarray(pil_to_rgb(_upright(image)))[:, :, ::-1]


def pil_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image to RGB, 0..255, as it lies: EXIF's orientation is not applied.

    Grey values, palettes, CMYK and YCbCr become RGB; transparency is dropped, not blended. Unlike
    Pillow, Detectron2 and torchvision, which cut their values at 255, 16-bit grey images keep the
    higher 8 bits.

    Raises:
        UserError: for an image of floating-point or 32-bit numbers.
    """
    if image.mode in _DEEP:
        deep = np.asarray(image)
        if deep.size and not 0 <= deep.min() <= deep.max() <= 0xFFFF:
            raise UserError("32-bit numbers have no known range: convert the image to 8 bits")
        image = Image.fromarray((deep.astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise UserError("floating-point numbers have no known range: convert the image to 8 bits")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged EXIF data is none, as for Detectron2
        turn = None
    return image if turn is None else image.transpose(turn)


def _require_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if not width * height:
        raise UserError(f"{name} is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        raise UserError(f"{name} has {width} x {height} pixels, more than {max_pixels}")
