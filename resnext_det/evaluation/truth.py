"""The ground truth of an evaluation: a COCO annotation file, or some of its images."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np

from ..errors import UserError

_FIELDS = {  # of an annotation, that COCO's evaluation of a task reads
    "bbox": ("bbox", "area"),
    "segm": ("segmentation", "area"),
    "keypoints": ("keypoints", "num_keypoints", "bbox", "area"),
}


@dataclass(frozen=True)
class Truth:
    """Ground truth, G annotations of K categories.

    Attributes:
        content: of the annotation file: `images`, `annotations`, `categories`.
        coco: the same for hotcoco.
        image_ids: of all images.
        category_ids: (K,) in rising order, which is that of Detectron2's contiguous ids.
        names: the categories' names, in that order.
        images: (G,) an annotation's image.
        categories: (G,) its category's id.
        areas: (G,) square pixels.
        crowds: (G,) bool.
        keypoints: (G,) how many of its keypoints are labelled.
    """

    content: dict
    coco: hotcoco.COCO
    image_ids: frozenset[int]
    category_ids: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray
    categories: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    keypoints: np.ndarray

    @property
    def annotated(self) -> bool:
        """Whether the file has annotations at all; those of COCO's test sets are secret."""
        return "annotations" in self.content

    def require(self, task: str) -> None:
        """Check that the annotations say what a task is evaluated by.

        Raises:
            UserError: for the first annotation that does not.
        """
        for annotation in self.content.get("annotations", ()):
            for field in _FIELDS[task]:
                if field not in annotation:
                    raise UserError(
                        f"annotation {annotation.get('id')} of image {annotation['image_id']} has "
                        f"no {field!r}, so {task} cannot be evaluated: tools/check_data.py tells "
                        "what else the file lacks"
                    )


def read_truth(
    file: Path, *, images: Collection[int] | None = None, limit: int | None = None
) -> Truth:
    """Read an annotation file.

    Args:
        file: COCO JSON.
        images: ids of the images to keep; None for all.
        limit: keep the first of the images, by id; None for all.

    Raises:
        UserError: if the file is absent or not COCO JSON.
    """
    try:
        content = json.loads(file.read_bytes())
        if limit is not None:
            images = sorted(image["id"] for image in content["images"])[:limit]
        return make_truth(content if images is None else _only(content, set(images)))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{file} is not a COCO annotation file: {reason}") from error


def _only(content: dict, images: set[int]) -> dict:
    kept = {**content, "images": [i for i in content["images"] if i["id"] in images]}
    if "annotations" in content:
        kept["annotations"] = [a for a in content["annotations"] if a["image_id"] in images]
    return kept


def make_truth(content: dict) -> Truth:
    """Index the content of an annotation file.

    Args:
        content: see `Truth`; an absent `iscrowd` counts as 0.

    Raises:
        KeyError, TypeError, ValueError: if it is not of COCO's form.
    """
    annotations = content.get("annotations", [])
    categories = sorted((c["id"], c["name"]) for c in content["categories"])

    def column(values: Sequence, kind: type) -> np.ndarray:
        return np.array(list(values), dtype=kind)

    return Truth(
        content,
        hotcoco.COCO({**content, "annotations": annotations}),
        frozenset(image["id"] for image in content["images"]),
        column((number for number, _ in categories), np.int64),
        tuple(name for _, name in categories),
        column((a["image_id"] for a in annotations), np.int64),
        column((a["category_id"] for a in annotations), np.int64),
        column((a.get("area", 0) for a in annotations), np.float64),
        column((a.get("iscrowd", 0) for a in annotations), bool),
        column((a.get("num_keypoints", 0) for a in annotations), np.int64),
    )
