"""YOLO text labels (images/<split>, labels/<split>; YOLO v5 and later) to COCO JSON.

A line is `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon, everything but
the class a fraction, 0 to 1, of the image's width or height.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import UserError, one_line
from .formats import IMAGE_SUFFIXES, Converter, decode, read_classes, read_text_file

NAME_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "labels/classes.txt")
_OVERSHOOT = 0.01  # beyond 0 and 1: such values are clipped, others are not fractions
_NOT_LABELS = ("classes.txt",)  # labelImg writes it among the labels


def convert_yolo(
    root: Path,
    split: str | None = None,
    *,
    names: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    classes_from: Path | None = None,
) -> tuple[dict, list[str]]:
    """Convert YOLO labels; `file_name`s are relative to the folder of images.

    An image without a label file has no objects. A polygon becomes a segmentation of one part, its
    box the smallest around it.

    Args:
        root: the folder with images/ and labels/, or with <split>/images and <split>/labels.
        split: a folder in these; None for all that is in images/ and labels/.
        names: a data.yaml, or a text file with a name a line; by default one of `NAME_FILES`.
        images: folder of images, in place of those in `root`; together with `labels`.
        labels: folder of label files, with the same subfolders and names as `images`.
        classes_from: COCO JSON whose class ids are taken over by name. Without it an id is YOLO's
            class plus 1.

    Returns:
        The content of the COCO JSON file, and lines that say what was changed and lost.

    Raises:
        UserError: for anything absent, malformed or contradictory, naming the file.
    """
    images, labels = _folders(root, split, images, labels)
    names = names or _find_names(root)
    classes = read_names(names)
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{images} has no image ({', '.join(IMAGE_SUFFIXES)}): name another folder")
    label_of = {f: (labels / f.relative_to(images)).with_suffix(".txt") for f in files}
    _check_pairs(label_of, images, labels)

    converter = Converter()
    without = 0
    for file, label in label_of.items():
        size = converter.add_image(images, file, label if label.is_file() else images)
        if not label.is_file():
            without += 1
            continue
        for number, line in enumerate(decode(read_text_file(label), label).splitlines(), start=1):
            if line.strip():
                _add_line(converter, classes, line.split(), size, label, number)
    if without:
        converter.notes.append(f"{without} images have no label file: taken as without objects")
    ids = {name: i for i, name in enumerate(classes, start=1)}
    told_by = names
    if classes_from:
        ids, told_by = read_classes(classes_from), classes_from
    return converter.finish(ids, told_by=str(told_by)), converter.report()


def read_names(file: Path) -> list[str]:
    """Read class names, in order of their numbers, from a data.yaml or a name a line.

    Raises:
        UserError: if there are none, one is repeated, or the numbers are not 0, 1, 2, ...
    """
    text = decode(read_text_file(file), file)
    if file.suffix in (".yaml", ".yml"):
        try:
            names = yaml.safe_load(text)["names"]
        except (yaml.YAMLError, LookupError, TypeError) as error:
            raise UserError(
                f"{file} is no YAML with `names`: {one_line(f'{type(error).__name__}: {error}')}"
            ) from error
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise UserError(f"{file}: `names` must be numbered 0, 1, 2, ... without gaps")
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list):
            raise UserError(f"{file}: `names` must be a list, or a name for each number")
        names = [str(name) for name in names]
    else:
        names = text.strip().splitlines()
    names = [name.strip() for name in names]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"{file} must name each class once, and has none, an empty or a twin name")
    return names


def _folders(
    root: Path, split: str | None, images: Path | None, labels: Path | None
) -> tuple[Path, Path]:
    if (images is None) != (labels is None):
        raise UserError("give the folder of images and that of labels together, or neither")
    if images is None or labels is None:
        images, labels = (root / kind / (split or "") for kind in ("images", "labels"))
        if split and not images.is_dir() and (root / split / "images").is_dir():
            images, labels = root / split / "images", root / split / "labels"
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: name another root, split or folder")
    return images, labels


def _find_names(root: Path) -> Path:
    for name in NAME_FILES:
        if (root / name).is_file():
            return root / name
    raise UserError(
        f"{root} has none of {', '.join(NAME_FILES)}: say the names of the classes with --names"
    )


def _check_pairs(label_of: dict[Path, Path], images: Path, labels: Path) -> None:
    """Refuse two images with one label file, and a label file without an image."""
    image_of: dict[Path, Path] = {}
    for image, label in label_of.items():
        if label in image_of:
            raise UserError(f"{image_of[label]} and {image} share a label file: rename one")
        image_of[label] = image
    for label in sorted(labels.rglob("*.txt")):
        if label not in image_of and label.name not in _NOT_LABELS:
            raise UserError(f"{label} has no image in {images}: add the image or remove the label")


def _add_line(
    converter: Converter,
    classes: Sequence[str],
    words: Sequence[str],
    size: tuple[int, int],
    file: Path,
    number: int,
) -> None:
    where = f"{file}, line {number}"
    polygon = len(words) > 6 and len(words) % 2 == 1
    if len(words) != 5 and not polygon:
        hint = " (6: a prediction with its score?)" if len(words) == 6 else ""
        raise UserError(
            f"{where} has {len(words)} fields{hint}: a box has 5, a polygon 7, 9, 11, ..."
        )
    try:
        label, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise UserError(f"{where}: {error}; every field must be a number") from error
    if label not in range(len(classes)):
        raise UserError(
            f"{where}: class {words[0]} is none of the {len(classes)} named, 0 to "
            f"{len(classes) - 1}: mend it, or name the classes with --names"
        )
    for value in values:
        if not -_OVERSHOOT <= value <= 1 + _OVERSHOOT:  # False for nan, too
            raise UserError(
                f"{where}: {value:g} is not normalised: divide x by the image's width and y by its "
                "height"
            )
    name = classes[int(label)]
    if polygon:
        _add_polygon(converter, name, values, size, file)
    else:
        (x, y, w, h), (width, height) = values, size
        corners = [(x - w / 2) * width, (y - h / 2) * height]
        converter.add_object(name, file, [*corners, (x + w / 2) * width, (y + h / 2) * height])


def _add_polygon(
    converter: Converter, name: str, values: Sequence[float], size: tuple[int, int], file: Path
) -> None:
    xs, ys = ([v * side for v in values[i::2]] for i, side in enumerate(size))
    item = converter.add_object(name, file, (min(xs), min(ys), max(xs), max(ys)))
    if item is None:
        return
    xs, ys = ([min(max(v, 0.0), side) for v in vs] for vs, side in zip((xs, ys), size, strict=True))
    points = [round(v, 3) for point in zip(xs, ys, strict=True) for v in point]
    twice = math.fsum(
        xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))
    )  # the shoelace formula
    item |= {"segmentation": [points], "area": round(abs(twice) / 2, 3)}
