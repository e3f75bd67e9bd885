"""What the diagnoses look at: a sample of objects and detections, and how they overlap."""

from collections.abc import Iterator
from dataclasses import dataclass

import hotcoco
import numpy as np

# hotcoco hands annotations out as dicts, 15 microseconds each: all of 5,000 images x 100 take 7 s.
SAMPLE_IMAGES = 500
# Of an image, the best: boxes are compared with each other, so cost grows with the square. COCO
# counts 100 of a class, and Detectron2 gives 100 in all.
MAX_DETECTIONS = 500


@dataclass(frozen=True)
class Finding:
    """One reason why an evaluation is as it is.

    Attributes:
        code: what was found, for programs, e.g. "no_detections"; docs/diagnosis.md lists all.
        message: one sentence with its numbers.
        remedy: what to do about it.
    """

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Objects:
    """Objects or detections of the sample, by image and within it by falling score.

    Attributes:
        starts: (I + 1,) where each image's rows begin; the last is N.
        category: (N,) COCO category ids.
        box: (N, 4) x, y, width, height in pixels of the original image.
        score: (N,) 0 to 1; 1 for objects.
    """

    starts: np.ndarray
    category: np.ndarray
    box: np.ndarray
    score: np.ndarray

    def of(self, image: int) -> slice:
        """The rows of an image, by its place in the sample."""
        return slice(self.starts[image], self.starts[image + 1])


@dataclass(frozen=True)
class Evidence:
    """Counts of the whole evaluation, and a sample of it.

    Attributes:
        names: of the data set's classes by category id, in its order.
        images: how many are evaluated.
        objects: per class how many, crowds left out.
        crowds: how many.
        detections: how many.
        predicted: per class of the data set how many detections.
        on_images: detections on the evaluated images.
        sizes: (I, 2) width, height of the sample's images.
        truth: objects of the sample, without crowds.
        found: detections of the sample, up to `MAX_DETECTIONS` of an image.
        iou: per image of the sample (D, G), detections against objects, classes ignored.
    """

    names: dict[int, str]
    images: int
    objects: dict[int, int]
    crowds: int
    detections: int
    predicted: dict[int, int]
    on_images: int
    sizes: np.ndarray
    truth: Objects
    found: Objects
    iou: tuple[np.ndarray, ...]

    def name(self, category: int) -> str:
        """A class's name, or its id where the data set has no such class."""
        return self.names.get(category, f"id {category}")

    def pairs(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Per image of the sample its rows of `found`, its rows of `truth`, and their IoU."""
        for image, iou in enumerate(self.iou):
            yield self.found.of(image), self.truth.of(image), iou


def gather(truth: hotcoco.COCO, found: hotcoco.COCO) -> Evidence:
    """Count, and sample up to `SAMPLE_IMAGES` images that have objects, evenly over their ids.

    Args:
        truth: of the evaluated images alone.
        found: detections, maybe with ids that `truth` lacks.
    """
    kept, counts = truth.stats(), found.stats()
    order = truth.get_cat_ids()
    names = {c["id"]: c["name"] for c in truth.load_cats(order)}
    ids = truth.get_img_ids()
    with_objects = sorted({i for c in order for i in truth.get_img_ids(cat_ids=[c])})
    step = max(1, -(-len(with_objects) // SAMPLE_IMAGES))
    sample = with_objects[::step]
    images = truth.load_imgs(sample)
    objects, detections = _columns(truth, sample), _columns(found, sample, MAX_DETECTIONS)
    sliced = ((detections.of(i), objects.of(i)) for i in range(len(sample)))
    return Evidence(
        names=names,
        images=len(ids),
        objects=_per_class(kept, names),
        crowds=kept["crowd_count"],
        detections=counts["annotation_count"],
        predicted=_per_class(counts, names),
        on_images=len(found.get_ann_ids(img_ids=ids)) if ids else 0,
        sizes=np.array([(i["width"], i["height"]) for i in images], float).reshape(-1, 2),
        truth=objects,
        found=detections,
        iou=tuple(box_iou(detections.box[d], objects.box[g]) for d, g in sliced),
    )


def _per_class(stats: dict, names: dict[int, str]) -> dict[int, int]:
    """Annotations that are no crowds, for each class of `names`; `stats` are of `COCO.stats()`."""
    counts = {c["id"]: c["ann_count"] - c["crowd_count"] for c in stats["per_category"]}
    return {category: counts.get(category, 0) for category in names}


def _columns(coco: hotcoco.COCO, images: list[int], limit: int | None = None) -> Objects:
    place = {image: index for index, image in enumerate(images)}
    part = coco.filter(img_ids=images, drop_empty_images=False).dataset if images else {}
    rows = [
        (place[a["image_id"]], a["category_id"], a.get("score", 1.0), *a["bbox"])
        for a in part.get("annotations", ())
        if not a["iscrowd"] and a.get("bbox")
    ]
    table = np.array(rows, float).reshape(-1, 7)
    table = table[np.lexsort((-table[:, 2], table[:, 0]))]
    if limit is not None:
        rank = np.arange(len(table)) - np.searchsorted(table[:, 0], table[:, 0])
        table = table[rank < limit]
    return Objects(
        starts=np.searchsorted(table[:, 0], np.arange(len(images) + 1)),
        category=table[:, 1].astype(int),
        box=table[:, 3:],
        score=table[:, 2],
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes.

    Args:
        first: (N, 4) x, y, width, height.
        second: (M, 4) likewise.

    Returns:
        (N, M), 0 to 1; 0 for boxes without area.
    """
    a, b = first[:, None], second[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)


def coverage(evidence: Evidence, boxes: np.ndarray, threshold: float = 0.5) -> float:
    """The share of the sample's objects that a well scored detection covers, classes ignored.

    Args:
        evidence: gives the objects and the order of scores.
        boxes: (N, 4) in place of `evidence.found.box`.
        threshold: IoU that counts as covered.

    Returns:
        0 to 1, from the best scored detections of each image: twice as many as it has objects, so
        that a hundred guesses an image do not cover anything.
    """
    covered = 0
    for image in range(len(evidence.iou)):
        objects = evidence.truth.box[evidence.truth.of(image)]
        guesses = boxes[evidence.found.of(image)][: 2 * len(objects)]
        if len(guesses) and len(objects):
            covered += (box_iou(guesses, objects).max(0) >= threshold).sum()
    return covered / max(len(evidence.truth.box), 1)
