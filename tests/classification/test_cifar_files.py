"""CIFAR's files, against torchvision's reading of the same."""

import hashlib
import pickle
import sys

import numpy as np
import pytest
import torchvision

from resnext_det.classification.cifar import find_cifar, read_cifar
from resnext_det.errors import UserError
from tests.classification.cifar_files import (
    CIFAR10,
    make_batch,
    python2,
    python3,
    write_binary,
    write_names,
    write_pickle,
)

COUNT = 10000


@pytest.fixture(scope="module")
def batches():
    return [make_batch(seed, COUNT, 10) for seed in range(6)]


def read(root, split):
    return read_cifar(*find_cifar(root), split)


def write_cifar10(folder, batches, dump=None):
    """All six files, the last is the test's; with `dump` pickles."""
    folder.mkdir(parents=True)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for name, batch in zip(names, batches, strict=True):
        if dump is None:
            write_binary(folder / f"{name}.bin", batch, 10)
        else:
            write_pickle(folder / name, batch, 10, dump)
    write_names(folder, 10, dump)
    return folder


def torchvisions(base, root, train):
    """torchvision's set, told the checksums of our files."""

    def listed(names):
        folder = root / base.base_folder
        return [[n, hashlib.md5((folder / n).read_bytes()).hexdigest()] for n in names]

    names = {
        "train_list": listed([name for name, _ in base.train_list]),
        "test_list": listed([name for name, _ in base.test_list]),
        "meta": {**base.meta, "md5": listed([base.meta["filename"]])[0][1]},
    }
    return type("OurFiles", (base,), names)(str(root), train=train)


def require_equal(ours, theirs):
    assert list(ours.classes) == theirs.classes
    assert ours.labels.tolist() == theirs.targets and ours.labels.dtype == np.int64
    np.testing.assert_array_equal(ours.pixels, theirs.data)
    image, label = theirs[1234]
    np.testing.assert_array_equal(ours.read(1234), image)
    assert ours.read(1234).mode == "RGB" and ours.labels[1234] == label


def test_both_forms_are_read_as_torchvision_reads_them(batches, tmp_path):
    write_cifar10(tmp_path / "py/cifar-10-batches-py", batches, python2)
    write_cifar10(tmp_path / "bin/cifar-10-batches-bin", batches)
    for train in (True, False):
        theirs = torchvisions(torchvision.datasets.CIFAR10, tmp_path / "py", train)
        split = "train" if train else "test"
        require_equal(read(tmp_path / "py", split), theirs)
        require_equal(read(tmp_path / "bin", split), theirs)


def test_cifar_100_has_the_fine_labels(tmp_path):
    sets = {"train": make_batch(0, 50000, 100), "test": make_batch(1, COUNT, 100)}
    python, binary = tmp_path / "py/cifar-100-python", tmp_path / "bin/cifar-100-binary"
    for folder, dump in ((python, python2), (binary, None)):
        folder.mkdir(parents=True)
        write_names(folder, 100, dump)
    for split, batch in sets.items():
        write_pickle(python / split, batch, 100)
        write_binary(binary / f"{split}.bin", batch, 100)
    for split in sets:
        theirs = torchvisions(torchvision.datasets.CIFAR100, tmp_path / "py", split == "train")
        require_equal(read(tmp_path / "py", split), theirs)
        require_equal(read(tmp_path / "bin", split), theirs)


@pytest.fixture
def test_only(batches, tmp_path):
    """Both forms' test files alone, pickles of Python 3."""
    for name, dump in (("bin", None), ("py", python3)):
        (tmp_path / name).mkdir()
        write_names(tmp_path / name, 10, dump)
    write_binary(tmp_path / "bin/test_batch.bin", batches[5], 10)
    write_pickle(tmp_path / "py/test_batch", batches[5], 10, python3)
    return tmp_path


def test_planes_become_pixels_in_rgb(batches, test_only):
    red, green, blue = batches[5].rows[7].reshape(3, 32, 32)
    for form in ("bin", "py"):
        images = read(test_only / form, "test")
        np.testing.assert_array_equal(images.pixels[7, 3, 5], (red[3, 5], green[3, 5], blue[3, 5]))
        few = images.limited(100)
        np.testing.assert_array_equal(few.pixels[1], images.pixels[100])
        assert few.labels[1] == batches[5].labels[100]
        animals = images.labelled(("dog", "cat"), subset=True)
        assert len(animals) == 2000
        np.testing.assert_array_equal(animals.pixels[animals.labels == 1][0], _first(images, "cat"))


def _first(images, name):
    return images.pixels[images.labels == CIFAR10.index(name)][0]


@pytest.mark.parametrize("form", ["bin", "py"])
def test_damaged_files_are_one_line(form, test_only):
    file = test_only / form / ("test_batch.bin" if form == "bin" else "test_batch")
    content = file.read_bytes()
    for kept in (content[:-1], content[: 3073 * 500], b"", b"<html>"):
        file.write_bytes(kept)
        with pytest.raises(UserError, match=f"{file} (has .* bytes|is not a readable C)") as caught:
            read(test_only / form, "test")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"data_batch_1(.bin)? cannot be read: No such file"):
        read(test_only / form, "train")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"labels": [0]}, "has no array of pixels"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "has no array of pixels"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}, "has no list of labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]}, "has no list of labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 2**70]}, "has no list of labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "holds 2 images and 1 labels"),
        (
            {"data": np.zeros((COUNT, 3), np.uint8), "labels": [0] * COUNT},
            "has images of 3 numbers",
        ),
        ([1], "holds a list"),
    ],
)
def test_pickles_of_something_else_are_refused(content, message, test_only):
    (test_only / "py/test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match=f"py/test_batch {message}"):
        read(test_only / "py", "test")


def test_labels_that_are_no_class_are_refused(batches, test_only):
    batch = make_batch(0, COUNT, 10)
    batch.labels[5] = 10
    write_binary(test_only / "bin/test_batch.bin", batch, 10)
    write_pickle(test_only / "py/test_batch", batch, 10)
    for form in ("bin", "py"):
        with pytest.raises(UserError, match="has a label 10 of 10 classes"):
            read(test_only / form, "test")


def test_nothing_that_a_pickle_names_is_run(test_only, monkeypatch):
    called = []
    monkeypatch.setattr(sys, "displayhook", called.append)
    harm = b"csys\ndisplayhook\n(S'x'\ntR."
    pickle.loads(harm)
    assert called == ["x"]  # it would be
    for name in ("test_batch", "batches.meta"):
        (test_only / "py" / name).write_bytes(harm)
        with pytest.raises(UserError, match=f"{name} is not a readable CIFAR.*sys.displayhook"):
            read(test_only / "py", "test")
        write_pickle(test_only / "py/test_batch", make_batch(0, COUNT, 10), 10)
    assert called == ["x"]


def test_names_are_complete(test_only):
    (test_only / "bin/batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="batches.meta.txt names 2 classes, not 10"):
        read(test_only / "bin", "test")
    (test_only / "bin/batches.meta.txt").unlink()
    with pytest.raises(UserError, match="batches.meta.txt cannot be read: No such file"):
        read(test_only / "bin", "test")


def test_a_folder_of_several_sets_is_refused(test_only, tmp_path):
    assert find_cifar(tmp_path) is None
    (test_only / "bin").rename(tmp_path / "cifar-10-batches-bin")
    (test_only / "py").rename(tmp_path / "cifar-10-batches-py")
    with pytest.raises(UserError, match="holds cifar-10-batches-bin and cifar-10-batches-py: give"):
        find_cifar(tmp_path)
