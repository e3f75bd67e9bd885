"""Optimised detectors against the detectors that they are made of, on noise."""

import copy
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import FPN
from detectron2.structures import Boxes, Instances

from resnext_det.deploy import engines, optimize
from resnext_det.deploy.folding import fold_norms
from resnext_det.errors import UserError
from tests.deploy.models import SIZES, assert_same, detections, detector, images
from tests.helpers import randomise

KINDS = (
    "fpn",
    "mask fpn",
    "keypoint fpn",
    "cascade fpn",
    "retinanet",
    "c4",
    "mask c4",
    "paper c4",
    "form a fpn",
    "norm BN fpn",
    "norm GN fpn",
    "detectron2 fpn",
    "detectron2 mask c4",
)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_stay_the_same(kind):
    model = detector(kind)
    fast = optimize(model, engine="openvino")
    for inputs in ([image] for image in images(*SIZES)):
        for found, expected in zip(
            detections(fast, inputs), detections(model, inputs), strict=True
        ):
            assert_same(found, expected)


def test_proposals_of_an_rpn_alone_stay_the_same():
    model = detector("rpn")
    with torch.no_grad():
        expected = model(images())[0]["proposals"]
        found = optimize(model, engine="openvino")(images())[0]["proposals"]
    assert len(expected) > 0
    boxes = found.proposal_boxes.tensor, expected.proposal_boxes.tensor
    torch.testing.assert_close(*boxes, rtol=0, atol=0.01)


def test_detections_in_given_proposals_stay_the_same():
    model = detector("precomputed")
    inputs = images()
    proposals = Instances(SIZES[0])
    corners = torch.tensor([[0, 0, 60, 60], [10, 20, 120, 90], [50, 5, 100, 40]])
    proposals.proposal_boxes = Boxes(corners.float())
    proposals.objectness_logits = torch.zeros(len(corners))
    inputs[0]["proposals"] = proposals
    assert_same(
        detections(optimize(model, engine="openvino"), inputs)[0], detections(model, inputs)[0]
    )


def test_a_batch_of_several_sizes_gives_the_same_detections():
    model = detector()
    inputs = images(*SIZES)
    for found, expected in zip(
        detections(optimize(model, engine="openvino"), inputs),
        detections(model, inputs),
        strict=True,
    ):
        assert_same(found, expected)


def test_eager_layers_give_the_same_detections():
    model = detector("mask fpn")
    fast = optimize(model, engine="eager")
    assert_same(detections(fast, images())[0], detections(model, images())[0])


def test_torch_compile_gives_the_same_detections_and_compiles_once_for_all_sizes():
    if reason := engines.why_missing("torch.compile"):
        pytest.skip(reason)
    model = detector("mask fpn")
    fast = optimize(model, engine="torch.compile")
    detections(fast, images((128, 128)))
    detections(fast, images(SIZES[0], SIZES[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for inputs in ([image] for image in images(*SIZES)):
            assert_same(detections(fast, inputs)[0], detections(model, inputs)[0])
        inputs = images(*SIZES)
        for found, expected in zip(
            detections(fast, inputs), detections(model, inputs), strict=True
        ):
            assert_same(found, expected)


def test_openvino_compiles_once_for_all_sizes(monkeypatch):
    import openvino

    fast = optimize(detector(), engine="openvino")
    monkeypatch.setattr(openvino, "compile_model", None)
    monkeypatch.setattr(openvino.Core, "compile_model", None)
    for image in images(*SIZES):
        assert len(detections(fast, [image])[0])


@pytest.mark.parametrize("engine", ["openvino", "eager"])
def test_bf16_rounds_features_to_eight_bits(engine):
    model = detector()
    try:
        fast = optimize(model, "bf16", engine=engine)
    except UserError as error:
        pytest.skip(str(error))
    pixels = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        found, expected = fast.backbone(pixels), model.backbone(pixels)
    for name, feature in expected.items():
        assert found[name].dtype == torch.float32
        error = (found[name] - feature).norm() / feature.norm()
        assert 2**-12 < error < 2**-5  # neither float32, nor worse than layers of 2**-9 each


@pytest.mark.parametrize("engine", ["openvino", "eager"])
def test_features_outlive_the_next_image(engine):
    fast = optimize(detector(), engine=engine)
    with torch.no_grad():
        first = fast.backbone(torch.ones(1, 3, 96, 128))
        kept = {name: feature.clone() for name, feature in first.items()}
        for _ in range(3):
            fast.backbone(torch.zeros(1, 3, 96, 128))
    for name, feature in first.items():
        torch.testing.assert_close(feature, kept[name], rtol=0, atol=0)


def test_threads_do_not_disturb_each_other():
    fast = optimize(detector(), engine="openvino", streams=2)
    inputs = images(*SIZES)
    expected = [detections(fast, [image])[0].scores for image in inputs]
    found = {}

    def work(index):
        found[index] = [detections(fast, [inputs[index]])[0].scores for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, scores in enumerate(expected):
        for again in found[index]:
            torch.testing.assert_close(again, scores, rtol=0, atol=1e-5)


def test_the_interface_is_the_detectors():
    model = detector("mask fpn")
    fast = optimize(model, engine="openvino")
    assert type(fast) is type(model)
    assert fast.device == model.device
    assert fast.backbone.output_shape() == model.backbone.output_shape()
    assert fast.backbone.size_divisibility == model.backbone.size_divisibility
    with torch.no_grad():
        given = fast.inference(images(), do_postprocess=False)
        kept = copy.deepcopy(given)
        again = fast.inference(images(), given)  # masks of given boxes, as TTA asks for
    expected = detections(model, images())[0]
    assert_same(again[0]["instances"], expected)
    assert not kept[0].has("height")


def test_the_original_stays_as_it_was():
    model = detector()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    before = detections(model, images())[0].scores
    optimize(model, engine="openvino")
    assert classes == [type(m) for m in model.modules()]
    assert not any("forward" in vars(m) for m in model.modules())
    assert list(weights) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert torch.equal(before, detections(model, images())[0].scores)
    model.train()


def test_what_is_compiled_leaves_no_second_copy_of_its_weights():
    fast = optimize(detector("mask fpn"), engine="openvino")
    left = {name.rsplit(".", 1)[0] for name, _ in fast.named_parameters()}
    assert left == {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}


def test_an_optimised_detector_refuses_training():
    fast = optimize(detector(), engine="eager")
    assert fast.eval() is fast and fast.train(False) is fast
    with pytest.raises(UserError, match="cannot be trained"):
        fast.train()


def test_an_optimised_detector_refuses_to_be_saved_without_its_weights(tmp_path):
    model = detector()
    fast = optimize(model, engine="openvino")
    for attempt in (
        fast.state_dict,
        lambda: fast.load_state_dict(model.state_dict()),
        lambda: copy.deepcopy(fast),
        lambda: DetectionCheckpointer(fast, str(tmp_path)).save("half"),
    ):
        with pytest.raises(UserError, match="cannot be saved, loaded or copied"):
            attempt()
    with pytest.raises(UserError, match="optimised already"):
        optimize(fast)


@pytest.mark.parametrize("kind", ["mask fpn", "mask c4", "keypoint fpn"])
def test_no_detection_is_an_answer(kind):
    model = detector(kind)
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    found = detections(optimize(model, engine="openvino"), images())[0]
    expected = detections(model, images())[0]
    assert len(found) == 0
    for name in expected.get_fields():
        assert found.has(name)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_number_of_channels_are_taken(channels):
    model = detector()
    stem = model.backbone.bottom_up.stem.conv1
    stem.weight = torch.nn.Parameter(torch.randn(len(stem.weight), channels, 7, 7) * 0.1)
    model.pixel_mean, model.pixel_std = torch.full((2, channels, 1, 1), 100.0)
    inputs = [{"image": torch.rand(channels, *SIZES[0]) * 255}]
    found = detections(optimize(model, engine="openvino"), inputs)[0]
    assert_same(found, detections(model, inputs)[0])


def test_gradients_and_autocast_around_it_change_nothing():
    model = detector("mask paper c4")
    with torch.autocast("cpu"):
        fast = optimize(model, engine="openvino")
    assert_same(fast(images())[0]["instances"], detections(model, images())[0])


def test_wrong_arguments_are_one_line():
    model = detector()
    with pytest.raises(UserError, match="precision 'fp16' is not one of f32, bf16"):
        optimize(model, "fp16")
    with pytest.raises(UserError, match="engine 'tensorrt' is not one of openvino"):
        optimize(model, engine="tensorrt")
    for streams in (0, 1.5, "2"):
        with pytest.raises(UserError, match="give a whole number from 1"):
            optimize(model, streams=streams)
    with pytest.raises(UserError, match="the model is in torch.float64"):
        optimize(detector().double())
    with pytest.raises(UserError, match="Linear cannot be optimised"):
        optimize(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="the model is on meta"):
        optimize(copy.deepcopy(model).to("meta"))


class BoundToItsSize(FPN):
    """Resizes a map by Python numbers, which tracing keeps as constants."""

    def forward(self, x):
        maps = super().forward(x)
        size = int(x.shape[2]) // 4, int(x.shape[3]) // 4
        return maps | {"p2": torch.nn.functional.interpolate(maps["p2"], size=size)}


def test_a_part_that_tracing_binds_to_one_size_is_refused():
    model = detector()
    model.backbone.__class__ = BoundToItsSize
    with pytest.raises(UserError, match="backbone depends on the size of the image"):
        optimize(model, engine="openvino")
    fast = optimize(model, engine="eager")
    for image in images(*SIZES):
        assert_same(detections(fast, [image])[0], detections(model, [image])[0])


def test_without_openvino_the_next_engine_runs_and_the_faster_is_named(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        chosen = engines.choose_engine()
    assert chosen in ("torch.compile", "eager")
    assert "pip install 'resnext_det[openvino]'" in caplog.text
    with pytest.raises(UserError, match=r"pip install 'resnext_det\[openvino\]'"):
        engines.choose_engine("openvino")
    monkeypatch.setattr(engines.shutil, "which", lambda program: None)
    assert engines.choose_engine() == "eager"
    with pytest.raises(UserError, match="install g\\+\\+"):
        engines.choose_engine("torch.compile")


def test_a_compiler_that_cannot_compile_is_passed_over(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo g++; exit 0; fi\n'
        'echo "x.cpp:3:10: fatal error: Python.h: No such file or directory" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    words = """
import logging, sys
logging.basicConfig()
sys.modules["openvino"] = None
from resnext_det.deploy import engines
assert engines.choose_engine() == "eager"
"""
    settings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", words],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stderr
    openvino, compiled = done.stderr.splitlines()
    assert "pip install 'resnext_det[openvino]'" in openvino
    assert "torch.compile fails here (x.cpp:3:10: fatal error: Python.h" in compiled
    assert compiled.endswith("install g++ and the headers of Python")


def test_an_openvino_that_fails_while_it_is_imported_is_passed_over(tmp_path, monkeypatch, caplog):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino/__init__.py").write_text("raise AttributeError('_ARRAY_API not found')")
    for name in [n for n in sys.modules if n.split(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert engines.choose_engine() != "openvino"
    assert "cannot be imported (_ARRAY_API not found)" in caplog.text


def test_an_openvino_that_cannot_be_imported_whole_is_passed_over(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino.tools.ovc", None)
    with caplog.at_level(logging.WARNING):
        assert engines.choose_engine() != "openvino"
    assert "openvino.tools.ovc cannot be imported" in caplog.text


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True}
    )
    with pytest.raises(UserError, match="no bfloat16 instructions"):
        optimize(detector(), "bf16", engine="eager")


def test_importing_loads_no_engine_and_optimising_reports_to_nobody():
    words = """
import sys, resnext_det, resnext_det.deploy
assert not {"openvino", "onnxruntime", "nncf", "onnx"} & set(sys.modules)
from resnext_det.deploy import optimize
from resnext_det.deploy.optional import import_package
import_package("openvino.tools.ovc"), import_package("nncf")
assert "openvino_telemetry" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN", ""])
@pytest.mark.parametrize("groups", [1, 4])
def test_folding_keeps_what_a_layer_computes(norm, groups):
    layer = Conv2d(
        32, 64, 3, groups=groups, norm=get_norm(norm, 64), activation=torch.nn.ReLU(), bias=True
    )
    randomise(layer).eval()
    folded = fold_norms(layer)
    assert (folded.norm is None) == (norm != "GN")
    assert layer.norm is None or layer.norm is not folded.norm
    x = torch.randn(2, 32, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)


def test_folding_takes_the_running_statistics_as_frozen_norms_do():
    layer = Conv2d(8, 16, 1, bias=False, norm=get_norm("BN", 16))
    randomise(layer).eval()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(layer))
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(fold_norms(layer)(x), frozen(x), rtol=1e-5, atol=1e-5)
