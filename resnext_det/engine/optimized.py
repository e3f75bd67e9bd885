"""Evaluations of optimised detectors, and the judgement on quantised ones."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..data import NamingDatasetMapper, require_files, require_registered
from ..deploy.compiled import optimize
from ..deploy.options import Optimization
from ..deploy.quantization import quantize, require_packages
from ..deploy.quantized import Quantized, require_free
from ..errors import UserError
from .loader import training_records

logger = logging.getLogger(__name__)

FOLDER = "int8"  # below OUTPUT_DIR


def evaluate_optimized(
    cfg: CfgNode,
    model: nn.Module,
    optimization: Optimization,
    evaluate: Callable[[nn.Module], dict],
) -> dict:
    """Evaluate a detector that is optimised for this CPU.

    With precision "int8" it is evaluated in float32 too, and the int8 model is written into
    `OUTPUT_DIR/int8` unless it loses too much.

    Args:
        cfg: of the evaluation.
        model: the detector with its weights.
        optimization: how.
        evaluate: gives a detector's results, {task: {metric: percent}} or {data set: that}.

    Returns:
        The results of the optimised detector, for int8 of the int8 one.

    Raises:
        UserError: see `optimize` and `quantize`; for int8 in several processes, or if the int8
            model loses more AP than it may.
    """
    if optimization.folder is not None:
        logger.info("evaluating the int8 model in %s", optimization.folder)
        return evaluate(Quantized.load(optimization.folder).detector(model))
    if optimization.precision != "int8":
        return evaluate(optimize(model, optimization.precision))
    if comm.get_world_size() > 1:
        raise UserError("--optimize int8 runs in one process, on all threads: leave --num-gpus out")
    folder = Path(cfg.OUTPUT_DIR) / FOLDER
    require_packages()  # before hours of evaluation
    require_free(folder)
    images = CalibrationImages(cfg, optimization.calibration_images)
    before = evaluate(optimize(model))
    _require_ap(compare(before, before))  # before hours of quantisation
    quantized = quantize(model, images)
    after = evaluate(quantized.detector(model))
    rows = compare(before, after)
    logger.info(
        "int8, calibrated on %d images of %s, AP in percent:\n%s",
        len(images),
        ", ".join(cfg.DATASETS.TRAIN),
        tabulate(rows, ["", "float32", "int8", "loss"], floatfmt=".2f"),
    )
    _judge(rows, optimization.max_ap_loss)
    record = {
        "calibration": {"datasets": list(cfg.DATASETS.TRAIN), "images": len(images)},
        "AP": [{"name": n, "float32": b, "int8": a} for n, b, a, _ in rows],
    }
    quantized.save(folder, record)
    logger.info("wrote %s: --optimize %s runs it", folder, folder)
    return after


def compare(before: Mapping, after: Mapping) -> list[tuple[str, float, float, float]]:
    """AP of each task before and after: (name, before, after, loss), in percent.

    Of proposals, which have none, it is the average recall of a thousand an image.

    Args:
        before: {task: {metric: percent}}, or {data set: that}.
        after: the same.
    """
    rows = []
    for name, tasks in before.items():
        if metric := next((m for m in ("AP", "AR@1000") if m in tasks), None):
            values = float(tasks[metric]), float(after[name][metric])
            rows.append((name, *values, values[0] - values[1]))
        elif any(isinstance(value, Mapping) for value in tasks.values()):
            rows += [(f"{name} {n}", *row) for n, *row in compare(tasks, after[name])]
    return rows


def _require_ap(rows: list[tuple[str, float, float, float]]) -> None:
    if not rows or any(math.isnan(loss) for *_, loss in rows):
        raise UserError(
            "the int8 model is not written: without an AP on DATASETS.TEST nobody knows what it "
            "loses; evaluate on images with annotations"
        )


def _judge(rows: list[tuple[str, float, float, float]], limit: float) -> None:
    _require_ap(rows)
    name, _, _, loss = max(rows, key=lambda row: row[-1])
    if loss > limit:
        raise UserError(
            f"the int8 model is not written: it loses {loss:.2f} points of AP ({name}), more than "
            f"{limit:g}; take more --calibration-images, or accept it with --max-ap-loss "
            f"{math.ceil(loss * 10) / 10:g}"
        )


class CalibrationImages:
    """Some images of the training sets, as a test loader gives them; read anew in each pass."""

    def __init__(self, cfg: CfgNode, count: int) -> None:
        """Draw images that have annotations, always the same ones.

        Args:
            cfg: whose DATASETS.TRAIN is drawn from, at INPUT.MIN_SIZE_TEST.
            count: how many; all where there are fewer.

        Raises:
            UserError: if DATASETS.TRAIN is empty, or names a set that is not there.
        """
        if not cfg.DATASETS.TRAIN:
            raise UserError("int8 is calibrated on training images, and DATASETS.TRAIN is empty")
        require_registered(cfg.DATASETS.TRAIN)
        for name in cfg.DATASETS.TRAIN:
            require_files(name)
        records = training_records(cfg)
        chosen = np.random.default_rng(0).permutation(len(records))[:count]
        self._records = [records[i] for i in chosen]
        self._mapper = NamingDatasetMapper(cfg, False)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        for record in self._records:
            yield [self._mapper(copy.deepcopy(record))]
