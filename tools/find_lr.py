#!/usr/bin/env python
"""Suggest a learning rate for a config, by a short training with a rising rate.

python tools/find_lr.py --config-file configs/faster_rcnn_X50_32x4d.yaml --iterations 200
"""

import sys

from resnext_det.engine import run_job
from resnext_det.engine.lr_finder import find_lr, lr_finder_parser

if __name__ == "__main__":
    sys.exit(run_job(find_lr, lr_finder_parser().parse_args()))
