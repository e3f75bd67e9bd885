"""`make setup`: what it refuses, in one line. Every run of `make test` shows that it works."""

import os
import shutil
import subprocess

import pytest

from tests.helpers import REPO

SCRIPT = REPO / "tools/setup_env.sh"


def setup(folder, **environment):
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DETECTRON2")}
    return subprocess.run(
        ["sh", str(SCRIPT), ".venv"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**variables, **environment},
    )


@pytest.fixture
def checkout(tmp_path):
    """The files that the script reads, with pins that are quick to fail."""
    shutil.copytree(REPO / "requirements", tmp_path / "requirements")
    (tmp_path / "setup.py").write_text("")
    return tmp_path


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def last_line(done):
    return done.stderr.strip().split("\n")[-1]


def old_python(folder):
    return program(folder, "old", 'case "$2" in *exit*) exit 1 ;; *) echo 3.8 ;; esac')


def test_an_old_python_is_refused_with_its_version(checkout):
    old = old_python(checkout / "bin")
    done = setup(checkout, PYTHON=str(old))
    assert done.returncode == 1
    assert last_line(done) == f"setup: PYTHON={old} is Python 3.8; 3.10 or newer is needed"
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_is_said(checkout):
    tools = checkout / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "grep", "tail", "df", "awk", "cut", "mkdir", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    shutil.copy(old_python(checkout / "other"), tools / "python3")
    done = setup(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python 3.10 or newer found (python3 is 3.8)" in last_line(done)


def test_a_wrong_program_is_said(checkout):
    done = setup(checkout, PYTHON="/nowhere/python3")
    assert last_line(done) == "setup: PYTHON=/nowhere/python3 is not a program on this machine"


def test_a_full_disk_is_said_before_anything_is_written(checkout):
    text = "echo header; echo /dev/x 100 90 2097152 90% /"
    program(checkout / "bin", "df", text)
    done = setup(checkout, PATH=f"{checkout / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert last_line(done) == "setup: the disk is full: 2 GB free here, about 8 needed"
    assert not (checkout / ".venv").exists()


def test_a_failed_download_is_said(checkout):
    (checkout / "requirements/runtime.txt").write_text("surely-no-such-package==1.0\n")
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    done = setup(checkout, **offline, PIP_EXTRA_INDEX_URL="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 1
    assert last_line(done).startswith("setup: a download failed: ")
    assert not (checkout / ".venv/setup-done").exists()


def test_a_finished_environment_is_left_alone(checkout):
    environment = checkout / ".venv"
    program(environment, "ignored", "")
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(shutil.which("python3"))
    pins = subprocess.run(
        "cat requirements/*.txt setup.py | cksum; pwd",
        shell=True,
        cwd=checkout,
        capture_output=True,
    )
    (environment / "setup-done").write_bytes(pins.stdout + b"\n")
    done = setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = setup(checkout, PYTHON=str(old_python(checkout / "bin")))
    assert done.returncode == 1
