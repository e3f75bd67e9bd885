"""Small ground truths and detections for evaluators, and pycocotools to judge them."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.evaluation.buffer import DetectionBuffer
from resnext_det.evaluation.detections import Detections, from_instances

HEIGHT, WIDTH = 96, 128
SIGMAS = (0.05, 0.1, 0.2)


def make_set(
    seed: int,
    *,
    images: int = 4,
    objects: int = 4,
    detections: int = 8,
    classes: int = 3,
    crowds: float = 0.2,
    steps: int = 6,
    polygons: bool = False,
) -> tuple[dict, list[dict]]:
    """Draw a ground truth and entries of a results file with boxes, masks and 3 keypoints.

    Coordinates and scores have few values, so that boxes coincide and scores tie.

    Args:
        seed: of everything.
        images: of 96 x 128.
        objects: at most, in an image; some images have none.
        detections: at most, in an image.
        classes: of which the last has no object.
        crowds: share of the objects that are crowds.
        steps: how many values a coordinate or a score has.
        polygons: whether masks of objects that are no crowds are polygons.
    """
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(4, 110, steps).round())
    ids = rng.permutation(1000)[:images].tolist()
    categories = (np.arange(classes) * 7 + 3).tolist()
    annotations, results = [], []
    for image in ids:
        for _ in range(rng.integers(0, objects + 1)):
            item = _thing(rng, image, sizes)
            item["category_id"] = categories[rng.integers(max(1, classes - 1))]
            item["iscrowd"] = int(rng.random() < crowds)
            item["id"] = len(annotations) + 1
            visible = np.array(item["keypoints"][2::3])
            visible = visible * rng.integers(0, 2)
            item["keypoints"][2::3] = visible.tolist()
            item["num_keypoints"] = int((visible > 0).sum())
            mask = mask_util.decode(item["segmentation"])
            item["area"] = float(mask.sum())
            if item["iscrowd"] or not polygons:
                item["segmentation"] = _uncompressed(mask)
            else:
                x, y, w, h = item["bbox"]
                item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(item)
        for _ in range(rng.integers(0, detections + 1)):
            item = _thing(rng, image, sizes)
            item["category_id"] = categories[rng.integers(classes)]
            item["score"] = float(rng.integers(1, steps + 1) / (steps + 1))
            results.append(item)
    content = {
        "images": [
            {"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in ids
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }
    return content, results


def _thing(rng: np.random.Generator, image: int, sizes: np.ndarray) -> dict:
    x, y = (float(8 * v) for v in rng.integers(0, 4, 2))
    w, h = map(float, rng.choice(sizes, 2))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    rle = mask_util.encode(mask)
    points = np.array([[x, y, 2], [x + w, y, 1], [x + w / 2, y + h, 2]])
    points[:, :2] += rng.integers(-1, 2, (3, 2)) * 2
    return {
        "image_id": image,
        "bbox": [x, y, w, h],
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "keypoints": points.ravel().tolist(),
    }


def _uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def in_columns(results: list[dict], image_ids: Sequence[int | str]) -> Detections:
    """Entries of a results file as a model's outputs, gone through the evaluator's own reading."""
    buffer = DetectionBuffer()
    for image in dict.fromkeys(r["image_id"] for r in results):
        rows = [r for r in results if r["image_id"] == image]
        x, y, w, h = torch.tensor([r["bbox"] for r in rows], dtype=torch.float64).unbind(1)
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.zeros(len(rows), 4))
        instances.pred_boxes.tensor = torch.stack((x, y, x + w, y + h), dim=1)
        instances.scores = torch.tensor([r["score"] for r in rows], dtype=torch.float64)
        instances.pred_classes = torch.tensor([r["category_id"] for r in rows])
        masks = np.stack([mask_util.decode(r["segmentation"]) for r in rows])
        instances.pred_masks = torch.from_numpy(masks).bool()
        points = torch.tensor([r["keypoints"] for r in rows]).reshape(len(rows), -1, 3)
        instances.pred_keypoints = points + torch.tensor([0.5, 0.5, 0])
        buffer.add(from_instances(instances, image_ids.index(image)))
    return buffer.detections()


def judge(
    content: dict, results: list[dict], task: str, *, keep_boxes: bool = False, **params: object
) -> COCOeval:
    """Evaluate by pycocotools, with mask areas for masks, and without its prints.

    Args:
        content: ground truth.
        results: entries of a results file.
        task: "bbox", "segm" or "keypoints".
        keep_boxes: do as pycocotools itself with entries that have boxes and masks.
        params: of its `Params`, other than its defaults.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
        rows = json.loads(json.dumps(results))
        if task == "segm" and not keep_boxes:
            for row in rows:
                del row["bbox"]
        if rows:
            found = truth.loadRes(rows)
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        judge = COCOeval(truth, found, task)
        if task == "keypoints":
            judge.params.kpt_oks_sigmas = np.array(SIGMAS)
        for name, value in params.items():
            setattr(judge.params, name, value)
        judge.evaluate()
        judge.accumulate()
        if not params:
            judge.summarize()
    return judge


def write_set(folder: Path, content: dict, results: list[dict]) -> tuple[Path, Path]:
    """Write both as `truth.json` and `results.json`."""
    files = folder / "truth.json", folder / "results.json"
    for file, data in zip(files, (content, results), strict=True):
        file.write_text(json.dumps(data))
    return files
