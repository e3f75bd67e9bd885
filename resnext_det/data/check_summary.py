"""Counts and sizes of a data set, as the doctor shows them."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

# codes that do not make an object useless for counting
_COUNTED = {
    "annotation-id",
    "annotation-zero-id",
    "area",
    "crowd-missing",
    "crowd-bool",
    "box-sticks-out",
    "segmentation-type",
    "polygon-short",
    "polygon-value",
    "rle",
    "keypoints",
}
_SMALL, _MEDIUM = 32**2, 96**2  # square pixels; COCO's limits
MAX_CLASSES = 100  # lines of the class table in text


@dataclass
class ClassCount:
    """Objects, crowds and images of one class."""

    name: object
    objects: int = 0
    crowds: int = 0
    images: set = field(default_factory=set)


@dataclass
class Statistics:
    """Sizes of images and boxes, in pixels, and objects of each class; only of usable entries."""

    num_images: int = 0
    num_annotations: int = 0
    classes: dict[object, ClassCount] = field(default_factory=dict)
    image_sizes: array = field(default_factory=lambda: array("d"))
    box_sizes: array = field(default_factory=lambda: array("d"))

    def set_classes(self, names: dict) -> None:
        """Take the classes in the order of Detectron2's contiguous indices: sorted by id."""
        ids = sorted(names, key=lambda i: (type(i) is str, i))
        self.classes = {i: ClassCount(names[i]) for i in ids}

    def add_image(self, size: tuple[int, int] | None) -> None:
        self.num_images += 1
        if size is not None:
            self.image_sizes.extend(size)

    def add_annotation(self, annotation: dict, codes: set[str]) -> None:
        self.num_annotations += 1
        if codes - _COUNTED:
            return
        counts = self.classes[annotation["category_id"]]
        if annotation.get("iscrowd") == 1:
            counts.crowds += 1
            return
        counts.objects += 1
        counts.images.add(annotation["image_id"])
        self.box_sizes.extend(annotation["bbox"][2:])

    def empty_images(self, image_ids: Iterable) -> list:
        """Return the images that have no object besides crowds."""
        filled = set().union(*(c.images for c in self.classes.values()))
        return [i for i in image_ids if i not in filled]

    def empty_classes(self) -> list:
        return [i for i, counts in self.classes.items() if not counts.objects]

    def as_dict(self) -> dict:
        """Return the figures for JSON; `null` where there is nothing to measure."""
        boxes = np.array(self.box_sizes).reshape(-1, 2)
        area = boxes.prod(axis=1)
        images = np.array(self.image_sizes).reshape(-1, 2)
        return {
            "images": self.num_images,
            "annotations": self.num_annotations,
            "objects": sum(c.objects for c in self.classes.values()),
            "crowds": sum(c.crowds for c in self.classes.values()),
            "image_width": _spread(images[:, 0]),
            "image_height": _spread(images[:, 1]),
            "image_aspect": _spread(images[:, 0] / images[:, 1]),
            "box_width": _spread(boxes[:, 0]),
            "box_height": _spread(boxes[:, 1]),
            "box_aspect": _spread(boxes[:, 0] / boxes[:, 1]),
            "small": int((area < _SMALL).sum()),
            "medium": int(((area >= _SMALL) & (area < _MEDIUM)).sum()),
            "large": int((area >= _MEDIUM).sum()),
            "classes": [
                {
                    "id": class_id,
                    "index": index,
                    "name": counts.name,
                    "objects": counts.objects,
                    "crowds": counts.crowds,
                    "images": len(counts.images),
                }
                for index, (class_id, counts) in enumerate(self.classes.items())
            ],
        }


def _spread(values: np.ndarray) -> dict | None:
    if not values.size:
        return None
    names = ("min", "p5", "median", "p95", "max")
    figures = np.percentile(values, (0, 5, 50, 95, 100))
    return {name: float(f"{value:.4g}") for name, value in zip(names, figures, strict=True)}


def format_summary(figures: dict) -> str:
    """Show `Statistics.as_dict` as text, a class a line."""
    lines = [
        f"{figures['images']} images, {figures['objects']} objects, {figures['crowds']} crowds, "
        f"{len(figures['classes'])} classes; objects: {figures['small']} small (area < 32x32), "
        f"{figures['medium']} medium, {figures['large']} large (96x96 and more)"
    ]
    for key in ("image_width", "image_height", "image_aspect", *_BOXES):
        if figures[key]:
            spread = ", ".join(f"{name} {value:g}" for name, value in figures[key].items())
            unit = " (width / height)" if key.endswith("aspect") else " (pixels)"
            lines.append(f"{key.replace('_', ' ')}{unit}: {spread}")
    lines.append(f"{'index':>5} {'id':>6} {'objects':>8} {'crowds':>7} {'images':>7}  class")
    for c in figures["classes"][:MAX_CLASSES]:
        row = f"{c['index']:5} {c['id']!s:>6.12} {c['objects']:8} {c['crowds']:7} {c['images']:7}"
        lines.append(f"{row}  {repr(c['name'])[1:-1]:.60}")
    hidden = len(figures["classes"]) - MAX_CLASSES
    return "\n".join([*lines, *([f"... {hidden} more classes in --json"] if hidden > 0 else [])])


_BOXES = ("box_width", "box_height", "box_aspect")
