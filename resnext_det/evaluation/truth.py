"""The ground truth of an evaluation: a COCO annotation file, or some of its images."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError, one_line
from .values import are_keypoints, is_box, is_number, is_segmentation

_FIELDS = {  # of an annotation, that COCO's evaluation of a task reads
    "bbox": ("bbox", "area"),
    "segm": ("segmentation", "area"),
    "keypoints": ("keypoints", "num_keypoints", "bbox", "area"),
}
_IS_GOOD = {  # but for segmentations, whose image has to be known
    "bbox": is_box,
    "area": is_number,
    "keypoints": are_keypoints,
    "num_keypoints": is_number,
}
_LARGEST_ID = 2**53  # of a category: hotcoco takes detections as floats


@dataclass(frozen=True)
class Truth:
    """Ground truth, G annotations of K categories.

    Attributes:
        content: of the annotation file: `images`, `annotations` of these, `categories`.
        coco: the same for hotcoco, where images are numbered as in `image_ids`, from 0, and
            annotations from 1: it takes neither text nor negative or large numbers.
        image_ids: of all images, whole numbers or text, in rising order.
        category_ids: (K,) in rising order, which is that of Detectron2's contiguous ids.
        names: the categories' names, in that order.
        images: (G,) the index in `image_ids` of an annotation's image.
        categories: (G,) its category's id.
        areas: (G,) square pixels.
        crowds: (G,) bool.
        keypoints: (G,) how many of its keypoints are labelled.
    """

    content: dict
    coco: hotcoco.COCO
    image_ids: tuple[int | str, ...]
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

    @property
    def places(self) -> dict[int | str, int]:
        """The index in `image_ids` of each id."""
        return {image: index for index, image in enumerate(self.image_ids)}

    @property
    def sizes(self) -> dict[int | str, tuple]:
        """Height and width in pixels of each image by its id, as the file says; None if not."""
        return {i["id"]: (i.get("height"), i.get("width")) for i in self.content["images"]}

    def require(self, task: str) -> None:
        """Check that the annotations say what a task is evaluated by.

        Raises:
            UserError: for the first annotation that does not.
        """
        sizes = self.sizes
        for annotation in self.content.get("annotations", ()):
            image = annotation["image_id"]
            for field in _FIELDS[task]:
                value = annotation.get(field)
                if field == "segmentation":
                    good = is_segmentation(value, *sizes[image])
                else:
                    good = _IS_GOOD[field](value)
                if not good:
                    what = f"{field} {repr(value)[:60]}" if field in annotation else f"no {field!r}"
                    raise UserError(
                        f"annotation {annotation.get('id')} of image {image} has {what}, so {task} "
                        "cannot be evaluated: tools/check_data.py tells what else the file lacks"
                    )


def annotation_file(dataset_name: str) -> Path | None:
    """The COCO file of a registered data set; None where it has none."""
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("json_file"):
        DatasetCatalog.get(dataset_name)  # some find the file only then
    file = metadata.get("json_file")
    return Path(file) if file else None


def read_truth(
    file: Path, *, images: Collection[int | str] | None = None, limit: int | None = None
) -> Truth:
    """Read an annotation file.

    Args:
        file: COCO JSON.
        images: see `make_truth`.
        limit: likewise.

    Raises:
        UserError: if the file is absent or not COCO JSON.
    """
    try:
        return make_truth(json.loads(file.read_bytes()), images=images, limit=limit)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{file} is not a COCO annotation file: {reason}") from error


def make_truth(
    content: dict, *, images: Collection[int | str] | None = None, limit: int | None = None
) -> Truth:
    """Index the content of an annotation file.

    As in pycocotools, annotations of images that it does not list are left out.

    Args:
        content: see `Truth`; an absent `iscrowd` counts as 0.
        images: ids of the images to keep; None for all.
        limit: keep the first of these, by id; None for all.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if it is not of COCO's form.
    """
    listed = {image["id"]: image for image in content["images"]}
    ids = sorted(listed if images is None else listed.keys() & set(images))[:limit]
    categories = _categories(content)
    place = {image: index for index, image in enumerate(ids)}
    annotations = [
        annotation
        for annotation in content.get("annotations", ())
        if annotation["image_id"] in place
    ]
    numbered = {
        "images": [{**listed[image], "id": index} for image, index in place.items()],
        "annotations": [
            {**annotation, "id": number, "image_id": place[annotation["image_id"]]}
            for number, annotation in enumerate(annotations, 1)
        ],
    }
    kept = {**content, "images": [listed[image] for image in ids]}
    if "annotations" in content:
        kept["annotations"] = annotations

    def column(values: Sequence, kind: type) -> np.ndarray:
        return np.array(list(values), dtype=kind)

    return Truth(
        kept,
        hotcoco.COCO({**content, **numbered}),
        tuple(ids),
        column(categories, np.int64),
        tuple(categories.values()),
        column((place[a["image_id"]] for a in annotations), np.int64),
        column((a["category_id"] for a in annotations), np.int64),
        column((a.get("area", 0) for a in annotations), np.float64),
        column((a.get("iscrowd", 0) for a in annotations), bool),
        column((a.get("num_keypoints", 0) or 0 for a in annotations), np.int64),
    )


def _categories(content: dict) -> dict[int, str]:
    """Names by id, in rising order."""
    names = {}
    for category in content["categories"]:
        number = category["id"]
        if type(number) is not int or not 0 <= number <= _LARGEST_ID:
            raise ValueError(f"category id {number!r} is no whole number from 0 to 2**53")
        if number in names:
            raise ValueError(f"two categories have the id {number}")
        names[number] = category["name"]
    return dict(sorted(names.items()))
