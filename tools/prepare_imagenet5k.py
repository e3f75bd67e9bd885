#!/usr/bin/env python
"""Choose the paper's ImageNet-5K (Section 5.2): ImageNet-1K's classes and the 4,000 largest others.

python tools/prepare_imagenet5k.py --imagenet22k fall11_whole --classes-1k imagenet/train \\
    --output classes5k.json

Writes the list of classes, those of ImageNet-1K first, in the order of the classifier's outputs.
Images are counted where they are, in folders or in <wnid>.tar files; nothing is unpacked.
"""

import argparse
import sys
from pathlib import Path

from resnext_det.classification.imagenet5k import (
    SIZES,
    choose_classes,
    count_images,
    read_classes_1k,
    require_writable,
)
from resnext_det.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--imagenet22k", type=Path, required=True, metavar="DIR", help="folders or <wnid>.tar files"
    )
    parser.add_argument(
        "--classes-1k",
        type=Path,
        required=True,
        metavar="FILE_OR_FOLDER",
        help="a text file with a wnid a line, or a folder with a folder for each class",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=2,
        default=SIZES,
        metavar=("FIRST", "OTHERS"),
        help="numbers of classes, for subsets (default: the paper's 1000 4000)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    try:
        require_writable(args.output)  # before minutes of counting
        first = read_classes_1k(args.classes_1k)
        chosen = choose_classes(count_images(args.imagenet22k), first, tuple(args.sizes))
        chosen.write(args.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{chosen}\nwrote {args.output}")


if __name__ == "__main__":
    main()
