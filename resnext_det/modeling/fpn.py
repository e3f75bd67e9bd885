"""Feature pyramids over ResNeXt. Detectron2's own FPN builders are tied to its ResNet."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from .resnext import ResNeXt, build_resnext_backbone


def _fpn(cfg: CfgNode, bottom_up: ResNeXt, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeXt with FPN for Faster and Mask R-CNN.

    Returns:
        A backbone with outputs p2..p5 at strides 4..32 for the levels in `MODEL.FPN.IN_FEATURES`,
        and one level more by max pooling (p6, stride 64).
    """
    return _fpn(cfg, build_resnext_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeXt with FPN for RetinaNet.

    Returns:
        A backbone with outputs p3..p5 at strides 8..32 for the levels in `MODEL.FPN.IN_FEATURES`,
        and p6, p7 (strides 64, 128) by convolutions on res5.
    """
    bottom_up = build_resnext_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _fpn(cfg, bottom_up, top_block)
