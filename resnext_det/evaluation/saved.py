"""Evaluation of a saved COCO results file, without a model."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config import load_config
from ..data.custom import data_of_run
from ..errors import UserError
from .diagnosis import diagnose
from .measures import EVALUATORS, implementation
from .options import parse_limit, parse_score
from .results_file import RESULT_FIELDS, read_detections
from .summary import (
    evaluate_tasks,
    format_classes,
    format_figures,
    results_of,
    with_classes,
    write_evaluation,
    write_json,
)
from .training import RunMetrics, metrics_if_any
from .truth import annotation_file, read_truth


def evaluate_results(
    file: Path,
    *,
    annotations: Path | None = None,
    config_file: str | None = None,
    tasks: Sequence[str] = (),
    score: float | str = 0.5,
    limit: int | str | None = None,
    evaluator: str = "hotcoco",
    output: Path | None = None,
) -> str:
    """Evaluate a COCO results file.

    Args:
        file: `coco_instances_results.json`, or of any detector.
        annotations: the ground truth; None for that of the config's only test set.
        config_file: a path, e.g. the config.yaml of a run, or the name of a shipped config; it
            names the test set, and `TEST.KEYPOINT_OKS_SIGMAS`.
        tasks: of "bbox", "segm" and "keypoints"; none for all that the entries have.
        score: the operating point of precision and recall, 0 to 1; as a number or typed.
        limit: the first images of the ground truth, by id, that are evaluated; None for all.
        evaluator: "hotcoco" or "pycocotools".
        output: a folder for evaluation.json and results.json; None writes nothing.

    Returns:
        The figures, the table of classes and what may be wrong, to print.

    Raises:
        UserError: for a file that is not readable or does not fit the other, or a bad value.
    """
    score, limit = parse_score(score), parse_limit(limit)
    if evaluator not in EVALUATORS:
        raise UserError(f"--evaluator {evaluator} is not one of {', '.join(EVALUATORS)}")
    cfg, metrics = None, RunMetrics()
    if config_file:
        cfg = _read_config(config_file)
        metrics = metrics_if_any(Path(config_file).parent / "metrics.json")
    if annotations is None:
        name, annotations = _test_set(cfg)
    else:
        name = annotations.name
    truth = read_truth(annotations)
    if not truth.annotated:
        raise UserError(f"{annotations} has no annotations to evaluate by")
    detections, possible = read_detections(file, truth)
    for task in tasks:
        if task not in possible:
            raise UserError(f"--tasks {task}: entry 0 of {file} has no {RESULT_FIELDS[task]!r}")
    if limit is not None:
        truth = read_truth(annotations, limit=limit)
        detections = detections.select(detections.images < len(truth.image_ids))
    results = evaluate_tasks(
        truth,
        detections,
        tasks or (possible if len(detections) else ("bbox",)),
        evaluator=evaluator,
        score=score,
        sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS if cfg else (),
        diagnose=partial(diagnose, cfg=cfg, metrics=metrics),
    )
    if output is not None:
        about = {"dataset": name, "images": len(truth.image_ids), "score": score, "limit": limit}
        _write(output, results, implementation=implementation(evaluator), **about)
    return _format(results, len(truth.image_ids), limit, score)


def _read_config(config_file: str) -> CfgNode:
    for name, data in data_of_run(Path(config_file).parent).items():
        data.register(name)
    return load_config(config_file)


def _test_set(cfg: CfgNode | None) -> tuple[str, Path]:
    """Name and annotation file of a config's test set."""
    if cfg is None:
        raise UserError("name the ground truth: --annotations FILE, or --config-file CONFIG")
    names = cfg.DATASETS.TEST
    if len(names) != 1:
        raise UserError(
            f"the config has {len(names)} test sets ({', '.join(names)}): name the ground truth "
            "of these results with --annotations FILE"
        )
    if names[0] not in DatasetCatalog:
        raise UserError(f"dataset {names[0]} is not registered: name --annotations FILE instead")
    file = annotation_file(names[0])
    if file is None:
        raise UserError(f"dataset {names[0]} has no annotation file: name --annotations FILE")
    return names[0], file


def _write(folder: Path, tasks: Mapping[str, Mapping], **about: object) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error
    write_evaluation(folder / "evaluation.json", tasks, **about)
    write_json(with_classes(results_of(tasks), tasks), folder / "results.json")


def _format(tasks: Mapping[str, Mapping], images: int, limit: int | None, score: float) -> str:
    what = f"the first {images} images alone" if limit is not None else f"{images} images"
    parts = [f"in percent, over {what}:", format_figures(tasks)]
    for task, content in tasks.items():
        parts.append(f"\n{task}, precision and recall at IoU 0.5 and score {score:g}:")
        parts.append(format_classes(content["classes"]))
        for finding in content["findings"]:
            parts.append(f"\n{task}: {finding['message']}; {finding['remedy']}")
    return "\n".join(parts)
