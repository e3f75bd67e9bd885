"""Small classifiers' training jobs, and drawn images whose classes differ in colour."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnext_det.classification.training import argument_parser, train_or_evaluate
from resnext_det.config import load_config
from resnext_det.engine import run_job
from resnext_det.modeling.classifier import ImageClassifier

CIFAR = "classification/X29_8x64d_cifar10"
IMAGENET = "classification/X50_32x4d_imagenet1k"

COLOURS = {
    "ant": (200, 60, 60),
    "bee": (60, 200, 60),
    "cat": (60, 60, 200),
    "dog": (200, 200, 60),
    "elk": (60, 200, 200),
    "fox": (200, 60, 200),
    "gnu": (130, 130, 130),
}
THREE = tuple(COLOURS)[:3]

_TINY = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.NUM_GROUPS", "2", "MODEL.RESNETS.WIDTH_PER_GROUP", "2",
    "CLASSIFIER.NUM_CLASSES", "3", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "6",
    "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "0", "TEST.EVAL_PERIOD", "0",
    "DATALOADER.NUM_WORKERS", "0", "SEED", "1",
)  # fmt: skip
WORDS = {
    CIFAR: (*_TINY, "MODEL.RESNETS.DEPTH", "11"),
    IMAGENET: (*_TINY, "MODEL.RESNETS.DEPTH", "26", "CLASSIFIER.SIZE", "32",
               "CLASSIFIER.RESIZE", "36"),
}  # fmt: skip


def colour_tree(
    root: Path, classes: tuple[str, ...] = THREE, each: int = 8, seed: int = 0, size: int = 32
) -> Path:
    """Write `each` noisy PNG images of its colour for every class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.integers(-50, 51, (size, size, 3))
            pixels = np.clip(COLOURS[name] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def colour_data(root: Path, train: int = 8, val: int = 4, size: int = 32) -> Path:
    """Write trees of three classes into `root/train` and `root/val`, of different images.

    One more test image is in the folder of another class, so that a network that has learnt all has
    an error that is not zero.
    """
    colour_tree(root / "train", each=train, seed=1, size=size)
    colour_tree(root / "val", each=val, seed=2, size=size)
    shutil.copy(root / "val" / THREE[1] / "0.png", root / "val" / THREE[0] / "of_another.png")
    return root


def command(output: Path, data: Path | None, *words: str, config: str = CIFAR) -> list[str]:
    """The command line of a tiny job; `words` are flags, then KEY VALUE pairs."""
    flags = [w for w in words if w.startswith("--")]
    pairs = [w for w in words if not w.startswith("--")]
    data_flags = [] if data is None else ["--data", str(data)]
    own = ["--config-file", config, *data_flags, *flags, *WORDS.get(config, ())]
    return [*own, "OUTPUT_DIR", str(output), *pairs]


def run(output: Path, data: Path | None, *words: str, config: str = CIFAR) -> int:
    """Run a tiny job in this process; its exit status."""
    arguments = argument_parser().parse_args(command(output, data, *words, config=config))
    return run_job(train_or_evaluate, arguments)


def results_of(output: Path) -> dict:
    """Its results.json."""
    return json.loads((output / "results.json").read_text())


def losses_of(output: Path) -> list[float]:
    """The losses that its metrics.json tells."""
    rows = [json.loads(line) for line in (output / "metrics.json").open()]
    return [row["total_loss"] for row in rows if "total_loss" in row]


def trained_model(output: Path, weights: str = "model_final.pth") -> ImageClassifier:
    """The model of a run, for tests, with the weights of one of its files."""
    model = ImageClassifier(load_config(str(output / "config.yaml")))
    content = torch.load(output / weights, weights_only=True)
    model.network.load_state_dict(content["model"])
    return model.eval()


@torch.no_grad()
def logits_by_hand(output: Path, files: list[Path], weights: str = "model_final.pth") -> np.ndarray:
    """A run's logits (N, num_classes) of 32x32 images: normalised here, the network alone."""
    cfg = load_config(str(output / "config.yaml"))
    network = trained_model(output, weights).network
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    x = (pixels - np.array(cfg.MODEL.PIXEL_MEAN)) / np.array(cfg.MODEL.PIXEL_STD)
    x = torch.from_numpy(x).float().permute(0, 3, 1, 2)
    return network(x)["linear"].numpy()
