#!/usr/bin/env python
"""Submit training to Slurm; at its time limit the job is queued again and goes on.

python tools/submit_slurm.py --nodes 2 --gpus-per-node 8 --hours 24 --partition gpu -- \
    --config-file configs/faster_rcnn_X50_32x4d.yaml SOLVER.IMS_PER_BATCH 16
"""

import sys

from resnext_det.engine.submission import submit
from resnext_det.errors import UserError

if __name__ == "__main__":
    try:
        print(submit(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
