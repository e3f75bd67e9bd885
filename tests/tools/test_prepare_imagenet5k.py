"""`tools/prepare_imagenet5k.py` from a shell."""

import json

import pytest

from tests.classification.test_imagenet5k import make_tar
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/prepare_imagenet5k.py"


@pytest.fixture
def folder(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for number, count in enumerate((2, 4, 1, 3, 3)):
        make_tar(whole / f"n{number}.tar", [f"{i}.JPEG" for i in range(count)])
    (tmp_path / "first.txt").write_text("n2\nn0\n")
    return tmp_path


def run(folder, *words):
    given = ("--imagenet22k", "whole", "--classes-1k", "first.txt", "--output", "out.json")
    return run_tool(TOOL, *given, *words, datasets=folder, cwd=folder)


def test_the_list_is_written_and_counted(folder):
    done = run(folder, "--sizes", "2", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "2 classes of ImageNet-1K with 3 images and the 2 largest others with 7: 4 classes, "
        "10 images\nwrote out.json\n"
    )
    assert json.loads((folder / "out.json").read_text()) == {
        "classes_1k": 2,
        "classes": ["n0", "n2", "n1", "n3"],
        "images": [2, 1, 4, 3],
    }


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "the list of ImageNet-1K has 2 classes, not 1000"),
        (("--sizes", "2", "4"), "only 3 other classes have images, fewer than 4"),
        (("--imagenet22k", "nowhere"), "nowhere cannot be read"),
        (("--classes-1k", "nowhere"), "nowhere cannot be read"),
        (("--output", "none/out.json"), "none/out.json: there is no folder none"),
        (("--output", "."), ". is a folder: name a file in it"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(folder, words, message):
    done = run(folder, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not (folder / "out.json").exists()


def test_missing_classes_are_named(folder):
    (folder / "first.txt").write_text("n0\nn8\nn9\n")
    done = run(folder, "--sizes", "3", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no images of these classes of ImageNet-1K: n8, n9;")
