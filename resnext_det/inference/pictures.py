"""Pictures of detections: boxes, masks, keypoints and names on the image."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from ..data.drawing import MASK_OPACITY, class_colour

_SMALL = 480  # pixels; a smaller image is shown at a whole multiple of its size
_SIDE_PER_LINE = 300  # the longer side's pixels for a pixel of line width
_SIDE_PER_FONT = 55  # likewise of letter height
_SMALLEST_FONT = 11
_KEYPOINT_SCORE = 0.05  # as in Detectron2's Visualizer

Rectangle = tuple[int, int, int, int]


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    bones: Sequence[tuple[int, int]] = (),
    enlarge: bool = True,
) -> Image.Image:
    """Draw detections on their image, the best on top.

    Args:
        image: (H, W, 3) BGR, uint8.
        instances: of that image, as `Predictor` returns them.
        class_names: of the model.
        bones: pairs of keypoints to join by a line.
        enlarge: show an image whose longer side is less than 240 pixels at a multiple of its size,
            so that names can be read.

    Returns:
        An RGB picture of W x H pixels, or of a whole multiple.
    """
    scale = max(1, _SMALL // max(image.shape[:2])) if enlarge else 1
    order = np.argsort(instances.scores.numpy(), kind="stable")  # the best last
    classes = instances.pred_classes.tolist()
    colours = [tuple(round(255 * v) for v in to_rgb(class_colour(c))) for c in classes]
    picture = Image.fromarray(_blend_masks(image[:, :, ::-1], instances, order, colours))
    picture = picture.resize(
        (scale * picture.width, scale * picture.height), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / _SIDE_PER_LINE))
    boxes = [_pixels(box, scale, picture.size) for box in instances.pred_boxes.tensor.numpy()]
    for i in order:
        draw.rectangle(boxes[i], outline=colours[i], width=line)
        if instances.has("pred_keypoints"):
            points = instances.pred_keypoints[i].numpy() * (scale, scale, 1)
            _draw_keypoints(draw, points, bones, colours[i], line)
    font = _font(max(_SMALLEST_FONT, round(max(picture.size) / _SIDE_PER_FONT)))
    taken: list[Rectangle] = []
    for i in order[::-1]:
        text = f"{' '.join(class_names[classes[i]].split())} {instances.scores[i]:.2f}"
        taken.append(_draw_label(draw, picture.size, text, boxes[i], colours[i], font, taken))
    return picture


def bones_of(metadata: Metadata) -> list[tuple[int, int]]:
    """Pairs of keypoints, by index, that the data set's metadata joins by a line."""
    names = metadata.get("keypoint_names") or ()
    rules = metadata.get("keypoint_connection_rules") or ()
    return [(names.index(a), names.index(b)) for a, b, _ in rules if {a, b} <= set(names)]


def _blend_masks(
    image: np.ndarray, instances: Instances, order: np.ndarray, colours: Sequence[tuple]
) -> np.ndarray:
    """The RGB image with each mask in its colour, (H, W, 3) uint8."""
    blended = np.array(image)
    if not instances.has("pred_masks"):
        return blended
    for i in order:
        x0, y0, x1, y1 = instances.pred_boxes.tensor[i].tolist()
        part = np.s_[max(int(y0) - 1, 0) : int(y1) + 2, max(int(x0) - 1, 0) : int(x1) + 2]
        mask = instances.pred_masks[i].numpy()[part]  # nothing lies outside its box
        pixels = blended[part]
        mixed = MASK_OPACITY * np.array(colours[i]) + (1 - MASK_OPACITY) * pixels[mask]
        pixels[mask] = mixed.round().astype(np.uint8)
    return blended


def _pixels(box: np.ndarray, scale: int, size: tuple[int, int]) -> Rectangle:
    """First and last column and row of a box in the picture."""
    x0, y0, x1, y1 = (scale * box).round().astype(int).tolist()
    right, bottom = size[0] - 1, size[1] - 1
    x0, y0 = min(max(x0, 0), right), min(max(y0, 0), bottom)
    return x0, y0, min(max(x1 - 1, x0), right), min(max(y1 - 1, y0), bottom)


def _draw_keypoints(
    draw: ImageDraw.ImageDraw,
    points: np.ndarray,
    bones: Sequence[tuple[int, int]],
    colour: tuple[int, int, int],
    line: int,
) -> None:
    for a, b in bones:
        if min(points[a, 2], points[b, 2]) > _KEYPOINT_SCORE:
            draw.line([*points[a, :2], *points[b, :2]], fill=colour, width=line)
    for x, y, score in points:
        if score > _KEYPOINT_SCORE:
            draw.circle((x, y), 1.5 * line, fill="white", outline=colour, width=line // 2)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: Rectangle,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Write a label above its box, or where it is inside the picture and covers no other."""
    pad = max(1, font.size // 8)
    ascent, descent = font.getmetrics()
    width, height = round(draw.textlength(text, font=font)) + 2 * pad, ascent + descent
    x = max(min(box[0], size[0] - width), 0)
    places = [box[1] - height, box[1], box[3] + 1, box[3] + 1 - height]
    inside = [y for y in places if 0 <= y <= size[1] - height] or [0]
    free = [y for y in inside if not any(_overlap((x, y, x + width, y + height), t) for t in taken)]
    y = (free or inside)[0]
    label = (x, y, x + width, y + height)
    draw.rectangle((x, y, label[2] - 1, label[3] - 1), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 150  # luma
    draw.text((x + pad, y), text, fill="black" if bright else "white", font=font)
    return label


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along; it knows Latin, Greek, Cyrillic and more."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)
