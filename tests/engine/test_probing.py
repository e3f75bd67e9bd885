"""An evaluation alone whose AP is very low tries other ways to feed the images."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from resnext_det import get_cfg
from resnext_det.data import shapes
from resnext_det.engine import Trainer
from resnext_det.engine.probing import try_other_inputs
from resnext_det.evaluation.probe import every_score
from tests.engine.jobs import QUICK, small_shapes


class Seeing(nn.Module):
    """Finds every object of the data set if its images come in one colour order."""

    def __init__(self, records, order, cfg):
        super().__init__()
        self.truth = {record["image_id"]: record for record in records}
        self.order, self.input_format = order, cfg.INPUT.FORMAT
        for name in ("pixel_mean", "pixel_std"):
            value = torch.tensor(cfg.MODEL[name.upper()]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, inputs):
        return [{"instances": self.see(item)} for item in inputs]

    def see(self, item):
        things = self.truth[item["image_id"]]["annotations"]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in things]
        if self.input_format != self.order:
            boxes = [[x0 / 2, y0 / 2, x1 / 2, y1 / 2] for x0, y0, x1, y1 in boxes]
        found = Instances((item["height"], item["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in things])
        return found


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", dict(shapes.SPLIT_SIZES))
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    small_shapes(tmp_path / "datasets")
    cfg = get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def evaluate(cfg, order, kind=Seeing):
    """Evaluate the model of a colour order as `--eval-only` does; gives it and the findings."""
    model = kind(DatasetCatalog.get("shapes_minival"), order, cfg)
    results = Trainer.test(cfg, model, [Trainer.build_evaluator(cfg, "shapes_minival")])
    try_other_inputs(cfg, model, results)
    file = f"{cfg.OUTPUT_DIR}/inference/evaluation.json"
    with open(file) as opened:
        return model, json.load(opened)["tasks"]["bbox"]["findings"]


@pytest.mark.parametrize(("form", "other"), [("RGB", "BGR"), ("BGR", "RGB")])
def test_the_other_colour_order_is_found_and_the_model_left_as_it_was(cfg, form, other, caplog):
    cfg.INPUT.FORMAT = form
    model, findings = evaluate(cfg, other)
    assert findings[0]["code"] == "input_wrong"
    assert f"100.0 with INPUT.FORMAT {other}" in findings[0]["message"]
    assert f"INPUT.FORMAT {other}" in caplog.text
    assert model.input_format == form
    assert model.pixel_std.flatten().tolist() == cfg.MODEL.PIXEL_STD


class Unsure(Seeing):
    """Gives its boxes, each of score 0.013, if they reach the threshold of its RoI heads."""

    def __init__(self, records, order, cfg):
        super().__init__(records, order, cfg)
        self.stages = nn.ModuleList([nn.Identity(), nn.Identity()])  # as in a cascade
        for stage in self.stages:
            stage.test_score_thresh = 0.05

    def see(self, item):
        found = super().see(item)
        found.scores = 0.013 * found.scores
        return found[found.scores > max(stage.test_score_thresh for stage in self.stages)]


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_detects_nothing_tells_its_highest_score(cfg, right, caplog):
    caplog.set_level("INFO")
    other = "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB"
    model, findings = evaluate(cfg, cfg.INPUT.FORMAT if right else other, Unsure)
    found = {finding["code"]: finding["message"] for finding in findings}
    assert found["no_detections"].endswith("the highest score of any box on a few images is 0.013")
    assert caplog.text.count("the highest score of any box on a few images is 0.013") == 1
    assert ("input_wrong" in found) == (not right)  # which the threshold would have hidden
    assert [stage.test_score_thresh for stage in model.stages] == [0.05, 0.05]


def test_a_model_without_any_box_tells_so_too(cfg):
    class Blind(Unsure):
        def see(self, item):
            return super().see(item)[:0]

    _, findings = evaluate(cfg, cfg.INPUT.FORMAT, Blind)
    assert findings[0]["message"].endswith(
        "the highest score of any box on a few images is unknown: there is none"
    )


@pytest.mark.parametrize("name", ["faster_rcnn_X50_32x4d", "retinanet_X50_32x4d_FPN"])
def test_a_detectors_threshold_is_lifted_and_restored(name):
    cfg = get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    place = model if "retinanet" in name else model.roi_heads.box_predictor
    assert place.test_score_thresh == 0.05
    with pytest.raises(RuntimeError, match="amid it"), every_score(model):
        assert place.test_score_thresh == 0
        raise RuntimeError("amid it")
    assert place.test_score_thresh == 0.05


def test_trials_say_nothing_of_their_own(cfg, caplog):
    caplog.set_level("INFO")
    evaluate(cfg, "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB", Unsure)
    lines = [record.getMessage() for record in caplog.records]
    first = next(n for n, line in enumerate(lines) if "trying other colour orders" in line)
    assert len(lines) - first == 3, lines[first:]  # the highest score, and the finding


def test_a_model_that_sees_is_not_tried_again(cfg, caplog):
    caplog.set_level("INFO")
    _, findings = evaluate(cfg, cfg.INPUT.FORMAT)
    assert "trying other colour orders" not in caplog.text
    assert "input_wrong" not in {finding["code"] for finding in findings}
