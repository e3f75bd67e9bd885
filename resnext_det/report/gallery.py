"""The best and the worst images of a test set, ground truth and predictions beside each other."""

import base64
import io
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from pycocotools import mask as mask_api

from ..data.drawing import Shown, bones_of, draw_objects, fitting_scale
from ..errors import UserError
from ..images import read_image

IOU = 0.5  # at which a prediction is right
_FONT_PIXELS = 20  # readable where a page shows the picture at half its size
_JPEG_QUALITY = 80

Named = tuple[Mapping, str, str]  # an object or a prediction, its label, and what is odd about it


@dataclass
class Judged:
    """An image's objects, and which of them were found.

    Attributes:
        record: of the data set, in Detectron2's format.
        truth: its objects that are no crowds.
        crowds: the others.
        predictions: entries of `coco_instances_results.json`, the highest score first.
        found: by object, whether a prediction matches it.
        right: by prediction, whether it matches an object; None where it lies in a crowd, which
            counts neither way.
    """

    record: Mapping
    truth: list[Mapping]
    crowds: list[Mapping]
    predictions: list[Mapping]
    found: list[bool] = field(default_factory=list)
    right: list[bool | None] = field(default_factory=list)

    @property
    def mistakes(self) -> int:
        """Wrong predictions and missed objects."""
        return self.right.count(False) + self.found.count(False)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN), 0 to 1; None without objects and predictions."""
        right = self.right.count(True)
        total = 2 * right + self.mistakes
        return 2 * right / total if total else None


def judge(
    records: Sequence[Mapping],
    detections: Sequence[Mapping],
    to_contiguous: Mapping[int, int],
    threshold: float,
) -> list[Judged]:
    """Match predictions with objects of their class, greedily by score, at IoU 0.5 of boxes.

    Args:
        records: of the data set, with contiguous class numbers.
        detections: entries of `coco_instances_results.json`, in the data set's category ids.
        to_contiguous: class number by category id.
        threshold: predictions with a lower score, 0 to 1, are left out.

    Raises:
        KeyError: if a detection's category is none of the data set's.
    """
    by_image = defaultdict(list)
    for entry in detections:
        if entry["score"] >= threshold:
            item = {**entry, "category_id": to_contiguous[entry["category_id"]]}
            by_image[entry["image_id"]].append(item)
    judged = []
    for record in records:
        truth = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        crowds = [a for a in record["annotations"] if a.get("iscrowd", 0)]
        found = sorted(by_image[record["image_id"]], key=lambda entry: -entry["score"])
        image = Judged(record, truth, crowds, found)
        _match(image)
        judged.append(image)
    return judged


def _match(image: Judged) -> None:
    objects = [*image.truth, *image.crowds]
    image.found = [False] * len(image.truth)
    image.right = [False] * len(image.predictions)
    if not objects or not image.predictions:
        return
    crowd = [int(i >= len(image.truth)) for i in range(len(objects))]
    boxes = [BoxMode.convert(list(o["bbox"]), o["bbox_mode"], BoxMode.XYWH_ABS) for o in objects]
    predicted = [[float(v) for v in p["bbox"]] for p in image.predictions]
    overlaps = mask_api.iou(np.array(predicted, float), np.array(boxes, float), crowd)
    for p, entry in enumerate(image.predictions):
        same = [o["category_id"] == entry["category_id"] for o in objects]
        free = [i for i in range(len(image.truth)) if same[i] and not image.found[i]]
        best = max(free, key=lambda i: overlaps[p, i], default=None)
        if best is not None and overlaps[p, best] >= IOU:
            image.found[best] = image.right[p] = True
        elif any(same[i] and overlaps[p, i] >= IOU for i in range(len(image.truth), len(objects))):
            image.right[p] = None


def choose(judged: Sequence[Judged], count: int) -> tuple[list[Judged], list[Judged]]:
    """The best and the worst images by F1, half of `count` each and none twice.

    Of equal ones the best have the most objects, the worst the most mistakes. An image in which
    nothing is right is none of the best: then there are fewer of them, and more of the worst.
    Images without objects and predictions tell nothing and are left out.
    """
    rated = [image for image in judged if image.f1 is not None]
    worst_first = sorted(
        range(len(rated)), key=lambda i: (rated[i].f1, -rated[i].mistakes, len(rated[i].truth), i)
    )
    count = min(count, len(rated))
    good = [i for i in worst_first[::-1] if rated[i].f1 > 0]
    best = good[: count - count // 2]
    worst = [i for i in worst_first if i not in best][: count - len(best)]
    return [rated[i] for i in best], [rated[i] for i in worst]


def describe(image: Judged, metadata: Metadata, threshold: float, tasks: Collection[str]) -> dict:
    """What the page shows of an image: name, F1, two pictures as data URLs, and texts of each.

    Masks and keypoints are drawn where the run was evaluated on them. Where the image's file is
    absent or damaged, `missing` says why and there are no pictures.

    Args:
        image: of `judge`.
        metadata: of its data set.
        threshold: as of `judge`.
        tasks: that the run was evaluated on.
    """
    truth, predictions = _named(image, metadata.thing_classes)
    name = Path(image.record["file_name"]).name
    texts = [
        [label + (f" ({what})" if what else "") for _, label, what in items]
        for items in (truth, predictions)
    ]
    shown = {
        "name": name,
        "f1": image.f1,
        "right": image.right.count(True),
        "wrong": image.right.count(False),
        "missed": image.found.count(False),
        "truth_texts": texts[0],
        "predicted_texts": texts[1],
        "truth_alt": f"Ground truth of {name}: {', '.join(texts[0]) or 'no object'}.",
        "predicted_alt": f"Predictions on {name} with a score of {threshold:g} or more: "
        f"{', '.join(texts[1]) or 'none'}.",
        "missing": None,
    }
    try:
        pixels = read_image(Path(image.record["file_name"]), name=name)[:, :, ::-1]
    except UserError as error:
        return {**shown, "missing": str(error)}
    urls = []
    for items in (truth, predictions):
        # the first on top: of predictions the highest score, of objects those that are no crowds
        drawn = [_shown(item, label, what, tasks) for item, label, what in items[::-1]]
        urls.append(_jpeg(pixels, drawn, bones_of(metadata)))
    return {**shown, "truth_url": urls[0], "predicted_url": urls[1]}


def _named(image: Judged, names: Sequence[str]) -> tuple[list[Named], list[Named]]:
    """Of an image the objects and the predictions."""
    truth = [
        (o, names[o["category_id"]], "" if found else "missed")
        for o, found in zip(image.truth, image.found, strict=True)
    ]
    truth += [(o, names[o["category_id"]], "crowd") for o in image.crowds]
    predictions = [
        (
            {"bbox_mode": BoxMode.XYWH_ABS, **p},
            f"{names[p['category_id']]} {p['score']:.2f}",
            "wrong" if right is False else "",
        )
        for p, right in zip(image.predictions, image.right, strict=True)
    ]
    return truth, predictions


def _shown(item: Mapping, label: str, what: str, tasks: Collection[str]) -> Shown:
    """Of an object in Detectron2's format or a detection in COCO's, which may be something else."""
    mask = item.get("segmentation") if "segm" in tasks else None
    shape: dict = {}
    if isinstance(mask, list):
        shape["polygons"] = [np.asarray(p, float).reshape(-1, 2) for p in mask]
    elif isinstance(mask, Mapping):
        if isinstance(mask["counts"], list):  # uncompressed
            mask = mask_api.frPyObjects(mask, *mask["size"])
        shape["bitmask"] = mask_api.decode(mask).astype(bool)
    if "keypoints" in tasks and item.get("keypoints"):
        points = np.array(item["keypoints"], float).reshape(-1, 3)
        if "score" in item:  # of a detection the third number is a score, and all are shown
            points[:, 2] = 2
        shape["keypoints"] = points
    box = BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS)
    return Shown(
        box, item["category_id"], label, crowd=what == "crowd",
        wrong=what in ("wrong", "missed"), **shape,
    )  # fmt: skip


def _jpeg(pixels: np.ndarray, objects: Sequence[Shown], bones: Sequence[tuple[int, int]]) -> str:
    """Draw objects on (H, W, 3) RGB uint8, and give a data URL."""
    scale = fitting_scale(*pixels.shape[:2])
    picture = draw_objects(pixels, objects, bones, scale=scale, font_size=_FONT_PIXELS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
