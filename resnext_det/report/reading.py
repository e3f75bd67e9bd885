"""A run's folder as a report needs it."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..config import load_config
from ..data.custom import data_of_run
from ..errors import UserError, one_line
from ..evaluation import evaluation_folder
from ..evaluation.training import read_metrics
from ..modeling.classifier import is_classifier
from .contract import check_detections, check_evaluation, check_starts


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind.

    Attributes:
        name: the folder's.
        folder: `OUTPUT_DIR`, where it is now.
        cfg: of config.yaml, with `OUTPUT_DIR` the folder.
        config_text: config.yaml as it is.
        metrics: rows of metrics.json; none of a folder in which nothing was trained.
        starts: entries of run.json, a start each; none where there is no such file.
        evaluations: content of evaluation.json by data set, in the order of `DATASETS.TEST`.
    """

    name: str
    folder: Path
    cfg: CfgNode
    config_text: str
    metrics: list[dict]
    starts: list[dict]
    evaluations: dict[str, dict]

    @property
    def date(self) -> str | None:
        """Of the last start, as `2026-11-24 22:02`; None where it is not known."""
        time = str(self.starts[-1].get("time", "")) if self.starts else ""
        return time[:16].replace("T", " ") or None


def read_run(folder: Path) -> RunFiles:
    """Read a run and register its own data sets.

    Raises:
        UserError: naming the folder or the file that is absent or damaged, or if the run was
            evaluated by a version that wrote no evaluation.json.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no folder of a run: it has no config.yaml")
    for name, data in data_of_run(folder).items():
        data.register(name)
    cfg = load_config(str(folder / "config.yaml"))
    if is_classifier(cfg):
        raise UserError(
            f"{folder} is a classifier's run, and a report is of detectors: its curves are drawn "
            "by tools/plot_run.py"
        )
    cfg.OUTPUT_DIR = str(folder)  # it may have been moved
    if not cfg.DATASETS.TEST:
        raise UserError(f"{folder} has no test set (DATASETS.TEST): there is nothing to report")
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        raise UserError(f"{folder} is the run of a proposal network: only detectors are reported")
    evaluations = {}
    for name in cfg.DATASETS.TEST:
        file = evaluation_folder(cfg, name) / "evaluation.json"
        if not file.is_file():
            raise UserError(f"{file} is absent: evaluate again, by {_evaluation_command(folder)}")
        evaluations[name] = _read_json(file, check_evaluation)
    starts = folder / "run.json"
    metrics = folder / "metrics.json"
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        cfg=cfg,
        config_text=(folder / "config.yaml").read_text(encoding="utf-8"),
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        starts=_read_json(starts, check_starts) if starts.is_file() else [],
        evaluations=evaluations,
    )


def _evaluation_command(folder: Path) -> str:
    config = shlex.quote(str(folder / "config.yaml"))
    command = f"tools/train_net.py --eval-only --config-file {config}"
    weights = folder / "model_final.pth"
    if weights.is_file():
        command += f" MODEL.WEIGHTS {shlex.quote(str(weights))}"
    return command


def read_detections(run: RunFiles, dataset: str) -> list[Mapping]:
    """Entries of a test set's `coco_instances_results.json`, in its file's own category ids.

    Raises:
        UserError: if the file is absent or damaged.
    """
    file = evaluation_folder(run.cfg, dataset) / "coco_instances_results.json"
    return _read_json(file, check_detections)


def _read_json(file: Path, check: Callable[[object], None]) -> object:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        check(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"{file} is damaged ({reason}): evaluate again") from error
    return content
