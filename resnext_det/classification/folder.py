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


@dataclass(frozen=True, eq=False)
class ImageTree(ImageSet):
    """The images of `root`/<class>/**/<image>.

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
    root: str | Path, classes: Sequence[str] | None = None, *, subset: bool = False
) -> ImageTree:
    """List the images of a tree, class by class, each class in the order of `list_images`.

    Args:
        root: holds a folder for each class.
        classes: their names in the order of the labels; by default sorted, as for torchvision's
            `ImageFolder`, which for ImageNet's wnids is the usual order.
        subset: leave out the folders of other classes.

    Raises:
        UserError: if `root` is absent or has no folders, a folder holds no image, or as
            `list_images`, or if the folders are not `classes`.
    """
    root = Path(root)
    found = list_classes(root)
    if classes is None:
        classes = found
    require_classes(root, found, classes, subset, "folders")
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list_images(root / name)
        if not images:
            raise UserError(f"{root / name} holds no image ({', '.join(SUFFIXES)})")
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
    """Paths, below `folder`, of the images in it and in the folders in it, links followed.

    Hidden files and folders, and files without the suffix of an image
    (`resnext_det.images.SUFFIXES`, in any case), are left out. The order is torchvision's: that of
    the folders' paths as text, in each that of the names.

    Raises:
        UserError: if a folder cannot be read, or a link leads to one that it is in.
    """
    found: list[tuple[str, list[str]]] = []
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        below, above = pending.pop()
        path = folder / below
        try:
            status = os.stat(path)
            with os.scandir(path) as entries:
                visible = [e for e in entries if not e.name.startswith(".")]
                folders = {e.name for e in visible if e.is_dir()}
                images = sorted(
                    e.name
                    for e in visible
                    if is_image_name(e.name) and e.name not in folders and e.is_file()
                )
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise UserError(f"{path} is a folder that it is in, by a link: remove the link")
        prefix = f"{below}/" if below else ""
        found.append((below, [prefix + name for name in images]))
        pending += [(prefix + name, above | {identity}) for name in folders]
    return [image for _, images in sorted(found) for image in images]
