#!/usr/bin/env python
"""Train and evaluate a detector from a Python config.

python tools/lazyconfig_train_net.py --config-file configs/lazy/faster_rcnn_X50_32x4d.py
"""

import sys

from resnext_det.engine import argument_parser, run_job
from resnext_det.engine.lazy import train_or_evaluate_lazy

if __name__ == "__main__":
    sys.exit(run_job(train_or_evaluate_lazy, argument_parser().parse_args()))
