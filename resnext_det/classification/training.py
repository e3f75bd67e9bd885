"""The job of `tools/train_classifier.py`: train a classifier and evaluate it, or evaluate alone."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import get_cfg
from ..engine.checks import (
    check_layers,
    check_numbers,
    check_settings,
    check_training,
    require_choice,
    value_of,
)
from ..engine.failures import explain_in_evaluation
from ..engine.job import load_to_evaluate, train
from ..engine.launch import base_parser
from ..engine.results import write_results
from ..engine.resumable import Kind
from ..engine.resuming import is_evaluated
from ..engine.setup import begin, load_with_device
from ..errors import UserError
from ..modeling import variant_from_config
from ..modeling.classifier import (
    ARCHITECTURE,
    NETWORKS,
    cifar_blocks_per_stage,
    is_cifar,
    is_classifier,
)
from ..weights import settings_of
from ..weights.files import read_file
from .imagenet5k import way_of_all
from .published import errors_table, published_errors
from .record import record_in, require_same_classes
from .trainer import ClassifierTrainer
from .training_data import augmentation_of, classes_of, protocol_of, read_set

logger = logging.getLogger(__name__)

_CHOICES = {
    "CLASSIFIER.NETWORK": NETWORKS,
    "CLASSIFIER.AUGMENTATION": ("imagenet", "crop"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
}
# Keys of detectors that would change a network or its data, and are not read here: only defaults
_OF_DETECTORS = (
    "MODEL.RESNETS.RES5_DILATION",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
    "DATALOADER.SAMPLER_TRAIN",
    "INPUT.CROP.ENABLED",
    "TEST.AUG.ENABLED",
)
_OF_IMAGENET = ("CLASSIFIER.RESIZE", "CLASSIFIER.JITTER", "CLASSIFIER.LIGHTING")


def argument_parser() -> argparse.ArgumentParser:
    """The flags of detection that make sense for classifiers, and where the images are."""
    parser = base_parser()
    data = parser.add_argument_group("images (instead of the config's DATASETS)")
    data.add_argument(
        "--data",
        metavar="DIR",
        help="holds train/ and val/ (or test/), or CIFAR's own files, for training and evaluation",
    )
    for split, purpose in (("train", "to train on"), ("val", "to evaluate on")):
        data.add_argument(
            f"--{split}-data",
            metavar="PATH",
            help=f"{purpose}: <class>/<image> folders, a .tar, or shards 'train-{{000..146}}.tar'",
        )
    return parser


def train_or_evaluate(args: argparse.Namespace) -> dict:
    """Do what the command line says, and write `OUTPUT_DIR/results.json`.

    Args:
        args: parsed by `argument_parser()`; `eval_only` skips training.

    Returns:
        On the main process the results, see `ErrorsEvaluator`; elsewhere an empty dict.

    Raises:
        UserError: for a mistake in the config, the data or the weights.
    """
    if not args.config_file:
        raise UserError(
            "--config-file is missing, e.g. configs/classification/X50_32x4d_imagenet1k.yaml"
        )
    cfg = begin(args, [*data_overrides(args), *args.opts], read_config)
    if args.again and comm.all_gather(is_evaluated(Path(cfg.OUTPUT_DIR)))[0]:
        logger.info("the run is finished already")
        return {}
    results = _evaluate(cfg, args) if args.eval_only else train(cfg, args, ClassifierTrainer)
    if results is None or not comm.is_main_process():
        return {}
    write_results(results, Path(cfg.OUTPUT_DIR) / "results.json")
    if results:
        logger.info("results on %s:\n%s", cfg.DATASETS.TEST[0], format_results(results, cfg))
    else:
        logger.warning("DATASETS.TEST is empty: nothing was evaluated")
    return results


def data_overrides(args: argparse.Namespace) -> list[str]:
    """The overrides that the flags for data stand for; the folder is the command's."""
    overrides = []
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        path = getattr(args, f"{split}_data") or args.data
        if path is not None:
            overrides += [f"DATASETS.{key}", repr((str(Path(path).absolute()),))]
    return overrides


def read_config(
    config_file: str,
    overrides: list[str],
    *,
    eval_only: bool = False,
    change: Callable[[CfgNode], None] | None = None,
) -> tuple[CfgNode, bool]:
    """Read a classifier's config, choose the device and check it; nothing is written.

    Args:
        config_file: see `load_config`.
        overrides: KEY VALUE words.
        eval_only: whether nothing is trained.
        change: is done to the config before it is checked.

    Returns:
        The config, and whether the CPU took the place of a GPU.

    Raises:
        UserError: as `load_config`, or for a config that no classifier can have.
    """
    cfg, fell_back = load_with_device(config_file, overrides, change)
    check_config(cfg, eval_only=eval_only)
    return cfg, fell_back


def check_config(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Refuse what could only fail later or give wrong results.

    Raises:
        UserError: for an unknown name, an impossible network or number, a detector's config, or
            settings that a classifier has no use for.
    """
    if not is_classifier(cfg):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is no {ARCHITECTURE}: train "
            "it with tools/train_net.py"
        )
    check_settings(cfg)
    for key, choices in _CHOICES.items():
        require_choice(cfg, key, choices)
    check_layers(cfg)
    resnets = cfg.MODEL.RESNETS
    try:
        if not is_cifar(cfg):
            variant_from_config(cfg)
        else:
            cifar_blocks_per_stage(resnets.DEPTH)
            if resnets.STRIDE_IN_1X1:
                raise ValueError(
                    "STRIDE_IN_1X1 True; the CIFAR networks have the stride in the 3x3"
                )
            if min(resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP) < 1:
                raise ValueError("cardinality and width are at least 1")
    except ValueError as error:
        raise UserError(f"MODEL.RESNETS names no network: {error}") from error
    if cfg.CLASSIFIER.NUM_CLASSES < 2:
        raise UserError(f"CLASSIFIER.NUM_CLASSES {cfg.CLASSIFIER.NUM_CLASSES} is less than 2")
    protocol_of(cfg)
    augmentation_of(cfg)
    classes_of(cfg)
    _require_defaults(cfg, _OF_DETECTORS, "is of detectors")
    if cfg.CLASSIFIER.AUGMENTATION == "crop":
        _require_defaults(cfg, _OF_IMAGENET, "has no effect with CLASSIFIER.AUGMENTATION crop")
    if "resnext" not in cfg.MODEL.BACKBONE.NAME:
        raise UserError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is not what a classifier is built of: "
            "set MODEL.BACKBONE.NAME build_resnext_backbone"
        )
    if cfg.TEST.NUM_IMAGES < 0:
        raise UserError(f"TEST.NUM_IMAGES {cfg.TEST.NUM_IMAGES} is negative: 0 means all images")
    if len(cfg.DATASETS.TEST) > 1:
        raise UserError(f"DATASETS.TEST {list(cfg.DATASETS.TEST)}: a classifier takes one data set")
    if eval_only:
        if not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TEST is empty: there is nothing to evaluate")
        check_numbers(cfg, ("SOLVER.IMS_PER_BATCH", "DATALOADER.NUM_WORKERS"))
    else:
        check_training(cfg)


def _require_defaults(cfg: CfgNode, keys: Sequence[str], why: str) -> None:
    defaults = get_cfg()
    for key in keys:
        if (value := value_of(cfg, key)) != (default := value_of(defaults, key)):
            raise UserError(f"{key} {value} {why}: leave it at {default}")


def _evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict:
    """Evaluate the config's weights, or with `--resume` those of the newest checkpoint."""
    model = ClassifierTrainer.build_model(cfg)
    weights = load_to_evaluate(cfg, model, resume=args.resume)
    record = record_in(read_file(weights), str(weights)) if weights.is_file() else None
    if record is not None:
        known = classes_of(cfg)
        listed = read_set(cfg, "test").classes if known is None else known.classes
        require_same_classes(record.classes, listed, cfg.CLASSIFIER.CLASSES or cfg.DATASETS.TEST[0])
    try:
        return ClassifierTrainer.test(
            cfg, model, [ClassifierTrainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])]
        )
    except Exception as error:
        if message := explain_in_evaluation(error, cfg):
            raise UserError(message) from error
        raise


def format_results(results: Mapping, cfg: CfgNode) -> str:
    """A table of errors in percent; of the paper's networks, with the paper's figures beside."""
    variant, residual = settings_of(cfg).variant, cfg.MODEL.RESNEXT.RESIDUAL
    names = _ways(cfg)
    rows = []
    for task, found in results.items():
        rows.append((f"measured, {names[task]}", found["top1_error"], found["top5_error"]))
        published = published_errors(
            variant, None, protocol_of(cfg), names[task], residual=residual
        )
        rows += [paper.row for paper in published]
    return errors_table(rows)


CLASSIFICATION = Kind(train_or_evaluate, read_config, format_results)


def _ways(cfg: CfgNode) -> dict[str, str]:
    """How each task counts, in words."""
    known = classes_of(cfg)
    if known is not None:
        return dict(zip(("classification", "classification_1k"), known.ways, strict=True))
    return {"classification": way_of_all(cfg.CLASSIFIER.NUM_CLASSES)}
