"""Evaluations of optimised detectors through the main job."""

import argparse
import json
import math
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from resnext_det.data import shapes
from resnext_det.deploy import options
from resnext_det.engine import argument_parser, optimized, run_job, train_or_evaluate
from resnext_det.engine.optimized import CalibrationImages, compare
from resnext_det.errors import UserError
from resnext_det.inference import Predictor
from tests.inference.models import small_config, write_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's config and weights, over a handful of shapes."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 6, "shapes_minival": 4})
    return write_run(tmp_path / "run", small_config())


def evaluate(run, output, *flags, opts=()):
    config, weights = run
    words = ["--config-file", str(config), "--eval-only", *flags]
    words += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(output), *opts]
    return run_job(train_or_evaluate, argument_parser().parse_args(words))


def detections_of(output):
    file = output / "inference/coco_instances_results.json"
    return json.loads(file.read_text())


def test_float32_gives_the_detections_of_a_plain_evaluation(run, tmp_path):
    assert evaluate(run, tmp_path / "plain") == 0
    assert evaluate(run, tmp_path / "fast", "--optimize", "f32") == 0
    expected, found = detections_of(tmp_path / "plain"), detections_of(tmp_path / "fast")
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)


def test_test_time_augmentation_runs_on_an_optimised_detector(run, tmp_path):
    opts = ("TEST.AUG.MIN_SIZES", "(64,)")
    assert evaluate(run, tmp_path / "plain", "--tta", opts=opts) == 0
    assert evaluate(run, tmp_path / "fast", "--tta", "--optimize", "f32", opts=opts) == 0
    expected, found = detections_of(tmp_path / "plain"), detections_of(tmp_path / "fast")
    assert len(found) == len(expected) > 0


def test_int8_is_written_with_its_ap_and_runs_from_its_folder(run, tmp_path, capsys, caplog):
    output = tmp_path / "int8"
    flags = ("--optimize", "int8", "--calibration-images", "3", "--max-ap-loss", "100")
    assert evaluate(run, output, *flags) == 0
    assert "loss" in capsys.readouterr().out
    record = json.loads((output / "int8/quantized.json").read_text())
    assert record["calibration"] == {"datasets": ["shapes_train"], "images": 3}
    assert record["AP"][0]["name"] == "bbox"
    results = json.loads((output / "results.json").read_text())
    assert record["AP"][0]["int8"] == pytest.approx(results["bbox"]["AP"])

    again = tmp_path / "again"
    assert evaluate(run, again, "--optimize", str(output / "int8")) == 0
    found, expected = detections_of(again), detections_of(output)
    assert [d["category_id"] for d in found] == [d["category_id"] for d in expected]
    assert [d["score"] for d in found] == pytest.approx([d["score"] for d in expected], abs=1e-4)

    predictor = Predictor(*run, optimize=str(output / "int8"))
    image = torch.zeros(96, 128, 3, dtype=torch.uint8).numpy()
    assert len(predictor(image)) > 0


def test_int8_that_loses_too_much_is_not_written(run, tmp_path, capsys, monkeypatch):
    rows = [("bbox", 50.0, 48.0, 2.0)]
    monkeypatch.setattr(optimized, "compare", lambda before, after: rows)
    assert evaluate(run, tmp_path / "o", "--optimize", "int8", "--calibration-images", "1") == 1
    message = capsys.readouterr().err.strip()
    assert message == (
        "error: the int8 model is not written: it loses 2.00 points of AP (bbox), more than 1; "
        "take more --calibration-images, or accept it with --max-ap-loss 2"
    )
    assert not (tmp_path / "o/int8").exists()
    flags = ("--optimize", "int8", "--calibration-images", "1", "--max-ap-loss", "2")
    assert evaluate(run, tmp_path / "o", *flags) == 0
    assert (tmp_path / "o/int8").exists()


@pytest.mark.parametrize("problem", ["nncf", "in the way"])
def test_what_int8_lacks_is_said_before_anything_is_evaluated(run, tmp_path, monkeypatch, problem):
    if problem == "nncf":
        monkeypatch.setitem(sys.modules, "nncf", None)
    else:
        (tmp_path / "int8").mkdir()
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path))
    with pytest.raises(UserError, match=problem):
        optimized.evaluate_optimized(
            cfg, None, options.Optimization("int8"), lambda detector: pytest.fail("evaluated")
        )


def test_calibration_images_come_with_their_proposals(run, tmp_path):
    cfg = small_config()
    cfg.DATASETS.TRAIN = ("shapes_train",)
    cfg.MODEL.LOAD_PROPOSALS = True
    records = DatasetCatalog.get("shapes_train")
    boxes = np.array([[1, 2, 30, 40]], dtype=np.float32)
    stored = {
        "ids": [record["image_id"] for record in records],
        "boxes": [boxes] * len(records),
        "objectness_logits": [np.zeros(1, np.float32)] * len(records),
        "bbox_mode": 0,
    }
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps(stored))
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (str(file),)
    (batch,) = CalibrationImages(cfg, 1)
    assert len(batch[0]["proposals"]) == 1


def test_an_undefined_ap_is_no_reason_to_write(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimized, "compare", lambda *_: [("bbox", math.nan, math.nan, math.nan)])
    assert evaluate(run, tmp_path / "o", "--optimize", "int8", "--calibration-images", "1") == 1
    assert "nobody knows what it loses" in capsys.readouterr().err
    assert not (tmp_path / "o/int8").exists()


def test_ap_is_compared_task_by_task_and_set_by_set():
    before = {"bbox": {"AP": 50.0, "AP50": 1.0}, "segm": {"AP": 40.0}}
    after = {"bbox": {"AP": 49.5, "AP50": 9.0}, "segm": {"AP": 41.0}}
    assert compare(before, after) == [("bbox", 50.0, 49.5, 0.5), ("segm", 40.0, 41.0, -1.0)]
    several = compare({"a": before, "b": before}, {"a": after, "b": before})
    assert [row[0] for row in several] == ["a bbox", "a segm", "b bbox", "b segm"]
    assert several[0][3] == 0.5 and several[2][3] == 0
    before, after = ({"box_proposals": {"AR@100": 9.0, "AR@1000": v}} for v in (60.0, 59.0))
    assert compare(before, after) == [("box_proposals", 60.0, 59.0, 1.0)]


def test_calibration_takes_training_images_as_a_test_does(run):
    cfg = small_config()
    cfg.DATASETS.TRAIN = ("shapes_train",)
    images = CalibrationImages(cfg, 4)
    first, second = list(images), list(images)
    assert len(images) == len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0]["image"], other[0]["image"])
        assert min(one[0]["image"].shape[1:]) == 96
        assert "instances" not in one[0]
    names = [batch[0]["file_name"] for batch in first]
    assert len(set(names)) == 4 and all("shapes_train" in name for name in names)
    assert len(CalibrationImages(cfg, 100)) == 6
    cfg.DATASETS.TRAIN = ()
    for names, message in (
        ((), "DATASETS.TRAIN is empty"),
        (("nonsense",), "dataset nonsense is not registered"),
        (("coco_2017_train",), "dataset coco_2017_train: .* does not exist"),
    ):
        cfg.DATASETS.TRAIN = names
        with pytest.raises(UserError, match=message):
            CalibrationImages(cfg, 4)


def test_int8_in_several_processes_is_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimized.comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="leave --num-gpus out"):
        optimized.evaluate_optimized(None, None, options.Optimization("int8"), lambda detector: {})


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"optimize": "int9"}, "neither one of f32, bf16, int8 nor the folder"),
        ({"optimize": "bf16", "eval_only": False}, "goes with --eval-only"),
        ({"optimize": "bf16", "max_ap_loss": "1"}, "--max-ap-loss goes with --optimize int8"),
        ({"calibration_images": "9"}, "--calibration-images goes with --optimize int8"),
        ({"optimize": "int8", "calibration_images": "0"}, "whole number from 1"),
        ({"optimize": "int8", "calibration_images": "many"}, "whole number from 1"),
        ({"optimize": "int8", "max_ap_loss": "-1"}, "points of AP, from 0 to 100"),
        ({"optimize": "int8", "max_ap_loss": "nan"}, "points of AP, from 0 to 100"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        options.parse_optimization(argparse.Namespace(**{"eval_only": True, **flags}))


def test_without_a_word_the_flag_means_float32():
    args = argument_parser().parse_args(["--eval-only", "--optimize", "--config-file", "x"])
    assert options.parse_optimization(args) == options.Optimization("f32")


def test_flags_are_read(tmp_path):
    def parse(**flags):
        return options.parse_optimization(SimpleNamespace(eval_only=True, **flags))

    assert parse() is None
    assert parse(optimize="bf16") == options.Optimization("bf16")
    assert parse(optimize=str(tmp_path)) == options.Optimization(None, tmp_path)
    assert parse(optimize="int8", calibration_images="7", max_ap_loss="0.5") == (
        options.Optimization("int8", None, 7, 0.5)
    )
