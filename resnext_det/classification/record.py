"""What a classifier's file tells beside its recipe: how its run tested it, and its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import UserError
from ..weights.files import RawFile
from .protocols import Protocol

RECORD = "classifier"  # its key in a checkpoint


@dataclass(frozen=True)
class ClassifierRecord:
    """Kept in each checkpoint of a classifier.

    Attributes:
        size: side of the test's centre crop in pixels.
        resize: shorter side in pixels before the crop.
        interpolation: of the resizing, "bilinear" or "bicubic".
        classes: names in the order of the network's outputs.
    """

    size: int
    resize: int
    interpolation: str
    classes: tuple[str, ...]

    @classmethod
    def of(cls, protocol: Protocol, classes: Sequence[str]) -> "ClassifierRecord":
        """The record of a run."""
        return cls(protocol.size, protocol.resize, protocol.interpolation, tuple(classes))

    def as_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "classes": list(self.classes)}


def record_in(raw: RawFile, file: str) -> ClassifierRecord | None:
    """The record of `file`, read already; None for one that no run of this package wrote.

    Raises:
        UserError: if its record is damaged.
    """
    values = raw.content.get(RECORD) if isinstance(raw.content, Mapping) else None
    if values is None:
        return None
    try:
        known = ClassifierRecord(**values)
        Protocol(size=known.size, resize=known.resize, interpolation=known.interpolation)
        if not known.classes or not all(isinstance(name, str) for name in known.classes):
            raise ValueError("classes are names")
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: its record of a classifier is damaged ({error})") from error
    return ClassifierRecord(**{**asdict(known), "classes": tuple(known.classes)})


def require_same_classes(ours: Sequence[str], theirs: Sequence[str], where: str) -> None:
    """Refuse images whose labels would mean other classes.

    Numbers from 0, as webdataset's `.cls` files have, go with any names.

    Args:
        ours: the classes that labels stand for.
        theirs: those of the images.
        where: the images are.

    Raises:
        UserError: if they differ, or stand in another order.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        raise UserError(f"{where} has {len(theirs)} classes, not {len(ours)}")
    numbers = tuple(map(str, range(len(ours))))
    named = theirs if ours == numbers else ours if theirs == numbers else None
    if named is not None and not all(name.isdecimal() for name in named):
        return
    index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    raise UserError(
        f"{where}: class {index} is {theirs[index]!r}, but {ours[index]!r} to the network: the "
        "classes or their order differ, and labels would be wrong"
    )


def is_text_order_of_numbers(classes: Sequence[str]) -> bool:
    """Whether all names are numbers, in another order than theirs, like 0, 1, 10, 2."""
    if not all(name.isdecimal() for name in classes):
        return False
    numbers = [int(name) for name in classes]
    return numbers != sorted(numbers)
