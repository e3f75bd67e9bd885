"""A run's results on disk."""

import itertools
import json
import logging
import math
import re
from pathlib import Path

from ..atomic import replacing

logger = logging.getLogger(__name__)

_OF_A_RUN = re.compile(
    r"(metrics|results|evaluations|run|nan_batch)\.json|last_checkpoint|nan_batch\.pth"
    r"|model_(\d{7,}|final|final_ema|best)\.pth"
)


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
