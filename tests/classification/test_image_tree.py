"""Trees of images, and reading them, against torchvision's ImageFolder."""

import numpy as np
import pytest
import torchvision
from PIL import Image

from resnext_det.classification.folder import read_rgb, read_tree
from resnext_det.errors import UserError
from tests.classification.classifiers import CLASSES, make_image, make_tree


def test_images_and_labels_are_image_folders(tmp_path):
    root = make_tree(tmp_path / "val")
    ours, theirs = read_tree(root), torchvision.datasets.ImageFolder(str(root))
    assert list(ours.classes) == theirs.classes
    found = [(str(ours.path(i)), ours.labels[i]) for i in range(len(ours))]
    assert found == theirs.samples


def test_folders_in_a_class_and_links_are_walked_as_image_folder_walks_them(tmp_path):
    root, other = make_tree(tmp_path / "val", ("a", "b"), 1), make_tree(tmp_path / "other", ("a",))
    for folder in ("batch2", "batch2/deep", "batch2-b", "B", "x.png", "empty"):
        (root / "a" / folder).mkdir()
    for file in ("batch2/0", "batch2/deep/0", "batch2-b/0", "B/0", "x.png/0", "z", "B0"):
        make_image(0).save(root / "a" / f"{file}.png")
    (root / "b/0.png").unlink()
    (root / "b/linked").symlink_to(other, target_is_directory=True)
    (root / "b/a").symlink_to(root / "a", target_is_directory=True)
    (root / "b/1.png").symlink_to(root / "a/0.png")
    ours, theirs = read_tree(root), torchvision.datasets.ImageFolder(str(root))
    found = [(str(ours.path(i)), ours.labels[i]) for i in range(len(ours))]
    assert found == theirs.samples and len(found) == 8 + 11


@pytest.mark.parametrize("target", [".", "..", "../b"])
def test_a_cycle_of_links_is_refused(target, tmp_path):
    root = make_tree(tmp_path / "val", ("a", "b"), 1)
    (root / "a/link").symlink_to(target, target_is_directory=True)
    (root / "b/link").symlink_to("../a", target_is_directory=True)
    with pytest.raises(UserError, match="link.* is a folder that it is in, by a link: remove"):
        read_tree(root)


def test_other_and_hidden_files_are_left_out(tmp_path):
    root = make_tree(tmp_path / "val", ("a", "b"), 1)
    make_tree(root / "a", (".thumbnails",), 1)
    (root / "labels.csv").write_text("x")
    (root / ".cache").mkdir()
    (root / "a/._0.png").write_bytes(b"x")
    (root / "a/notes.txt").write_text("x")
    make_image(0).save(root / "b/UPPER.JPEG")
    tree = read_tree(root)
    assert [tree.path(i).relative_to(root).as_posix() for i in range(len(tree))] == [
        "a/0.png",
        "b/0.png",
        "b/UPPER.JPEG",
    ]


def test_names_may_be_of_any_letters_and_folders_links(tmp_path):
    root = make_tree(tmp_path / "val", ("häuser", "木"), 1)
    (root / "link").symlink_to(root / "木", target_is_directory=True)
    tree = read_tree(root)
    assert tree.classes == ("häuser", "link", "木")
    assert all(tree.path(i).is_file() for i in range(len(tree)))


def test_labels_follow_a_given_order_of_classes(tmp_path):
    root = make_tree(tmp_path / "val", ("a", "b", "c"), 1)
    tree = read_tree(root, ("c", "a", "b"))
    names = [tree.path(i).parent.name for i in range(3)]
    assert [("c", "a", "b")[label] for label in tree.labels] == names


def test_a_limit_keeps_every_class(tmp_path):
    tree = read_tree(make_tree(tmp_path / "val", each=4))
    few = tree.limited(7)
    assert few.labels.tolist() == list(range(len(CLASSES)))
    assert few.path(2) == tree.path(8)
    assert tree.limited(None) is tree and tree.limited(1000) is tree


def test_a_subset_leaves_other_classes_out(tmp_path):
    root = make_tree(tmp_path / "val", ("a", "b", "c"), 2)
    (root / "b/0.png").unlink()
    (root / "b/1.png").unlink()  # which would be refused
    listed = read_tree(root, ("c", "a"), subset=True)
    make_image(9).save(root / "b/0.png")
    chosen = read_tree(root).labelled(("c", "a"), subset=True)
    for tree in (listed, chosen):
        assert tree.classes == ("c", "a") and len(tree) == 4
        for index in range(4):
            assert tree.path(index).parent.name == tree.classes[tree.labels[index]]
    with pytest.raises(UserError, match="has 3 folders for 2 classes; it lacks 1: d$"):
        read_tree(root, ("a", "d"), subset=True)


def test_images_are_read_by_index(tmp_path):
    tree = read_tree(make_tree(tmp_path / "val", ("a", "b"), 1))
    assert tree.name(1) == str(tmp_path / "val/b/0.png")
    np.testing.assert_array_equal(tree.read(1), Image.open(tree.path(1)))
    tree.path(1).unlink()
    with pytest.raises(UserError, match=f"cannot read image {tree.name(1)}: No such file"):
        tree.read(1)


def test_folders_that_are_not_the_classes_are_named(tmp_path):
    root = make_tree(tmp_path / "val", ("a", "b"), 1)
    with pytest.raises(UserError, match="has 2 folders for 2 classes; it lacks 1: c and has besi"):
        read_tree(root, ("a", "c"))


def test_what_is_no_tree_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be read: No such file"):
        read_tree(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no folder for each class: give .*<class>/<image>"):
        read_tree(tmp_path)
    make_image(0).save(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="holds 1 images and no folder for each class: move them"):
        read_tree(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a holds no image \(.bmp"):
        read_tree(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_images_are_read_as_torchvision_reads_them(mode, tmp_path):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    file = tmp_path / f"a{suffix}"
    make_image(1).convert(mode).save(file)
    theirs = torchvision.datasets.folder.pil_loader(str(file))
    np.testing.assert_array_equal(np.asarray(read_rgb(file)), np.asarray(theirs))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_of_16_bits_the_higher_8_are_kept(suffix, tmp_path):
    deep = np.array([[0, 255, 256, 1000, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    image = read_rgb(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[0], [[v] * 3 for v in (0, 0, 1, 3, 255)])


def test_floating_point_numbers_are_refused(tmp_path):
    Image.fromarray(np.float32([[0.5]])).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="image .*a.tif: floating-point numbers have no known"):
        read_rgb(tmp_path / "a.tif")


def test_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    make_image(1, 64, 48).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").size == (64, 48)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"", "it is none of BMP"),
        (b"<html>", "it is none of BMP"),
        ("half", "truncated"),
    ],
)
def test_images_that_cannot_be_read_are_named(content, message, tmp_path):
    file = tmp_path / "a.jpg"
    if content == "half":
        make_image(1, 300, 300).save(file)
        content = file.read_bytes()[:2000]
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read image {file}: .*{message}"):
        read_rgb(file)
