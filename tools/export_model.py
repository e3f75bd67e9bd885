#!/usr/bin/env python
"""Write a trained detector as one model file for other programs, and verify it.

python tools/export_model.py --config-file output/demo/config.yaml \\
    --weights output/demo/model_final.pth --format onnx --sample-image photo.jpg \\
    --output detector.onnx
python -m resnext_det.deploy.run detector.onnx photo.jpg
"""

import argparse
import logging
import sys
from pathlib import Path

from resnext_det.deploy.export import export_detector
from resnext_det.deploy.runtimes import SUFFIXES
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a run's config.yaml, or a name")
    parser.add_argument("--weights", help="a trained detector's file; default: MODEL.WEIGHTS")
    parser.add_argument("--format", required=True, choices=list(SUFFIXES))
    parser.add_argument(
        "--sample-image", required=True, type=Path, help="an image with objects to trace with"
    )
    parser.add_argument(
        "--check-image",
        type=Path,
        help="verifies the file, of other proportions; default: the sample transposed and squeezed",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"ending in {', '.join(SUFFIXES.values())}; default: beside --weights, by its name",
    )
    parser.add_argument("--licence", help="of the weights, where their file records none")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config"
    )
    args = parser.parse_args()
    if args.output is None:
        if args.weights is None or "://" in args.weights:
            parser.error("--output is needed where --weights is no file")
        args.output = Path(args.weights).with_suffix(SUFFIXES[args.format])
    return args


def main() -> None:
    args = parse_arguments()
    silence_deprecations()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        answers = export_detector(
            args.config_file,
            args.weights,
            format=args.format,
            output=args.output,
            sample=args.sample_image,
            check=args.check_image,
            licence=args.licence,
            overrides=args.opts,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    for name, agreement in answers.items():
        print(f"verified on {name}: {agreement}")
    files = [args.output]
    if args.format == "openvino":
        files.append(args.output.with_suffix(".bin"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"wrote {' and '.join(map(str, files))} ({size:.1f} MB); run it with")
    print(f"  python -m resnext_det.deploy.run {args.output} {args.sample_image}")


if __name__ == "__main__":
    main()
