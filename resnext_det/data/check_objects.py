"""Problems of one image entry or one annotation, each a pure function over parsed JSON.

The type tests are exact (`type(x) is int`): JSON's true and false are Python ints otherwise.
"""

import math
import os
from dataclasses import dataclass, field

import numpy as np

from .findings import Words

Problems = list[tuple[str, object]]  # a code of `findings.CODES` and the value at fault

LIMIT = 1e9  # no coordinate in pixels is beyond; also keeps huge integers out of float arithmetic
TOLERANCE = 1.0  # pixels; COCO's own boxes stick out by fractions of one
_NUMBERS = {int, float}


@dataclass
class Tables:
    """What annotations refer to.

    Attributes:
        images: (width, height) in pixels of each listed image id, None where it is not usable.
        categories: the name of each listed category id.
    """

    images: dict[int | str, tuple[int, int] | None] = field(default_factory=dict)
    categories: dict[int | str, object] = field(default_factory=dict)


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a finite number below `LIMIT` in size, and not a boolean."""
    return type(value) in _NUMBERS and -LIMIT < value < LIMIT


def area_valid(area: object) -> bool:
    """Tell whether an area in square pixels is a finite number of at least 0."""
    return type(area) in _NUMBERS and 0 <= area < LIMIT**2


def are_numbers(values: list) -> bool:
    """`is_number` of all, without a Python loop: polygons hold most of a file's numbers."""
    if not set(map(type, values)) <= _NUMBERS:
        return False
    try:
        finite = math.isfinite(sum(values))  # first, as min and max are at a loss with NaN
    except OverflowError:
        return False
    return not values or (finite and min(values) > -LIMIT and max(values) < LIMIT)


def image_size(image: dict) -> tuple[int, int] | None:
    """Return the stated (width, height), or None unless both are positive integers."""
    return image_size_of(image.get("height"), image.get("width"))


def image_size_of(height: object, width: object) -> tuple[int, int] | None:
    """Return (width, height), or None unless both are positive integers."""
    size = width, height
    return size if all(type(s) is int and 0 < s < LIMIT for s in size) else None


def image_problems(image: object) -> Problems:
    """Find what is wrong with an entry of `images`, its pixels apart."""
    if type(image) is not dict:
        return [("image-type", image)]
    problems = []
    if type(image.get("id")) is not int:
        problems.append(("image-id", image.get("id")))
    name = image.get("file_name")
    if not _usable_name(name):
        problems.append(("image-name", name))
    elif os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        problems.append(("image-outside", name))
    if image_size(image) is None:
        problems.append(("image-dimensions", [image.get("width"), image.get("height")]))
    return problems


def _usable_name(name: object) -> bool:
    if type(name) is not str or not name or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def annotation_problems(annotation: object, tables: Tables) -> Problems:
    """Find what is wrong with an entry of `annotations`."""
    if type(annotation) is not dict:
        return [("annotation-type", annotation)]
    get = annotation.get
    problems = []
    if type(get("id")) is not int:
        problems.append(("annotation-id", get("id")))
    elif get("id") == 0:
        problems.append(("annotation-zero-id", 0))
    image_id, category_id = get("image_id"), get("category_id")
    size = None
    if type(image_id) in (int, str) and image_id in tables.images:
        size = tables.images[image_id]
    else:
        problems.append(("annotation-image", image_id))
    if type(category_id) not in (int, str) or category_id not in tables.categories:
        problems.append(("annotation-category", category_id))
    if get("ignore", 0) != 0:
        problems.append(("annotation-ignore", get("ignore")))
    crowd = get("iscrowd")
    if type(crowd) is not int or crowd not in (0, 1):
        missing = "iscrowd" not in annotation
        code = "missing" if missing else "bool" if type(crowd) is bool else "value"
        problems.append((f"crowd-{code}", crowd))
    code = box_problem(get("bbox"), size)
    if code:
        problems.append((code, get("bbox")))
    if not area_valid(get("area")):
        problems.append(("area", get("area")))
    if get("segmentation"):
        problems.extend(segmentation_problems(get("segmentation"), size))
    if "keypoints" in annotation and not keypoints_valid(get("keypoints")):
        problems.append(("keypoints", get("keypoints")))
    return problems


def box_problem(box: object, size: tuple[int, int] | None) -> str | None:
    """Find the worst problem of a box.

    Args:
        box: should be [x, y, width, height] in pixels.
        size: (width, height) of the image in pixels, None where unknown.

    Returns:
        A code, or None for a good box.
    """
    if type(box) is not list or len(box) != 4 or not set(map(type, box)) <= _NUMBERS:
        return "box-type"
    x, y, width, height = box
    if not all(-LIMIT < v < LIMIT for v in box):
        return "box-nan"
    if width < 0 or height < 0:
        return "box-negative"
    if width == 0 or height == 0:
        return "box-zero"
    if size is None:
        return None
    right, bottom = x + width, y + height
    if x >= size[0] or y >= size[1] or right <= 0 or bottom <= 0:
        return "box-outside"
    out = max(-x, -y, right - size[0], bottom - size[1])
    return "box-sticks-out" if out > TOLERANCE else None


def segmentation_problems(segmentation: object, size: tuple[int, int] | None) -> Problems:
    """Find what is wrong with a segmentation that is not empty."""
    if type(segmentation) is dict:
        reason = rle_problem(segmentation, size)
        return [("rle", Words(reason))] if reason else []
    if type(segmentation) is not list or any(type(p) is not list for p in segmentation):
        return [("segmentation-type", segmentation)]
    return [(code, p) for p in segmentation if (code := polygon_problem(p))]


def polygon_problem(polygon: list) -> str | None:
    """Find the problem of a polygon, which should be [x1, y1, x2, y2, x3, y3, ...] in pixels."""
    if len(polygon) < 6 or len(polygon) % 2:
        return "polygon-short"
    return None if are_numbers(polygon) else "polygon-value"


def keypoints_valid(keypoints: object) -> bool:
    """Tell whether keypoints are a list of numbers, three for each point."""
    return type(keypoints) is list and len(keypoints) % 3 == 0 and are_numbers(keypoints)


def rle_problem(rle: dict, size: tuple[int, int] | None) -> str | None:
    """Say what is wrong with a run-length encoded mask, or return None.

    Args:
        rle: should have `size`, [height, width], and `counts`, a list of run lengths or
            pycocotools' compressed text.
        size: (width, height) of the image in pixels, None where unknown.
    """
    shape, counts = rle.get("size"), rle.get("counts")
    if type(shape) is not list or len(shape) != 2 or image_size_of(*shape) is None:
        return "its 'size' is not [height, width]"
    if size is not None and tuple(shape) != size[::-1]:
        return f"its mask is {shape[0]} high and {shape[1]} wide, its image {size[1]} and {size[0]}"
    runs = decompressed(counts) if type(counts) is str else counts
    if type(runs) is not list or any(type(r) is not int or not 0 <= r < LIMIT for r in runs):
        return "its 'counts' are not run lengths"
    if sum(runs) != shape[0] * shape[1]:
        return "its 'counts' do not add up to height x width"
    return None


def decompressed(counts: str) -> list[int] | None:
    """Read pycocotools' compressed run lengths, or return None where they are damaged.

    As `rleFrString` in its `maskApi.c`: 5 bits a character, the sixth says that the number goes
    on; from the fourth number on a difference to the last but one. pycocotools does not check.
    """
    if not counts or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any 32-bit difference needs
        return None
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers.tolist()
