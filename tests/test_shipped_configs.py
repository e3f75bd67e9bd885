"""Every YAML loads in stock Detectron2, builds, and is what its file name says."""

import re

import detectron2.config
import pytest
import torch
from detectron2.modeling import FPN, GeneralizedRCNN, PanopticFPN, ProposalNetwork, build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.roi_heads import CascadeROIHeads

import resnext_det
from resnext_det import ResNeXt, ResNeXtRes5ROIHeads, Variant
from resnext_det.config import config_dir, config_names, config_path

NAME = re.compile(
    r"(?P<detector>[a-z_]+)_(?P<kind>[RX])(?P<depth>\d+)(_(?P<template>\d+x\d+d))?"
    r"(?P<layout>_FPN|_DC5)?(?P<norm>_gn|_syncbn)?"
)
IMAGENET = {  # mean and std of RGB channels, times 255
    "RGB": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "BGR": ([103.53, 116.28, 123.675], [57.375, 57.12, 58.395]),
}
EXPERIMENTS = [n for n in config_names() if not n.startswith("quick/")]
C4 = [n for n in EXPERIMENTS if re.fullmatch(r"faster_rcnn_[RX]\d+(_\d+x\d+d)?", n)]
NORMS = {None: "FrozenBatchNorm2d", "_gn": "GroupNorm", "_syncbn": "SyncBatchNorm"}


def build_on_meta(cfg):
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", config_names())
def test_the_model_is_what_the_file_name_says(name):
    cfg = resnext_det.get_cfg(name)
    parts = NAME.fullmatch(name.rsplit("/", 1)[-1])
    assert parts is not None
    variant = Variant.parse(
        "-".join(filter(None, [parts["kind"], parts["depth"], parts["template"]]))
    )

    model = build_on_meta(cfg)
    pyramid = parts["layout"] == "_FPN" or parts["detector"] == "panoptic_fpn"
    backbone = model.backbone.bottom_up if pyramid else model.backbone
    assert isinstance(model.backbone, FPN if pyramid else ResNeXt)
    assert isinstance(backbone, ResNeXt)
    assert backbone.variant == variant
    assert backbone.res2[0].conv2.groups == variant.cardinality
    assert backbone.res2[0].conv2.out_channels == variant.bottleneck_channels
    if not name.startswith("quick/"):
        assert NORMS[parts["norm"]] in type(backbone.res3[0].conv2.norm).__name__
    if parts["layout"] == "_DC5":
        assert backbone.res5[0].conv2.dilation == (2, 2)
        assert backbone.output_shape()["res5"].stride == 16
    check_detector(parts["detector"], model, c4=not pyramid and parts["layout"] is None)


def check_detector(detector, model, *, c4):
    kinds = {"retinanet": RetinaNet, "rpn": ProposalNetwork, "panoptic_fpn": PanopticFPN}
    assert type(model) is kinds.get(detector, GeneralizedRCNN)
    if detector in ("retinanet", "rpn"):
        return
    assert isinstance(model.roi_heads, ResNeXtRes5ROIHeads) == c4
    assert isinstance(model.roi_heads, CascadeROIHeads) == (detector == "cascade_rcnn")
    assert model.roi_heads.mask_on == (detector in ("mask_rcnn", "panoptic_fpn"))
    assert getattr(model.roi_heads, "keypoint_on", False) == (detector == "keypoint_rcnn")
    assert (model.proposal_generator is None) == (detector == "fast_rcnn")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_weights_and_preprocessing_travel_together(name):
    text = config_path(name).read_text()
    assert len(text.splitlines()) <= 15
    for key in ("WEIGHTS", "PIXEL_MEAN", "PIXEL_STD", "STRIDE_IN_1X1", "FORMAT"):
        assert f" {key}: " in text
    cfg = resnext_det.get_cfg(name)
    mean, std = IMAGENET[cfg.INPUT.FORMAT]
    assert (list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)) == (mean, std)
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert (cfg.INPUT.FORMAT == "BGR") == cfg.MODEL.WEIGHTS.startswith("resnext://detectron2/")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_needs_only_detectron2s_keys_and_the_papers_splits(name):
    cfg = detectron2.config.get_cfg()
    cfg.merge_from_file(str(config_path(name)))
    for kind, split in (("TRAIN", "trainval35k"), ("TEST", "minival")):
        (dataset,) = cfg.DATASETS[kind]
        if not name.startswith("panoptic"):
            assert dataset in (f"coco_{split}", f"keypoints_coco_{split}")


def test_the_papers_four_rows_are_there():
    assert [f"faster_rcnn_{n}" for n in ("R101", "R50", "X101_32x4d", "X50_32x4d")] == C4


@pytest.mark.parametrize("name", ["R50", "X50_32x4d", "R101", "X101_32x4d"])
def test_c4_configs_follow_appendix_b(name):
    cfg = resnext_det.get_cfg(f"faster_rcnn_{name}")
    assert cfg.SOLVER.MAX_ITER == 180_000
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN"
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((600,), 1000)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (600, 1000)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[64, 128, 256, 512]]
    assert cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE == 256
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7]
    assert (cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (2000, 300)
    assert cfg.MODEL.RPN.NMS_THRESH == 0.7
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 64
    assert cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION == 0.25
    assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.3
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM) == (1e-4, 0.9)


def test_fpn_configs_train_as_detectron2s_1x():
    from detectron2 import model_zoo

    theirs = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    ours = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    for key in ("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER", "WARMUP_ITERS", "WEIGHT_DECAY"):
        assert ours.SOLVER[key] == theirs.SOLVER[key]
    for node in ("RPN", "FPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "ANCHOR_GENERATOR"):
        assert ours.MODEL[node] == theirs.MODEL[node]
    assert ours.INPUT.MIN_SIZE_TRAIN == theirs.INPUT.MIN_SIZE_TRAIN
    assert ours.INPUT.MAX_SIZE_TEST == theirs.INPUT.MAX_SIZE_TEST


def test_no_config_names_an_output_folder():
    for file in config_dir().rglob("*.yaml"):
        assert "OUTPUT_DIR" not in file.read_text()
