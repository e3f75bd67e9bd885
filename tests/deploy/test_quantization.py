"""int8 detectors: what quantisation changes, what is written, what is refused."""

import hashlib
import json
import logging
import subprocess
import sys

import pytest
import torch

from resnext_det.deploy.quantization import quantize
from resnext_det.deploy.quantized import optimize_as
from resnext_det.errors import UserError
from tests.deploy.models import detections, detector, images
from tests.helpers import REPO, randomise

SIZES = ((96, 128), (128, 96), (96, 96))


@pytest.fixture(scope="module")
def model():
    return detector("mask fpn")


@pytest.fixture(scope="module")
def quantized(model):
    return quantize(model, [[image] for image in images(*SIZES)])


@pytest.fixture
def folder(quantized, tmp_path):
    quantized.save(tmp_path / "int8", {"note": "of a test"})
    return tmp_path / "int8"


def test_layers_compute_in_int8_near_float32(model, quantized):
    fast = quantized.detector(model)
    pixels = model.preprocess_image(images(SIZES[0])).tensor
    with torch.no_grad():
        found, expected = fast.backbone(pixels), model.backbone(pixels)
    for name, feature in expected.items():
        error = (found[name] - feature).norm() / feature.norm()
        assert 1e-3 < error < 0.1, name  # 8 bits in each of 26 layers; float32 has 1e-6
    kinds = {op.get_type_name() for op in quantized.models["backbone"].get_ops()}
    assert "FakeQuantize" in kinds


def test_weights_are_stored_in_one_byte(model, folder):
    part = model.backbone
    count = sum(p.numel() for p in part.parameters())
    assert (folder / "backbone.bin").stat().st_size < 1.5 * count < 4 * count


def test_what_was_written_computes_what_was_quantised(model, quantized, folder):
    image = images(SIZES[1])
    expected = detections(quantized.detector(model), image)[0]
    found = detections(optimize_as(model, str(folder)), image)[0]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-2
    )


def test_another_size_than_those_of_calibration_runs(model, quantized):
    assert len(detections(quantized.detector(model), images((64, 160)))[0])


def test_an_int8_model_replaces_an_older_one_and_nothing_else(quantized, folder, tmp_path):
    (folder / "left.xml").write_text("of an older version")
    quantized.save(folder, {"note": "new"})
    assert json.loads((folder / "quantized.json").read_text())["note"] == "new"
    assert not (folder / "left.xml").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    with pytest.raises(UserError, match="photos is in the way"):
        quantized.save(tmp_path / "photos", {})
    assert (tmp_path / "photos/1.jpg").exists()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="link is a link"):
        quantized.save(tmp_path / "link", {})
    assert not list(tmp_path.glob(".writing-*"))


def test_other_weights_are_refused(folder):
    other = randomise(detector("mask fpn"), seed=1)
    with pytest.raises(UserError, match="made of another detector, or other weights"):
        optimize_as(other, str(folder))


def test_another_detector_is_refused_though_its_weights_are_the_same(model, folder):
    with pytest.raises(UserError, match="made of another detector"):
        optimize_as(detector("fpn"), str(folder))
    averaging = detector("mask fpn")
    averaging.backbone._fuse_type = "avg"
    with pytest.raises(UserError, match="made of another detector"):
        optimize_as(averaging, str(folder))
    strided = detector("mask fpn")
    strided.backbone.bottom_up.res3[0].conv2.padding = (2, 2)
    with pytest.raises(UserError, match="made of another detector"):
        optimize_as(strided, str(folder))


def test_another_threshold_is_no_other_detector(folder):
    lenient = detector("mask fpn")
    lenient.roi_heads.box_predictor.test_score_thresh = 0.4
    found = detections(optimize_as(lenient, str(folder)), images(SIZES[0]))[0]
    assert len(found) and found.scores.min() > 0.4


def swap(folder):
    names = [f"{part}.xml" for part in ("proposal_generator.rpn_head", "roi_heads.box_head")]
    contents = [(folder / name).read_bytes() for name in names]
    for name, content in zip(names, reversed(contents), strict=True):
        (folder / name).write_bytes(content)
    edit(folder, sha256=dict(sorted(record(folder)["sha256"].items(), reverse=True)))


def make_unreadable(folder):
    (folder / "backbone.xml").write_text("<net")
    digest = hashlib.sha256(b"<net").hexdigest()
    edit(folder, sha256={**record(folder)["sha256"], "backbone.xml": digest})


def record(folder):
    return json.loads((folder / "quantized.json").read_text())


def edit(folder, **changes):
    file = folder / "quantized.json"
    file.write_text(json.dumps({**record(folder), **changes}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "quantized.json").unlink(), "holds no int8 model"),
        (lambda f: (f / "quantized.json").write_text("{"), "holds no int8 model"),
        (lambda f: (f / "quantized.json").write_text("[1]"), "holds no int8 model"),
        (lambda f: (f / "quantized.json").write_text(" " * 2**21), "too large"),
        (lambda f: edit(f, version=2), "version 2 is not 1"),
        (lambda f: (f / "quantized.json").write_text("[" * 10**5), "holds no int8 model"),
        (lambda f: edit(f, sha256={"../backbone.xml": "0"}), "names a file '../backbone.xml'"),
        (lambda f: edit(f, sha256=[1]), "holds no int8 model"),
        (lambda f: edit(f, sha256={}), "lacks the detector's backbone"),
        (lambda f: (f / "backbone.xml").write_text("<net"), "backbone.xml is damaged"),
        (lambda f: (f / "backbone.bin").write_bytes(b"1"), "backbone.bin is damaged"),
        (lambda f: (f / "backbone.xml").unlink(), "backbone.xml is absent"),
        (swap, "roi_heads.box_head.* is damaged"),
        (make_unreadable, "cannot be read by this OpenVINO"),
    ],
)
def test_a_damaged_folder_is_one_line(model, folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        optimize_as(model, str(folder))
    assert "\n" not in str(error.value)


def test_int8_without_images_says_where_it_is_made(model, tmp_path):
    with pytest.raises(UserError, match="run tools/train_net.py --eval-only --optimize int8"):
        optimize_as(model, "int8")
    for how in (str(tmp_path / "absent"), "", "x" * 5000):
        with pytest.raises(UserError, match="neither one of f32, bf16, int8 nor the folder"):
            optimize_as(model, how)


def test_without_nncf_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"pip install 'resnext_det\[openvino\]'"):
        quantize(model, [images()])


def test_logging_stays_the_programs_own(model, monkeypatch):
    handler = logging.StreamHandler()
    logger = logging.getLogger("nncf")
    logger.addHandler(handler)
    kind = logging.getLoggerClass()
    try:
        quantize(model, [images()])
    finally:
        logger.removeHandler(handler)
    assert handler.level == logging.NOTSET
    assert logging.getLoggerClass() is kind is logging.Logger


def test_a_signal_after_detectors_are_gone_does_not_kill_the_process():
    pytest.importorskip("openvino")
    words = """
import gc, os, signal
from resnext_det.deploy import optimize
from resnext_det.deploy.quantization import quantize
from tests.deploy.models import detections, detector, images
caught = []
signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
model = detector("fpn")
detectors = [optimize(model, engine="openvino") for _ in range(2)]
detectors.append(quantize(model, [images()]).detector(model))
while detectors:
    detections(detectors.pop(0), images())
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
assert caught == [signal.SIGUSR1] * 3
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr


def test_images_without_any_region_are_refused(model):
    with pytest.raises(UserError, match="gives backbone anything: take more"):
        quantize(model, [])
