"""Small detectors, the images to try them on, and Detectron2's own answers."""

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import nn

import resnext_det
from resnext_det.modeling.build import build_detector
from tests.helpers import randomise
from tests.inference.models import small_config

SIZES = ((96, 128), (150, 97), (64, 200))  # height and width; the last has maps of one row


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) RGB uint8, smooth noise."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def config(kind: str):
    """A config by kind: "fpn", "bgr", "agnostic", "resnet", "c4", "c4_pool", "dc5"."""
    if kind in ("fpn", "bgr", "agnostic", "resnet"):
        cfg = small_config(masks=kind != "bgr", image_format="BGR" if kind == "bgr" else "RGB")
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = kind == "agnostic"
        cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = kind == "agnostic"
        cfg.MODEL.FPN.FUSE_TYPE = "avg" if kind == "agnostic" else "sum"
        if kind == "resnet":
            cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
            cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS = 50, 1
    else:
        name = "faster_rcnn_X50_32x4d" + ("_DC5" if kind == "dc5" else "")
        cfg = resnext_det.get_cfg(name)
        cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", kind == "c4"
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8, 2
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool" if kind == "c4_pool" else "ROIAlignV2"
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.1
    return cfg


@cache
def detector(kind: str) -> nn.Module:
    """A detector with random weights whose scores are apart."""
    torch.manual_seed(0)
    model = randomise(build_detector(config(kind))).eval()
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(3)
    return model


@torch.no_grad()
def answer(model: nn.Module, image: np.ndarray, image_format: str = "RGB") -> list[np.ndarray]:
    """Detectron2's boxes, scores, classes and masks for an image of the network's size."""
    image = image if image_format == "RGB" else image[:, :, ::-1]
    tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
    found = model.inference([{"image": tensor}], do_postprocess=False)[0]
    outputs = [found.pred_boxes.tensor, found.scores, found.pred_classes]
    if found.has("pred_masks"):
        outputs.append(found.pred_masks[:, 0])
    return [out.numpy() for out in outputs]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], pixels: float = 0.05) -> None:
    """The same detections in the same order, up to rounding."""
    assert [out.shape for out in found] == [out.shape for out in expected]
    np.testing.assert_allclose(found[0], expected[0], atol=pixels)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    np.testing.assert_array_equal(found[2], expected[2])
    assert found[2].dtype == np.int64
    if len(expected) > 3:
        np.testing.assert_allclose(found[3], expected[3], atol=1e-3)
