"""The main job: train a detector and evaluate it, or evaluate alone."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from detectron2.utils import comm

from .setup import prepare
from .trainer import Trainer, warn_of_frozen_random_layers, write_results
from ..weights import StrictCheckpointer

logger = logging.getLogger(__name__)


def train_or_evaluate(args: argparse.Namespace) -> dict:
    """Do what the command line says, and write `OUTPUT_DIR/results.json`.

    Args:
        args: parsed by `argument_parser()`; `eval_only` skips training.

    Returns:
        On the main process the results, {task: {metric: percent}}, or {dataset: {task: ...}} for
        several test sets; elsewhere an empty dict.

    Raises:
        UserError: for a mistake in the config, the data or the weights.
    """
    cfg = prepare(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.whole_model = True
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        if not cfg.MODEL.WEIGHTS and not args.resume:
            logger.warning("MODEL.WEIGHTS is empty: evaluating random weights")
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        results = trainer._last_eval_results
    if not comm.is_main_process():
        return {}
    write_results(results, Path(cfg.OUTPUT_DIR) / "results.json")
    logger.info("%s", format_results(results))
    return results


def format_results(results: Mapping) -> str:
    """One line a task: COCO AP (averaged over IoU 0.5 to 0.95) and AP@0.5, in percent."""
    lines = []
    for name, value in results.items():
        if any(isinstance(v, Mapping) for v in value.values()):  # several test sets
            lines += [f"{name}: {line}" for line in format_results(value).split("\n")]
        elif "AP" in value:
            lines.append(f"{name}: COCO AP {value['AP']:.2f}, AP@0.5 {value['AP50']:.2f}")
    return "\n".join(lines)
