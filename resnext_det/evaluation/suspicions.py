"""Causes of a low AP outside of the detections: the input's format, training, random weights."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

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
# A variant of the input has to be better by both; AP on a few images is noisy.
PROBE_FACTOR, PROBE_POINTS = 2, 5

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
        right = f"MODEL.PIXEL_STD {list(_std(form))}"
    else:
        return None
    return Finding(
        "input_suspected",
        f"the images are probably normalised in another way than in training: {why} ({shown})",
        f"set {right}, or whatever the weights were trained with; docs/weights.md lists it",
    )


def _close(values: Sequence[float], reference: Sequence[float]) -> bool:
    return all(abs(a - b) < 1 for a, b in zip(values, reference, strict=True))


def _std(form: str) -> tuple[float, ...]:
    return _IMAGENET_STD if form == "RGB" else _IMAGENET_STD[::-1]


def suspect_training(cfg: CfgNode | None, metrics: Sequence[Mapping]) -> Finding | None:
    """Look for training that was too short.

    Args:
        cfg: of the run, or None.
        metrics: rows of its metrics.json, each with `iteration`; none where it is not known.

    Returns:
        A finding "undertrained" for random weights, hardly an iteration, an unfinished schedule,
        or a loss that still fell at the end.
    """
    if not metrics:
        if cfg is None or cfg.MODEL.WEIGHTS:
            return None
        return Finding(
            "undertrained",
            "MODEL.WEIGHTS is empty: a model that was not trained in this run has random weights",
            "name the trained weights, e.g. MODEL.WEIGHTS OUTPUT_DIR/model_final.pth",
        )
    # an evaluation's row has the number of iterations, a loss's the iteration's own, from 0
    done = max(row["iteration"] + ("total_loss" in row) for row in metrics)
    planned = cfg.SOLVER.MAX_ITER if cfg is not None else None
    if planned and done < ENOUGH_OF_SCHEDULE * planned:
        why = f"training stopped at iteration {done} of {planned}"
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


def input_variants(cfg: CfgNode) -> list[tuple[str, CfgNode]]:
    """Other ways to feed the images: channels in the other order, PIXEL_STD 1 against ImageNet's.

    Args:
        cfg: INPUT.FORMAT RGB or BGR.

    Returns:
        (KEY VALUE overrides, config) of each; none for another format.
    """
    form = cfg.INPUT.FORMAT
    if form not in ("RGB", "BGR"):
        return []
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    other = "BGR" if form == "RGB" else "RGB"
    unit = all(value == 1 for value in std)
    orders = [(form, mean, std), (other, mean, std)]
    if mean != mean[::-1] or std != std[::-1]:
        orders.append((other, mean[::-1], std[::-1]))
    variants = []
    for order, means, stds in orders:
        for divisor in (stds, list(_std(order)) if unit else [1.0, 1.0, 1.0]):
            new = {"INPUT.FORMAT": order, "MODEL.PIXEL_MEAN": means, "MODEL.PIXEL_STD": divisor}
            old = {"INPUT.FORMAT": form, "MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std}
            changes = {key: value for key, value in new.items() if value != old[key]}
            if changes:
                variant = cfg.clone()
                variant.defrost()
                variant.merge_from_list(list(itertools.chain(*changes.items())))
                words = " ".join(f"{k} {str(v).replace(' ', '')}" for k, v in changes.items())
                variants.append((words, variant))
    return variants


def probe_input(evaluate: Callable[[CfgNode], float], cfg: CfgNode) -> Finding | None:
    """Try whether the model is better with its images fed in another way.

    Args:
        evaluate: AP in percent on a few images, always the same, under a config that differs in
            INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD alone; NaN counts as 0.
        cfg: of the evaluation.

    Returns:
        A finding "input_wrong" if a variant has at least `PROBE_FACTOR` times the AP and
        `PROBE_POINTS` points more.
    """
    variants = input_variants(cfg)
    if not variants:
        return None
    configs = [cfg, *(variant for _, variant in variants)]
    base, *others = [0.0 if math.isnan(ap := evaluate(c)) else ap for c in configs]
    best = max(others)
    words = variants[others.index(best)][0]
    if best < max(PROBE_FACTOR * base, base + PROBE_POINTS):
        return None
    return Finding(
        "input_wrong",
        f"the images are fed in another way than in training: AP on a few of them is {base:.1f}, "
        f"and {best:.1f} with {words}",
        f"evaluate with {words}, or with what the weights were trained with",
    )


def probe_model(
    model: nn.Module,
    loader_factory: Callable[[CfgNode], Iterable[list[dict]]],
    evaluator_factory: Callable[[], DatasetEvaluator],
    cfg: CfgNode,
    images: int = 16,
) -> Finding | None:
    """Run `probe_input` on a Detectron2 model, which is afterwards as it was.

    Args:
        model: with buffers `pixel_mean`, `pixel_std` (3, 1, 1) and `input_format`; not wrapped.
        loader_factory: a config's test loader, always in the same order.
        evaluator_factory: a new evaluator that gives {"bbox": {"AP": percent}} over the images
            that it saw in this process: `CocoEvaluator(name, distributed=False, limit=images)`.
        cfg: of the evaluation.
        images: how many to try on, at least.
    """
    kept = model.training, model.input_format, model.pixel_mean.clone(), model.pixel_std.clone()

    def evaluate(variant: CfgNode) -> float:
        for name in ("pixel_mean", "pixel_std"):
            buffer = getattr(model, name)
            buffer.copy_(torch.tensor(variant.MODEL[name.upper()]).view_as(buffer))
        model.input_format = variant.INPUT.FORMAT
        evaluator, seen = evaluator_factory(), 0
        evaluator.reset()
        for inputs in loader_factory(variant):
            evaluator.process(inputs, model(inputs))
            seen += len(inputs)
            if seen >= images:
                break
        return evaluator.evaluate()["bbox"]["AP"]

    try:
        model.eval()
        with torch.no_grad():
            return probe_input(evaluate, cfg)
    finally:
        training, model.input_format, mean, std = kept
        model.train(training)
        model.pixel_mean.copy_(mean)
        model.pixel_std.copy_(std)
