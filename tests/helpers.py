"""Builders that several test modules share."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

REPO = Path(__file__).resolve().parent.parent
TINY_COCO = REPO.parent / "shared" / "data" / "tiny_coco"

needs_tiny_coco = pytest.mark.skipif(
    not TINY_COCO.is_dir(), reason=f"the 50 + 50 COCO images are not at {TINY_COCO}"
)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and every norm statistic a random value; outputs stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.dim() > 1:
            fan_in = tensor[0].numel()
            tensor.copy_((noise - 0.5) * (12 / fan_in) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            tensor.copy_(0.5 + noise)
        else:
            tensor.copy_(0.4 * (noise - 0.5))
    return module


def torchvision_name(name: str) -> str:
    """Detectron2's name -> torchvision's, written out apart from the package's rules."""
    place, *layers, tensor = name.split(".")
    if place == "linear":
        return f"fc.{tensor}"
    if place == "stem":
        return f"bn1.{tensor}" if "norm" in layers else f"conv1.{tensor}"
    block, layer = layers[:2]
    where = f"layer{int(place[3]) - 1}.{block}"
    if layer == "shortcut":
        return f"{where}.downsample.{int('norm' in layers)}.{tensor}"
    return f"{where}.{'bn' if 'norm' in layers else 'conv'}{layer[4]}.{tensor}"


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder and below, by its path there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_coco_subset(root: Path, images: int, *, same: bool = False) -> Path:
    """Make a 2017-layout `root/coco` with the first `images` tiny_coco images that have objects.

    With `same`, val2017 holds the training images, to test whether a model can learn them.
    """
    coco = root / "coco"
    (coco / "annotations").mkdir(parents=True)
    for target in ("train2017", "val2017"):
        source = "train2017" if same else target
        data = json.loads((TINY_COCO / f"annotations/instances_{source}.json").read_text())
        with_objects = {a["image_id"] for a in data["annotations"] if not a["iscrowd"]}
        kept = [i for i in data["images"] if i["id"] in with_objects][:images]
        ids = {i["id"] for i in kept}
        data["images"] = kept
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
        (coco / f"annotations/instances_{target}.json").write_text(json.dumps(data))
        (coco / target).symlink_to(TINY_COCO / source, target_is_directory=True)
    return root


def run_tool(
    *words: object, datasets: Path, cwd: Path, threads: int = 1
) -> subprocess.CompletedProcess:
    """Run `python tools/...` as a user would, with its own data root."""
    command = [sys.executable, *map(str, words)]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(datasets),
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
