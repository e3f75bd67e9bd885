"""What an exported detector says about itself: JSON that travels inside the model file."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from ..errors import UserError

VERSION = 1
KEY = "resnext_det"  # of the text, where a format stores it by a name
MEMBER = "card.json"  # where it stores it as a file
MAX_LENGTH = 4 * 1024**2  # characters; ten thousand classes need a twentieth


@dataclass(frozen=True)
class Card:
    """How to use a model file, and where its weights come from.

    The image goes in as RGB, uint8. Its shorter side is resized to `min_size` pixels, or less so
    that the longer one is at most `max_size`, by Pillow's bilinear filter. The rest is done within
    the file: `image_format` to `size_divisibility`, and the selection of detections.

    Attributes:
        class_names: by class, from 0.
        min_size: in pixels; 0 leaves images as they are.
        max_size: in pixels.
        masks: whether there is a fourth output, masks.
        image_format: colour order in which the network inside sees the image, "RGB" or "BGR".
        pixel_mean: per channel, in that order; the network sees (pixel - mean) / std.
        pixel_std: likewise, above 0.
        size_divisibility: zeros are added below and right up to multiples of so many pixels.
        score_threshold: detections have a higher score, 0..1.
        detections_per_image: at most, those of the highest scores; negative for all.
        variant: the backbone, e.g. "X-50-32x4d" or "R-50".
        licence: of the weights; "unknown" where their file does not tell, as below.
        source: what the training of the weights started from.
        weights_sha256: of the weights' file, 64 hexadecimal digits.
        made_by: the package and its version.
        version: of this record.
    """

    class_names: tuple[str, ...]
    min_size: int
    max_size: int
    masks: bool
    image_format: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    size_divisibility: int
    score_threshold: float
    detections_per_image: int
    variant: str
    licence: str
    source: str
    weights_sha256: str
    made_by: str
    version: int = VERSION

    def to_json(self) -> str:
        """The text that is written into a model file."""
        return json.dumps(asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | None, file: str) -> "Card":
        """Read the text in a model file.

        Raises:
            UserError: if it is absent or no such record.
        """
        if not text:
            raise UserError(f"{file} holds no card: it was not written by tools/export_model.py")
        if len(text) > MAX_LENGTH:
            raise UserError(f"{file}: its card has more than {MAX_LENGTH} characters")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: its card is damaged, no JSON") from error
        if not isinstance(values, Mapping):
            raise UserError(f"{file}: its card is no JSON object")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise UserError(f"{file}: its card lacks {', '.join(missing)}")
        if values["version"] != VERSION:
            version = str(values["version"])[:20]
            raise UserError(f"{file}: its card is of version {version!r}, this is {VERSION}")
        for name, (is_legal, meaning) in _CHECKS.items():
            for value in _parts(name, values[name], file):
                if not is_legal(value):
                    shown = str(value)[:50]
                    raise UserError(f"{file}: its card has {name} {shown!r}: no {meaning}")
        known = {name: values[name] for name in names}
        return cls(**{**known, **{name: tuple(known[name]) for name in _LISTS}})


def _parts(name: str, value: object, file: str) -> list:
    """The values to check, one by one."""
    if name not in _LISTS:
        return [value]
    length = _LISTS[name]
    if not isinstance(value, list) or not value or len(value) != (length or len(value)):
        what = f"list of {length}" if length else "list"
        raise UserError(f"{file}: its card has {name} {str(value)[:50]!r}: no {what}")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= 100_000


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31


_LISTS = {"class_names": None, "pixel_mean": 3, "pixel_std": 3}  # with their legal lengths

_TEXT = _is_text, "line of at most 1000 printable characters"
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "class_names": _TEXT,
    "min_size": (_is_size, "number of pixels"),
    "max_size": (lambda v: _is_size(v) and v > 0, "number of pixels"),
    "masks": (lambda v: isinstance(v, bool), "true or false"),
    "image_format": (lambda v: v in ("RGB", "BGR"), "RGB or BGR"),
    "pixel_mean": (_is_number, "number"),
    "pixel_std": (lambda v: _is_number(v) and v > 0, "number above 0"),
    "size_divisibility": (lambda v: _is_size(v) and v > 0, "number of pixels"),
    "score_threshold": (_is_number, "number"),
    "detections_per_image": (_is_count, "whole number"),
    "variant": _TEXT,
    "licence": _TEXT,
    "source": _TEXT,
    "weights_sha256": _TEXT,
    "made_by": _TEXT,
}
