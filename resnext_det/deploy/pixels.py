"""Images for the runner of exported detectors, and masks in them; NumPy and Pillow alone.

What is done here has to equal Detectron2's reading of images, `ResizeShortestEdge` and
`paste_masks_in_image`, which the tests compare it with.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

ImageInput = np.ndarray | Image.Image | str | Path

# Raster formats only: Pillow would start Ghostscript for an EPS file.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's own bound against decompression bombs, 89 million; RGB takes three bytes a pixel.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

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


def to_rgb(image: ImageInput) -> np.ndarray:
    """Turn whatever shows one image into an array.

    Args:
        image: a file's path, or a PIL image, turned upright as its EXIF data says; or an array,
            (H, W, 3) RGB uint8, 0..255, taken as it is.

    Returns:
        (H, W, 3) RGB, uint8, 0..255.

    Raises:
        UserError: for anything else, an empty or too large image, or a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        _require_size(image.width, image.height, "a PIL image")
        return _convert(image)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image is a NumPy array, a PIL image or a path, not a {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(
            f"an array of shape {image.shape} and dtype {image.dtype} is no image: give (H, W, 3) "
            "uint8 in RGB order"
        )
    _require_size(image.shape[1], image.shape[0], "an array")
    return image


def _read(file: Path) -> np.ndarray:
    if not file.is_file():
        reason = "it is a folder" if file.is_dir() else "there is no such file"
        raise UserError(f"cannot read image {file}: {reason}")
    try:
        with Image.open(file, formats=FORMATS) as image:
            _require_size(image.width, image.height, "it")
            return _convert(image)
    except Image.DecompressionBombError as error:
        reason, cause = f"it has far more than {MAX_PIXELS} pixels", error
    except Image.UnidentifiedImageError as error:
        reason, cause = f"it is none of {', '.join(FORMATS)}, or damaged", error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason, cause = " ".join(str(error).split()) or type(error).__name__, error
    raise UserError(f"cannot read image {file}: {reason}") from cause


def _convert(image: Image.Image) -> np.ndarray:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged EXIF data is none, as for Detectron2
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):  # the higher 8 bits, as the predictor takes them
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=2)
    if image.mode in ("I", "F"):
        raise UserError(f"pixels of mode {image.mode} have no known range: convert it to 8 bits")
    return np.asarray(image.convert("RGB"))


def _require_size(width: int, height: int, name: str) -> None:
    if not width * height:
        raise UserError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS}")


def resize(image: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """Resize an image as `ResizeShortestEdge` does.

    Args:
        image: (H, W, 3) uint8.
        min_size: pixels of the shorter side; 0 for no resizing.
        max_size: pixels of the longer side at most, which may make the shorter one shorter.

    Raises:
        UserError: for an image so narrow that nothing would be left of it.
    """
    height, width = image.shape[:2]
    if not min_size:
        return image
    scale = min_size / min(height, width)
    # Detectron2 gives the shorter side its length directly and scales the other
    new = [min_size * 1.0, scale * width] if height < width else [scale * height, min_size * 1.0]
    if max(new) > max_size:
        scale = max_size / max(new)
        new = [side * scale for side in new]
    new_height, new_width = (int(side + 0.5) for side in new)
    if not new_height * new_width:
        raise UserError(f"an image of {width} x {height} pixels is too narrow to resize")
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paste a mask into an image, as `paste_masks_in_image` does at a threshold of 0.5.

    Args:
        mask: (M, M) float32, probabilities within the box.
        box: (4,) x1, y1, x2, y2 in pixels, within the image.
        height, width: of the image.

    Returns:
        (height, width) bool.
    """
    pasted = np.zeros((height, width), dtype=bool)
    x0, y0 = (max(int(np.floor(v)) - 1, 0) for v in box[:2])
    x1 = min(int(np.ceil(box[2])) + 1, width)
    y1 = min(int(np.ceil(box[3])) + 1, height)
    across = _interpolation(x0, x1, box[0], box[2], mask.shape[1])
    down = _interpolation(y0, y1, box[1], box[3], mask.shape[0])
    pasted[y0:y1, x0:x1] = down @ mask @ across.T >= 0.5
    return pasted


def _interpolation(first: int, last: int, low: float, high: float, size: int) -> np.ndarray:
    """Bilinear weights (last - first, size) of a mask's cells at pixels; outside it is zero."""
    centres = np.arange(first, last, dtype=np.float32) + 0.5
    position = (centres - low) / (high - low) * size - 0.5
    cell = np.floor(position)
    fraction = position - cell
    distance = np.arange(size)[None, :] - cell[:, None]
    weights = np.where(distance == 0, 1 - fraction[:, None], 0)
    weights += np.where(distance == 1, fraction[:, None], 0)
    return weights.astype(np.float32)
