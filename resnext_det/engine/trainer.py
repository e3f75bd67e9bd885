"""Detectron2's trainer with our data errors, strict weights, optimisers, and a CPU path."""

import json
import logging
import math
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver.build import maybe_add_gradient_clipping
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
from ..data.skipping import SkippedImages, SkippingDataset
from ..errors import UserError
from ..evaluation import build_coco_evaluator, evaluation_folder
from ..weights import StrictCheckpointer, settings_of
from .checks import check_targets

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
        data_loader = self.build_train_loader(cfg)  # first: what is wrong with data shows early
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )
        step = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictCheckpointer(
            model, cfg.OUTPUT_DIR, settings=settings_of(cfg), trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in `OUTPUT_DIR`, or start from `MODEL.WEIGHTS`.

        Raises:
            UserError: if the run to resume is already at `SOLVER.MAX_ITER`, the weights do not
                fit, or there are none for frozen layers.
        """
        super().resume_or_load(resume)
        announce_start(self.checkpointer, self.start_iter, self.max_iter, resume=resume)
        if self.start_iter == 0 and not self.cfg.MODEL.WEIGHTS:
            refuse_frozen_random_layers(self.checkpointer.model)

    def train(self) -> None:
        """Train from `start_iter` to `max_iter`.

        Raises:
            UserError: if the loss is not finite any more.
        """
        try:
            super().train()
        except FloatingPointError as error:
            rate = self.optimizer.param_groups[0]["lr"]
            raise UserError(
                f"training diverged at iteration {self.iter} (learning rate {rate:.3g}, "
                f"{self.cfg.SOLVER.IMS_PER_BATCH} images a step): lower SOLVER.BASE_LR or lengthen "
                f"SOLVER.WARMUP_ITERS. {' '.join(str(error).split())}"
            ) from error

    def build_writers(self) -> list[EventWriter]:
        """Progress on the console, `metrics.json`, and TensorBoard events."""
        return run_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model; on a CPU in channels_last, in which grouped convolutions are faster.

        Detectron2's keypoint loss takes only contiguous maps, so keypoint models stay as they are.
        """
        try:
            model = super().build_model(cfg)
        except ValueError as error:
            raise UserError(f"the config's network cannot be built: {error}") from error
        if cfg.MODEL.DEVICE == "cpu" and not cfg.MODEL.KEYPOINT_ON:
            model = model.to(memory_format=torch.channels_last)
        return model

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
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Build Detectron2's training loader.

        Up to `DATALOADER.MAX_SKIPPED_IMAGES` images that cannot be used are left out, and listed in
        `OUTPUT_DIR/skipped_images.jsonl`.

        Raises:
            UserError: for data without annotations, or without masks or keypoints that the model
                learns.
        """
        mapper = NamingDatasetMapper(cfg, True)
        parts = _train_loader_from_config(cfg, mapper, dataset=_records(cfg))
        limit = cfg.DATALOADER.get("MAX_SKIPPED_IMAGES", 0)
        skipped = SkippedImages(Path(cfg.OUTPUT_DIR) / "skipped_images.jsonl", limit)
        records = DatasetFromList(parts.pop("dataset"), copy=False)
        dataset = SkippingDataset(records, parts.pop("mapper"), skipped)
        return build_detection_train_loader(dataset, mapper=None, **parts)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """Build Detectron2's test loader, which names an image that it cannot read."""
        mapper = NamingDatasetMapper(cfg, False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> object:
        """Build the COCO evaluator, which writes into `evaluation_folder`."""
        folder = evaluation_folder(cfg, dataset_name)
        return build_coco_evaluator(cfg, dataset_name, str(folder))


def _records(cfg: CfgNode) -> list[dict]:
    """The training set's dataset dicts, as Detectron2 filters them, checked."""
    with_keypoints = cfg.MODEL.KEYPOINT_ON
    try:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if with_keypoints
            else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    except AssertionError as error:
        if "No valid data found" not in str(error):
            raise
        names = ", ".join(cfg.DATASETS.TRAIN)
        raise UserError(f"{names}: no image has an annotation to train on") from error
    check_targets(cfg, records)
    return records


class StrictJSONWriter(JSONWriter):
    """`JSONWriter` whose lines are JSON: it leaves out NaN and infinity, which JSON lacks.

    It opens its file at the first line, so that a run that is refused leaves an older one alone.
    """

    def __init__(self, json_file: str) -> None:
        self._json_file = json_file
        self._file_handle = None

    def write(self) -> None:
        """Append the newest scalars."""
        if self._file_handle is None:
            super().__init__(self._json_file)
        scalars = get_event_storage().latest()
        dropped = {k: v for k, v in scalars.items() if not math.isfinite(v[0])}
        for name in dropped:
            del scalars[name]
        try:
            super().write()
        finally:
            scalars.update(dropped)

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file_handle is not None:
            super().close()


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


def run_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Progress on the console, `metrics.json` and TensorBoard events in `folder`."""
    printer = CommonMetricPrinter(max_iter)
    printer.logger = logging.getLogger("resnext_det.progress")
    metrics = StrictJSONWriter(str(Path(folder) / "metrics.json"))
    return [printer, metrics, TensorboardXWriter(folder)]


def announce_start(
    checkpointer: StrictCheckpointer, start: int, max_iter: int, *, resume: bool
) -> None:
    """Say where training goes on, or that there was nothing to resume.

    Raises:
        UserError: if nothing is left to train.
    """
    if start >= max_iter:
        raise UserError(
            f"the run in {checkpointer.save_dir} is finished (iteration {start} of {max_iter}): "
            "raise the number of iterations, e.g. SOLVER.MAX_ITER, or use --eval-only"
        )
    if start > 0:
        file = checkpointer.get_checkpoint_file()
        logger.info("resuming from %s at iteration %d of %d", file, start, max_iter)
    elif resume:
        logger.warning("--resume: no checkpoint in %s, starting anew", checkpointer.save_dir)


def refuse_frozen_random_layers(model: nn.Module, key: str = "MODEL.BACKBONE.FREEZE_AT") -> None:
    """Refuse layers that no weights were loaded for and no training will change.

    Args:
        model: about to be trained from random weights.
        key: of the config that freezes, for the message.

    Raises:
        UserError: if a parameter is frozen.
    """
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        raise UserError(
            f"no weights were named and {len(frozen)} random tensors are frozen, e.g. "
            f"{frozen[0]}: name weights, or train these layers with {key} 0"
        )
    if any(isinstance(module, FrozenBatchNorm2d) for module in model.modules()):
        logger.warning(
            "no weights were named and the network has FrozenBN, which then normalises nothing: "
            "MODEL.RESNETS.NORM BN or GN trains better from random weights"
        )


def set_aside_metrics(output_dir: Path) -> None:
    """Keep the curves of an earlier run in the same folder out of a new run's file."""
    metrics = output_dir / "metrics.json"
    if metrics.is_file():
        metrics.replace(metrics.with_name("metrics.previous.json"))
