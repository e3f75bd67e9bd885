"""Mask R-CNN with FPN on ResNeXt-50 (32x4d): mask_rcnn_X50_32x4d_FPN.yaml in Python."""

from .common.data import coco_dataloader
from .common.models import mask_rcnn_fpn
from .common.schedule import lr_multiplier_1x as lr_multiplier
from .common.schedule import optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = mask_rcnn_fpn(depth=50, cardinality=32, width=4)
dataloader = coco_dataloader(tasks=["bbox", "segm"])
train.init_checkpoint = "resnext://openmmlab/X-50-32x4d"
