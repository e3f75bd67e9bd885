"""What the paper (Xie et al., CVPR 2017) publishes of detection: its Table 8."""

from collections.abc import Mapping
from types import MappingProxyType

from detectron2.config import CfgNode

# Faster R-CNN on COCO minival, percent, by row: the backbone's name as in our configs.
TABLE8: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "R50": {"AP50": 47.6, "AP": 26.5},
        "X50_32x4d": {"AP50": 49.7, "AP": 27.5},
        "R101": {"AP50": 51.1, "AP": 29.8},
        "X101_32x4d": {"AP50": 51.9, "AP": 30.0},
    }
)
TABLE8_DATASET = "coco_minival"
TABLE8_IMAGES = 5000

_ROWS = {  # DEPTH, NUM_GROUPS, WIDTH_PER_GROUP
    (50, 1, 64): "R50",
    (50, 32, 4): "X50_32x4d",
    (101, 1, 64): "R101",
    (101, 32, 4): "X101_32x4d",
}


def table8_row(cfg: CfgNode) -> str | None:
    """The row of Table 8 that a config is: a Faster R-CNN on conv4 of one of its four backbones.

    Args:
        cfg: with our keys or without; trained jointly or in the paper's two steps.

    Returns:
        A key of `TABLE8`; None for another network or another test set.
    """
    model = cfg.MODEL
    paper_s = (
        tuple(cfg.DATASETS.TEST) == (TABLE8_DATASET,)
        and model.META_ARCHITECTURE == "GeneralizedRCNN"
        and model.ROI_HEADS.NAME in ("ResNeXtRes5ROIHeads", "Res5ROIHeads")
        and list(model.ROI_HEADS.IN_FEATURES) == ["res4"]
        and not (model.MASK_ON or model.KEYPOINT_ON)
        and ("RESNEXT" not in model or model.RESNEXT.get("RESIDUAL", True))
    )
    nets = model.RESNETS
    backbone = (nets.DEPTH, nets.NUM_GROUPS, nets.WIDTH_PER_GROUP)
    return _ROWS.get(backbone) if paper_s else None
