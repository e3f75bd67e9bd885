"""Several runs side by side: their curves in one picture, and a table of where they ended."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tabulate import tabulate

from ..data.drawing import save_figure
from ..errors import UserError
from .pictures import set_log_scale
from .training import read_metrics

# of evaluations, higher is better: name in metrics.json and name for people
_METRICS = {
    "bbox/AP": "bbox AP",
    "segm/AP": "segm AP",
    "keypoints/AP": "keypoints AP",
    "classification/accuracy": "accuracy",
}
_COLOURS = colormaps["tab10"].colors
_STYLES = ("-", "--", ":", "-.")  # the next one after as many runs as there are colours
_DENSE = 15  # evaluations, above which points would hide the line


@dataclass(frozen=True)
class Run:
    """A run to compare.

    Attributes:
        name: of the legend.
        metrics: rows of `read_metrics`.
    """

    name: str
    metrics: Sequence[Mapping]

    def points(self, key: str) -> list[tuple[int, float]]:
        """(iteration, value) of a metric, in the order of iterations; none where it has none."""
        values = {row["iteration"]: row[key] for row in self.metrics if key in row}
        numbers = {i: v for i, v in values.items() if isinstance(v, (int, float))}
        return sorted((i, v) for i, v in numbers.items() if math.isfinite(v))

    def last(self, key: str) -> float | None:
        """A metric's last value; None where it has none."""
        points = self.points(key)
        return points[-1][1] if points else None

    def best(self, key: str) -> tuple[int, float] | None:
        """The first (iteration, value) of a metric's highest value; None where it has none."""
        return max(self.points(key), key=lambda point: point[1], default=None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; one that is named twice counts once.

    Args:
        folders: each an `OUTPUT_DIR` with a metrics.json, of a finished run or not.

    Raises:
        UserError: naming the first metrics.json that is absent, empty or damaged.
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    metrics = [read_metrics(folder / "metrics.json") for folder in once.values()]
    return [Run(*pair) for pair in zip(distinct_names(list(once)), metrics, strict=True)]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as many of its last parts as tell all of them apart.

    `a/x50/run`, `a/r50/run` give `x50/run`, `r50/run`. The parts that all of them end in are kept.

    Args:
        folders: absolute, all different.
    """
    longest = max(len(folder.parts) for folder in folders)
    for count in range(1, longest + 1):
        names = [os.path.join(*folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def plot_comparison(runs: Sequence[Run], png: Path) -> None:
    """Overlay the runs' curves, a colour each: loss, learning rate, AP, images per second.

    A panel that no run has anything for is left out.

    Args:
        runs: of `read_runs`.
        png: the picture to write.

    Raises:
        UserError: if no run has anything to show, or the picture cannot be written.
    """
    panels = [("total_loss", "total training loss"), ("lr", "learning rate")]
    panels += [(key, f"{name}, percent") for key, name in _METRICS.items()]
    panels += [("images_per_second", "images per second")]
    panels = [(key, title) for key, title in panels if any(run.points(key) for run in runs)]
    if not panels:
        names = ", ".join(run.name for run in runs)
        raise UserError(f"{names}: no loss, rate or evaluation to draw")
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(5 * columns, 8), 3.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    end = max(row["iteration"] for run in runs for row in run.metrics)
    for axes, (key, title) in zip(grid, panels, strict=False):
        _draw_panel(axes, runs, key)
        axes.set(title=title, xlabel="iteration", xlim=(0, max(1.02 * end, 1)))
    for axes in grid[len(panels) :]:
        axes.axis("off")
    _add_legend(figure, [run.name for run in runs], width=max(5 * columns, 8))
    save_figure(figure, png)


def _style(number: int) -> dict:
    """Of the run with this number, from 0."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _STYLES[number // len(_COLOURS) % len(_STYLES)],
    }


def _draw_panel(axes: Axes, runs: Sequence[Run], key: str) -> None:
    for number, run in enumerate(runs):
        points = run.points(key)
        marker = "o" if key in _METRICS and len(points) <= _DENSE else ""
        if len(points) == 1:
            marker = "o"  # a line needs two
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, marker=marker, markersize=4, linewidth=1.4, alpha=0.85, **_style(number)
            )
    if key == "total_loss":
        set_log_scale(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _add_legend(figure: Figure, names: Sequence[str], width: float) -> None:
    """Name the runs above the panels, which may lack some of them; `width` in inches."""
    lines = [Line2D([], [], linewidth=2.5, **_style(number)) for number in range(len(names))]
    columns = int(width / (0.7 + 0.085 * max(map(len, names))))
    figure.legend(
        lines, names, loc="outside upper center", ncols=max(1, min(columns, len(names))),
        fontsize=10, frameon=False,
    )  # fmt: skip


def format_comparison(runs: Sequence[Run]) -> str:
    """Print a row a run: where it is, its last loss, its best AP and when that was."""
    metrics = [key for key in _METRICS if any(run.points(key) for run in runs)]
    headers = ["run", "iteration", "total loss"]
    for key in metrics:
        headers += [f"best {_METRICS[key]}", "at"]
    rows = []
    for run in runs:
        loss = run.last("total_loss")
        row = [run.name, max(m["iteration"] for m in run.metrics), _shown(loss, "{:.4g}")]
        for key in metrics:
            at, value = run.best(key) or (None, None)
            row += [_shown(value, "{:.2f}"), _shown(at, "{}")]
        rows.append(row)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def compare_runs(folders: Sequence[Path], png: Path) -> str:
    """Draw runs into one picture.

    Args:
        folders: as of `read_runs`.
        png: the picture to write.

    Returns:
        The table of `format_comparison`.

    Raises:
        UserError: if a metrics.json is not readable, or the picture cannot be written.
    """
    if png.suffix.lower() != ".png":
        raise UserError(f"--output {png}: name a .png file")
    runs = read_runs(folders)
    plot_comparison(runs, png)
    return format_comparison(runs)
