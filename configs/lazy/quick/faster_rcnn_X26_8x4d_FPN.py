"""Learns the embedded shapes on a CPU: quick/faster_rcnn_X26_8x4d_FPN.yaml in Python."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from ..common.data import coco_dataloader
from ..common.models import faster_rcnn_fpn
from ..common.schedule import train

model = faster_rcnn_fpn(depth=26, cardinality=8, width=4)
model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [64.0, 64.0, 64.0]
model.backbone.bottom_up.update(
    stem_out_channels=32, res2_out_channels=64, norm="BN", zero_init_residual=True, freeze_at=0
)
model.backbone.update(norm="BN", out_channels=64)
rpn = model.proposal_generator
rpn.head.in_channels = 64
rpn.anchor_generator.sizes = [[16], [32], [64], [96], [128]]
rpn.update(batch_size_per_image=64, pre_nms_topk=(200, 200), post_nms_topk=(100, 50))
heads = model.roi_heads
heads.update(num_classes=5, batch_size_per_image=32)
heads.box_head.update(input_shape=ShapeSpec(channels=64, height=7, width=7), fc_dims=[256, 256])
heads.box_predictor.update(input_shape=ShapeSpec(channels=256), test_topk_per_image=20)
del rpn, heads  # the config is what a file's top level holds

dataloader = coco_dataloader(
    "shapes_train", "shapes_minival", train_edges=[128], test_edge=128, max_edge=1333
)
dataloader.train.update(total_batch_size=8, num_workers=0)
dataloader.test.num_workers = 0

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.update(lr=0.003, weight_decay=0.05, betas=(0.9, 0.999))
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=100 / 800,
    warmup_method="linear",
    warmup_factor=0.001,
)
train.update(max_iter=800, eval_period=200, seed=1)
