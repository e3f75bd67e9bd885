#!/usr/bin/env python
"""Run the batch on which a training diverged once more, with the weights it had.

python tools/replay_batch.py output/nan_batch.pth
"""

import argparse
import sys
from pathlib import Path

from resnext_det.config import load_config
from resnext_det.engine import Trainer
from resnext_det.engine.replay import replay
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("batch", type=Path, help="nan_batch.pth of a run, beside its config.yaml")
    args = parser.parse_args()
    silence_deprecations()
    try:
        cfg = load_config(str(args.batch.parent / "config.yaml"))
        for name, value in replay(args.batch, Trainer.build_model(cfg)).items():
            print(f"{name}: {value:g}")
    except UserError as error:
        sys.exit(f"error: {error}")
