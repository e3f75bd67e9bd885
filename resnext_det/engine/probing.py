"""What an evaluation alone can still try when AP is very low: the images fed in other ways."""

import json
import logging
import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..evaluation import CocoEvaluator, evaluation_folder
from ..evaluation.summary import write_json
from ..evaluation.suspicions import SUSPICIOUS_AP, probe_model
from .trainer import Trainer

logger = logging.getLogger(__name__)

_IMAGES = 16


def try_other_inputs(cfg: CfgNode, model: nn.Module, results: Mapping[str, Mapping]) -> None:
    """Where box AP is suspiciously low, see whether another colour order or scale is right.

    A finding is logged and written into the data set's `evaluation.json`. The main process does it,
    on a few images; the others go on.

    Args:
        cfg: of the evaluation.
        model: of Detectron2, without a wrapper; it is afterwards as it was.
        results: of the evaluation, on the main process.
    """
    if not comm.is_main_process():
        return
    for name in cfg.DATASETS.TEST:
        tasks = results.get(name, {}) if len(cfg.DATASETS.TEST) > 1 else results
        ap = tasks.get("bbox", {}).get("AP", math.nan)
        if not ap < SUSPICIOUS_AP:  # nor where it is undefined
            continue
        logger.info("%s: AP is very low; trying other colour orders on %d images", name, _IMAGES)
        finding = probe_model(
            model,
            lambda variant, name=name: Trainer.build_test_loader(variant, name, shared=False),
            lambda name=name: CocoEvaluator(
                name, distributed=False, limit=_IMAGES, diagnose=lambda *_, **__: []
            ),
            cfg,
            _IMAGES,
        )
        if finding:
            logger.warning("%s bbox: %s; %s", name, finding.message, finding.remedy)
            file = evaluation_folder(cfg, name) / "evaluation.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            content["tasks"]["bbox"]["findings"].insert(0, vars(finding))
            write_json(content, file, indent=None)
