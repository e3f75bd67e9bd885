"""torchvision's Faster R-CNN with the weights of Detectron2's."""

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ...errors import UserError

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}

# What torchvision's ResNet can be
_RESNET = {
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
}
# and its detector
_DETECTOR = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnext_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": list(_STAGES.values()),
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
}

# Detectron2's name -> torchvision's
_BACKBONE_RULES = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (r"^res(\d)\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (r"^res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (r"^res(\d)\.(\d+)\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
)
_DETECTOR_RULES = (
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.fc7."),
)


def build_backbone(cfg: CfgNode, bottom_up: nn.Module) -> nn.Module:
    """Build torchvision's ResNet with the weights of a bottom-up of Detectron2's.

    Returns:
        A module from (N, 3, H, W) to a dict of maps, in evaluation mode.

    Raises:
        UserError: for a network that torchvision has not.
    """
    from torchvision.models._utils import IntermediateLayerGetter

    resnet = _resnet(cfg)
    missing, unexpected = resnet.load_state_dict(_resnet_weights(bottom_up.state_dict()), False)
    rest = [n for n in missing if not n.startswith(("fc.", "layer4."))]  # C4 has res5 in its heads
    if rest or unexpected:
        raise AssertionError(f"names of torchvision's ResNet: {rest}, {unexpected}")
    wanted = bottom_up.output_shape()
    layers = {theirs: ours for theirs, ours in _STAGES.items() if ours in wanted}
    return IntermediateLayerGetter(resnet, layers).eval()


def build_detector(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Build torchvision's Faster R-CNN with the weights of Detectron2's.

    Its anchors are rounded and its RoIAlign is half a pixel off, so that detections differ.

    Returns:
        A module from a list of (3, H, W) images, 0..255, to a list of dicts, in evaluation mode;
        images keep their size.

    Raises:
        UserError: for a detector that torchvision has not.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FasterRCNN
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import MultiScaleRoIAlign

    class SameSize(GeneralizedRCNNTransform):
        """Normalises and pads images."""

        def resize(self, image: Tensor, target: dict | None = None) -> tuple:
            return image, target

    _require(cfg, _DETECTOR)
    backbone = BackboneWithFPN(
        _resnet(cfg),
        {layer: str(i) for i, layer in enumerate(_STAGES)},
        [256, 512, 1024, 2048],
        256,
    )
    rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS * len(sizes)
    detector = FasterRCNN(
        backbone,
        heads.NUM_CLASSES + 1,
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, ratios))),
        rpn_pre_nms_top_n_test=rpn.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_test=rpn.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=rpn.NMS_THRESH,
        box_roi_pool=MultiScaleRoIAlign(
            [str(i) for i in range(len(_STAGES))],
            cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
        ),
        box_score_thresh=heads.SCORE_THRESH_TEST,
        box_nms_thresh=heads.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    detector.transform = SameSize(0, 0, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    detector.load_state_dict(_detector_weights(model.state_dict()))
    return detector.eval()


def _require(cfg: CfgNode, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        node = cfg
        for name in key.split("."):
            node = node[name]
        if node != value:
            raise UserError(f"torchvision has no such network: {key} is {node!r}, not {value!r}")


def _resnet(cfg: CfgNode) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.ops import FrozenBatchNorm2d

    _require(cfg, _RESNET)
    resnets = cfg.MODEL.RESNETS
    return ResNet(
        Bottleneck,
        list(_BLOCKS[resnets.DEPTH]),
        groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        norm_layer=FrozenBatchNorm2d,
    )


def _rename(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _resnet_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        _rename(name, _BACKBONE_RULES): tensor
        for name, tensor in weights.items()
        if not name.endswith("num_batches_tracked")
    }


def _detector_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision has the background first, with boxes of its own that are never read."""
    prefix = "backbone.bottom_up."
    renamed = OrderedDict()
    for name, tensor in weights.items():
        if name.startswith(prefix):
            name = f"backbone.body.{_rename(name.removeprefix(prefix), _BACKBONE_RULES)}"
        elif ".box_predictor.cls_score." in name:
            tensor = tensor.roll(1, 0)
        elif ".box_predictor.bbox_pred." in name:
            tensor = torch.cat((torch.zeros_like(tensor[:4]), tensor))
        renamed[_rename(name, _DETECTOR_RULES)] = tensor
    return renamed
