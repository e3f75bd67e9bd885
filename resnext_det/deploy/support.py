"""What `ExportedRCNN` covers; of another detector it would drop a part."""

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn

from ..errors import UserError
from ..modeling import ResNeXt, ResNeXtRes5ROIHeads
from ..modeling.fast_roi_align import FastROIPooler

_BODIES = (ResNet, ResNeXt)
_POOLERS = (ROIPooler, FastROIPooler)


def require_exportable(model: nn.Module) -> None:
    """Check that every part of a detector is one whose inference `ExportedRCNN` follows.

    A subclass may do something else, so types are compared exactly.

    Raises:
        UserError: for the first part that it is not made for, or a model on a GPU.
    """
    _require("meta architecture", model, GeneralizedRCNN)
    if model.device.type != "cpu":
        raise UserError(f"the model is on {model.device}: a detector is exported on the CPU")
    _require_backbone(model.backbone)
    rpn, heads = model.proposal_generator, model.roi_heads
    _require("proposal generator", rpn, RPN)
    _require("RPN head", rpn.rpn_head, StandardRPNHead)
    _require("anchor generator", rpn.anchor_generator, DefaultAnchorGenerator)
    _require("RPN's box transform", rpn.box2box_transform, Box2BoxTransform)
    _require("RoI heads", heads, StandardROIHeads, Res5ROIHeads, ResNeXtRes5ROIHeads)
    if getattr(heads, "keypoint_on", False):
        raise UserError("MODEL.KEYPOINT_ON: the keypoint head cannot be exported")
    _require("box predictor", heads.box_predictor, FastRCNNOutputLayers)
    _require("box transform", heads.box_predictor.box2box_transform, Box2BoxTransform)
    if isinstance(heads, StandardROIHeads):
        _require("box head", heads.box_head, FastRCNNConvFCHead)
        poolers = [heads.box_pooler, *([heads.mask_pooler] if heads.mask_on else [])]
    else:
        poolers = [heads.pooler]
    for pooler in poolers:
        _require("region pooling", pooler, *_POOLERS)
        kinds = {type(level).__name__ for level in pooler.level_poolers}
        if not kinds <= {"ROIAlign", "RoIPool", "_RoIPool"}:
            raise UserError(f"the detector's region pooling {kinds} cannot be exported")
    if heads.mask_on:
        _require("mask head", heads.mask_head, MaskRCNNConvUpsampleHead)


def _require_backbone(backbone: nn.Module) -> None:
    _require("backbone", backbone, FPN, *_BODIES)
    if type(backbone) is FPN:
        _require("backbone", backbone.bottom_up, *_BODIES)
    if backbone.padding_constraints.get("square_size", 0):
        raise UserError("a backbone that pads images to squares cannot be exported")


def _require(part: str, module: object, *known: type) -> None:
    if type(module) not in known:
        names = " or ".join(kind.__name__ for kind in known)
        raise UserError(
            f"the detector's {part} {type(module).__name__} cannot be exported: only {names} can"
        )
