"""Small detectors with random weights, written to files as a run would."""

from pathlib import Path

import torch

import resnext_det
from resnext_det.modeling.build import build_detector
from resnext_det.weights import StrictCheckpointer, settings_of
from tests.helpers import randomise

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"


def small_config(*, masks=False, keypoints=False, image_format="RGB"):
    """The quick config at 96 px, on the CPU."""
    cfg = resnext_det.get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = masks, keypoints
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (16,)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    if keypoints:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
        cfg.DATASETS.TEST = ("keypoints_coco_minival",)
    return cfg


def write_run(folder: Path, cfg) -> tuple[Path, Path]:
    """Write a run's config.yaml, whose MODEL.WEIGHTS is that of its start, and model_final.pth."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = randomise(build_detector(cfg))
    # apart from each other, so that rounding does not change their order
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(3)
    checkpointer = StrictCheckpointer(model, str(folder), settings=settings_of(cfg))
    checkpointer.save("model_final")
    config = folder / "config.yaml"
    config.write_text(resnext_det.config.dump_config(cfg))
    return config, folder / "model_final.pth"
