"""What training and testing need of a set of images, wherever its images are, and decoding one."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import UserError, one_line
from ..images import FORMATS, MAX_PIXELS, SUFFIXES, pil_to_rgb

_SHOWN = 5

Set = TypeVar("Set", bound="ImageSet")


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Images and their classes.

    A set is what each data worker has a copy of: it keeps arrays and not millions of objects, whose
    memory counting references would copy, and no open files.

    Attributes:
        root: where the images are, for messages.
        classes: names of the classes; a label is an index into these.
        labels: (N,) int64. Every other array among the attributes of a set has N rows as well.
    """

    root: Path
    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call image `index`, such as its path."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Read image `index`; see `decode_rgb`.

        Returns:
            An RGB image, 0..255.

        Raises:
            UserError: if it cannot be read, with its name.
        """

    def taken(self: Set, kept: np.ndarray) -> Set:
        """Only the images `kept`, (M,) indices, in that order, and all the classes."""
        arrays = {
            field.name: getattr(self, field.name)[kept]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, **arrays)

    def limited(self: Set, count: int | None) -> Set:
        """`count` of the images, evenly spaced, so that all classes stay; all of them for None."""
        if count is None or count >= len(self):
            return self
        return self.taken(np.arange(count) * len(self) // count)

    def labelled(self: Set, classes: Sequence[str], subset: bool = False) -> Set:
        """The set with labels in another order of the classes.

        Args:
            classes: their names in the order of the labels.
            subset: leave out images of other classes.

        Raises:
            UserError: see `require_classes`.
        """
        require_classes(self.root, self.classes, classes, subset)
        positions = {name: label for label, name in enumerate(classes)}
        labels = np.array([positions.get(name, -1) for name in self.classes])[self.labels]
        chosen = self if (labels >= 0).all() else self.taken(np.flatnonzero(labels >= 0))
        return replace(chosen, classes=tuple(classes), labels=labels[labels >= 0])


@dataclass(frozen=True, eq=False)
class JoinedImages(ImageSet):
    """Images of several sets as one.

    Attributes:
        parts: the sets.
        part: (N,) int64, index of the set that an image is in.
        index: (N,) int64, its index there.
    """

    parts: tuple[ImageSet, ...]
    part: np.ndarray
    index: np.ndarray

    def name(self, index: int) -> str:
        return self.parts[self.part[index]].name(int(self.index[index]))

    def read(self, index: int) -> Image.Image:
        return self.parts[self.part[index]].read(int(self.index[index]))


def join_sets(root: Path, parts: Sequence[ImageSet], classes: Sequence[str]) -> JoinedImages:
    """Join sets whose classes together are `classes`; the images of a class stay in one stretch."""
    positions = {name: label for label, name in enumerate(classes)}
    labels = np.concatenate(
        [np.array([positions[name] for name in p.classes])[p.labels] for p in parts]
    )
    part = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    index = np.concatenate([np.arange(len(p)) for p in parts])
    order = np.argsort(labels, kind="stable")
    return JoinedImages(
        root, tuple(classes), labels[order], tuple(parts), part[order], index[order]
    )


def require_classes(
    root: Path,
    found: Sequence[str],
    expected: Sequence[str],
    subset: bool = False,
    kind: str = "classes",
) -> None:
    """Refuse images of other classes than those expected.

    Args:
        root: where they are.
        found: the classes there.
        expected: those that there are to be.
        subset: whether there may be others beside them.
        kind: what `found` are called.

    Raises:
        UserError: with the differences.
    """
    absent = sorted(set(expected) - set(found))
    others = [] if subset else sorted(set(found) - set(expected))
    parts = []
    for names, what in ((absent, "lacks"), (others, "has beside them")):
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{what} {len(names)}: {', '.join(names[:_SHOWN])}{more}")
    if parts:
        raise UserError(
            f"{root} has {len(found)} {kind} for {len(expected)} classes; it {' and '.join(parts)}"
        )


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without folders, is taken for an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_rgb(path: Path) -> Image.Image:
    """Read an image file; see `decode_rgb`."""
    return decode_rgb(path, str(path))


def decode_rgb(content: Path | bytes, name: str) -> Image.Image:
    """Decode an image as torchvision's and Torch7's loaders do: EXIF's orientation is not applied.

    Published errors come from such loaders; detection turns images upright (`read_image`). 16-bit
    greys are as in detection, though, not cut at 255 (`pil_to_rgb`).

    Args:
        content: of an image file, or where it is.
        name: what messages call it.

    Returns:
        An RGB image, 0..255; of several frames the first.

    Raises:
        UserError: if it is absent, damaged, cut off, too large, none of `FORMATS`, or of
            floating-point or 32-bit numbers.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has more than {MAX_PIXELS} pixels")
            return pil_to_rgb(image)
    except Image.UnidentifiedImageError as error:
        reason, cause = f"it is none of {', '.join(FORMATS)}, or damaged", error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason, cause = getattr(error, "strerror", None) or one_line(error), error
    raise UserError(f"cannot read image {name}: {reason}") from cause
