"""Faster R-CNN with FPN on ResNeXt-50 (32x4d): faster_rcnn_X50_32x4d_FPN.yaml in Python."""

from .common.data import coco_dataloader
from .common.models import faster_rcnn_fpn
from .common.schedule import lr_multiplier_1x as lr_multiplier
from .common.schedule import optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = faster_rcnn_fpn(depth=50, cardinality=32, width=4)
dataloader = coco_dataloader()
train.init_checkpoint = "resnext://openmmlab/X-50-32x4d"
