"""Where a run goes on: the newest checkpoint that is whole, and what of the config has changed."""

import logging
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..atomic import replacing
from ..errors import UserError, one_line
from ..weights import StrictCheckpointer
from ..weights.files import read_file

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"^model_(\d{7,}|final)\.pth$")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: `last_checkpoint`'s, or if that is damaged the one before.

    Returns:
        None if the folder holds no checkpoint at all.

    Raises:
        UserError: if all are damaged.
    """
    damaged = []
    for path in _candidates(folder):
        reason = _damage(path)
        if reason is None:
            if damaged:
                logger.warning("going on from %s, the one before", path)
            return path
        logger.warning("checkpoint %s is damaged (%s)", path, reason)
        damaged.append(path)
    if damaged:
        raise UserError(f"every checkpoint in {folder} is damaged: start anew without --resume")
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    """The marker's file, then older ones, the newest first; all of them if the marker is gone."""
    marker = folder / "last_checkpoint"
    files = [f for f in folder.glob("model_*.pth") if _PERIODIC.match(f.name)]
    files.sort(key=_order, reverse=True)
    if not marker.is_file() and files and _order(files[0]) == math.inf:
        files.sort(key=_iteration, reverse=True)  # an older run's may have been left there
    if marker.is_file():
        text = marker.read_text(encoding="utf-8", errors="replace")
        named = folder / Path(text.strip() or "?").name
        if _PERIODIC.match(named.name):
            yield named
            files = [f for f in files if _order(f) < _order(named)]
    yield from files


def _order(path: Path) -> float:
    number = _PERIODIC.match(path.name)[1]
    return math.inf if number == "final" else int(number)


def _iteration(path: Path) -> float:
    """By the name, and the final one's by its content; a damaged one goes first, to be told."""
    if (number := _order(path)) < math.inf:
        return number
    try:
        return float(read_file(path).content["iteration"])
    except (UserError, LookupError, TypeError, ValueError):
        return math.inf


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be gone on from; torch itself does not check its sums."""
    try:
        content = read_file(path).content
        if not {"model", "trainer", "iteration"} <= set(content):
            return "it holds no trainer's state"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except UserError as error:
        return str(error)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        return one_line(error)
    return bad and f"its record {bad} fails its checksum"


def config_changes(folder: Path, cfg: CfgNode) -> list[str]:
    """How a config differs from the one that `folder`'s run was started with.

    Returns:
        A line for each key, "SOLVER.BASE_LR: 0.02 -> 0.01"; none if there is no earlier run.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return []
    try:
        before = dict(_leaves(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        return [f"{file} is not readable: {one_line(error)}"]
    after = dict(_leaves(yaml.safe_load(cfg.dump())))
    lines = []
    for key, value in after.items():
        # our own keys at their defaults are in no file
        if key in before and before[key] != value:
            lines.append(f"{key}: {before[key]} -> {value}")
    return lines


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def forget_after(metrics: Path, start: int) -> None:
    """Drop the rows of `metrics.json` that a run resumed at iteration `start` will write again."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        match = re.search(r'"iteration": (\d+)', line)
        if line.endswith("}\n") and match and int(match[1]) < start:
            kept.append(line)
    with replacing(metrics) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def choose_checkpoint(folder: Path) -> None:
    """Let `last_checkpoint` name the newest checkpoint that is whole, on the main process.

    Raises:
        UserError: on every process, if there is none.
    """
    problem = None
    if comm.is_main_process():
        try:
            newest = newest_checkpoint(folder)
            if newest is None:
                problem = f"--resume: there is no checkpoint in {folder}: start without --resume"
            else:
                with replacing(folder / "last_checkpoint") as temporary:
                    temporary.write_text(newest.name, encoding="utf-8")
        except UserError as error:
            problem = str(error)
    problem = comm.all_gather(problem)[0]
    if problem:
        raise UserError(problem)


def announce_start(checkpointer: StrictCheckpointer, start: int, max_iter: int) -> None:
    """Say where training goes on.

    Raises:
        UserError: if nothing is left to train, nor to evaluate.
    """
    folder = Path(checkpointer.save_dir)
    if start > max_iter or (start == max_iter and is_evaluated(folder)):
        raise UserError(
            f"the run in {folder} is finished (iteration {start} of {max_iter}): "
            "raise the number of iterations, e.g. SOLVER.MAX_ITER, or use --eval-only"
        )
    if start > 0:
        file = checkpointer.get_checkpoint_file()
        logger.info("resuming from %s at iteration %d of %d", file, start, max_iter)


def is_evaluated(folder: Path) -> bool:
    """Whether a run that was trained to its end has results of that."""
    final, results = folder / "model_final.pth", folder / "results.json"
    files = final.is_file() and results.is_file()
    return files and results.stat().st_mtime_ns >= final.stat().st_mtime_ns
