"""Finding out what a path holds, and reading it: a tree of images, tar files, or CIFAR."""

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .archives import COMPRESSED, TarImages, is_compressed_name, read_tars
from .cifar import SPLITS, find_cifar, read_cifar
from .folder import read_tree
from .image_set import ImageSet, is_image_name, join_sets, require_classes

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files that braces stand for
_SHOWN = 3
# of a split's folder, the first first; words in names of its tar files
_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test")}


def read_images(
    path: str | Path, split: str, classes: Sequence[str] | None = None, *, subset: bool = False
) -> ImageSet:
    """List the images of a split, wherever they are.

    The first that fits of:

    1. a tar file, or a pattern of such: "train-*.tar", "train-{000..146}.tar" (see `read_tars`);
    2. a folder with CIFAR's files, or with a folder of their usual name (see `find_cifar`);
    3. a folder with one folder train or training, and one val, valid, validation or test: as for
       the folder of the split (of several the first named here);
    4. a folder of tar files alone; if all say one of these words in their names, those of the
       split;
    5. a folder of folders and <class>.tar files, as ImageNet-22K's may be;
    6. a folder with a folder for each class (see `read_tree`).

    What has no splits is the same for both.

    Args:
        path: see above.
        split: "train" or "test".
        classes: their names in the order of the labels, by default sorted.
        subset: leave out images of other classes.

    Raises:
        UserError: if the path holds none of these, or not just `classes` (with `subset` not all of
            them), or a file cannot be read.
        ValueError: for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: one of {', '.join(SPLITS)}")
    root = Path(path)
    try:
        if not os.path.isdir(root):  # False for patterns that are too long for a name
            return read_tars(expand_pattern(str(path)), root, classes, subset=subset)
        if cifar := find_cifar(root):
            images = read_cifar(*cifar, split)
            return images if classes is None else images.labelled(classes, subset)
        return _read_folder(_folder_of_split(root, split), split, classes, subset)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{error.filename or path} cannot be read: {reason}") from error


def _folder_of_split(root: Path, split: str) -> Path:
    """The split's folder in `root`; without both splits' `root` itself."""
    folders, _ = _content(root)
    chosen = {name: [f for f in names if f in folders] for name, names in _NAMES.items()}
    return root / chosen[split][0] if all(chosen.values()) else root


def expand_pattern(pattern: str) -> list[Path]:
    """The files that a pattern stands for.

    Args:
        pattern: a path, in which {000..146} stands for numbers, {a,b} for either, and *, ? and [ab]
            for what there is; a file of just this name comes first.

    Returns:
        Paths of tar files by name; those of braces in their order.

    Raises:
        UserError: if there are none, one is absent, or one is no tar file.
        OSError: if the system does not say whether one is there.
    """
    if os.path.exists(pattern):  # False for patterns that are too long for a name
        files = [Path(pattern)]
    else:
        files = []
        for one in _expand_braces(pattern):
            matches = sorted(glob.glob(one)) if glob.has_magic(one) else [one]
            if not matches:
                raise UserError(f"no file matches {one}")
            files += map(Path, matches)
    if absent := [file for file in files if not file.exists()]:
        if len(files) == 1:
            raise UserError(f"there is no file or folder {pattern}")
        raise UserError(f"{len(absent)} of {len(files)} files are absent, such as {absent[0]}")
    for file in files:
        if not file.name.lower().endswith((".tar", *COMPRESSED)) or file.is_dir():
            raise UserError(
                f"{file} is no tar file: give a folder of images by class, .tar files, or a folder "
                "of CIFAR's files"
            )
    return files


def _read_folder(root: Path, split: str, classes: Sequence[str] | None, subset: bool) -> ImageSet:
    folders, tars = _content(root)
    if not tars:
        _refuse_folders_of_classes(root, folders)
        return read_tree(root, classes, subset=subset)
    if folders:
        return _read_mixed(root, folders, tars, classes, subset)
    tars = _of_split(root, tars, split)
    if classes is None or not set(classes) <= {file.stem for file in tars}:
        return read_tars(tars, root, classes, subset=subset)
    return _read_class_tars(root, tars, classes, subset)


def _refuse_folders_of_classes(root: Path, folders: Sequence[str]) -> None:
    """Refuse to take for a class what must be a folder of classes: alone, or called as a split.

    Raises:
        UserError: if a folder like that holds several folders and no image beside them.
    """
    splits = {name: split for split, names in _NAMES.items() for name in names}
    for name in folders:
        if len(folders) > 1 and name not in splits:
            continue
        inner, _ = _content(root / name)
        if len(inner) < 2 or any(is_image_name(path.name) for path in (root / name).iterdir()):
            continue
        shown = ", ".join(inner[:_SHOWN]) + (", ..." if len(inner) > _SHOWN else "")
        uses = {"train": " for training alone", "test": " for testing alone"}
        raise UserError(
            f"{root / name} holds no image but folders: if {shown} are the classes, give "
            f"{root / name}{uses.get(splits.get(name), '')}"
        )


def _content(root: Path) -> tuple[list[str], list[Path]]:
    """Names of folders and paths of tar files, both sorted, without hidden ones."""
    visible = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    folders = [p.name for p in visible if p.is_dir()]
    tars = [p for p in visible if p.name not in folders and p.name.endswith(".tar")]
    packed = [p.name for p in visible if is_compressed_name(p.name)]
    if packed and not folders and not tars:
        raise UserError(f"{root} holds {packed[0]}, which is compressed: unpack it")
    return folders, tars


def _of_split(root: Path, tars: Sequence[Path], split: str) -> list[Path]:
    marks = {
        name: [f for f in tars if set(words) & set(re.split(r"[^a-z]+", f.stem.lower()))]
        for name, words in _NAMES.items()
    }
    if not marks["train"] or not marks["test"]:
        return list(tars)
    known = marks["train"] + marks["test"]
    if len(known) != len(tars) or len(set(known)) != len(known):
        odd = next(f for f in tars if known.count(f) != 1)
        raise UserError(
            f"{root} holds {marks['train'][0].name}, {marks['test'][0].name} and {odd.name}, which "
            f"may be of either split: give a pattern, such as {root}/{split}-*.tar"
        )
    return marks[split]


def _read_mixed(
    root: Path,
    folders: Sequence[str],
    tars: Sequence[Path],
    classes: Sequence[str] | None,
    subset: bool,
) -> ImageSet:
    if both := sorted(set(folders) & {file.stem for file in tars}):
        raise UserError(f"{root} has both a folder and a tar of {both[0]}: leave one")
    found = sorted([*folders, *(file.stem for file in tars)])
    classes = found if classes is None else classes
    require_classes(root, found, classes, subset, "folders and tars")
    in_tree = [name for name in classes if name in set(folders)]
    in_tars = [name for name in classes if name not in set(folders)]
    parts: list[ImageSet] = [read_tree(root, in_tree, subset=True)] if in_tree else []
    if in_tars:
        parts.append(_read_class_tars(root, tars, in_tars, subset=True))
    return join_sets(root, parts, classes)


def _read_class_tars(
    root: Path, tars: Sequence[Path], classes: Sequence[str], subset: bool
) -> TarImages:
    """Read <class>.tar files; with `subset` the others need not be read."""
    files = [file for file in tars if not subset or file.stem in set(classes)]
    return read_tars(files, root, classes, subset=subset, by_tar=True)


def _expand_braces(pattern: str) -> list[str]:
    """As webdataset's package braceexpand does, for what names of shards need.

    Raises:
        UserError: if there are too many.
    """
    pieces = _BRACES.split(pattern)  # text and insides of braces by turns
    choices = [
        _choices(piece, pattern) if number % 2 else [piece] for number, piece in enumerate(pieces)
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST:
        raise UserError(f"{pattern} stands for more than {_MOST} files")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if not numbers:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = numbers.groups()
    if abs(int(last) - int(first)) >= _MOST:
        raise UserError(f"{pattern} stands for more than {_MOST} files")
    padded = any(text.startswith("0") and len(text) > 1 for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(last) >= int(first) else -1
    return [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
