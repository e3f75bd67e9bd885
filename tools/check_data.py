#!/usr/bin/env python
"""Check a data set in COCO's format before training on it: annotations, and every image.

python tools/check_data.py train.json images/train --against val.json
python tools/check_data.py train.json images/train --fix train_clean.json
python tools/check_data.py train.json --no-images --json report.json

Exit status: 0 nothing above a note, 1 the check could not run, 2 errors, 3 warnings but no error.
An error stops training or evaluation, or teaches something wrong; a warning is data that is lost or
changed in silence. The status is about the file as it was read, also with --fix.
"""

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from resnext_det.data.check import (
    Checked,
    category_tables,
    check_annotations,
    compare_categories,
    read_annotations,
)
from resnext_det.data.check_images import check_images
from resnext_det.data.check_summary import format_summary
from resnext_det.data.clean import cleaned, write_annotations
from resnext_det.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, metavar="JSON", help="annotation file")
    parser.add_argument("images", nargs="?", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument(
        "--against", type=Path, metavar="JSON", help="compare the classes with another file's"
    )
    parser.add_argument("--no-images", action="store_true", help="check the annotations alone")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT.json",
        help="write a copy without what cannot be used, and say what was dropped",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a report to FILE; without FILE to standard output",
    )
    args = parser.parse_intermixed_args()
    if args.images is None and not args.no_images:
        parser.error("IMAGES is needed, or --no-images")
    if args.workers is not None and not 1 <= args.workers <= 1024:
        parser.error(f"--workers {args.workers}: give 1 to 1024 processes")
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that could not be written, or would destroy a file."""
    named = {"JSON": args.annotations, "--against": args.against}
    report = None if args.json in (None, "-") else Path(args.json)
    for option, file in (("--fix", args.fix), ("--json", report)):
        if file is None:
            continue
        if file.is_dir():
            raise UserError(f"{option} {file} is a folder: name a file in it")
        if not file.parent.is_dir():
            raise UserError(f"{option} {file}: there is no folder {file.parent}")
        for other, path in named.items():
            if path is not None and same_file(file, path):
                raise UserError(f"{option} {file} is the file of {other}: name another file")
        named[option] = file


def same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return os.path.samefile(first, second)
    return first.resolve() == second.resolve()


def fix(args: argparse.Namespace, data: dict, checked: Checked, unusable: set[int]) -> dict:
    """Write the clean copy; return what was done and what was left, with counts."""
    copy, done = cleaned(data, checked.findings, unusable)
    write_annotations(copy, args.fix)
    again = check_annotations(*read_annotations(args.fix)).findings.as_list()
    pixels = [f for f in checked.findings.as_list() if f.code in ("image-size", "image-exif")]
    left = [f for f in again if f.severity != "note"] + pixels
    return {
        "file": str(args.fix),
        "images": len(copy["images"]),
        "annotations": len(copy["annotations"]),
        "done": dict(done),
        "left": {f.code: f.count for f in left},
    }


def describe(args: argparse.Namespace, checked: Checked, fixed: dict | None) -> str:
    lines = [f"{args.annotations}: {format_summary(checked.statistics.as_dict())}"]
    lines += [str(f) for f in checked.findings.as_list()] or ["nothing to say against it"]
    if fixed:
        lines += [f"fixed: {what}: {count}" for what, count in fixed["done"].items()]
        lines += [f"left as it is: {code} ({count})" for code, count in fixed["left"].items()]
        lines += [
            f"wrote {fixed['file']}: {fixed['images']} images, {fixed['annotations']} annotations"
        ]
    return "\n".join(lines)


def main() -> int:
    args = parse_arguments()
    for stream in (sys.stdout, sys.stderr):  # names of classes and files may hold any character
        stream.reconfigure(errors="backslashreplace")
    fixed = None
    try:
        check_outputs(args)
        data, num_constants = read_annotations(args.annotations)
        other = category_tables(args.against) if args.against else None
        checked = check_annotations(data, num_constants)
        if other is not None:
            compare_categories(checked.tables, other, checked.findings)
        unusable = set()
        if not args.no_images:
            unusable = check_images(
                data["images"], args.images, checked.findings, workers=args.workers
            )
        if args.fix:
            fixed = fix(args, data, checked, unusable)
        report = {
            "file": str(args.annotations),
            "status": checked.findings.exit_status(),
            "summary": checked.statistics.as_dict(),
            "findings": [asdict(f) for f in checked.findings.as_list()],
            "fixed": fixed,
        }
        text = json.dumps(report, indent=2, allow_nan=False)
        if args.json not in (None, "-"):
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(args, checked, fixed), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json == "-":
        print(text)
    return report["status"]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
