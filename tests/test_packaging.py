"""The package without Detectron2, and as a wheel outside the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

from resnext_det.config import classifier_config_names, config_names
from tests.helpers import REPO


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


def run(python, *words, path, cwd):
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.mark.parametrize(
    "words", ["import resnext_det; resnext_det.get_cfg", "from resnext_det import get_cfg"]
)
def test_without_detectron2_every_name_tells_the_command(words, bare_python, tmp_path):
    done = run(bare_python, "-c", words, path=REPO, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: resnext_det.get_cfg needs Detectron2")
    assert f"{bare_python} -m pip install" in last
    assert str(REPO / "requirements/detectron2.txt") in last


def test_the_doctor_names_what_is_missing_and_the_commands(bare_python, tmp_path):
    done = run(bare_python, "-m", "resnext_det.doctor", path=REPO, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == ""
    missing = [line.split()[0] for line in done.stdout.split("\n") if line.endswith("MISSING")]
    assert {"torch", "torchvision", "fvcore", "pycocotools", "Detectron2"} <= set(missing)
    assert f"{bare_python} -m pip install 'torch>=2.6'" in done.stdout
    assert "--require-hashes --only-binary=:all: --python-version 3.10" in done.stdout


def test_the_doctor_reports_a_whole_environment(tmp_path):
    done = run(sys.executable, "-m", "resnext_det.doctor", path=REPO, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    for word in (
        "Python",
        "torch",
        "torchvision",
        "Detectron2",
        "detectron2._C",
        "device",
        "threads",
    ):
        assert any(line.startswith(word + " ") for line in done.stdout.split("\n"))
    assert "MISSING" not in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (
        "resnext_det",
        "configs",
        "requirements",
        "setup.py",
        "pyproject.toml",
        "README.md",
    ):
        target = source / name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", REPO / name, target], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_every_config_and_no_foreign_top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for config in (*config_names(), *classifier_config_names()):
        assert f"resnext_det/configs/{config}.yaml" in names
    assert "resnext_det/configs/Base-RCNN-C4.yaml" in names
    assert "resnext_det/requirements/detectron2.txt" in names
    for pattern in ("inference/web_page.*", "report/templates/*"):
        files = [str(p.relative_to(REPO)) for p in (REPO / "resnext_det").glob(pattern)]
        assert files
        assert set(files) <= set(names)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"resnext_det"}


def test_a_wheel_works_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    program = (
        "import resnext_det; from detectron2.modeling import build_model; "
        f"assert resnext_det.__file__.startswith({str(target)!r}), resnext_det.__file__; "
        "cfg = resnext_det.get_cfg('faster_rcnn_X50_32x4d'); "
        "assert cfg.MODEL.BACKBONE.NAME == 'build_resnext_backbone'; "
        "from resnext_det.doctor import detectron2_command; "
        f"assert {str(target)!r} in detectron2_command().split()[-1]; print('works')"
    )
    done = run(sys.executable, "-W", "ignore", "-c", program, path=target, cwd=tmp_path)
    assert done.stdout.strip() == "works", done.stderr


def test_importing_is_light(tmp_path):
    program = (
        "import sys, torch, detectron2.modeling; before = set(sys.modules); import resnext_det; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "assert not new & {'matplotlib', 'timm', 'tensorboard', 'cv2'}, new; "
        "assert not torch.cuda.is_initialized()"
    )
    done = run(sys.executable, "-W", "ignore", "-c", program, path=REPO, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
