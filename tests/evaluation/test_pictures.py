import json

import numpy as np
import pytest
from PIL import Image

import resnext_det
from resnext_det.config import dump_config
from resnext_det.data import shapes
from resnext_det.errors import UserError
from resnext_det.evaluation.pictures import draw_run, draw_sheet
from resnext_det.evaluation.training import read_metrics
from resnext_det.report.reading import read_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run on the shapes, with one detection."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 1, "shapes_minival": 3})
    folder = tmp_path / "run"
    (folder / "inference").mkdir(parents=True)
    cfg = resnext_det.get_cfg("quick/faster_rcnn_X26_8x4d_FPN")
    (folder / "config.yaml").write_text(dump_config(cfg))
    rows = [{"iteration": i, "total_loss": 2.0 / (i + 1), "lr": 0.1} for i in range(5)]
    rows.append({"iteration": 5, "bbox/AP": 60.0, "bbox/AP50": 80.0})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    detection = {"image_id": 0, "category_id": 1, "bbox": [30, 30, 60, 60], "score": 0.9}
    (folder / "inference/coco_instances_results.json").write_text(json.dumps([detection]))
    return folder


def test_a_run_gets_its_curves_and_its_sheet(run):
    pictures = draw_run(run, images=2)
    assert [p.name for p in pictures] == ["curves.png", "predictions.png"]
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 10
    assert not list(run.glob(".*"))


def test_detections_below_the_threshold_are_not_drawn(run, tmp_path):
    cfg = resnext_det.get_cfg("quick/faster_rcnn_X26_8x4d_FPN")
    detection = {"image_id": 0, "category_id": 1, "bbox": [30, 30, 60, 60], "score": 0.4}
    sheets = {}
    for name, found in (
        ("none", []),
        ("low", [detection]),
        ("high", [{**detection, "score": 0.6}]),
    ):
        draw_sheet(cfg, found, tmp_path / f"{name}.png")
        sheets[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    np.testing.assert_array_equal(sheets["low"], sheets["none"])
    assert (sheets["high"] != sheets["none"]).any()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no folder of a run"):
        draw_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", None])
def test_unreadable_metrics_are_named(content, tmp_path):
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=str(file)):
        read_metrics(file)


def test_a_run_without_evaluation_is_said_to_be_one(run):
    (run / "inference/coco_instances_results.json").unlink()
    with pytest.raises(UserError, match="the run was not evaluated"):
        draw_run(run)


def test_a_classifiers_run_gets_its_curves_and_no_report(tmp_path):
    config = "MODEL:\n  META_ARCHITECTURE: ImageClassifier\n  WEIGHTS: ''\nVERSION: 2\n"
    (tmp_path / "config.yaml").write_text(config)
    rows = [{"iteration": 19, "total_loss": 1.0, "lr": 0.1}]
    rows.append({"iteration": 20, "classification/accuracy": 50.0})
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert draw_run(tmp_path) == [tmp_path / "curves.png"]
    assert np.asarray(Image.open(tmp_path / "curves.png")).std() > 10
    with pytest.raises(UserError, match="is a classifier's run, and a report is of detectors"):
        read_run(tmp_path)
