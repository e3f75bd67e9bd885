"""COCO evaluation as a config says: what is measured, by what, and where the files go."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import UserError
from .detections import no_detections
from .diagnosis import diagnose
from .evaluator import CocoEvaluator
from .measures import check_keypoints
from .truth import read_truth


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """`OUTPUT_DIR/inference`; with several test sets each has a folder of its own there."""
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """What a config's model is evaluated by: "bbox", and "segm" and "keypoints" if it has them."""
    tasks = ["bbox"]
    if cfg.MODEL.MASK_ON:
        tasks.append("segm")
    if cfg.MODEL.KEYPOINT_ON:
        tasks.append("keypoints")
    return tuple(tasks)


def check_test_sets(
    names: Sequence[str], tasks: Sequence[str], sigmas: Sequence[float] = ()
) -> None:
    """Refuse annotations that no evaluation could use, before a long training.

    Files that data sets find only when they are loaded are left to the evaluation.

    Args:
        names: of the test sets.
        tasks: of "bbox", "segm" and "keypoints".
        sigmas: of each keypoint; none for those of COCO's 17.

    Raises:
        UserError: for a file that is not COCO's, or the first annotation that lacks something.
    """
    for name in names:
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file")
        if metadata.get("evaluator_type") != "coco" or not file or not Path(file).is_file():
            continue
        truth = read_truth(Path(file))
        for task in tasks:
            truth.require(task)
        if "keypoints" in tasks:
            check_keypoints(truth, no_detections(), sigmas)


def build_coco_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    output_dir: str | None = None,
    metrics: Sequence[Mapping] | None = (),
) -> CocoEvaluator:
    """Build the evaluator for one data set of COCO's kind.

    Args:
        cfg: says by `MODEL.MASK_ON` and `MODEL.KEYPOINT_ON` which tasks to evaluate besides boxes,
            and by `TEST` how.
        dataset_name: a registered data set.
        output_dir: where `coco_instances_results.json` and `evaluation.json` go; None writes
            nothing.
        metrics: rows of the metrics.json of the finished training, to judge a low AP by; None amid
            training.

    Raises:
        UserError: if the data set is not evaluated as COCO is.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "coco":
        raise UserError(
            f"dataset {dataset_name} is not of COCO's kind (evaluator_type "
            f"{metadata.get('evaluator_type')!r}): only COCO evaluation is supported"
        )
    return CocoEvaluator(
        dataset_name,
        tasks_of(cfg),
        output_dir=output_dir,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        evaluator=cfg.TEST.COCO_EVALUATOR,
        score=cfg.TEST.SCORE,
        limit=cfg.TEST.NUM_IMAGES,
        tta=cfg.TEST.AUG.ENABLED,
        diagnose=partial(diagnose, cfg=cfg, metrics=metrics, weights=cfg.MODEL.WEIGHTS),
    )
