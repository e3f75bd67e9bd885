#!/usr/bin/env python
"""Submit training to Slurm; at its time limit the job is queued again and goes on.

python tools/submit_slurm.py --nodes 2 --gpus-per-node 8 --hours 24 --partition gpu -- \
    --config-file configs/faster_rcnn_X50_32x4d.yaml SOLVER.IMS_PER_BATCH 16
python tools/submit_slurm.py --tool tools/train_classifier.py --gpus-per-node 8 -- \
    --config-file configs/classification/X50_32x4d_imagenet1k.yaml --data imagenet
"""

import sys

from resnext_det.classification import training
from resnext_det.engine.submission import TRAIN_NET, Program, submit
from resnext_det.errors import UserError

TRAIN_CLASSIFIER = Program(
    "tools/train_classifier.py", training.argument_parser, training.train_or_evaluate
)

if __name__ == "__main__":
    try:
        print(submit(sys.argv[1:], (TRAIN_NET, TRAIN_CLASSIFIER)))
    except UserError as error:
        sys.exit(f"error: {error}")
