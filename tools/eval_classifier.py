#!/usr/bin/env python
"""Test ImageNet weights: their top-1 and top-5 error beside the published one.

python tools/eval_classifier.py --weights resnext://torchvision/X-50-32x4d --data imagenet/val
python tools/eval_classifier.py --weights X-101-64x4d.pth --data imagenet/val --size 320
python tools/eval_classifier.py --weights resnext_101_64x4d.t7 --data imagenet/val --crops dense
python tools/eval_classifier.py --weights trained5k.pth --data imagenet/val --classes classes5k.json

--data holds a folder for each class, whose sorted names are the order of the classes, or tar files
of such, or CIFAR. Channel order, mean and std are what the weights say; resizing is as their
publisher did it.
"""

import argparse
import sys
from pathlib import Path

from resnext_det.classification.job import evaluate_weights
from resnext_det.classification.options import EvaluationOptions
from resnext_det.classification.protocols import CROPS, DENSE_SCALES, INTERPOLATIONS
from resnext_det.classification.testing import BATCH
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, help="resnext://NAME, a converted file or a publisher's"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="VAL")
    parser.add_argument("--size", type=int, help="of crops, pixels: 224 (default), 320")
    parser.add_argument("--crops", choices=CROPS, default="1", help="(default 1, the centre)")
    scales = ", ".join(map(str, DENSE_SCALES))
    parser.add_argument(
        "--scales", type=int, nargs="+", help=f"for dense: shorter sides (default {scales})"
    )
    parser.add_argument(
        "--resize", type=int, help="shorter side before a crop (default: the publisher's, or SIZE)"
    )
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="(the publisher's)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="of ImageNet-5K, from prepare_imagenet5k.py"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N images, evenly spaced")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"crops at once (default {BATCH})")
    parser.add_argument("--workers", type=int, help="that read images (default 4; on a CPU 0)")
    parser.add_argument("--device", help="cuda, cpu (default: a GPU where there is one)")
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave out up to N unreadable images"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args()


def main() -> None:
    options = vars(parse_arguments())
    weights, data, report = (options.pop(name) for name in ("weights", "data", "json"))
    silence_deprecations()
    try:
        evaluate_weights(weights, data, EvaluationOptions(**options), report=report, say=print)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
