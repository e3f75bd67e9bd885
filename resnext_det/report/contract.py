"""What the report expects of the files that it reads: damage is found before anything is drawn."""

import math
from collections.abc import Mapping, Sequence

TASKS = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
CLASS_FIGURES = ("AP", "AP50", "AP75", "AR", "precision", "recall")
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
RECALLS = 101  # points of a precision-recall curve: 0, 0.01 .. 1
PRECISIONS = ("0.50", "0.75", "mean")


def check_evaluation(content: object) -> None:
    """Check the content of an evaluation.json.

    Raises:
        ValueError: naming the first thing that is absent or of another type.
    """
    _mapping(content, "the file")
    for key in ("dataset", "implementation"):
        _require(isinstance(content.get(key), str), f"{key} is no text")
    for key in ("images", "score"):
        _number(content.get(key), key)
    tasks = _mapping(content.get("tasks"), "tasks")
    for name, task in tasks.items():
        _require(name in TASKS, f"task {name} is unknown")
        _check_task(_mapping(task, name), name)


def check_detections(content: object) -> None:
    """Check the content of a coco_instances_results.json.

    Raises:
        ValueError: naming the first entry that is damaged.
    """
    for number, entry in enumerate(_sequence(content, "the file")):
        name = f"entry {number}"
        for key in ("image_id", "category_id", "score"):
            _number(_mapping(entry, name).get(key), f"{name}: {key}")
        _require(len(_sequence(entry.get("bbox"), f"{name}: bbox")) == 4, f"{name}: bbox")
        for value in entry["bbox"]:
            _number(value, f"{name}: bbox")


def check_starts(content: object) -> None:
    """Check the content of a run.json.

    Raises:
        ValueError: naming the first thing that is of another type.
    """
    for start in _sequence(content, "the file"):
        _require(isinstance(_mapping(start, "a start").get("command", ""), str), "command")
        _mapping(start.get("versions", {}), "versions")
        for name, data in _mapping(start.get("datasets", {}), "datasets").items():
            _mapping(data, f"data set {name}")
        _sequence(start.get("config_changes", []), "config_changes")
        if start.get("processes") is not None:
            _number(start["processes"], "processes")
        if start.get("git") is not None:
            _require(
                isinstance(_mapping(start["git"], "git").get("commit"), str), "git has no commit"
            )
            _sequence(start["git"].get("changed", []), "git's changed")


def _check_task(task: Mapping, name: str) -> None:
    for key, value in _mapping(task.get("figures"), f"{name}: figures").items():
        _percent(value, f"{name}: {key}")
    _require("AP" in task["figures"], f"{name}: figures lack AP")
    for entry in _sequence(task.get("classes"), f"{name}: classes"):
        _require(isinstance(_mapping(entry, "a class").get("name"), str), "a class has no name")
        _number(entry.get("objects"), f"{name}: objects of {entry['name']}")
        for key in CLASS_FIGURES:
            _percent(entry.get(key), f"{name}: {key} of {entry['name']}")
    curves = _mapping(task.get("curves"), f"{name}: curves")
    precision = _mapping(curves.get("precision"), f"{name}: precision")
    for key in PRECISIONS:
        _curve(precision.get(key), f"{name}: precision at {key}")
    for key, curve in _mapping(curves.get("classes"), f"{name}: curves of classes").items():
        _curve(curve, f"{name}: curve of {key}")
    if task.get("errors") is not None:
        errors = _mapping(task["errors"], f"{name}: errors")
        for key in ("delta", "counts"):
            values = _mapping(errors.get(key), f"{name}: errors' {key}")
            for error in ERRORS:
                _percent(values.get(error), f"{name}: {error}")
    if task.get("confusion") is not None:
        _check_confusion(_mapping(task["confusion"], f"{name}: confusion"), name)
    for finding in _sequence(task.get("findings", []), f"{name}: findings"):
        for key in ("message", "remedy"):
            _require(isinstance(_mapping(finding, "a finding").get(key), str), f"no {key}")


def _check_confusion(confusion: Mapping, name: str) -> None:
    labels = _sequence(confusion.get("labels"), f"{name}: labels")
    matrix = _sequence(confusion.get("matrix"), f"{name}: matrix")
    square = len(matrix) == len(labels)
    for row in matrix:
        square = square and len(_sequence(row, f"{name}: a row")) == len(labels)
        for value in row:
            _number(value, f"{name}: confusion")
    _require(square, f"{name}: the confusion matrix is not square")


def _curve(value: object, name: str) -> None:
    _require(len(_sequence(value, name)) == RECALLS, f"{name} has not {RECALLS} points")
    for point in value:
        _percent(point, name)


def _percent(value: object, name: str) -> None:
    if value is not None:
        _number(value, name)


def _number(value: object, name: str) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(good, f"{name} is no number")


def _mapping(value: object, name: str) -> Mapping:
    _require(isinstance(value, Mapping), f"{name} is no object")
    return value


def _sequence(value: object, name: str) -> Sequence:
    _require(isinstance(value, list), f"{name} is no list")
    return value


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
