"""Detectron2's trainer with our data errors, strict weights, optimisers, and a CPU path."""

import json
import logging
import math
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from torch import nn

from ..data import NamingDatasetMapper
from ..errors import UserError
from ..evaluation import build_coco_evaluator
from ..weights import StrictCheckpointer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for this package: trains and evaluates any config on GPUs or CPUs.

    Raises:
        UserError: for an optimiser, data set or weight file that cannot be used.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ ties the distributed model to a GPU and the checkpointer to its
        # own class; the rest is the same.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )
        step = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in `OUTPUT_DIR`, or start from `MODEL.WEIGHTS`.

        Raises:
            UserError: if the run to resume is already at `SOLVER.MAX_ITER`.
        """
        found = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        if found:
            logger.info(
                "resuming from %s at iteration %d of %d",
                self.checkpointer.get_checkpoint_file(),
                self.start_iter,
                self.max_iter,
            )
            if self.start_iter >= self.max_iter:
                raise UserError(
                    f"the run in {self.cfg.OUTPUT_DIR} is finished (iteration {self.start_iter} of "
                    f"{self.max_iter}): raise SOLVER.MAX_ITER, or use --eval-only"
                )
            return
        if resume:
            logger.warning("--resume: no checkpoint in %s, starting anew", self.cfg.OUTPUT_DIR)
        warn_of_frozen_random_layers(self.cfg, self.checkpointer.model)

    def build_writers(self) -> list[EventWriter]:
        """Progress on the console, `metrics.json`, and TensorBoard events."""
        printer = CommonMetricPrinter(self.max_iter)
        printer.logger = logging.getLogger("resnext_det.progress")
        folder = self.cfg.OUTPUT_DIR
        return [
            printer,
            StrictJSONWriter(str(Path(folder) / "metrics.json")),
            TensorboardXWriter(folder),
        ]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model; on a CPU in channels_last, in which grouped convolutions are faster.

        Detectron2's keypoint loss takes only contiguous maps, so keypoint models stay as they are.
        """
        model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu" and not cfg.MODEL.KEYPOINT_ON:
            model = model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser that `SOLVER.OPTIMIZER` names, with Detectron2's parameter groups."""
        if cfg.SOLVER.get("OPTIMIZER", "SGD") == "SGD":
            return super().build_optimizer(cfg, model)
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Build Detectron2's training loader, which names an image that it cannot read."""
        return build_detection_train_loader(cfg, mapper=NamingDatasetMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """Build Detectron2's test loader, which names an image that it cannot read."""
        mapper = NamingDatasetMapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> object:
        """Build the COCO evaluator, which writes into `OUTPUT_DIR/inference`."""
        return build_coco_evaluator(cfg, dataset_name, str(Path(cfg.OUTPUT_DIR) / "inference"))


class StrictJSONWriter(JSONWriter):
    """`JSONWriter` whose lines are JSON: it leaves out NaN and infinity, which JSON lacks."""

    def write(self) -> None:
        """Append the newest scalars."""
        scalars = get_event_storage().latest()
        dropped = {k: v for k, v in scalars.items() if not math.isfinite(v[0])}
        for name in dropped:
            del scalars[name]
        try:
            super().write()
        finally:
            scalars.update(dropped)


def write_results(results: dict, path: Path) -> None:
    """Write evaluation results as JSON, with null for NaN, whole or not at all."""

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(clean(results), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def warn_of_frozen_random_layers(cfg: CfgNode, model: nn.Module) -> None:
    """Warn where no weights were asked for although the config never trains some layers."""
    frozen = sum(not p.requires_grad for p in model.parameters())
    if not cfg.MODEL.WEIGHTS and frozen:
        logger.warning(
            "MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT %d keeps %d random tensors as "
            "they are: fine for a trial, wrong for a result",
            cfg.MODEL.BACKBONE.FREEZE_AT,
            frozen,
        )


def set_aside_metrics(output_dir: Path) -> None:
    """Keep the curves of an earlier run in the same folder out of a new run's file."""
    metrics = output_dir / "metrics.json"
    if metrics.is_file():
        metrics.replace(metrics.with_name("metrics.previous.json"))
