"""COCO evaluation by pycocotools, through Detectron2's evaluator."""

import contextlib
import io
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UserError

logger = logging.getLogger(__name__)


class QuietCOCOEvaluator(COCOEvaluator):
    """`COCOEvaluator` by the official pycocotools, without its prints, defined for no detections.

    Where the model detects nothing Detectron2 reports NaN for every metric. AP is 0 then, and NaN
    remains only for a size range without ground truth.
    """

    def evaluate(self, img_ids: list[int] | None = None) -> dict:
        """See `COCOEvaluator.evaluate`; AP in percent, 0 to 100."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results = super().evaluate(img_ids)
        logger.debug("%s", printed.getvalue())
        return results

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict:
        if coco_eval is None:
            logger.warning("%s: the model detected nothing, so AP is 0", self._metadata.name)
            coco_eval = self._evaluate_nothing(iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _evaluate_nothing(self, iou_type: str) -> COCOeval:
        nothing = COCO()  # COCO.loadRes refuses an empty list
        nothing.dataset = {**self._coco_api.dataset, "annotations": []}
        nothing.createIndex()
        coco_eval = COCOeval(self._coco_api, nothing, iou_type)
        if iou_type == "keypoints" and self._kpt_oks_sigmas:
            coco_eval.params.kpt_oks_sigmas = self._kpt_oks_sigmas
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        return coco_eval


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """`OUTPUT_DIR/inference`; with several test sets each has a folder of its own there."""
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder


def build_coco_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> QuietCOCOEvaluator:
    """Build the evaluator for one data set of COCO's kind.

    Args:
        cfg: says by `MODEL.MASK_ON` and `MODEL.KEYPOINT_ON` which tasks to evaluate besides boxes.
        dataset_name: a registered data set.
        output_dir: where `coco_instances_results.json` goes; None writes nothing.

    Raises:
        UserError: if the data set is not evaluated as COCO is.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "coco":
        raise UserError(
            f"dataset {dataset_name} is not of COCO's kind (evaluator_type "
            f"{metadata.get('evaluator_type')!r}): only COCO evaluation is supported"
        )
    if not hasattr(metadata, "json_file"):
        DatasetCatalog.get(dataset_name)  # finds the annotation file
    tasks = ["bbox"]
    if cfg.MODEL.MASK_ON:
        tasks.append("segm")
    if cfg.MODEL.KEYPOINT_ON:
        tasks.append("keypoints")
    return QuietCOCOEvaluator(
        dataset_name,
        tasks=tuple(tasks),
        output_dir=output_dir,
        use_fast_impl=False,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )
