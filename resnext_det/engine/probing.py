"""What an evaluation alone can still try when AP is very low: the model on a few images again."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..evaluation import CocoEvaluator, evaluation_folder
from ..evaluation.probe import every_score, highest_score, probe_model
from ..evaluation.summary import write_json
from ..evaluation.suspicions import SUSPICIOUS_AP
from .trainer import Trainer

logger = logging.getLogger(__name__)

_IMAGES = 16


def try_other_inputs(cfg: CfgNode, model: nn.Module, results: Mapping[str, Mapping]) -> None:
    """Where box AP is suspiciously low, see whether another colour order or scale is right.

    Of a model that detects nothing the highest score is told, and every box counts. Findings are
    logged and written into the data set's `evaluation.json`. The main process does it, on a few
    images; the others go on.

    Args:
        cfg: of the evaluation.
        model: of Detectron2, without a wrapper; it is afterwards as it was.
        results: of the evaluation, on the main process.
    """
    if not comm.is_main_process():
        return
    for name in cfg.DATASETS.TEST:
        tasks = results.get(name, {}) if len(cfg.DATASETS.TEST) > 1 else results
        if tasks.get("bbox", {}).get("AP", math.nan) < SUSPICIOUS_AP:  # nor where it is undefined
            _look_into(cfg, model, name)


def _look_into(cfg: CfgNode, model: nn.Module, name: str) -> None:
    logger.info("%s: AP is very low; trying other colour orders on %d images", name, _IMAGES)
    file = evaluation_folder(cfg, name) / "evaluation.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    nothing = [
        (task, finding)
        for task, part in content["tasks"].items()
        for finding in part["findings"]
        if finding["code"] == "no_detections"
    ]
    with _quiet():
        if nothing:
            loader = Trainer.build_test_loader(cfg, name, shared=False)
            score = highest_score(model, loader, _IMAGES)
        with every_score(model) if nothing else contextlib.nullcontext():
            finding = probe_model(
                model,
                lambda variant: Trainer.build_test_loader(variant, name, shared=False),
                lambda: CocoEvaluator(
                    name, distributed=False, limit=_IMAGES, diagnose=lambda *_, **__: []
                ),
                cfg,
                _IMAGES,
            )
    for task, empty in nothing:
        highest = "unknown: there is none" if score is None else f"{score:.2g}"
        told = f"the highest score of any box on a few images is {highest}"
        empty["message"] += f"; {told}"
        logger.warning("%s %s: %s", name, task, told)
    if finding:
        logger.warning("%s bbox: %s; %s", name, finding.message, finding.remedy)
        content["tasks"]["bbox"]["findings"].insert(0, vars(finding))
    if nothing or finding:
        write_json(content, file, indent=None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what loaders and evaluators say of each trial out of the logs, but for errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
