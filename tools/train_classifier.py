#!/usr/bin/env python
"""Train and evaluate a classifier, whose weights detectors can start from.

python tools/train_classifier.py --config-file configs/classification/X50_32x4d_imagenet1k.yaml \
    --data imagenet --num-gpus 8
"""

import sys

from resnext_det.classification.training import argument_parser, train_or_evaluate
from resnext_det.engine import run_job

if __name__ == "__main__":
    sys.exit(run_job(train_or_evaluate, argument_parser().parse_args()))
