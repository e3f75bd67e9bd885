"""What a model itself can tell of a low AP: run on a few images, fed otherwise or heard out."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from .evidence import Finding
from .suspicions import std_of

# A variant of the input has to be better by both; AP on a few images is noisy.
PROBE_FACTOR, PROBE_POINTS = 2, 5


@contextlib.contextmanager
def every_score(model: nn.Module) -> Iterator[None]:
    """Let a Detectron2 model give boxes of any score above 0, in place of its threshold's."""
    kept = [
        (module, module.test_score_thresh)
        for module in model.modules()  # of RoI heads each stage's, or the RetinaNet itself
        if hasattr(module, "test_score_thresh")
    ]
    try:
        for module, _ in kept:
            module.test_score_thresh = 0.0
        yield
    finally:
        for module, threshold in kept:
            module.test_score_thresh = threshold


def highest_score(model: nn.Module, loader: Iterable[list[dict]], images: int = 16) -> float | None:
    """The highest score of any box, whatever the model's threshold; None without any box.

    Args:
        model: of Detectron2; it is afterwards as it was.
        loader: a test loader.
        images: how many to look at, at least.
    """
    training, scores = model.training, []
    try:
        model.eval()
        with torch.no_grad(), every_score(model):
            for inputs in _first(loader, images):
                scores += [output["instances"].scores.cpu() for output in model(inputs)]
    finally:
        model.train(training)
    found = torch.cat([torch.zeros(0), *scores])
    return float(found.max()) if len(found) else None


def _first(loader: Iterable[list[dict]], images: int) -> Iterator[list[dict]]:
    seen = 0
    for inputs in loader:
        yield inputs
        seen += len(inputs)
        if seen >= images:
            return


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
        for divisor in (stds, list(std_of(order)) if unit else [1.0, 1.0, 1.0]):
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
        evaluator = evaluator_factory()
        evaluator.reset()
        for inputs in _first(loader_factory(variant), images):
            evaluator.process(inputs, model(inputs))
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
