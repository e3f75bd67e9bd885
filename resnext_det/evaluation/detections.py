"""Detections in columns: a few bytes each, where a dictionary for each takes kilobytes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hotcoco
import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from ..atomic import replacing
from ..errors import UserError

_ROWS = 1000  # turned into text at a time


@dataclass(frozen=True)
class Detections:
    """N detections, the same numbers as Detectron2 writes into `coco_instances_results.json`.

    Attributes:
        images: (N,) numbers of images, from 0; a list of ids elsewhere says which they are.
        categories: (N,) the data set's own category ids.
        boxes: (N, 4) x, y, width, height in pixels.
        scores: (N,) 0 to 1.
        masks: N run-length encodings, compressed; None where there are no masks.
        mask_sizes: (N, 2) heights and widths in pixels of the masks.
        keypoints: (N, 3 * K) x, y, score of each keypoint; None where there are none.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: tuple[bytes, ...] | None = None
    mask_sizes: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, chosen: np.ndarray) -> "Detections":
        """Those that an (N,) bool array chooses."""
        indices = np.flatnonzero(chosen)
        return Detections(
            *(column[indices] for column in (self.images, self.categories)),
            *(column[indices] for column in (self.boxes, self.scores)),
            None if self.masks is None else tuple(self.masks[i] for i in indices),
            None if self.mask_sizes is None else self.mask_sizes[indices],
            None if self.keypoints is None else self.keypoints[indices],
        )

    def renumbered(self, *, images: np.ndarray, categories: np.ndarray) -> "Detections":
        """The same with other numbers: `images[i]` for image i, `categories[c]` for category c."""
        return replace(self, images=images[self.images], categories=categories[self.categories])

    def areas(self, task: str) -> np.ndarray:
        """(N,) areas in square pixels, of masks in "segm", else of boxes, as in Detectron2."""
        if task == "segm" and len(self):
            return np.asarray(hotcoco.mask.area(self._rles()), dtype=np.float64).reshape(-1)
        return self.boxes[:, 2] * self.boxes[:, 3]

    def _rles(self, rows: slice = slice(None)) -> list[dict]:
        sizes = self.mask_sizes[rows].tolist()
        return [{"size": s, "counts": c} for s, c in zip(sizes, self.masks[rows], strict=True)]

    def rows(self, image_ids: Sequence[int | str] | None = None) -> Iterator[list[dict]]:
        """Go through them as entries of a COCO results file, up to 1000 at a time.

        Args:
            image_ids: the data set's own, by `images`; None for these numbers themselves.
        """
        for start in range(0, len(self), _ROWS):
            part = slice(start, start + _ROWS)
            images = self.images[part].tolist()
            columns = {
                "image_id": images if image_ids is None else [image_ids[i] for i in images],
                "category_id": self.categories[part].tolist(),
                "bbox": self.boxes[part].tolist(),
                "score": self.scores[part].tolist(),
            }
            if self.masks is not None:
                rles = self._rles(part)
                columns["segmentation"] = [{**r, "counts": r["counts"].decode()} for r in rles]
            if self.keypoints is not None:
                columns["keypoints"] = self.keypoints[part].tolist()
            yield [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]

    def write(self, file: Path, image_ids: Sequence[int | str]) -> None:
        """Write a COCO results file.

        Args:
            file: to write.
            image_ids: the data set's own, by `images`.

        Raises:
            UserError: if it cannot be written.
        """
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as text:
            separator = "["
            for rows in self.rows(image_ids):
                text.write(separator + json.dumps(rows)[1:-1])
                separator = ", "
            text.write("[]" if separator == "[" else "]")

    def in_hotcoco(self, truth: hotcoco.COCO, task: str) -> hotcoco.COCO:
        """The detections, for hotcoco to evaluate a task.

        Args:
            truth: has their categories, and their images by the same numbers: `Truth.coco`.
            task: "bbox", "segm" or "keypoints".
        """
        if task == "keypoints" and len(self):
            return truth.load_res([row for rows in self.rows() for row in rows])
        table = np.column_stack((self.images, self.boxes, self.scores, self.categories))
        if task != "segm" or not len(self):
            return truth.load_res(table)
        found = truth.load_res(table, segmentation=self._rles())
        found.update_anns(ids=np.arange(1, len(self) + 1), area=self.areas(task))
        return found


def from_instances(instances: Instances, image: int) -> Detections:
    """Take over a model's output for an image.

    Args:
        instances: on the CPU, with `pred_boxes` (x0, y0, x1, y1 in pixels), `scores`,
            `pred_classes`, which become the categories, perhaps `pred_masks` (N, H, W) and
            `pred_keypoints` (N, K, 3).
        image: its number.
    """
    boxes = instances.pred_boxes.tensor.numpy()
    count = len(boxes)
    masks = sizes = keypoints = None
    if instances.has("pred_masks"):
        stack = instances.pred_masks.numpy()
        rles = [mask_util.encode(np.asfortranarray(m, dtype=np.uint8)) for m in stack]
        masks = tuple(rle["counts"] for rle in rles)
        sizes = np.full((count, 2), stack.shape[1:], dtype=np.int32)
    if instances.has("pred_keypoints"):
        # In annotations coordinates are pixel indices, in Detectron2 places: 0.5 more.
        keypoints = instances.pred_keypoints.numpy() - np.array([0.5, 0.5, 0], dtype=np.float32)
        keypoints = keypoints.reshape(count, 3 * keypoints.shape[1])
    return Detections(
        np.full(count, image, dtype=np.int64),
        instances.pred_classes.numpy(),
        np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        instances.scores.numpy(),
        *(masks, sizes, keypoints),
    )


def no_detections() -> Detections:
    """The detections of a model that finds nothing."""
    whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Detections(whole, whole, np.zeros((0, 4)), real)


def require(detections: Detections, tasks: Sequence[str], image_ids: Sequence[int | str]) -> None:
    """Check that detections are what tasks evaluate, and finite: NaN has no place in an order.

    Args:
        detections: of a model.
        tasks: of "bbox", "segm" and "keypoints".
        image_ids: the data set's own, by `detections.images`.

    Raises:
        UserError: if masks or keypoints are absent, or with the image of the first detection that
            is not finite.
    """
    lacking = {"segm": detections.masks is None, "keypoints": detections.keypoints is None}
    for task in tasks:
        if len(detections) and lacking.get(task):
            what = "masks (segmentation)" if task == "segm" else "keypoints"
            raise UserError(f"the detections have no {what}, so {task} cannot be evaluated")
    columns = [detections.boxes, detections.scores[:, None]]
    if detections.keypoints is not None:
        columns.append(detections.keypoints)
    good = np.all([np.isfinite(column).all(axis=1) for column in columns], axis=0)
    if not good.all():
        first = int(np.argmin(good))
        raise UserError(
            f"{int((~good).sum())} of {len(good)} detections have a box, score or keypoint that is "
            f"not finite, the first in image {image_ids[detections.images[first]]}: the weights "
            "may have diverged"
        )
