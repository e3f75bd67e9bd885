"""What is refused before a run begins: settings that fail later or give wrong results."""

import logging
from collections.abc import Sequence
from math import isfinite

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.utils import comm
from torch import nn

from ..config import CLASSIFIER_KEYS, check_keys, head_of, suggest
from ..data import require_registered
from ..errors import UserError
from ..evaluation.coco import check_test_sets, tasks_of
from ..evaluation.measures import EVALUATORS
from ..modeling import variant_from_config
from ..modeling.blocks import FORMS
from ..modeling.classifier import ARCHITECTURE, is_classifier

logger = logging.getLogger(__name__)

# The values of keys that Detectron2 would look up only when it builds what they name.
_CHOICES = {
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "MODEL.MEMORY_FORMAT": ("auto", "channels_last", "contiguous"),
    "MODEL.RESNEXT.FORM": FORMS,
    "TEST.COCO_EVALUATOR": EVALUATORS,
}
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
}
_NOT_NEGATIVE = (
    "DATALOADER.MAX_SKIPPED_IMAGES",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.EARLY_STOP_PATIENCE",
    "SOLVER.EMA_DECAY",
    "TEST.EVAL_PERIOD",
)
_POSITIVE = ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.ACCUM_STEPS")


def check_config(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Refuse what could only fail later or give wrong results.

    Args:
        cfg: the whole config.
        eval_only: leave out what matters to training alone, and read the test sets, which a trainer
            does after the training set.

    Raises:
        UserError: for an unknown name, device or data set, an impossible network or number, a batch
            that the processes cannot share, another number of classes than the data has, or
            annotations of a test set that cannot be evaluated.
    """
    if is_classifier(cfg):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE} is no detector: train it with "
            "tools/train_classifier.py"
        )
    check_settings(cfg)
    for key, default in CLASSIFIER_KEYS.items():
        if (value := value_of(cfg, key)) != default:
            raise UserError(f"{key} {value!r} is of classifiers, and this is a detector's config")
    _check_network(cfg)
    _check_evaluation(cfg)
    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    require_registered(names)
    _check_classes(cfg, names)
    if eval_only:
        if not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TEST is empty: there is nothing to evaluate")
        check_test_sets(cfg.DATASETS.TEST, tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS)
    else:
        check_training(cfg)


def check_settings(cfg: CfgNode) -> None:
    """Refuse names and devices that nothing has, and images without three channels.

    Raises:
        UserError: for the first of them.
    """
    check_keys(cfg)
    for key, choices in _CHOICES.items():
        require_choice(cfg, key, choices)
    for key, registry in _REGISTRIES.items():
        if (value := value_of(cfg, key)) not in registry:
            known = [name for name, _ in registry]
            raise UserError(f"{key} {value!r} is not registered{suggest(value, known)}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is not a device") from error
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        raise UserError(
            f"MODEL.PIXEL_MEAN has {len(cfg.MODEL.PIXEL_MEAN)} channels, MODEL.PIXEL_STD "
            f"{len(cfg.MODEL.PIXEL_STD)}"
        )
    if len(cfg.MODEL.PIXEL_MEAN) != 3:
        raise UserError(
            f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}: {cfg.INPUT.FORMAT} images have 3 "
            "channels"
        )


def require_choice(cfg: CfgNode, key: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of these.

    Raises:
        UserError: naming all of them.
    """
    if (value := value_of(cfg, key)) not in choices:
        raise UserError(f"{key} {value!r} is not one of {', '.join(choices)}")


def check_numbers(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Refuse values of these keys that are no numbers, or negative, or 0 where that is senseless.

    Raises:
        UserError: for the first of them.
    """
    for key in keys:
        value = value_of(cfg, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise UserError(f"{key} {value!r} must be a number")
        if key in _POSITIVE and value <= 0:
            raise UserError(f"{key} {value} must be greater than 0")
        if value < 0:
            raise UserError(f"{key} {value} must not be negative")


def check_training(cfg: CfgNode) -> None:
    """Refuse a schedule that cannot be, or that the processes or the device cannot serve.

    Raises:
        UserError: for the first number that is impossible.
    """
    check_numbers(cfg, (*_POSITIVE, *_NOT_NEGATIVE))
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: there is nothing to train on")
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} (the total) cannot be shared by "
            f"{processes} processes: use a multiple of {processes}"
        )
    share = cfg.SOLVER.IMS_PER_BATCH // processes
    if share % cfg.SOLVER.ACCUM_STEPS:
        raise UserError(
            f"SOLVER.ACCUM_STEPS {cfg.SOLVER.ACCUM_STEPS} does not divide the {share} images of "
            f"each process (SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, {processes} processes)"
        )
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.DTYPE == "float16":
        raise UserError(
            "SOLVER.AMP.DTYPE float16 needs a GPU: on the CPU set SOLVER.AMP.DTYPE bfloat16, or "
            "SOLVER.AMP.ENABLED False"
        )
    if cfg.SOLVER.EMA_DECAY >= 1:
        raise UserError(f"SOLVER.EMA_DECAY {cfg.SOLVER.EMA_DECAY} must be less than 1, e.g. 0.9998")
    if cfg.SOLVER.EARLY_STOP_PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise UserError(
            f"SOLVER.EARLY_STOP_PATIENCE {cfg.SOLVER.EARLY_STOP_PATIENCE} counts evaluations, and "
            "TEST.EVAL_PERIOD is 0: set it to a number of iterations"
        )


def _check_evaluation(cfg: CfgNode) -> None:
    if not 0 <= cfg.TEST.SCORE <= 1:
        raise UserError(f"TEST.SCORE {cfg.TEST.SCORE} (--score) is not in 0..1")
    if cfg.TEST.NUM_IMAGES < 0:
        raise UserError(f"TEST.NUM_IMAGES {cfg.TEST.NUM_IMAGES} is negative: 0 means all images")
    if not cfg.TEST.AUG.ENABLED:
        return
    lacking = None
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        lacking = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
    elif cfg.MODEL.KEYPOINT_ON:
        lacking = "keypoints (MODEL.KEYPOINT_ON True)"
    elif cfg.MODEL.LOAD_PROPOSALS:
        lacking = "proposals from files (MODEL.LOAD_PROPOSALS True)"
    if lacking:
        raise UserError(
            f"{lacking}: test-time augmentation (--tta, TEST.AUG.ENABLED True) cannot serve it, so "
            "evaluate without"
        )


def _check_network(cfg: CfgNode) -> None:
    if "resnext" not in cfg.MODEL.BACKBONE.NAME:
        return
    try:
        variant_from_config(cfg)
    except ValueError as error:
        raise UserError(f"MODEL.RESNETS names no network: {error}") from error
    check_layers(cfg)
    if cfg.MODEL.RESNETS.RES5_DILATION not in (1, 2):
        raise UserError(
            f"MODEL.RESNETS.RES5_DILATION {cfg.MODEL.RESNETS.RES5_DILATION} is not 1 or 2"
        )


def check_layers(cfg: CfgNode) -> None:
    """Refuse a norm that Detectron2 lacks, or that the form of Fig. 3 cannot split, and freezing
    of stages that there are not.

    Raises:
        UserError: naming it.
    """
    try:
        get_norm(cfg.MODEL.RESNETS.NORM, 64)
    except KeyError as error:
        raise UserError(
            f"MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM!r} is no norm of Detectron2: use BN, "
            "FrozenBN, SyncBN or GN"
        ) from error
    if cfg.MODEL.BACKBONE.FREEZE_AT not in range(6):
        raise UserError(f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} is not in 0..5")
    own = cfg.MODEL.get("RESNEXT", {})
    if own.get("FORM", "c") != "c" and not cfg.MODEL.RESNETS.NORM.endswith("BN"):
        raise UserError(
            f"MODEL.RESNEXT.FORM {own.FORM} needs a norm that acts per channel (BN, FrozenBN), and "
            f"MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM!r}: use form c"
        )


def _check_classes(cfg: CfgNode, names: tuple[str, ...]) -> None:
    if cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "RetinaNet"):
        return
    key = head_of(cfg)
    configured = cfg.MODEL[key].NUM_CLASSES
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != configured:
            shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise UserError(
                f"dataset {name} has {len(classes)} classes ({shown}), MODEL.{key}.NUM_CLASSES is "
                f"{configured}: set MODEL.{key}.NUM_CLASSES {len(classes)}"
            )


def check_targets(cfg: CfgNode, records: list[dict]) -> None:
    """Refuse to train masks or keypoints on data that lacks them.

    Args:
        cfg: the whole config.
        records: dataset dicts of the training set.

    Raises:
        UserError: with the number of annotations that lack them, and what to set.
    """
    wanted = [("MASK_ON", "segmentation", "masks"), ("KEYPOINT_ON", "keypoints", "keypoints")]
    for key, field, plural in wanted:
        if not cfg.MODEL[key]:
            continue
        annotations = [(r["file_name"], a) for r in records for a in r.get("annotations", ())]
        lacking = [name for name, annotation in annotations if field not in annotation]
        if lacking:
            names = ", ".join(cfg.DATASETS.TRAIN)
            raise UserError(
                f"{names}: {len(lacking)} of {len(annotations)} annotations have no "
                f"{plural} (the first is of {lacking[0]}), "
                f"and MODEL.{key} is True: set "
                f"MODEL.{key} False, or use a config without {plural}, e.g. faster_rcnn_..."
            )


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


def value_of(cfg: CfgNode, key: str) -> object:
    """The value of a key such as SOLVER.BASE_LR."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
