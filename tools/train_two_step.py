#!/usr/bin/env python
"""Train the paper's detector in two steps: an RPN, then Fast R-CNN on its proposals.

python tools/train_two_step.py --rpn-config paper/rpn_X50_32x4d \
    --fast-rcnn-config paper/fast_rcnn_X50_32x4d --num-gpus 8
"""

import sys

from resnext_det.engine import run_job
from resnext_det.engine.two_step import train_two_step, two_step_parser

if __name__ == "__main__":
    sys.exit(run_job(train_two_step, two_step_parser().parse_args()))
