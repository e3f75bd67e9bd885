#!/usr/bin/env python
"""Repeat Fig. 7: CIFAR-10 error against parameters, with more paths and with wider ones.

python tools/figure7.py --data cifar10 --num-gpus 8 OUTPUT_DIR output/figure7
python tools/figure7.py --config-file classification/quick/X29_8x4d_cifar10 --data cifar10 \
    --cardinalities 8 --width 4 --widths 18 --runs 3 OUTPUT_DIR output/figure7
"""

import sys

from resnext_det.classification.figure7 import figure7_parser, make_figure7
from resnext_det.engine import run_job

if __name__ == "__main__":
    sys.exit(run_job(make_figure7, figure7_parser().parse_args()))
