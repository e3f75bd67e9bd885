"""The benchmark of inference: every side is measured, in a table, a JSON file and a picture."""

import json

import pytest
from PIL import Image

from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/benchmark.py"


def test_it_measures_all_that_is_asked_for(tmp_path):
    pytest.importorskip("openvino")
    words = ("--size", 64, "--repeats", 1, "--batch", 1, 2, "--streams", 1, 2, "--no-memory")
    words += ("--sides", "ours", "openvino-f32", "torchvision")
    words += ("--json", "b.json", "--png", "b.png")
    done = run_tool(TOOL, *words, datasets=tmp_path, cwd=tmp_path, threads=2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["machine"]["threads"] == 2
    assert content["peak_flops_per_s"] > 1e9
    for scope in ("backbone", "whole"):
        rows = content["rows"][scope]
        assert [r["name"] for r in rows] == ["detectron2", "ours", "openvino-f32", "torchvision"]
        for row in rows:
            assert row["missing"] is None
            assert row["median_s"] > 0
            assert row["ratio"] == pytest.approx(rows[0]["median_s"] / row["median_s"])
            assert row["title"] in done.stdout
    whole = content["rows"]["whole"]
    for row in whole:
        kinds = [(rate["batch"], rate["streams"]) for rate in row["rates"]]
        assert kinds == [(1, 1), (2, 1), (1, 2)]
        assert all(rate["images_per_second"] > 0 for rate in row["rates"])
    for row in whole[1:3]:
        assert row["agreement"]["matched"] == row["agreement"]["expected"] > 0
        assert row["agreement"]["box"] < 0.01
        assert row["agreement"]["score"] < 1e-4
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", 10), "error: --size 10: give 64 to 4096 pixels"),
        (("--sides", "openvino-f16"), "error: --sides openvino-f16 is unknown; did you mean"),
        (("--sides", "ours", "MODEL.MASK", 1), "error: unknown config key 'MODEL.MASK'"),
        (("--config", "nothing"), "error: config file 'nothing' does not exist"),
        (("--weights", "absent.pth"), "absent.pth"),
        (
            ("--json", "absent/b.json"),
            "error: --json absent/b.json cannot be written: No such file",
        ),
        (("--json", "/proc/b.json"), "error: --json /proc/b.json cannot be written"),
        (("--json", "b.png", "--png", "./b.png"), "error: --json and --png are both b.png"),
        (("MODEL.WEIGHTS", "x.pth"), "error: MODEL.WEIGHTS is not the benchmark's: give --weights"),
        (("MODEL.DEVICE", "cuda"), "error: MODEL.DEVICE is not the benchmark's"),
        (
            ("--scope", "whole", "--sides", "onnx-openvino"),
            "error: --sides onnx-openvino is of backbones alone",
        ),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path):
    done = run_tool(TOOL, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
