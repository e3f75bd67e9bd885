"""The main job: train a detector and evaluate it, or evaluate alone."""

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..data.skipping import SKIPPED
from ..deploy.options import Optimization, parse_optimization
from ..errors import UserError
from ..evaluation import evaluation_folder
from ..evaluation.training import metrics_if_any
from ..modeling import saved_module
from ..weights import StrictCheckpointer, settings_of
from .averaging import load_average
from .failures import explain_in_evaluation
from .optimized import evaluate_optimized
from .probing import try_other_inputs
from .record import add_start, describe_start
from .results import remove_unfinished, set_aside_run, write_results
from .resuming import is_evaluated
from .schedule import Reference
from .setup import prepare, write_config
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
_TASKS = ("bbox", "segm", "keypoints", "box_proposals")


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
    optimization = parse_optimization(args)
    cfg = prepare(args)
    if args.again and comm.all_gather(is_evaluated(Path(cfg.OUTPUT_DIR)))[0]:
        logger.info("the run is finished already")  # a machine joined as it ended, say
        return {}
    if args.eval_only:
        results = _evaluate(cfg, resume=args.resume, optimization=optimization)
    else:
        results = train(cfg, args)
    if results is None or not comm.is_main_process():
        return {}
    folders = {name: evaluation_folder(cfg, name) for name in cfg.DATASETS.TEST}
    write_results(results, Path(cfg.OUTPUT_DIR) / "results.json", folders if results else {})
    if not results:
        logger.warning("DATASETS.TEST is empty, or has no annotations: nothing was evaluated")
        return results
    logger.info(
        "results on %s, in percent:\n%s", ", ".join(cfg.DATASETS.TEST), format_results(results)
    )
    return results


def _evaluate(cfg: CfgNode, *, resume: bool, optimization: Optimization | None) -> dict:
    """Evaluate the config's weights, or with `resume` those of the newest checkpoint."""
    model = Trainer.build_model(cfg)
    weights = load_to_evaluate(cfg, model, resume=resume)
    # of the run that they were trained in, to judge a low AP by
    metrics = metrics_if_any(weights.parent / "metrics.json") if weights.is_file() else []

    def evaluate(detector: nn.Module) -> dict:
        evaluators = [Trainer.build_evaluator(cfg, name, metrics) for name in cfg.DATASETS.TEST]
        results = Trainer.test(cfg, detector, evaluators)
        try_other_inputs(cfg, detector, results)
        return results

    try:
        if optimization is None:
            return evaluate(model)
        return evaluate_optimized(cfg, model, optimization, evaluate)
    except Exception as error:
        if message := explain_in_evaluation(error, cfg):
            raise UserError(message) from error
        raise


def load_to_evaluate(cfg: CfgNode, model: nn.Module, *, resume: bool) -> Path:
    """Load the whole of a model: the config's weights, or the newest checkpoint's.

    Args:
        cfg: of the run.
        model: built from it.
        resume: whether `OUTPUT_DIR`'s newest checkpoint goes first; of a run that averages weights
            the average.

    Returns:
        The file; "." for random weights.

    Raises:
        UserError: if it does not fit.
    """
    model = saved_module(model)
    checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, settings=settings_of(cfg))
    checkpointer.whole_model = True
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if resume and checkpointer.has_checkpoint():
        weights = Path(checkpointer.get_checkpoint_file())
        if cfg.SOLVER.EMA_DECAY:
            load_average(model, weights)
        return weights
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: evaluating random weights")
    return Path(cfg.MODEL.WEIGHTS)


def train(
    cfg: CfgNode, args: argparse.Namespace, trainer_class: type[Trainer] = Trainer
) -> dict | None:
    """Train, and return the last evaluation's results; None if the run is to go on later.

    Args:
        cfg: of `prepare` or `begin`.
        args: of the command line, which these have changed.
        trainer_class: what trains.

    Raises:
        UserError: see `Trainer`.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not args.resume and comm.is_main_process():
        (folder / SKIPPED).unlink(missing_ok=True)  # an earlier run's, whose images may be mended
    comm.synchronize()
    trainer = trainer_class(cfg, getattr(args, "signals", None))
    trainer.reference = Reference.read(args.config_file)
    trainer.resume_or_load(resume=args.resume)
    comm.synchronize()  # all have read their weights
    if comm.is_main_process():
        if not args.resume:
            set_aside_run(folder)
        start = describe_start(
            trainer.describe_data(),
            seed=trainer.seed,
            device=cfg.MODEL.DEVICE,
            changes=args.config_changes,
            launchers=args.launchers,
        )
        write_config(cfg)
        add_start(folder, start, resumed=args.resume)
        remove_unfinished(folder)
    trainer.train()
    if trainer.stopped is not None and trainer.stopped.resumable:
        return None
    if cfg.SOLVER.EMA_DECAY:
        trainer.checkpointer.save_weights("model_final_ema", trainer.evaluated_weights())
        logger.info("the results are those of the averaged weights, in model_final_ema.pth")
    return trainer._last_eval_results


def format_results(results: Mapping) -> str:
    """Print results as a table in percent, a row a task: COCO AP (mean over IoU 0.5..0.95), AP@0.5.

    An RPN's `box_proposals` get the average recall of 100 and 1000 proposals an image instead.
    Metrics without ground truth, such as APl without large objects, print as n/a.
    """
    several = not any(task in _TASKS for task in results)
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
