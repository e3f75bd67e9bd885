"""Does a model file find what the detector finds that it was made of?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..inference import Predictor
from .pixels import paste_mask
from .run import ExportedDetector

MAX_PIXELS = 1.0  # between corners of boxes
MAX_SCORE = 1e-3
MIN_MASK_IOU = 0.98


@dataclass(frozen=True)
class Agreement:
    """How near two answers for an image are.

    Attributes:
        count: detections that both have.
        pixels: largest difference between sides of their boxes, in pixels.
        score: largest difference between their scores.
        mask_iou: smallest overlap of their masks, 0..1, see `_iou_of`; None without masks.
        borderline: detections that only one has, with a score at the limit of being shown.
    """

    count: int
    pixels: float
    score: float
    mask_iou: float | None
    borderline: int

    def __str__(self) -> str:
        masks = "" if self.mask_iou is None else f", masks IoU {self.mask_iou:.4f}"
        borderline = f", {self.borderline} borderline" if self.borderline else ""
        return (
            f"{self.count} detections, boxes within {self.pixels:.2g} px, scores within "
            f"{self.score:.1g}{masks}{borderline}"
        )


def verify(file: Path, predictor: Predictor, images: dict[str, np.ndarray]) -> dict[str, Agreement]:
    """Run a model file by its runner, and the predictor, on images.

    Args:
        file: a model file.
        predictor: of the detector that it was made of, on the CPU.
        images: by name, (H, W, 3) RGB uint8.

    Returns:
        How near they are, by the image's name.

    Raises:
        UserError: if they do not find the same, or the file cannot be run.
    """
    detector = ExportedDetector(file)
    limits = predictor.cfg.TEST.DETECTIONS_PER_IMAGE, detector.card.score_threshold
    answers = {}
    for name, image in images.items():
        expected = predictor.predict_dicts(image[:, :, ::-1])
        try:
            answers[name] = compare(detector(image, paste=False), expected, *limits)
        except UserError as error:
            raise UserError(f"{error} (on {name})") from error
    return answers


def compare(found: dict, expected: dict, most: int, threshold: float) -> Agreement:
    """Match the detections of two answers, class by class.

    A detection whose score is within `MAX_SCORE` of the threshold, or of the lowest one of an
    answer that is full, may be in one answer alone.

    Args:
        found: as `ExportedDetector` gives it, with masks that are not pasted.
        expected: as `Predictor.predict_dicts` gives it.
        most: detections in an answer at most; negative for any number.
        threshold: their scores are higher.

    Raises:
        UserError: if a detection of one is missing in the other.
    """
    pairs, alone = _match(found, expected)
    floor = threshold
    for answer in (found, expected):
        if len(answer["scores"]) == most > 0:
            floor = max(floor, float(answer["scores"].min()))
    for answer, index in alone:
        if answer["scores"][index] > floor + MAX_SCORE:
            side = "an extra" if answer is found else "no"
            box = ", ".join(f"{v:.1f}" for v in answer["boxes"][index])
            raise UserError(
                f"the exported model finds {side} detection of class {answer['classes'][index]} "
                f"with score {answer['scores'][index]:.4f} at {box}"
            )
    left, right = [list(side) for side in zip(*pairs, strict=True)] if pairs else ([], [])
    boxes = np.abs(found["boxes"][left] - expected["boxes"][right])
    scores = np.abs(found["scores"][left] - expected["scores"][right])
    iou = None
    if "masks" in expected:
        ious = (
            _iou_of(found["masks"][i], found["boxes"][i], expected["masks"][j]) for i, j in pairs
        )
        iou = min(ious, default=1.0)
        if iou < MIN_MASK_IOU:
            raise UserError(f"a mask of the exported model has IoU {iou:.3f} with the detector's")
    return Agreement(
        len(pairs), float(boxes.max(initial=0)), float(scores.max(initial=0)), iou, len(alone)
    )


def _match(found: dict, expected: dict) -> tuple[list[tuple[int, int]], list[tuple[dict, int]]]:
    """Pairs of indices of the same detection, and those without partner with their answer."""
    free = set(range(len(found["scores"])))
    pairs, alone = [], []
    for j in range(len(expected["scores"])):
        gaps = {
            i: np.abs(found["boxes"][i] - expected["boxes"][j]).max()
            for i in free
            if found["classes"][i] == expected["classes"][j]
            and abs(found["scores"][i] - expected["scores"][j]) <= MAX_SCORE
        }
        nearest = min(gaps, key=gaps.get, default=None)
        if nearest is None or gaps[nearest] > MAX_PIXELS:
            alone.append((expected, j))
            continue
        free.remove(nearest)
        pairs.append((nearest, j))
    return pairs, alone + [(found, i) for i in sorted(free)]


def _iou_of(mask: np.ndarray, box: np.ndarray, expected: np.ndarray) -> float:
    """The overlap of a mask with the one expected.

    Pixels whose probability is within `MAX_SCORE` of 0.5 may be in either.

    Args:
        mask: (M, M) float32, probabilities within the box.
        box: (4,) x1, y1, x2, y2 in pixels.
        expected: (H, W) bool.
    """
    inside, possible = (
        paste_mask(mask, box, *expected.shape, 0.5 + margin) for margin in (MAX_SCORE, -MAX_SCORE)
    )
    found = (expected | inside) & possible
    union = (found | expected).sum()
    return float((found & expected).sum() / union) if union else 1.0
