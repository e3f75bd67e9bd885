"""A detector exported as a user does it, and the file run where Detectron2 is not."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import ImageList
from PIL import Image

from resnext_det import Predictor
from resnext_det.deploy import export
from resnext_det.deploy.runtimes import open_model
from resnext_det.errors import UserError
from tests.deploy.exports import picture
from tests.deploy.test_run import run_without
from tests.helpers import REPO, run_tool
from tests.inference.models import small_config, write_run

TOOL = REPO / "tools" / "export_model.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a Mask R-CNN with random weights, and two images."""
    folder = tmp_path_factory.mktemp("export")
    cfg = small_config(masks=True, image_format="BGR")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.1
    write_run(folder, cfg)
    Image.fromarray(picture(120, 200)).save(folder / "sample.png")
    Image.fromarray(picture(210, 90, seed=1)).save(folder / "check.png")
    return folder


def words(folder, format, output, *more):
    config = folder / "config.yaml", "--weights", folder / "model_final.pth"
    sample = "--sample-image", folder / "sample.png"
    return TOOL, "--config-file", *config, "--format", format, *sample, "--output", output, *more


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        ("openvino", "xml"),
        pytest.param("torchscript", "torchscript", marks=pytest.mark.slow),
    ],
)
def test_the_file_finds_elsewhere_what_the_predictor_finds(folder, format, suffix, tmp_path):
    file = tmp_path / f"model.{suffix}"
    more = ("--check-image", folder / "check.png", "TEST.DETECTIONS_PER_IMAGE", "9")
    done = run_tool(*words(folder, format, file, *more), datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("verified on sample.png: 9 detections, boxes within")
    assert lines[1].startswith("verified on check.png: 9 detections, boxes within")
    assert lines[-1].split()[:4] == ["python", "-m", "resnext_det.deploy.run", str(file)]
    names = {file.name, *(["model.bin"] if suffix == "xml" else [])}
    assert {path.name for path in tmp_path.iterdir()} == names

    absent = ("detectron2", *(["torch"] if suffix == "xml" else []))
    image = folder / "check.png"
    ran = run_without(absent, file, image, "--json", "--score", "0.2")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["detections"]
    predictor = Predictor(
        folder / "config.yaml", folder / "model_final.pth", device="cpu", overrides=more[2:]
    )
    expected = predictor.predict_dicts(image, score=0.2)
    assert len(found) == len(expected["scores"]) > 0
    np.testing.assert_allclose([d["box"] for d in found], expected["boxes"], atol=0.05)
    assert [d["class"] for d in found] == expected["names"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--output", "model.onnx"), "has to end in .torchscript"),
        (("MODEL.KEYPOINT_ON", "True"), "error: "),
    ],
)
def test_a_mistake_is_one_line_and_no_file(folder, more, message, tmp_path):
    command = words(folder, "torchscript", "model.torchscript", *more)
    done = run_tool(*command, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not list(tmp_path.iterdir())


def exported(folder, output, **more):
    """Export the run in this process."""
    options = {"format": "torchscript", "sample": folder / "sample.png", **more}
    config = options.pop("config", folder / "config.yaml")
    return export.export_detector(config, folder / "model_final.pth", output=output, **options)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"check": Path("absent.png")}, "cannot read image absent.png"),
        ({"config": "absent.yaml"}, "absent.yaml"),
        ({"overrides": ("MODEL.WIGHTS", "x")}, "unknown config key 'MODEL.WIGHTS'"),
        ({"format": "tflite"}, "format 'tflite' is not one of onnx"),
        ({"licence": "CC0\nBY"}, r"has licence 'CC0\\nBY': no line"),
    ],
)
def test_a_mistake_leaves_no_file(folder, more, message, tmp_path):
    with pytest.raises(UserError, match=message):
        exported(folder, tmp_path / "model.torchscript", **more)
    assert not list(tmp_path.iterdir())


def test_without_a_name_the_file_lies_beside_the_weights(folder, tmp_path):
    command = list(words(folder, "openvino", "unused"))
    command = command[: command.index("--output")]
    done = run_tool(*command, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "model_final.xml").is_file() and (folder / "model_final.bin").is_file()
    weights = command.index("--weights")
    del command[weights : weights + 2]
    done = run_tool(*command, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "--output is needed where --weights is no file" in done.stderr


def test_a_folder_that_is_absent_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="absent/model.torchscript cannot be written"):
        exported(folder, tmp_path / "absent" / "model.torchscript")


def test_weights_of_another_openvino_model_are_not_replaced(folder, tmp_path):
    other = tmp_path / "model.bin"
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="model.bin exists without model.xml: take another name"):
        exported(folder, tmp_path / "model.xml", format="openvino")
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("format", "package"),
    [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino", "openvino")],
)
def test_packages_that_a_format_needs_are_asked_for_first(format, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(export, "Predictor", None)  # which takes long
    output = (tmp_path / "model").with_suffix(export.SUFFIXES[format])
    with pytest.raises(UserError, match=rf"resnext_det\[{package[:4]}"):
        exported(tmp_path, output, format=format)


def test_a_check_image_that_the_network_sees_as_large_as_the_sample_is_refused(folder, tmp_path):
    Image.fromarray(picture(121, 201, seed=2)).save(tmp_path / "check.png")
    with pytest.raises(UserError, match="see it as large as sample.png: take one of other"):
        exported(folder, tmp_path / "model.torchscript", check=tmp_path / "check.png")


@pytest.mark.parametrize("limits", [(800, 1333), (96, 160), (0, 1333)])
@pytest.mark.parametrize(
    "size", [(480, 640), (894, 1000), (1000, 894), (600, 600), (200, 90), (90, 900)]
)
def test_the_network_sees_another_height_and_width_in_the_check(size, limits):
    """At 894 x 1000 four fifths of the transpose are as large as the sample."""
    card = SimpleNamespace(min_size=limits[0], max_size=limits[1], size_divisibility=32)
    image = picture(*size)
    sizes = []
    for each in (image, export._other_proportions(image, card)):
        new = each.shape[:2]
        if limits[0]:
            new = ResizeShortestEdge.get_output_shape(*new, *limits)
        images = ImageList.from_tensors([torch.zeros(3, *new)], 32)
        sizes.append(images.tensor.shape[2:])
    assert sizes[0][0] != sizes[1][0] and sizes[0][1] != sizes[1][1]


def test_a_sample_too_small_for_two_sizes_is_refused():
    card = SimpleNamespace(min_size=0, max_size=99, size_divisibility=32)
    with pytest.raises(UserError, match="1 x 2 pixels is too small"):
        export._other_proportions(picture(2, 1), card)


def test_the_card_tells_where_the_weights_come_from(folder, tmp_path):
    content = torch.load(folder / "model_final.pth", weights_only=True)
    content["recipe"] = {**content["recipe"], "licence": "CC BY 4.0", "source": "timm"}
    torch.save(content, tmp_path / "model.pth")
    predictor = Predictor(folder / "config.yaml", tmp_path / "model.pth", device="cpu")
    card = export.card_of(predictor)
    assert (card.licence, card.source, card.variant) == ("CC BY 4.0", "timm", "X-26-8x4d")
    digest = hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()
    assert card.weights_sha256 == digest
    assert (card.min_size, card.max_size, card.masks) == (96, 160, True)
    assert card.class_names == ("circle", "square", "triangle", "star", "cross")
    assert (card.image_format, card.size_divisibility) == ("BGR", 32)
    assert card.pixel_mean == tuple(predictor.model.pixel_mean.flatten().tolist())
    assert card.pixel_std == tuple(predictor.model.pixel_std.flatten().tolist())
    assert card.detections_per_image == predictor.model.roi_heads.box_predictor.test_topk_per_image
    with pytest.raises(UserError, match="licence 'MIT': .*model.pth records 'CC BY 4.0'"):
        export.card_of(predictor, "MIT")


def test_a_licence_can_be_given_for_weights_that_record_none(folder, tmp_path):
    file = tmp_path / "model.torchscript"
    exported(folder, file, licence="CC BY-SA 4.0")
    assert open_model(file)[0].licence == "CC BY-SA 4.0"
    predictor = Predictor(folder / "config.yaml", folder / "model_final.pth", device="cpu")
    assert export.card_of(predictor).licence == "unknown"


def test_a_class_name_that_no_card_can_hold_is_named_before_anything_is_written(
    folder, tmp_path, monkeypatch
):
    class Named(Predictor):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.class_names[3] = "st\tar"

    monkeypatch.setattr(export, "Predictor", Named)
    monkeypatch.setattr(export, "write", None)
    with pytest.raises(UserError, match=r"has class_names 'st\\tar': no line of at most 1000"):
        exported(folder, tmp_path / "model.torchscript")


def test_a_file_that_finds_something_else_is_not_kept(folder, tmp_path, monkeypatch):
    class Careless(export.ExportedRCNN):
        def __init__(self, model, image_format):
            super().__init__(model, "RGB")  # the model wants BGR

    monkeypatch.setattr(export, "ExportedRCNN", Careless)
    file = tmp_path / "model.xml"
    file.write_text("an earlier one")
    with pytest.raises(UserError, match="model.xml is not kept: the exported model finds"):
        exported(folder, file, format="openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["model.xml"]
    assert file.read_text() == "an earlier one"


@pytest.mark.parametrize("empty", [("blank.png",), ("sample.png", "blank.png")])
def test_each_image_in_which_nothing_is_found_is_named(folder, tmp_path, caplog, empty):
    Image.new("RGB", (90, 200), (127, 127, 127)).save(tmp_path / "blank.png")
    threshold = "0.9999" if "sample.png" in empty else "0.8"
    answers = exported(
        folder,
        tmp_path / "model.torchscript",
        check=tmp_path / "blank.png",
        overrides=("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold),
    )
    assert tuple(name for name, each in answers.items() if not each.count) == empty
    for name in answers:
        assert (f"nothing was detected in {name}" in caplog.text) == (name in empty)
