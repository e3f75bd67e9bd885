#!/usr/bin/env python
"""Measure COCO evaluation: pycocotools, faster-coco-eval where it is installed, and ours.

python tools/benchmark_evaluation.py
python tools/benchmark_evaluation.py --images 500 --task segm --json evaluation_speed.json

They evaluate in turn, in one process, on the same synthetic detections, 100 an image of 80 classes.
Loading is timed apart. The last row is all that an evaluation writes: figures, classes, curves,
errors, confusion and diagnosis. `difference` is the greatest of the 12 figures', in points.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util
from tabulate import tabulate

from resnext_det.errors import UserError
from resnext_det.evaluation.detections import Detections
from resnext_det.evaluation.measures import implementation, measures_of, run_hotcoco
from resnext_det.evaluation.summary import evaluate_tasks, write_json
from resnext_det.evaluation.truth import make_truth

WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100
COLUMNS = {"loading_s": ".2f", "median_s": ".2f", "times_as_fast": ".1f", "difference": ".0e"}


def draw(images: int, seed: int, *, masks: bool) -> tuple[dict, Detections]:
    """Draw a ground truth, 7.3 objects an image of which 1.2 % are crowds, and detections.

    80 % of the objects are found, a tenth of these as another class; the rest is background.
    """
    rng = np.random.default_rng(seed)
    of_object = np.repeat(np.arange(1, images + 1), rng.poisson(7.3, images))
    boxes = _boxes(rng, len(of_object))
    categories = rng.integers(1, CLASSES + 1, len(boxes))
    crowds = rng.random(len(boxes)) < 0.012
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)],
        "annotations": [
            {
                **{"id": n + 1, "image_id": int(of_object[n]), "category_id": int(categories[n])},
                **{"bbox": boxes[n].tolist(), "area": float(boxes[n, 2:].prod())},
                "iscrowd": int(crowds[n]),
            }
            for n in range(len(boxes))
        ],
    }
    if masks:
        for annotation, polygon in zip(content["annotations"], _ovals(boxes), strict=True):
            annotation["segmentation"] = [polygon]
            if annotation["iscrowd"]:
                rle = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)[0]
                annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    found = (rng.random(len(boxes)) < 0.8) & ~crowds
    near = boxes[found] + rng.normal(0, 0.1, (found.sum(), 4)) * np.tile(boxes[found, 2:], 2)
    near[:, 2:] = near[:, 2:].clip(1)
    wrong = rng.random(found.sum()) < 0.1
    as_class = np.where(wrong, rng.integers(1, CLASSES + 1, len(wrong)), categories[found])
    missing = DETECTIONS - np.bincount(of_object[found], minlength=images + 1)[1:].clip(max=100)
    background = np.repeat(np.arange(1, images + 1), missing)
    order = np.argsort(np.concatenate((of_object[found], background)), kind="stable")
    elsewhere = rng.integers(1, CLASSES + 1, len(background))
    scores = (rng.beta(4, 2, len(near)), rng.beta(1, 8, len(background)))
    boxes = np.concatenate((near, _boxes(rng, len(background))))[order].astype(np.float32)
    counts = sizes = None
    if masks:
        rles = mask_util.frPyObjects(_ovals(boxes), HEIGHT, WIDTH)
        counts = tuple(rle["counts"] for rle in rles)
        sizes = np.full((len(boxes), 2), (HEIGHT, WIDTH), dtype=np.int32)
    return content, Detections(
        np.concatenate((of_object[found], background))[order] - 1,  # images are counted from 0
        np.concatenate((as_class, elsewhere))[order],
        boxes.astype(np.float64),
        np.concatenate(scores)[order].astype(np.float32).astype(np.float64),
        *(counts, sizes),
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height, half of them smaller than 55 pixels, as in COCO."""
    size = np.exp(rng.normal(4, 1, (count, 2))).clip(4, 400)
    return np.concatenate((rng.random((count, 2)) * ((WIDTH, HEIGHT) - size), size), axis=1)


def _ovals(boxes: np.ndarray) -> list[list[float]]:
    """Polygons of 12 corners in boxes."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    corners = 0.5 + 0.5 * np.stack((np.cos(angles), np.sin(angles)), axis=1)  # (12, 2)
    return (boxes[:, None, :2] + corners * boxes[:, None, 2:]).reshape(len(boxes), -1).tolist()


def load_python(module: str, content: dict, rows: list[dict], task: str) -> Callable:
    """Give pycocotools, or what has its interface, the data; returns what is to be timed."""
    if module == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    def evaluate() -> np.ndarray:
        judge = COCOeval(truth, found, task)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        return 100 * np.array(judge.stats[:12])

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        found = truth.loadRes(rows)
    return evaluate


def candidates(content: dict, detections: Detections, task: str) -> dict[str, Callable]:
    """For each, what loads and gives what evaluates to the 12 figures in percent."""
    truth = make_truth(content)

    def rows() -> list[dict]:
        every = [row for part in detections.rows(truth.image_ids) for row in part]
        for row in every if task == "segm" else ():
            del row["bbox"]
        return every

    def ours() -> Callable:
        found = detections.in_hotcoco(truth.coco, task)
        return lambda: _figures(measures_of(run_hotcoco(truth, found, task), task).figures())

    def everything() -> Callable:
        return lambda: _figures(evaluate_tasks(truth, detections, [task])[task]["figures"])

    others = {"pycocotools": "pycocotools"}
    with contextlib.suppress(ImportError):
        import faster_coco_eval  # noqa: F401

        others["faster_coco_eval"] = "faster-coco-eval"
    return {
        implementation(name): (
            lambda module=module: load_python(module, json.loads(json.dumps(content)), rows(), task)
        )
        for module, name in others.items()
    } | {implementation("hotcoco"): ours, "all of an evaluation": everything}


def _figures(figures: dict[str, float]) -> np.ndarray:
    return np.nan_to_num(np.array(list(figures.values())), nan=-100)


def measure(loaders: dict[str, Callable], rounds: int) -> list[dict]:
    """Load once, evaluate in turn, and compare with the first."""
    ready, results = {}, {}
    for name, load in loaders.items():
        start = time.perf_counter()
        ready[name] = load()
        results[name] = {"name": name, "loading_s": time.perf_counter() - start, "seconds": []}
    figures = {}
    for _ in range(rounds):
        for name, evaluate in ready.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                figures[name] = evaluate()
            results[name]["seconds"].append(time.perf_counter() - start)
    reference = next(iter(results.values()))
    for name, result in results.items():
        result["median_s"] = statistics.median(result["seconds"])
        result["times_as_fast"] = statistics.median(reference["seconds"]) / result["median_s"]
        difference = np.abs(figures[name] - figures[reference["name"]])
        result["difference"] = float(difference.max())
    return list(results.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="(default 5000)")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures of the table")
    args = parser.parse_args()
    if args.images < 1 or args.rounds < 1:
        raise UserError("--images and --rounds: at least 1")
    content, detections = draw(args.images, args.seed, masks=args.task == "segm")
    about = f"{args.images} images, {len(content['annotations'])} objects, {len(detections)} "
    print(f"{about}detections, {args.task}, {os.cpu_count()} cores, {args.rounds} rounds")
    results = measure(candidates(content, detections, args.task), args.rounds)
    table = [[r["name"], *(f"{r[key]:{form}}" for key, form in COLUMNS.items())] for r in results]
    print(tabulate(table, ("", *COLUMNS), tablefmt="github", disable_numparse=True))
    if args.json:
        write_json({**vars(args), "json": str(args.json), "results": results}, args.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
