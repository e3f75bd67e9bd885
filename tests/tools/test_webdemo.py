"""The web demo as a user starts it, with a tiny detector."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import torch

from resnext_det import get_cfg
from resnext_det.modeling.build import build_detector
from tests.helpers import REPO, randomise
from tests.inference.web_demo import coloured_image, encoded

CONFIG = "quick/faster_rcnn_X26_8x4d_FPN"
TOOL = str(REPO / "tools" / "webdemo.py")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a whole detector; a file."""
    cfg = get_cfg(CONFIG)
    cfg.MODEL.DEVICE = "cpu"
    model = randomise(build_detector(cfg))
    file = tmp_path_factory.mktemp("webdemo") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


def start(weights, *words, cwd) -> subprocess.Popen:
    command = [sys.executable, TOOL, "--config-file", CONFIG, "--weights", str(weights)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def post(url: str, body: bytes) -> tuple[int, dict]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("POST", "/detect", body)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_it_serves_detections_and_ends_with_ctrl_c(weights, tmp_path):
    changes = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "7")
    process = start(weights, "--port", "0", "--threshold", "0.3", *changes, cwd=tmp_path)
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert url, process.communicate()
        status, answer = post(url[1], encoded(coloured_image()))
        assert status == 200 and len(answer["detections"]) == 7
        assert all(0 <= d["box"][0] <= d["box"][2] <= 320 for d in answer["detections"])
        assert {d["name"] for d in answer["detections"]} <= {
            "circle", "square", "triangle", "star", "cross",
        }  # fmt: skip
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert out == "" and "Traceback" not in err
        assert not list(tmp_path.iterdir())  # nothing is written
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--threshold", "7"), "error: threshold 7 is out of range"),
        (("--host", "192.0.2.1"), "error: cannot listen on port 7860 of 192.0.2.1"),
        (("--max-pixels", "0"), "error: a limit of 0 pixels is out of range"),
        (("--port", "0", "MODEL.WIGHTS", "x"), "error: unknown config key 'MODEL.WIGHTS'"),
    ],
)
def test_mistakes_are_one_line(weights, tmp_path, words, expected):
    process = start(weights, *words, cwd=tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and out == ""
    assert err.startswith(expected) and err.count("\n") == 1
