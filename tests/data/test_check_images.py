"""Every kind of image file, as Detectron2 reads it and as the doctor speaks of it."""

import json

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from resnext_det.data import check_images as module
from resnext_det.data.check_images import check_images
from resnext_det.data.findings import Findings
from resnext_det.errors import UserError

WIDTH, HEIGHT = 48, 32


def picture(mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_jpeg(path, mode="RGB", orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    picture(mode).save(path, "JPEG", exif=exif)


def write_part(path, share, suffix="JPEG"):
    picture().save(path, suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def check(root, *names, size=(WIDTH, HEIGHT), workers=1):
    images = [
        {"id": i, "file_name": name, "width": size[0], "height": size[1]}
        for i, name in enumerate(names, 7)
    ]
    findings = Findings()
    return findings, check_images(images, root, findings, workers=workers)


def only(findings):
    (finding,) = findings.as_list()
    return finding.severity, finding.code, finding.examples


@pytest.mark.parametrize("mode", ["RGB", "P"])
@pytest.mark.parametrize("name", ["a.png", "sub/a.bmp"])
def test_good_files_have_no_finding(mode, name, tmp_path):
    (tmp_path / "sub").mkdir()
    picture(mode).save(tmp_path / name)
    findings, unusable = check(tmp_path, name)
    assert findings.as_list() == []
    assert unusable == set()


UNUSABLE = {
    "missing": (lambda path: None, "image-missing", ""),
    "empty": (lambda path: path.touch(), "image-unreadable", ": the file is empty"),
    "folder": (lambda path: path.mkdir(), "image-unreadable", ": not a file"),
    "text": (
        lambda path: path.write_text("not an image"),
        "image-unreadable",
        ": UnidentifiedImageError: cannot identify image file the file",
    ),
    "half a JPEG": (lambda path: write_part(path, 0.7), "image-truncated", None),
    "most of a JPEG": (lambda path: write_part(path, 0.95), "image-truncated", None),
    "half a PNG": (lambda path: write_part(path, 0.5, "PNG"), "image-truncated", None),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_training_cannot_read_is_named(kind, tmp_path):
    write, code, reason = UNUSABLE[kind]
    write(tmp_path / "a.jpg")
    findings, unusable = check(tmp_path, "a.jpg")
    assert unusable == {0}
    severity, found, (example,) = only(findings)
    assert (severity, found) == ("error", code)
    place = f"image 7 (file '{tmp_path}/a.jpg')"
    if reason is None:
        assert example.startswith(f"{place}: OSError: ")
        assert "truncated" in example
    else:
        assert example == place + reason
    with pytest.raises(Exception):  # noqa: B017 - whatever Pillow raises
        read_image(str(tmp_path / "a.jpg"), "BGR")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_that_detectron2_reads(orientation, tmp_path):
    write_jpeg(tmp_path / "a.jpg", orientation=orientation)
    height, width = read_image(str(tmp_path / "a.jpg"), "BGR").shape[:2]
    findings, unusable = check(tmp_path, "a.jpg", size=(width, height))
    assert unusable == set()
    assert "image-size" not in findings
    assert ("image-exif" in findings) == (orientation > 1)


def test_a_size_from_before_exifs_rotation_is_an_error(tmp_path):
    write_jpeg(tmp_path / "a.jpg", orientation=6)
    findings, _ = check(tmp_path, "a.jpg")
    assert findings["image-size"].severity == "error"
    assert findings["image-size"].examples == [
        f"image 7 (file '{tmp_path}/a.jpg'): 32 x 48 after EXIF's rotation, stated 48 x 32"
    ]
    assert findings["image-exif"].examples == [f"image 7 (file '{tmp_path}/a.jpg'): orientation 6"]


def test_another_size_than_stated_is_an_error(tmp_path):
    write_jpeg(tmp_path / "a.jpg")
    findings, unusable = check(tmp_path, "a.jpg", size=(64, 32))
    assert only(findings) == (
        "error",
        "image-size",
        [f"image 7 (file '{tmp_path}/a.jpg'): 48 x 32, stated 64 x 32"],
    )
    assert unusable == set()


def sixteen_bit():
    return Image.fromarray(np.full((HEIGHT, WIDTH), 3000, np.uint16))


@pytest.mark.parametrize(
    ("image", "name", "severity", "code", "mode"),
    [
        (picture("CMYK"), "a.jpg", "warning", "image-cmyk", "CMYK"),
        (picture("L"), "a.jpg", "note", "image-gray", "L"),
        (picture("1"), "a.png", "note", "image-gray", "1"),
        (picture("RGBA"), "a.png", "note", "image-alpha", "RGBA"),
        (sixteen_bit(), "a.png", "warning", "image-16-bit", "I;16"),
    ],
)
def test_unusual_pixels_are_told(image, name, severity, code, mode, tmp_path):
    image.save(tmp_path / name)
    findings, unusable = check(tmp_path, name)
    assert only(findings) == (severity, code, [f"image 7 (file '{tmp_path}/{name}'): mode {mode}"])
    assert unusable == set()


def test_16_bit_images_turn_white_as_the_message_says(tmp_path):
    sixteen_bit().save(tmp_path / "a.png")
    assert (read_image(str(tmp_path / "a.png"), "BGR") == 255).all()
    findings, _ = check(tmp_path, "a.png")
    assert "cuts values at 255, so most pixels are white" in findings["image-16-bit"].message


def test_an_image_beyond_pillows_limit_is_told(tmp_path, monkeypatch):
    write_jpeg(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    findings, _ = check(tmp_path, "a.jpg")
    assert only(findings)[1:] == ("image-huge", [f"image 7 (file '{tmp_path}/a.jpg'): 48 x 32"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert only(check(tmp_path, "a.jpg")[0])[1] == "image-unreadable"


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "..", "\0", "", None])
def test_names_that_leave_the_folder_are_never_opened(name, tmp_path):
    write_jpeg(tmp_path / "a.jpg")
    (tmp_path / "images").mkdir()
    assert check(tmp_path / "images", name)[0].as_list() == []


def test_processes_find_what_one_finds_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FEW", 2)
    monkeypatch.setattr(module, "_CHUNK", 2)
    for index in range(6):
        write_part(tmp_path / f"{index}.jpg", 0.7 if index % 2 else 1)
    names = [f"{i}.jpg" for i in range(7)]
    one, several = check(tmp_path, *names, workers=1), check(tmp_path, *names, workers=2)
    assert several[1] == one[1] == {1, 3, 5, 6}
    assert [f.__dict__ for f in several[0].as_list()] == [f.__dict__ for f in one[0].as_list()]
    json.dumps(one[0]["image-truncated"].examples)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^image folder {tmp_path}/x is not there$"):
        check(tmp_path / "x", "a.jpg")
