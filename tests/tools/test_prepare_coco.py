"""`tools/prepare_coco.py` from a shell: what a user sees, and what is left on the disk."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.data.test_prepare import MADE, names, write_miniature
from tests.helpers import REPO, needs_tiny_coco, run_tool

TOOL = REPO / "tools/prepare_coco.py"
# Stops where both temporary files are there and nothing is renamed yet.
STALLED = """
import contextlib, runpy, sys, time
import resnext_det.data.prepare as prepare
replacing = prepare.replacing
@contextlib.contextmanager
def slow(path):
    with replacing(path) as temporary:
        yield temporary
        time.sleep(60)
prepare.replacing = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def coco(tmp_path):
    return write_miniature(tmp_path / "coco")


def tool(*words, cwd):
    done = run_tool(TOOL, *words, datasets=cwd, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return done


@needs_tiny_coco
def test_the_splits_are_made_then_verified_then_kept(coco, tmp_path):
    made = tool("--coco", "coco", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert set(MADE) <= set(names(coco))
    assert "wrote coco/annotations/instances_minival2014.json: 50 images, 382" in made.stdout
    assert "reading instances_val2014.json" in made.stderr.split("\n")  # a line a step, no bar
    assert "\r" not in made.stderr
    umask = os.umask(0)
    os.umask(umask)
    assert (coco / "annotations" / MADE[0]).stat().st_mode & 0o777 == 0o666 & ~umask

    checked = tool("--coco", "coco", "--check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("verified ") == len(MADE)

    again = tool("--coco", "coco", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == (
        f"error: coco/annotations/{MADE[0]} is there: --check verifies it, --force makes it again\n"
    )
    assert tool("--coco", "coco", "--force", cwd=tmp_path).returncode == 0


@needs_tiny_coco
def test_a_failed_check_exits_with_1_and_the_difference(coco, tmp_path):
    assert tool("--coco", coco, cwd=tmp_path).returncode == 0
    small, rest = (coco / "annotations" / name for name in MADE[:2])
    small.write_bytes(rest.read_bytes())
    done = tool("--coco", coco, "--check", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith(f"error: {small}: 25 images are in {rest.name} too")
    assert f"{small}: 50 images of val2017 are missing" in last


@needs_tiny_coco
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_old_files_whole_and_no_temporary_ones(number, coco, tmp_path):
    folder = coco / "annotations"
    (folder / MADE[0]).write_text("old")
    before = names(coco)
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, TOOL, "--coco", coco, "--force"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.glob(".*"))) < len(MADE) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(list(folder.glob(".*"))) == len(MADE)
        time.sleep(0.5)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert names(coco) == before
    assert (folder / MADE[0]).read_text() == "old"


@needs_tiny_coco
def test_a_terminal_sees_a_bar(coco):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # else 0 columns
    with subprocess.Popen(
        [sys.executable, TOOL, "--coco", coco],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 4096):
                seen += part
        except OSError:  # Linux: the other end was closed
            pass
        assert process.wait() == 0
    os.close(ours)
    assert b"reading instances_val2014.json: 100%" in seen
    assert b"\r" in seen


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "the following arguments are required: --coco"),
        (("--coco", "x", "--check", "--force"), "--check writes nothing: leave out --force"),
        (("--coco", "x", "--chekc"), "unrecognized arguments: --chekc"),
    ],
)
def test_wrong_arguments_are_told_after_the_usage(words, message, tmp_path):
    done = tool(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: prepare_coco.py")
    assert done.stderr.endswith(f"error: {message}\n")


def test_a_wrong_folder_is_one_line(tmp_path):
    done = tool("--coco", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: there is no folder nowhere/annotations: --coco names the folder with annotations/\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@needs_tiny_coco
def test_a_folder_that_cannot_be_written_is_named(coco, tmp_path):
    (coco / "annotations").chmod(0o555)
    done = tool("--coco", coco, cwd=tmp_path)
    (coco / "annotations").chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.endswith("cannot be written: Permission denied\n")
