#!/usr/bin/env python
"""Draw a finished run's curves and a sheet of detections, or several runs' curves in one picture.

python tools/plot_run.py output/demo
python tools/plot_run.py output/x50 output/r50 --output comparison.png
"""

import argparse
import sys
from pathlib import Path

from resnext_det.errors import UserError
from resnext_det.evaluation.comparison import compare_runs
from resnext_det.evaluation.pictures import draw_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="OUTPUT_DIR of tools/train_net.py"
    )
    parser.add_argument("--images", type=int, default=8, help="images on the sheet (default 8)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="lowest score drawn, 0 to 1 (default 0.5)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.png",
        help="picture of several runs (default comparison.png)",
    )
    args = parser.parse_args()
    if len(args.runs) == 1 and args.output:
        parser.error("--output is for several runs: one run's pictures go into its folder")
    return args


def main() -> None:
    args = parse_arguments()
    if len(args.runs) > 1:
        output = args.output or Path("comparison.png")
        print(compare_runs(args.runs, output))
        print(f"wrote {output}")
        return
    for picture in draw_run(args.runs[0], images=args.images, threshold=args.threshold):
        print(f"wrote {picture}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
