"""COCO's figures, by hotcoco or by pycocotools, and the precision-recall curves behind them."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UserError
from .detections import Detections
from .truth import Truth

logger = logging.getLogger(__name__)

EVALUATORS = ("hotcoco", "pycocotools")

# Of a figure: "AP" or "AR"; the index of its IoU threshold, None for the mean over 0.5..0.95; the
# index of its area range; the index of its number of detections. COCO's own order.
_BOXES_AND_MASKS = {
    "AP": ("AP", None, 0, -1),
    "AP50": ("AP", 0, 0, -1),
    "AP75": ("AP", 5, 0, -1),
    "APs": ("AP", None, 1, -1),
    "APm": ("AP", None, 2, -1),
    "APl": ("AP", None, 3, -1),
    "AR1": ("AR", None, 0, 0),
    "AR10": ("AR", None, 0, 1),
    "AR100": ("AR", None, 0, 2),
    "ARs": ("AR", None, 1, -1),
    "ARm": ("AR", None, 2, -1),
    "ARl": ("AR", None, 3, -1),
}
_KEYPOINTS = {
    "AP": ("AP", None, 0, -1),
    "AP50": ("AP", 0, 0, -1),
    "AP75": ("AP", 5, 0, -1),
    "APm": ("AP", None, 1, -1),
    "APl": ("AP", None, 2, -1),
    "AR": ("AR", None, 0, -1),
    "AR50": ("AR", 0, 0, -1),
    "AR75": ("AR", 5, 0, -1),
    "ARm": ("AR", None, 1, -1),
    "ARl": ("AR", None, 2, -1),
}
FIGURES = {"bbox": _BOXES_AND_MASKS, "segm": _BOXES_AND_MASKS, "keypoints": _KEYPOINTS}


@dataclass(frozen=True)
class Measures:
    """What COCO's evaluation of a task accumulates, -1 for a class without ground truth.

    Attributes:
        task: "bbox", "segm" or "keypoints".
        precision: (T, R, K, A, M) 0 to 1, at T IoU thresholds 0.5..0.95, R recalls 0..1 by 0.01,
            of K categories, A area ranges (the first is all), M numbers of detections.
        recall: (T, K, A, M) 0 to 1, the highest that is reached.
    """

    task: str
    precision: np.ndarray
    recall: np.ndarray

    def figures(self) -> dict[str, float]:
        """The task's figures in percent, NaN for a size range without ground truth."""
        return {name: self._mean(*figure) for name, figure in FIGURES[self.task].items()}

    def _mean(
        self, kind: str, iou: int | None, area: int, detections: int, category: int | None = None
    ) -> float:
        values = self.precision if kind == "AP" else self.recall
        values = values[..., area, detections]
        if category is not None:
            values = values[..., category]
        if iou is not None:
            values = values[iou]
        values = values[values > -1]
        return 100 * float(np.mean(values)) if values.size else np.nan

    def of_class(self, category: int) -> dict[str, float]:
        """AP, AP50, AP75 and AR (at the greatest number of detections) in percent, or NaN.

        Args:
            category: its index in the order of ids.
        """
        figures = {"AP": ("AP", None), "AP50": ("AP", 0), "AP75": ("AP", 5), "AR": ("AR", None)}
        return {name: self._mean(*f, 0, -1, category) for name, f in figures.items()}

    def curves(self, names: Sequence[str]) -> dict:
        """Precision, in percent, at 101 recalls, for a plot.

        Args:
            names: of the categories.

        Returns:
            `recall`; `precision`: of IoU "0.50", "0.75" and the "mean" over all, each the mean over
            classes with ground truth; `classes`: at IoU 0.5 by name, those with ground truth.
        """
        curves = 100 * self.precision[..., 0, -1]  # (T, R, K)
        present = self.precision[0, 0, :, 0, -1] > -1
        empty = [None] * curves.shape[1]

        def mean(values: np.ndarray) -> list[float | None]:
            return np.round(values[..., present].mean(axis=-1), 3).tolist()

        return {
            "recall": np.round(np.linspace(0, 1, curves.shape[1]), 2).tolist(),
            "precision": {
                "0.50": mean(curves[0]) if present.any() else empty,
                "0.75": mean(curves[5]) if present.any() else empty,
                "mean": mean(curves.mean(axis=0)) if present.any() else empty,
            },
            "classes": {
                names[k]: np.round(curves[0, :, k], 3).tolist() for k in np.flatnonzero(present)
            },
        }


def implementation(evaluator: str) -> str:
    """An evaluator's name and version, e.g. "hotcoco 1.3.0"."""
    return f"{evaluator} {version(evaluator)}"


def run_hotcoco(
    truth: Truth,
    found: hotcoco.COCO,
    task: str,
    *,
    sigmas: Sequence[float] = (),
    params: Mapping | None = None,
) -> hotcoco.COCOeval:
    """Evaluate and accumulate; nothing is printed.

    Args:
        truth: the ground truth.
        found: detections of `Detections.in_hotcoco`.
        task: "bbox", "segm" or "keypoints".
        sigmas: of each keypoint, see COCO's OKS; none for those of COCO's 17.
        params: attributes of `hotcoco.Params` other than COCO's.
    """
    evaluator = hotcoco.COCOeval(truth.coco, found, task)
    chosen = evaluator.params
    if task == "keypoints" and sigmas:
        chosen.kpt_oks_sigmas = list(map(float, sigmas))
    for name, value in (params or {}).items():
        setattr(chosen, name, value)
    evaluator.params = chosen
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def measures_of(evaluator: hotcoco.COCOeval, task: str) -> Measures:
    """The measures of an evaluator that has accumulated."""
    result = evaluator.eval
    return Measures(task, result["precision"], result["recall"])


def run_pycocotools(
    truth: Truth, detections: Detections, task: str, *, sigmas: Sequence[float] = ()
) -> Measures:
    """Evaluate by the official pycocotools; what it prints goes to the debug log."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        reference = COCO()
        annotations = truth.content.get("annotations", [])
        # copies, as pycocotools turns segmentations into its own form
        annotations = [{"iscrowd": 0, **annotation} for annotation in annotations]
        reference.dataset = {**truth.content, "annotations": annotations}
        reference.createIndex()
        rows = [row for part in detections.rows(truth.image_ids) for row in part]
        if task == "segm":  # else areas would be those of boxes
            for row in rows:
                del row["bbox"]
        if rows:
            found = reference.loadRes(rows)
        else:  # which loadRes refuses
            found = COCO()
            found.dataset = {**reference.dataset, "annotations": []}
            found.createIndex()
        evaluator = COCOeval(reference, found, task)
        if task == "keypoints" and sigmas:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    logger.debug("%s", printed.getvalue())
    return Measures(task, evaluator.eval["precision"], evaluator.eval["recall"])


def check_keypoints(truth: Truth, detections: Detections, sigmas: Sequence[float]) -> None:
    """Require as many keypoints in the ground truth and the detections as there are sigmas.

    Raises:
        UserError: with the three numbers.
    """
    wanted = len(sigmas) or len(hotcoco.Params("keypoints").kpt_oks_sigmas)
    there = {len(a["keypoints"]) // 3 for a in truth.content.get("annotations", ())}
    if detections.keypoints is not None:
        there.add(detections.keypoints.shape[1] // 3)
    if there - {wanted}:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {wanted} values (COCO's, if it is empty) and objects "
            f"have {', '.join(map(str, sorted(there)))} keypoints: give one value for each keypoint"
        )
