"""The embedded shapes as a set for classification: an image for each object, in an image tree.

For pre-training on a machine without any data. Crops of training images are for training alone, so
that a detector's validation images stay unseen.
"""

from collections import Counter
from pathlib import Path

from PIL import Image

from ..data.coco_splits import datasets_root
from ..data.shapes import CLASSES, IMAGE_SIZE, draw_once, load_shapes

CROP_SIZE = 64  # pixels, both sides
_SPLITS = {"train": "shapes_train", "val": "shapes_minival"}
_FOLDER = "shape-crops-v1"  # a change of the crops needs another name
_CONTEXT = 0.15  # around an object, on each side, as a part of its longer side


def shape_crops_folder() -> Path:
    """Return the folder of the crops below `$DETECTRON2_DATASETS`; cut them if it is not there.

    It holds {train,val}/<class>/<number>.png, 64 x 64 RGB, the same bytes every time, and appears
    whole or not at all, also when several processes cut at once.
    """
    return draw_once(datasets_root() / _FOLDER, _cut_splits)


def crop_box(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A square around an object with some context, moved into the image where it sticks out.

    Args:
        bbox: x, y, width, height, in pixels.

    Returns:
        Left, upper, right and lower edge, in pixels.
    """
    x, y, width, height = bbox
    side = min(max(width, height) * (1 + 2 * _CONTEXT), IMAGE_SIZE)
    left, upper = (
        min(max(start + (length - side) / 2, 0), IMAGE_SIZE - side)
        for start, length in ((x, width), (y, height))
    )
    return left, upper, left + side, upper + side


def _cut_splits(folder: Path) -> None:
    for split, name in _SPLITS.items():
        for class_name in CLASSES:
            (folder / split / class_name).mkdir(parents=True)
        numbers: Counter[str] = Counter()
        for record in load_shapes(name):
            with Image.open(record["file_name"]) as image:
                image.load()
            for item in record["annotations"]:
                class_name = CLASSES[item["category_id"]]
                crop = image.resize(
                    (CROP_SIZE, CROP_SIZE),
                    Image.Resampling.BILINEAR,
                    box=crop_box(item["bbox"]),
                )
                crop.save(folder / split / class_name / f"{numbers[class_name]:04d}.png")
                numbers[class_name] += 1
