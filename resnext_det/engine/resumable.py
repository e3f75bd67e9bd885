"""Jobs of several runs: bring each to its end once, whatever was done before an interruption."""

import argparse
import gc
import json
import logging
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import UserError, one_line
from .job import format_results, train_or_evaluate
from .resuming import config_changes
from .setup import read_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """What is trained, detectors or something else.

    Attributes:
        run: the job, as `train_or_evaluate`.
        read: as `read_config`.
        show: prints its results; given them and the config.
    """

    run: Callable[[argparse.Namespace], dict]
    read: Callable[..., tuple[CfgNode, bool]]
    show: Callable[[dict, CfgNode], str]


DETECTION = Kind(train_or_evaluate, read_config, lambda results, _: format_results(results))


def on_main(function: Callable[[], object]) -> object:
    """Call `function` on the main process only and return its result on all of them."""
    return comm.all_gather(function() if comm.is_main_process() else None)[0]


def refuse_old_run(output_dir: Path, folders: Sequence[Path]) -> None:
    """Keep a new run out of an old one's folders.

    Raises:
        UserError: if one of `folders` in `output_dir` holds a checkpoint or proposals.
    """
    kept = ("last_checkpoint", "*.pkl")
    if on_main(lambda: any(any(f.glob(k)) for f in folders for k in kept)):
        raise UserError(
            f"OUTPUT_DIR {output_dir} holds a run already: go on with it by --resume, or choose "
            "another OUTPUT_DIR"
        )


def train_or_skip(
    args: argparse.Namespace, *, needs_results: bool = True, kind: Kind = DETECTION
) -> dict:
    """Bring the run in the config's `OUTPUT_DIR` to its end, whatever is done of it already.

    Args:
        args: as of `argument_parser()`; `eval_only` and `resume` are set here.
        needs_results: whether a run without `results.json` is evaluated to be finished.
        kind: of the job.

    Returns:
        On the main process the results, as `train_or_evaluate`; elsewhere an empty dict.

    Raises:
        UserError: as `train_or_evaluate`.
    """
    cfg, _ = kind.read(args.config_file, args.opts)
    folder = Path(cfg.OUTPUT_DIR)
    trained, evaluated, begun = on_main(lambda: _progress(folder, cfg.SOLVER.MAX_ITER))
    if trained and (evaluated or not needs_results):
        logger.info("%s is finished: skipped", folder)
        changes = [] if getattr(args, "auto_scale", False) else config_changes(folder, cfg)
        if changes:
            logger.warning(
                "%s was run with another config, and is not run again:\n  %s",
                folder,
                "\n  ".join(changes),
            )
        results = read_results(folder) if evaluated and comm.is_main_process() else {}
        if results:
            logger.info("its results, in percent:\n%s", kind.show(results, cfg))
        return results
    words = {**vars(args), "eval_only": trained, "resume": begun}
    results = kind.run(argparse.Namespace(**words))
    gc.collect()  # a trainer is a cycle of references: free its networks for the next job
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return results


def read_results(folder: Path) -> dict:
    """Read `results.json` of a run, NaN for null.

    Raises:
        UserError: if it is absent or not JSON.
    """

    def restore(value: object) -> object:
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return math.nan if value is None else value

    path = folder / "results.json"
    try:
        return restore(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {one_line(error)}") from error


def _progress(folder: Path, max_iter: int) -> tuple[bool, bool, bool]:
    """Whether the run is trained to `max_iter`, evaluated after that, and begun at all."""
    final, results = folder / "model_final.pth", folder / "results.json"
    trained = final.is_file() and _iteration(final) == max_iter - 1
    evaluated = trained and results.is_file() and results.stat().st_mtime >= final.stat().st_mtime
    return trained, evaluated, (folder / "last_checkpoint").is_file()


def _iteration(checkpoint: Path) -> int | None:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return content.get("iteration")
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{checkpoint} is not a readable checkpoint: remove it") from error
