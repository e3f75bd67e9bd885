"""Reports of training that failed: what happened, on which data, and what to do about it."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from ..atomic import replacing
from ..errors import one_line
from ..modeling.classifier import is_classifier
from ..weights.files import save_atomically
from .progress import peak_memory_mb
from .replay import pack_batch
from .schedule import Reference
from .step import NonFiniteLossError

logger = logging.getLogger(__name__)

_THINNEST = 1.0  # pixels; a box of less is suspicious


@dataclass(frozen=True)
class Situation:
    """Where a run stood when it failed.

    Attributes:
        cfg: of the run.
        iteration: counted from 0.
        rate: the learning rate.
        batch: inputs of the last forward pass of this process, or of the one that failed.
        part: which of the accumulated passes of the iteration that was, from 0.
        weights: how much of the model was loaded, in words.
        seed: of the run.
        last_losses: total losses of the iterations before, the newest last; main process only.
        reference: what the config file says of batch and rate; None if unknown.
    """

    cfg: CfgNode
    iteration: int
    rate: float
    batch: Sequence[Mapping]
    part: int
    weights: str
    seed: int
    last_losses: Sequence[float] = ()
    reference: Reference | None = None

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.cfg.OUTPUT_DIR)


def suspicious_boxes(batch: Sequence[Mapping]) -> list[dict]:
    """Training boxes that are thin, outside their image, or not finite.

    Args:
        batch: a model's training inputs; boxes are (x1, y1, x2, y2) in pixels of the input.

    Returns:
        {"file_name", "box", "why"} of each.
    """
    found = []
    for item in batch:
        instances = item.get("instances")
        if instances is None or not instances.has("gt_boxes"):
            continue
        height, width = instances.image_size
        if instances.gt_boxes.tensor.shape[1] != 4:  # rotated ones
            continue
        for box in instances.gt_boxes.tensor.tolist():
            x1, y1, x2, y2 = box
            if not all(map(math.isfinite, box)):
                why = "not finite"
            elif x2 - x1 < _THINNEST or y2 - y1 < _THINNEST:
                why = f"{x2 - x1:.3g} x {y2 - y1:.3g} pixels"
            elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
                why = f"outside the image of {width} x {height}"
            else:
                continue
            shown = [v if math.isfinite(v) else str(v) for v in box]  # JSON has no NaN
            found.append({"file_name": str(item.get("file_name")), "box": shown, "why": why})
    return found


def explain_non_finite(
    situation: Situation, error: NonFiniteLossError, weights: Mapping[str, Tensor]
) -> str:
    """Report a loss that is not finite, and write `nan_batch.json` and `nan_batch.pth`.

    The second holds what `tools/replay_batch.py` needs. Of several processes each whose loss is not
    finite writes its own, e.g. `nan_batch.rank1.pth`.

    Args:
        situation: where the run stood.
        error: what was raised.
        weights: the model's state dict.

    Returns:
        One line for the user, the same on every process that raised; the details are logged.
    """
    report = _non_finite_report(situation, error.losses)
    if report["terms_not_finite"]:
        _save_batch(situation, report, weights)
    reports = comm.all_gather(report) if error.everywhere else [report]
    bad = next(r for r in reports if r["terms_not_finite"])
    if report["terms_not_finite"] or comm.is_main_process():
        lines = [f"{key.replace('_', ' ')}: {_shown(value)}" for key, value in bad.items()]
        logger.error("the loss is not finite:\n  %s", "\n  ".join(lines))
    file = situation.folder / f"nan_batch{_suffix(bad['process'])}"
    boxes = bad["suspicious_boxes"]
    cause = "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS"
    if boxes:
        cause = (
            f"{len(boxes)} boxes of the batch are suspicious, e.g. in {boxes[0]['file_name']}: "
            f"{boxes[0]['why']} (tools/check_data.py finds all)"
        )
    return (
        f"training diverged at iteration {bad['iteration']}: "
        f"{', '.join(bad['terms_not_finite'])} not finite, learning rate {situation.rate:.3g}, "
        f"{situation.cfg.SOLVER.IMS_PER_BATCH} images a step, "
        f"{bad['learning_rate_against_config']}; {cause}. Details: {file}.json; again: "
        f"python tools/replay_batch.py {file}.pth"
    )


def _save_batch(situation: Situation, report: Mapping, weights: Mapping[str, Tensor]) -> None:
    suffix = _suffix(comm.get_rank())
    with replacing(situation.folder / f"nan_batch{suffix}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    content = {
        "model": dict(weights),
        "batch": pack_batch(situation.batch),
        "iteration": situation.iteration,
        "seed": situation.seed,
        "part": situation.part,
        "rank": comm.get_rank(),
        "precision": _precision(situation.cfg),
    }
    save_atomically(content, situation.folder / f"nan_batch{suffix}.pth")


def _suffix(rank: int) -> str:
    return f".rank{rank}" if rank else ""


def _precision(cfg: CfgNode) -> str:
    """The type of mixed precision; "" for none."""
    return cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else ""


def _non_finite_report(situation: Situation, losses: Mapping[str, float]) -> dict:
    cfg = situation.cfg
    against = "the config's own rate is unknown"
    if situation.reference is not None:
        excess = situation.reference.excess(cfg)
        against = f"{excess:.3g} times the config's learning rate per image"
    return {
        "iteration": situation.iteration + 1,  # as the progress line counts
        "process": comm.get_rank(),
        "losses": {k: v if math.isfinite(v) else str(v) for k, v in losses.items()},
        "terms_not_finite": [k for k, v in losses.items() if not math.isfinite(v)],
        "last_total_losses": [float(f"{value:.6g}") for value in situation.last_losses],
        "learning_rate": situation.rate,
        "learning_rate_against_config": against,
        "mixed_precision": _precision(cfg) or "off",
        "weights": situation.weights,
        "files": [str(item.get("file_name")) for item in situation.batch],
        "suspicious_boxes": suspicious_boxes(situation.batch),
    }


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, for a GPU or the CPU, or Python had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def explain_out_of_memory(situation: Situation, accumulate: int) -> str:
    """One line: what did not fit; and the remedies in order, which are logged.

    Args:
        situation: where the run stood.
        accumulate: steps of gradient accumulation.
    """
    shapes = [tuple(item["image"].shape[1:]) for item in situation.batch if "image" in item]
    size = "x".join(str(max(side)) for side in zip(*shapes, strict=True)) if shapes else "?"
    remedies = [f"{n}. {text}" for n, text in enumerate(_remedies(situation, accumulate), 1)]
    images = len(situation.batch)
    logger.error("out of memory; what helps, in this order:\n  %s", "\n  ".join(remedies))
    return (
        f"out of memory at iteration {situation.iteration + 1}: {images} images of up to {size} "
        f"pixels in this process, peak {peak_memory_mb():.0f} MB. {' '.join(remedies)}"
    )


def _remedies(situation: Situation, accumulate: int) -> list[str]:
    cfg = situation.cfg
    remedies = []
    if not cfg.SOLVER.AMP.ENABLED:
        remedies.append("SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16 (mixed precision).")
    if not cfg.MODEL.RESNEXT.CHECKPOINT:
        remedies.append("MODEL.RESNEXT.CHECKPOINT True (the same results, slower).")
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    share = batch // processes
    finer = next((n for n in range(accumulate + 1, share + 1) if share % n == 0), None)
    if finer:
        remedies.append(
            f"SOLVER.ACCUM_STEPS {finer} ({share // finer} images at a time, the same learning "
            "rate)."
        )
    if batch > processes:
        half = max(processes, batch // 2 // processes * processes)
        rate = (
            situation.reference.rate_for(half)
            if situation.reference
            else cfg.SOLVER.BASE_LR * half / batch
        )
        remedies.append(
            f"--auto-scale SOLVER.IMS_PER_BATCH {half} (learning rate {rate:.4g} and a longer "
            "schedule)."
        )
    if is_classifier(cfg):
        remedies.append(f"smaller images: CLASSIFIER.SIZE (now {cfg.CLASSIFIER.SIZE}).")
        return remedies
    remedies.append(
        f"smaller images: INPUT.MIN_SIZE_TRAIN (now {cfg.INPUT.MIN_SIZE_TRAIN}) and "
        f"INPUT.MAX_SIZE_TRAIN ({cfg.INPUT.MAX_SIZE_TRAIN}), which costs accuracy."
    )
    return remedies


def explain_in_evaluation(error: BaseException, cfg: CfgNode) -> str | None:
    """One line for an evaluation without training that ran out of memory or lost a process."""
    if is_out_of_memory(error):
        if is_classifier(cfg):
            sizes = f"CLASSIFIER.SIZE (now {cfg.CLASSIFIER.SIZE})"
        else:
            sizes = (
                f"INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST}) and INPUT.MAX_SIZE_TEST "
                f"({cfg.INPUT.MAX_SIZE_TEST})"
            )
        return (
            f"out of memory in the evaluation, peak {peak_memory_mb():.0f} MB: use smaller images, "
            f"{sizes}, which changes the results"
        )
    return explain_dead_worker(error) or explain_lost_process(error)


def explain_dead_worker(error: BaseException) -> str | None:
    """One line for a data worker that was killed; None for anything else."""
    text = str(error)
    died = "is killed by signal" in text or "exited unexpectedly" in text
    # one that raised an error hands on its traceback
    if not isinstance(error, RuntimeError) or not died or text.startswith("Caught "):
        return None
    return (
        f"a data worker died ({one_line(error)}), most often for want of memory: lower "
        "DATALOADER.NUM_WORKERS, then go on with --resume"
    )


def explain_lost_process(error: BaseException) -> str | None:
    """One line where another process of the job cannot be reached; None for anything else."""
    text = str(error)
    lost = isinstance(error, dist.DistError) or "/gloo/" in text
    if not isinstance(error, RuntimeError) or not lost:
        return None
    return f"another process of the job died, or cannot be reached ({one_line(error)})"
