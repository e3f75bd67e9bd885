"""Table 8's Faster R-CNN with ResNeXt-50 (32x4d): faster_rcnn_X50_32x4d.yaml in Python."""

from .common.data import coco_dataloader
from .common.models import faster_rcnn_c4
from .common.schedule import c4_max_iter, optimizer, train
from .common.schedule import lr_multiplier_c4 as lr_multiplier

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = faster_rcnn_c4(depth=50, cardinality=32, width=4)
dataloader = coco_dataloader(train_edges=[600], test_edge=600, max_edge=1000)
train.init_checkpoint = "resnext://openmmlab/X-50-32x4d"
train.max_iter = c4_max_iter
