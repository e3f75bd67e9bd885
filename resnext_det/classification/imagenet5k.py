"""ImageNet-5K (Section 5.2): its classes, chosen from ImageNet-22K, and the list of them.

"The 5000 categories consist of the original ImageNet-1K categories and additional 4000 categories
that have the largest number of images in the full ImageNet set."
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.formats import write_json
from ..errors import UserError, one_line
from .archives import count_in_tar
from .folder import list_classes, list_images

SIZES = (1000, 4000)
_SHOWN = 5


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of a classifier's outputs: the 1K ones first, then the others.

    Attributes:
        classes: names, both parts sorted, so that the first outputs are those of a 1K classifier.
        first: how many are of ImageNet-1K.
        images: for each class the images that it was chosen by.
    """

    classes: tuple[str, ...]
    first: int
    images: tuple[int, ...]

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: if names occur twice, or the numbers do not fit.
        """
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class occurs twice")
        if not 0 < self.first <= len(self.classes) or len(self.images) != len(self.classes):
            raise ValueError("the numbers of classes and images do not fit")

    @property
    def classes_1k(self) -> tuple[str, ...]:
        """Names of ImageNet-1K's classes."""
        return self.classes[: self.first]

    @property
    def ways(self) -> tuple[str, str]:
        """What Section 5.2's two tasks are called: among all classes, and the first alone."""
        count = len(self.classes)
        if (self.first, count) == (SIZES[0], sum(SIZES)):
            return "5K-way", "1K-way"
        return f"{count}-way", f"{self.first}-way"

    def __str__(self) -> str:
        of_first = sum(self.images[: self.first])
        return (
            f"{self.first} classes of ImageNet-1K with {of_first} images and the "
            f"{len(self.classes) - self.first} largest others with {sum(self.images) - of_first}: "
            f"{len(self.classes)} classes, {sum(self.images)} images"
        )

    def write(self, file: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        content = {"classes_1k": self.first, "classes": self.classes, "images": self.images}
        write_json(content, file)


def way_of_all(classes: int) -> str:
    """What errors among all of so many classes are called, without a list of ImageNet-5K's."""
    return "1K" if classes == SIZES[0] else f"{classes} classes"


def require_writable(file: Path) -> None:
    """Refuse an output that could not be written, before any work.

    Raises:
        UserError: for a folder, or a file in an absent one.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")


def read_class_list(file: Path) -> ClassList:
    """Read what `ClassList.write` wrote.

    Raises:
        UserError: if it is absent or something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        classes, images = content["classes"], content["images"]
        if not all(isinstance(c, str) for c in classes) or not all(type(n) is int for n in images):
            raise TypeError("names or numbers of another type")
        return ClassList(tuple(classes), int(content["classes_1k"]), tuple(images))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(
            f"{file} is no list of classes ({reason}): tools/prepare_imagenet5k.py writes one"
        ) from error


def read_classes_1k(path: Path) -> list[str]:
    """Read the names of ImageNet-1K's classes.

    Args:
        path: a text file whose lines begin with a name (LOC_synset_mapping.txt is one), or a folder
            with a folder for each class, such as ImageNet's own.

    Raises:
        UserError: if it cannot be read, or a name occurs twice.
    """
    if path.is_dir():
        return list_classes(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    names = [line.split()[0] for line in lines if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} names {', '.join(twice[:_SHOWN])} twice")
    return names


def count_images(root: Path) -> dict[str, int]:
    """Count the images of each class of ImageNet-22K; nothing is unpacked.

    Args:
        root: holds a folder of images or a <class>.tar for each class.

    Returns:
        Class names, sorted, and numbers of images.

    Raises:
        UserError: if it has neither, a class has both, or a tar cannot be read.
    """
    try:
        visible = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror or error}") from error
    counts: dict[str, int] = {}
    for path in tqdm(visible, unit="class", disable=None):
        is_folder = path.is_dir()
        if not is_folder and path.suffix != ".tar":
            continue
        name = path.name if is_folder else path.stem
        if name in counts:
            raise UserError(f"{root} has both a folder and a tar of {name}: leave one")
        counts[name] = len(list_images(path)) if is_folder else count_in_tar(path)
    if not counts:
        raise UserError(f"{root} has neither folders of images nor <class>.tar files")
    return dict(sorted(counts.items()))


def choose_classes(
    counts: Mapping[str, int], classes_1k: Sequence[str], sizes: tuple[int, int] = SIZES
) -> ClassList:
    """Choose the 1K classes and the largest others; of equal ones the first by name.

    Args:
        counts: images of each class.
        classes_1k: names.
        sizes: how many of ImageNet-1K there are to be, and how many others.

    Raises:
        UserError: if there are not as many, or a class of ImageNet-1K has no images.
    """
    first, others = sizes
    if first < 1 or others < 0:
        raise UserError(f"--sizes {first} {others}: at least 1 class, and no fewer than 0 others")
    if len(classes_1k) != first:
        raise UserError(
            f"the list of ImageNet-1K has {len(classes_1k)} classes, not {first} (--sizes says "
            "how many)"
        )
    if missing := sorted(name for name in classes_1k if not counts.get(name)):
        more = f", ... ({len(missing)} in all)" if len(missing) > _SHOWN else ""
        raise UserError(
            f"no images of these classes of ImageNet-1K: {', '.join(missing[:_SHOWN])}{more}; put "
            "or link their folders of ImageNet-1K beside the others"
        )
    chosen = set(classes_1k)
    rest = [name for name, count in counts.items() if count and name not in chosen]
    if len(rest) < others:
        raise UserError(f"only {len(rest)} other classes have images, fewer than {others}")
    largest = sorted(rest, key=lambda name: (-counts[name], name))[:others]
    classes = (*sorted(classes_1k), *sorted(largest))
    return ClassList(classes, first, tuple(counts[name] for name in classes))
