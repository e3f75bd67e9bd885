#!/usr/bin/env python
"""Serve a page on this machine where one drops an image and sees what a detector finds in it.

python tools/webdemo.py --config-file output/demo/config.yaml \\
    --weights output/demo/model_final.pth

Ctrl-C ends it.
"""

import argparse
import sys

from resnext_det.deploy.options import add_optimize_argument
from resnext_det.errors import UserError
from resnext_det.inference.web import Limits, run_webdemo
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a run's config.yaml, or a config"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="of a trained detector")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="lowest score shown at first (default 0.5)"
    )
    parser.add_argument(
        "--max-upload-mb", type=int, default=20, metavar="MB", help="of an image (default 20)"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=Limits.pixels,
        metavar="N",
        help=f"of an image, width x height (default {Limits.pixels})",
    )
    add_optimize_argument(parser, int8=False)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    silence_deprecations()
    run_webdemo(
        args.config_file,
        args.weights,
        overrides=args.overrides,
        host=args.host,
        port=args.port,
        threshold=args.threshold,
        optimize=args.optimize,
        limits=Limits(upload_bytes=args.max_upload_mb * 1024**2, pixels=args.max_pixels),
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while the weights are read
        sys.exit(130)
