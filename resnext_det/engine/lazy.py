"""The main job from a Python config (Detectron2's LazyConfig)."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import create_ddp_model, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..deploy.options import parse_optimization
from ..deploy.quantized import optimize_as
from ..errors import UserError, one_line
from ..evaluation import CocoEvaluator
from ..evaluation.training import metrics_if_any
from ..weights import StrictCheckpointer
from .checks import refuse_frozen_random_layers
from .job import format_results
from .launch import custom_pairs, evaluation_settings
from .lazy_config import check_lazy_config, lazy_settings, load_lazy_config, without_sync_bn_in
from .progress import progress_bar, run_writers
from .results import set_aside_run, write_results
from .resuming import announce_start, choose_checkpoint, forget_after
from .setup import set_up_logs
from .step import NonFiniteLossError, TrainingStep
from .stopping import (
    StopOnSignal,
    StopSignals,
    TrainingStopped,
    resume_command,
    save_last,
)

logger = logging.getLogger(__name__)


def train_or_evaluate_lazy(args: argparse.Namespace) -> dict:
    """Do what the command line says, and write `train.output_dir`/results.json.

    Args:
        args: parsed by `argument_parser()`; `opts` are `key=value` overrides.

    Returns:
        On the main process the results, {task: {metric: percent}}; elsewhere an empty dict.

    Raises:
        UserError: for a mistake in the config, the data or the weights.
    """
    parse_optimization(args, int8=False)  # a mistake costs no time
    cfg = prepare_lazy(args)
    try:
        model = instantiate(cfg.model).to(cfg.train.device)
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"the config's model cannot be built: {reason}") from error
    with_keypoints = OmegaConf.select(cfg, "model.roi_heads.keypoint_head") is not None
    if cfg.train.device == "cpu" and not with_keypoints:  # whose loss needs contiguous maps
        model = model.to(memory_format=torch.channels_last)  # grouped convolutions are faster
    if args.eval_only:
        checkpointer = _checkpointer(cfg, model)
        checkpointer.whole_model = True
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        weights = Path(cfg.train.init_checkpoint)
        if args.resume and checkpointer.has_checkpoint():
            weights = Path(checkpointer.get_checkpoint_file())
        elif not cfg.train.init_checkpoint:
            logger.warning("train.init_checkpoint is empty: evaluating random weights")
        # of the run that they were trained in, to judge a low AP by
        metrics = metrics_if_any(weights.parent / "metrics.json") if weights.is_file() else ()
        if args.optimize is not None:
            model = optimize_as(model, args.optimize)
        results = evaluate(cfg, model, metrics)
    else:
        signals = getattr(args, "signals", None)
        results = train(cfg, model, resume=args.resume, signals=signals)
    if results is None or not comm.is_main_process():
        return {}
    folder = Path(cfg.train.output_dir)
    test = cfg.dataloader.test.dataset.names
    write_results(results, folder / "results.json", {test: folder / "inference"} if results else {})
    logger.info("results on %s, in percent:\n%s", test, format_results(results))
    return results


def train(
    cfg: DictConfig,
    model: nn.Module,
    *,
    resume: bool = False,
    signals: StopSignals | None = None,
) -> dict | None:
    """Train `model` for `train.max_iter` iterations and evaluate it.

    The order of the images is the config's own loader's, and begins anew when a run is resumed.
    `signals` are the job's; None for ones that are heard in training only.

    Returns:
        The last evaluation's results on the main process; None if a signal stopped the run.

    Raises:
        UserError: if the run to resume is finished, or the weights do not fit.
    """
    folder = Path(cfg.train.output_dir)
    trainer = _build_trainer(cfg, model)
    checkpointer = _checkpointer(cfg, trainer.model, trainer=trainer)
    if resume:
        choose_checkpoint(folder)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume else 0
    announce_start(checkpointer, start, cfg.train.max_iter)
    if not resume and not cfg.train.init_checkpoint:
        refuse_frozen_random_layers(model, "freeze_at of the backbone")

    comm.synchronize()  # all have read their weights
    if comm.is_main_process():
        if resume:
            forget_after(folder / "metrics.json", start)
        else:
            set_aside_run(folder)
    results = {}

    def test() -> dict:
        finished = trainer.iter + 1 >= cfg.train.max_iter
        metrics = metrics_if_any(folder / "metrics.json") if finished else None
        results.update(evaluate(cfg, trainer.model, metrics))
        return results

    signals = signals or StopSignals()
    trainer.register_hooks(_hooks(cfg, trainer, checkpointer, test, signals))
    with signals.noted():
        try:
            trainer.train(start, cfg.train.max_iter)
        except TrainingStopped as stopped:
            save_last(checkpointer, trainer.iter)
            command = resume_command()
            logger.warning("%s; go on with:\n  %s", stopped.reason, command)
            return None
        except NonFiniteLossError as error:
            raise UserError(f"training diverged at iteration {trainer.iter}: {error}") from error
    return results


def _hooks(
    cfg: DictConfig,
    trainer: TrainingStep,
    checkpointer: StrictCheckpointer,
    test: Callable[[], dict],
    signals: StopSignals,
) -> list[hooks.HookBase | None]:
    scheduler = instantiate(cfg.lr_multiplier)
    main = comm.is_main_process()
    writers = run_writers(cfg.train.output_dir, cfg.train.max_iter) if main else []
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(trainer.optimizer, scheduler),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
        hooks.EvalHook(cfg.train.eval_period, test),
        hooks.PeriodicWriter(writers, cfg.train.log_period) if main else None,
        progress_bar() if main else None,
        StopOnSignal(signals),
    ]


def _checkpointer(
    cfg: DictConfig, model: nn.Module, **checkpointables: object
) -> StrictCheckpointer:
    settings, words = lazy_settings(cfg)
    return StrictCheckpointer(
        model, cfg.train.output_dir, settings=settings, words=words, **checkpointables
    )


def _build_trainer(cfg: DictConfig, model: nn.Module) -> TrainingStep:
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    options = dict(cfg.train.ddp)
    if cfg.train.device == "cpu":
        options["device_ids"] = None
    loader = instantiate(cfg.dataloader.train)
    seed = cfg.train.get("seed", -1)
    return TrainingStep(
        create_ddp_model(model, **options),
        loader,
        optimizer,
        precision=torch.float16 if cfg.train.amp.enabled else None,
        seed=seed if seed >= 0 else comm.shared_random_seed(),
    )


def evaluate(cfg: DictConfig, model: nn.Module, metrics: Sequence[Mapping] | None = None) -> dict:
    """Evaluate on `dataloader.test`; results are {task: {metric: percent}} on the main process.

    Args:
        cfg: of the run.
        model: to evaluate.
        metrics: rows of the metrics.json of the finished training, to judge a low AP by; None amid
            training.
    """
    records = instantiate(cfg.dataloader.test.dataset)
    limit = cfg.dataloader.evaluator.get("limit", 0)
    loader = instantiate({**cfg.dataloader.test, "dataset": records[: limit or None]})
    evaluator = instantiate(cfg.dataloader.evaluator)
    if isinstance(evaluator, CocoEvaluator):
        weights = cfg.train.init_checkpoint
        evaluator.diagnose = partial(evaluator.diagnose, metrics=metrics, weights=weights)
    return inference_on_dataset(model, loader, evaluator) or {}


def prepare_lazy(args: argparse.Namespace) -> DictConfig:
    """Turn command-line arguments into a checked config, and set up logs and random seeds.

    Writes `train.output_dir`/config.yaml and log.txt.

    Raises:
        UserError: for whatever in the config cannot work on this machine or data set.
    """
    if not args.config_file:
        raise UserError("--config-file is missing, e.g. configs/lazy/faster_rcnn_X50_32x4d.py")
    if any(custom_pairs(args).values()):
        raise UserError("--train-json and --val-json: a Python config names its own data sets")
    cfg = load_lazy_config(args.config_file, args.opts)
    limit, score, tta = evaluation_settings(args)
    if tta:
        raise UserError("--tta: test-time augmentation needs a YAML config, see tools/train_net.py")
    for key, value in (("limit", limit), ("score", score)):
        if value is not None:
            OmegaConf.update(cfg, f"dataloader.evaluator.{key}", value, force_add=True)
    fell_back = not torch.cuda.is_available() and cfg.train.device.startswith("cuda")
    if fell_back:
        if any(word.startswith("train.device=") for word in args.opts):
            raise UserError(f"train.device={cfg.train.device}: no GPU is visible to torch")
        cfg.train.device = "cpu"
    check_lazy_config(cfg)
    set_up_logs(cfg.train.output_dir)
    if fell_back:
        logger.warning("no GPU is visible: running on the CPU (train.device=cpu)")
    if (comm.get_world_size() == 1 or cfg.train.device == "cpu") and without_sync_bn_in(cfg.model):
        logger.warning("SyncBN needs several processes with a GPU each: plain BN in the model")
    logger.debug("environment:\n%s", collect_env_info())
    logger.debug("arguments: %s", args)
    if comm.is_main_process():
        LazyConfig.save(cfg, str(Path(cfg.train.output_dir) / "config.yaml"))
    seed = cfg.train.get("seed", -1)
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())
    return cfg
