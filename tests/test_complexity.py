import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from PIL import Image

import resnext_det
from resnext_det import ResNeXt, complexity
from resnext_det.modeling.classifier import CifarResNeXt
from resnext_det.modeling.forms import convert_form
from tests.helpers import REPO, randomise


@pytest.mark.parametrize("number", ["1", "7"])
def test_parameters_are_within_one_percent_of_the_papers_figures(number):
    rows = complexity.table(number)
    for row in rows:
        print(row.name, row.parameters, row.paper_parameters)
        assert row.parameters == pytest.approx(row.paper_parameters, rel=0.01)
    assert len(rows) == 2


def test_table_1s_multiply_adds_round_to_the_papers():
    for row in complexity.table("1"):
        assert round(row.multiply_adds / 1e9, 1) == row.paper_multiply_adds / 1e9


@pytest.mark.parametrize("number", ["2", "3", "4"])
def test_networks_that_the_paper_rounds_with_a_tilde_are_near_its_figures(number):
    # "~25 million" and "~7.8 billion" stand for up to 25.6 M and 8.1 G of preserved complexity
    for row in complexity.table(number):
        print(row.name, row.parameters, row.multiply_adds)
        assert row.approximate
        assert row.multiply_adds == pytest.approx(row.paper_multiply_adds, rel=0.05)
        if row.paper_parameters is not None:
            assert row.parameters == pytest.approx(row.paper_parameters, rel=0.03)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnext50_32x4d", torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
        ("resnext101_64x4d", torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
        ("resnet101", torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
    ],
)
def test_counts_are_those_that_torchvision_publishes(name, weights):
    variant = {"resnext50_32x4d": (50, 32, 4), "resnext101_64x4d": (101, 64, 4)}.get(
        name, (101, 1, 64)
    )
    parameters, multiply_adds = complexity.count(lambda: ResNeXt(*variant, num_classes=1000), 224)
    assert parameters == weights.meta["num_params"]
    assert multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.002)


def test_a_detectors_parts_add_up():
    cfg = resnext_det.get_cfg("mask_rcnn_X50_32x4d_FPN")
    cfg.MODEL.RESNETS.DEPTH = 26
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    result = complexity.detector_complexity(cfg, 128, 192)
    assert list(result.parameters)[:6] == ["FPN", "stem", "res2", "res3", "res4", "res5"]
    assert {"RPN", "RoI heads"} < set(result.parameters)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert sum(result.parameters.values()) == sum(p.numel() for p in model.parameters())
    body = ("stem", "res2", "res3", "res4", "res5")
    network, _ = complexity.count(lambda: ResNeXt(26, 32, 4, norm="FrozenBN"), 64)
    assert sum(result.parameters[part] for part in body) == network
    # RPN on 5 levels: 3x3 of 256 and two 1x1 layers, by hand
    positions = sum((128 // s) * (192 // s) for s in (4, 8, 16, 32, 64))
    assert result.multiply_adds["RPN"] == positions * (9 * 256 * 256 + 256 * 3 + 256 * 12)
    assert result.regions == 50
    assert "torchvision::roi_align" in result.unsupported
    text = complexity.format_detector(result)
    assert f"RoI heads on 50 proposals, {result.detections} detections" in text
    assert result.detections > 0
    without_masks = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    without_masks.merge_from_list(["MODEL.RESNETS.DEPTH", 26, "MODEL.RPN.POST_NMS_TOPK_TEST", 50])
    boxes_only = complexity.detector_complexity(without_masks, 128, 192).multiply_adds["RoI heads"]
    # the mask head's first layer alone: 3x3 of 256 channels at 14x14 for each detection
    least = result.detections * 14 * 14 * 9 * 256 * 256
    assert result.multiply_adds["RoI heads"] > boxes_only + least
    assert "torchvision::roi_align" in text


def run(*words):
    command = [sys.executable, str(REPO / "tools/analyze_model.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_tool_prints_a_table_and_writes_json_and_a_picture(tmp_path):
    done = run("--table", 2, "--json", tmp_path / "t.json", "--plot", tmp_path / "t.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 7
    assert "C 32, d 4, group width 128         70.14" in done.stdout
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [row["parameters"] for row in rows] == [69632, 69760, 69888, 71456, 70144]
    assert np.asarray(Image.open(tmp_path / "t.png")).std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "5"], "invalid choice: '5'"),
        (["--config-file", "nothing"], "error: config file 'nothing' does not exist"),
        (["--config-file", "x", "--input", "800"], "'800' is not HEIGHTxWIDTH, e.g. 800x1216"),
        ([], "one of the arguments --table --config-file is required"),
    ],
)
def test_wrong_arguments_are_one_line(words, message):
    done = run(*words)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["a", "b"])
def test_cifar_networks_have_three_forms_as_well(form):
    network = randomise(CifarResNeXt(29, 4, 8)).double().eval()
    other = CifarResNeXt(29, 4, 8, form=form).double().eval()
    other.load_state_dict(convert_form(network.state_dict(), form))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(other(images)["linear"], network(images)["linear"])


def test_cifar_networks_halve_their_maps_twice_and_have_9n_plus_2_layers():
    network = CifarResNeXt(38, 2, 8, num_classes=100)
    assert [len(getattr(network, s)) for s in ("res2", "res3", "res4")] == [4, 4, 4]
    network._out_features = ["res2", "res3", "res4", "linear"]
    shapes = {k: tuple(v.shape) for k, v in network(torch.zeros(1, 3, 32, 32)).items()}
    assert shapes == {
        "res2": (1, 256, 32, 32),
        "res3": (1, 512, 16, 16),
        "res4": (1, 1024, 8, 8),
        "linear": (1, 100),
    }
    with pytest.raises(ValueError, match="depth 30 is not 9 n \\+ 2"):
        CifarResNeXt(30)
