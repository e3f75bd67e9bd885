"""Text on pictures: names of objects that cover nothing, and titles."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]  # RGB, 0..255
Rectangle = tuple[int, int, int, int]  # x0, y0, and x1, y1 that lie outside


def text_colour(ground: Colour) -> str:
    """Black or white, whichever has the greater contrast on a colour, as WCAG defines it."""
    unit = [v / 255 for v in ground]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in unit]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: Rectangle,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    taken: Sequence[Rectangle],
) -> Rectangle | None:
    """Write a label above its box, or where it is inside the picture and covers nothing taken.

    Args:
        draw: on the picture.
        size: of the picture, width and height.
        text: cut off where it is wider than the picture.
        box: at which it stands.
        colour: of its ground.
        font: see `font_of`.
        taken: what it may not cover.

    Returns:
        Its place; None where there is none, and nothing is written.
    """
    pad = max(1, font.size // 8)
    text = fit_text(draw, text, font, size[0] - 2 * pad)
    if not text:
        return None
    ascent, descent = font.getmetrics()
    width, height = round(draw.textlength(text, font=font)) + 2 * pad, ascent + descent
    columns = [max(min(x, size[0] - width), 0) for x in (box[0], box[2] - width)]
    rows = [box[1] - height, box[1], box[3], box[3] - height]
    rows = [y for y in rows if 0 <= y <= size[1] - height] or [0]
    places = [(x, y, x + width, y + height) for x in columns for y in rows]
    free = (p for p in places if not any(_overlap(p, other) for other in taken))
    label = next(free, None)
    if label:
        draw.rectangle((*label[:2], label[2] - 1, label[3] - 1), fill=colour)
        draw.text((label[0] + pad, label[1]), text, fill=text_colour(colour), font=font)
    return label


def fit_text(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text as one line, cut off with dots where it is wider than `width` pixels."""
    text = " ".join(text.split())
    whole = text
    while text and draw.textlength(whole, font=font) > width:
        text = text[:-1]
        whole = f"{text.rstrip()}..."
    return whole if text else ""


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=8)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along; it knows Latin, Greek, Cyrillic and more."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)
