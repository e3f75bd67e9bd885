"""Charts as SVG that stands inside a page: its colours come from the page's style."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..evaluation.pictures import set_log_scale

# Stand-ins that matplotlib can draw with; `_for_page` puts the page's colours in their place.
_INK, _GRID = "#010101", "#020202"
_SERIES = tuple(f"#0300{number:02x}" for number in range(1, 9))  # var(--series-1) .. 8
_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (3, 1)))
_MATRIX_RGB = (45, 125, 210)  # a blue seen on white and on black; opacity tells the value
_DENSE = 15  # points of a series, above which markers would hide the line
_SIZE = (4.4, 3.2)  # inches; a chart of the page's three columns keeps its text at 10 px
_RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs are foreign text
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "grid.color": _GRID,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: of the legend.
        x: values, ascending.
        y: as many values; None leaves a gap.
        number: of its colour and style, from 0.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    number: int


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    description: str,
    xlabel: str,
    ylim: tuple[float, float | None] | None = None,
    log: bool = False,
    markers: bool = False,
    legend: bool = True,
) -> Markup:
    """Draw lines, told apart by colour and by style, with a legend below.

    Args:
        name: of the chart, unique on its page; letters, digits and hyphens.
        title: above it.
        series: at least one.
        description: what a reader who does not see it should know.
        xlabel: below the horizontal axis.
        ylim: bounds of the vertical axis; None fits them to the values.
        log: a logarithmic vertical axis.
        markers: mark the points, where they are few.
        legend: name the lines below the axes.
    """
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for line in series:
            y = np.array([np.nan if value is None else value for value in line.y], float)
            few = len(line.x) == 1 or (markers and len(line.x) <= _DENSE)
            axes.plot(
                line.x, y, label=_short(line.label), color=_SERIES[line.number % len(_SERIES)],
                linestyle=_STYLES[line.number % len(_STYLES)],
                marker="o" if few else "", markersize=4,
            )  # fmt: skip
        axes.set(title=title, xlabel=xlabel)
        if all(float(x).is_integer() for line in series for x in line.x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(left=0)
        if ylim:
            axes.set_ylim(*ylim)
        if log:
            set_log_scale(axes)
        axes.grid(linewidth=0.6)
        if legend:
            longest = max(len(_short(line.label)) for line in series)
            columns = max(1, min(len(series), 3, int(50 / (longest + 6))))
            figure.legend(loc="outside lower center", ncols=columns)
        return _for_page(figure, name, f"{title}: {description}")


def _short(label: str) -> str:
    """A legend wider than its chart would leave no room for lines."""
    return label if len(label) <= 40 else f"{label[:25]}...{label[-12:]}"


def bar_chart(
    name: str, title: str, labels: Sequence[str], values: Sequence[float], *, description: str
) -> Markup:
    """Draw horizontal bars with their values, the first on top; see `line_chart`."""
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        figure = Figure(figsize=(_SIZE[0], 0.9 + 0.36 * len(labels)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(list(labels), list(values), color=_SERIES[0], height=0.66)
        axes.bar_label(bars, fmt="{:.1f}", padding=4)
        axes.invert_yaxis()
        axes.set(title=title, xlim=(min(0, *values), 1.15 * max(1, *values)))
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        return _for_page(figure, name, f"{title}: {description}")


def matrix_chart(
    name: str, title: str, shares: np.ndarray, *, description: str, xlabel: str, ylabel: str
) -> Markup:
    """Draw a matrix as squares that are the more opaque the higher the value; see `line_chart`.

    Args:
        shares: (K, K), 0 to 1.
    """
    image = np.zeros((*shares.shape, 4), np.uint8)
    image[..., :3] = _MATRIX_RGB
    image[..., 3] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))  # roots show small shares
    scale = max(1, 480 // len(shares))  # whole, for squares with sharp edges in any viewer
    image = image.repeat(scale, 0).repeat(scale, 1)
    with mpl.rc_context({**_RC, "svg.hashsalt": name, "svg.image_inline": True}):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        axes = figure.subplots()
        end = len(shares) + 0.5
        axes.imshow(image, extent=(0.5, end, end, 0.5), interpolation="none")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        return _for_page(figure, name, f"{title}: {description}")


def sparkline(percents: Sequence[float | None], description: str) -> Markup:
    """Draw one precision-recall curve small: recall 0 to 1 by precision 0 to 100 percent."""
    lines: list[list[str]] = [[]]
    for x, y in enumerate(percents):
        if y is None:
            lines.append([])
        else:
            lines[-1].append(f"{x},{100 - y:.1f}".replace(".0", ""))
    paths = "".join(f'<polyline points="{" ".join(line)}"/>' for line in lines if line)
    return Markup(
        '<svg class="spark" viewBox="-1 -3 103 105" role="img" preserveAspectRatio="none" '
        f'aria-label="{escape(description)}"><path d="M0 0V100H101M0 50H101"/>{paths}</svg>'
    )


def _for_page(figure: Figure, name: str, description: str) -> Markup:
    """Print a figure as an <svg> element with ids of its own and the page's fonts and colours."""
    FigureCanvasSVG(figure)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"^.*?<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"\1>", file.getvalue(), flags=re.S)
    # a style element would reach the whole page; comments hold names a second time
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*|<!--.*?-->\s*", "", svg, flags=re.S)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", svg)
    svg = re.sub(r'style="[^"]*"', lambda match: _page_style(match[0]), svg)
    label = escape(description)
    return Markup(f'<svg class="chart" role="img" aria-label="{label}" {svg.strip()}')


def _page_style(style: str) -> str:
    style = re.sub(r"font-family: [^;\"]+", "font-family: inherit", style)
    style = re.sub(r"(font: .*?px) [^;\"]+", r"\1 inherit", style)
    style = style.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    for number, colour in enumerate(_SERIES, 1):
        style = style.replace(colour, f"var(--series-{number})")
    return style
