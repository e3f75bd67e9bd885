#!/usr/bin/env python
"""Show what pre-training gains: a classifier on crops of the embedded shapes, then detectors.

python tools/pretrain_shapes.py OUTPUT_DIR output/pretraining
"""

import sys

from resnext_det.classification.pretraining import compare_pretraining, pretraining_parser
from resnext_det.engine import run_job

if __name__ == "__main__":
    sys.exit(run_job(compare_pretraining, pretraining_parser().parse_args()))
