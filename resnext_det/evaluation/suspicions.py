"""Causes of a low AP outside of the detections: the input's format, training, random weights."""

import statistics
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..paper import TABLE8, TABLE8_IMAGES, table8_row
from .evidence import Finding

# Percent. No detector that works stays below; the quick demo's is above after 200 iterations.
SUSPICIOUS_AP = 5
# Percent; above it a detector has learned, whatever the data: the paper's best on COCO has 30.0.
LEARNED_AP = 30
# Points: seeds and joint training move AP by less than one, a wrong input by 4 and more.
PAPER_TOLERANCE = 3
# Less of the schedule than this leaves out its learning-rate decays, where most of AP is made.
ENOUGH_OF_SCHEDULE = 0.5
# Fall of the loss within the last quarter of training; a finished schedule's is a few percent.
STEEP_FALL = 0.15
MIN_ROWS = 16  # of metrics.json, else a quarter of it is too few to average
FEW_ITERATIONS = 100  # below, a random head has learned no classes whatever the learning rate

_IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, of images of 0..255
_IMAGENET_STD = (58.395, 57.12, 57.375)


def suspect_input(cfg: CfgNode) -> Finding | None:
    """Look for an input format, mean and std that cannot go together.

    Args:
        cfg: of the evaluation.

    Returns:
        A finding "input_suspected" for a mean in the other channel order than INPUT.FORMAT, a
        mean or std for images of 0..1 (Detectron2's are 0..255), or a ResNeXt without std.
    """
    form = cfg.INPUT.FORMAT
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    in_order = _IMAGENET_MEAN if form == "RGB" else _IMAGENET_MEAN[::-1]
    shown = f"INPUT.FORMAT {form}, PIXEL_MEAN {mean}, PIXEL_STD {std}"
    if form in ("RGB", "BGR") and _close(mean, in_order[::-1]):
        why = f"the mean is ImageNet's in the order {'BGR' if form == 'RGB' else 'RGB'}"
        right = f"MODEL.PIXEL_MEAN {list(in_order)}"
    elif (max(mean) <= 1 and any(mean)) or max(std) < 1:
        why = "mean or std is for images of 0..1, and Detectron2's are 0..255"
        right = "MODEL.PIXEL_MEAN and PIXEL_STD times 255"
    elif cfg.MODEL.RESNETS.NUM_GROUPS > 1 and all(value == 1 for value in std):
        why = "all public ResNeXt weights divide by a std near 57, and this one is 1"
        right = f"MODEL.PIXEL_STD {list(std_of(form))}"
    else:
        return None
    return Finding(
        "input_suspected",
        f"the images are probably normalised in another way than in training: {why} ({shown})",
        f"set {right}, or whatever the weights were trained with; docs/weights.md lists it",
    )


def _close(values: Sequence[float], reference: Sequence[float]) -> bool:
    return all(abs(a - b) < 1 for a, b in zip(values, reference, strict=True))


def std_of(form: str) -> tuple[float, ...]:
    """ImageNet's standard deviations of images of 0..255 in a channel order, RGB or BGR."""
    return _IMAGENET_STD if form == "RGB" else _IMAGENET_STD[::-1]


def suspect_training(
    metrics: Sequence[Mapping], *, max_iter: int | None = None, weights: str | None = None
) -> Finding | None:
    """Look for training that was too short.

    Args:
        metrics: rows of the run's metrics.json, each with `iteration`; none where it is not known.
        max_iter: how many iterations that run was to have; None if it is not known.
        weights: the file that the config names for the model; None where there is no model.

    Returns:
        A finding "undertrained" for random weights, hardly an iteration, an unfinished schedule,
        or a loss that still fell at the end.
    """
    if not metrics:
        if weights != "":
            return None
        return Finding(
            "undertrained",
            "no weights are named: a model that was not trained in this run has random weights",
            "name the trained weights, e.g. MODEL.WEIGHTS OUTPUT_DIR/model_final.pth",
        )
    # an evaluation's row has the number of iterations, a loss's the iteration's own, from 0
    done = max(row["iteration"] + ("total_loss" in row) for row in metrics)
    if max_iter is not None and done < ENOUGH_OF_SCHEDULE * max_iter:
        why = f"training stopped at iteration {done} of {max_iter}"
        remedy = "go on with --resume"
    elif done < FEW_ITERATIONS:
        why = f"training had {done} iterations"
        remedy = "train longer: raise SOLVER.MAX_ITER and SOLVER.STEPS"
    elif (fall := _fall_at_the_end(metrics)) > STEEP_FALL:
        why = f"the loss still fell by {100 * fall:.0f}% in the last quarter of {done} iterations"
        remedy = "train longer: raise SOLVER.MAX_ITER and SOLVER.STEPS, or SOLVER.BASE_LR"
    else:
        return None
    return Finding("undertrained", f"the model is probably not trained enough: {why}", remedy)


def _fall_at_the_end(metrics: Sequence[Mapping]) -> float:
    rows = {r["iteration"]: r["total_loss"] for r in metrics if r.get("total_loss") is not None}
    losses = [rows[iteration] for iteration in sorted(rows)]
    if len(losses) < MIN_ROWS:
        return 0.0
    eighth = len(losses) // 8
    before = statistics.median(losses[-2 * eighth : -eighth])
    return 1 - statistics.median(losses[-eighth:]) / before if before > 0 else 0.0


def compare_with_paper(cfg: CfgNode, ap: float, images: int) -> Finding | None:
    """Compare the box AP of a config of the paper's Table 8 with the published one.

    Args:
        cfg: of the evaluation.
        ap: of boxes, percent.
        images: how many were evaluated; of a part of COCO minival AP is not comparable.

    Returns:
        A finding "far_below_paper".
    """
    row = table8_row(cfg)
    if row is None or images != TABLE8_IMAGES or not ap < TABLE8[row]["AP"] - PAPER_TOLERANCE:
        return None
    paper = TABLE8[row]["AP"]
    return Finding(
        "far_below_paper",
        f"AP {ap:.1f} is {paper - ap:.1f} points below the paper's {paper} of {row} (Table 8)",
        "check that the whole schedule was trained (batch, learning rate, iterations) from the "
        "weights that the config names, with their input format; docs/diagnosis.md has a list",
    )
