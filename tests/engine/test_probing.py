"""An evaluation alone whose AP is very low tries other ways to feed the images."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from resnext_det import get_cfg
from resnext_det.data import shapes
from resnext_det.engine import Trainer
from resnext_det.engine.probing import try_other_inputs
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


def evaluate(cfg, order):
    """Evaluate the model of a colour order as `--eval-only` does; gives it and the findings."""
    model = Seeing(DatasetCatalog.get("shapes_minival"), order, cfg)
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


def test_a_model_that_sees_is_not_tried_again(cfg, caplog):
    caplog.set_level("INFO")
    _, findings = evaluate(cfg, cfg.INPUT.FORMAT)
    assert "trying other colour orders" not in caplog.text
    assert "input_wrong" not in {finding["code"] for finding in findings}
