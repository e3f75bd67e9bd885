"""Why an evaluation came out as it did, told from its detections, its config and its training."""

import math
from collections.abc import Mapping, Sequence

import hotcoco
import numpy as np
from detectron2.config import CfgNode

from ..config import head_of
from .breakdown import costliest_error
from .evidence import Evidence, Finding, gather
from .misplaced import find_duplicates, find_shift
from .mixups import MAX_SHOWN, agnostic_ap, find_mixup
from .suspicions import (
    LEARNED_AP,
    SUSPICIOUS_AP,
    compare_with_paper,
    suspect_input,
    suspect_training,
)

__all__ = ["INFORMATION", "Finding", "diagnose"]

INFORMATION = frozenset({"empty_size_bins"})  # codes that tell of the data; the rest are warnings

# Share of the detections that may be on images outside of the data set: a results file of a larger
# set is no mistake as long as most of it is evaluated.
FOREIGN_SHARE = 0.5
# The same for category ids; none is legal, a hundredth is no rounding.
FOREIGN_CLASS_SHARE = 0.01
# Objects of a class that is never predicted, in any image with any score: fewer are bad luck.
MIN_OBJECTS = 20

_SIZES = {  # COCO's, by area in pixels
    "APs": "smaller than 32x32",
    "APm": "between 32x32 and 96x96",
    "APl": "larger than 96x96",
}


def diagnose(
    truth: hotcoco.COCO,
    found: hotcoco.COCO,
    task: str,
    figures: Mapping[str, float],
    *,
    cfg: CfgNode | None = None,
    metrics: Sequence[Mapping] | None = (),
    weights: str | None = None,
    score: float = 0.5,
) -> list[Finding]:
    """Say why AP is 0, undefined or low.

    Args:
        truth: ground truth of the evaluated images alone, all of them.
        found: the detections.
        task: "bbox", "segm" or "keypoints", whose boxes are not looked at.
        figures: `AP`, `AP50`, `APs`, ... in percent; NaN for undefined.
        cfg: of the evaluation, if known.
        metrics: rows of the run's metrics.json, if known, as `RunMetrics` where it is known how
            many iterations were planned; None amid training, when a low AP is no reason to look
            for one.
        weights: the file that the config names for the model at hand; None where only its
            detections are.
        score: the operating point, 0 to 1.

    Returns:
        The most decisive first; empty for a healthy evaluation. Those of a code in `INFORMATION`
        are no fault.
    """
    evidence = gather(truth, found)
    if not sum(evidence.objects.values()) or math.isnan(figures["AP"]):
        return [_no_ground_truth(evidence)]
    findings: list[Finding | None] = []
    if not evidence.detections:
        findings += [_no_detections(evidence, cfg)]
    else:
        findings += [_foreign_images(evidence), _other_class_count(evidence, cfg)]
        if task != "keypoints":
            findings += [find_mixup(evidence, truth, found, task, figures)]
            findings += [find_shift(evidence, figures, cfg), find_duplicates(evidence, cfg)]
        findings += [_missing_classes(evidence)]
    ap = figures["AP"]
    if cfg is not None and task == "bbox" and metrics is not None:
        findings += [compare_with_paper(cfg, ap, evidence.images)]
    low = ap < SUSPICIOUS_AP or any(f and f.code == "far_below_paper" for f in findings)
    if cfg is not None and low:
        findings += [suspect_input(cfg)]
    if metrics is not None and ap < (LEARNED_AP if metrics else SUSPICIOUS_AP):
        planned = getattr(metrics, "max_iter", None)
        findings += [suspect_training(metrics, max_iter=planned, weights=weights)]
    if (
        metrics is not None
        and ap < SUSPICIOUS_AP
        and {f.code for f in findings if f} <= {"far_below_paper"}
    ):
        findings += [_unexplained(evidence, truth, found, ap, task)]
    findings += [_low_scores(evidence, score), _empty_size_bins(figures)]
    return [finding for finding in findings if finding is not None]


def _no_ground_truth(evidence: Evidence) -> Finding:
    if sum(evidence.objects.values()):
        what = "no object that counts for this task"
    elif evidence.crowds:
        what = f"only crowds ({evidence.crowds}), which are not counted"
    else:
        what = "no object"
    return Finding(
        "no_ground_truth",
        f"AP is undefined: the annotations of the {evidence.images} images have {what}",
        "evaluate on a data set with objects (python tools/check_data.py shows what it has); "
        "a test-dev file has no annotations",
    )


def _no_detections(evidence: Evidence, cfg: CfgNode | None) -> Finding:
    key = bound = "the score threshold"
    if cfg is not None:
        key = f"MODEL.{head_of(cfg)}.SCORE_THRESH_TEST"
        bound = f"{key} {cfg.MODEL[head_of(cfg)].SCORE_THRESH_TEST:g}"
    return Finding(
        "no_detections",
        f"the model detected nothing in {evidence.images} images: no score reached {bound}",
        f"check that trained weights were loaded and that training went far enough; {key} 0 "
        "shows what the model sees",
    )


def _low_scores(evidence: Evidence, score: float) -> Finding | None:
    scores, images = evidence.found.score, len(evidence.iou)
    if not len(scores) or scores.max() >= score:
        return None
    where = "" if images == evidence.images else f" in {images} images"
    return Finding(
        "low_scores",
        f"no detection{where} reaches the operating point {score:g}: the highest score is "
        f"{scores.max():.2g}",
        "AP does not mind, but precision, recall and drawn images do: choose a lower score "
        "threshold, or train longer",
    )


def _foreign_images(evidence: Evidence) -> Finding | None:
    foreign = evidence.detections - evidence.on_images
    if foreign <= FOREIGN_SHARE * evidence.detections:
        return None
    return Finding(
        "image_ids_foreign",
        f"{foreign} of {evidence.detections} detections are on images that are not among the "
        f"{evidence.images} evaluated ones",
        "evaluate against the annotations of the same images; image_id is the number of the "
        "annotation file, not the place in a list",
    )


def _other_class_count(evidence: Evidence, cfg: CfgNode | None) -> Finding | None:
    classes = len(evidence.names) if cfg is None else cfg.MODEL[head_of(cfg)].NUM_CLASSES
    if classes == len(evidence.names):
        return None
    key = f"MODEL.{head_of(cfg)}.NUM_CLASSES"
    return Finding(
        "class_count",
        f"{key} is {classes}, and the data set has {len(evidence.names)} classes",
        f"set {key} {len(evidence.names)} and train with this data set's classes, or evaluate on "
        "the data set that the model was trained for",
    )


def _missing_classes(evidence: Evidence) -> Finding | None:
    missing = [
        c for c, n in evidence.objects.items() if n >= MIN_OBJECTS and not evidence.predicted[c]
    ]
    foreign = evidence.detections - sum(evidence.predicted.values())
    parts = []
    if foreign > FOREIGN_CLASS_SHARE * evidence.detections:
        parts.append(
            f"{foreign} of {evidence.detections} detections have a category id that the data set "
            f"lacks{_foreign_classes(evidence)}"
        )
    if missing:
        extra = [c for c, n in evidence.predicted.items() if n and not evidence.objects[c]]
        parts.append(
            f"{len(missing)} of {len(evidence.names)} classes have {MIN_OBJECTS} objects or more "
            f"and are never predicted: {_list(evidence, missing)}"
        )
        if extra:
            parts.append(f"predicted without any object: {_list(evidence, extra)}")
    if not parts:
        return None
    return Finding(
        "classes_missing",
        "; ".join(parts),
        "check that model and annotations have the same list of classes (python "
        "tools/check_data.py); a rare class may need more training images",
    )


def _foreign_classes(evidence: Evidence) -> str:
    """E.g. of the sample; nothing where none of them is on an image that has objects."""
    foreign = sorted(set(evidence.found.category.tolist()) - set(evidence.names))
    return ", e.g. " + ", ".join(map(str, foreign[:MAX_SHOWN])) if foreign else ""


def _list(evidence: Evidence, categories: Sequence[int]) -> str:
    names = ", ".join(evidence.name(c) for c in categories[:MAX_SHOWN])
    return names + (f", ... ({len(categories)} in all)" if len(categories) > MAX_SHOWN else "")


def _unexplained(
    evidence: Evidence, truth: hotcoco.COCO, found: hotcoco.COCO, ap: float, task: str
) -> Finding:
    message = f"AP is {ap:.1f} for no reason that shows in the results"
    if task != "keypoints":
        best = np.concatenate([iou.max(0, initial=0) for iou in evidence.iou])
        message += (
            f": {100 * (best >= 0.5).mean():.0f}% of the objects have a box of any class on them "
            f"(IoU 0.5), the median best IoU is {np.median(best):.2f}, AP with classes ignored is "
            f"{agnostic_ap(truth, found, task):.1f}"
        )
        points, kind = costliest_error(truth, found, task)
        if points > 0:
            message += f"; most of AP50 ({points:.0f} points) is lost to {kind}"
    return Finding(
        "low_ap",
        message,
        "check that the weights are the trained ones and how the images are fed; "
        "docs/diagnosis.md has a list",
    )


def _empty_size_bins(figures: Mapping[str, float]) -> Finding | None:
    empty = [name for name in _SIZES if math.isnan(figures.get(name, 0))]
    if not empty:
        return None
    sizes = " or ".join(_SIZES[name] for name in empty)
    return Finding(
        "empty_size_bins",
        f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} undefined: no object is {sizes} "
        "pixels",
        "nothing is wrong: the data set has no objects of that size",
    )
