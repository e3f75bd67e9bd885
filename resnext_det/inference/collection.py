"""The detections of many images as JSON, CSV and COCO results."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from ..atomic import replacing
from .image_ids import image_ids
from .outputs import to_dict


def to_records(instances: Instances, class_names: Sequence[str]) -> list[dict]:
    """Turn a predictor's answer for one image into what JSON can hold, a dict a detection.

    Returns:
        `class`, `class_id` from 0, `score` 0..1, `box` [x0, y0, x1, y1] in pixels; of models with
        them `mask`, COCO's compressed RLE, and `keypoints`, [x, y, score] each.
    """
    found = to_dict(instances, class_names)
    records = [
        {
            "class": name,
            "class_id": class_id,
            "score": round(score, 5),
            "box": [round(v, 2) for v in box],
        }
        for name, class_id, score, box in zip(
            found["names"],
            found["classes"].tolist(),
            found["scores"].tolist(),
            found["boxes"].tolist(),
            strict=True,
        )
    ]
    for record, mask in zip(records, found.get("masks", ()), strict=False):
        rle = mask_util.encode(np.asfortranarray(mask[:, :, None], dtype=np.uint8))[0]
        record["mask"] = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
    for record, points in zip(records, found.get("keypoints", ()), strict=False):
        record["keypoints"] = [[round(v, 3) for v in point] for point in points.tolist()]
    return records


class Collection:
    """The detections of many images, for files that hold all of them.

    Attributes:
        images: per image `file`, `width`, `height` and `detections`, see `to_records`.
    """

    def __init__(self, metadata: Metadata) -> None:
        """
        Args:
            metadata: of the data set whose classes the model knows.
        """
        self.images: list[dict] = []
        self._metadata = metadata
        self._coco: list[dict] = []  # with indices in `images` as image ids
        to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        self._category_ids = {index: category for category, index in to_contiguous.items()}

    def add(self, file: str, instances: Instances) -> None:
        """Add one image's detections, on the CPU."""
        height, width = instances.image_size
        detections = to_records(instances, self._metadata.thing_classes)
        self._coco += instances_to_coco_json(instances, len(self.images))
        size = {"width": width, "height": height}
        self.images.append({"file": file, **size, "detections": detections})

    def write_json(self, file: Path) -> None:
        """Write all of it.

        Raises:
            UserError: if it cannot be written.
        """
        write_json({"class_names": list(self._metadata.thing_classes), "images": self.images}, file)

    def write_csv(self, file: Path) -> None:
        """Write a row a detection, boxes only; an image without any has no row.

        Raises:
            UserError: if it cannot be written.
        """
        with (
            replacing(file) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.writer(stream)
            writer.writerow(("file", "class", "class_id", "score", "x0", "y0", "x1", "y1"))
            for image in self.images:
                for d in image["detections"]:
                    row = (image["file"], d["class"], d["class_id"], d["score"], *d["box"])
                    writer.writerow(row)

    def write_coco(self, file: Path, images_file: Path) -> None:
        """Write detections as COCO results, with the categories' ids in the data set's file.

        Args:
            file: a list of results, as COCO's evaluation reads it.
            images_file: the `id`, `file_name`, `width` and `height` of each image. For the ids see
                `image_ids`.

        Raises:
            UserError: if one cannot be written.
        """
        keys = [(Path(i["file"]).name, i["width"], i["height"]) for i in self.images]
        ids = image_ids(self._metadata.name, keys)
        results = [
            {
                **item,
                "image_id": ids[item["image_id"]],
                "category_id": self._category_ids.get(item["category_id"], item["category_id"]),
            }
            for item in self._coco
        ]
        write_json(results, file)
        entries = [
            {
                "id": i,
                "file_name": image["file"],
                "width": image["width"],
                "height": image["height"],
            }
            for i, image in zip(ids, self.images, strict=True)
        ]
        write_json(entries, images_file)


def write_json(content: object, file: Path) -> None:
    """Write JSON, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
