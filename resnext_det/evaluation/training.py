"""What a run's folder tells of its training, to judge a low AP by."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml


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
