"""Detectron2's trainer, made to stop, go on, reproduce itself and explain its failures."""

import contextlib
import errno
import logging
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import _test_loader_from_config
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from ..config import check_keys
from ..data import NamingDatasetMapper
from ..errors import UserError
from ..evaluation import CocoEvaluator, build_coco_evaluator, evaluation_folder
from ..evaluation.coco import check_test_sets, tasks_of
from ..evaluation.training import metrics_if_any
from ..modeling import saved_module
from ..modeling.build import build_detector
from ..weights import StrictCheckpointer, settings_of
from .averaging import AverageWeights, SameStatistics, norm_statistics
from .checks import refuse_frozen_random_layers
from .evaluations import Evaluation, EvaluationLog
from .failures import (
    Situation,
    explain_dead_worker,
    explain_lost_process,
    explain_non_finite,
    explain_out_of_memory,
    is_out_of_memory,
)
from .loader import build_train_loader
from .progress import KeepHistory, Throughput, progress_bar, run_writers
from .record import fingerprint
from .resuming import announce_start, choose_checkpoint, forget_after
from .schedule import Reference
from .step import NonFiniteLossError, TrainingStep
from .stopping import (
    StopOnSignal,
    StoppableEvaluator,
    StopSignals,
    TrainingStopped,
    resume_command,
    save_last,
)

logger = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LAST_LOSSES = 20  # in reports

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for this package: trains and evaluates any config on GPUs or CPUs.

    The images and the random numbers of an iteration depend on the run's seed and the iteration
    alone, so a run that was interrupted and resumed ends with the weights of one that was not.

    Attributes:
        reference: what the config file says of batch and learning rate, for reports.
        stopped: why training ended before `SOLVER.MAX_ITER`; None if it did not.

    Raises:
        UserError: for an optimiser, data set or weight file that cannot be used, or a config key
            that nobody reads.
    """

    reference: Reference | None = None
    stopped: TrainingStopped | None = None

    def __init__(self, cfg: CfgNode, signals: StopSignals | None = None) -> None:
        """
        Args:
            cfg: of the run.
            signals: the job's, which stop training; None for ones that are heard in training only.
        """
        # DefaultTrainer.__init__ ties the distributed model to a GPU and the checkpointer and the
        # iteration to its own classes; the rest is the same.
        TrainerBase.__init__(self)
        check_keys(cfg, self.known_keys())
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self._loader = self.build_train_loader(cfg)  # first: what is wrong with data shows early
        self.check_test_data(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )
        self._trainer = TrainingStep(
            model,
            self._loader,
            optimizer,
            accumulate=cfg.SOLVER.ACCUM_STEPS,
            precision=PRECISIONS[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None,
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictCheckpointer(
            saved_module(model),
            cfg.OUTPUT_DIR,
            settings=settings_of(cfg),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._signals = signals or StopSignals()
        self._done = 0  # iterations
        self._statistics = norm_statistics(self.checkpointer.model)
        self._average = None
        if cfg.SOLVER.EMA_DECAY:
            self._average = AverageWeights(self.checkpointer.model, cfg.SOLVER.EMA_DECAY)
        self.register_hooks(self.build_hooks())

    @classmethod
    def known_keys(cls) -> CfgNode | None:
        """A config with all keys that are read, for a subclass that adds some; None for ours."""
        return None

    def check_test_data(self, cfg: CfgNode) -> None:
        """Refuse test sets that could not be evaluated, before anything is trained.

        Raises:
            UserError: see `check_test_sets`.
        """
        check_test_sets(cfg.DATASETS.TEST, tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS)

    def describe_data(self) -> dict[str, dict]:
        """For each data set of the run what tells it from others, for run.json."""
        names = dict.fromkeys((*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST))
        return {name: fingerprint(name) for name in names}

    @property
    def seed(self) -> int:
        """The run's; with `SEED` -1 a random one, which checkpoints carry."""
        return self._trainer.seed

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the newest whole checkpoint in `OUTPUT_DIR`, or start from the weights.

        Raises:
            UserError: if there is nothing to resume, the run is finished and evaluated, the weights
                do not fit, or there are none for frozen layers.
        """
        folder = Path(self.cfg.OUTPUT_DIR)
        if resume:
            choose_checkpoint(folder)
        super().resume_or_load(resume)
        announce_start(self.checkpointer, self.start_iter, self.max_iter)
        if self.start_iter == 0 and not self.cfg.MODEL.WEIGHTS:
            refuse_frozen_random_layers(self.checkpointer.model)
        if resume and comm.is_main_process():
            forget_after(folder / "metrics.json", self.start_iter)

    def train(self) -> None:
        """Train from `start_iter` to `max_iter`, or until a signal or early stopping ends it.

        Raises:
            UserError: if the loss is not finite any more, memory or disk are full, or a data worker
                died.
        """
        self._loader.batch_sampler.seed = self.seed
        self._loader.batch_sampler.start = self._done = self.start_iter
        if self.start_iter == self.max_iter and not self._has_final():
            # killed between its last periodic checkpoint and this
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)
        with self._signals.noted():
            try:
                super().train()
            except TrainingStopped as stopped:
                self._stop(stopped)
            except NonFiniteLossError as error:
                weights = self.checkpointer.model.state_dict()
                message = explain_non_finite(self._situation(), error, weights)
                raise UserError(message) from error
            except Exception as error:
                self._explain(error)
            finally:
                # torch waits 5 s for each worker of a loader that is found in a cycle
                self._trainer._data_loader_iter_obj = None

    def _has_final(self) -> bool:
        return (Path(self.cfg.OUTPUT_DIR) / "model_final.pth").is_file()

    def _explain(self, error: Exception) -> None:
        """Raise a `UserError` in place of an error that a user can do something about."""
        worker = explain_dead_worker(error)
        if worker and self._signals.received:  # it was signalled as well
            self._stop(TrainingStopped(f"stopped by {self._signals.received.name}", resumable=True))
        elif message := worker or explain_lost_process(error):
            raise UserError(message) from error
        elif is_out_of_memory(error):
            message = explain_out_of_memory(self._situation(), self._trainer.accumulate)
            raise UserError(message) from error
        elif isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise UserError(
                f"{error.filename or self.cfg.OUTPUT_DIR} cannot be written: {error.strerror}"
            ) from error
        else:
            raise error

    def _stop(self, stopped: TrainingStopped) -> None:
        self.stopped = stopped
        if self.start_iter < self._done < self.max_iter:
            save_last(self.checkpointer, self._done - 1)
        where = f"after iteration {self._done} of {self.max_iter}"
        if stopped.resumable:
            logger.warning(
                "%s %s; go on from the checkpoint in %s with:\n  %s",
                *(stopped.reason, where, self.cfg.OUTPUT_DIR, resume_command()),
            )
        else:
            logger.warning("%s %s", stopped.reason, where)

    def _situation(self) -> Situation:
        histories = self.storage.histories()
        last = histories["total_loss"].values() if "total_loss" in histories else []
        return Situation(
            self.cfg,
            self.iter,
            self.optimizer.param_groups[0]["lr"],
            self._trainer.batch,
            self._trainer.part,
            self.checkpointer.summary,
            self.seed,
            [value for value, _ in last[-_LAST_LOSSES:]],
            self.reference,
        )

    def after_step(self) -> None:
        """Count the iteration, then run the hooks."""
        self._done = self.iter + 1
        super().after_step()

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Detectron2's hooks, in its order, and ours."""
        cfg, main = self.cfg, comm.is_main_process()
        folder = Path(cfg.OUTPUT_DIR)
        evaluation = Evaluation(
            cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0,
            self._evaluate,
            EvaluationLog(folder / "evaluations.json"),
            self._keep_best,
            patience=cfg.SOLVER.EARLY_STOP_PATIENCE,
        )
        return [
            hooks.IterationTimer(),
            Throughput(cfg.SOLVER.IMS_PER_BATCH),
            hooks.LRScheduler(),
            self._precise_bn(),
            SameStatistics(self._statistics) if self._statistics else None,
            self._average,  # after what changes statistics
            hooks.PeriodicCheckpointer(
                self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD or self.max_iter
            )
            if main
            else None,
            evaluation,  # after the checkpoint, which remains if it fails
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
            progress_bar() if main else None,
            KeepHistory(),
            StopOnSignal(self._signals),
        ]

    def _precise_bn(self) -> hooks.PreciseBN | None:
        cfg = self.cfg.clone()
        if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # as Detectron2 does, for memory and time
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(
            cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER
        )

    def _evaluate(self) -> dict:
        evaluators = [
            StoppableEvaluator(
                partial(self.build_evaluator, self.cfg, name, self._metrics_at_end()),
                self._signals,
            )
            for name in self.cfg.DATASETS.TEST
        ]
        with self._average.in_use() if self._average else contextlib.nullcontext():
            self._last_eval_results = self.test(self.cfg, self.model, evaluators)
        return self._last_eval_results

    def _metrics_at_end(self) -> list[dict] | None:
        """Rows of metrics.json, for a diagnosis; None amid training."""
        file = Path(self.cfg.OUTPUT_DIR) / "metrics.json"
        return metrics_if_any(file) if self._done >= self.max_iter else None

    def _keep_best(self, done: int, metric: str, value: float) -> None:
        self.checkpointer.save_weights(
            "model_best", self.evaluated_weights(), iteration=done, metric=metric, value=value
        )
        logger.info(
            "best so far: %s %.2f after %d iterations, in model_best.pth", metric, value, done
        )

    def evaluated_weights(self) -> dict[str, torch.Tensor]:
        """The model's tensors, or their moving average where there is one."""
        return self._average.weights if self._average else self.checkpointer.model.state_dict()

    def build_writers(self) -> list[EventWriter]:
        """Progress on the console, `metrics.json`, and TensorBoard events."""
        return run_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See `resnext_det.modeling.build.build_detector`."""
        return build_detector(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser that `SOLVER.OPTIMIZER` names, with Detectron2's parameter groups."""
        if cfg.SOLVER.get("OPTIMIZER", "SGD") == "SGD":
            return super().build_optimizer(cfg, model)
        groups = [
            {key: group[key] for key in ("params", "lr", "weight_decay")}
            for group in super().build_optimizer(cfg, model).param_groups
        ]
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """See `resnext_det.engine.loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, *, shared: bool = True
    ) -> DataLoader:
        """Build Detectron2's test loader, which names an image that it cannot read.

        `TEST.NUM_IMAGES` limits it to the first images. Each process gets its share of them, or all
        if they are not to be `shared`.
        """
        mapper = NamingDatasetMapper(cfg, False)
        options = _test_loader_from_config(cfg, dataset_name, mapper)
        options["dataset"] = options["dataset"][: cfg.TEST.NUM_IMAGES or None]
        # by itself the loader makes a sampler of the process's share of those that are left
        options["sampler"] = None if shared else SequentialSampler(options["dataset"])
        return build_detection_test_loader(**options)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict:
        """See `DefaultTrainer.test`; `TEST.AUG.ENABLED` evaluates with test-time augmentation."""
        if cfg.TEST.AUG.ENABLED:
            augmented = GeneralizedRCNNWithTTA(cfg, model)
            model = augmented.train(model.training)  # as it is left after an evaluation
        return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, metrics: Sequence[Mapping] | None = ()
    ) -> CocoEvaluator:
        """Build the COCO evaluator, which writes into `evaluation_folder`.

        `metrics` are rows of the run's metrics.json, to judge a low AP by; None amid training.
        """
        folder = evaluation_folder(cfg, dataset_name)
        return build_coco_evaluator(cfg, dataset_name, str(folder), metrics)

    def state_dict(self) -> dict:
        """See `DefaultTrainer.state_dict`; `iteration` is the last one that was done."""
        return {**super().state_dict(), "iteration": self._done - 1}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take an earlier run's state; where the config says otherwise now, the config holds."""
        groups = self.optimizer.param_groups
        configured = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        seed = self.seed
        super().load_state_dict(state_dict)
        if self.cfg.SEED >= 0:
            self._trainer.seed = seed
        for group, own in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(own)
        self.scheduler.base_lrs = [own["initial_lr"] for own in configured]
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
