"""Images in a folder for each class, as ImageNet's training set comes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images import SUFFIXES
from .image_set import ImageSet, is_image_name, read_rgb, require_classes

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class ImageTree(ImageSet):
    """The images of `root`/<class>/<image>.

    Attributes:
        files: (N,) paths below `root` as bytes.
    """

    files: np.ndarray

    def path(self, index: int) -> Path:
        """Where image `index` is."""
        return self.root / os.fsdecode(bytes(self.files[index]))

    def name(self, index: int) -> str:
        return str(self.path(index))

    def read(self, index: int) -> Image.Image:
        return read_rgb(self.path(index))


def read_tree(
    root: Path, classes: Sequence[str] | None = None, *, subset: bool = False
) -> ImageTree:
    """List the images of a tree, class by class, each class sorted by name.

    Hidden files, and those without the suffix of an image (`resnext_det.images.SUFFIXES`, in any
    case), are left out, and so are folders in a class's folder.

    Args:
        root: holds a folder for each class.
        classes: their names in the order of the labels; by default sorted, as for torchvision's
            `ImageFolder`, which for ImageNet's wnids is the usual order.
        subset: leave out the folders of other classes.

    Raises:
        UserError: if `root` is absent or has no folders, a folder holds no image or cannot be read,
            or the folders are not `classes`.
    """
    found = list_classes(root)
    if classes is None:
        classes = found
    require_classes(root, found, classes, subset, "folders")
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list_images(root / name)
        if not images:
            raise UserError(_without_images(root / name))
        files += [os.fsencode(f"{name}/{image}") for image in images]
        labels += [label] * len(images)
    return ImageTree(root, tuple(classes), np.array(labels, dtype=np.int64), np.array(files))


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


def _without_images(folder: Path) -> str:
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    message = f"{folder} holds no image ({', '.join(SUFFIXES)})"
    if inner:
        names = ", ".join(inner[:_SHOWN]) + (", ..." if len(inner) > _SHOWN else "")
        message += f" but folders: if {names} are the classes, give {folder}"
    return message
