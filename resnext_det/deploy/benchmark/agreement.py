"""Whether two sides found the same, which makes their times comparable."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

_SAME = 1.0  # pixels between corners, up to which two boxes are of the same detection


@dataclass(frozen=True)
class Agreement:
    """Detections of one side beside those of the baseline.

    Attributes:
        expected: number of the baseline's.
        found: number of this side's.
        matched: pairs of one class whose corners are less than a pixel apart.
        box: largest difference of a coordinate among these, in pixels; None without pairs.
        score: likewise of a score.
    """

    expected: int
    found: int
    matched: int
    box: float | None
    score: float | None


def compare_detections(expected: Instances, found: Instances) -> Agreement:
    """Pair detections, the best score first, each with the nearest box of its class.

    Args:
        expected: with pred_boxes in pixels, scores, and pred_classes.
        found: the same, of the same image.
    """
    boxes = found.pred_boxes.tensor.detach().clone()
    classes, scores = found.pred_classes, found.scores
    free = torch.ones(len(found), dtype=torch.bool)
    box_differences, score_differences = [], []
    for box, label, score in zip(
        expected.pred_boxes.tensor, expected.pred_classes, expected.scores, strict=True
    ):
        distance = (boxes - box).abs().amax(dim=1)
        distance[~free | (classes != label)] = torch.inf
        if not len(distance) or distance.min() >= _SAME:
            continue
        nearest = int(distance.argmin())
        free[nearest] = False
        box_differences.append(float(distance[nearest]))
        score_differences.append(float((scores[nearest] - score).abs()))
    return Agreement(
        len(expected),
        len(found),
        len(box_differences),
        max(box_differences, default=None),
        max(score_differences, default=None),
    )


def compare_maps(
    expected: Sequence[Tensor | np.ndarray], found: Sequence[Tensor | np.ndarray]
) -> float:
    """The largest difference of a value, over the largest value of its map.

    Raises:
        ValueError: if the maps are not of the same shapes, or not finite.
    """
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        if one.shape != other.shape:
            raise ValueError(f"maps of shapes {tuple(one.shape)} and {tuple(other.shape)}")
        if not torch.isfinite(other).all():
            raise ValueError("a map has values that are not finite")
        largest = max(largest, float((one - other).abs().max() / one.abs().max()))
    return largest
