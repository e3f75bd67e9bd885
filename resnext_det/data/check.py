"""Check a COCO annotation file: its tables, its annotations, and its classes against another's.

Nothing here reads an image or changes the data; the pixels are for `check_images.py`, a clean copy
for `clean.py`.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .check_objects import (
    Tables,
    annotation_problems,
    image_problems,
    image_size,
)
from .check_summary import Statistics
from .findings import Findings, shown


@dataclass
class Checked:
    """What a check of an annotation file found.

    Attributes:
        findings: all that is to be said.
        tables: the listed images and categories.
        statistics: sizes and counts of what is usable.
    """

    findings: Findings = field(default_factory=Findings)
    tables: Tables = field(default_factory=Tables)
    statistics: Statistics = field(default_factory=Statistics)


def read_annotations(file: Path) -> tuple[dict, int]:
    """Read an annotation file.

    Returns:
        Its content, with lists under "images", "annotations" and "categories" (empty ones where
        the file has none), and how often it holds NaN or Infinity.

    Raises:
        UserError: if the file cannot be read, is not JSON in UTF-8, or has another structure than
            a COCO annotation file.
    """
    constants = Counter()

    def parse_constant(text: str) -> float:
        constants[text] += 1
        return float(text)

    try:
        content = Path(file).read_bytes().decode("utf-8")
        data = json.loads(content, parse_constant=parse_constant)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8 JSON, not compressed"
        ) from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deep to be a COCO annotation file") from error
    except ValueError as error:
        reason = str(error).split(";")[0]
        raise UserError(f"{file} is not JSON: {reason}") from error
    if type(data) is list:
        raise UserError(
            f"{file} holds a list, as files of detections do: COCO annotations are an object with "
            "'images', 'annotations' and 'categories'"
        )
    if type(data) is not dict:
        raise UserError(f"{file} is not a COCO annotation file: it holds one {type(data).__name__}")
    for key in ("images", "annotations", "categories"):
        if type(data.setdefault(key, [])) is not list:
            raise UserError(f"{file}: '{key}' is not a list but a {type(data[key]).__name__}")
    return data, sum(constants.values())


def check_annotations(data: dict, num_constants: int = 0) -> Checked:
    """Check all that can be told without the images.

    Args:
        data: content of an annotation file, as `read_annotations` returns it.
        num_constants: how often NaN and Infinity were in the file.
    """
    checked = Checked()
    for _ in range(num_constants):
        checked.findings.add("json-nan")
    _check_categories(data["categories"], checked)
    _check_image_table(data["images"], checked)
    _check_annotation_table(data["annotations"], data["images"], checked)
    return checked


def _check_categories(categories: list, checked: Checked) -> None:
    findings, names = checked.findings, checked.tables.categories
    if not categories:
        findings.add("categories-none")
    ids_of: dict[str, list] = {}
    for category in categories:
        known = type(category) is dict and type(category.get("id")) in (int, str)
        valid = known and type(category["id"]) is int and type(category.get("name")) is str
        if not valid:
            findings.add("category-type", "{}", category)
        if not known:
            continue
        name = category.get("name")
        name = name if type(name) is str else shown(name)
        if category["id"] in names:
            both = (category["id"], names[category["id"]], name)
            findings.add("category-duplicate", "category {}: {} and {}", *both)
            continue
        names[category["id"]] = name
        if valid:
            ids_of.setdefault(name, []).append(category["id"])
    for name, ids in ids_of.items():
        if len(ids) > 1:
            findings.add("category-name", "{} has ids {}", name, ids)
    checked.statistics.set_classes(names)


def _check_image_table(images: list, checked: Checked) -> None:
    findings, sizes = checked.findings, checked.tables.images
    if not images:
        findings.add("images-none")
    id_of: dict[str, object] = {}
    for image in images:
        for code, value in image_problems(image):
            if code == "image-type":
                findings.add(code, "{}", value)
            else:
                findings.add(
                    code, "image {} (file {}): {}", image.get("id"), image.get("file_name"), value
                )
        if type(image) is not dict or type(image.get("id")) not in (int, str):
            continue
        image_id, name = image["id"], image.get("file_name")
        if image_id in sizes:
            findings.add("image-duplicate", "image {} (file {})", image_id, name)
            continue
        sizes[image_id] = size = image_size(image)
        checked.statistics.add_image(size)
        if type(name) is str and id_of.setdefault(name, image_id) != image_id:
            findings.add("image-same-file", "{}: images {} and {}", name, id_of[name], image_id)


def _check_annotation_table(annotations: list, images: list, checked: Checked) -> None:
    findings, tables, statistics = checked.findings, checked.tables, checked.statistics
    files = {  # the first of a duplicate id, as the sizes
        i["id"]: i.get("file_name")
        for i in reversed(images)
        if type(i) is dict and type(i.get("id")) in (int, str)
    }
    if not annotations:
        findings.add("annotations-none")
    seen, without_mask = set(), []
    for annotation in annotations:
        problems = annotation_problems(annotation, tables)
        if problems and problems[0][0] == "annotation-type":
            findings.add("annotation-type", "{}", annotation)
            continue
        annotation_id, image_id = annotation.get("id"), annotation.get("image_id")
        if type(annotation_id) is int:
            if annotation_id in seen:
                problems.append(("annotation-duplicate", annotation_id))
            seen.add(annotation_id)
        file = files.get(image_id) if type(image_id) in (int, str) else None
        for code, value in problems:
            example = "annotation {} of image {} (file {}): {}"
            findings.add(code, example, annotation_id, image_id, file, value)
        if annotation.get("iscrowd") == 1:
            findings.add(
                "crowd", "annotation {} of image {} (file {})", *(annotation_id, image_id, file)
            )
        if not annotation.get("segmentation"):
            without_mask.append((annotation_id, image_id, file))
        statistics.add_annotation(annotation, {code for code, _ in problems})
    _report_masks(without_mask, len(annotations), findings)
    for image_id in statistics.empty_images(tables.images):
        findings.add("image-empty", "image {} (file {})", image_id, files.get(image_id))
    for class_id in statistics.empty_classes():
        findings.add("category-empty", "category {}: {}", class_id, tables.categories[class_id])


def _report_masks(without_mask: list[tuple], num_annotations: int, findings: Findings) -> None:
    if without_mask and len(without_mask) == num_annotations:
        findings.add("mask-none")
        return
    for place in without_mask:
        findings.add("mask-mixed", "annotation {} of image {} (file {})", *place)


def compare_categories(here: Tables, other: Tables, findings: Findings) -> None:
    """Report how the category tables of two files differ, as Detectron2 numbers their classes."""
    mine, theirs = here.categories, other.categories
    if mine == theirs:
        return

    def by_index(names: dict) -> list:
        return [names[i] for i in sorted(names, key=lambda i: (type(i) is str, i))]

    same_order = by_index(mine) == by_index(theirs)
    code = "categories-ids" if same_order else "categories-differ"
    for class_id in {**mine, **theirs}:
        if class_id not in theirs:
            findings.add(code, "category {}: {} here, not in --against", class_id, mine[class_id])
        elif class_id not in mine:
            findings.add(code, "category {}: {} in --against, not here", class_id, theirs[class_id])
        elif mine[class_id] != theirs[class_id]:
            both = (class_id, mine[class_id], theirs[class_id])
            findings.add(code, "category {}: {} here, {} in --against", *both)


def category_tables(file: Path) -> Tables:
    """Read the category table of a file for `compare_categories`.

    Raises:
        UserError: as `read_annotations`.
    """
    checked = Checked()
    _check_categories(read_annotations(file)[0]["categories"], checked)
    return checked.tables
