"""`tools/convert_dataset.py` from a shell."""

import json

import pytest

from tests.data.test_formats import make_voc, make_yolo, voc_file, voc_object
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/convert_dataset.py"


def test_voc_splits_become_two_files_with_the_same_classes(tmp_path):
    files = {n: voc_file(voc_object(n, (1, 1, 9, 9))) for n in ("ant", "bee")}
    root = make_voc(tmp_path / "voc", files)
    (root / "ImageSets/Main/train.txt").write_text("ant\nbee\n")
    (root / "ImageSets/Main/val.txt").write_text("bee\n")
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    done = run_tool(TOOL, "voc", root, train, "--split", "train", datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 images, 2 objects\nwrote {train}\n"
    words = ("--split", "val", "--classes-from", train)
    done = run_tool(TOOL, "voc", root, val, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    contents = [json.loads(file.read_text()) for file in (train, val)]
    assert contents[0]["categories"] == contents[1]["categories"]
    assert [a["category_id"] for a in contents[1]["annotations"]] == [2]


def test_yolo_with_folders_and_names_of_its_own(tmp_path):
    root = make_yolo(tmp_path / "yolo", {"a": "1 0.5 0.5 0.5 0.2"})
    (tmp_path / "names.yaml").write_text("names: [x, y]")
    words = ("--names", "names.yaml", "--images", root / "images/train")
    words += ("--labels", root / "labels/train")
    done = run_tool(TOOL, "yolo", root, "out.json", *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["x", "y"]
    assert content["annotations"][0]["bbox"] == [10, 12, 20, 6]


@pytest.mark.parametrize(
    "words, message",
    [
        (("voc", "nowhere", "out.json"), "nowhere/Annotations does not exist"),
        (("yolo", "nowhere", "out.json"), "nowhere/images does not exist"),
        (("yolo", "nowhere", "."), ". is a folder: name a file in it"),
        (("voc", "a", "out.json", "--classes-from", "out.json"), "--classes-from out.json is OUT"),
        (("voc", "a", "none/out.json"), "none/out.json cannot be written: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, tmp_path):
    make_voc(tmp_path / "a", {"a": voc_file()})
    done = run_tool(TOOL, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
