"""A detector exported as a user does it, and the file run where Detectron2 is not."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det import Predictor
from resnext_det.deploy import export
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
    ("format", "suffix"), [("openvino", "xml"), ("torchscript", "torchscript")]
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
        (("--check-image", "absent.png"), "cannot read image absent.png"),
        (("--config-file", "absent.yaml"), "absent.yaml"),
        (("--output", "absent/model.torchscript"), "cannot be written"),
        (("MODEL.WIGHTS", "x"), "unknown config key 'MODEL.WIGHTS'"),
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


def test_a_file_that_finds_something_else_is_not_kept(folder, tmp_path, monkeypatch):
    class Careless(export.ExportedRCNN):
        def __init__(self, model, image_format):
            super().__init__(model, "RGB")  # the model wants BGR

    monkeypatch.setattr(export, "ExportedRCNN", Careless)
    file = tmp_path / "model.xml"
    file.write_text("an earlier one")
    with pytest.raises(UserError, match="model.xml is not kept: the exported model finds"):
        export.export_detector(
            folder / "config.yaml",
            folder / "model_final.pth",
            format="openvino",
            output=file,
            sample=folder / "sample.png",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model.xml"]
    assert file.read_text() == "an earlier one"


def test_a_check_in_which_nothing_is_found_warns(folder, tmp_path, caplog):
    answers = export.export_detector(
        folder / "config.yaml",
        folder / "model_final.pth",
        format="torchscript",
        output=tmp_path / "model.torchscript",
        sample=folder / "sample.png",
        overrides=("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.9999"),
    )
    assert [each.count for each in answers.values()] == [0, 0]
    assert "the check of" in caplog.text and "is empty" in caplog.text
