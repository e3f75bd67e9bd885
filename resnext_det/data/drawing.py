"""Drawing objects on images, without a display."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from pycocotools import mask as mask_api

from ..atomic import replacing
from .labels import Colour, Rectangle, draw_label, font_of

COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:pink", "black")
MASK_OPACITY = 0.45
SIDE = 480  # pixels; a smaller image is shown at a whole multiple of its size

_SIDE_PER_FONT = 55  # the longer side's pixels for a pixel of letter height
_FONT_PER_LINE = 6  # likewise of letter height for a pixel of line width
_SMALLEST_FONT = 11
_DASH = 4  # line widths


@dataclass(frozen=True)
class Shown:
    """An object to draw, in pixels of the image.

    Attributes:
        box: x0, y0, x1, y1.
        class_id: contiguous, from 0; gives the colour.
        label: text at the box.
        polygons: outlines of the mask, each (N, 2) as x, y.
        bitmask: the mask, (H, W) bool, where it is no polygons.
        keypoints: (K, 3) as x, y and 0 (not labelled), 1 (hidden) or 2 (visible).
        crowd: one box for many objects: drawn dashed.
        wrong: a mistake: marked with a cross, which no label covers.
    """

    box: Sequence[float]
    class_id: int
    label: str
    polygons: Sequence[np.ndarray] = ()
    bitmask: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    crowd: bool = False
    wrong: bool = False


def class_colour(class_id: int) -> Colour:
    """A class's RGB colour, 0..255; colours repeat after `len(COLOURS)` classes."""
    return tuple(round(255 * v) for v in to_rgb(COLOURS[class_id % len(COLOURS)]))


def bones_of(metadata: Metadata) -> list[tuple[int, int]]:
    """Pairs of keypoints, by index, that the data set's metadata joins by a line."""
    names = metadata.get("keypoint_names") or ()
    rules = metadata.get("keypoint_connection_rules") or ()
    return [(names.index(a), names.index(b)) for a, b, _ in rules if {a, b} <= set(names)]


def fitting_scale(height: int, width: int) -> float:
    """What brings an image's longer side to at most `SIDE` pixels; whole where it is above 1."""
    longer = max(height, width)
    return SIDE / longer if longer > SIDE else SIDE // longer


def draw_objects(
    image: np.ndarray,
    objects: Sequence[Shown],
    bones: Sequence[tuple[int, int]] = (),
    *,
    scale: float = 1,
    font_size: int | None = None,
) -> Image.Image:
    """Draw objects on an image, the last one on top.

    Labels cover neither each other nor the crosses of mistakes and lie wholly in the picture; one
    that finds no such place is left out, those of the first objects before others.

    Args:
        image: (H, W, 3) RGB, uint8.
        objects: what to draw.
        bones: pairs of keypoints to join by a line.
        scale: of the picture to the image.
        font_size: pixels, to which lines are proportional; None fits it to the picture.

    Returns:
        An RGB picture of W x H pixels times `scale`.
    """
    picture = _resize(Image.fromarray(_blend_masks(image, objects)), scale)
    draw = ImageDraw.Draw(picture)
    font = font_of(font_size or max(_SMALLEST_FONT, round(max(picture.size) / _SIDE_PER_FONT)))
    line = max(2, font.size // _FONT_PER_LINE)
    boxes = [_pixels(item.box, scale, picture.size) for item in objects]
    for item, box in zip(objects, boxes, strict=True):
        colour = class_colour(item.class_id)
        if item.crowd:
            _draw_dashed(draw, box, colour, line)
        else:
            draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), outline=colour, width=line)
        if item.keypoints is not None:
            points = item.keypoints * (scale, scale, 1)
            _draw_keypoints(draw, points, bones, colour, line)
    taken = [
        _draw_cross(draw, picture.size, box, font.size)
        for item, box in zip(objects, boxes, strict=True)
        if item.wrong
    ]
    for item, box in zip(objects[::-1], boxes[::-1], strict=True):
        colour = class_colour(item.class_id)
        label = draw_label(draw, picture.size, item.label, box, colour, font, taken)
        taken += [label] if label else []
    return picture


def _blend_masks(image: np.ndarray, objects: Sequence[Shown]) -> np.ndarray:
    """The image with each mask in its colour, (H, W, 3) RGB uint8."""
    blended = np.array(image)
    for item in objects:
        mask = item.bitmask
        if item.polygons:
            outlines = [np.ravel(p).tolist() for p in item.polygons if len(p) > 2]
            rles = mask_api.frPyObjects(outlines, *image.shape[:2]) if outlines else []
            mask = mask_api.decode(mask_api.merge(rles)).astype(bool) if rles else None
        if mask is None or not mask.any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        pixels, inside = blended[part], mask[part]
        colour = np.array(class_colour(item.class_id))
        mixed = MASK_OPACITY * colour + (1 - MASK_OPACITY) * pixels[inside]
        pixels[inside] = mixed.round().astype(np.uint8)
    return blended


def _resize(picture: Image.Image, scale: float) -> Image.Image:
    size = [max(1, round(scale * side)) for side in picture.size]
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, way)


def _pixels(box: Sequence[float], scale: float, size: tuple[int, int]) -> Rectangle:
    """A box in the picture, of at least one pixel."""
    x0, y0, x1, y1 = (scale * np.asarray(box, float)).round().astype(int).tolist()
    x0, y0 = min(max(x0, 0), size[0] - 1), min(max(y0, 0), size[1] - 1)
    return x0, y0, min(max(x1, x0 + 1), size[0]), min(max(y1, y0 + 1), size[1])


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    x0, y0, x1, y1 = box
    dash = _DASH * line
    for x in range(x0, x1, 2 * dash):
        for y in (y0, max(y0, y1 - line)):
            draw.rectangle((x, y, min(x + dash, x1) - 1, min(y + line, y1) - 1), fill=colour)
    for y in range(y0, y1, 2 * dash):
        for x in (x0, max(x0, x1 - line)):
            draw.rectangle((x, y, min(x + line, x1) - 1, min(y + dash, y1) - 1), fill=colour)


def _draw_keypoints(
    draw: ImageDraw.ImageDraw,
    points: np.ndarray,
    bones: Sequence[tuple[int, int]],
    colour: Colour,
    line: int,
) -> None:
    for a, b in bones:
        if min(points[a, 2], points[b, 2]) > 0:
            draw.line([*points[a, :2], *points[b, :2]], fill=colour, width=line)
    for x, y, visibility in points:
        if visibility > 0:
            fill = "white" if visibility > 1 else None
            draw.circle((x, y), 1.5 * line, fill=fill, outline=colour, width=line // 2)


def _draw_cross(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Rectangle, side: int
) -> Rectangle:
    """A white cross on black at the box's lower right corner, outside of a small box."""
    small = min(box[2] - box[0], box[3] - box[1]) < 2 * side
    x1, y1 = (min(max(v + small * side, side), end) for v, end in zip(box[2:], size, strict=True))
    mark = (max(x1 - side, 0), max(y1 - side, 0), x1, y1)
    draw.rectangle((*mark[:2], x1 - 1, y1 - 1), fill="black", outline="white")
    edge, width = max(2, side // 4), max(1, side // 8)
    left, top, right, bottom = mark[0] + edge, mark[1] + edge, x1 - 1 - edge, y1 - 1 - edge
    draw.line((left, top, right, bottom), fill="white", width=width)
    draw.line((left, bottom, right, top), fill="white", width=width)
    return mark


def save_figure(figure: Figure, file: Path, dpi: float = 110) -> None:
    """Write a figure as PNG or JPEG, by the name's suffix, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    FigureCanvasAgg(figure)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format=file.suffix[1:].lower())
