"""Optimiser, learning rates and the options of the training loop."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

train = model_zoo.get_config("common/train.py").train
optimizer = model_zoo.get_config("common/optim.py").SGD

# 90k iterations of 16 images; Base-RCNN-FPN.yaml
lr_multiplier_1x = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x

# 180k iterations of 16 images, the rate a tenth for the last third; Base-RCNN-C4.yaml
c4_max_iter = 180_000
lr_multiplier_c4 = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[120_000, c4_max_iter]),
    warmup_length=1000 / c4_max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
