#!/usr/bin/env python
"""Compare the reading of a COCO file as large as instances_train2017.json with Detectron2's.

python tools/benchmark_loading.py

The file, with 118,287 images and 860,001 polygons from a seeded generator, is written to a
temporary folder (half a gigabyte). Peak memory is that of a process of its own, above what it has
after the imports; times are taken in turn in one process.
"""

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from resnext_det.data.records import load_coco_records
from resnext_det.quiet import silence_deprecations

LOADERS: dict[str, Callable] = {"Detectron2": load_coco_json, "resnext_det": load_coco_records}
POINTS = (6, 42)  # of a polygon: about the 0.5 kB an annotation that the official file has


def write_file(path: Path, images: int, annotations: int, seed: int = 0) -> None:
    """Write a COCO file with polygons whose coordinates have two decimals, as the official ones."""
    rng = random.Random(seed)
    classes = [c for c in COCO_CATEGORIES if c["isthing"]]
    ids = rng.sample(range(1, 600_000), images)
    # numbers drawn once: each polygon is a piece of them, parsed as new floats
    numbers = [str(round(rng.random() * 640, 2)) for _ in range(100_000)]
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        for number, i in enumerate(ids):
            image = {
                "license": 1,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "id": i,
            }
            file.write((", " if number else "") + json.dumps(image))
        file.write('], "annotations": [')
        for i in range(annotations):
            start = rng.randrange(len(numbers) - 100)
            polygon = ", ".join(numbers[start : start + 2 * rng.randint(*POINTS)])
            file.write(
                f"{', ' if i else ''}"
                f'{{"segmentation": [[{polygon}]], "area": {numbers[start]}, "iscrowd": 0, '
                f'"image_id": {rng.choice(ids)}, "bbox": [{", ".join(numbers[start : start + 4])}],'
                f' "category_id": {rng.choice(classes)["id"]}, "id": {i + 1}}}'
            )
        categories = [{"id": c["id"], "name": c["name"], "supercategory": ""} for c in classes]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def peak() -> float:
    """Return the peak memory of this process so far, in MB (1e6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory_of(loader: str, path: Path) -> float:
    """Return the MB that a loader needs above the imports, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", loader, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {loader} failed")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--rounds", type=int, default=2, help="times that each loader is timed")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    silence_deprecations()
    logging.disable()
    if args.memory_of:
        name, path = args.memory_of
        before = peak()
        LOADERS[name](path, "images", "benchmark_coco")
        print(peak() - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_file(path, args.images, args.annotations)
        print(f"{path.stat().st_size / 1e6:.0f} MB of JSON", flush=True)
        memory = {name: memory_of(name, path) for name in LOADERS}
        seconds: dict[str, list[float]] = {name: [] for name in LOADERS}
        for _ in range(args.rounds):
            for name, load in LOADERS.items():
                start = time.perf_counter()
                records = load(str(path), "images", "benchmark_coco")
                seconds[name].append(time.perf_counter() - start)
                assert len(records) == args.images
                del records
    best = {name: min(times) for name, times in seconds.items()}
    for name in LOADERS:
        print(f"{name:12} {best[name]:6.1f} s {memory[name]:6.0f} MB")
    ours, theirs = "resnext_det", "Detectron2"
    print(f"{'ratio':12} {best[ours] / best[theirs]:6.2f}   {memory[ours] / memory[theirs]:6.2f}")


if __name__ == "__main__":
    main()
