#!/usr/bin/env python
"""Time a detector on this CPU: Detectron2's own, ours, its optimised forms, torchvision's, ONNX.

python tools/benchmark.py --json benchmark.json --png benchmark.png
python tools/benchmark.py --sides all --repeats 9 --parts --forms
python tools/benchmark.py --config RUN/config.yaml --weights RUN/model_final.pth --image photo.jpg
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from resnext_det.atomic import replacing
from resnext_det.deploy.benchmark import Settings, run_benchmark
from resnext_det.deploy.benchmark.picture import draw_report
from resnext_det.deploy.benchmark.settings import SCOPES, TITLES
from resnext_det.deploy.benchmark.tables import format_report
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        default="faster_rcnn_X50_32x4d_FPN",
        metavar="CONFIG",
        help="a file, or a shipped config's name (default faster_rcnn_X50_32x4d_FPN)",
    )
    parser.add_argument("--weights", metavar="FILE", help="a trained detector (default: random)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photo (default: noise)")
    parser.add_argument(
        "--size", type=int, default=800, metavar="PIXELS", help="shorter side (default 800)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default 5)")
    parser.add_argument(
        "--warmup", type=int, default=1, metavar="N", help="untimed rounds (default 1)"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=(1, 2, 4), metavar="N", help="(default 1 2 4)"
    )
    parser.add_argument(
        "--streams", type=int, nargs="+", default=(1, 2), metavar="N", help="(default 1 2)"
    )
    parser.add_argument("--scope", choices=SCOPES, help="only one of the two (default both)")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=(),
        metavar="NAME",
        help=f"all, or some of: {', '.join(TITLES)} (default: the fastest forms and all others)",
    )
    parser.add_argument(
        "--calibration-images", type=int, default=2, metavar="N", help="of int8 (default 2)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--parts", action="store_true", help="also time the detector's parts")
    parser.add_argument("--forms", action="store_true", help="also time forms a, b, c of Fig. 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the latencies")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config, last"
    )
    args = parser.parse_args()
    keys = [i for i, word in enumerate(args.sides) if "." in word]  # the rest is for the config
    if keys:
        args.sides, args.opts = args.sides[: keys[0]], [*args.sides[keys[0] :], *args.opts]
    return args


def require_writable(args: argparse.Namespace) -> None:
    """Refuse files that could not be written, before minutes are spent.

    Raises:
        UserError: for a folder that is not there or not writable, a picture that is no PNG, or one
            name for both.
    """
    for flag, file in (("--json", args.json), ("--png", args.png)):
        if file is None:
            continue
        if file.is_dir():
            raise UserError(f"{flag} {file} is a folder: name a file")
        try:
            tempfile.TemporaryFile(dir=file.absolute().parent).close()
        except OSError as error:
            raise UserError(f"{flag} {file} cannot be written: {error.strerror}") from error
    if args.json is not None and args.png is not None and args.json.resolve() == args.png.resolve():
        raise UserError(f"--json and --png are both {args.json}: name two files")
    if args.png is not None and args.png.suffix.lower() != ".png":
        raise UserError(f"--png {args.png}: name a file that ends in .png")


def main() -> None:
    args = parse_arguments()
    require_writable(args)
    silence_deprecations()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("resnext_det.deploy.benchmark").setLevel(logging.INFO)
    settings = Settings(
        config=args.config,
        overrides=args.opts,
        weights=args.weights,
        image=args.image,
        size=args.size,
        repeats=args.repeats,
        warmup=args.warmup,
        batches=args.batch,
        streams=args.streams,
        scopes=SCOPES if args.scope is None else (args.scope,),
        sides=args.sides,
        calibration_images=args.calibration_images,
        memory=not args.no_memory,
        parts=args.parts,
        forms=args.forms,
    )
    report = run_benchmark(settings)
    print(format_report(report))
    if args.json is not None:
        with replacing(args.json) as temporary:
            text = json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n"
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {args.json}")
    if args.png is not None:
        draw_report(report, args.png)
        print(f"wrote {args.png}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
