"""A run's results on disk."""

import json
import math
from pathlib import Path

from ..atomic import replacing


def write_results(results: dict, path: Path) -> None:
    """Write evaluation results as JSON, with null for NaN, whole or not at all."""

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(clean(results), indent=2) + "\n", encoding="utf-8")


def set_aside_metrics(output_dir: Path) -> None:
    """Keep the curves and results of an earlier run in the same folder out of a new run's files."""
    for name in ("metrics", "results"):
        file = output_dir / f"{name}.json"
        if file.is_file():
            file.replace(file.with_name(f"{name}.previous.json"))
