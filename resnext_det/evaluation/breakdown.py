"""Errors by kind, as TIDE defines them (Bolya et al. 2020), and which classes are mixed up."""

import hotcoco

IOU = 0.5  # t_f of the paper: from here on a box is right
BACKGROUND_IOU = 0.1  # t_b of the paper: below, a box is on no object

_KINDS = {
    "classification": "Cls",
    "localisation": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}

_IN_WORDS = {
    "classification": "wrong classes",
    "localisation": "boxes that are off",
    "both": "boxes that are off and of wrong classes",
    "duplicate": "duplicates",
    "background": "detections on the background",
    "missed": "missed objects",
}


def error_breakdown(evaluator: hotcoco.COCOeval) -> dict | None:
    """Split the points that are missing from AP50 by kind of error.

    Args:
        evaluator: of boxes or masks, after `evaluate()`.

    Returns:
        `AP50` (percent); `delta`, by kind of error the AP50 points that mending it alone would
        gain; `counts`, by kind how many detections, or objects for "missed". None for keypoints,
        and where no class has an object, so that AP50 is undefined.
    """
    if evaluator.params.iou_type == "keypoints" or not _has_objects(evaluator):
        return None
    tide = evaluator.tide_errors(pos_thr=IOU, bg_thr=BACKGROUND_IOU)
    return {
        "AP50": 100 * tide["ap_base"],
        "delta": {kind: 100 * tide["delta_ap"][key] for kind, key in _KINDS.items()},
        "counts": {kind: int(tide["counts"][key]) for kind, key in _KINDS.items()},
    }


def costliest_error(truth: hotcoco.COCO, found: hotcoco.COCO, task: str) -> tuple[float, str]:
    """The AP50 points that mending one kind of error would gain at most, and that kind in words.

    Args:
        truth: ground truth that has objects.
        found: detections.
        task: "bbox" or "segm".
    """
    evaluator = hotcoco.COCOeval(truth, found, task)
    evaluator.evaluate()
    gains = error_breakdown(evaluator)["delta"]
    kind = max(gains, key=gains.get)
    return gains[kind], _IN_WORDS[kind]


def _has_objects(evaluator: hotcoco.COCOeval) -> bool:
    params = evaluator.params
    return bool(
        evaluator.coco_gt.get_ann_ids(img_ids=params.img_ids, cat_ids=params.cat_ids, iscrowd=False)
    )


def confusion(evaluator: hotcoco.COCOeval, score: float) -> dict | None:
    """Count which class each object is detected as.

    Each detection, from the highest score down, takes the free object of any class that it
    overlaps most.

    Args:
        evaluator: of boxes or masks.
        score: detections below it are left out.

    Returns:
        `labels`, the K classes and "background"; `matrix`, (K + 1) x (K + 1) counts, rows ground
        truth, columns predictions, the last row false positives and the last column missed
        objects; `iou` and `score`, the thresholds. None for keypoints.
    """
    if evaluator.params.iou_type == "keypoints":
        return None
    result = evaluator.confusion_matrix(iou_thr=IOU, min_score=score)
    return {
        "labels": [*result["cat_names"], "background"],
        "matrix": result["matrix"].astype(int).tolist(),
        "iou": IOU,
        "score": score,
    }
