"""Images in a folder for each class, as ImageNet's training set comes, and reading them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images import FORMATS, MAX_PIXELS, SUFFIXES

_SHOWN = 5


@dataclass(frozen=True)
class ImageTree:
    """The images of `root`/<class>/<image>.

    Attributes:
        root: the folder.
        classes: names of the classes; a label is an index into these.
        files: (N,) paths below `root` as bytes, in one array and not as millions of objects, which
            each data worker would copy when it counts references.
        labels: (N,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    files: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """Where image `index` is."""
        return self.root / os.fsdecode(bytes(self.files[index]))

    def limited(self, count: int | None) -> "ImageTree":
        """`count` of the images, evenly spaced, so that all classes stay; all of them for None."""
        if count is None or count >= len(self):
            return self
        kept = np.arange(count) * len(self) // count
        return replace(self, files=self.files[kept], labels=self.labels[kept])


def read_tree(root: Path, classes: Sequence[str] | None = None) -> ImageTree:
    """List the images of a tree, class by class, each class sorted by name.

    Hidden files, and those without the suffix of an image (`resnext_det.images.SUFFIXES`, in any
    case), are left out, and so are folders in a class's folder.

    Args:
        root: holds a folder for each class.
        classes: their names in the order of the labels; by default sorted, as for torchvision's
            `ImageFolder`, which for ImageNet's wnids is the usual order.

    Raises:
        UserError: if `root` is absent or has no folders, a folder holds no image or cannot be read,
            or the folders are not just `classes`.
    """
    found = list_classes(root)
    if classes is None:
        classes = found
    elif set(found) != set(classes):
        raise UserError(_difference(root, found, classes))
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list_images(root / name)
        if not images:
            raise UserError(f"{root / name} holds no image ({', '.join(SUFFIXES)})")
        files += [os.fsencode(f"{name}/{image}") for image in images]
        labels += [label] * len(images)
    return ImageTree(root, tuple(classes), np.array(files), np.array(labels, dtype=np.int64))


def list_classes(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones.

    Raises:
        UserError: if there are none.
    """
    try:
        with os.scandir(root) as entries:
            visible = [e for e in entries if not e.name.startswith(".")]
            folders = sorted(e.name for e in visible if e.is_dir())
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror or error}") from error
    if folders:
        return folders
    loose = sum(is_image_name(entry.name) for entry in visible)
    if loose:
        raise UserError(
            f"{root} holds {loose} images and no folder for each class: move them into folders by "
            "class (ImageNet's validation images come unsorted)"
        )
    raise UserError(f"{root} has no folder for each class: give {root}/<class>/<image>")


def list_images(folder: Path) -> list[str]:
    """Names of the images in one folder, sorted.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_image_name(e.name) and e.is_file())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_rgb(path: Path) -> Image.Image:
    """Read an image as torchvision's and Torch7's loaders do: EXIF's orientation is not applied.

    Published errors come from such loaders; detection turns images upright (`read_image`).

    Returns:
        An RGB image, 0..255; of several frames the first.

    Raises:
        UserError: if it is absent, damaged, cut off, too large, or none of `FORMATS`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has more than {MAX_PIXELS} pixels")
            return image.convert("RGB")
    except Image.UnidentifiedImageError as error:
        reason, cause = f"it is none of {', '.join(FORMATS)}, or damaged", error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason, cause = reason or type(error).__name__, error
    raise UserError(f"cannot read image {path}: {reason}") from cause


def _difference(root: Path, found: Sequence[str], expected: Sequence[str]) -> str:
    absent = sorted(set(expected) - set(found))
    others = sorted(set(found) - set(expected))
    parts = []
    for names, what in ((absent, "lacks"), (others, "has beside them")):
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{what} {len(names)}: {', '.join(names[:_SHOWN])}{more}")
    return f"{root} has {len(found)} folders for {len(expected)} classes; it {' and '.join(parts)}"
