"""A copy of an annotation file that training and evaluation can read, and what changed in it."""

import json
from collections import Counter
from pathlib import Path

from ..atomic import replacing
from ..errors import UserError
from .check_objects import (
    Tables,
    annotation_problems,
    image_problems,
    image_size,
    polygon_problem,
    segmentation_problems,
)
from .finding_codes import CODES
from .findings import Findings

_CATEGORY_CODES = ("categories-none", "category-type", "category-duplicate")
_DROPPING = {
    code
    for code, (severity, _) in CODES.items()
    if severity == "error" and code.startswith(("image-", "annotation-", "box-", "crowd-"))
} | {"box-zero"}


def cleaned(
    data: dict, findings: Findings, unusable: set[int] = frozenset()
) -> tuple[dict, Counter]:
    """Make a clean copy of an annotation file's content.

    Images and annotations that Detectron2 cannot use are dropped, an image with its annotations;
    of a duplicate id the first is kept. Boxes are clipped to their image; bad polygons, masks and
    keypoints are taken away; a missing `iscrowd` becomes 0, a missing `area` that of the box, and
    the id 0 a new one.

    Args:
        data: content as `check.read_annotations` returns it; is not changed.
        findings: what `check.check_annotations` found in it.
        unusable: indices of images whose file is missing or damaged.

    Returns:
        The copy, which shares what did not change, and what was done, with counts.

    Raises:
        UserError: if the category table is wrong: which classes are meant, only its author knows.
    """
    wrong = [code for code in _CATEGORY_CODES if code in findings]
    if wrong:
        raise UserError(
            f"--fix does not touch categories: mend them first ({', '.join(wrong)}); wrote nothing"
        )
    done = Counter()
    categories = {c["id"]: c["name"] for c in data["categories"]}
    images, lost = _clean_images(data["images"], unusable, done)
    tables = Tables({i["id"]: image_size(i) for i in images}, categories)
    annotations, seen = [], set()
    free_id = 1 + max((i for i in map(_id, data["annotations"]) if type(i) is int), default=0)
    for annotation in data["annotations"]:
        codes = {code for code, _ in annotation_problems(annotation, tables)}
        if "annotation-id" not in codes and _id(annotation) in seen:
            codes.add("annotation-duplicate")
        if "annotation-image" in codes and _of_lost(annotation, lost):
            done["annotations dropped: of a dropped image"] += 1
            continue
        reasons = [code for code in CODES if code in codes & _DROPPING]
        if reasons:
            done[f"annotations dropped: {reasons[0]}"] += 1
            continue
        seen.add(_id(annotation))
        annotations.append(
            _mended(annotation, codes, tables, free_id, done) if codes else annotation
        )
    return {**data, "images": images, "annotations": annotations}, done


def _id(entry: object) -> object:
    return entry.get("id") if type(entry) is dict else None


def _of_lost(annotation: dict, lost: set) -> bool:
    image_id = annotation.get("image_id")
    return type(image_id) in (int, str) and image_id in lost


def _clean_images(images: list, unusable: set[int], done: Counter) -> tuple[list, set]:
    """Return the images to keep and the ids of those dropped for good."""
    kept, ids, lost = [], set(), set()
    for index, image in enumerate(images):
        codes = [code for code, _ in image_problems(image)]
        if not codes and image["id"] in ids:
            codes = ["image-duplicate"]
        elif not codes and index in unusable:
            codes = ["missing or damaged file"]
        if codes:
            done[f"images dropped: {codes[0]}"] += 1
            if type(_id(image)) in (int, str):
                lost.add(image["id"])
        else:
            kept.append(image)
            ids.add(image["id"])
    return kept, lost - ids


def _mended(annotation: dict, codes: set[str], tables: Tables, free_id: int, done: Counter) -> dict:
    """Return a copy without the problems that do not cost the annotation."""
    new = dict(annotation)
    size = tables.images[new["image_id"]]
    if "annotation-zero-id" in codes:
        new["id"] = free_id
        done["annotations renumbered: id 0"] += 1
    if "box-sticks-out" in codes:
        new["bbox"] = _clipped(new["bbox"], *size)
        done["boxes clipped to their image"] += 1
    if "crowd-missing" in codes or "crowd-bool" in codes:
        new["iscrowd"] = int(new.get("iscrowd", False))
        done["annotations given an iscrowd of 0 or 1"] += 1
    if "area" in codes:
        new["area"] = new["bbox"][2] * new["bbox"][3]
        done["annotations given the area of their box"] += 1
    if "keypoints" in codes:
        del new["keypoints"]
        done["annotations whose keypoints were taken away"] += 1
    if codes & {"polygon-short", "polygon-value", "rle", "segmentation-type"}:
        _mend_segmentation(new, size, done)
    return new


def _mend_segmentation(new: dict, size: tuple[int, int], done: Counter) -> None:
    """Keep the good polygons; where there is none, or the RLE is bad, take the mask away."""
    segmentation = new["segmentation"]
    good = []
    if type(segmentation) is list:
        good = [p for p in segmentation if type(p) is list and not polygon_problem(p)]
        done["polygons dropped"] += len(segmentation) - len(good)
    if good and not segmentation_problems(good, size):
        new["segmentation"] = good
    else:
        del new["segmentation"]
        done["annotations whose mask was taken away"] += 1


def _clipped(box: list, image_width: int, image_height: int) -> list:
    x, y = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], image_width), min(box[1] + box[3], image_height)
    return [x, y, right - x, bottom - y]


def write_annotations(data: dict, file: Path) -> None:
    """Write an annotation file whole or not at all.

    Raises:
        UserError: if it cannot be written, or the content cannot be written as JSON.
    """
    try:
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.JSONEncoder().iterencode(data))
    except RecursionError as error:
        raise UserError(f"{file}: the content is nested too deep to be written") from error
