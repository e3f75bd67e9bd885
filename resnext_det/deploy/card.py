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
    that the longer one is at most `max_size`, by Pillow's bilinear filter.

    Attributes:
        class_names: by class, from 0.
        min_size: in pixels; 0 leaves images as they are.
        max_size: in pixels.
        masks: whether there is a fourth output, masks.
        score_threshold: detections have a higher score, 0..1.
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
    score_threshold: float
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
        for name, is_legal in _CHECKS.items():
            if not is_legal(values[name]):
                raise UserError(f"{file}: its card has {name} {str(values[name])[:50]!r}")
        known = {name: values[name] for name in names}
        return cls(**{**known, "class_names": tuple(known["class_names"])})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= 100_000


def _is_score(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_CHECKS: dict[str, Callable[[object], bool]] = {
    "class_names": lambda v: isinstance(v, list) and len(v) > 0 and all(map(_is_text, v)),
    "min_size": _is_size,
    "max_size": lambda v: _is_size(v) and v > 0,
    "masks": lambda v: isinstance(v, bool),
    "score_threshold": _is_score,
    "variant": _is_text,
    "licence": _is_text,
    "source": _is_text,
    "weights_sha256": _is_text,
    "made_by": _is_text,
}
