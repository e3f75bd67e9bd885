"""Images in tar files, against tar's own unpacking and torchvision's ImageFolder."""

import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from resnext_det.classification.archives import count_in_tar, read_tars
from resnext_det.errors import UserError
from tests.classification.classifiers import make_image, make_tree
from tests.classification.tars import png, write_tar


def read(*files, **options):
    return read_tars(files, files[0].parent, **options)


def found(images):
    """The class of each image by its name in the tar."""
    return {
        images.name(i).rpartition(":")[2]: images.classes[images.labels[i]]
        for i in range(len(images))
    }


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_packed_tree_is_the_tree(form, tmp_path):
    root = make_tree(tmp_path / "tree", ("häuser", "dog", "x" * 120), 2)
    (root / "dog" / ("long" * 50 + ".png")).write_bytes(png(77))
    command = ["tar", f"--format={form}", "-cf", tmp_path / "a.tar", "-C", root, "."]
    subprocess.run(command, check=True)
    ours, theirs = read(tmp_path / "a.tar"), torchvision.datasets.ImageFolder(str(root))
    assert list(ours.classes) == theirs.classes and len(ours) == len(theirs)
    expected = {os.path.relpath(path, root): (path, label) for path, label in theirs.samples}
    for index in range(len(ours)):
        name = os.path.normpath(ours.name(index).removeprefix(f"{tmp_path}/a.tar:"))
        path, label = expected.pop(name)
        assert ours.labels[index] == label
        np.testing.assert_array_equal(ours.read(index), theirs.loader(path))
    assert not expected


def test_shards_of_webdataset_have_numbers(tmp_path):
    first = write_tar(
        tmp_path / "train-000.tar",
        {"a/0001.png": 1, "a/0001.cls": "2", "a/0001.json": "{}", "0002.cls": "0\n", "0002.PNG": 2},
    )
    second = write_tar(tmp_path / "train-001.tar", {"0001.cls": "1", "0001.large.png": 3})
    images = read(first, second)
    assert images.classes == ("0", "1", "2") and images.labels.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(images.read(2), make_image(3))
    assert images.name(2) == f"{second}:0001.large.png"
    named = read(first, second, classes=("dog", "cat", "ant"))
    assert named.classes == ("dog", "cat", "ant") and named.labels.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="train-000.tar:a/0001.png is of class 2, there are 2"):
        read(first, second, classes=("dog", "cat"))
    with pytest.raises(UserError, match="has an image of class 2, none of 1"):
        read(first)


def test_a_bare_image_is_of_its_tars_class(tmp_path):
    dog = write_tar(tmp_path / "dog.tar", {"1.png": 1, "./2.png": 2, "README": "x", "._2.png": "x"})
    cat = write_tar(tmp_path / "cat.tar", {"1.png": 3})
    images = read(dog, cat)
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [1, 1, 0]
    assert read(dog, cat, classes=("dog", "cat")).labels.tolist() == [0, 0, 1]
    only = read(dog, cat, classes=("cat",), subset=True)
    assert only.labels.tolist() == [0]
    np.testing.assert_array_equal(only.read(0), make_image(3))


def add_link(file, name, target, kind=tarfile.LNKTYPE):
    with tarfile.open(file, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)


def test_symbolic_links_and_hidden_folders_are_left_out(tmp_path):
    file = write_tar(tmp_path / "a.tar", {"dog/1.png": 1, "__M/.x/2.png": 2, "../cat/3.png": 3})
    add_link(file, "dog/4.png", "dog/1.png", tarfile.SYMTYPE)
    assert found(read(file)) == {"dog/1.png": "dog", "../cat/3.png": "cat"}


def test_hard_links_are_the_files_before_them(tmp_path):
    root = make_tree(tmp_path / "tree", ("cat", "dog"), 2)
    (root / "dog/2.png").hardlink_to(root / "cat/1.png")
    (root / "dog/3.png").hardlink_to(root / "cat/1.png")
    file = tmp_path / "a.tar"
    subprocess.run(["tar", "--sort=name", "-cf", file, "-C", root, "."], check=True)
    with tarfile.open(file) as archive:
        assert sum(member.islnk() for member in archive) == 2
    images = read(file)
    assert [images.classes[label] for label in images.labels] == ["cat"] * 2 + ["dog"] * 4
    for index in (4, 5):
        assert images.name(index) == f"{file}:./dog/{index - 2}.png"
        np.testing.assert_array_equal(images.read(index), Image.open(root / "cat/1.png"))
    assert count_in_tar(file) == 6


def test_hard_links_of_webdataset_shards_have_content_too(tmp_path):
    file = write_tar(tmp_path / "a.tar", {".store/x": "0", ".store/y": 1})
    add_link(file, "1.cls", ".store/x")
    add_link(file, "1.png", ".store/y")
    images = read(file)
    assert images.classes == ("0",)
    np.testing.assert_array_equal(images.read(0), make_image(1))


@pytest.mark.parametrize("target", ["dog/2.png", "dog/3.png", "cat", "elsewhere.png"])
def test_hard_links_to_no_file_before_them_are_refused(target, tmp_path):
    file = write_tar(tmp_path / "a.tar", {"dog/1.png": 1})
    add_link(file, "cat", "", tarfile.DIRTYPE)
    add_link(file, "README", "elsewhere")  # is no image
    assert len(read(file)) == 1
    add_link(file, "dog/2.png", target)
    with tarfile.open(file, "a") as archive:
        archive.add(Path(__file__), "dog/3.png")
    with pytest.raises(UserError, match=f"a.tar:dog/2.png is a hard link to {target}, which is no"):
        read(file)


def test_a_sparse_member_is_refused(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/1.png").write_bytes(png(1))
    os.truncate(tmp_path / "dog/1.png", 1 << 20)
    command = ["tar", "--sparse", "-cf", tmp_path / "a.tar", "-C", tmp_path, "dog"]
    subprocess.run(command, check=True)
    with pytest.raises(UserError, match="a.tar:dog/1.png is sparse: make the tar without that"):
        read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "members, message",
    [
        ({"1.png": 1, "dog/2.png": 2}, "its folder would say the class of .*a.tar:dog/2.png, but"),
        ({"1.png": 1, "1.cls": "0", "d/2.png": 2}, "a.tar:d/2.png, but a .cls member that of .*1"),
        ({"1.png": 1, "1.cls": "dog"}, "a.tar:1.cls holds 'dog', not the number of a class"),
        ({"1.png": 1, "1.cls": "-1"}, "a.tar:1.cls holds '-1', not"),
        ({"1.png": 1, "1.cls": "9" * 10**6}, "a.tar:1.cls holds '99999999999999999999', not"),
        ({"1.png": 1, "1.seg.png": 2, "1.cls": "0"}, "a.tar:1 has two images, 1.seg.png is one"),
        ({"1.png": 1, "2.png": 1}, "does not tell the classes of its images: pack <class>/<im"),
        ({"train/dog/1.png": 1, "val/dog/2.png": 2}, "holds images in train and in val: make a"),
        ({"a.txt": "x"}, r"a.tar holds no image \(.bmp"),
        ({}, r"a.tar holds no image \(.bmp"),
        ({"n01440764.tar": "x"}, "a.tar holds tar files, such as n01440764.tar: unpack them"),
    ],
)
def test_members_without_a_certain_class_are_refused(members, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(write_tar(tmp_path / "a.tar", members))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_compressed_tars_are_refused_whatever_they_are_called(mode, tmp_path):
    for name in (f"a.tar.{mode}", "a.tar"):
        file = write_tar(tmp_path / name, {"dog/1.png": 1}, f"w:{mode}")
        with pytest.raises(UserError, match=f"{name} is compressed, .* plain .tar"):
            read(file)


def test_tars_that_are_not_whole_are_named(tmp_path):
    file = write_tar(tmp_path / "a.tar", {f"dog/{n}.png": n for n in range(3)})
    content = file.read_bytes()
    with tarfile.open(file) as archive:
        offsets = [m.offset for m in archive] + [archive.offset]
    for length in (0, 100, *offsets[1:], *(o - 1 for o in offsets[1:]), offsets[1] + 100):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="a.tar is no whole tar file"):
            read(file)
    file.write_bytes(content[: offsets[1]] + b"\xff" * 512 + content[offsets[1] + 512 :])
    with pytest.raises(UserError, match=f"it is damaged at byte {offsets[1]}"):
        read(file)
    with pytest.raises(UserError, match="nowhere.tar cannot be read: No such file"):
        read(tmp_path / "nowhere.tar")


def _header(name, size=0, pax=None, type=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers, info.type = size, pax or {}, type
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header, message",
    [
        (_header("dog/2.png", -512), "it is damaged at byte 1024$"),  # back to this header
        (_header("dog/2.png", -1), "it is damaged at byte 1024$"),
        (_header("dog/2.png", pax={"size": "-1536"}), "it is damaged at byte 1024$"),
        (_header("dog", -1024, type=tarfile.DIRTYPE), "it is damaged at byte 1024$"),
        (_header("dog/2.png", -512, type=tarfile.GNUTYPE_SPARSE), "it is damaged at byte 1024$"),
        (_header("a/" * 2049), "a name of 4098 bytes at byte 1024 is longer than 4096$"),
        (_header("x", pax={"linkpath": "ä" * 2049}), "a name of 4098 bytes at byte 1024 is"),
    ],
)
@pytest.mark.parametrize("list_them", [read, count_in_tar])
def test_headers_that_lead_astray_are_refused(list_them, header, message, tmp_path):
    content = _header("dog/1.png", 8) + bytes(512)
    (tmp_path / "a.tar").write_bytes(content + header + bytes(10240))
    with pytest.raises(UserError, match=message):
        list_them(tmp_path / "a.tar")


def test_a_size_for_all_members_does_not_reach_beyond_them(tmp_path):
    header = tarfile.TarInfo.create_pax_global_header({"size": str(2**62)})
    (tmp_path / "a.tar").write_bytes(header + _header("dog/1.png", 8) + bytes(10240))
    with pytest.raises(UserError, match="it is damaged at byte 0"):
        read(tmp_path / "a.tar")


def test_images_that_cannot_be_read_are_named(tmp_path):
    file = write_tar(tmp_path / "a.tar", {"dog/1.png": png(1)[:500], "dog/2.png": b""})
    images = read(file)
    with pytest.raises(UserError, match="cannot read image .*a.tar:dog/1.png: .*truncated"):
        images.read(0)
    with pytest.raises(UserError, match="cannot read image .*a.tar:dog/2.png: it is none of BMP"):
        images.read(1)


def test_a_tar_that_changes_or_goes_is_noticed(tmp_path):
    file = write_tar(tmp_path / "a.tar", {"dog/1.png": 1})
    images = read(file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="a.tar was changed after its images were listed"):
        images.read(0)
    file.unlink()
    with pytest.raises(UserError, match="cannot read image .*a.tar:dog/1.png: No such file"):
        images.read(0)


def test_a_limit_keeps_names_and_content_together(tmp_path):
    file = write_tar(tmp_path / "a.tar", {f"c{n // 3}/{n}.png": n for n in range(9)})
    few = read(file).limited(3)
    assert found(few) == {"c0/0.png": "c0", "c1/3.png": "c1", "c2/6.png": "c2"}
    np.testing.assert_array_equal(few.read(1), make_image(3))


class _Arrays(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return np.asarray(self.images.read(index))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_their_parent_opened(start, tmp_path):
    files = [write_tar(tmp_path / f"{n}.tar", {"a.png": n, "b.png": n + 70}) for n in range(70)]
    images = read(*files)  # more than are kept open
    for index in range(len(images)):
        images.read(index)
    assert len(pickle.dumps(images)) < 100 * len(images)
    loader = DataLoader(
        _Arrays(images), batch_size=None, num_workers=2, multiprocessing_context=start
    )
    for index, array in enumerate(loader):
        np.testing.assert_array_equal(array, make_image(index // 2 + 70 * (index % 2)))
