"""Figures of each class: AP, AR, and precision and recall at a chosen score."""

from collections.abc import Sequence

import numpy as np

from .detections import Detections
from .measures import Measures, run_hotcoco
from .truth import Truth

_MAX_DETECTIONS = {"bbox": 100, "segm": 100, "keypoints": 20}  # COCO's, of a class in an image
_ALL_AREAS = (0.0, 1e10)  # square pixels


def class_table(
    truth: Truth,
    detections: Detections,
    measures: Measures,
    *,
    score: float = 0.5,
    sigmas: Sequence[float] = (),
) -> list[dict]:
    """Put together a row for each class, in the data set's order.

    Args:
        truth: the ground truth.
        detections: in the data set's own category ids.
        measures: of both.
        score: see `operating_point`.
        sigmas: see `run_hotcoco`.

    Returns:
        For each class `name`, `category_id`, `objects` (ground truth that is no crowd) and, in
        percent or NaN, `AP`, `AP50`, `AP75`, `AR`, `precision`, `recall`.
    """
    precision, recall = operating_point(
        truth, detections, measures.task, score=score, sigmas=sigmas
    )
    rows = []
    for k, (category, name) in enumerate(zip(truth.category_ids, truth.names, strict=True)):
        objects = int(((truth.categories == category) & ~truth.crowds).sum())
        rows.append(
            {
                "name": name,
                "category_id": int(category),
                "objects": objects,
                **measures.of_class(k),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
            }
        )
    return rows


def operating_point(
    truth: Truth,
    detections: Detections,
    task: str,
    *,
    score: float = 0.5,
    sigmas: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each class at IoU 0.5, when detections below a score are dropped.

    Matched as COCO does: in each image and class the 100 (keypoints: 20) highest detections, from
    the highest score down, each take the free object of the highest IoU, if that is at least 0.5.
    A detection that finds none but lies half in a crowd (or fits an object without labelled
    keypoints) is ignored: it counts neither as right nor as wrong. Precision is right / (right +
    wrong), recall is right / objects.

    Args:
        truth: the ground truth.
        detections: in the data set's own category ids.
        task: "bbox", "segm" or "keypoints".
        score: the lowest that counts, 0 to 1.
        sigmas: see `run_hotcoco`.

    Returns:
        Precision and recall of the K classes, (K,) in percent; NaN without a detection that counts,
        and without objects.
    """
    detections = detections.select(detections.scores >= score)
    found = detections.in_hotcoco(truth.coco, task)
    limit = _MAX_DETECTIONS[task]
    params = {
        "iou_thrs": [0.5],
        "area_rng": [list(_ALL_AREAS)],
        "area_rng_lbl": ["all"],
        "max_dets": [limit],
    }
    ignored_objects = _ignored_objects(truth, task)
    objects = _count(truth, truth.categories[~ignored_objects])
    evaluator = run_hotcoco(truth, found, task, sigmas=sigmas, params=params)
    reached = evaluator.eval["recall"][0, :, 0, 0]  # -1 without objects
    right = np.rint(reached.clip(0) * objects)

    # Detections can be ignored in few images, and only there each match is looked at.
    outside = _outside(detections.areas(task))
    images = set(truth.images[ignored_objects].tolist()) | set(detections.images[outside].tolist())
    ignored = np.zeros(len(objects))
    if images and len(detections):
        some = run_hotcoco(
            truth, found, task, sigmas=sigmas, params={**params, "img_ids": sorted(images)}
        )
        for match in filter(None, some.eval_imgs):
            k = np.searchsorted(truth.category_ids, match["category_id"])
            ignored[k] += np.count_nonzero(match["dtIgnore"])
    pairs = np.stack((detections.images, detections.categories))
    pairs, sizes = np.unique(pairs, axis=1, return_counts=True)
    counted = _count(truth, pairs[1], np.minimum(sizes, limit)) - ignored
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * right / counted, 100 * right / objects


def _ignored_objects(truth: Truth, task: str) -> np.ndarray:
    """(G,) bool: the ground truth that nothing is lost by missing."""
    ignored = truth.crowds | _outside(truth.areas)
    return ignored | (truth.keypoints == 0) if task == "keypoints" else ignored


def _outside(areas: np.ndarray) -> np.ndarray:
    return (areas < _ALL_AREAS[0]) | (areas > _ALL_AREAS[1])


def _count(truth: Truth, categories: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Add up by class, (K,); ids that are no category's are left out."""
    known = np.isin(categories, truth.category_ids)
    indices = np.searchsorted(truth.category_ids, categories[known])
    if weights is not None:
        weights = weights[known]
    return np.bincount(indices, weights, minlength=len(truth.category_ids)).astype(float)
