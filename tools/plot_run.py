#!/usr/bin/env python
"""Draw a finished run's curves and a sheet of detections beside ground truth.

python tools/plot_run.py output/demo
"""

import argparse
import sys
from pathlib import Path

from resnext_det.errors import UserError
from resnext_det.evaluation.pictures import draw_run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a run of tools/train_net.py")
    parser.add_argument("--images", type=int, default=8, help="images on the sheet (default 8)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="lowest score drawn, 0 to 1 (default 0.5)"
    )
    args = parser.parse_args()
    try:
        for picture in draw_run(args.run, images=args.images, threshold=args.threshold):
            print(f"wrote {picture}")
    except UserError as error:
        sys.exit(f"error: {error}")
