"""The classes of the images in tar files, which are packed in three ways."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

_DIGITS = 9  # of a class's number, at most
_SPLITS = ({"train"}, {"val", "valid", "validation", "test"})


class Member(NamedTuple):
    """An image in a tar: its name, and where its content begins and how long it is, in bytes."""

    name: bytes
    offset: int
    size: int


def sample_key(name: str) -> str:
    """webdataset's key of a member: its path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


class ClassRule:
    """How one set of tar files says the classes of its images, by the same of three rules for all.

    1. webdataset's: `KEY.cls` beside `KEY.jpg` holds the number of the class as text.
    2. The folder that the image is in is the class: `dog/1.jpg`.
    3. For an image in no folder the tar is the class: `1.jpg` in `dog.tar`, as ImageNet-22K comes.
    """

    def __init__(self, classes: Sequence[str] | None = None, by_tar: bool = False) -> None:
        """
        Args:
            classes: names of the numbers of rule 1; by default the numbers as text.
            by_tar: follow rule 3 alone; an image may be in a folder of the tar's name.
        """
        self._classes, self._by_tar = classes, by_tar
        self._rule = self._example = ""
        self._file, self._keys = Path(), set()  # a tar, and keys of its samples
        self._above: set[str] = set()

    def name(self, file: Path, member: Member, numbers: Mapping[str, str]) -> str:
        """The class of one image.

        Args:
            file: the tar.
            member: the image.
            numbers: content of the .cls members of `file` by their samples' keys.

        Raises:
            UserError: if the rule is another than for images before, a number cannot be used, or a
                sample has two images.
        """
        name = os.fsdecode(member.name)
        folder = name.rpartition("/")[0]
        parent = folder.rpartition("/")[2]
        if self._by_tar:
            if numbers or parent not in ("", ".", "..", file.stem):
                raise UserError(
                    f"{file}:{name} is not just of class {file.stem}: beside folders or tars of "
                    "single classes a tar holds the one that it is named after; move it away"
                )
            return file.stem
        key = sample_key(name) if numbers else ""
        if key in numbers:
            self._follow("a .cls member", f"{file}:{name}")
            return self._numbered(file, name, key, numbers[key])
        if parent not in ("", ".", ".."):
            self._follow("its folder", f"{file}:{name}")
            self._above.add(folder.rpartition("/")[0])
            return parent
        self._follow("the tar's name", f"{file}:{name}")
        return file.stem

    def in_order(self, root: Path, found: Iterable[str], files: int) -> tuple[str, ...]:
        """The classes found, in the order of the labels.

        Args:
            root: what messages call the set.
            found: what `name` returned for all the images.
            files: number of tars.

        Raises:
            UserError: if they are no classes of one split, or numbers with gaps.
        """
        folders = {part for above in self._above for part in above.split("/")}
        first, second = (sorted(folders & names) for names in _SPLITS)
        if first and second:
            raise UserError(
                f"{root} holds images in {first[0]} and in {second[0]}: make a tar of each"
            )
        if self._rule == "the tar's name" and files == 1 and self._classes is None:
            raise UserError(
                f"{root} does not tell the classes of its images: pack <class>/<image>, or .cls "
                "members beside the images (ImageNet's validation images come unsorted)"
            )
        if self._rule == "a .cls member" and self._classes is None:
            ordered = sorted(found, key=int)
            for label, number in enumerate(ordered):
                if int(number) != label:
                    raise UserError(f"{root} has an image of class {number}, none of {label}")
            return tuple(ordered)
        return tuple(sorted(found))

    def _follow(self, rule: str, member: str) -> None:
        if not self._rule:
            self._rule, self._example = rule, member
        elif rule != self._rule:
            raise UserError(
                f"{rule} would say the class of {member}, but {self._rule} that of "
                f"{self._example}: pack all images in one way"
            )

    def _numbered(self, file: Path, name: str, key: str, content: str) -> str:
        text = content.strip()
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
            raise UserError(
                f"{file}:{key}.cls holds {text[:20]!r}, not the number of a class from 0"
            )
        if file != self._file:
            self._file, self._keys = file, set()
        if key in self._keys:
            raise UserError(f"{file}:{key} has two images, {name} is one: keep one of a sample")
        self._keys.add(key)
        number = int(text)
        if self._classes is None:
            return str(number)
        if number >= len(self._classes):
            raise UserError(
                f"{file}:{name} is of class {number}, there are {len(self._classes)} (from 0)"
            )
        return self._classes[number]
