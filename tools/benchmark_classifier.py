#!/usr/bin/env python
"""Measure the evaluation of a classifier: torchvision's model in a plain PyTorch loop, and ours.

python tools/benchmark_classifier.py
python tools/benchmark_classifier.py --data imagenet/val --images 500 --workers 4 --json speed.json

Both read the same images with as many workers, and go in turn, in one process, with the same random
weights. `difference` is the largest of their logits, as a part of the largest logit.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from resnext_det.classification import Errors, Protocol, load_classifier, read_tree, run_test
from resnext_det.data.formats import write_json
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations

MODELS = ("resnet50", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
PLAIN, OURS = "torchvision, plain loop", "ours"


class KeptLogits(Errors):
    """Errors that keep what they were counted from, to compare."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.kept = torch.cat((*([self.kept] if self.images else []), logits))
        super().add(logits, labels)


def draw_tree(root: Path, images: int) -> Path:
    """Write JPEGs of 500 x 375 pixels, ImageNet's most frequent size, in ten folders."""
    rng = np.random.default_rng(0)
    for number in range(images):
        folder = root / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        coarse.resize((500, 375)).save(folder / f"{number}.jpg", quality=90)
    return root


def plain_loop(
    model: nn.Module, data: torch.utils.data.Dataset, batch: int, workers: int
) -> Callable[[], Tensor]:
    """What a PyTorch tutorial would write; returns the logits."""

    @torch.no_grad()
    def evaluate() -> Tensor:
        right, found = 0, []
        for images, labels in DataLoader(data, batch_size=batch, num_workers=workers):
            logits = model(images)
            right += int((logits.argmax(1) == labels).sum())
            found.append(logits)
        return torch.cat(found)

    return evaluate


def candidates(args: argparse.Namespace, root: Path, folder: Path) -> dict[str, Callable]:
    """For each side what evaluates all images and returns their logits (N, 1000)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(args.model, weights=None)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))  # gives the batch norms statistics
    model.eval()
    torch.save(model.state_dict(), folder / "weights.pth")
    ours = load_classifier(str(folder / "weights.pth")).model
    images = read_tree(root).limited(args.images)
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    whole = torchvision.datasets.ImageFolder(str(root), preset)
    kept = np.arange(len(images)) * len(whole) // len(images)

    def evaluate() -> Tensor:
        errors = KeptLogits()
        options = {"batch": args.batch, "workers": args.workers}
        run_test(ours, images, Protocol(), {"all": errors}, **options)
        return errors.kept

    plain = plain_loop(model, Subset(whole, kept.tolist()), args.batch, args.workers)
    return {PLAIN: plain, OURS: evaluate}


def measure(sides: dict[str, Callable], rounds: int) -> dict[str, dict]:
    """Time each side in turn, after one round that is not counted."""
    results = {name: {"seconds": []} for name in sides}
    logits = {}
    for number in range(rounds + 1):
        for name, evaluate in sides.items():
            start = time.perf_counter()
            logits[name] = evaluate()
            if number:
                results[name]["seconds"].append(time.perf_counter() - start)
    reference = logits[PLAIN]
    for name, result in results.items():
        result["images_per_second"] = len(reference) / statistics.median(result["seconds"])
        pairs = zip(results[PLAIN]["seconds"], result["seconds"], strict=True)
        ratios = [plain / own for plain, own in pairs]
        result["times_as_fast"] = statistics.median(ratios)
        result["of_rounds"] = [min(ratios), max(ratios)]
        difference = (logits[name] - reference).abs().max() / reference.abs().max()
        result["difference"] = float(difference)
    return results


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, help="folders of images (default: drawn JPEGs)")
    parser.add_argument("--model", choices=MODELS, default="resnext50_32x4d")
    parser.add_argument("--images", type=int, default=128, help="(default 128)")
    parser.add_argument("--batch", type=int, default=32, help="(default 32)")
    parser.add_argument("--workers", type=int, default=0, help="of both sides (default 0)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures of the table")
    args = parser.parse_args()
    if min(args.images, args.batch, args.rounds) < 1 or args.workers < 0:
        parser.error("--images, --batch and --rounds: at least 1; --workers: at least 0")
    silence_deprecations()
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or draw_tree(Path(folder) / "images", args.images)
        results = measure(candidates(args, root, Path(folder)), args.rounds)
    print(
        f"evaluation of {args.model}, {args.images} images, batches of {args.batch}, "
        f"{args.workers} workers, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, medians of {args.rounds} rounds"
    )
    rows = []
    for name, found in results.items():
        low, high = found["of_rounds"]
        speed, ratio = f"{found['images_per_second']:.1f}", f"{found['times_as_fast']:.2f}"
        rows.append((name, speed, ratio, f"{low:.2f}-{high:.2f}", f"{found['difference']:.0e}"))
    headers = ("", "images/s", "ratio", "of rounds", "difference")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    if args.json:
        arguments = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(args).items()
        }
        write_json({**arguments, "results": results}, args.json)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
