"""Pictures with titles, several of them on one sheet, and writing them."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from ..atomic import replacing
from .labels import fit_text, font_of

TITLE_PIXELS = 22  # above a picture
_FONT_PIXELS = 12
_GAP = 12  # pixels around the pictures of a sheet
_JPEG_QUALITY = 92


def with_title(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a line of black text on white above it, `TITLE_PIXELS` high."""
    whole = Image.new("RGB", (picture.width, TITLE_PIXELS + picture.height), "white")
    whole.paste(picture, (0, TITLE_PIXELS))
    draw, font = ImageDraw.Draw(whole), font_of(_FONT_PIXELS)
    draw.text((4, 3), fit_text(draw, title, font, whole.width - 8), fill="black", font=font)
    return whole


def on_sheet(pictures: Iterable[Image.Image], columns: int) -> Image.Image:
    """Put one or more pictures on white, row by row, columns as wide as their widest picture."""
    pictures = list(pictures)
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(p.width for p in pictures[i::columns]) for i in range(len(rows[0]))]
    heights = [max(p.height for p in row) for row in rows]
    size = sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(heights) + 1)
    sheet = Image.new("RGB", size, "white")
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (x, y))
            x += width + _GAP
        y += height + _GAP
    return sheet


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture in the format of the name's suffix, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(file) as temporary:
        picture.save(temporary, quality=_JPEG_QUALITY)  # PNG takes no notice
