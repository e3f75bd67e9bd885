"""What a page that compares runs shows, as plain values and charts for the template."""

from collections.abc import Iterator, Mapping, Sequence

import yaml
from markupsafe import Markup

from ..evaluation.comparison import Run
from .charts import Series, line_chart
from .contract import TASKS
from .reading import RunFiles
from .training import training_charts


def comparison_content(runs: Sequence[RunFiles], names: Sequence[str]) -> dict:
    """Everything that `comparison.html` names.

    Args:
        runs: the first is what the others are compared with.
        names: as many, all different.
    """
    tested = list(dict.fromkeys(name for run in runs for name in run.evaluations))
    sections = []
    for number, dataset in enumerate(tested, 1):
        found = [run.evaluations.get(dataset) for run in runs]
        for key, title in TASKS.items():
            tasks = [e["tasks"].get(key) if e else None for e in found]
            if any(tasks):
                sections.append(
                    {
                        "id": f"d{number}-{key}",
                        "title": f"{dataset}: {title.lower()}",
                        "figures": _figures(tasks),
                        "curves": _curves(f"d{number}-{key}", tasks, names),
                        "classes": _classes(tasks),
                    }
                )
    curves = [Run(name, run.metrics) for name, run in zip(names, runs, strict=True)]
    return {
        "names": names,
        "runs": runs,
        "sections": sections,
        "notes": _notes(runs, names, tested),
        "charts": training_charts(curves),
        "config": _config_differences(runs),
    }


def _notes(runs: Sequence[RunFiles], names: Sequence[str], tested: Sequence[str]) -> list[str]:
    """What makes figures of these runs not comparable."""
    notes = []
    for dataset in tested:
        lacking = [n for n, r in zip(names, runs, strict=True) if dataset not in r.evaluations]
        if lacking:
            notes.append(f"{', '.join(lacking)}: not evaluated on {dataset}.")
        for key, what in (("images", "images"), ("limit", "limit of images"), ("tta", "TTA")):
            values = [r.evaluations[dataset].get(key) for r in runs if dataset in r.evaluations]
            if len(set(values)) > 1:
                shown = ", ".join(map(str, values))
                notes.append(f"{dataset}: the runs differ in {what} ({shown}).")
                break
        else:
            notes += _data_notes(runs, dataset)
    return notes


def _data_notes(runs: Sequence[RunFiles], dataset: str) -> Iterator[str]:
    """Whether runs mean other data by one name."""
    found = [run.evaluations[dataset]["tasks"] for run in runs if dataset in run.evaluations]
    for key, title in TASKS.items():
        classes = [
            [(c["name"], c["objects"]) for c in t[key]["classes"]] for t in found if key in t
        ]
        if any(other != classes[0] for other in classes[1:]):
            counts = ", ".join(f"{len(c)} with {sum(n for _, n in c)}" for c in classes)
            yield (
                f"{dataset}: {title.lower()} were tested on other classes, or on other numbers of "
                f"objects ({counts}): the data differ under one name."
            )
    last = [run.starts[-1].get("datasets", {}) for run in runs if run.starts]
    sums = [str(d[dataset]["sha256"])[:12] for d in last if d.get(dataset, {}).get("sha256")]
    if len(set(sums)) > 1:
        yield f"{dataset}: the runs' annotation files differ (sha256 {', '.join(sums)})."


def _figures(tasks: Sequence[Mapping | None]) -> list[dict]:
    labels = list(dict.fromkeys(label for task in tasks if task for label in task["figures"]))
    values = [[task["figures"].get(x) if task else None for task in tasks] for x in labels]
    return [_row(label, row) for label, row in zip(labels, values, strict=True)]


def _classes(tasks: Sequence[Mapping | None]) -> list[dict]:
    by_name = [{c["name"]: c["AP"] for c in task["classes"]} if task else {} for task in tasks]
    labels = list(dict.fromkeys(name for names in by_name for name in names))
    return [_row(label, [names.get(label) for names in by_name]) for label in labels]


def _row(label: str, values: Sequence[float | None]) -> dict:
    """Values of all runs, and of all but the first the difference to it."""
    first = values[0]
    differences = [None if v is None or first is None else v - first for v in values[1:]]
    return {
        "label": label,
        "first": first,
        "others": list(zip(values[1:], differences, strict=True)),
    }


def _curves(name: str, tasks: Sequence[Mapping | None], names: Sequence[str]) -> Markup:
    recall = [i / 100 for i in range(101)]
    series = [
        Series(names[number], recall, task["curves"]["precision"]["0.50"], number)
        for number, task in enumerate(tasks)
        if task
    ]
    ends = "; ".join(f"{s.label}: {s.y[50] or 0:.0f} at recall 0.5" for s in series)
    return line_chart(
        f"{name}-pr", "Precision by recall, IoU 0.5", series, xlabel="recall", ylim=(0, 102),
        description=f"percent, mean over classes; {ends}",
    )  # fmt: skip


def _config_differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Keys in which the configs differ, with each run's value; an empty text for none."""
    flat = [dict(_leaves(yaml.safe_load(run.config_text))) for run in runs]
    keys = sorted({key for leaves in flat for key in leaves} - {"OUTPUT_DIR"})
    rows = [(key, [leaves.get(key, "") for leaves in flat]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) or "''"
