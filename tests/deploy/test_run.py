"""The runner: images, masks and cards as Detectron2 and the exporter mean them, without either."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.layers import paste_masks_in_image
from PIL import Image

from resnext_det.deploy.card import Card
from resnext_det.deploy.pixels import paste_mask, resize, resized_size
from resnext_det.deploy.run import ExportedDetector, main
from resnext_det.errors import UserError
from tests.deploy.exports import picture

CARD = {
    "class_names": ["cat", "dog"], "min_size": 800, "max_size": 1333, "masks": False,
    "image_format": "BGR", "pixel_mean": [103.5, 116.3, 123.7], "pixel_std": [1.0, 1.0, 1.0],
    "size_divisibility": 32, "detections_per_image": 100,
    "score_threshold": 0.05, "variant": "X-50-32x4d", "licence": "BSD-3-Clause",
    "source": "torchvision", "weights_sha256": "0" * 64, "made_by": "resnext_det 0.1.0",
    "version": 1,
}  # fmt: skip


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 1000), (333, 333), (7, 11)])
@pytest.mark.parametrize("limits", [(800, 1333), (96, 160), (0, 0)])
def test_images_are_resized_as_detectron2_does(size, limits):
    image = picture(*size)
    expected = image
    if limits[0]:
        new = ResizeShortestEdge.get_output_shape(*size, *limits)
        expected = ResizeTransform(*size, *new, Image.Resampling.BILINEAR).apply_image(image)
    np.testing.assert_array_equal(resize(image, *resized_size(*image.shape[:2], *limits)), expected)


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_pasted_as_detectron2_does(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (30, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(0.2, 50, (30, 2))), axis=1)
    boxes = boxes.clip(0, [90, 70, 90, 70]).astype(np.float32)
    cells = torch.rand(30, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    masks = torch.nn.functional.interpolate(cells, size=(28, 28), mode="bilinear")[:, 0]
    expected = paste_masks_in_image(masks, torch.from_numpy(boxes), (70, 90)).numpy()
    found = np.stack([paste_mask(m, b, 70, 90) for m, b in zip(masks.numpy(), boxes, strict=True)])
    assert expected.any(axis=(1, 2)).sum() > 20
    assert (found != expected).sum() <= 2  # probabilities of 0.5 up to rounding


def test_a_mask_of_a_whole_box_covers_its_pixels():
    found = paste_mask(np.ones((28, 28), np.float32), np.array([2, 1, 5, 4], np.float32), 6, 8)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(found, expected)


def detector_of(outputs, **card) -> ExportedDetector:
    """A runner whose model gives these outputs for every image."""
    made = ExportedDetector.__new__(ExportedDetector)
    made._file = "model.onnx"
    made.card = Card.from_json(json.dumps({**CARD, **card}), "model.onnx")
    made.class_names = made.card.class_names
    made._run = lambda image: [np.array(out) for out in outputs]
    return made


def outputs_of(boxes, scores, classes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return [boxes, np.array(scores, np.float32), np.array(classes, np.int64)]


def test_boxes_come_back_in_pixels_of_the_image_clipped_and_without_empty_ones():
    outputs = outputs_of(
        [[8, 16, 80, 160], [-5, 0, 900, 40], [1600, 5, 1700, 9]], [0.9, 0.8, 0.7], [1, 0, 1]
    )
    found = detector_of(outputs, max_size=4000)(np.zeros((100, 200, 3), np.uint8))
    np.testing.assert_allclose(found["boxes"], [[1, 2, 10, 20], [0, 0, 112.5, 5]])
    np.testing.assert_allclose(found["scores"], [0.9, 0.8], atol=1e-6)
    assert found["class_names"] == ["dog", "cat"] and "masks" not in found
    score = np.float32(0.85)
    assert len(detector_of(outputs)(np.zeros((9, 9, 3), np.uint8), score=score)["scores"]) == 1


@pytest.mark.parametrize(
    ("outputs", "card", "message"),
    [
        (outputs_of([1, 1, 2, 2], [0.5], [2]), {}, "classes that its card does not name"),
        (outputs_of([1, 1, 2, 2], [0.5], [0, 1]), {}, "its outputs have shapes"),
        (outputs_of([1, 1, 2, 2], [0.5], [0]), {"masks": True}, "its outputs have shapes"),
        (outputs_of([], [], [])[:1], {}, "its outputs have shapes"),
        ([np.zeros((1, 4)), np.ones(1), np.ones(1)], {}, "outputs are float64, float64, float64"),
        ([np.zeros((1, 4)), np.array(["x"]), np.zeros(1, int)], {}, "outputs are float64, <U1"),
        (outputs_of([1, 1, 2, 2], [7], [0]), {}, "scores that are not from 0 to 1"),
        (outputs_of([1, 1, 2, 2], [float("nan")], [0]), {}, "scores that are not from 0 to 1"),
    ],
)
def test_outputs_that_are_no_detections_are_refused(outputs, card, message):
    with pytest.raises(UserError, match=message):
        detector_of(outputs, **card)(np.zeros((9, 9, 3), np.uint8))


def test_a_card_comes_back_as_it_was_written():
    card = Card.from_json(json.dumps(CARD), "m")
    assert Card.from_json(card.to_json(), "m") == card
    assert card.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": []}, "has class_names"),
        ({"class_names": "cat"}, "has class_names"),
        ({"class_names": ["a", "b\nc"]}, r"has class_names 'b\\nc': no line of"),
        ({"image_format": "GBR"}, "has image_format 'GBR': no RGB or BGR"),
        ({"image_format": []}, "has image_format"),
        ({"pixel_mean": [1, 2]}, "has pixel_mean .*: no list of 3"),
        ({"pixel_mean": [1, 2, "3"]}, "has pixel_mean '3'"),
        ({"pixel_std": [1, 2, 0]}, "has pixel_std '0': no number above 0"),
        ({"size_divisibility": 0}, "has size_divisibility '0'"),
        ({"detections_per_image": 1.5}, "has detections_per_image '1.5'"),
        ({"min_size": -1}, "has min_size '-1'"),
        ({"min_size": True}, "has min_size"),
        ({"max_size": 0}, "has max_size"),
        ({"max_size": 1e9}, "has max_size"),
        ({"masks": 1}, "has masks"),
        ({"score_threshold": "0.5"}, "has score_threshold"),
        ({"score_threshold": float("nan")}, "has score_threshold"),
        ({"licence": 3}, "has licence"),
        ({"version": 2}, "of version '2', this is 1"),
    ],
)
def test_a_card_with_an_illegal_value_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Card.from_json(json.dumps({**CARD, **change}), "m.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no card"),
        ("{", "no JSON"),
        ("[" * 10**6, "no JSON"),
        ("[1]", "no JSON object"),
        ('{"version": 1}', "lacks class_names"),
        ("x" * (5 * 1024**2), "more than"),
    ],
)
def test_a_text_that_is_no_card_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        Card.from_json(text, "m.onnx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.onnx", None, "does not exist"),
        ("model.txt", b"x", "is no model file"),
        ("model.onnx", b"x", "cannot be loaded"),
        ("model.xml", b"<x/>", "weights in model.bin: absent"),
        ("model.torchscript", b"x", "cannot be loaded"),
        ("model.pt2", b"", "cannot be loaded"),
    ],
)
def test_a_file_that_is_no_model_is_one_line(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "image.png"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err
    assert shown.err.count("\n") == 1 and shown.out == ""


WITHOUT = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from resnext_det.deploy.run import main
code = main({words!r})
assert {{m for m in sys.modules if m.startswith("resnext_det")}} <= {{
    "resnext_det", "resnext_det.errors", "resnext_det.images", "resnext_det.deploy", *(
        "resnext_det.deploy." + name
        for name in ("run", "card", "pixels", "runtimes", "optional", "scripted", "untrusted")
    )
}}, sorted(sys.modules)
sys.exit(code)
"""


def run_without(absent: tuple[str, ...], *words: object) -> subprocess.CompletedProcess:
    """The runner in a process in which some packages cannot be imported."""
    code = WITHOUT.format(absent=absent, words=[str(word) for word in words])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("model.onnx", "onnxruntime", "pip install 'resnext_det[onnx]'"),
        ("model.xml", "openvino", "pip install 'resnext_det[openvino]'"),
        ("model.torchscript", "torch", "pip install torch torchvision"),
    ],
)
def test_an_engine_that_is_not_installed_is_named(name, absent, message, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    done = run_without(("detectron2", absent), tmp_path / name, "image.png")
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
