"""A benchmark's latencies as a bar chart."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data.drawing import save_figure
from .results import Report
from .settings import BASELINE

_BASELINE, _OURS, _OTHERS = "#555555", "#2d7dd2", "#c9a227"
_BAR = 0.34  # inches
_TITLES = {"backbone": "backbone", "whole": "whole detector"}


def draw_report(report: Report, png: Path) -> None:
    """Draw a bar for each side that was timed, with its ratio to Detectron2.

    Args:
        report: with rows.
        png: file to write.

    Raises:
        UserError: if it cannot be written.
    """
    counts = [sum(bool(r.seconds) for r in rows) for rows in report.rows.values()]
    height = _BAR * sum(counts) + 0.9 * len(counts) + 0.6
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(len(counts), squeeze=False, height_ratios=counts)[:, 0]
    for axes, scope in zip(panels, report.rows, strict=True):
        _draw_scope(axes, report, scope)
    machine = report.machine
    figure.suptitle(
        f"{Path(report.settings.config).stem}, {report.height} x {report.width}, "
        f"{machine['cpu'] or 'CPU'}, torch threads: {machine['threads']}",
        fontsize=11,
    )
    save_figure(figure, png)


def _draw_scope(axes: Axes, report: Report, scope: str) -> None:
    rows = [row for row in report.rows[scope] if row.seconds]
    medians = [1000 * row.median for row in rows]
    colours = [
        _BASELINE if r.name == BASELINE else _OURS if r.title.startswith("ours") else _OTHERS
        for r in rows
    ]
    bars = axes.barh([row.title for row in rows], medians, color=colours, height=0.7)
    labels = [
        f"{ms:.0f} ms   {report.ratio(scope, row):.2f}x"
        for ms, row in zip(medians, rows, strict=True)
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(medians) * 1.22)  # room for the labels
    axes.set_title(
        f"{_TITLES[scope]}: milliseconds an image, times as fast as Detectron2", fontsize=10
    )
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
