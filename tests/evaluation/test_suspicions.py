import json
import math
import re

import hotcoco
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

import resnext_det
from resnext_det.config import config_names
from resnext_det.data.custom import CustomData
from resnext_det.evaluation.diagnosis import diagnose
from resnext_det.evaluation.evaluator import CocoEvaluator
from resnext_det.evaluation.probe import input_variants, probe_input, probe_model
from resnext_det.evaluation.suspicions import compare_with_paper, suspect_input, suspect_training
from resnext_det.evaluation.training import RunMetrics, metrics_if_any
from resnext_det.paper import TABLE8, table8_row

RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PAPER_CONFIGS = [f"{kind}_rcnn_{row}" for kind in ("faster", "paper/fast") for row in TABLE8]


def config(name="faster_rcnn_X50_32x4d_FPN", form="RGB", mean=RGB_MEAN, std=RGB_STD, **model):
    cfg = resnext_det.get_cfg(name)
    cfg.INPUT.FORMAT = form
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(mean), list(std)
    for key, value in model.items():
        cfg.MODEL[key] = value
    return cfg


@pytest.mark.parametrize(
    "form, mean, std, words",
    [
        ("BGR", RGB_MEAN, RGB_STD, r"in the order RGB \(INPUT.FORMAT BGR, PIXEL_MEAN \[123"),
        ("RGB", RGB_MEAN[::-1], RGB_STD, "in the order BGR"),
        ("RGB", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "for images of 0..1"),
        ("RGB", [0.485, 0.456, 0.406], RGB_STD, "for images of 0..1"),
        ("RGB", [0.0, 0.0, 0.0], [0.229, 0.224, 0.225], "for images of 0..1"),
        ("RGB", RGB_MEAN, [1.0, 1.0, 1.0], "divide by a std near 57"),
    ],
)
def test_an_input_that_does_not_go_together_is_suspected(form, mean, std, words):
    finding = suspect_input(config(form=form, mean=mean, std=std))
    assert finding.code == "input_suspected"
    assert re.search(words, finding.message)


def test_detectron2s_own_input_is_not_suspected():
    assert suspect_input(get_detectron2_cfg()) is None  # BGR, MSRA's mean, std 1, a ResNet
    assert suspect_input(config(form="BGR", mean=RGB_MEAN[::-1], std=RGB_STD[::-1])) is None
    assert suspect_input(config(mean=[0, 0, 0], std=[255, 255, 255])) is None


@pytest.mark.parametrize("name", config_names())
def test_no_shipped_config_is_suspected(name):
    assert suspect_input(resnext_det.get_cfg(name)) is None


def losses(values, step=20):
    return [{"iteration": step * (i + 1) - 1, "total_loss": float(v)} for i, v in enumerate(values)]


def test_training_that_stopped_early_is_told():
    finding = suspect_training(losses(np.ones(20)), max_iter=1000)
    assert finding.code == "undertrained"
    assert "stopped at iteration 400 of 1000" in finding.message
    assert suspect_training(losses(np.ones(50)), max_iter=1000) is None
    assert suspect_training(losses(np.ones(20))) is None  # of a schedule that is not known


def test_an_evaluations_row_counts_iterations_as_a_losses_row_does():
    rows = [*losses(np.ones(20)), {"iteration": 400, "bbox/AP": 1.0}]
    assert "iteration 400 of" in suspect_training(rows, max_iter=1000).message


def test_hardly_any_iteration_is_told():
    assert "training had 40 iterations" in suspect_training(losses([2, 1]), max_iter=40).message
    assert suspect_training(losses(np.ones(50))) is None


def test_a_loss_that_still_falls_is_told():
    finding = suspect_training(losses(np.linspace(3, 0.5, 40)))
    assert "the loss still fell by" in finding.message
    flat = np.concatenate([np.linspace(3, 1, 20), np.full(20, 1.0)])
    assert suspect_training(losses(flat)) is None
    assert suspect_training(losses(np.linspace(3, 2, 40))) is None  # by 3.7% at the end
    noisy = 1 + 0.1 * np.random.default_rng(0).normal(size=80)
    assert suspect_training(losses(noisy)) is None


def test_random_weights_are_told_where_no_training_is_known():
    assert "random weights" in suspect_training((), weights="").message
    assert suspect_training((), weights="model_final.pth") is None
    assert suspect_training(()) is None  # of a results file, whose model nobody knows


def test_the_schedule_is_that_of_the_run_and_not_the_evaluations(tmp_path):
    """Evaluated with a config of another schedule, a finished run is finished."""
    rows = losses(np.ones(50))
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    cfg = config("faster_rcnn_X50_32x4d", WEIGHTS="x.pth")
    cfg.SOLVER.MAX_ITER = 90_000

    def codes():
        metrics = metrics_if_any(tmp_path / "metrics.json")
        found = diagnose(
            *one_object(10), "bbox", {"AP": 2.0, "AP50": 50.0}, cfg=cfg, metrics=metrics
        )
        return [finding.code for finding in found]

    assert codes() == ["low_ap"]
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 1000}")
    assert codes() == ["low_ap"]
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 5000}")
    assert codes() == ["undertrained"]
    (tmp_path / "config.yaml").write_text("train: {max_iter: 5000}")  # of a Python config
    assert codes() == ["undertrained"]
    (tmp_path / "config.yaml").write_text("SOLVER: [")
    assert codes() == ["low_ap"]


@pytest.mark.parametrize("name", PAPER_CONFIGS)
def test_every_row_of_table_8_is_recognised(name):
    row = name.split("rcnn_")[1]
    cfg = resnext_det.get_cfg(name)
    assert table8_row(cfg) == row
    finding = compare_with_paper(cfg, TABLE8[row]["AP"] - 3.1, 5000)
    assert finding.code == "far_below_paper"
    assert f"3.1 points below the paper's {TABLE8[row]['AP']} of {row}" in finding.message
    assert compare_with_paper(cfg, TABLE8[row]["AP"] - 2.9, 5000) is None
    assert compare_with_paper(cfg, 1.0, 100) is None  # a part of the images


def test_other_networks_and_data_are_no_row_of_table_8():
    names = [name for name in config_names() if name not in PAPER_CONFIGS]
    assert len(names) > 15
    for name in names:
        assert table8_row(resnext_det.get_cfg(name)) is None, name
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    cfg.DATASETS.TEST = ("custom_val",)
    assert table8_row(cfg) is None
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    cfg.MODEL.RESNEXT.RESIDUAL = False
    assert table8_row(cfg) is None


def one_object(images):
    content = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, 81)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 9, 9],
                "area": 81,
                "iscrowd": 0,
            }
        ],
    }
    truth = hotcoco.COCO(content)
    hit = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}
    return truth, truth.load_res([hit])


def test_the_diagnosis_asks_config_and_training_of_a_low_ap_alone():
    cfg = config("faster_rcnn_X50_32x4d", form="BGR", WEIGHTS="x.pth")

    def codes(ap, images=5000, trained=True):
        metrics = RunMetrics(losses(np.ones(20)), max_iter=1000) if trained else ()
        found = diagnose(
            *one_object(images), "bbox", {"AP": ap, "AP50": 50.0}, cfg=cfg, metrics=metrics
        )
        return [finding.code for finding in found]

    assert codes(2.0) == ["far_below_paper", "input_suspected", "undertrained"]
    assert codes(24.0) == ["far_below_paper", "input_suspected", "undertrained"]
    assert codes(24.0, images=10) == ["undertrained"]
    assert codes(31.0) == []
    assert codes(24.4, trained=False) == ["far_below_paper", "input_suspected"]
    assert codes(24.6, trained=False) == []
    found = diagnose(*one_object(5000), "bbox", {"AP": 2.0, "AP50": 50.0}, cfg=cfg, metrics=None)
    assert [f.code for f in found] == ["input_suspected"]  # amid training AP is low by nature
    cfg.INPUT.FORMAT = "RGB"
    assert codes(2.0, trained=False) == ["far_below_paper", "low_ap"]
    assert codes(24.0, trained=False) == ["far_below_paper"]


def test_variants_are_the_other_order_and_the_other_std():
    cfg = config()
    words = [name for name, _ in input_variants(cfg)]
    flipped = "INPUT.FORMAT BGR MODEL.PIXEL_MEAN [103.53,116.28,123.675]"
    assert words == [
        "MODEL.PIXEL_STD [1.0,1.0,1.0]",
        "INPUT.FORMAT BGR",
        "INPUT.FORMAT BGR MODEL.PIXEL_STD [1.0,1.0,1.0]",
        f"{flipped} MODEL.PIXEL_STD [57.375,57.12,58.395]",
        f"{flipped} MODEL.PIXEL_STD [1.0,1.0,1.0]",
    ]
    for name, variant in input_variants(cfg):
        applied = cfg.clone()
        applied.merge_from_list(name.split(" "))  # what a user pastes
        assert applied == variant
    assert cfg == config()
    names = [name for name, _ in input_variants(get_detectron2_cfg())]
    assert "MODEL.PIXEL_STD [57.375,57.12,58.395]" in names
    assert input_variants(config(form="L")) == []


@pytest.mark.parametrize(
    "base, better, found",
    [(1.0, 30.0, True), (1.0, 5.9, False), (20.0, 39.0, False), (20.0, 41.0, True)],
)
def test_a_variant_has_to_be_better_by_far(base, better, found):
    def evaluate(cfg):
        right = cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.PIXEL_STD[0] != 1
        return better if right else base

    finding = probe_input(evaluate, config())
    assert (finding is not None) == found
    if found:
        assert finding.code == "input_wrong"
        assert f"is {base:.1f}, and {better:.1f} with INPUT.FORMAT BGR" in finding.message


def test_an_undefined_ap_of_all_variants_finds_nothing():
    assert probe_input(lambda cfg: math.nan, config()) is None
    frozen = config()
    frozen.freeze()
    assert probe_input(lambda cfg: 10.0, frozen) is None


class RedFinder(nn.Module):
    """Detects the red rectangle of an image, if channels come as RGB over a std near 57."""

    def __init__(self, cfg):
        super().__init__()
        self.input_format = cfg.INPUT.FORMAT
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(cfg.MODEL[name.upper()]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, inputs):
        assert not self.training
        outputs = []
        for item in inputs:
            image = (item["image"] - self.pixel_mean) / self.pixel_std
            red = (image[0] > 1) & (image[0] < 3) & (image[2] < 0)
            instances = Instances(tuple(image.shape[1:]))
            rows, columns = red.nonzero(as_tuple=True)
            boxes = torch.zeros(0, 4)
            if len(rows):
                ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                boxes = torch.stack(ends).float()[None]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.ones(len(boxes))
            instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


@pytest.fixture
def red_rectangles(tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}]}
    random = np.random.default_rng(0)
    for number in range(1, 7):
        x, y, w, h = (int(v) for v in random.integers(10, 30, 4))
        pixels = np.full((64, 64, 3), 110, np.uint8)
        pixels[y : y + h, x : x + w] = (230, 30, 20)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        image = {"id": number, "width": 64, "height": 64, "file_name": f"{number}.png"}
        content["images"].append(image)
        thing = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
        content["annotations"].append({**thing, "area": w * h, "iscrowd": 0})
    (tmp_path / "red.json").write_text(json.dumps(content))
    CustomData.read(str(tmp_path / "red.json"), str(tmp_path)).register("red_rectangles")
    yield "red_rectangles"
    DatasetCatalog.remove("red_rectangles")
    MetadataCatalog.remove("red_rectangles")


def probe(cfg, dataset, model):
    cfg.INPUT.MIN_SIZE_TEST = 64
    seen = []

    def loader(variant):
        loaded = build_detection_test_loader(
            DatasetCatalog.get(dataset), mapper=DatasetMapper(variant, is_train=False)
        )
        for inputs in loaded:
            seen.append(inputs[0]["image_id"])
            yield inputs

    def evaluator():
        return CocoEvaluator(dataset, distributed=False, limit=4, diagnose=lambda *_, **__: [])

    return probe_model(model, loader, evaluator, cfg, images=4), seen


@pytest.mark.parametrize(
    "form, std, words",
    [
        ("BGR", RGB_STD, "with INPUT.FORMAT RGB"),
        ("RGB", [1.0, 1.0, 1.0], "with MODEL.PIXEL_STD [58.395,57.12,57.375]"),
    ],
)
def test_a_model_tells_how_it_wants_its_images_and_is_left_as_it_was(
    red_rectangles, form, std, words
):
    cfg = config(form=form, std=std)
    model = RedFinder(cfg).train()
    buffers = model.pixel_mean, model.pixel_std
    finding, seen = probe(cfg, red_rectangles, model)
    assert words in finding.message and "is 0.0, and 100.0" in finding.message
    assert set(seen) == {1, 2, 3, 4}
    assert model.training and model.input_format == form
    assert model.pixel_mean is buffers[0] and model.pixel_std is buffers[1]
    assert torch.equal(model.pixel_mean.flatten(), torch.tensor(RGB_MEAN))
    assert torch.equal(model.pixel_std.flatten(), torch.tensor(std))


def test_a_model_that_is_fed_well_has_no_finding(red_rectangles):
    cfg = config()
    finding, _ = probe(cfg, red_rectangles, RedFinder(cfg).eval())
    assert finding is None


def test_a_probe_that_fails_leaves_the_model_as_it_was():
    cfg = config()
    model = RedFinder(cfg)

    def broken(variant):
        if variant.INPUT.FORMAT != cfg.INPUT.FORMAT:
            raise RuntimeError("no images")
        return []

    class Nothing:
        def reset(self):
            pass

        def evaluate(self):
            return {"bbox": {"AP": 0.0}}

    with pytest.raises(RuntimeError, match="no images"):
        probe_model(model, broken, Nothing, cfg)
    assert model.training and model.input_format == "RGB"
    assert torch.equal(model.pixel_std.flatten(), torch.tensor(RGB_STD))
