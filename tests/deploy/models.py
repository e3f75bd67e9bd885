"""Small detectors of every kind, with random weights, norms and scores that lie apart."""

import torch

from resnext_det.modeling.build import build_detector
from tests.helpers import randomise
from tests.inference.models import small_config

SIZES = ((96, 128), (128, 96), (70, 101))  # height and width


def config_of(kind):
    """The quick config turned into another kind of detector."""
    cfg = small_config(masks="mask" in kind, keypoints="keypoint" in kind)
    if "c4" in kind:
        cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
        cfg.MODEL.ROI_HEADS.NAME = "ResNeXtRes5ROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool" if "paper" in kind else "ROIAlignV2"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 0
    if "cascade" in kind:
        cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    if "retinanet" in kind:
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnext_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.RETINANET.NUM_CLASSES = 3
        cfg.MODEL.RETINANET.NUM_CONVS = 1
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s] for s in (16, 32, 64, 96, 128)]
    if "rpn" in kind:
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    if "precomputed" in kind:
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    if "form a" in kind:
        cfg.MODEL.RESNEXT.FORM = "a"
    if "detectron2" in kind:
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("resnext", "resnet")
        cfg.MODEL.RESNETS.DEPTH = 50
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
        cfg.MODEL.ROI_HEADS.NAME = cfg.MODEL.ROI_HEADS.NAME.replace("ResNeXt", "")
    if "norm" in kind:
        cfg.MODEL.RESNETS.NORM = "GN" if "GN" in kind else "BN"
        cfg.MODEL.FPN.NORM = cfg.MODEL.RESNETS.NORM
    if "GN" in kind:
        cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 4
    return cfg


def detector(kind="fpn"):
    """A detector in evaluation mode, as this package builds it."""
    torch.manual_seed(0)
    model = randomise(build_detector(config_of(kind))).eval()
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        predictors = heads.box_predictor
        for predictor in predictors if "cascade" in kind else [predictors]:
            predictor.cls_score.weight.data.mul_(3)
            predictor.bbox_pred.weight.data.mul_(0.1)  # small steps, as trained ones make
    return model


def images(*sizes):
    """Noise, as Detectron2's models take it: (3, H, W) float32, 0..255."""
    generator = torch.Generator().manual_seed(1)
    return [
        {"image": torch.rand(3, *size, generator=generator) * 255, "height": 2 * size[0]}
        for size in sizes or SIZES[:1]
    ]


def detections(model, inputs):
    """The instances that a model finds in each image."""
    with torch.no_grad():
        return [output["instances"] for output in model(inputs)]


def assert_same(found, expected, pixels=0.01, score=1e-4):
    """Up to rounding; masks may differ in the pixels where a probability is 0.5."""
    assert len(expected) > 0
    assert found.image_size == expected.image_size
    torch.testing.assert_close(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=score)
    boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(*boxes, rtol=0, atol=pixels)
    if expected.has("pred_masks"):
        differ = (found.pred_masks != expected.pred_masks).float().mean()
        assert differ < 1e-3
    if expected.has("pred_keypoints"):
        keypoints = found.pred_keypoints, expected.pred_keypoints
        apart = (keypoints[0] - keypoints[1]).abs() > pixels + 1e-3
        assert apart.float().mean() < 0.01  # the highest of equal places of a heat map
