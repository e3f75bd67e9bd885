"""The main job: train a detector and evaluate it, or evaluate alone."""

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from detectron2.utils import comm
from tabulate import tabulate

from ..weights import StrictCheckpointer, settings_of
from .setup import prepare
from .trainer import Trainer, set_aside_metrics, write_results

logger = logging.getLogger(__name__)

# Metrics of detections, and of an RPN's proposals, with the names that they are shown by.
_METRICS = {
    "AP": "AP",
    "AP50": "AP@0.5",
    "AP75": "AP@0.75",
    "APs": "AP small",
    "APm": "AP medium",
    "APl": "AP large",
}
_PROPOSAL_METRICS = {
    "AR@100": "AR@100",
    "ARs@100": "small",
    "ARm@100": "medium",
    "ARl@100": "large",
    "AR@1000": "AR@1000",
}


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
        checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, settings=settings_of(cfg))
        checkpointer.whole_model = True
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
            logger.warning("MODEL.WEIGHTS is empty: evaluating random weights")
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if comm.is_main_process() and not args.resume:
            set_aside_metrics(Path(cfg.OUTPUT_DIR))
        trainer.train()
        results = trainer._last_eval_results
    if not comm.is_main_process():
        return {}
    write_results(results, Path(cfg.OUTPUT_DIR) / "results.json")
    if not results:
        logger.warning("DATASETS.TEST is empty, or has no annotations: nothing was evaluated")
        return results
    logger.info(
        "results on %s, in percent:\n%s", ", ".join(cfg.DATASETS.TEST), format_results(results)
    )
    return results


def format_results(results: Mapping) -> str:
    """Print results as a table in percent, a row a task: COCO AP (mean over IoU 0.5..0.95), AP@0.5.

    An RPN's `box_proposals` get the average recall of 100 and 1000 proposals an image instead.
    Metrics without ground truth, such as APl without large objects, print as n/a.
    """
    several = any(isinstance(v, Mapping) for value in results.values() for v in value.values())
    datasets = results.items() if several else (("", results),)
    proposals = any("box_proposals" in tasks for _, tasks in datasets)
    names = _PROPOSAL_METRICS if proposals else _METRICS
    rows = []
    for dataset, tasks in datasets:
        for task, metrics in tasks.items():
            shown = [metrics.get(name, math.nan) for name in names]
            cells = ["n/a" if math.isnan(v) else f"{v:.2f}" for v in shown]
            rows.append([f"{dataset} {task}".strip(), *cells])
    headers = ["", *names.values()]
    return tabulate(rows, headers, tablefmt="simple", stralign="right", disable_numparse=True)
