import json
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

import resnext_det
from resnext_det.engine import Trainer, format_results
from resnext_det.errors import UserError
from resnext_det.evaluation import build_coco_evaluator
from tests.helpers import TINY_COCO, needs_tiny_coco


class Oracle(nn.Module):
    """Answers every image with its ground truth, changed by `alter(boxes, scores, classes)`."""

    def __init__(self, dataset, alter=lambda boxes, scores, classes: (boxes, scores, classes)):
        super().__init__()
        self.truth = {r["image_id"]: r for r in DatasetCatalog.get(dataset)}
        self.alter = alter

    def forward(self, inputs):
        outputs = []
        for item in inputs:
            record = self.truth[item["image_id"]]
            size = record["height"], record["width"]
            things = [a for a in record["annotations"] if not a["iscrowd"]]
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in things]
            boxes, scores, classes = self.alter(
                torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
                torch.ones(len(things)),
                torch.tensor([a["category_id"] for a in things], dtype=torch.int64),
            )
            instances = Instances(size)
            instances.pred_boxes = Boxes(boxes)
            instances.pred_boxes.tensor = boxes  # Boxes would round to float32
            instances.scores, instances.pred_classes = scores, classes
            if len(boxes) == len(things):
                masks = [polygons_to_bitmask(a["segmentation"], *size) for a in things]
                masks = torch.tensor(masks).reshape(-1, *size) if masks else torch.zeros(0, *size)
                instances.pred_masks = BitMasks(masks.bool()).tensor
            outputs.append({"instances": instances})
        return outputs


@pytest.fixture
def tiny_coco(tmp_path, monkeypatch):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def evaluate(config, tmp_path, **kwargs):
    cfg = resnext_det.get_cfg(config)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    loader = Trainer.build_test_loader(cfg, "coco_minival")
    evaluator = Trainer.build_evaluator(cfg, "coco_minival")
    return inference_on_dataset(Oracle("coco_minival", **kwargs), loader, evaluator)


@needs_tiny_coco
def test_ground_truth_scores_100(tiny_coco):
    results = evaluate("mask_rcnn_X50_32x4d_FPN", tiny_coco)
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert f"{results['bbox'][metric]:.2f}" == "100.00"
    assert f"{results['segm']['AP50']:.2f}" == "100.00"


@needs_tiny_coco
def test_ap_is_pycocotools_own(tiny_coco):
    generator = torch.Generator().manual_seed(0)

    def disturb(boxes, scores, classes):
        shift = 12 * torch.rand(boxes.shape, generator=generator)
        wrong = torch.rand(len(classes), generator=generator) < 0.2
        scores = torch.rand(len(scores), generator=generator)
        return boxes + shift, scores, torch.where(wrong, (classes + 1) % 80, classes)

    results = evaluate("faster_rcnn_X50_32x4d", tiny_coco, alter=disturb)
    truth = COCO(str(TINY_COCO / "annotations/instances_val2017.json"))
    found = truth.loadRes(str(tiny_coco / "output/inference/coco_instances_results.json"))
    reference = COCOeval(truth, found, "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert 5 < results["bbox"]["AP"] < 95
    for index, metric in enumerate(("AP", "AP50", "AP75", "APs", "APm", "APl")):
        assert results["bbox"][metric] == pytest.approx(100 * reference.stats[index], abs=1e-6)


@needs_tiny_coco
def test_no_detection_is_ap_0_and_said(tiny_coco, caplog, capsys):
    def nothing(boxes, scores, classes):
        return boxes[:0], scores[:0], classes[:0]

    results = evaluate("mask_rcnn_X50_32x4d_FPN", tiny_coco, alter=nothing)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == results[task]["AP50"] == 0
    assert "the model detected nothing, so AP is 0" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_size_range_without_objects_prints_as_not_available():
    table = format_results({"bbox": {"AP": 12.345, "AP50": 50.0, "APl": math.nan}})
    assert "12.35" in table or "12.34" in table
    assert table.split("\n")[2].split() == [
        "bbox",
        "12.35",
        "50.00",
        "n/a",
        "n/a",
        "n/a",
        "n/a",
    ] or (table.split("\n")[2].split() == ["bbox", "12.34", "50.00", "n/a", "n/a", "n/a", "n/a"])


def test_several_test_sets_have_a_row_each():
    table = format_results({"a": {"bbox": {"AP": 1.0}}, "b": {"bbox": {"AP": 2.0}}})
    assert [line.split()[:3] for line in table.split("\n")[2:]] == [
        ["a", "bbox", "1.00"],
        ["b", "bbox", "2.00"],
    ]


def test_a_dataset_of_another_kind_is_refused():
    MetadataCatalog.get("other_kind").set(evaluator_type="lvis")
    with pytest.raises(
        UserError, match=r"other_kind is not of COCO's kind \(evaluator_type 'lvis'\)"
    ):
        build_coco_evaluator(resnext_det.get_cfg(), "other_kind")


@needs_tiny_coco
def test_results_are_in_cocos_own_category_ids(tiny_coco):
    evaluate("faster_rcnn_X50_32x4d", tiny_coco)
    file = tiny_coco / "output/inference/coco_instances_results.json"
    found = {d["category_id"] for d in json.loads(file.read_text())}
    truth = json.loads((TINY_COCO / "annotations/instances_val2017.json").read_text())
    assert found == {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
