#!/usr/bin/env python
"""Print the paper's Table 8 beside our figures: train its four rows, or read finished runs.

python tools/table8.py --num-gpus 8 OUTPUT_DIR output/table8
python tools/table8.py --runs R50=output/r50 X50_32x4d=output/x50 --json table8.json
python tools/table8.py --quick SOLVER.MAX_ITER 200
"""

import sys

from resnext_det.engine import run_job
from resnext_det.engine.table8 import make_table8, table8_parser

if __name__ == "__main__":
    sys.exit(run_job(make_table8, table8_parser().parse_args()))
