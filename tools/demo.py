#!/usr/bin/env python
"""Detect objects in images, folders and videos, and draw them, without a display.

python tools/demo.py --config-file RUN/config.yaml --weights RUN/model_final.pth \\
    --input photo.jpg folder 'data/*.png' film.mp4 --output found --json --batch 4
python tools/demo.py --config-file RUN/config.yaml --weights RUN/model_final.pth \\
    --input - --output found < photo.jpg
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from PIL import Image

from resnext_det.deploy.options import add_optimize_argument
from resnext_det.errors import UserError
from resnext_det.inference.demo import run_demo
from resnext_det.inference.runner import Options
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="CONFIG", help="a file, or a shipped config's name"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="a trained detector (default: the config's MODEL.WEIGHTS)"
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="INPUT",
        help="images, folders, patterns, videos, or - for an image from standard input",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for pictures and files"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="lowest score shown, 0 to 1 (default 0.5)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most N inputs, and N frames each"
    )
    add_optimize_argument(parser, int8=False)
    parser.add_argument("--json", action="store_true", help="write DIR/predictions.json")
    parser.add_argument("--csv", action="store_true", help="write DIR/predictions.csv")
    parser.add_argument(
        "--coco", action="store_true", help="write DIR/coco_instances_results.json, images.json"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config, last"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    silence_deprecations()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused in our own words
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # likewise: its lines name no file
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        options = Options(
            args.threshold,
            args.batch,
            args.limit,
            json=args.json,
            csv=args.csv,
            coco=args.coco,
            optimize=args.optimize,
        )
        summary = run_demo(
            args.config_file,
            args.weights,
            args.input,
            args.output,
            options,
            overrides=args.opts,
            say=print,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while the weights are read
        sys.exit(130)
    print(f"{'stopped: ' if summary.stopped else ''}{summary} in {args.output}")
    for file in summary.written:
        print(f"wrote {file}")
    if summary.stopped:
        sys.exit(130)
    if summary.failed:
        sys.exit(f"error: inputs that were left out: {len(summary.failed)}, see above")


if __name__ == "__main__":
    main()
