"""One task of a test set: boxes, masks or keypoints."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from ..evaluation.diagnosis import INFORMATION
from .charts import Series, bar_chart, line_chart, matrix_chart, sparkline
from .contract import CLASS_FIGURES, ERRORS, TASKS

_SMALL_MATRIX = 15  # labels, up to which a confusion matrix is a table that one can read
_PAIRS = 20  # of classes that are confused most, listed where there are more labels
_PRECISIONS = {"0.50": "IoU 0.5", "0.75": "IoU 0.75", "mean": "mean of 0.5 to 0.95"}
_EXPLAINED = {
    "classification": "place right, class wrong",
    "localisation": "class right, box too far off (IoU 0.1 to 0.5)",
    "both": "class wrong and box too far off",
    "duplicate": "of an object that a better prediction has",
    "background": "no object there",
    "missed": "an object that nothing else explains",
}
_MEANING = {
    "AP": "mean of IoU 0.5 to 0.95",
    "AP50": "at IoU 0.5",
    "AP75": "at IoU 0.75",
    "APs": "small, below 32² pixels",
    "APm": "medium",
    "APl": "large, above 96² pixels",
    "AR1": "recall of 1 detection",
    "AR10": "recall of 10 detections",
    "AR100": "recall of 100 detections",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
    "AR": "recall",
    "AR50": "recall at IoU 0.5",
    "AR75": "recall at IoU 0.75",
}


def task_content(
    name: str, dataset: str, key: str, task: Mapping, published: Mapping[str, float]
) -> dict:
    """What is shown of one task of a test set.

    Args:
        name: unique on the page, for ids.
        dataset: the test set's name, with the task a label that is unique on the page.
        key: bbox, segm or keypoints.
        task: of evaluation.json.
        published: the paper's figures, percent; none if there are none to compare with.
    """
    figures = task["figures"]
    curves = task["curves"]
    measure = "OKS" if key == "keypoints" else "IoU"
    meanings = [_MEANING.get(label, "").replace("IoU", measure) for label in figures]
    heads = {k: head.replace("IoU", measure) for k, head in _PRECISIONS.items()}
    return {
        "id": name,
        "title": TASKS[key],
        "label": f"{dataset}, {TASKS[key].lower()}",
        "measure": measure,
        "cards": list(zip(figures, figures.values(), meanings, strict=True)),
        "published": [(label, figures.get(label), value) for label, value in published.items()]
        if key == "bbox"
        else [],
        "findings": task.get("findings", []),
        "information": INFORMATION,  # codes of findings that are no fault
        "curves": _precision_chart(name, curves["precision"], heads),
        "curves_table": [
            (f"{i / 100:.1f}", [curves["precision"][k][i] for k in _PRECISIONS])
            for i in range(0, 101, 10)
        ],
        "curves_heads": list(heads.values()),
        "sparks": _sparks(task),
        "classes": task["classes"],
        "class_figures": CLASS_FIGURES,
        "confusion": _confusion(name, task.get("confusion")),
        "errors": _errors(name, task.get("errors")),
    }


def _precision_chart(
    name: str, precision: Mapping[str, Sequence[float | None]], labels: Mapping[str, str]
) -> Markup:
    recall = [i / 100 for i in range(101)]
    series = [
        Series(label, recall, precision[key], number)
        for number, (key, label) in enumerate(labels.items())
    ]
    return line_chart(
        f"{name}-pr", "Precision by recall", series, xlabel="recall", ylim=(0, 102),
        description="precision in percent, mean over classes; the table below has the values",
    )  # fmt: skip


def _sparks(task: Mapping) -> list[dict]:
    shown = []
    for entry in task["classes"]:
        curve = task["curves"]["classes"].get(entry["name"])
        if curve is not None and any(value is not None for value in curve):
            middle = "n/a" if curve[50] is None else f"{curve[50]:.0f} percent"
            text = f"{entry['name']}: precision {middle} at recall 0.5"
            spark = sparkline(curve, text)
            shown.append({"name": entry["name"], "AP50": entry["AP50"], "svg": spark})
    return shown


def _confusion(name: str, confusion: Mapping | None) -> dict | None:
    if confusion is None:
        return None
    labels = confusion["labels"]
    matrix = np.array(confusion["matrix"], np.int64).reshape(len(labels), len(labels))
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    pairs = [
        (labels[row], labels[column], int(matrix[row, column]), float(100 * shares[row, column]))
        for row, column in np.argwhere(matrix)
        if row != column
    ]
    pairs.sort(key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))
    small = len(labels) <= _SMALL_MATRIX
    rows = [
        (label, list(zip(matrix[i].tolist(), shares[i].round(4).tolist(), strict=True)))
        for i, label in enumerate(labels)
    ]
    picture = None if small else matrix_chart(
        f"{name}-confusion", "Share of each class's objects", shares,
        xlabel="predicted class, by number", ylabel="true class, by number",
        description="the diagonal is right; the table beside it lists the largest other cells",
    )  # fmt: skip
    return {
        **confusion,
        "rows": rows if small else [],
        "pairs": pairs[:_PAIRS],
        "pairs_in_all": len(pairs),
        "picture": picture,
    }


def _errors(name: str, errors: Mapping | None) -> dict | None:
    if errors is None:
        return None
    delta = errors["delta"]
    rows = [(key, _EXPLAINED[key], delta[key], errors["counts"][key]) for key in ERRORS]
    values = ", ".join(f"{key} {delta[key] or 0:.1f}" for key in ERRORS)
    chart = bar_chart(
        f"{name}-errors", "AP50 that mending an error gains", ERRORS,
        [delta[key] or 0 for key in ERRORS], description=f"points: {values}",
    )  # fmt: skip
    return {"AP50": errors.get("AP50"), "rows": rows, "chart": chart}
