#!/usr/bin/env python
"""Make the paper's COCO splits, minival and valminusminival, from the official files, offline.

python tools/prepare_coco.py --coco datasets/coco
python tools/prepare_coco.py --coco datasets/coco --check

Reads instances_val2014.json and the image ids of instances_val2017.json below DIR/annotations, and
writes instances_minival2014.json and instances_valminusminival2014.json beside them; the same for
person_keypoints where person_keypoints_val2014.json is there.
"""

import argparse
import signal
import sys
from pathlib import Path

from resnext_det.data.prepare import prepare_splits
from resnext_det.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--coco", type=Path, required=True, metavar="DIR", help="folder that holds annotations/"
    )
    parser.add_argument("--check", action="store_true", help="only verify the files that are there")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    args = parser.parse_args()
    if args.check and args.force:
        parser.error("--check writes nothing: leave out --force")
    return args


def main() -> None:
    args = parse_arguments()
    for name in (signal.SIGTERM, signal.SIGHUP):  # unwinds: no temporary file stays
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    try:
        prepare_splits(args.coco, check=args.check, force=args.force)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
