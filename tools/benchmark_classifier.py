#!/usr/bin/env python
"""Measure testing and training a classifier: torchvision's model in a plain PyTorch loop, and ours.

python tools/benchmark_classifier.py
python tools/benchmark_classifier.py --data imagenet/val --images 500 --workers 4 --json speed.json

Both read the same images with as many workers, and go in turn, in one process, with the same random
weights. `difference` is the largest of their logits, as a part of the largest logit. In training
both crop, jitter and flip at random; ours in bfloat16 is a row by itself.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from detectron2.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from resnext_det import get_cfg
from resnext_det.classification import Errors, Protocol, load_classifier, read_tree, run_test
from resnext_det.classification.trainer import ClassifierTrainer
from resnext_det.data.formats import write_json
from resnext_det.engine.step import TrainingStep
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations

MODELS = {  # depth, C and d
    "resnet50": (50, 1, 64),
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
}
PARTS = ("evaluation", "training")
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


def evaluation_sides(args: argparse.Namespace, root: Path, folder: Path) -> dict[str, Callable]:
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


def training_sides(args: argparse.Namespace, root: Path, folder: Path) -> dict[str, Callable]:
    """For each side what trains `--images` images, in batches of `--train-batch`."""
    crop = transforms.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC)
    preset = transforms.Compose(
        [
            crop,
            transforms.ColorJitter(0.4, 0.4, 0.4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = torchvision.datasets.ImageFolder(str(root), preset)
    model = torchvision.models.get_model(args.model, weights=None, num_classes=len(data.classes))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    steps = max(1, args.images // args.train_batch)

    def plain() -> None:
        sampler = RandomSampler(data, num_samples=steps * args.train_batch, replacement=True)
        batches = DataLoader(data, args.train_batch, sampler=sampler, num_workers=args.workers)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    sides = {PLAIN: plain}
    for name, precision in ((OURS, None), (f"{OURS}, bfloat16", torch.bfloat16)):
        step = own_step(args, root, folder, len(data.classes), precision)
        sides[name] = partial(run_steps, step, steps)
    return sides


def own_step(
    args: argparse.Namespace,
    root: Path,
    folder: Path,
    classes: int,
    precision: torch.dtype | None,
) -> TrainingStep:
    """Our training iteration, as `tools/train_classifier.py` makes it."""
    cfg = get_cfg("classification/X50_32x4d_imagenet1k")
    cfg.MODEL.DEVICE = "cpu"
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = MODELS[args.model]
    cfg.CLASSIFIER.NUM_CLASSES = classes
    cfg.DATASETS.TRAIN = (str(root.absolute()),)
    cfg.DATALOADER.NUM_WORKERS = args.workers
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = args.train_batch, 0.01
    cfg.OUTPUT_DIR = str(folder)
    loader = ClassifierTrainer.build_train_loader(cfg)
    model = ClassifierTrainer.build_model(cfg)
    optimizer = ClassifierTrainer.build_optimizer(cfg, model)
    return TrainingStep(model, loader, optimizer, precision=precision)


def run_steps(step: TrainingStep, count: int) -> None:
    """Train so many iterations more, on data that are asked for anew, as by the plain loop."""
    step._data_loader_iter_obj = None
    step.model.train()
    with EventStorage() as storage:
        for step.iter in range(count):
            step.run_step()
            storage.step()


def measure(sides: dict[str, Callable], images: int, rounds: int) -> dict[str, dict]:
    """Time each side in turn, after one round that is not counted.

    Args:
        sides: each goes over the images, and may return logits.
        images: how many.
        rounds: that are counted.
    """
    results = {name: {"seconds": []} for name in sides}
    logits = {}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            logits[name] = run()
            if number:
                results[name]["seconds"].append(time.perf_counter() - start)
    reference = logits[PLAIN]
    for name, result in results.items():
        result["images_per_second"] = images / statistics.median(result["seconds"])
        pairs = zip(results[PLAIN]["seconds"], result["seconds"], strict=True)
        ratios = [plain / own for plain, own in pairs]
        result["times_as_fast"] = statistics.median(ratios)
        result["of_rounds"] = [min(ratios), max(ratios)]
        if reference is not None:
            difference = (logits[name] - reference).abs().max() / reference.abs().max()
            result["difference"] = float(difference)
    return results


def show(title: str, results: dict[str, dict]) -> None:
    """Print a table."""
    rows = []
    for name, found in results.items():
        low, high = found["of_rounds"]
        speed, ratio = f"{found['images_per_second']:.1f}", f"{found['times_as_fast']:.2f}"
        difference = f"{found['difference']:.0e}" if "difference" in found else "-"
        rows.append((name, speed, ratio, f"{low:.2f}-{high:.2f}", difference))
    headers = (title, "images/s", "ratio", "of rounds", "difference")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, help="folders of images (default: drawn JPEGs)")
    parser.add_argument("--model", choices=MODELS, default="resnext50_32x4d")
    parser.add_argument("--images", type=int, default=128, help="(default 128)")
    parser.add_argument("--batch", type=int, default=32, help="(default 32)")
    parser.add_argument("--train-batch", type=int, default=16, help="(default 16)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", type=int, default=0, help="of both sides (default 0)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures of the table")
    args = parser.parse_args()
    if min(args.images, args.batch, args.train_batch, args.rounds) < 1 or args.workers < 0:
        parser.error("numbers of images, batches and rounds: at least 1; --workers: at least 0")
    silence_deprecations()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = args.data or draw_tree(folder / "images", args.images)
        print(
            f"{args.model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{args.workers} workers, torch {torch.__version__}, medians of {args.rounds} rounds"
        )
        if "evaluation" in args.parts:
            count = len(read_tree(root).limited(args.images))
            sides = evaluation_sides(args, root, folder)
            results["evaluation"] = measure(sides, count, args.rounds)
            show(f"evaluation, {count} images, batches of {args.batch}", results["evaluation"])
        if "training" in args.parts:
            count = max(1, args.images // args.train_batch) * args.train_batch
            sides = training_sides(args, root, folder)
            results["training"] = measure(sides, count, args.rounds)
            show(f"training, {count} images, batches of {args.train_batch}", results["training"])
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
