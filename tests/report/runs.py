"""Folders of runs whose evaluation is made up, and reading their pages."""

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

import resnext_det
from resnext_det.config import dump_config
from resnext_det.data.custom import CustomData, keep_with_run
from resnext_det.report.contract import CLASS_FIGURES, ERRORS

BOX_FIGURES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
CLASSES = ("circle", "square", "star")
QUICK = "quick/faster_rcnn_X26_8x4d_FPN"


def evaluation(classes=CLASSES, *, tasks=("bbox",), images=4, seed=0, dataset="custom_val"):
    """Content of an evaluation.json with random figures, none of them equal."""
    rng = np.random.default_rng(seed)

    def percents(count):
        return [float(v) for v in 100 * rng.random(count)]

    content = {
        "dataset": dataset, "images": images, "implementation": "hotcoco 1.3.0",
        "score": 0.5, "limit": None, "tta": False, "tasks": {},
    }  # fmt: skip
    for task in tasks:
        labels = KEYPOINT_FIGURES if task == "keypoints" else BOX_FIGURES
        entries = [
            {"name": name, "category_id": i + 1, "objects": int(rng.integers(1, 99)),
             **dict(zip(CLASS_FIGURES, percents(6), strict=True))}
            for i, name in enumerate(classes)
        ]  # fmt: skip
        keys = ("0.50", "0.75", "mean")
        matrix = rng.integers(1, 50, (len(classes) + 1,) * 2).tolist()
        content["tasks"][task] = {
            "figures": dict(zip(labels, percents(len(labels)), strict=True)),
            "classes": entries,
            "curves": {
                "recall": [i / 100 for i in range(101)],
                "precision": {key: sorted(percents(101))[::-1] for key in keys},
                "classes": {name: sorted(percents(101))[::-1] for name in classes},
            },
            "errors": {
                "AP50": 60.0,
                "delta": dict(zip(ERRORS, percents(6), strict=True)),
                "counts": {key: int(rng.integers(99)) for key in ERRORS},
            },
            "confusion": {
                "labels": [*classes, "background"], "matrix": matrix, "iou": 0.5, "score": 0.5
            },
            "findings": [],
        }  # fmt: skip
        if task == "keypoints":
            content["tasks"][task].update(errors=None, confusion=None)
    return content


def undefined(content):
    """Put null in place of every figure."""
    for task in content["tasks"].values():
        task["figures"] = dict.fromkeys(task["figures"])
        for entry in task["classes"]:
            entry.update(dict.fromkeys(CLASS_FIGURES), objects=0)
        for curves in (task["curves"]["precision"], task["curves"]["classes"]):
            curves.update({key: [None] * 101 for key in curves})
        task["errors"]["AP50"] = None
        task["errors"]["delta"] = dict.fromkeys(ERRORS)
    return content


def write_data(folder, classes=CLASSES, *, images=4, names="{}.png"):
    """A COCO file with a box, its polygon and its points in each image; its `CustomData`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    listed, annotations = [], []
    for i in range(images):
        name = names.format(i)
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        listed.append({"id": i + 1, "file_name": name, "width": 64, "height": 48})
        annotations.append(
            {
                "id": i + 1, "image_id": i + 1, "category_id": i % len(classes) + 1,
                "bbox": [10, 10, 20, 16], "area": 320, "iscrowd": 0,
                "segmentation": [[10, 10, 30, 10, 30, 26, 10, 26]],
                "keypoints": [12, 12, 2, 25, 20, 1], "num_keypoints": 2,
            }
        )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))
    return CustomData.read(str(folder / "val.json"), str(folder))


def write_run(folder, data, contents, *, trained=True, overrides=(), detections=None):
    """A run's folder.

    Args:
        data: by test set, of `write_data`.
        contents: by test set, of `evaluation`.
        detections: by test set; None for a right one in the first image of each.
    """
    cfg = resnext_det.get_cfg(QUICK)
    cfg.merge_from_list(list(overrides))
    cfg.DATASETS.TEST = tuple(contents)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(cfg))
    keep_with_run(folder, data, folder)
    for name, content in contents.items():
        inference = folder / "inference" / (name if len(contents) > 1 else "")
        inference.mkdir(parents=True, exist_ok=True)
        (inference / "evaluation.json").write_text(json.dumps(content))
        one = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 16], "score": 0.9}
        found = [one] if detections is None else detections[name]
        (inference / "coco_instances_results.json").write_text(json.dumps(found))
    if trained:
        rows = [
            {"iteration": i, "total_loss": 3.0 / (i + 1), "loss_cls": 1.0 / (i + 1), "lr": 0.01}
            for i in range(19, 100, 20)
        ]
        rows += [{"iteration": i, "bbox/AP": i / 3, "bbox/AP50": i / 2} for i in (50, 100)]
        (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "run.json").write_text(json.dumps([START]))
    return folder


START = {
    "time": "2026-01-02T03:04:05+0000",
    "command": "/home/someone/checkout/tools/train_net.py --config-file quick/x OUTPUT_DIR out",
    "folder": "/home/someone/checkout",
    "processes": 1,
    "device": "cpu, 2 threads",
    "seed": 7,
    "config_changes": [],
    "versions": {"torch": "2.14.1"},
    "git": {"commit": "0123abc", "changed": ["a.py"]},
    "datasets": {"custom_val": {"annotation_file": "/home/someone/val.json", "sha256": "feed"}},
}


class Page(HTMLParser):
    """A page's elements.

    Attributes:
        tags: (name, attributes) in their order.
        text: all that is text, whitespace as single blanks.
        rows: of the tables, each the texts of its cells.
    """

    def __init__(self, file):
        super().__init__()
        self.tags, self.rows, self._words, self._inside = [], [], [], None
        self._cell = None
        self.feed(file.read_text())
        self.text = " ".join("".join(self._words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self._inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self._inside is None:
            self._words.append(data)
            if self._cell is not None:
                self._cell.append(data)

    def with_attribute(self, name):
        return [attributes for _, attributes in self.tags if name in attributes]

    def rows_named(self, name):
        return [row[1:] for row in self.rows if row and row[0] == name]
