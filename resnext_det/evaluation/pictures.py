"""Pictures of a finished run: its curves, and predictions beside ground truth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from ..config import load_config
from ..data.custom import data_of_run
from ..data.drawing import Shown, draw_objects, fitting_scale, save_figure
from ..data.sheets import on_sheet, save_picture, with_title
from ..errors import UserError
from ..images import read_image
from ..modeling.classifier import is_classifier
from .coco import evaluation_folder
from .training import read_metrics

_LOSSES = ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")


def plot_curves(metrics: Sequence[Mapping], png: Path) -> None:
    """Plot losses, learning rate and AP, or accuracy, against the iteration.

    Args:
        metrics: rows of `read_metrics`.
        png: the picture to write.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, rate, ap = figure.subplots(1, 3)
    for name in _LOSSES:
        _plot(losses, metrics, name)
    losses.set(title="training losses (median of 20 iterations)")
    set_log_scale(losses)
    _plot(rate, metrics, "lr")
    rate.set(title="learning rate")
    for task in ("bbox", "segm", "keypoints"):
        _plot(ap, metrics, f"{task}/AP", marker="o")
        _plot(ap, metrics, f"{task}/AP50", marker="o")
    _plot(ap, metrics, "classification/accuracy", marker="o")
    ap.set(title="evaluation, percent", ylim=(0, 100), xlim=rate.get_xlim())
    for axes in (losses, rate, ap):
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    save_figure(figure, png)


def set_log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with enough numbers to read it and none on another.

    Call it when all lines are drawn.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high < 100 * low:  # powers of ten alone would leave the axis nearly bare
        # where it holds fewer than two of these, the locator takes evenly spaced values
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=8)


def _plot(axes: Axes, metrics: Sequence[Mapping], name: str, **style: object) -> None:
    points = [(row["iteration"], row[name]) for row in metrics if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=name, **style)


def draw_sheet(
    cfg: CfgNode,
    detections: Sequence[Mapping],
    png: Path,
    *,
    images: int = 8,
    threshold: float = 0.5,
) -> None:
    """Draw pairs of pictures: ground truth on the left, detections on the right.

    Args:
        cfg: names the data set, by `DATASETS.TEST[0]`.
        detections: entries of `coco_instances_results.json`: `image_id`, `category_id` (as in the
            data set's file), `bbox` (x, y, width, height, pixels), `score`.
        png: the picture to write.
        images: how many images, evenly spread over the data set.
        threshold: detections with a lower score, 0 to 1, are left out.

    Raises:
        UserError: if an image cannot be read.
    """
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    chosen = [
        records[i] for i in np.linspace(0, len(records) - 1, min(images, len(records)), dtype=int)
    ]
    to_contiguous = metadata.thing_dataset_id_to_contiguous_id
    pictures = []
    for record in chosen:
        found = [
            {**d, "bbox_mode": BoxMode.XYWH_ABS, "category_id": to_contiguous[d["category_id"]]}
            for d in detections
            if d["image_id"] == record["image_id"] and d["score"] >= threshold
        ]
        found.sort(key=lambda entry: entry["score"])  # the best on top
        pictures.append(_draw_boxes(record, metadata, record["annotations"], "ground truth"))
        pictures.append(_draw_boxes(record, metadata, found, f"score >= {threshold:g}"))
    save_picture(on_sheet(pictures, min(4, len(pictures))), png)


def _draw_boxes(
    record: Mapping, metadata: Metadata, items: Sequence[Mapping], title: str
) -> Image.Image:
    shown = []
    for item in items:
        label = metadata.thing_classes[item["category_id"]]
        if "score" in item:
            label += f" {item['score']:.2f}"
        box = BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS)
        crowd = bool(item.get("iscrowd", 0))
        shown.append(Shown(box, item["category_id"], label, crowd=crowd))
    pixels = read_image(Path(record["file_name"]))[:, :, ::-1]
    picture = draw_objects(pixels, shown, scale=fitting_scale(*pixels.shape[:2]))
    return with_title(picture, f"{title}: {Path(record['file_name']).name}")


def draw_run(run: Path, *, images: int = 8, threshold: float = 0.5) -> list[Path]:
    """Draw `curves.png` and, of a detector, `predictions.png` of a run into its folder.

    Args:
        run: an `OUTPUT_DIR` with config.yaml, metrics.json and inference/.
        images: images on the sheet.
        threshold: lowest score drawn, 0 to 1.

    Returns:
        The pictures written.

    Raises:
        UserError: if a file of the run is absent or not readable.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no folder of a run: it has no config.yaml")
    for name, data in data_of_run(run).items():
        data.register(name)
    cfg = load_config(str(run / "config.yaml"))
    curves, sheet = run / "curves.png", run / "predictions.png"
    plot_curves(read_metrics(run / "metrics.json"), curves)
    if is_classifier(cfg):
        return [curves]
    cfg.OUTPUT_DIR = str(run)  # it may have been moved
    file = evaluation_folder(cfg, cfg.DATASETS.TEST[0]) / "coco_instances_results.json"
    try:
        detections = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable, so the run was not evaluated: {error}") from error
    if images < 1:
        raise UserError(f"--images {images}: at least 1 image goes on the sheet")
    try:
        draw_sheet(cfg, detections, sheet, images=images, threshold=threshold)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not hold detections of {cfg.DATASETS.TEST[0]}: {error!r}"
        ) from error
    return [curves, sheet]
