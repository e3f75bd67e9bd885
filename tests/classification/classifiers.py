"""Small classifiers and trees of images for tests."""

from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.resnet import Bottleneck

from resnext_det.weights.convert import convert_file
from tests.helpers import randomise

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def small_resnext(num_classes: int = len(CLASSES), seed: int = 0) -> nn.Module:
    """torchvision's class as an X-26-4x4d with random weights and statistics."""
    network = torchvision.models.ResNet(
        Bottleneck, [2, 2, 2, 2], num_classes=num_classes, groups=4, width_per_group=4
    )
    return randomise(network, seed).eval()


def converted(network: nn.Module, path: Path, **options: object) -> Path:
    """Write a file of this package with the weights of a network of torchvision's."""
    source = path.with_name(f"source_of_{path.name}")
    torch.save(network.state_dict(), source)
    convert_file(source, path, **options)
    return path


def make_image(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """A picture of smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def make_tree(root: Path, classes: tuple[str, ...] = CLASSES, each: int = 2) -> Path:
    """Write `each` PNG images of various sizes for every class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            seed = label * each + number
            image = make_image(seed, 50 + 7 * seed % 40, 48 + 5 * seed % 30)
            image.save(root / name / f"{number}.png")
    return root
