#!/usr/bin/env python
"""Draw ground truth as training sees it, after augmentation: boxes, masks, keypoints, names.

python tools/visualize_data.py --config-file mask_rcnn_X50_32x4d_FPN --sheet data.jpg
python tools/visualize_data.py --config-file output/demo/config.yaml --split test --output pictures
"""

import argparse
import sys
from pathlib import Path

from resnext_det.config import load_config
from resnext_det.data.custom import data_of_run
from resnext_det.data.ground_truth import draw_data
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="CONFIG", help="a file, or a shipped config's name"
    )
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--num", type=int, default=16, help="images (default 16)")
    parser.add_argument(
        "--no-augmentation", action="store_true", help="draw the images as they are on disk"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for a picture an image (default: data_train or data_test in OUTPUT_DIR)",
    )
    where.add_argument("--sheet", type=Path, metavar="FILE.jpg", help="for one picture of all")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config, last"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    silence_deprecations()
    try:
        for name, data in data_of_run(Path(args.config_file).parent).items():
            data.register(name)
        cfg = load_config(args.config_file, args.opts)
        folder = args.output
        if args.sheet is None and folder is None:
            folder = Path(cfg.OUTPUT_DIR) / f"data_{args.split}"
        written = draw_data(
            cfg,
            train=args.split == "train",
            num=args.num,
            augment=not args.no_augmentation,
            folder=folder,
            sheet=args.sheet,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {written[0]}" if args.sheet else f"wrote {len(written)} pictures into {folder}")


if __name__ == "__main__":
    main()
