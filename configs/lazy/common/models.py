"""Detectron2's detectors on ResNeXt; each equals the one of the YAML base."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from resnext_det import ResNeXt, Variant
from resnext_det.modeling.resnext import make_resnext_stage

_RGB = model_zoo.get_config("common/data/constants.py").constants


def _rgb(model: DictConfig) -> DictConfig:
    model.pixel_mean = _RGB.imagenet_rgb256_mean
    model.pixel_std = _RGB.imagenet_rgb256_std
    model.input_format = "RGB"
    return model


def faster_rcnn_c4(depth: int, cardinality: int, width: int) -> DictConfig:
    """Faster R-CNN of the paper's Table 8; see Base-RCNN-C4.yaml for the values' sources."""
    model = _rgb(model_zoo.get_config("common/models/mask_rcnn_c4.py").model)
    model.backbone = L(ResNeXt)(
        depth=depth,
        cardinality=cardinality,
        width=width,
        norm="FrozenBN",
        out_features=["res4"],
        freeze_at=2,
    )
    rpn = model.proposal_generator
    rpn.head.update(num_anchors=12, conv_dims=[512])
    rpn.anchor_generator.sizes = [[64, 128, 256, 512]]
    rpn.update(post_nms_topk=(2000, 300), min_box_size=16)
    rpn.update(anchor_boundary_thresh=0, smooth_l1_beta=0.1111)
    heads = model.roi_heads
    heads.batch_size_per_image = 64
    heads.pooler.pooler_type = "ROIPool"
    heads.res5 = L(make_resnext_stage)(
        num_blocks=Variant(depth, cardinality, width).blocks_per_stage[-1],
        in_channels=1024,
        out_channels=2048,
        cardinality=cardinality,
        width=8 * width,
        first_stride=2,
        norm="FrozenBN",
    )
    heads.box_predictor.update(smooth_l1_beta=1.0, test_nms_thresh=0.3)
    del heads.mask_head
    return model


def mask_rcnn_fpn(depth: int, cardinality: int, width: int) -> DictConfig:
    """Mask R-CNN with FPN as in Base-RCNN-FPN.yaml."""
    model = _rgb(model_zoo.get_config("common/models/mask_rcnn_fpn.py").model)
    model.backbone.bottom_up = L(ResNeXt)(
        depth=depth,
        cardinality=cardinality,
        width=width,
        norm="FrozenBN",
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=2,
    )
    return model


def faster_rcnn_fpn(depth: int, cardinality: int, width: int) -> DictConfig:
    """Faster R-CNN with FPN as in Base-RCNN-FPN.yaml."""
    model = mask_rcnn_fpn(depth, cardinality, width)
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        del model.roi_heads[key]
    return model
