"""Detections as plain arrays."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances


def to_dict(instances: Instances, class_names: Sequence[str]) -> dict[str, np.ndarray | list[str]]:
    """Turn a predictor's answer for an image of H x W pixels into arrays.

    Args:
        instances: as `Predictor` returns them, on the CPU.
        class_names: of the model, `Predictor.class_names`.

    Returns:
        N detections, best score first: `boxes` (N, 4) float32, x0, y0, x1, y1 in pixels; `scores`
        (N,) float32, 0..1; `classes` (N,) int64, from 0; `names`, a list of N; of models with them
        `masks` (N, H, W) bool and `keypoints` (N, K, 3) float32, x and y in pixels and a score.
    """
    classes = instances.pred_classes.numpy().astype(np.int64)
    found = {
        "boxes": instances.pred_boxes.tensor.numpy().astype(np.float32),
        "scores": instances.scores.numpy().astype(np.float32),
        "classes": classes,
        "names": [class_names[i] for i in classes],
    }
    if instances.has("pred_masks"):
        found["masks"] = instances.pred_masks.numpy().astype(bool)
    if instances.has("pred_keypoints"):
        found["keypoints"] = instances.pred_keypoints.numpy().astype(np.float32)
    return found
