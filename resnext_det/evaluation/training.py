"""What a run's folder tells of its training, to judge a low AP by."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from ..errors import UserError


class RunMetrics(list[dict]):
    """Rows of a run's metrics.json, each with its `iteration`.

    Attributes:
        max_iter: how many iterations the run was to have; None where that is not known.
    """

    def __init__(self, rows: Iterable[dict] = (), max_iter: int | None = None) -> None:
        super().__init__(rows)
        self.max_iter = max_iter


def planned_iterations(config_file: Path) -> int | None:
    """The number of iterations in a run's config.yaml, of either kind; None if it does not say."""
    try:
        content = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for block, key in (("SOLVER", "MAX_ITER"), ("train", "max_iter")):
        settings = content.get(block) if isinstance(content, Mapping) else None
        value = settings.get(key) if isinstance(settings, Mapping) else None
        if type(value) is int:
            return value
    return None


def read_metrics(file: Path) -> list[dict]:
    """Read a run's `metrics.json`, one JSON object a line, each with its `iteration`.

    A last line without its end, of a run that was killed while it wrote, is left out.

    Raises:
        UserError: if the file is absent, empty or not JSON lines.
    """
    metrics = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise
            if not (isinstance(row, dict) and isinstance(row.get("iteration"), int)):
                raise ValueError(f"line {number} has no iteration")
            metrics.append(row)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a readable metrics.json: {error}") from error
    if not metrics:
        raise UserError(f"{file} is empty: the run has not reached an iteration to report")
    return metrics


def metrics_if_any(file: Path) -> RunMetrics:
    """Rows of `read_metrics`; none if there is no such file, or it is not readable."""
    try:
        return RunMetrics(read_metrics(file), planned_iterations(file.parent / "config.yaml"))
    except UserError:
        return RunMetrics()
