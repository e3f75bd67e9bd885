#!/usr/bin/env python
"""Evaluate a saved COCO results file, without a model: COCO's figures, and a table of classes.

python tools/evaluate_results.py coco_instances_results.json --annotations instances_val2017.json
python tools/evaluate_results.py output/demo/inference/coco_instances_results.json \\
    --config-file output/demo/config.yaml --output output/again
"""

import argparse
import sys
from pathlib import Path

from resnext_det.errors import UserError
from resnext_det.evaluation.saved import evaluate_results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="of any detector")
    parser.add_argument(
        "--annotations", type=Path, metavar="GT.json", help="the ground truth, in COCO's format"
    )
    parser.add_argument(
        "--config-file",
        metavar="CONFIG",
        help="a run's config.yaml or a config's name: its test set is the ground truth",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        choices=("bbox", "segm", "keypoints"),
        help="(default: all that the results have)",
    )
    parser.add_argument(
        "--score",
        metavar="S",
        default="0.5",
        help="precision and recall of each class are at this score, 0 to 1 (default 0.5)",
    )
    parser.add_argument(
        "--limit", metavar="N", help="the first N images of the ground truth, by id"
    )
    parser.add_argument(
        "--evaluator", default="hotcoco", help="hotcoco (default) or pycocotools, which is slow"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="gets evaluation.json and results.json"
    )
    args = parser.parse_args()
    if not (args.annotations or args.config_file):
        parser.error("name the ground truth: --annotations or --config-file")
    return args


def main() -> None:
    args = parse_arguments()
    print(
        evaluate_results(
            args.results,
            annotations=args.annotations,
            config_file=args.config_file,
            tasks=args.tasks,
            score=args.score,
            limit=args.limit,
            evaluator=args.evaluator,
            output=args.output,
        )
    )
    if args.output:
        print(f"\nwrote {args.output / 'evaluation.json'} and {args.output / 'results.json'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
