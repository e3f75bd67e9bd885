"""The main job: train a detector and evaluate it, or evaluate alone."""

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate

from ..weights import StrictCheckpointer, settings_of
from .record import add_start, describe_start
from .results import set_aside_run, write_results
from .schedule import Reference
from .setup import prepare
from .trainer import Trainer

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
        results = _train(cfg, args)
    if results is None or not comm.is_main_process():
        return {}
    write_results(results, Path(cfg.OUTPUT_DIR) / "results.json")
    if not results:
        logger.warning("DATASETS.TEST is empty, or has no annotations: nothing was evaluated")
        return results
    logger.info(
        "results on %s, in percent:\n%s", ", ".join(cfg.DATASETS.TEST), format_results(results)
    )
    return results


def _train(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Train, and return the last evaluation's results; None if the run is to go on later."""
    folder = Path(cfg.OUTPUT_DIR)
    trainer = Trainer(cfg)
    trainer.reference = Reference.read(args.config_file)
    trainer.resume_or_load(resume=args.resume)
    comm.synchronize()  # all have read their weights
    if comm.is_main_process():
        if not args.resume:
            set_aside_run(folder)
        datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        start = describe_start(
            datasets, seed=trainer.seed, device=cfg.MODEL.DEVICE, changes=args.config_changes
        )
        add_start(folder, start, resumed=args.resume)
    trainer.train()
    if cfg.SOLVER.EMA_DECAY and trainer.stopped is None:
        trainer.checkpointer.save_weights("model_final_ema", trainer.evaluated_weights())
        logger.info("the results are those of the averaged weights, in model_final_ema.pth")
    if trainer.stopped is not None and trainer.stopped.resumable:
        return None
    return trainer._last_eval_results


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
