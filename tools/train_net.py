#!/usr/bin/env python
"""Train and evaluate a detector.

python tools/train_net.py --config-file configs/faster_rcnn_X50_32x4d.yaml --num-gpus 8
"""

import sys

from resnext_det.engine import argument_parser, run_job, train_or_evaluate

if __name__ == "__main__":
    sys.exit(run_job(train_or_evaluate, argument_parser().parse_args()))
