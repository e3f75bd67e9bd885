"""`tools/check_data.py` from a shell: its exit status, its report, and the copy that it writes."""

import copy
import json

import pytest
from PIL import Image

from resnext_det.data.check import check_annotations, read_annotations
from tests.data.test_check_fuzz import GOOD
from tests.helpers import REPO, TINY_COCO, needs_tiny_coco, run_tool

TOOL = REPO / "tools/check_data.py"


@pytest.fixture
def data_set(tmp_path):
    """`GOOD` and its two images; the file is rewritten with `write`."""
    (tmp_path / "images/sub").mkdir(parents=True)
    for image in GOOD["images"]:
        size = (image["width"], image["height"])
        Image.new("RGB", size).save(tmp_path / "images" / image["file_name"])
    write(tmp_path, GOOD)
    return tmp_path


def write(root, data, name="a.json"):
    (root / name).write_text(json.dumps(data))


def tool(*words, cwd):
    done = run_tool(TOOL, *words, datasets=cwd, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_a_good_data_set_is_status_0(data_set):
    done = tool("a.json", "images", cwd=data_set)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a.json: 2 images, 2 objects, 1 crowds, 2 classes; objects: 2 sm")


def test_warnings_alone_are_status_3(data_set):
    data = copy.deepcopy(GOOD)
    data["annotations"][0]["bbox"] = [0, 0, 0, 1]
    write(data_set, data)
    done = tool("a.json", "--no-images", cwd=data_set)
    assert done.returncode == 3
    assert "\nwarning box-zero (1): boxes of zero width or height: " in done.stdout


def test_errors_are_status_2_and_the_copy_is_free_of_them(data_set):
    data = copy.deepcopy(GOOD)
    data["annotations"][0]["category_id"] = 99
    write(data_set, data)
    (data_set / "images/sub/b.jpg").unlink()
    words = ("a.json", "images", "--fix", "b.json", "--json")
    done = tool(*words, cwd=data_set)
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert report["status"] == 2
    found = {f["code"] for f in report["findings"] if f["severity"] == "error"}
    assert found == {"annotation-category", "image-missing"}
    assert report["fixed"]["done"] == {
        "images dropped: missing or damaged file": 1,
        "annotations dropped: annotation-category": 1,
        "annotations dropped: of a dropped image": 1,
    }
    assert "fixed: annotations dropped: annotation-category: 1\n" in done.stderr
    assert "wrote b.json: 1 images, 1 annotations\n" in done.stderr
    assert check_annotations(*read_annotations(data_set / "b.json")).findings.exit_status() == 0
    assert json.loads((data_set / "a.json").read_text()) == data
    assert tool("b.json", "images", cwd=data_set).returncode == 0


def test_classes_are_compared_with_another_files(data_set):
    other = copy.deepcopy(GOOD)
    other["categories"][0]["name"] = "cow"
    write(data_set, other, "b.json")
    done = tool("a.json", "images", "--against", "b.json", cwd=data_set)
    assert done.returncode == 2
    assert "    category 3: 'cat' here, 'cow' in --against\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x.json", "images"), "cannot read x.json: No such file or directory"),
        (("a.json", "x"), "image folder x is not there"),
        (("a.json", "images", "--fix", "a.json"), "--fix a.json is the file of JSON: name an"),
        (("a.json", "images", "--fix", "x/b.json"), "--fix x/b.json: there is no folder x"),
        (("a.json", "images", "--json", "images"), "--json images is a folder: name a file in it"),
        (("a.json", "images", "--against", "images"), "cannot read images: Is a directory"),
    ],
)
def test_what_cannot_run_is_status_1_and_one_line(words, message, data_set):
    before = (data_set / "a.json").read_bytes()
    done = tool(*words, cwd=data_set)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert (data_set / "a.json").read_bytes() == before


@needs_tiny_coco
def test_tiny_coco_has_no_error(tmp_path):
    annotations = TINY_COCO / "annotations"
    words = (annotations / "instances_train2017.json", TINY_COCO / "train2017", "--against")
    done = tool(*words, annotations / "instances_val2017.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "50 images, 465 objects, 5 crowds, 80 classes" in done.stdout
