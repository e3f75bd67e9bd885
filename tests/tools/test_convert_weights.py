"""`tools/convert_weights.py` from a shell: what a user sees, and what is left on the disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from resnext_det.weights.catalog import CATALOG
from tests.helpers import run_tool
from tests.weights.public_files import (
    KINDS,
    TOOL,
    basic_block_network,
    random_network,
    run_converter,
)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A torchvision checkpoint with a DataParallel prefix."""
    file = tmp_path_factory.mktemp("public") / "checkpoint.pth.tar"
    KINDS["training checkpoint"].write(file)
    return file


def tool(*words, cwd):
    done = run_tool(TOOL, *words, datasets=cwd, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return done


def test_a_conversion_says_what_was_done_and_proved(public, tmp_path):
    done = tool(public, "X-26.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    count = len(random_network().state_dict())
    assert f"{count} tensors in the file: {count} converted, 0 unexplained" in done.stderr
    assert "found torchvision X-26-8x4d" in done.stderr
    proof, expects, wrote = done.stdout.strip().split("\n")
    found = dict(re.findall(r"(\w+) (\d\.\de-\d\d|0\.0e\+00)", proof))
    assert list(found) == ["res2", "res3", "res4", "res5", "linear"]
    assert all(float(value) <= 1e-4 for value in found.values())
    assert "RGB images, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375]" in expects
    assert re.fullmatch(r"wrote X-26.pth, sha256 [0-9a-f]{64}", wrote)
    assert [p.name for p in tmp_path.iterdir()] == ["X-26.pth"]
    content = torch.load(tmp_path / "X-26.pth", weights_only=True)
    assert len(content["model"]) == count
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "X-26.pth").stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_is_alone_on_standard_output(public, tmp_path):
    done = tool("--channel-order", "BGR", public, "X-26.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"]["in_file"] == len(random_network().state_dict())
    assert (report["wrapper"], report["prefix"]) == ("state_dict", "module.")
    assert report["recipe"]["channel_order"] == "BGR"
    assert "proved: " in done.stderr


def test_there_and_back_is_bit_identical(public, tmp_path):
    assert tool(public, "ours.pth", cwd=tmp_path).returncode == 0
    words = ("--to", "torchvision", "ours.pth", "back.pth", "--json", "report.json")
    done = tool(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    original = torch.load(public, weights_only=True)["state_dict"]
    assert {f"module.{name}" for name in back} == set(original)
    for name, tensor in back.items():
        assert tensor.dtype == original[f"module.{name}"].dtype
        assert torch.equal(tensor, original[f"module.{name}"]), name
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["output"] == "back.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "ours.pth", "report.json"]


def test_a_file_without_classifier_gives_no_warning(tmp_path):
    KINDS["third_party"].write(tmp_path / "in.pth")
    done = tool("in.pth", "o.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "there is no classifier in it" in done.stdout


def test_the_list_shows_every_published_file(tmp_path):
    done = tool("--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = [line.split()[0] for line in done.stdout.split("\n") if line]
    assert set(CATALOG) <= set(names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "IN and OUT are needed, or --list"),
        (("in.pth",), "IN and OUT are needed, or --list"),
        (("in.pth", "o.pth", "--source", "keras"), "argument --source: invalid choice: 'keras'"),
        (("--to", "keras", "in.pth", "o.pth"), "argument --to: invalid choice: 'keras'"),
        (("in.pth", "o.pth", "--pixel-mean", "1", "2"), "argument --pixel-mean: expected 3"),
        (
            ("--to", "timm", "in.pth", "o.pth", "--channel-order", "BGR"),
            "timm's networks take RGB images",
        ),
    ],
)
def test_wrong_arguments_are_told_with_the_usage(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_converter(*words)
    assert (done.status, done.out) == (2, "")
    usage, error = done.err.split("convert_weights.py: error: ")
    assert usage.startswith("usage: ")
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("absent/o.pth", "absent/o.pth: there is no folder absent"),
        ("o.pkl", "o.pkl: the output must end in .pth or .safetensors"),
        ("folder.pth", "folder.pth is a directory: name a file in it"),
        ("in.pth", "in.pth is the input: write to another file"),
        ("link.pth", "link.pth is the input: write to another file"),
    ],
)
def test_a_wrong_output_is_told_before_anything_is_read(out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.pth").write_bytes(b"untouched")
    (tmp_path / "link.pth").symlink_to("in.pth")
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run_converter("in.pth", out)
    assert (done.status, done.out, done.err) == (1, "", f"error: {message}\n")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "in.pth").read_bytes() == b"untouched"


def test_a_wrong_file_is_one_line_and_an_older_output_stays(tmp_path):
    torch.save(basic_block_network().state_dict(), tmp_path / "in.pth")
    (tmp_path / "o.pth").write_bytes(b"older")
    done = tool("in.pth", "o.pth", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    reading, error = done.stderr.strip().split("\n")
    assert reading == "reading in.pth"
    assert error.startswith("error: in.pth is no ResNeXt with bottleneck blocks")
    assert (tmp_path / "o.pth").read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "o.pth"]


def test_an_absent_input_and_an_absent_folder_of_the_report_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_converter("in.pth", "o.pth")
    assert (done.status, done.out) == (1, "")
    assert done.err.strip().split("\n")[-1] == "error: in.pth does not exist"
    done = run_converter("in.pth", "o.pth", "--json", "absent/report.json")
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: absent/report.json: there is no folder absent\n"
    assert not list(tmp_path.iterdir())


# Runs the tool in a process that stops for good once the output is written under its temporary
# name, before the proof, and says so with a file.
STOPPING = """
import runpy, sys, time
from pathlib import Path
from resnext_det.weights import convert

def our_features(*args, **kwargs):
    Path(sys.argv[-1] + ".there").touch()
    time.sleep(600)

convert.our_features = our_features
sys.argv = [{tool!r}, *sys.argv[1:]]
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("number", "status", "leaves"),
    [
        (signal.SIGTERM, 143, []),
        (signal.SIGINT, 130, []),
        (signal.SIGKILL, -signal.SIGKILL, [r"\.writing-\w+\.pth"]),  # which no process can mend
    ],
)
def test_a_conversion_that_is_killed_leaves_no_output(number, status, leaves, public, tmp_path):
    (tmp_path / "work").mkdir()
    out = tmp_path / "work/o.pth"
    words = [sys.executable, "-c", STOPPING.format(tool=str(TOOL)), str(public), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    there = out.with_name("o.pth.there")
    try:
        deadline = time.monotonic() + 120
        while not there.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert there.exists()
        assert len(list(out.parent.glob(".writing-*.pth"))) == 1  # the temporary file
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    there.unlink()
    assert process.returncode == status
    assert "Traceback" not in errors
    left = sorted(p.name for p in out.parent.iterdir())
    assert len(left) == len(leaves)
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(leaves, left, strict=True))
