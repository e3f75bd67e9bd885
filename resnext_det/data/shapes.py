"""The embedded data set: geometric shapes on textured backgrounds, in COCO format with polygons.

Images are drawn on first use from fixed seeds, the same bytes every time, so that the whole job
runs on a machine without any data. `shapes_train` and `shapes_minival` are its two splits.
"""

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw

from .coco_splits import datasets_root, load_coco_file

logger = logging.getLogger(__name__)

IMAGE_SIZE = 128  # pixels, both sides
CLASSES = ("circle", "square", "triangle", "star", "cross")
SPLIT_SIZES = {"shapes_train": 800, "shapes_minival": 200}
_FOLDER = "shapes-v1"  # a change of the drawing below needs another name
_SEED = 2017
_SUPERSAMPLING = 4


def _outline(shape: str) -> np.ndarray:
    """Corners of a unit shape around the origin, (N, 2) as x, y within [-1, 1]."""

    def ring(n: int, radii: tuple[float, ...], start: float = -math.pi / 2) -> np.ndarray:
        angles = start + 2 * math.pi * np.arange(n) / n
        radius = np.resize(radii, n)
        return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)

    if shape == "circle":
        return ring(32, (1.0,))
    if shape == "square":
        return ring(4, (1.0,))
    if shape == "triangle":
        return ring(3, (1.0,))
    if shape == "star":
        return ring(10, (1.0, 0.45))
    arm = 0.33
    corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    corners += [(-x, -y) for x, y in corners]
    return np.array(corners)


def _texture(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth random colours, (IMAGE_SIZE, IMAGE_SIZE, 3) RGB uint8, with `cells` bumps a side."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (IMAGE_SIZE, IMAGE_SIZE, 1))
    return np.clip(np.asarray(fine).astype(np.int64) + grain, 0, 255).astype(np.uint8)


def _place(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Up to `count` centres and radii (x, y, r), in pixels, whose circles do not overlap."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(20 * count):
        if len(placed) == count:
            break
        r = 11 + 25 * rng.random()
        x, y = r + 1 + (IMAGE_SIZE - 2 * r - 2) * rng.random(2)
        if all(math.hypot(x - a, y - b) > r + c for a, b, c in placed):
            placed.append((float(x), float(y), float(r)))
    return placed


def draw_image(seed: tuple[int, ...]) -> tuple[np.ndarray, list[dict]]:
    """Draw one image.

    Args:
        seed: numbers that determine it.

    Returns:
        The image, (128, 128, 3) RGB uint8, and per object a dict with `category_id` (1-based, in
        the order of `CLASSES`), `segmentation` (one polygon, x and y in turn, pixels), `bbox` (x,
        y, width, height, pixels) and `area` (square pixels).
    """
    rng = np.random.default_rng(seed)
    image = _texture(rng, int(rng.integers(3, 9)))
    objects = []
    for x, y, r in _place(rng, int(rng.integers(1, 5))):
        label = int(rng.integers(len(CLASSES)))
        turn = 2 * math.pi * rng.random()
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        outline = _outline(CLASSES[label]) @ rotation.T
        polygon = np.round(outline / np.hypot(*outline.T).max() * r + (x, y), 2)

        big = Image.new("L", (IMAGE_SIZE * _SUPERSAMPLING,) * 2)
        ImageDraw.Draw(big).polygon([tuple(p) for p in polygon * _SUPERSAMPLING], fill=255)
        alpha = np.asarray(big.reduce(_SUPERSAMPLING), dtype=np.int64)[..., None]
        colour = rng.integers(0, 256, 3)
        fill = (3 * colour + _texture(rng, 4)) // 4
        image = ((alpha * fill + (255 - alpha) * image) // 255).astype(np.uint8)

        low, high = polygon.min(0), polygon.max(0)
        following = np.roll(polygon, -1, axis=0)
        cross = polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]
        objects.append(
            {
                "category_id": label + 1,
                "segmentation": [[float(v) for v in polygon.reshape(-1)]],
                "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
                "area": round(float(abs(cross.sum()) / 2), 2),
                "iscrowd": 0,
            }
        )
    return image, objects


def draw_split(name: str, folder: Path) -> None:
    """Draw a split: images as PNG in `folder/<split>` and `folder/annotations/<split>.json`."""
    images_folder = folder / name
    images_folder.mkdir(parents=True)
    images, annotations = [], []
    for index in range(SPLIT_SIZES[name]):
        pixels, objects = draw_image((_SEED, list(SPLIT_SIZES).index(name), index))
        file_name = f"{index:06d}.png"
        Image.fromarray(pixels).save(images_folder / file_name)
        image = {"id": index, "file_name": file_name, "height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images.append(image)
        for item in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index, **item})
    categories = [{"id": i, "name": c} for i, c in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "annotations" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"info": {"description": name}, **content}), encoding="utf-8")


def shapes_folder() -> Path:
    """Return the folder of the drawn set below `$DETECTRON2_DATASETS`; draw it if it is not there.

    The folder appears whole or not at all, also when several processes draw at once.
    """
    return draw_once(datasets_root() / _FOLDER, _draw_splits)


def _draw_splits(folder: Path) -> None:
    for name in SPLIT_SIZES:
        draw_split(name, folder)


def draw_once(folder: Path, draw: Callable[[Path], None]) -> Path:
    """Return `folder`; if it is not there, make it, whole or not at all.

    Args:
        folder: several processes may ask for it at once.
        draw: fills an empty folder, with the same bytes every time.
    """
    if folder.is_dir():
        return folder
    logger.info("drawing images into %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draw(unfinished)
        unfinished.chmod(0o755)
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def load_shapes(name: str) -> list[dict]:
    """Load a split in Detectron2's dataset format, drawing the set first if need be."""
    folder = shapes_folder()
    json_file = folder / "annotations" / f"{name}.json"
    records = load_coco_file(json_file, folder / name, name)
    vars(MetadataCatalog.get(name)).update(json_file=str(json_file), image_root=str(folder / name))
    return records


def register_shapes() -> None:
    """Register both splits with Detectron2; nothing is drawn before a split is loaded."""
    for name in SPLIT_SIZES:
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda name=name: load_shapes(name))
            MetadataCatalog.get(name).set(
                thing_classes=list(CLASSES),
                thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
                evaluator_type="coco",
            )
