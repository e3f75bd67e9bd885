"""CIFAR-10 and CIFAR-100 (Section 5.3) from their authors' files, whole in memory.

https://www.cs.toronto.edu/~kriz/cifar.html describes two formats of use here. The binary one is
rows of one label (CIFAR-100: a coarse and a fine one) and 3072 pixels. The Python one is pickles of
Python 2, which torchvision keeps too; nothing that they name is run (`read_pickle`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from ..weights.pickles import read_pickle
from .image_set import ImageSet

SPLITS = ("train", "test")
_PIXELS = 3 * 32 * 32  # of an image: its red, green and blue plane, each row by row


@dataclass(frozen=True, eq=False)
class CifarImages(ImageSet):
    """Images that are in memory.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB, 0..255; CIFAR's are 32 x 32.
    """

    pixels: np.ndarray

    def name(self, index: int) -> str:
        return f"{self.root}[{index}]"

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class CifarFiles:
    """What the files of one of the four forms are called, and hold.

    Attributes:
        folder: their usual folder.
        train: names of files with training images.
        test: of those with test images.
        names: of the file with the names of the classes.
        classes: how many there are.
        images: how many are in each file of `train`, and of `test`.
        keys: of a pickle's labels and of the classes' names; None for the binary form.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    classes: int
    images: tuple[int, int]
    keys: tuple[str, str] | None = None


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
FORMS = (
    CifarFiles(
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in _BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        10,
        (10000, 10000),
    ),
    CifarFiles(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        100,
        (50000, 10000),
    ),
    CifarFiles(
        "cifar-10-batches-py",
        _BATCHES,
        ("test_batch",),
        "batches.meta",
        10,
        (10000, 10000),
        ("labels", "label_names"),
    ),
    CifarFiles(
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
        100,
        (50000, 10000),
        ("fine_labels", "fine_label_names"),
    ),
)


def find_cifar(root: Path) -> tuple[Path, CifarFiles] | None:
    """Find CIFAR's files in a folder, or in a folder of the usual name in it.

    Returns:
        The folder that holds them, and their form; None if there are none.

    Raises:
        UserError: if there are several sets or forms.
    """
    found = [
        (folder, form)
        for form in FORMS
        for folder in (root, root / form.folder)
        if any((folder / name).is_file() for name in (*form.train, *form.test))
    ]
    if len(found) > 1:
        names = " and ".join(form.folder for _, form in found)
        raise UserError(f"{root} holds {names}: give a folder that holds the files of one alone")
    return found[0] if found else None


def read_cifar(folder: Path, form: CifarFiles, split: str) -> CifarImages:
    """Read one split, whole.

    Args:
        folder: holds the files.
        form: what they are called.
        split: "train" or "test".

    Raises:
        UserError: if a file is absent, damaged or of another length, or holds a label that is no
            class.
    """
    read = _read_binary if form.keys is None else _read_pickled
    count = form.images[SPLITS.index(split)]
    rows, labels = [], []
    for name in getattr(form, split):
        path = folder / name
        try:
            pixels, of_file = read(path, form, count)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        if pixels.shape[1] != _PIXELS:
            raise UserError(
                f"{path} has images of {pixels.shape[1]} numbers, not {_PIXELS}: get it again"
            )
        if not len(pixels) == len(of_file) == count:
            raise UserError(
                f"{path} holds {len(pixels)} images and {len(of_file)} labels, not {count}: get "
                "it again"
            )
        if of_file.min() < 0 or of_file.max() >= form.classes:
            wrong = of_file[(of_file < 0) | (of_file >= form.classes)][0]
            raise UserError(f"{path} has a label {wrong} of {form.classes} classes: get it again")
        rows.append(pixels)
        labels.append(of_file)
    planes = np.concatenate(rows).reshape(-1, 3, 32, 32)
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return CifarImages(folder, _read_names(folder, form), np.concatenate(labels), pixels)


def _read_binary(path: Path, form: CifarFiles, count: int) -> tuple[np.ndarray, np.ndarray]:
    label_bytes = 2 if form.classes == 100 else 1  # of two the fine one is second
    expected = count * (label_bytes + _PIXELS)
    size = path.stat().st_size
    if size != expected:
        raise UserError(
            f"{path} has {size} bytes, not the {expected} of {count} images: it was cut off, or is "
            "another file; get it again"
        )
    rows = np.fromfile(path, np.uint8).reshape(count, -1)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


def _read_pickled(path: Path, form: CifarFiles, count: int) -> tuple[np.ndarray, np.ndarray]:
    content = _read_texts(path)
    pixels, labels = content.get("data"), content.get(form.keys[0])
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 2:
        raise UserError(f"{path} has no array of pixels: it is another file; get it again")
    if not isinstance(labels, list) or not all(type(n) is int and abs(n) < 1000 for n in labels):
        raise UserError(f"{path} has no list of {form.keys[0]}: it is another file; get it again")
    return pixels.numpy(), np.array(labels, dtype=np.int64)


def _read_names(folder: Path, form: CifarFiles) -> tuple[str, ...]:
    path = folder / form.names
    try:
        if form.keys is None:
            names = path.read_text(encoding="utf-8").split()
        else:
            names = _read_texts(path).get(form.keys[1])
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not isinstance(names, list) or not all(isinstance(n, str | bytes) for n in names):
        raise UserError(f"{path} has no names of classes: get it again")
    names = tuple(n.decode("latin1") if isinstance(n, bytes) else n for n in names)
    if len(set(names)) != form.classes or len(names) != form.classes:
        raise UserError(f"{path} names {len(set(names))} classes, not {form.classes}: get it again")
    return names


def _read_texts(path: Path) -> dict:
    """A pickle's content; keys, which Python 2 wrote as bytes, as text."""
    content = read_pickle(path, "CIFAR")
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
