"""How a run, or several, went: curves over the iterations, and a table of the evaluations."""

import math
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ..evaluation.comparison import Run
from .charts import Series, line_chart
from .contract import TASKS


def training_charts(runs: Sequence[Run]) -> list[Markup]:
    """Losses, learning rate and AP over the iterations; overlaid where there are several runs.

    Args:
        runs: one without a metric leaves its colour to nobody.

    Returns:
        A chart for each of them that a run has values of.
    """
    alone = len(runs) == 1
    keys = sorted({key for run in runs for row in run.metrics for key in row})
    losses = [key for key in keys if key.startswith("loss_")] if alone else []
    panels = [
        ("losses", "Training losses", ["total_loss", *losses], {"log": True}),
        ("lr", "Learning rate", ["lr"], {"ylim": (0, None)}),
    ]
    for task, title in TASKS.items():
        names = "AP(50|75)?" if alone else "AP"
        found = [key for key in keys if re.search(rf"(^|/){task}/{names}$", key)]
        panels.append((task, f"{title}: AP, percent", found, {"markers": True, "ylim": (0, 102)}))
    charts = []
    for name, title, found, options in panels:
        series = _series(runs, found, name, positive="log" in options)
        if series:
            last = "; ".join(f"{line.label} ends at {line.y[-1]:.4g}" for line in series)
            charts.append(
                line_chart(
                    f"training-{name}", title, series, description=last, xlabel="iteration",
                    legend=not alone or len(series) > 1, **options,
                )
            )  # fmt: skip
    return charts


def _series(runs: Sequence[Run], keys: Sequence[str], task: str, *, positive: bool) -> list[Series]:
    """A line for each run and key; a run has the same colour in all charts of one key."""
    series = []
    for position, run in enumerate(runs):
        for key in keys:
            points = [(i, value) for i, value in run.points(key) if value > 0 or not positive]
            if not points:
                continue
            short = key.removeprefix(f"{task}/")
            if len(runs) == 1:
                label, number = short, len(series)
            elif len(keys) == 1:
                label, number = run.name, position
            else:
                label, number = f"{run.name}: {short}", len(series)
            series.append(Series(label, *zip(*points, strict=True), number))
    return series


def evaluations_table(metrics: Sequence[Mapping]) -> dict:
    """The evaluations of a run, a row each."""
    pattern = re.compile(rf"(^|/)({'|'.join(TASKS)})/AP(50|75)?$")
    keys = sorted({key for row in metrics for key in row if pattern.search(key)})
    rows: dict[int, dict] = {}
    for row in metrics:
        for key in keys:
            if key in row:
                value = row[key]
                known = value is not None and math.isfinite(value)
                rows.setdefault(row["iteration"], {})[key] = value if known else None
    return {"keys": keys, "rows": [(i, [rows[i].get(k) for k in keys]) for i in sorted(rows)]}
