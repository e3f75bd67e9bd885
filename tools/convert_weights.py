#!/usr/bin/env python
"""Convert public ImageNet weights into Detectron2's names, with proof, or trained ones back.

python tools/convert_weights.py resnext50_32x4d-7cdf4587.pth X-50-32x4d.pth
python tools/convert_weights.py resnext_50_32x4d.t7 X-50-32x4d.safetensors --channel-order BGR
python tools/convert_weights.py --to torchvision output/model_final.pth resnext50.pth
python tools/convert_weights.py --list
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from resnext_det.atomic import replacing
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations
from resnext_det.weights.agreement import shown
from resnext_det.weights.catalog import format_catalog
from resnext_det.weights.conventions import Options
from resnext_det.weights.convert import LIBRARIES, Report, convert_file, export_file
from resnext_det.weights.recipe import IMAGENET
from resnext_det.weights.sources import SOURCES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="?", type=Path, metavar="IN", help="weight file to read")
    parser.add_argument(
        "output", nargs="?", type=Path, metavar="OUT", help="file to write, .pth or .safetensors"
    )
    parser.add_argument("--list", action="store_true", help="show the catalog of public weights")
    parser.add_argument("--to", choices=LIBRARIES, help="turn Detectron2's names into a library's")
    parser.add_argument("--source", choices=SOURCES, help="layout of IN (default: told from it)")
    parser.add_argument(
        "--channel-order",
        choices=("RGB", "BGR"),
        help="of the images that OUT expects (default: as IN)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a report to FILE; without FILE to standard output",
    )
    said = parser.add_argument_group("where IN does not tell, or tells wrongly")
    said.add_argument("--wrapper", metavar="KEY", help="key of the checkpoint with the tensors")
    said.add_argument("--input-order", choices=("RGB", "BGR"), help="of the images IN expects")
    said.add_argument(
        "--pixel-mean", nargs=3, type=float, metavar="X", help="in that order, images of 0..255"
    )
    said.add_argument("--pixel-std", nargs=3, type=float, metavar="X", help="likewise")
    said.add_argument("--stride-in-1x1", choices=("yes", "no"), help="place of a stage's stride")
    said.add_argument("--licence", help="of the weights, for the record")
    args = parser.parse_intermixed_args()
    if not args.list and args.output is None:
        parser.error("IN and OUT are needed, or --list")
    if args.to and args.channel_order == "BGR":
        parser.error(f"--channel-order BGR: {args.to}'s networks take RGB images")
    return args


def check_report(args: argparse.Namespace) -> None:
    """Refuse a report that could not be written, or would destroy a file."""
    if args.json in (None, "-"):
        return
    file = Path(args.json)
    if file.is_dir():
        raise UserError(f"--json {file} is a folder: name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{file}: {file.parent} cannot be written")
    if file.resolve() in (args.input.resolve(), args.output.resolve()):
        raise UserError(f"--json {file} is IN or OUT: name another file")


def options_of(args: argparse.Namespace) -> Options:
    return Options(
        source=args.source,
        wrapper=args.wrapper,
        input_order=args.input_order,
        pixel_mean=args.pixel_mean and tuple(args.pixel_mean),
        pixel_std=args.pixel_std and tuple(args.pixel_std),
        stride_in_1x1=None if args.stride_in_1x1 is None else args.stride_in_1x1 == "yes",
        licence=args.licence,
    )


def describe(report: Report, to: str | None) -> str:
    recipe = report.recipe
    lines = [
        "proved: largest difference, of the largest feature: "
        + ", ".join(f"{name} {value:.1e}" for name, value in report.differences.items()),
        f"expects {recipe['channel_order']} images, mean {shown(tuple(recipe['pixel_mean']))}, "
        f"std {shown(tuple(recipe['pixel_std']))} (told by {report.preprocessing_from}); licence "
        f"{recipe['licence']}",
        *(f"note: {note}" for note in report.notes),
        f"wrote {report.output}, sha256 {report.output_sha256}",
    ]
    if report.num_classes is None:
        lines.append("there is no classifier in it")
    statistics = (tuple(recipe["pixel_mean"]), tuple(recipe["pixel_std"]))
    if to and statistics != (IMAGENET.pixel_mean, IMAGENET.pixel_std):
        lines.append(
            f"warning: mean and std are not those of {to}'s own transforms: normalise images of "
            "0..255 as said above"
        )
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    if args.list:
        print(format_catalog())
        return
    for name in (signal.SIGTERM, signal.SIGHUP):  # unwinds: no temporary file stays
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    silence_deprecations()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        check_report(args)
        if args.to:
            report = export_file(args.input, args.output, args.to, options_of(args), say=say)
        else:
            report = convert_file(
                args.input,
                args.output,
                options_of(args),
                channel_order=args.channel_order,
                say=say,
            )
        text = json.dumps(report.as_dict(), indent=2)
        if args.json not in (None, "-"):
            with replacing(Path(args.json)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(report, args.to), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json == "-":
        print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
