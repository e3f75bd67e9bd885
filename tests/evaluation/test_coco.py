import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

import resnext_det
from resnext_det.engine import Trainer, format_results
from resnext_det.errors import UserError
from resnext_det.evaluation import CocoEvaluator, build_coco_evaluator
from resnext_det.evaluation.detections import from_instances
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


def evaluate(config, tmp_path, *, settings=(), **kwargs):
    cfg = resnext_det.get_cfg(config)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.merge_from_list(list(settings))
    loader = Trainer.build_test_loader(cfg, "coco_minival")
    evaluator = Trainer.build_evaluator(cfg, "coco_minival")
    return inference_on_dataset(Oracle("coco_minival", **kwargs), loader, evaluator)


@needs_tiny_coco
def test_ground_truth_scores_100(tiny_coco):
    results = evaluate("mask_rcnn_X50_32x4d_FPN", tiny_coco)
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert f"{results['bbox'][metric]:.2f}" == "100.00"
    assert f"{results['segm']['AP50']:.2f}" == "100.00"


def disturbing():
    generator = torch.Generator().manual_seed(0)

    def disturb(boxes, scores, classes):
        shift = 12 * torch.rand(boxes.shape, generator=generator)
        wrong = torch.rand(len(classes), generator=generator) < 0.2
        scores = torch.rand(len(scores), generator=generator)
        return boxes + shift, scores, torch.where(wrong, (classes + 1) % 80, classes)

    return disturb


@needs_tiny_coco
@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_ap_is_pycocotools_own(tiny_coco, evaluator):
    settings = ("TEST.COCO_EVALUATOR", evaluator)
    results = evaluate("faster_rcnn_X50_32x4d", tiny_coco, settings=settings, alter=disturbing())
    truth = COCO(str(TINY_COCO / "annotations/instances_val2017.json"))
    found = truth.loadRes(str(tiny_coco / "output/inference/coco_instances_results.json"))
    reference = COCOeval(truth, found, "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert 5 < results["bbox"]["AP"] < 95
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    names += ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    for stat, metric in zip(reference.stats, names, strict=True):
        assert results["bbox"][metric] == pytest.approx(100 * stat, abs=1e-6)
    evaluation = json.loads((tiny_coco / "output/inference/evaluation.json").read_text())
    assert evaluation["implementation"].split()[0] == evaluator
    assert evaluation["tasks"]["bbox"]["figures"] == {name: results["bbox"][name] for name in names}


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


@needs_tiny_coco
def test_results_and_file_are_those_of_detectron2(tiny_coco):
    results = evaluate("mask_rcnn_X50_32x4d_FPN", tiny_coco, alter=disturbing())
    cfg = resnext_det.get_cfg("mask_rcnn_X50_32x4d_FPN")
    cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = 64, 0
    loader = Trainer.build_test_loader(cfg, "coco_minival")
    folder = tiny_coco / "theirs"
    theirs = COCOEvaluator(
        "coco_minival", ("bbox", "segm"), output_dir=str(folder), use_fast_impl=False
    )
    expected = inference_on_dataset(Oracle("coco_minival", disturbing()), loader, theirs)
    assert list(results) == list(expected) == ["bbox", "segm"]
    for task, metrics in expected.items():
        assert metrics.keys() <= results[task].keys()
        assert {"AP-person", "AP-car"} < metrics.keys()
        ours = [results[task][metric] for metric in metrics]
        np.testing.assert_allclose(ours, list(metrics.values()), atol=1e-6)
    name = "coco_instances_results.json"
    written = json.loads((tiny_coco / "output/inference" / name).read_text())
    assert written == json.loads((folder / name).read_text())


def test_keypoints_are_written_as_detectron2_does():
    generator = torch.Generator().manual_seed(0)
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(60 * torch.rand(3, 4, generator=generator))
    instances.scores = torch.rand(3, generator=generator)
    instances.pred_classes = torch.tensor([0, 2, 1])
    instances.pred_keypoints = 60 * torch.rand(3, 17, 3, generator=generator)
    rows = [row for part in from_instances(instances, 5).rows() for row in part]
    assert rows == instances_to_coco_json(instances, 5)


def keypoint_file(folder):
    """One image with a person of 3 keypoints."""
    person = {
        **{"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 40], "area": 900},
        **{"iscrowd": 0, "keypoints": [15, 15, 2, 30, 20, 2, 20, 45, 1], "num_keypoints": 3},
    }
    content = {
        "images": [{"id": 7, "width": 80, "height": 60, "file_name": "7.jpg"}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person"}],
    }
    file = folder / "keypoints.json"
    file.write_text(json.dumps(content))
    return file, person


@pytest.fixture
def people(tmp_path):
    """A data set of one image, whose model finds the person and all keypoints but for 4 pixels."""
    file, person = keypoint_file(tmp_path)
    name = "one_person"
    MetadataCatalog.get(name).set(
        json_file=str(file),
        evaluator_type="coco",
        thing_classes=["person"],
        thing_dataset_id_to_contiguous_id={1: 0},
    )
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 40, 50]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    points = torch.tensor(person["keypoints"]).float().reshape(1, 3, 3)
    instances.pred_keypoints = points + torch.tensor([4.5, 0.5, 0])
    yield name, instances
    MetadataCatalog.remove(name)


def see(evaluator, instances):
    evaluator.reset()
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize(("sigma", "ap50"), [(0.5, 100), (0.02, 0)])
def test_sigmas_of_keypoints_are_the_configs(people, sigma, ap50):
    name, instances = people
    cfg = resnext_det.get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [sigma] * 3
    results = see(build_coco_evaluator(cfg, name), instances)
    # OKS, by hand: e to the -(4^2 / (2 sigma)^2 / (2 area))
    oks = math.exp(-16 / (2 * sigma) ** 2 / 1800)
    assert (oks > 0.5) == (ap50 == 100)
    assert results["keypoints"]["AP50"] == pytest.approx(ap50, abs=1e-6)
    assert "AP-person" not in results["keypoints"]  # as Detectron2 has it for one class
    names = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    assert list(results["keypoints"]) == names
    assert math.isnan(results["keypoints"]["APl"])


def test_sigmas_that_do_not_fit_the_keypoints_are_refused(people):
    name, instances = people
    evaluator = CocoEvaluator(name, ("keypoints",))
    with pytest.raises(UserError, match=r"has 17 values .* and objects have 3 keypoints"):
        see(evaluator, instances)


def test_a_size_without_objects_is_null_in_json(people, tmp_path):
    name, instances = people
    results = see(CocoEvaluator(name, output_dir=str(tmp_path / "out")), instances)
    assert math.isnan(results["bbox"]["APl"])

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    text = (tmp_path / "out/evaluation.json").read_text()
    evaluation = json.loads(text, parse_constant=refuse)
    assert evaluation["tasks"]["bbox"]["figures"]["APl"] is None
    about = {key: evaluation[key] for key in ("dataset", "images", "score", "limit", "tta")}
    expected = {"dataset": name, "images": 1, "score": 0.5, "limit": None, "tta": False}
    assert about == expected
    (row,) = evaluation["tasks"]["bbox"]["classes"]
    assert (row["name"], row["category_id"], row["objects"]) == ("person", 1, 1)
    assert row["precision"] == row["recall"] == 100


def test_a_failing_diagnosis_costs_no_figures(people, caplog):
    name, instances = people

    def fail(*_, **__):
        raise RuntimeError("no idea")

    expected = see(CocoEvaluator(name), instances)
    results = see(CocoEvaluator(name, diagnose=fail), instances)
    np.testing.assert_equal(results, expected)
    assert "could not be explained" in caplog.text


def test_findings_are_logged_with_their_remedy(people, caplog):
    caplog.set_level(logging.INFO)
    name, instances = people
    instances.pred_boxes = Boxes(torch.tensor([[60.0, 1, 70, 9]]))
    see(CocoEvaluator(name), instances)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(f"{name} bbox: " in line and "; " in line for line in warnings)
    information = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert any("APl are undefined" in line or "APl is undefined" in line for line in information)


def test_what_cannot_be_evaluated_is_refused_in_one_line(people, tmp_path):
    name, instances = people
    with pytest.raises(UserError, match=r"have no masks \(segmentation\), so segm cannot be"):
        see(CocoEvaluator(name, ("segm",)), instances)
    instances.scores = torch.tensor([math.nan])
    with pytest.raises(UserError, match=r"1 of 1 detections .* not finite, the first in image 7"):
        see(CocoEvaluator(name), instances)
    instances.pred_classes = torch.tensor([3])
    with pytest.raises(UserError, match=r"detects class 3, and one_person has 1 classes"):
        see(CocoEvaluator(name), instances)
    with pytest.raises(UserError, match=r"'fast' is not one of hotcoco, pycocotools"):
        CocoEvaluator(name, evaluator="fast")
    evaluator = CocoEvaluator(name)
    evaluator.process([{"image_id": 8}], [{"instances": instances[:0]}])
    with pytest.raises(UserError, match=r"keypoints.json has no image 8"):
        evaluator.evaluate()
    file = tmp_path / "keypoints.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["area"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 1 of image 7 has no 'area'"):
        see(CocoEvaluator(name), instances[:0])
    file.write_text("[")
    with pytest.raises(UserError, match=r"keypoints.json is not a COCO annotation file: JSON"):
        see(CocoEvaluator(name), instances[:0])


def test_a_test_set_without_annotations_gets_its_file_alone(people, tmp_path, caplog):
    name, instances = people
    file = tmp_path / "keypoints.json"
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    assert see(CocoEvaluator(name, output_dir=str(tmp_path / "out")), instances) == {}
    assert "has no annotations: nothing was evaluated" in caplog.text
    assert len(json.loads((tmp_path / "out/coco_instances_results.json").read_text())) == 1
    assert not (tmp_path / "out/evaluation.json").exists()


def test_proposals_are_evaluated_by_detectron2(people, tmp_path):
    name, _ = people
    proposals = Instances((60, 80))
    proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 40, 50], [0, 0, 9, 9]]))
    proposals.objectness_logits = torch.tensor([1.0, 2.0])
    ours, theirs = CocoEvaluator(name), COCOEvaluator(name, ("bbox",), use_fast_impl=False)
    for evaluator in (ours, theirs):
        evaluator.reset()
        evaluator.process([{"image_id": 7}], [{"proposals": proposals}])
    results = ours.evaluate()
    assert results["box_proposals"]["AR@100"] == pytest.approx(100)
    np.testing.assert_equal(results, theirs.evaluate())
