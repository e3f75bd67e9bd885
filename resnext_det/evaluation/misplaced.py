"""Boxes of detections in another frame than the objects', or there twice."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from ..config import head_of
from .evidence import Evidence, Finding, box_iou, coverage

# Percent; boxes in another frame give less, and a detector above it has its boxes in place.
SHIFTED_AP50 = 10
# Share of objects that must be covered after undoing a shift, and how much more than before.
SHIFT_COVERAGE, SHIFT_GAIN = 0.4, 0.25
RATIO_BIN = 0.08  # of log size ratios; finer than any scale worth naming
OFFSET_BIN = 8.0  # pixels
# Two boxes of a class with this IoU: any usual NMS threshold (0.3 to 0.7) would have dropped one.
DUPLICATE_IOU = 0.85
DUPLICATE_SHARE = 0.1  # of the detections; after NMS none lies so on a better one


def find_shift(
    evidence: Evidence, figures: Mapping[str, float], cfg: CfgNode | None
) -> Finding | None:
    """Look for boxes that are right in another frame than the original image's.

    Args:
        evidence: of the evaluation.
        figures: with `AP50`, percent.
        cfg: of the evaluation, which knows how images are resized; or None.

    Returns:
        A finding "boxes_shifted" if undoing one mistake brings the boxes onto the objects.
    """
    boxes = evidence.found.box
    if not figures["AP50"] < SHIFTED_AP50 or not len(boxes) or not len(evidence.truth.box):
        return None
    before = coverage(evidence, boxes)
    tried = [(coverage(evidence, new), what, fix) for what, fix, new in _undone(evidence, cfg)]
    after, what, fix = max(tried, key=lambda item: item[0])
    if after < max(SHIFT_COVERAGE, before + SHIFT_GAIN):
        return None
    best = [iou.max(0, initial=0) for iou in evidence.iou]
    return Finding(
        "boxes_shifted",
        f"{what}: AP50 is {figures['AP50']:.1f} and the median best IoU of an object "
        f"{np.median(np.concatenate(best)):.2f}; undone, the boxes cover {100 * after:.0f}% of the "
        f"objects instead of {100 * before:.0f}%",
        fix,
    )


def _undone(evidence: Evidence, cfg: CfgNode | None) -> Iterator[tuple[str, str, np.ndarray]]:
    """Mistakes, with a remedy and the boxes after undoing each."""
    box = evidence.found.box
    results = 'write "bbox" as x, y, width, height in pixels of the original image'
    low, high = box[:, :2], box[:, 2:]
    yield "boxes are x0, y0, x1, y1", results, np.hstack([low, np.clip(high - low, 0, None)])
    yield "x and y are swapped in the boxes", results, box[:, [1, 0, 3, 2]]
    yield "x and y of the boxes are their centre", results, np.hstack([low - high / 2, high])
    size = np.repeat(evidence.sizes, np.diff(evidence.found.starts), axis=0)
    yield "boxes are fractions of the image", results, box * np.hstack([size, size])
    resize = (
        "scale the boxes back to the original image: give Detectron2 its height and width in the "
        "inputs, and evaluate on the same images"
    )
    if cfg is not None and cfg.INPUT.MIN_SIZE_TEST:
        edges = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        shapes = [ResizeShortestEdge.get_output_shape(h, w, *edges) for w, h in evidence.sizes]
        ratio = np.array([(w, h) for h, w in shapes]) / evidence.sizes
        ratio = np.tile(np.repeat(ratio, np.diff(evidence.found.starts), axis=0), 2)
        what = f"boxes are at the scale of the resized image (INPUT.MIN_SIZE_TEST {edges[0]})"
        yield what, resize, box / ratio
        yield f"boxes are scaled back twice (INPUT.MIN_SIZE_TEST {edges[0]})", resize, box * ratio
    if (scale := _common_scale(evidence)) is not None:
        words = f"{scale[0]:.2f} times the right scale in x and {scale[1]:.2f} times in y"
        yield f"boxes are at {words}", resize, box / np.tile(scale, 2)
    if (offset := _common_offset(evidence)) is not None:
        words = f"{offset[0]:+.0f} and {offset[1]:+.0f} pixels in x and y"
        fix = "take off what moves them, e.g. the padding of the image"
        yield f"boxes are moved by {words}", fix, box - [*offset, 0, 0]


def _common_scale(evidence: Evidence) -> np.ndarray | None:
    """The ratio in x and y, detections to objects, that occurs most among well scored pairs."""
    ratios = []
    for found, truth in _pairs(evidence):
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.log(found[:, 2:] / truth[:, 2:])
            centre = np.log((found[:, :2] + found[:, 2:] / 2) / (truth[:, :2] + truth[:, 2:] / 2))
        same = (np.abs(size - centre) < 2 * RATIO_BIN).all(1)  # of one thing, both scale alike
        ratios.append(((size + centre) / 2)[same])
    mode = _mode(np.concatenate(ratios), RATIO_BIN)
    return None if mode is None else np.exp(mode)


def _common_offset(evidence: Evidence) -> np.ndarray | None:
    """The offset in pixels that occurs most among well scored pairs of equal size."""
    offsets = []
    for found, truth in _pairs(evidence):
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.log(found[:, 2:] / truth[:, 2:])
        same = (np.abs(size) < 2 * RATIO_BIN).all(1)
        centres = found[:, :2] + found[:, 2:] / 2 - truth[:, :2] - truth[:, 2:] / 2
        offsets.append(centres[same])
    return _mode(np.concatenate(offsets), OFFSET_BIN)


def _pairs(evidence: Evidence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per image all pairs of a well scored detection and an object, (P, 4) each."""
    for found, truth, _ in evidence.pairs():
        objects = evidence.truth.box[truth]
        boxes = evidence.found.box[found][: 2 * len(objects)]
        yield np.repeat(boxes, len(objects), axis=0), np.tile(objects, (len(boxes), 1))


def _mode(values: np.ndarray, width: float) -> np.ndarray | None:
    """The median of (N, 2) values in and around the fullest bin; None without values."""
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return None
    bins, counts = np.unique(np.round(values / width), axis=0, return_counts=True)
    centre = bins[counts.argmax()] * width
    return np.median(values[(np.abs(values - centre) <= width).all(1)], axis=0)


def find_duplicates(evidence: Evidence, cfg: CfgNode | None) -> Finding | None:
    """Look for detections that non-maximum suppression would have dropped.

    Args:
        evidence: of the evaluation.
        cfg: of the evaluation, or None.

    Returns:
        A finding "duplicates".
    """
    total, twice = len(evidence.found.box), 0
    for found, _, _ in evidence.pairs():
        boxes, classes = evidence.found.box[found], evidence.found.category[found]
        same = (box_iou(boxes, boxes) >= DUPLICATE_IOU) & (classes[:, None] == classes)
        twice += np.tril(same, -1).any(1).sum()
    if not total or twice < math.ceil(DUPLICATE_SHARE * total):
        return None
    key = "NMS_THRESH_TEST"
    if cfg is not None:
        head = head_of(cfg)
        key = f"MODEL.{head}.NMS_THRESH_TEST {cfg.MODEL[head].NMS_THRESH_TEST:g}"
    return Finding(
        "duplicates",
        f"{100 * twice / total:.0f}% of the detections lie on a better scored one of the same "
        f"class (IoU {DUPLICATE_IOU} or more): non-maximum suppression is off or far too mild",
        f"lower {key} (the paper's detector has 0.3), or drop repeated lines from the results",
    )
