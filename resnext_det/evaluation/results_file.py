"""Reading a COCO results file: whatever does not fit its ground truth is named."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util

from ..errors import UserError, one_line
from .detections import Detections, no_detections
from .truth import Truth
from .values import are_keypoints, encoded, is_box, is_number, is_segmentation

# The field of a results file's entries that a task needs.
RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def read_detections(file: Path, truth: Truth) -> tuple[Detections, tuple[str, ...]]:
    """Read a COCO results file: a list of {image_id, category_id, score, bbox, ...}.

    Boxes that it lacks become those around masks or keypoints, as in pycocotools.

    Args:
        file: JSON.
        truth: of the same images, and no fewer.

    Returns:
        The detections, and the tasks that they can be evaluated for; all of them if there is none.

    Raises:
        UserError: if it cannot be read, or naming the first entry that is not of this form, or of
            an image or category that the ground truth lacks.
    """
    try:
        entries = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {one_line(error)}") from error
    if not isinstance(entries, list):
        raise UserError(
            f"{file} holds no list of detections: COCO's form is [{{image_id, category_id, score, "
            "bbox or segmentation or keypoints}, ...]"
        )
    if not entries:
        return no_detections(), tuple(RESULT_FIELDS)
    first = entries[0] if isinstance(entries[0], dict) else {}
    tasks = tuple(task for task, field in RESULT_FIELDS.items() if field in first)
    if not tasks:
        raise UserError(f"{file}: entry 0 has none of {', '.join(RESULT_FIELDS.values())}")
    sizes, places = truth.sizes, truth.places
    categories = set(truth.category_ids.tolist())
    for number, entry in enumerate(entries):
        if problem := _problem(entry, tasks, sizes, categories):
            raise UserError(f"{file}: entry {number} {problem}")
    return _columns(file, entries, tasks, sizes, places), tasks


def _problem(
    entry: object, tasks: Sequence[str], images: Mapping[int | str, tuple], categories: set[int]
) -> str | None:
    """What is wrong with an entry, as the end of a sentence that begins with it."""
    if not isinstance(entry, dict):
        return f"is {str(entry)[:40]!r}, not a detection"
    for field in ("image_id", "category_id", "score", *(RESULT_FIELDS[task] for task in tasks)):
        if field not in entry:
            return f"has no {field!r}"
    image, category = entry["image_id"], entry["category_id"]
    if type(image) not in (int, str) or image not in images:
        return f"has image_id {repr(image)[:80]}, which is no image of the annotation file"
    if type(category) is not int or category not in categories:
        return f"has category_id {repr(category)[:80]}, which is no category of the annotation file"
    if not is_number(entry["score"]):
        return f"has score {repr(entry['score'])[:80]}, which is not a finite number"
    if "bbox" in tasks and not is_box(entry["bbox"]):
        return f"has bbox {repr(entry['bbox'])[:80]}, which is not 4 finite numbers"
    if "segm" in tasks and not is_segmentation(entry["segmentation"], *images[image]):
        return (
            f"has a segmentation that is neither a run-length encoding of its image's "
            f"{images[image]} (height, width) nor polygons near it"
        )
    if "keypoints" in tasks and not are_keypoints(entry["keypoints"]):
        return f"has keypoints {repr(entry['keypoints'])[:80]}, which are not 3 finite numbers each"
    return None


def _columns(
    file: Path,
    entries: list[dict],
    tasks: Sequence[str],
    sizes: Mapping[int | str, tuple],
    places: Mapping[int | str, int],
) -> Detections:
    masks = mask_sizes = keypoints = None
    if "segm" in tasks:
        rles = [_rle(e["segmentation"], *sizes[e["image_id"]]) for e in entries]
        masks = tuple(rle["counts"] for rle in rles)
        mask_sizes = np.array([rle["size"] for rle in rles], dtype=np.int32)
    if "keypoints" in tasks:
        if len({len(entry["keypoints"]) for entry in entries}) > 1:
            raise UserError(f"{file}: the entries differ in their number of keypoints")
        keypoints = np.array([entry["keypoints"] for entry in entries], dtype=np.float64)
    if "bbox" in tasks:
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    elif masks is not None:
        boxes = mask_util.toBbox(rles)
    else:
        points = keypoints.reshape(len(entries), -1, 3)[..., :2]
        low, high = points.min(axis=1), points.max(axis=1)
        boxes = np.concatenate((low, high - low), axis=1)
    return Detections(
        np.array([places[entry["image_id"]] for entry in entries], dtype=np.int64),
        np.array([entry["category_id"] for entry in entries], dtype=np.int64),
        boxes,
        np.array([entry["score"] for entry in entries], dtype=np.float64),
        *(masks, mask_sizes, keypoints),
    )


def _rle(segmentation: list | Mapping, height: int, width: int) -> dict:
    """A compressed run-length encoding, `counts` as bytes, of the image's size."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": encoded(segmentation["counts"])}
