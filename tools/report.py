#!/usr/bin/env python
"""Write a run's results, or several runs compared, as one HTML page that needs no network.

python tools/report.py output/demo
python tools/report.py output/x50 output/r50 --output comparison.html
"""

import argparse
import sys
import warnings
from pathlib import Path

from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations
from resnext_det.report import write_comparison, write_report


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="OUTPUT_DIR of tools/train_net.py"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="default RUN/report.html, for several runs comparison.html",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="images of each test set, half of them the best, half the worst (default 8)",
    )
    parser.add_argument("--threshold", type=float, help="lowest score drawn, 0 to 1 (default 0.5)")
    args = parser.parse_args()
    if len(args.runs) > 1 and (args.images is not None or args.threshold is not None):
        parser.error("--images and --threshold are for one run: a comparison shows no images")
    return args


def main() -> None:
    silence_deprecations()
    # of names in scripts that matplotlib's font lacks: the page has the reader's own fonts
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
    args = parse_arguments()
    if len(args.runs) > 1:
        print(f"wrote {write_comparison(args.runs, args.output or Path('comparison.html'))}")
        return
    options = {"images": args.images, "threshold": args.threshold}
    given = {name: value for name, value in options.items() if value is not None}
    written = write_report(args.runs[0], args.output, **given)
    print(f"wrote {written}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
