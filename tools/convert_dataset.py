#!/usr/bin/env python
"""Turn Pascal VOC folders or YOLO text labels into COCO JSON, the format this project reads.

python tools/convert_dataset.py voc VOCdevkit/VOC2007 train.json --split trainval
python tools/convert_dataset.py voc VOCdevkit/VOC2007 val.json --split test \\
    --classes-from train.json
python tools/convert_dataset.py yolo my_data train.json --split train --names my_data/data.yaml
"""

import argparse
import sys
from pathlib import Path

from resnext_det.data.formats import write_json
from resnext_det.data.voc import convert_voc
from resnext_det.data.yolo import convert_yolo
from resnext_det.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="voc|yolo")
    voc = formats.add_parser("voc", help="Annotations/*.xml, JPEGImages/, ImageSets/Main/")
    yolo = formats.add_parser(
        "yolo", help="images/<split>, labels/<split>, a box or polygon a line"
    )
    for one in (voc, yolo):
        one.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set")
        one.add_argument("output", type=Path, metavar="OUT", help="COCO JSON file to write")
        one.add_argument(
            "--classes-from",
            type=Path,
            metavar="TRAIN.json",
            help="take class ids from an earlier output, so that both splits have the same",
        )
    voc.add_argument("--split", help="a list in ImageSets/Main (default: all of Annotations)")
    voc.add_argument("--drop-difficult", action="store_true", help="leave difficult objects out")
    yolo.add_argument("--split", help="a folder in images/ and labels/ (default: all in them)")
    yolo.add_argument("--names", type=Path, help="data.yaml, or a text file with a name a line")
    yolo.add_argument("--images", type=Path, metavar="DIR", help="folder of images, with --labels")
    yolo.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels, with --images")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    options = dict(vars(args))
    kind, root, output = (options.pop(key) for key in ("format", "root", "output"))
    try:
        if output.is_dir():
            raise UserError(f"{output} is a folder: name a file in it")
        if args.classes_from and args.classes_from.resolve() == output.resolve():
            raise UserError(f"--classes-from {output} is OUT: name another file")
        convert = convert_voc if kind == "voc" else convert_yolo
        content, lines = convert(root, **options)
        write_json(content, output)
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join([*lines, f"wrote {output}"]))


if __name__ == "__main__":
    main()
