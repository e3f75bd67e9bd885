import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image

import resnext_det
from resnext_det import Predictor
from resnext_det.data.custom import CustomData, keep_with_run
from resnext_det.errors import UserError
from resnext_det.inference import to_dict
from resnext_det.modeling.build import build_detector
from tests.inference.models import QUICK, small_config, write_run

SIZES = ((80, 120), (100, 100), (120, 80), (80, 120), (96, 144), (100, 100), (40, 60))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (h // 10, w // 10, 3), dtype=np.uint8) for h, w in SIZES]
    return [
        np.asarray(Image.fromarray(c).resize((w, h), Image.Resampling.BICUBIC))
        for c, (h, w) in zip(coarse, SIZES, strict=True)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), small_config())


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(*run)


def assert_equal(ours: Instances, theirs: Instances, tolerance: float) -> None:
    assert ours.image_size == theirs.image_size
    assert ours.get_fields().keys() == theirs.get_fields().keys()
    assert len(ours) == len(theirs) > 0
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=tolerance, rtol=0)
    # pixels, of images of a hundred: relative to their size
    boxes = ours.pred_boxes.tensor, theirs.pred_boxes.tensor
    torch.testing.assert_close(*boxes, atol=100 * tolerance, rtol=0)
    if ours.has("pred_masks"):
        assert (ours.pred_masks != theirs.pred_masks).float().mean() < tolerance
    if ours.has("pred_keypoints"):
        keypoints = ours.pred_keypoints, theirs.pred_keypoints
        torch.testing.assert_close(*keypoints, atol=100 * tolerance, rtol=1e-3)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("heads", [{}, {"masks": True}, {"keypoints": True}])
def test_it_answers_what_detectron2s_predictor_answers(image_format, heads, images, tmp_path):
    cfg = small_config(image_format=image_format, **heads)
    cfg.MODEL.FAST_LAYERS = False
    cfg.MODEL.MEMORY_FORMAT = "contiguous"
    config, weights = write_run(tmp_path, cfg)
    ours = Predictor(config, weights)
    cfg.MODEL.WEIGHTS = str(weights)
    theirs = DefaultPredictor(cfg)
    for image in images[:3]:
        assert_equal(ours(image), theirs(image)["instances"], 0 if not heads else 1e-6)


def test_fast_layers_change_only_rounding(images, run):
    cfg = small_config()
    cfg.MODEL.WEIGHTS = str(run[1])
    theirs = DefaultPredictor(cfg)
    ours = Predictor(*run)
    assert {type(m).__name__ for m in ours.model.modules()} >= {"FoldingConv2d", "FastROIPooler"}
    for image in images:
        assert_equal(ours(image), theirs(image)["instances"], 1e-4)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("heads", [{}, {"masks": True}])
def test_a_batch_gives_what_single_images_give_in_their_order(batch_size, heads, images, tmp_path):
    run = write_run(tmp_path, small_config(**heads))
    single = Predictor(*run)
    seen = []
    together = Predictor(*run, batch_size=batch_size)
    forward = together.model.inference

    def record(batch, **kwargs):
        seen.append([tuple(item["image"].shape[1:]) for item in batch])
        return forward(batch, **kwargs)

    together.model.inference = record
    results = together(images)
    assert len(results) == len(images) == sum(map(len, seen))
    assert max(map(len, seen)) > 1
    assert all(len(set(shapes)) == 1 and len(shapes) <= batch_size for shapes in seen)
    for image, result in zip(images, results, strict=True):
        assert result.image_size == image.shape[:2]
        assert_equal(result, single(image), 1e-4)


def test_retinanet_is_run_too(images, tmp_path):
    cfg = resnext_det.get_cfg("retinanet_X50_32x4d_FPN")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 26
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    torch.save({"model": build_detector(cfg).state_dict()}, tmp_path / "w.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    ours, theirs = Predictor(cfg)(images[0]), DefaultPredictor(cfg)(images[0])["instances"]
    assert len(ours) == 5
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)


def test_a_lower_score_is_left_out(predictor, images):
    everything = predictor(images[0])
    score = everything.scores.median().item()
    found = predictor(images[0], score=score)
    assert 0 < len(found) < len(everything)
    torch.testing.assert_close(found.scores, everything.scores[everything.scores >= score])


def test_arrays_pil_images_and_paths_are_the_same_image(predictor, images, tmp_path):
    array = images[0]
    pil = Image.fromarray(array[:, :, ::-1])
    file = tmp_path / "image.png"
    pil.save(file)
    expected = predictor(array)
    for image in (pil, file, str(file)):
        assert_equal(predictor(image), expected, 0)
    for found in predictor((pil, file)):
        assert_equal(found, expected, 0)
    assert predictor([]) == []


def test_colour_order_matters(predictor, images):
    swapped = predictor(np.ascontiguousarray(images[0][:, :, ::-1]))
    original = predictor(images[0])
    assert len(swapped) != len(original) or not torch.allclose(swapped.scores, original.scores)


def test_dicts_hold_the_same_as_arrays(images, tmp_path):
    predictor = Predictor(*write_run(tmp_path, small_config(masks=True)))
    found, instances = predictor.predict_dicts(images[0]), predictor(images[0])
    assert {k: v.dtype for k, v in found.items() if k != "names"} == {
        "boxes": np.float32, "scores": np.float32, "classes": np.int64, "masks": bool,
    }  # fmt: skip
    assert found["masks"].shape == (len(instances), *images[0].shape[:2])
    np.testing.assert_array_equal(found["boxes"], instances.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(found["masks"], instances.pred_masks.numpy())
    classes = ("circle", "square", "triangle", "star", "cross")
    assert found["names"] == [classes[i] for i in instances.pred_classes]
    (again,) = predictor.predict_dicts([images[0]])
    np.testing.assert_array_equal(again["scores"], found["scores"])


def test_keypoints_have_names_and_a_row_each(images, tmp_path):
    predictor = Predictor(*write_run(tmp_path, small_config(keypoints=True)))
    assert predictor.class_names == ["person"]
    assert predictor.keypoint_names[0] == "nose"
    found = predictor.predict_dicts(images[0])
    assert found["keypoints"].shape == (len(found["names"]), len(predictor.keypoint_names), 3)


def test_nothing_found_has_arrays_of_length_0(predictor, images):
    found = to_dict(predictor(images[0], score=1.0), predictor.class_names)
    assert found["boxes"].shape == (0, 4)
    assert found["names"] == []


def test_a_shipped_name_a_file_and_a_config_are_the_same(run, predictor, images):
    cfg = small_config()
    before = cfg.clone()
    named = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160")
    named = (*named, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    expected = predictor(images[0])
    for other in (Predictor(cfg, run[1]), Predictor(QUICK, run[1], overrides=named)):
        assert_equal(other(images[0]), expected, 0)
    assert cfg == before and not cfg.is_frozen()
    assert predictor.cfg.is_frozen() and not predictor.model.training


def test_a_config_of_stock_detectron2_is_taken(run, predictor, images):
    stock = get_detectron2_cfg()
    stock.merge_from_file(str(run[0]))
    assert "RESNEXT" not in stock.MODEL
    assert_equal(Predictor(stock, run[1])(images[0]), predictor(images[0]), 0)
    stock.MODEL.MASK_ONN = True
    with pytest.raises(UserError, match=r"MODEL.MASK_ONN.*did you mean MODEL.MASK_ON"):
        Predictor(stock, run[1])


def test_a_run_names_its_own_classes(tmp_path):
    (tmp_path / "images").mkdir()
    names = ("a", "b", "c", "d", "e")
    data = CustomData("x.json", str(tmp_path), tuple(enumerate(names)))
    cfg = small_config()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("custom_of_this_test",)
    config, weights = write_run(tmp_path / "run", cfg)
    with pytest.raises(
        UserError, match=r"classes of custom_of_this_test.* not known.*datasets.json"
    ):
        Predictor(config, weights)
    keep_with_run(tmp_path, {"custom_of_this_test": data}, tmp_path / "run")
    assert Predictor(config, weights).class_names == list(names)
    MetadataCatalog.remove("custom_of_this_test")


def test_random_and_partial_weights_are_refused(run, tmp_path):
    config, weights = run
    with pytest.raises(UserError, match=r"no weights are given.*e.g. .*model_final.pth"):
        Predictor(config)
    catalogued = ["MODEL.WEIGHTS", "resnext://torchvision/X-50-32x4d"]
    with pytest.raises(UserError, match=r"a backbone alone; .*e.g. .*model_final.pth"):
        Predictor(config, overrides=catalogued)
    content = torch.load(weights, weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if "bottom_up" in k}
    backbone = tmp_path / "backbone.pth"
    torch.save(content, backbone)
    with pytest.raises(UserError, match=r"tensors of the model did not load.*a backbone alone"):
        Predictor(config, backbone)
    with pytest.raises(UserError, match="absent.pth does not exist"):
        Predictor(config, tmp_path / "absent.pth")


def test_without_a_gpu_it_runs_on_the_cpu_and_says_so(run, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = small_config()
    cfg.MODEL.DEVICE = "cuda"
    with caplog.at_level(logging.WARNING):
        assert Predictor(cfg, run[1]).cfg.MODEL.DEVICE == "cpu"
    assert "no GPU is visible: running on the CPU" in caplog.text
    with pytest.raises(UserError, match="MODEL.DEVICE cuda: no GPU is visible"):
        Predictor(cfg, run[1], device="cuda")
    with pytest.raises(UserError, match="MODEL.DEVICE cuda:1: no GPU is visible"):
        Predictor(run[0], run[1], overrides=["MODEL.DEVICE", "cuda:1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "banana"}, "MODEL.DEVICE 'banana' is not a device"),
        ({"batch_size": 0}, "batch size 0"),
        ({"overrides": ["INPUT.FORMAT", "L"]}, "INPUT.FORMAT L"),
        ({"overrides": ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]}, "ProposalNetwork"),
        ({"overrides": ["MODEL.LOAD_PROPOSALS", "True"]}, "another one's proposals"),
        ({"overrides": ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]}, "has 5 classes.*NUM_CLASSES is 3"),
        ({"overrides": ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"]}, "DATASETS.TEST is empty"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(change, message, run):
    with pytest.raises(UserError, match=message) as caught:
        Predictor(*run, **change)
    assert "\n" not in str(caught.value)


def test_overrides_do_not_go_with_a_config_object(run):
    with pytest.raises(UserError, match="change the config itself"):
        Predictor(small_config(), run[1], overrides=["MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), "x", None, np.zeros(2)])
def test_a_score_that_is_none_is_refused(score, predictor, images):
    with pytest.raises(UserError, match="a threshold is a number from 0 to 1"):
        predictor(images[0], score=score)


def test_an_image_too_narrow_to_resize_is_refused(predictor):
    with pytest.raises(UserError, match="3000 x 1 pixels is too narrow"):
        predictor(np.zeros((1, 3000, 3), np.uint8))


def test_max_pixels_bounds_every_kind_of_image(run, images, tmp_path):
    small = Predictor(*run, max_pixels=99)
    file = tmp_path / "image.png"
    Image.fromarray(images[0]).save(file)
    for image in (images[0], Image.fromarray(images[0]), file):
        with pytest.raises(UserError, match="120 x 80 pixels, more than 99"):
            small(image)


def test_images_of_many_sizes_do_not_pile_up(run):
    predictor = Predictor(*run, batch_size=2)
    waiting, most = set(), 0
    prepare, infer = predictor._prepare, predictor._infer

    def record_prepare(image):
        nonlocal most
        item = prepare(image)
        waiting.add(id(item["image"]))
        most = max(most, len(waiting))
        return item

    def record_infer(batch, score):
        waiting.difference_update(id(item["image"]) for item in batch)
        return infer(batch, score)

    predictor._prepare, predictor._infer = record_prepare, record_infer
    sizes = [40 + number for number in range(20)]
    results = predictor([np.zeros((40, width, 3), np.uint8) for width in sizes])
    assert [r.image_size for r in results] == [(40, width) for width in sizes]
    assert not waiting
    assert 1 < most <= 8
