"""Everything before the first iteration: config, device, checks, logs, seeds."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..atomic import replacing
from ..config import dump_config, load_config
from ..data import require_files
from ..data.custom import (
    CustomData,
    data_of_run,
    keep_with_run,
    overrides_for,
    read_custom_data,
)
from ..errors import UserError
from ..modeling.build import choose_device
from .checks import check_config
from .cluster import is_restarted, launcher_of_process
from .launch import custom_pairs, evaluation_settings
from .record import last_launchers
from .resuming import config_changes
from .schedule import Reference, scale_schedule, warn_of_rate

logger = logging.getLogger(__name__)


def prepare(args: argparse.Namespace) -> CfgNode:
    """Turn command-line arguments into a frozen config, and set up logs and random seeds.

    Writes `OUTPUT_DIR/config.yaml` and `log.txt`; the console gets our own lines and warnings,
    the log file everything.

    Raises:
        UserError: for whatever in the config cannot work on this machine or data set.
    """
    if not args.config_file:
        raise UserError("--config-file is missing, e.g. configs/faster_rcnn_X50_32x4d.yaml")
    data = read_custom_data(**custom_pairs(args))
    overrides = [*overrides_for(data), *_of_evaluation(args), *args.opts]
    cfg = begin(args, overrides, partial(read_config, data=data))
    if comm.is_main_process():
        keep_with_run(Path(args.config_file).parent, data, Path(cfg.OUTPUT_DIR))
    return cfg


def begin(args: argparse.Namespace, overrides: list[str], read: Callable) -> CfgNode:
    """What `prepare` does for a job of any kind.

    Args:
        args: of the command line.
        overrides: KEY VALUE words.
        read: as `read_config`.

    Raises:
        UserError: as `read`, or if the run cannot be what the command line says.
    """
    table = None

    def scale(cfg: CfgNode) -> None:
        nonlocal table
        reference = Reference.read(args.config_file)
        table = scale_schedule(cfg, reference, overrides, comm.get_world_size())

    auto_scale = getattr(args, "auto_scale", False) and not args.eval_only
    cfg, fell_back = read(
        args.config_file,
        overrides,
        eval_only=args.eval_only,
        change=scale if auto_scale else None,
    )
    plain_norms = without_sync_bn(cfg)
    cfg.freeze()
    set_up_logs(cfg.OUTPUT_DIR)
    if fell_back:
        logger.warning("no GPU is visible: running on the CPU (MODEL.DEVICE cpu)")
    if plain_norms:
        logger.warning(
            "SyncBN needs several processes with a GPU each: plain BN in %s", ", ".join(plain_norms)
        )
    if table:
        logger.info("the schedule for %d images a step:\n%s", cfg.SOLVER.IMS_PER_BATCH, table)
    elif not args.eval_only:
        warn_of_rate(cfg, Reference.read(args.config_file))
    logger.debug("environment:\n%s", collect_env_info())
    logger.debug("arguments: %s", args)
    _note_changes(cfg, args)
    is_of_run = (Path(cfg.OUTPUT_DIR) / "run.json").is_file()  # which keeps its own config
    if comm.is_main_process() and args.eval_only and not is_of_run:
        write_config(cfg)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if getattr(args, "deterministic", False):
        _be_deterministic(cfg)
    return cfg


def _of_evaluation(args: argparse.Namespace) -> list[str]:
    """The overrides that the flags for evaluation stand for."""
    limit, score, tta = evaluation_settings(args)
    overrides = [] if limit is None else ["TEST.NUM_IMAGES", str(limit)]
    overrides += [] if score is None else ["TEST.SCORE", str(score)]
    return [*overrides, *(["TEST.AUG.ENABLED", "True"] if tta else [])]


def _note_changes(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Show how the config differs from the resumed run's, and decide whether to resume at all.

    A job that torchrun or Slurm has started again goes on from its checkpoint, if it had got that
    far, without `--resume`.
    """
    folder = Path(cfg.OUTPUT_DIR)
    args.launchers = sorted({name for name in comm.all_gather(launcher_of_process()) if name})
    begun = (folder / "last_checkpoint").is_file()
    # by the job itself, not by an earlier one that left its run in the folder
    again = begun and not set(args.launchers).isdisjoint(last_launchers(folder))
    again = comm.all_gather(again)[0]
    restarted = any(comm.all_gather(getattr(args, "restarted", False) or is_restarted()))
    args.again = restarted and again and not args.eval_only
    if args.again:
        args.resume = True
        logger.info("the job was started again: going on from its checkpoint")
    args.config_changes = config_changes(folder, cfg) if args.resume else []
    if args.config_changes and not args.eval_only:
        logger.warning("the config has changed:\n  %s", "\n  ".join(args.config_changes))


def _be_deterministic(cfg: CfgNode) -> None:
    """Choose torch's deterministic implementations; operations that lack one warn.

    Raises:
        UserError: if cuBLAS is not told to be deterministic, which only the environment can do.
    """
    setting = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if cfg.MODEL.DEVICE.startswith("cuda") and setting not in (":4096:8", ":16:8"):
        raise UserError(
            f"--deterministic needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment (it is "
            f"{setting!r}): set it before the command"
        )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def read_config(
    config_file: str,
    overrides: list[str],
    *,
    eval_only: bool = False,
    data: Mapping[str, CustomData] = MappingProxyType({}),
    change: Callable[[CfgNode], None] | None = None,
) -> tuple[CfgNode, bool]:
    """Read a config, choose the device, check it and that its data is there; nothing is written.

    Args:
        config_file: see `load_config`.
        overrides: KEY VALUE words.
        eval_only: whether nothing is trained.
        data: data sets to register, by name.
        change: is done to the config before it is checked.

    Returns:
        The config, and whether the CPU took the place of a GPU.

    Raises:
        UserError: as `load_config`, `check_config` and `require_files`.
    """
    for name, item in {**data_of_run(Path(config_file).parent), **data}.items():
        item.register(name)
    cfg, fell_back = load_with_device(config_file, overrides, change)
    check_config(cfg, eval_only=eval_only)
    for name in cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_files(name)
    return cfg, fell_back


def load_with_device(
    config_file: str, overrides: list[str], change: Callable[[CfgNode], None] | None
) -> tuple[CfgNode, bool]:
    """Read a config of any kind, and choose the device; nothing is checked.

    Args:
        config_file: see `load_config`.
        overrides: KEY VALUE words.
        change: is done to the config before the device is chosen.

    Returns:
        The config, and whether the CPU took the place of a GPU.

    Raises:
        UserError: as `load_config` and `choose_device`.
    """
    cfg = load_config(config_file, overrides, needs_weights=True)
    if change:
        change(cfg)
    return cfg, choose_device(cfg, asked="MODEL.DEVICE" in overrides[::2])


def without_sync_bn(cfg: CfgNode) -> list[str]:
    """Replace SyncBN by BN in `cfg` where one process has nobody to share with, or on CPUs.

    Parameters keep their names. Several CPU processes each use their own images' statistics, as
    torch synchronises batch norm on GPUs alone.

    Returns:
        The keys that were replaced, e.g. MODEL.RESNETS.NORM.
    """
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":
        return []
    replaced = []
    for name, node in cfg.MODEL.items():
        if isinstance(node, CfgNode) and "SyncBN" in str(node.get("NORM", "")):
            node.NORM = "BN"
            replaced.append(f"MODEL.{name}.NORM")
    return replaced


def set_up_logs(output_dir: str) -> None:
    """Log to the console and to `output_dir/log.txt`, in place of an earlier job's folder.

    Raises:
        UserError: if the folder cannot be made.
    """
    rank = comm.get_rank()
    if comm.is_main_process():
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"OUTPUT_DIR {output_dir} cannot be made: {error}") from error
    comm.synchronize()
    for name in ("resnext_det", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()  # it would take its handlers to be there still
    ours = setup_logger(output_dir, rank, name="resnext_det", abbrev_name="resnext_det")
    for handler in ours.handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.setLevel(logging.INFO)
        else:
            handler.handleError = _ignore  # a full disk, which ends the run in its own words
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.WARNING)
    # a traceback goes to the log file; on the console the error itself is the last word
    console.addFilter(lambda record: record.exc_info is None)
    console.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    for name in ("detectron2", "fvcore"):
        theirs = setup_logger(output_dir, rank, name=name, configure_stdout=False)
        for handler in theirs.handlers:
            handler.handleError = _ignore
        if rank == 0 and console not in theirs.handlers:
            theirs.addHandler(console)


def _ignore(_: logging.LogRecord) -> None:
    """Print nothing about a line of the log file that could not be written."""


def write_config(cfg: CfgNode) -> None:
    """Write `OUTPUT_DIR`/config.yaml, which says how the run was trained."""
    with replacing(Path(cfg.OUTPUT_DIR) / "config.yaml") as temporary:
        temporary.write_text(dump_config(cfg), encoding="utf-8")
