#!/usr/bin/env python
"""Time a CPU training iteration against Detectron2's own loop over its own ResNet, in turn.

Both sides start from the same random weights and random frozen BN statistics, see the same images
of the embedded shapes, and draw the same random numbers, so that their losses can be compared. The
RPN keeps 500 proposals an image, all of which the 512 places of a batch hold: sampled from more,
two proposals whose scores differ by rounding alone would swap places and draw different samples.

python tools/benchmark_training.py --size 320 --iterations 20 --runs 3
"""

import argparse
import dataclasses
import itertools
import logging
import statistics
import time

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate

from resnext_det import get_cfg
from resnext_det.data.shapes import IMAGE_SIZE, draw_image
from resnext_det.deploy.benchmark.networks import randomise_statistics
from resnext_det.engine.step import TrainingStep
from resnext_det.engine.trainer import Trainer
from resnext_det.quiet import silence_deprecations
from resnext_det.randomness import ITERATION, seed_everything

CONFIG = "faster_rcnn_X50_32x4d_FPN"
DETECTRON2, FLOAT32, BFLOAT16 = "Detectron2", "ours, float32", "ours, bfloat16"
PHASES = ("forward", "backward", "optimiser", "iteration")


def draw_batch(run: int, index: int, images: int, size: int) -> list[dict]:
    """Draw embedded shapes, enlarged to `size` pixels a side, as Detectron2's mapper gives them."""
    batch = []
    for number in range(images):
        picture, objects = draw_image((run, index, number))
        picture = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
        corners = torch.tensor([o["bbox"] for o in objects])
        corners[:, 2:] += corners[:, :2]
        truth = Instances((size, size))
        truth.gt_boxes = Boxes(corners * (size / IMAGE_SIZE))
        truth.gt_classes = torch.tensor([o["category_id"] - 1 for o in objects])
        pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
        batch.append({"image": pixels, "instances": truth, "height": size, "width": size})
    return batch


@dataclasses.dataclass
class Side:
    """One trainer, stepped from outside, with what it took and what it found."""

    trainer: SimpleTrainer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)
    seconds: list[tuple[float, ...]] = dataclasses.field(default_factory=list)  # as PHASES

    def __post_init__(self) -> None:
        self._marks: list[float] = []

        def mark(*_: object) -> None:
            self._marks.append(time.perf_counter())

        self.trainer.model.register_forward_pre_hook(mark)
        self.trainer.model.register_forward_hook(mark)
        self.trainer.optimizer.register_step_pre_hook(mark)
        self.trainer.optimizer.register_step_post_hook(mark)

    def step(self, iteration: int) -> None:
        """Train one iteration; Detectron2's loop does not seed it, ours does so itself."""
        seed_everything(self.trainer.seed, ITERATION, iteration, 0, 0)
        self._marks.clear()
        self.trainer.iter = iteration
        with EventStorage(iteration) as storage:
            start = time.perf_counter()
            self.trainer.run_step()
            whole = time.perf_counter() - start
            self.losses.append({k: v for k, (v, _) in storage.latest().items() if "loss" in k})
        self.scheduler.step()
        self.seconds.append((*(b - a for a, b in itertools.pairwise(self._marks)), whole))


def build_sides(cfg: CfgNode, run: int, batches: list[list[dict]]) -> dict[str, Side]:
    """Build the trainers, with equal weights."""
    theirs = cfg.clone()
    theirs.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    torch.manual_seed(run)
    model = build_model(theirs)
    randomise_statistics(model)
    optimizer = build_optimizer(theirs, model)
    trainer = SimpleTrainer(model, batches, optimizer)
    trainer.seed = run
    sides = {DETECTRON2: Side(trainer, build_lr_scheduler(theirs, optimizer))}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, precision in ((FLOAT32, None), (BFLOAT16, torch.bfloat16)):
        model = Trainer.build_model(cfg)
        model.load_state_dict(weights)
        optimizer = Trainer.build_optimizer(cfg, model)
        trainer = TrainingStep(model.train(), batches, optimizer, precision=precision, seed=run)
        sides[name] = Side(trainer, build_lr_scheduler(cfg, optimizer))
    return sides


def greatest_difference(one: Side, other: Side) -> float:
    """Over all iterations, of the total and of each of its terms."""
    return max(
        abs(a[name] - b[name]) for a, b in zip(one.losses, other.losses, strict=True) for name in a
    )


def run_once(cfg: CfgNode, run: int, size: int, iterations: int) -> dict[str, Side]:
    """Train all sides in turn."""
    images = cfg.SOLVER.IMS_PER_BATCH
    batches = [draw_batch(run, index, images, size) for index in range(iterations)]
    sides = build_sides(cfg, run, batches)
    for iteration in range(iterations):
        for side in sides.values():
            side.step(iteration)
    return sides


def report(runs: list[dict[str, Side]]) -> str:
    """Medians over iterations, then over runs; the first iteration of a run is warm-up."""
    medians = {
        name: [
            [statistics.median(phase) for phase in zip(*sides[name].seconds[1:], strict=True)]
            for sides in runs
        ]
        for name in (DETECTRON2, FLOAT32, BFLOAT16)
    }
    rows = []
    for name, values in medians.items():
        ratios = [a[-1] / b[-1] for a, b in zip(medians[DETECTRON2], values, strict=True)]
        difference = max(greatest_difference(sides[DETECTRON2], sides[name]) for sides in runs)
        rows.append(
            (
                name,
                *(f"{statistics.median(phase):.3f}" for phase in zip(*values, strict=True)),
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                f"{difference:.1e}",
            )
        )
    headers = ["", *(f"{phase} (s)" for phase in PHASES), "ratio", "of runs", "loss difference"]
    return tabulate(rows, headers, disable_numparse=True)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--size", type=int, default=320, help="sides in pixels (default 320)")
    parser.add_argument("--batch", type=int, default=2, help="images an iteration (default 2)")
    parser.add_argument("--iterations", type=int, default=20, help="of each side (default 20)")
    parser.add_argument("--runs", type=int, default=3, help="each with new weights (default 3)")
    args = parser.parse_args()
    if min(args.size, args.batch, args.runs) < 1 or args.iterations < 2:
        parser.error("--size, --batch and --runs must be at least 1, --iterations at least 2")
    silence_deprecations()
    logging.getLogger("detectron2").setLevel(logging.WARNING)

    cfg = get_cfg(CONFIG)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.BASE_LR *= args.batch / cfg.SOLVER.IMS_PER_BATCH
    cfg.SOLVER.IMS_PER_BATCH = args.batch
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 500
    print(
        f"{CONFIG}, {args.batch} x 3 x {args.size} x {args.size}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, medians of {args.runs} runs of {args.iterations} "
        "iterations"
    )
    runs = []
    for run in range(args.runs):
        runs.append(run_once(cfg, run, args.size, args.iterations))
        last = runs[-1][DETECTRON2].losses
        print(
            f"run {run + 1}: total loss {last[0]['total_loss']:.3f} at first, "
            f"{last[-1]['total_loss']:.3f} at last",
            flush=True,
        )
        for side in runs[-1].values():
            side.trainer.model = side.trainer.optimizer = None  # memory
    print(report(runs))


if __name__ == "__main__":
    main()
