"""A benchmark's report as text."""

from collections.abc import Callable, Iterable

from tabulate import tabulate

from .results import Report, Row

_NOTHING = "-"


def format_report(report: Report) -> str:
    """All tables, with a line each on what they show."""
    blocks = [_head(report)]
    for scope, rows in report.rows.items():
        blocks.append(_latencies(report, scope, rows))
    if report.rows:
        scope, rows = list(report.rows.items())[-1]
        blocks.append(_rates(scope, rows))
    for scope, rows in report.rows.items():
        blocks.append(_costs(scope, rows))
    if report.parts:
        blocks.append(_parts(report))
    if report.forms:
        blocks.append(_forms(report))
    missing = [
        f"{row.title}, {scope}: {row.missing}"
        for scope, rows in report.rows.items()
        for row in rows
        if row.missing
    ]
    if missing:
        blocks.append("\n".join(missing))
    return "\n\n".join(blocks)


def _head(report: Report) -> str:
    machine, settings = report.machine, report.settings
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    weights = settings.weights or "random weights"
    image = settings.image or "noise"
    return (
        f"{settings.config}, {weights}, {image} of {report.height} x {report.width} pixels, "
        f"{settings.repeats} rounds\n"
        f"{machine['cpu'] or 'unknown CPU'}; cores: {machine['cores']}, torch threads: "
        f"{machine['threads']}; {versions}"
    )


def _latencies(report: Report, scope: str, rows: list[Row]) -> str:
    backbone = scope == "backbone"
    headers = ["", "ms", "p90", "ratio"]
    headers += ["% of peak", "difference"] if backbone else ["same", "box (px)", "score"]
    cells = []
    for row in _measured(rows):
        line = [row.title, _ms(row.median), _ms(row.p90), f"{report.ratio(scope, row):.2f}"]
        if backbone:
            line += [_show(row.flops_share, lambda s: f"{100 * s:.0f}")]
            line += [_show(row.difference, "{:.1e}".format)]
        elif row.agreement is None:
            line += [_NOTHING] * 3
        else:
            found = row.agreement
            line += [f"{found.matched} of {found.expected}"]
            line += [_show(found.box, "{:.4f}".format), _show(found.score, "{:.1e}".format)]
        cells.append(line)
    if backbone:
        title = "Backbone, one image, from the stem to the last stage"
        if report.peak_flops_per_s is not None and report.multiply_adds is not None:
            title += (
                f"; {2 * report.multiply_adds / 1e9:.0f} GFLOP, peak (a float32 matrix product) "
                f"{report.peak_flops_per_s / 1e9:.0f} GFLOP/s"
            )
    else:
        title = "Whole detector, one image; detections that are the same as Detectron2's"
    return _table(title, headers, cells)


def _rates(scope: str, rows: list[Row]) -> str:
    rows = _measured(rows)
    kinds = [(rate.batch, rate.streams) for rate in rows[0].rates]
    headers = ["", *(f"batch {b}" if s == 1 else f"{s} streams" for b, s in kinds)]
    cells = [
        [row.title, *(_show(row.rate(*kind), "{:.2f}".format) for kind in kinds)] for row in rows
    ]
    return _table(f"Images per second, {scope}", headers, cells)


def _costs(scope: str, rows: list[Row]) -> str:
    headers = ["", "compile (s)", "first run (s)", "new size (s)"]
    with_memory = any(row.memory for row in rows)
    if with_memory:
        headers += ["building (MiB)", "running (MiB)"]
    cells = []
    for row in _measured(rows):
        line = [row.title]
        line += [_show(v, "{:.2f}".format) for v in (row.make_s, row.first_s, row.new_size_s)]
        if with_memory:
            line += [_show(row.memory and row.memory.make, "{:.0f}".format)]
            line += [_show(row.memory and row.memory.run, "{:.0f}".format)]
        cells.append(line)
    title = f"First calls{' and peak memory' if with_memory else ''}, {scope}"
    return _table(title, headers, cells)


def _parts(report: Report) -> str:
    names = dict.fromkeys(name for parts in report.parts.values() for name in parts)
    cells = [
        [name, *(_show(parts.get(name), _ms) for parts in report.parts.values())] for name in names
    ]
    return _table("Parts of the whole detector, ms", ["", *report.parts], cells)


def _forms(report: Report) -> str:
    hows = list(report.forms["c"])
    headers = ["form", *(word for how in hows for word in (f"{how} (ms)", "to c"))]
    cells = []
    for form, seconds in report.forms.items():
        line = [form]
        for how in hows:
            line += [_ms(seconds[how]), f"{seconds[how] / report.forms['c'][how]:.2f}"]
        cells.append(line)
    return _table("Forms of Fig. 3, backbone in f32", headers, cells)


def _measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.seconds]


def _table(title: str, headers: list[str], cells: list[list[str]]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return f"{title}\n" + tabulate(cells, headers, disable_numparse=True, colalign=align)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.1f}"


def _show(value: float | None, form: Callable[[float], str]) -> str:
    return _NOTHING if value is None else form(value)
