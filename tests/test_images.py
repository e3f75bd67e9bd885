import io

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnext_det.errors import UserError
from resnext_det.images import decode_image, pil_to_bgr, read_image, to_array


@pytest.fixture(scope="module")
def rgb():
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC)


def save(image, file, **options):
    image.save(file, **options)
    return file


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((suffix, mode) for suffix in ("png", "tif") for mode in ("RGB", "L", "P", "1", "LA")),
        *((suffix, "RGB") for suffix in ("jpg", "bmp", "gif", "webp", "ppm")),
        *((suffix, "L") for suffix in ("jpg", "bmp", "gif", "webp", "pgm")),
        *((suffix, "RGBA") for suffix in ("png", "tif", "webp", "gif")),
        ("jpg", "CMYK"),
        ("tif", "CMYK"),
    ],
)
def test_files_are_read_as_in_training(suffix, mode, rgb, tmp_path):
    file = save(rgb.convert(mode), tmp_path / f"image.{suffix}")
    image = read_image(file)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, detectron2_read_image(str(file), "BGR"))
    np.testing.assert_array_equal(decode_image(file.read_bytes()), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientation_is_applied(orientation, rgb, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    file = save(rgb, tmp_path / "image.png", exif=exif)
    image = read_image(file)
    assert image.shape == ((32, 40, 3) if orientation < 5 else (40, 32, 3))
    np.testing.assert_array_equal(image, detectron2_read_image(str(file), "BGR"))


def test_the_order_is_bgr():
    np.testing.assert_array_equal(
        pil_to_bgr(Image.new("RGB", (2, 1), (10, 20, 30))), [[(30, 20, 10)] * 2]
    )


def test_transparency_is_dropped_and_palettes_are_looked_up():
    clear = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    np.testing.assert_array_equal(pil_to_bgr(clear), [[(30, 20, 10)]])
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    np.testing.assert_array_equal(pil_to_bgr(palette), [[(30, 20, 10)]])


def test_of_16_bits_the_higher_8_are_kept(tmp_path):
    deep = np.array([[0, 255, 256, 1000, 65535]], dtype=np.uint16)
    image = Image.fromarray(deep)
    expected = np.stack([np.array([[0, 0, 1, 3, 255]], np.uint8)] * 3, axis=2)
    for given_image in (image, save(image, tmp_path / "a.png"), save(image, tmp_path / "a.tif")):
        np.testing.assert_array_equal(to_array(given_image, "BGR"), expected)


@pytest.mark.parametrize("values", [np.int32([[70000]]), np.int32([[-1]]), np.float32([[0.5]])])
def test_numbers_of_unknown_range_are_refused(values):
    with pytest.raises(UserError, match="no known range"):
        to_array(Image.fromarray(values), "BGR")


def test_of_several_frames_the_first_is_read(tmp_path):
    first, second = (Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
    file = save(first, tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(file)[0, 0], (0, 0, 255))


def test_rgb_is_bgr_turned_round(rgb, tmp_path):
    values = np.asarray(rgb)
    file = save(rgb, tmp_path / "image.png")
    np.testing.assert_array_equal(to_array(file, "RGB"), values)
    np.testing.assert_array_equal(to_array(rgb, "RGB"), values)
    assert to_array(values, "RGB") is values
    with pytest.raises(UserError, match="in RGB order"):
        to_array(values[0], "RGB")


def test_an_array_is_taken_as_it_is():
    array = np.zeros((3, 4, 3), np.uint8)
    assert to_array(array, "BGR") is array


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32.*give uint8, 0 to 255"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\).*grey"),
        (np.zeros((4, 4, 1), np.uint8), r"shape \(4, 4, 1\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\).*BGR"),
        (np.zeros((2, 4, 4, 3), np.uint8), "several images go in a list"),
        (np.zeros((0, 4, 3), np.uint8), "is empty: 4 x 0"),
        (Image.new("RGB", (0, 0)), "is empty"),
        ([[1, 2], [3, 4]], "not a list"),
        (None, "not a NoneType"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(UserError, match=message) as caught:
        to_array(image, "BGR")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_named(rgb, tmp_path):
    whole = save(rgb, tmp_path / "whole.png").read_bytes()
    for name, content, reason in (
        ("text.jpg", b"hello", "none of BMP, GIF"),
        ("empty.png", b"", "none of BMP"),
        ("cut.png", whole[: len(whole) // 2], "truncated"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of BMP"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"cannot read image .*/{name}: .*{reason}"):
            read_image(file)
    with pytest.raises(UserError, match="it is a folder"):
        to_array(tmp_path, "BGR")
    with pytest.raises(UserError, match="absent.png: there is no such file"):
        to_array(str(tmp_path / "absent.png"), "BGR")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, tmp_path, monkeypatch):
    file = save(Image.new("1", (side, side)), tmp_path / "bomb.png")
    assert file.stat().st_size < 100_000
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(UserError, match=r"bomb.png: it has .* 89478485"):
        read_image(file)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
@settings(max_examples=200, deadline=None)
@given(
    position=st.integers(0, 10_000),
    content=st.binary(max_size=40),
    keep=st.floats(0, 1),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
)
def test_a_damaged_file_is_read_or_refused(position, content, keep, kind):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).convert("RGB").save(stream, kind)
    data = bytearray(stream.getvalue())
    start = position % len(data)
    data[start : start + len(content)] = content
    try:
        image = decode_image(bytes(data[: int(keep * len(data)) + 1]), max_pixels=10_000)
    except UserError as error:
        assert str(error).startswith("cannot read image image: ") and "\n" not in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape[2] == 3
