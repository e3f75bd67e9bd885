"""What a path is taken for, and what is said about a wrong one."""

import pickle
import shutil
import tarfile

import numpy as np
import pytest

from resnext_det.classification.archives import TarImages
from resnext_det.classification.cifar import CifarImages
from resnext_det.classification.folder import ImageTree
from resnext_det.classification.reading import expand_pattern, read_images
from resnext_det.errors import UserError
from tests.classification.cifar_files import CIFAR10, make_batch, write_binary, write_names
from tests.classification.classifiers import make_image, make_tree
from tests.classification.tars import write_tar


def pack(root, file):
    """The folder as a tar."""
    with tarfile.open(file, "w") as archive:
        archive.add(root, ".")
    return file


def labelled(images):
    """Class and pixels of each image."""
    return sorted(
        (images.classes[images.labels[i]], np.asarray(images.read(i)).tobytes())
        for i in range(len(images))
    )


@pytest.mark.parametrize(
    "name, test",
    [("train", "val"), ("train", "test"), ("train", "valid"), ("training", "validation")],
)
def test_a_folder_of_splits_is_read_by_split(name, test, tmp_path):
    make_tree(tmp_path / name, ("a", "b"), 2)
    make_tree(tmp_path / test, ("a", "b"), 1)
    (tmp_path / "devkit").mkdir()
    train, tested = read_images(tmp_path, "train"), read_images(str(tmp_path), "test")
    assert isinstance(train, ImageTree) and train.root == tmp_path / name and len(train) == 4
    assert tested.root == tmp_path / test and len(tested) == 2
    assert read_images(tmp_path / name, "test").root == tmp_path / name


def test_val_is_taken_before_test(tmp_path):
    for name in ("train", "val", "test"):
        make_tree(tmp_path / name, ("a", "b"), 1)
    assert read_images(tmp_path, "test").root == tmp_path / "val"


def test_all_ways_of_packing_hold_the_same_images(tmp_path):
    tree = make_tree(tmp_path / "tree", ("a", "b", "c"), 2)
    expected = labelled(read_images(tree, "train"))
    whole = pack(tree, tmp_path / "whole.tar")
    mixed, single = make_tree(tmp_path / "mixed", ("a", "b", "c"), 2), tmp_path / "single"
    single.mkdir()
    for name in ("a", "b", "c"):
        pack(tree / name, single / f"{name}.tar")
    for name in ("a", "c"):
        shutil.move(mixed / name, tmp_path / f"no longer {name}")
        shutil.copy(single / f"{name}.tar", mixed)
    for path in (whole, single, single / "*.tar", f"{single}/{{a,b,c}}.tar"):
        images = read_images(path, "train")
        assert isinstance(images, TarImages) and images.classes == ("a", "b", "c")
        assert labelled(images) == expected
    joined = pickle.loads(pickle.dumps(read_images(mixed, "train")))
    assert joined.classes == ("a", "b", "c") and joined.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert joined.name(0) == f"{mixed}/a.tar:./0.png" and joined.name(2) == f"{mixed}/b/0.png"
    assert labelled(joined) == expected
    assert [joined.limited(3).name(i) for i in range(3)] == [joined.name(i) for i in (0, 2, 4)]
    for path in (tree, whole, single, mixed):
        some = read_images(path, "train", ("c", "b"), subset=True)
        assert some.classes == ("c", "b")
        assert labelled(some) == [pair for pair in expected if pair[0] != "a"]
        with pytest.raises(UserError, match="for 2 classes; it has beside them 1: a"):
            read_images(path, "train", ("c", "b"))
        with pytest.raises(UserError, match="for 2 classes; it lacks 1: d"):
            read_images(path, "train", ("c", "d"), subset=True)


def test_only_the_tars_of_a_subset_are_read(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"1.png": 1, f"{name}/2.png": 2})
    (tmp_path / "c.tar").write_bytes(b"no tar")
    images = read_images(tmp_path, "train", ("b", "a"), subset=True)
    assert images.labels.tolist() == [1, 1, 0, 0]
    make_tree(tmp_path, ("d",), 1)
    assert len(read_images(tmp_path, "train", ("b", "d"), subset=True)) == 3
    with pytest.raises(UserError, match="c.tar is no whole tar file"):
        read_images(tmp_path, "train")


def test_a_class_in_two_places_is_refused(tmp_path):
    make_tree(tmp_path, ("a", "b"), 1)
    write_tar(tmp_path / "a.tar", {"1.png": 1})
    with pytest.raises(UserError, match="has both a folder and a tar of a: leave one"):
        read_images(tmp_path, "train")
    (tmp_path / "a.tar").unlink()
    write_tar(tmp_path / "all.tar", {"a/1.png": 1})
    with pytest.raises(UserError, match="all.tar:a/1.png is not just of class all: beside folders"):
        read_images(tmp_path, "train")


def test_shards_of_both_splits_in_a_folder_are_told_apart(tmp_path):
    for name, seeds in (("train-00", "01"), ("train-01", "23"), ("validation-00", "45")):
        members = {
            f"{label}/{seed}.png": int(seed) for label, seed in zip("ab", seeds, strict=True)
        }
        write_tar(tmp_path / f"set-{name}.tar", members)
    assert len(read_images(tmp_path, "train")) == 4
    tested = read_images(tmp_path, "test")
    np.testing.assert_array_equal(tested.read(1), make_image(5))
    write_tar(tmp_path / "more.tar", {"a/1.png": 1})
    with pytest.raises(UserError, match="more.tar, which may be of either split: give a pattern"):
        read_images(tmp_path, "train")


def test_cifars_files_are_found_before_trees(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    write_names(folder, 10)
    write_binary(folder / "test_batch.bin", make_batch(0, 10000, 10), 10)
    make_tree(tmp_path, ("a",), 1)
    for path in (tmp_path, folder):
        images = read_images(path, "test")
        assert isinstance(images, CifarImages) and images.classes == CIFAR10
    assert read_images(folder, "test", CIFAR10[::-1]).labels[0] == 9 - images.labels[0]
    with pytest.raises(UserError, match="has 10 classes for 1 classes; it has beside them 9"):
        read_images(folder, "test", ("cat",))
    with pytest.raises(UserError, match="data_batch_1.bin cannot be read: No such file"):
        read_images(tmp_path, "train")


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("t-{000..002}.tar", ["t-000", "t-001", "t-002"]),
        ("t-{2..0}.tar", ["t-2", "t-1", "t-0"]),
        ("t-{8..11}.tar", ["t-8", "t-9", "t-10", "t-11"]),
        ("{a,b}-{0..1}.tar", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a}.tar", ["{a}"]),
        ("[ab]-?.tar", ["a-0", "a-1", "b-0", "b-1"]),
        ("{b,a}-*.tar", ["b-0", "b-1", "a-0", "a-1"]),
    ],
)
def test_patterns_stand_for_files(pattern, names, tmp_path):
    for name in ("{a}", "a-0", "a-1", "b-0", "b-1", *(f"t-{n}" for n in range(12))):
        (tmp_path / f"{name}.tar").touch()
    for number in range(3):
        (tmp_path / f"t-{number:03d}.tar").touch()
    assert [f.stem for f in expand_pattern(str(tmp_path / pattern))] == names


@pytest.mark.parametrize(
    "path, message",
    [
        ("nowhere", "there is no file or folder .*nowhere$"),
        ("nowhere-*.tar", "no file matches .*nowhere-"),
        ("a-{0..3}.tar", "3 of 4 files are absent, such as .*a-1.tar"),
        ("a-{0..99999999999}.tar", "stands for more than 100000 files"),
        ("{0..9999}{0..9999}.tar", "stands for more than 100000 files"),
        ("list.txt", "list.txt is no tar file: give a folder of images by class, .tar files, or"),
        ("empty", "has no folder for each class: give .*<class>/<image>"),
        ("flat", "flat holds 1 images and no folder for each class: move them"),
        ("above", "images holds no image but folders: if a, b are the classes, give .*/images$"),
        ("lone", "give .*lone/train for training alone$"),
        ("held", "give .*held/val for testing alone$"),
        ("x" * 300, "/x{300} cannot be read: File name too long$"),
        ("packed", "packed holds cifar-10-python.tar.gz, which is compressed: unpack it"),
        ("packed/cifar-10-python.tar.gz", "cifar-10-python.tar.gz is compressed, .*: unpack it"),
        ("a-0.tar", "a-0.tar is no whole tar file"),
    ],
)
def test_a_wrong_path_is_explained(path, message, tmp_path):
    for name in ("empty", "flat", "packed"):
        (tmp_path / name).mkdir()
    (tmp_path / "a-0.tar").touch()
    (tmp_path / "list.txt").touch()
    (tmp_path / "packed/cifar-10-python.tar.gz").touch()
    make_image(0).save(tmp_path / "flat/1.png")
    for folder in ("above/images", "lone/train", "lone/holdout", "held/val", "held/devkit"):
        make_tree(tmp_path / folder, ("a", "b"), 1)
    with pytest.raises(UserError, match=message) as caught:
        read_images(tmp_path / path, "train")
    assert "\n" not in str(caught.value)


def test_a_class_may_be_called_as_a_split(tmp_path):
    make_tree(tmp_path / "plain", ("bus", "train"), 2)
    make_tree(tmp_path / "plain/train", ("first", "second"), 1)
    for name in ("bus", "train"):  # as Tiny ImageNet
        make_tree(tmp_path / "deep" / name, ("images",), 2)
    for folder, counts in (("plain", [2, 4]), ("deep", [2, 2])):
        images = read_images(tmp_path / folder, "train")
        assert images.classes == ("bus", "train")
        assert np.bincount(images.labels).tolist() == counts


def test_a_long_pattern_of_short_names_is_no_long_name(tmp_path):
    write_tar(tmp_path / "a-0000.tar", {"a/1.png": 1})
    names = ",".join(["a-0000"] * 50)
    assert len(read_images(tmp_path / f"{{{names}}}.tar", "train")) == 50


@pytest.mark.parametrize(
    "name, method", [("set", "is_file"), ("set", "is_dir"), ("set", "iterdir"), ("a.tar", "exists")]
)
def test_what_the_system_does_not_let_us_see_is_named(name, method, tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    make_tree(tmp_path / "set", ("a",), 1)
    monkeypatch.setattr(type(tmp_path), method, refuse)
    with pytest.raises(UserError, match=f"/{name}.* cannot be read: Permission denied$"):
        read_images(tmp_path / name, "train")


def test_a_split_is_train_or_test(tmp_path):
    with pytest.raises(ValueError, match="split 'val': one of train, test"):
        read_images(tmp_path, "val")
