import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnext_det.evaluation.pictures import set_log_scale
from resnext_det.report.charts import Series, bar_chart, line_chart, matrix_chart, sparkline

NASTY = '</svg><script>x</script> $a_b$ "q" url(#there) #010101'


def lines(name, **options):
    series = [
        Series(NASTY, [0, 1, 2], [1.0, None, 2.0], 0),
        Series("b", [0, 1, 2], [3.0, 2.0, 1.0], 1),
    ]
    return line_chart(name, "Title", series, description=NASTY, xlabel="x", **options)


CHARTS = {
    "line": lines,
    "log": lambda name: lines(name, log=True, markers=True),
    "bar": lambda name: bar_chart(name, "T", ["a", "<b>"], [0.0, 3.0], description="d"),
    "matrix": lambda name: matrix_chart(
        name, "T", np.eye(30), description="d", xlabel="x", ylabel="y"
    ),
}


def parse(svg):
    svg = str(svg).replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize("kind", CHARTS)
def test_a_chart_is_whole_named_and_takes_its_colours_from_the_page(kind):
    svg = CHARTS[kind]("one")
    root = parse(svg)
    assert root.get("role") == "img" and root.get("aria-label").startswith(("Title: ", "T: "))
    styles = " ".join(e.get("style", "") for e in root.iter())
    assert "currentColor" in styles
    assert not re.search(r"#[0-9a-f]{6}", styles)
    assert not re.search(r"font-family: (?!inherit)", styles)
    tags = {e.tag for e in root.iter()}
    assert not tags & {"style", "script", "metadata", "title"}
    assert root.get("width") is None  # as wide as its place


@pytest.mark.parametrize("kind", CHARTS)
def test_two_charts_of_a_page_share_no_id_and_every_reference_has_its_target(kind):
    found = [{e.get("id") for e in parse(CHARTS[kind](n)).iter()} - {None} for n in ("a", "b")]
    assert not found[0] & found[1]
    for name, ids in zip(("a", "b"), found, strict=True):
        root = parse(CHARTS[kind](name))
        values = [v for e in root.iter() for v in e.attrib.values()]
        used = {t for v in values for t in re.findall(r"^(?:url\()?#([\w-]+)\)?$", v)}
        assert used == ids


def test_series_differ_by_colour_and_by_dashes():
    root = parse(lines("a"))
    styles = [e.get("style") for e in root.iter("path") if "--series-" in e.get("style", "")]
    of = [{s for s in styles if f"--series-{number})" in s} for number in (1, 2)]
    assert all(of)
    dashed = ["stroke-dasharray" in next(iter(group)) for group in of]
    assert dashed == [False, True]


@pytest.mark.parametrize("factor", [1.1, 1.6, 3, 8, 10, 20, 29, 90, 1000])
@pytest.mark.parametrize("low", [0.011, 0.3, 0.9])
def test_a_logarithmic_axis_has_numbers_and_none_on_another(factor, low):
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [low, factor * low])
    set_log_scale(axes)
    canvas.draw()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    bounds = axes.get_window_extent()
    boxes = [t.label1.get_window_extent() for t in ticks if t.label1.get_text()]
    boxes = sorted((b.y0, b.y1) for b in boxes if bounds.y0 <= (b.y0 + b.y1) / 2 <= bounds.y1)
    assert len(boxes) >= 2
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(boxes))


def test_the_same_chart_is_the_same_text():
    assert lines("a") == lines("a")


def test_drawing_leaves_matplotlibs_settings_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    lines("a")
    assert dict(mpl.rcParams) == before


def test_a_small_curve_has_its_points_and_its_gaps():
    svg = sparkline([100.0, 50.0, None, 25.0], 'of "x"')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'of "x"'
    assert [p.get("points") for p in root.iter("polyline")] == ["0,0 1,50", "3,75"]
