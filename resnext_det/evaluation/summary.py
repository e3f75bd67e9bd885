"""All of an evaluation: figures, classes, curves, errors and findings, and the files with them."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from ..atomic import replacing
from .breakdown import confusion, error_breakdown
from .detections import Detections, require
from .diagnosis import Finding, diagnose
from .measures import (
    FIGURES,
    check_keypoints,
    measures_of,
    run_hotcoco,
    run_pycocotools,
)
from .per_class import class_table
from .truth import Truth

logger = logging.getLogger(__name__)

PER_CLASS = ("AP", "AP50", "AP75", "AR", "precision", "recall")

Diagnose = Callable[..., Sequence[Finding]]  # as `diagnose`


def evaluate_tasks(
    truth: Truth,
    detections: Detections,
    tasks: Sequence[str],
    *,
    evaluator: str = "hotcoco",
    score: float = 0.5,
    sigmas: Sequence[float] = (),
    diagnose: Diagnose = diagnose,
) -> dict[str, dict]:
    """Evaluate detections as COCO does, and look into what they get wrong.

    Args:
        truth: with annotations.
        detections: of its images, in its category ids.
        tasks: of "bbox", "segm" and "keypoints".
        evaluator: "hotcoco" or "pycocotools", by which the figures are measured; precision and
            recall at a score and the breakdown of errors are always hotcoco's.
        score: the operating point, 0 to 1.
        sigmas: of keypoints, see `run_hotcoco`.
        diagnose: finds what may be wrong.

    Returns:
        For each task `figures`, `classes`, `curves`, `errors`, `confusion` and `findings`, as they
        stand in `evaluation.json` but for NaN.

    Raises:
        UserError: if the ground truth lacks what a task needs, or a detection is not finite.
    """
    require(detections, tasks, truth.image_ids)
    return {
        task: _evaluate_task(
            truth,
            detections,
            task,
            evaluator=evaluator,
            score=score,
            sigmas=sigmas,
            diagnose=diagnose,
        )
        for task in sorted(tasks)
    }


def _evaluate_task(
    truth: Truth,
    detections: Detections,
    task: str,
    *,
    evaluator: str,
    score: float,
    sigmas: Sequence[float],
    diagnose: Diagnose,
) -> dict:
    truth.require(task)
    if task == "keypoints":
        check_keypoints(truth, detections, sigmas)
    found = detections.in_hotcoco(truth.coco, task)
    run = run_hotcoco(truth, found, task, sigmas=sigmas)
    if evaluator == "pycocotools":
        measures = run_pycocotools(truth, detections, task, sigmas=sigmas)
    else:
        measures = measures_of(run, task)
    figures = measures.figures()
    findings = _attempt(lambda: diagnose(truth.coco, found, task, figures, score=score)) or []
    return {
        "figures": figures,
        "classes": class_table(truth, detections, measures, score=score, sigmas=sigmas),
        "curves": measures.curves(truth.names),
        "errors": _attempt(lambda: error_breakdown(run)),
        "confusion": _attempt(lambda: confusion(run, score)),
        "findings": [{"code": f.code, "message": f.message, "remedy": f.remedy} for f in findings],
    }


def _attempt(examine: Callable[[], object]) -> object:
    """What `examine` finds; an error in it is reported and costs nobody the figures."""
    try:
        return examine()
    except Exception:
        logger.warning("an error of this evaluation could not be explained", exc_info=True)
        return None


def results_of(tasks: Mapping[str, Mapping]) -> dict[str, dict[str, float]]:
    """Reduce `evaluate_tasks` to Detectron2's results, {task: {metric: percent}}.

    Besides the figures each class's AP is there as "AP-<class>", if there are several.
    """
    results = {}
    for task, content in tasks.items():
        results[task] = dict(content["figures"])
        if len(content["classes"]) > 1:
            results[task] |= {f"AP-{row['name']}": row["AP"] for row in content["classes"]}
    return results


def with_classes(results: Mapping[str, Mapping], tasks: Mapping[str, Mapping]) -> dict:
    """Add to results, for `results.json`, each task's `per_class`: {class: {metric: percent}}.

    Args:
        results: of `results_of`, or of tasks that have no classes, which stay as they are.
        tasks: those of `evaluate_tasks`, or of an evaluation.json.
    """
    complete = {task: dict(metrics) for task, metrics in results.items()}
    for task in complete.keys() & tasks.keys():
        rows = tasks[task]["classes"]
        complete[task]["per_class"] = {
            row["name"]: {metric: row[metric] for metric in PER_CLASS} for row in rows
        }
    return complete


def write_evaluation(
    file: Path,
    tasks: Mapping[str, Mapping],
    *,
    dataset: str,
    images: int,
    implementation: str,
    score: float,
    limit: int | None = None,
    tta: bool = False,
) -> None:
    """Write `evaluation.json`, of which reports are made.

    Args:
        file: to write.
        tasks: of `evaluate_tasks`.
        dataset: its name, or its file's.
        images: that were evaluated.
        implementation: of the figures, see `resnext_det.evaluation.measures.implementation`.
        score: the operating point, 0 to 1.
        limit: how many images were asked for; None for all.
        tta: whether detections are those of test-time augmentation.

    Raises:
        UserError: if it cannot be written.
    """
    content = {
        "dataset": dataset,
        "images": images,
        "implementation": implementation,
        "score": score,
        "limit": limit,
        "tta": tta,
        "tasks": tasks,
    }
    write_json(content, file, indent=None)


def write_json(content: object, file: Path, *, indent: int | None = 2) -> None:
    """Write JSON with null for NaN, whole or not at all.

    Args:
        content: to write.
        file: where.
        indent: spaces; None puts everything into one line.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(file) as temporary:
        text = json.dumps(_without_nan(content), allow_nan=False, indent=indent)
        temporary.write_text(text + "\n", encoding="utf-8")


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_figures(tasks: Mapping[str, Mapping]) -> str:
    """Print every figure of every task in percent, a line a task."""
    lines = []
    for task, content in tasks.items():
        shown = [f"{name} {_percent(content['figures'][name])}" for name in FIGURES[task]]
        lines.append(f"{task}: {', '.join(shown)}")
    return "\n".join(lines)


def format_classes(rows: Sequence[Mapping]) -> str:
    """Print a table of classes, in percent."""
    cells = [
        [row["name"], row["objects"], *(_percent(row[metric]) for metric in PER_CLASS)]
        for row in rows
    ]
    headers = ["class", "objects", *PER_CLASS]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(cells, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"
