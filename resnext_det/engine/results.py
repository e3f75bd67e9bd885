"""A run's results on disk."""

import itertools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..atomic import PREFIX
from ..errors import UserError, one_line
from ..evaluation.summary import with_classes, write_json

logger = logging.getLogger(__name__)

_OF_A_RUN = re.compile(
    r"(metrics|results|evaluations|run|nan_batch)\.json|last_checkpoint|nan_batch\.pth"
    r"|model_(\d{7,}|final|final_ema|best)\.pth"
)


def write_results(
    results: Mapping, file: Path, folders: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Write evaluation results as JSON, with null for NaN, whole or not at all.

    Args:
        results: {task: {metric: percent}}, or {data set: that} for several test sets.
        file: to write.
        folders: of each data set's evaluation.json, from which each task gets its `per_class`.

    Raises:
        UserError: if the file cannot be written, or an evaluation.json is damaged.
    """
    classes = {name: _tasks_of(folder) for name, folder in folders.items()}
    if len(classes) == 1:
        results = with_classes(results, *classes.values())
    elif len(classes) > 1:
        results = {name: with_classes(tasks, classes[name]) for name, tasks in results.items()}
    write_json(results, file)


def _tasks_of(folder: Path) -> dict:
    file = folder / "evaluation.json"
    if not file.is_file():  # an RPN's proposals have no classes
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} is not readable: {one_line(error)}") from error


def remove_unfinished(output_dir: Path) -> None:
    """Remove what a killed process was writing when it died: temporary checkpoints."""
    for file in output_dir.glob(f"{PREFIX}*.pth"):
        file.unlink(missing_ok=True)


def set_aside_run(output_dir: Path) -> None:
    """Move an earlier run's curves, results and checkpoints to `previous-1`, or the next number.

    So that nothing takes them for those of the run that begins.
    """
    found = [f for f in output_dir.glob("*") if _OF_A_RUN.fullmatch(f.name)]
    if not found:
        return
    numbers = itertools.count(1)
    folder = next(f for n in numbers if not (f := output_dir / f"previous-{n}").exists())
    folder.mkdir()
    for file in found:
        file.replace(folder / file.name)
    logger.warning("%s held a run, which is in %s now", output_dir, folder)
