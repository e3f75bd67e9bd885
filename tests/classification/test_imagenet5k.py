"""The choice of ImageNet-5K's classes."""

import io
import json
import tarfile

import pytest

from resnext_det.classification.imagenet5k import (
    ClassList,
    choose_classes,
    count_images,
    read_class_list,
    read_classes_1k,
)
from resnext_det.errors import UserError

COUNTS = {"n5": 3, "n4": 9, "n3": 1, "n2": 5, "n1": 5, "n0": 5, "n9": 0}


def make_tar(file, names):
    with tarfile.open(file, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))


def test_the_largest_others_follow_the_1k_classes_and_ties_go_by_name():
    chosen = choose_classes(COUNTS, ["n3", "n5"], (2, 3))
    assert chosen.classes == ("n3", "n5", "n0", "n1", "n4")
    assert chosen.images == (1, 3, 5, 5, 9)
    assert chosen.classes_1k == ("n3", "n5")
    assert str(chosen) == (
        "2 classes of ImageNet-1K with 4 images and the 3 largest others with 19: 5 classes, "
        "23 images"
    )


@pytest.mark.parametrize(
    "first, sizes, message",
    [
        (["n3", "n7", "n9"], (3, 1), "no images of these classes of ImageNet-1K: n7, n9; put"),
        (["n3"], (2, 1), "the list of ImageNet-1K has 1 classes, not 2"),
        (["n3"], (1, 6), "only 5 other classes have images, fewer than 6"),
        ([], (0, 1), "--sizes 0 1: at least 1 class"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(first, sizes, message):
    with pytest.raises(UserError, match=message):
        choose_classes(COUNTS, first, sizes)


def test_images_are_counted_in_folders_and_in_tars(tmp_path):
    (tmp_path / "n1").mkdir()
    for name in ("a.JPEG", "b.png", "c.txt", ".d.JPEG"):
        (tmp_path / "n1" / name).write_bytes(b"x")
    make_tar(tmp_path / "n0.tar", ["n0_1.JPEG", "n0_2.JPEG", "n0/n0_3.JPEG", "README"])
    make_tar(tmp_path / "n2.tar", [])
    (tmp_path / "words.txt").write_text("n0\n")
    assert count_images(tmp_path) == {"n0": 3, "n1": 2, "n2": 0}


def test_tars_that_are_not_whole_are_named(tmp_path):
    make_tar(tmp_path / "n0.tar", [f"{n}.JPEG" for n in range(20)])
    content = (tmp_path / "n0.tar").read_bytes()
    for length in (5000, 4608, 3500, 100, 0):
        (tmp_path / "n0.tar").write_bytes(content[:length])
        with pytest.raises(UserError, match="n0.tar is no whole tar file"):
            count_images(tmp_path)


def test_a_class_is_in_one_place(tmp_path):
    (tmp_path / "n0").mkdir()
    make_tar(tmp_path / "n0.tar", ["a.JPEG"])
    with pytest.raises(UserError, match="both a folder and a tar of n0"):
        count_images(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither folders of images nor"):
        count_images(tmp_path)
    with pytest.raises(UserError, match="nowhere cannot be read"):
        count_images(tmp_path / "nowhere")


def test_the_1k_classes_come_from_a_text_or_a_folder(tmp_path):
    (tmp_path / "map.txt").write_text("n01440764 tench, Tinca tinca\n\nn01443537 goldfish\n")
    for name in ("n01440764", "n01443537"):
        (tmp_path / "train" / name).mkdir(parents=True)
    for path in ("map.txt", "train"):
        assert read_classes_1k(tmp_path / path) == ["n01440764", "n01443537"]
    (tmp_path / "map.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="names a twice"):
        read_classes_1k(tmp_path / "map.txt")
    with pytest.raises(UserError, match="nowhere cannot be read: No such file"):
        read_classes_1k(tmp_path / "nowhere")


def test_a_list_is_read_as_it_was_written(tmp_path):
    chosen = ClassList(("a", "b", "c"), 2, (4, 5, 6))
    chosen.write(tmp_path / "classes.json")
    assert read_class_list(tmp_path / "classes.json") == chosen
    assert [p.name for p in tmp_path.iterdir()] == ["classes.json"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "is no list of classes"),
        ("{", "is no list of classes"),
        (json.dumps({"classes": ["a", "a"], "classes_1k": 1, "images": [1, 1]}), "occurs twice"),
        (json.dumps({"classes": ["a"], "classes_1k": 2, "images": [1]}), "do not fit"),
        (json.dumps({"classes": [1], "classes_1k": 1, "images": [1]}), "of another type"),
        (json.dumps({"classes": ["a"], "images": [1]}), "classes_1k"),
    ],
)
def test_another_file_than_a_list_is_refused(content, message, tmp_path):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_class_list(tmp_path / "classes.json")
    assert "prepare_imagenet5k.py" in str(caught.value)
