"""Sizes of images and masks for the runner of exported detectors; NumPy and Pillow alone.

What is done here has to equal Detectron2's `ResizeShortestEdge` and `paste_masks_in_image`, which
the tests compare it with.
"""

import numpy as np
from PIL import Image

from ..errors import UserError


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width that `ResizeShortestEdge` gives an image of some height and width.

    Args:
        height, width: in pixels.
        min_size: pixels of the shorter side; 0 for no resizing.
        max_size: pixels of the longer side at most, which may make the shorter one shorter.

    Raises:
        UserError: for an image so narrow that nothing would be left of it.
    """
    if not min_size:
        return height, width
    scale = min_size / min(height, width)
    # Detectron2 gives the shorter side its length directly and scales the other
    new = [min_size * 1.0, scale * width] if height < width else [scale * height, min_size * 1.0]
    if max(new) > max_size:
        scale = max_size / max(new)
        new = [side * scale for side in new]
    new_height, new_width = (int(side + 0.5) for side in new)
    if not new_height * new_width:
        raise UserError(f"an image of {width} x {height} pixels is too narrow to resize")
    return new_height, new_width


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 as `ResizeShortestEdge` does, to what `resized_size` says."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def paste_mask(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Paste a mask into an image, as `paste_masks_in_image` does.

    Args:
        mask: (M, M) float32, probabilities within the box.
        box: (4,) x1, y1, x2, y2 in pixels, within the image.
        height, width: of the image.
        threshold: pixels of the object have at least so high a probability.

    Returns:
        (height, width) bool.
    """
    pasted = np.zeros((height, width), dtype=bool)
    x0, y0 = (max(int(np.floor(v)) - 1, 0) for v in box[:2])
    x1 = min(int(np.ceil(box[2])) + 1, width)
    y1 = min(int(np.ceil(box[3])) + 1, height)
    across = _interpolation(x0, x1, box[0], box[2], mask.shape[1])
    down = _interpolation(y0, y1, box[1], box[3], mask.shape[0])
    pasted[y0:y1, x0:x1] = down @ mask @ across.T >= threshold
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
