"""Pictures of detections: boxes, masks, keypoints and names on the image."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from ..data.drawing import Shown, draw_objects, fitting_scale

_KEYPOINT_SCORE = 0.05  # as in Detectron2's Visualizer


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    bones: Sequence[tuple[int, int]] = (),
    enlarge: bool = True,
) -> Image.Image:
    """Draw detections on their image, the best on top; see `draw_objects`.

    Args:
        image: (H, W, 3) BGR, uint8.
        instances: of that image, as `Predictor` returns them.
        class_names: of the model.
        bones: pairs of keypoints to join by a line.
        enlarge: show an image whose longer side is at most 240 pixels at a multiple of its size,
            so that names can be read.

    Returns:
        An RGB picture of W x H pixels, or of a whole multiple.
    """
    order = np.argsort(instances.scores.numpy(), kind="stable")  # the best last
    objects = [_shown(instances, int(i), class_names) for i in order]
    scale = max(1, fitting_scale(*image.shape[:2])) if enlarge else 1
    return draw_objects(image[:, :, ::-1], objects, bones, scale=scale)


def _shown(instances: Instances, i: int, class_names: Sequence[str]) -> Shown:
    class_id = int(instances.pred_classes[i])
    shape = {}
    if instances.has("pred_masks"):
        shape["bitmask"] = instances.pred_masks[i].numpy().astype(bool)
    if instances.has("pred_keypoints"):
        points = instances.pred_keypoints[i].numpy().copy()
        points[:, 2] = np.where(points[:, 2] > _KEYPOINT_SCORE, 2, 0)
        shape["keypoints"] = points
    label = f"{class_names[class_id]} {instances.scores[i]:.2f}"
    return Shown(instances.pred_boxes.tensor[i].tolist(), class_id, label, **shape)
