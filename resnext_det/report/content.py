"""What a run's page shows, as plain values and charts for the template."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError, one_line
from ..evaluation.comparison import Run
from ..paper import TABLE8, TABLE8_DATASET, TABLE8_IMAGES, table8_row
from . import gallery
from .reading import RunFiles, read_detections
from .tasks import task_content
from .training import evaluations_table, training_charts

logger = logging.getLogger(__name__)


def run_content(run: RunFiles, *, images: int, threshold: float) -> dict:
    """Everything that `run.html` names.

    Args:
        run: of `read_run`.
        images: of each test set's gallery, half of them the best and half the worst.
        threshold: lowest score of the predictions there, 0 to 1.

    Raises:
        UserError: if a test set's detections are absent, damaged or of another data set.
    """
    datasets = []
    for number, (name, evaluation) in enumerate(run.evaluations.items(), 1):
        tasks = [
            task_content(f"d{number}-{key}", name, key, task, _published(run.cfg, name, evaluation))
            for key, task in evaluation["tasks"].items()
        ]
        datasets.append(
            {
                "id": f"d{number}",
                "name": name,
                "evaluation": evaluation,
                "tasks": tasks,
                "gallery": _gallery(run, name, evaluation, images, threshold),
            }
        )
    return {
        "run": run,
        "datasets": datasets,
        "charts": training_charts([Run(run.name, run.metrics)]) if run.metrics else [],
        "evaluated": evaluations_table(run.metrics),
        "starts": [_start(start, run.config_text) for start in run.starts],
    }


def _published(cfg: CfgNode, dataset: str, evaluation: Mapping) -> Mapping[str, float]:
    """The paper's figures, percent; none for other networks, data or ways of testing."""
    row = table8_row(cfg)
    whole = evaluation["images"] == TABLE8_IMAGES and not evaluation.get("limit")
    same = row and dataset == TABLE8_DATASET and whole and not evaluation.get("tta")
    return TABLE8[row] if same else {}


def _gallery(run: RunFiles, name: str, evaluation: Mapping, images: int, threshold: float) -> dict:
    """Without the data set the page has no pictures, and says why: its figures stand anyway."""
    detections = read_detections(run, name)
    try:
        records = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
    except (KeyError, UserError, OSError, ImportError) as error:  # the latter of lvis
        reason = one_line(error)  # it may name places, which the page must not
        logger.warning("the report shows no images: %s", reason)
        return {"missing": f"the data set {name} is not on this machine.", "groups": []}
    records = records[: evaluation.get("limit") or len(records)]
    try:
        judged = gallery.judge(
            records, detections, metadata.thing_dataset_id_to_contiguous_id, threshold
        )
    except KeyError as error:
        raise UserError(
            f"{run.folder}: its detections have category id {error}, which {name} has not: "
            "evaluate again"
        ) from error
    best, worst = gallery.choose(judged, images)
    tasks = evaluation["tasks"]
    groups = [
        {
            "title": title,
            "images": [gallery.describe(image, metadata, threshold, tasks) for image in chosen],
        }
        for title, chosen in (("Best", best), ("Worst", worst))
        if chosen
    ]
    return {"missing": None, "groups": groups, "threshold": threshold}


def _start(start: Mapping, config_text: str) -> dict:
    """An entry of run.json without places on the machine that the config does not name."""

    def place(word: str) -> str:
        return Path(word).name if word.startswith("/") and word not in config_text else word

    try:
        words = shlex.split(start.get("command", ""))
    except ValueError:
        words = []
    fingerprints = [
        (name, Path(str(data.get("annotation_file", ""))).name, str(data.get("sha256", "")))
        for name, data in start.get("datasets", {}).items()
    ]
    git = start.get("git")
    return {
        **{key: start.get(key) for key in ("time", "seed", "device", "processes")},
        "command": shlex.join(place(word) for word in words),
        "versions": start.get("versions", {}),
        "git": git and {"commit": git["commit"], "changed": git.get("changed")},
        "datasets": fingerprints,
        "config_changes": start.get("config_changes", []),
    }
