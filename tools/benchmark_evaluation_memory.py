#!/usr/bin/env python
"""Measure the peak memory of evaluating 100 detections an image: ours and Detectron2's evaluator.

python tools/benchmark_evaluation_memory.py
python tools/benchmark_evaluation_memory.py --images 1000 --masks

Each runs in a process of its own, fed image by image with random boxes (and oval masks) of
640 x 480 pixels. Memory is the process's largest resident set, less what it held before.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from resnext_det.errors import UserError
from resnext_det.evaluation import CocoEvaluator

WIDTH, HEIGHT, CLASSES, DETECTIONS, OBJECTS = 640, 480, 80, 100, 7
EVALUATORS = ("ours", "detectron2")


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 4) x0, y0, x1, y1."""
    size = torch.exp(4 + torch.randn(count, 2, generator=generator)).clamp(4, 400)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - size)
    return torch.cat((corner, corner + size), dim=1)


def oval_masks(boxes: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool."""
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    x = (torch.arange(WIDTH)[None, None] - (x0 + x1) / 2) / (x1 - x0) * 2
    y = (torch.arange(HEIGHT)[None, :, None] - (y0 + y1) / 2) / (y1 - y0) * 2
    return x**2 + y**2 < 1


def register(images: int, folder: Path) -> str:
    """Write a random ground truth of boxes and polygons, and make it a data set."""
    generator = torch.Generator().manual_seed(0)
    annotations = []
    for image in range(1, images + 1):
        for x0, y0, x1, y1 in random_boxes(OBJECTS, generator).tolist():
            annotation = {"id": len(annotations) + 1, "image_id": image, "iscrowd": 0}
            annotation["category_id"] = len(annotations) % CLASSES + 1
            annotation |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(annotation)
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(content))
    MetadataCatalog.get("random").set(
        json_file=str(folder / "truth.json"),
        evaluator_type="coco",
        thing_classes=[c["name"] for c in content["categories"]],
        thing_dataset_id_to_contiguous_id={c: c - 1 for c in range(1, CLASSES + 1)},
    )
    return "random"


def peak() -> float:
    """The process's largest resident set so far, in MB (1e6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def run(kind: str, images: int, masks: bool) -> None:
    """Feed an evaluator in this process, and print what it took."""
    generator = torch.Generator().manual_seed(1)
    tasks = ("bbox", "segm") if masks else ("bbox",)
    with tempfile.TemporaryDirectory() as folder:
        name = register(images, Path(folder))
        output = f"{folder}/output"
        before = peak()
        if kind == "ours":
            evaluator = CocoEvaluator(name, tasks, output_dir=output)
        else:
            evaluator = COCOEvaluator(name, tasks, output_dir=output, use_fast_impl=False)
        evaluator.reset()
        for image in range(1, images + 1):
            instances = Instances((HEIGHT, WIDTH))
            instances.pred_boxes = Boxes(random_boxes(DETECTIONS, generator))
            instances.scores = torch.rand(DETECTIONS, generator=generator)
            instances.pred_classes = torch.randint(CLASSES, (DETECTIONS,), generator=generator)
            if masks:
                instances.pred_masks = oval_masks(instances.pred_boxes.tensor)
            evaluator.process([{"image_id": image}], [{"instances": instances}])
        start = time.perf_counter()
        evaluator.evaluate()
        seconds = time.perf_counter() - start
    print(f"{kind}: {peak() - before:.0f} MB, {seconds:.0f} s to evaluate", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="(default 5000)")
    parser.add_argument("--masks", action="store_true", help="evaluate masks besides boxes")
    parser.add_argument("--only", choices=EVALUATORS, help="one of them, in this process")
    args = parser.parse_args()
    if args.images < 1:
        raise UserError("--images: at least 1")
    if args.only:
        return run(args.only, args.images, args.masks)
    for kind in EVALUATORS:
        command = [sys.executable, __file__, "--only", kind, "--images", str(args.images)]
        command += ["--masks"] * args.masks
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"error: {kind} failed:\n{done.stderr}")
        print(done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
