"""What a value of an annotation or results file has to be, so that it can be measured."""

import sys

import hotcoco

# Corners may lie outside of an image; a mask of a polygon that reaches a million pixels is drawn
# for so long, and takes so much memory, that the process is killed.
_REACH = 10


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold, and neither bool nor text."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def are_numbers(values: object) -> bool:
    """Whether it is a list of such numbers."""
    return isinstance(values, list) and all(map(is_number, values))


def is_box(value: object) -> bool:
    """Whether it is a list of 4 numbers."""
    return are_numbers(value) and len(value) == 4


def are_keypoints(value: object) -> bool:
    """Whether it is a list of 3 numbers for each of one or more keypoints."""
    return are_numbers(value) and len(value) > 0 and len(value) % 3 == 0


def is_segmentation(value: object, height: object, width: object) -> bool:
    """Whether it is a mask of an image.

    Args:
        value: polygons, a list of lists x, y, x, y, ... of three corners or more, within ten image
            sizes; or `size` and `counts` of a run-length encoding. Its runs cover the image, which
            is known of plain ones; compressed ones may end early.
        height: of the image, pixels.
        width: likewise.
    """
    if type(height) is not int or type(width) is not int:
        return False
    if isinstance(value, list):
        reach = _REACH * max(height, width)
        return len(value) > 0 and all(_is_polygon(polygon, reach) for polygon in value)
    if not isinstance(value, dict) or value.get("size") not in ([height, width], (height, width)):
        return False
    counts = value.get("counts")
    if isinstance(counts, list):
        whole = all(type(count) is int and count >= 0 for count in counts)
        return whole and sum(counts) == height * width
    if not isinstance(counts, (str, bytes)) or not counts:
        return False
    try:
        hotcoco.mask.area({"size": [height, width], "counts": encoded(counts)})
    except ValueError:  # for text that is not ASCII, too
        return False
    return True


def encoded(counts: str | bytes) -> bytes:
    """Compressed run lengths as bytes."""
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _is_polygon(value: object, reach: int) -> bool:
    long_enough = are_numbers(value) and len(value) >= 6 and len(value) % 2 == 0
    return long_enough and -reach <= min(value) and max(value) <= reach
