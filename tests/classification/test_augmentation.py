"""Augmentation against torchvision's operations, float references and hand-made cases."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from resnext_det.classification.augmentation import (
    ImageNetAugmentation,
    crop_and_flip,
    jitter_map,
    lighting_shift,
    mean_colour,
    random_box,
)
from resnext_det.errors import UserError
from tests.classification.classifiers import make_image

THEIRS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
}
UNCHANGED = dict.fromkeys(THEIRS, 1.0)
PLAIN = ImageNetAugmentation(size=32, jitter=0, lighting=0)


def apply(colour, pixels):
    return pixels @ colour[:, :3].T + colour[:, 3]


def ramp(width, height):
    """Red is the column and green the row, at the centres of the pixels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.37])
def test_an_operation_is_torchvisions_where_nothing_clips(name, factor):
    image = torch.rand((3, 9, 7), generator=torch.Generator().manual_seed(0)) / 4 + 0.3
    pixels = image.permute(1, 2, 0).numpy().astype(np.float64)
    ours = apply(jitter_map(pixels.mean((0, 1)), **{**UNCHANGED, name: factor}), pixels)
    theirs = THEIRS[name](image, factor).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4)  # their weights of grey: 0.2989, 0.587


def test_a_hand_made_contrast_uses_the_mean_grey():
    # red 100 and black: grey 29.9 and 0, mean 14.95; half of the distance to it remains
    pixels = np.array([[[100.0, 0, 0], [0, 0, 0]]])
    changed = apply(jitter_map(np.array([50.0, 0, 0]), 1, 0.5, 1), pixels)
    np.testing.assert_allclose(changed, [[[57.475, 7.475, 7.475], [7.475] * 3]])


def written_out(pixels, steps):
    """Each operation in turn on the whole float image."""
    for name, factor in steps:
        grey = 0.299 * pixels[..., :1] + 0.587 * pixels[..., 1:2] + 0.114 * pixels[..., 2:]
        other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey}[name]
        pixels = pixels * factor + other * (1 - factor)
    return pixels


@pytest.mark.parametrize("order", list(itertools.permutations(THEIRS)))
def test_a_composition_is_its_operations_in_any_order(order):
    rng = np.random.default_rng(0)
    for _ in range(5):
        pixels = rng.uniform(0, 255, (6, 5, 3))  # many results lie outside of 0..255
        factors = {name: rng.uniform(0.2, 1.8) for name in order}
        colour = jitter_map(pixels.mean((0, 1)), **factors)
        in_turn = written_out(pixels, [(name, factors[name]) for name in order])
        np.testing.assert_allclose(apply(colour, pixels), in_turn, atol=1e-9)


def test_lighting_moves_along_the_components():
    np.testing.assert_allclose(
        lighting_shift(np.array([1.0, 0, 0])) / 255, 0.2175 * np.array([-0.5675, -0.5808, -0.5836])
    )
    np.testing.assert_allclose(
        lighting_shift(np.array([0, 0.5, -1])) / 255,
        [
            0.5 * 0.0188 * 0.7192 - 0.0045 * 0.4009,
            0.5 * 0.0188 * -0.0045 - 0.0045 * -0.8140,
            0.5 * 0.0188 * -0.6948 - 0.0045 * 0.4203,
        ],
    )


def test_drawn_lighting_has_the_spread_of_the_components():
    augmentation = ImageNetAugmentation(size=32, jitter=0, lighting=0.1)
    image, rng = make_image(0, 32, 32), np.random.default_rng(0)
    colours = np.array([augmentation(image, rng)[1] for _ in range(4000)])
    assert (colours[:, :, :3] == np.eye(3)).all()
    shifts = colours[:, :, 3] / 25.5
    # along the first component the standard deviation is its eigenvalue (the column has length 1)
    along = shifts @ [-0.5675, -0.5808, -0.5836]
    assert along.std() == pytest.approx(0.2175, rel=0.05)
    assert abs(along.mean()) < 5 * 0.2175 / math.sqrt(4000)
    across = shifts @ [0.7192, -0.0045, -0.6948]
    assert across.std() == pytest.approx(0.0188, rel=0.05)


def test_jitter_draws_independent_factors_about_one(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "resnext_det.classification.augmentation.jitter_map",
        lambda mean, *factors: drawn.append(factors) or np.eye(3, 4),
    )
    augmentation = ImageNetAugmentation(size=32, jitter=0.4, lighting=0)
    image, rng = make_image(0, 32, 32), np.random.default_rng(0)
    for _ in range(1200):
        augmentation(image, rng)
    factors = np.array(drawn)
    assert factors.shape == (1200, 3)
    assert factors.min() >= 0.6 and (factors.min(0) < 0.61).all()
    assert factors.max() <= 1.4 and (factors.max(0) > 1.39).all()
    np.testing.assert_allclose(factors.mean(0), 1, atol=5 * 0.8 / math.sqrt(12 * 1200))
    assert abs(np.corrcoef(factors.T) - np.eye(3)).max() < 5 / math.sqrt(1200)


def test_contrast_uses_the_mean_of_the_crop_and_not_of_the_image(monkeypatch):
    means = []
    monkeypatch.setattr(
        "resnext_det.classification.augmentation.jitter_map",
        lambda mean, *factors: means.append(mean) or np.eye(3, 4),
    )
    rng = np.random.default_rng(0)
    for _ in range(10):
        pixels, _ = ImageNetAugmentation(size=40)(make_image(1, 200, 150), rng)
        np.testing.assert_allclose(means[-1], pixels.astype(np.float64).mean((0, 1)))
    assert np.ptp(means, axis=0).min() > 5


def test_the_mean_of_uneven_and_of_bright_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    np.testing.assert_allclose(mean_colour(pixels), pixels.astype(np.float64).mean((0, 1)))
    bright = np.full((4096, 2, 3), 255, np.uint8)
    np.testing.assert_array_equal(mean_colour(bright), [255, 255, 255])


def test_no_jitter_and_no_lighting_is_the_identity():
    pixels, colour = PLAIN(make_image(0), np.random.default_rng(0))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert colour.dtype == np.float32
    np.testing.assert_array_equal(colour, np.eye(3, 4))


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (224, 224)])
def test_boxes_have_the_areas_and_ratios_of_the_authors(width, height):
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(width, height, rng) for _ in range(3000)])
    left, upper, right, lower = boxes.T
    assert (left >= 0).all() and (upper >= 0).all()
    assert (right <= width).all() and (lower <= height).all()
    assert left.min() == 0 and upper.min() == 0
    assert right.max() == width and lower.max() == height
    areas = (right - left) * (lower - upper) / (width * height)
    assert 0.08 - 0.002 < areas.min() < 0.1 and 0.9 < areas.max() <= 1
    ratios = (right - left) / (lower - upper)
    assert 0.74 < ratios.min() < 0.77 and 1.3 < ratios.max() < 1.35


def test_areas_are_uniform_and_upright_boxes_as_frequent_as_wide_ones():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(600, 600, rng) for _ in range(4000)])
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    small = widths * heights / 600**2
    small = small[small < 0.75]  # all of these fit, whatever their ratio
    assert small.mean() == pytest.approx((0.08 + 0.75) / 2, abs=5 * 0.2 / math.sqrt(len(small)))
    upright = (heights > widths).mean()
    assert upright == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(4000))


def test_places_of_a_box_are_uniform():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, rng) for _ in range(4000)])
    for start, end in ((0, 2), (1, 3)):
        room = 400 - (boxes[:, end] - boxes[:, start])
        inside = boxes[room > 40, start] / room[room > 40]
        assert inside.mean() == pytest.approx(0.5, abs=5 * 0.3 / math.sqrt(len(inside)))
        assert (inside == 0).any() and (inside == 1).any()


def test_without_a_fitting_box_it_is_the_middle():
    rng = np.random.default_rng(0)
    assert random_box(2000, 100, rng) == (950, 0, 1050, 100)  # 8 % is more than 100 high
    assert random_box(100, 2001, rng) == (0, 950.5, 100, 1050.5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_the_box(seed, interpolation):
    left, upper, right, lower = random_box(250, 200, np.random.default_rng(seed))
    augmentation = ImageNetAugmentation(64, 0, 0, interpolation)
    pixels, _ = augmentation(ramp(250, 200), np.random.default_rng(seed))
    at = (np.arange(64) + 0.5) / 64
    columns, rows = left + at * (right - left) - 0.5, upper + at * (lower - upper) - 0.5
    if pixels[0, 0, 0] > pixels[0, -1, 0]:
        columns = columns[::-1]
    inner = slice(4, -4)  # resizing sees no pixels beyond the image's edges
    seen = pixels[inner, inner].astype(float)
    assert abs(seen[..., 0] - columns[inner]).max() < 1.5
    assert abs(seen[..., 1] - rows[inner, None]).max() < 1.5


def test_a_box_of_a_tiny_image_is_not_empty():
    rng = np.random.default_rng(0)
    assert {random_box(1, 1, rng) for _ in range(100)} == {(0, 0, 1, 1)}


def test_half_of_the_images_are_flipped():
    image, rng = ramp(64, 64), np.random.default_rng(0)
    crops = [PLAIN(image, rng)[0].astype(int) for _ in range(1000)]
    flipped = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    assert abs(flipped - 500) < 5 * math.sqrt(250)
    assert all(crop[0, 0, 1] < crop[-1, 0, 1] for crop in crops)  # never upside down


def test_a_seed_gives_the_same_image_again():
    augmentation = ImageNetAugmentation(size=48)
    image = make_image(0, 100, 80)
    first, again, other = (augmentation(image, np.random.default_rng(s)) for s in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[0] != other[0]).any() and (first[1] != other[1]).any()


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (500, 1), (1, 37), (40, 31), (2000, 3)])
def test_small_and_narrow_images_are_augmented(size):
    image = Image.new("RGB", size, (10, 128, 250))
    for seed in range(20):
        pixels, colour = ImageNetAugmentation(size=224)(image, np.random.default_rng(seed))
        assert pixels.shape == (224, 224, 3) and np.isfinite(colour).all()
        assert (pixels == (10, 128, 250)).all()


def test_grey_stays_grey_under_jitter():
    image = make_image(0, 60, 60).convert("L").convert("RGB")
    augmentation = ImageNetAugmentation(size=32, jitter=0.4, lighting=0)
    pixels, colour = augmentation(image, np.random.default_rng(0))
    changed = apply(colour.astype(np.float64), pixels.astype(np.float64))
    assert np.ptp(changed, axis=-1).max() < 1e-3
    assert abs(changed - pixels).max() > 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": 31}, "CLASSIFIER.SIZE 31: "),
        ({"size": 5000}, "CLASSIFIER.SIZE 5000: "),
        ({"jitter": -0.1}, "CLASSIFIER.JITTER -0.1: "),
        ({"jitter": 1.5}, "CLASSIFIER.JITTER 1.5: "),
        ({"lighting": math.nan}, "CLASSIFIER.LIGHTING nan: "),
        ({"interpolation": "area"}, "CLASSIFIER.INTERPOLATION area: .* bilinear or bicubic"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(UserError, match=message):
        ImageNetAugmentation(**values)


def random_seeds(count, seed=0):
    return [int(s) for s in np.random.default_rng(seed).integers(0, 2**63, count)]


def find_crop(image, crop, padding):
    """All (top, left, flipped) that `crop` could be."""
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    return [
        (top, left, flipped)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        for flipped in (False, True)
        if (
            padded[top : top + height, left : left + width][:, :: -1 if flipped else 1] == crop
        ).all()
    ]


def test_each_image_is_a_crop_of_its_padded_self_and_all_crops_occur():
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(1, 256, (1, 7, 6, 3), dtype=np.uint8), 3000, axis=0)
    crops = crop_and_flip(pixels, random_seeds(3000), padding=4)
    assert crops.shape == pixels.shape and crops.dtype == np.uint8
    found = {}
    for crop in crops:
        key = crop.tobytes()
        if key not in found:
            (found[key],) = find_crop(pixels[0], crop, 4)  # each is one, and only one
    places = np.array([found[crop.tobytes()] for crop in crops])
    assert len(found) == 9 * 9 * 2
    for axis in (0, 1):
        counts = np.bincount(places[:, axis], minlength=9)
        assert abs(counts - 3000 / 9).max() < 5 * math.sqrt(3000 / 9)
    assert abs(places[:, 2].sum() - 1500) < 5 * math.sqrt(750)
    assert abs(np.corrcoef(places.T) - np.eye(3)).max() < 5 / math.sqrt(3000)


def test_a_hand_made_crop():
    # bit 0 flips; then the rest modulo 3 is the row, and divided by 3, modulo 3, the column
    image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    cases = {
        (1 + 3 * 1) << 1: [[1, 2], [3, 4]],
        ((1 + 3 * 1) << 1) + 1: [[2, 1], [4, 3]],
        (0 + 3 * 2) << 1: [[0, 0], [2, 0]],
        ((2 + 3 * 0) << 1) + 1: [[3, 0], [0, 0]],
    }
    crops = crop_and_flip(image.repeat(4, axis=0), list(cases), padding=1)
    np.testing.assert_array_equal(crops[..., 0], list(cases.values()))
    np.testing.assert_array_equal(crops[..., 0], crops[..., 2])


def test_mirroring_can_be_left_out():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    odd = [seed | 1 for seed in random_seeds(20)]  # all of them mirrored
    mirrored, plain = crop_and_flip(pixels, odd), crop_and_flip(pixels, odd, flip=False)
    np.testing.assert_array_equal(plain, mirrored[:, :, ::-1])
    assert (plain != mirrored).any()
    image = Image.fromarray(pixels.reshape(60, 10, 3).repeat(8, axis=1))
    crops = {}
    for flip in (True, False):
        augment = ImageNetAugmentation(32, jitter=0, lighting=0, flip=flip)
        crops[flip] = [augment(image, np.random.default_rng(seed))[0] for seed in range(20)]
    same = [(a == b).all() for a, b in zip(crops[True], crops[False], strict=True)]
    assert 0 < sum(same) < 20
    for a, b, is_same in zip(crops[True], crops[False], same, strict=True):
        if not is_same:
            assert abs(a[:, ::-1].astype(int) - b).max() == 0


def test_padding_has_the_colour_asked_for():
    pixels = np.full((1, 2, 2, 3), 9, np.uint8)
    (crop,) = crop_and_flip(pixels, [0], padding=1, fill=(1, 2, 3))  # the upper left corner
    np.testing.assert_array_equal(crop[0], [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(crop[1], [[1, 2, 3], [9, 9, 9]])


def test_a_crop_depends_on_its_own_seed_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    before, seeds = pixels.copy(), random_seeds(20)
    together = crop_and_flip(pixels, seeds)
    order = [7, 3, 19]
    np.testing.assert_array_equal(
        crop_and_flip(pixels[order], [seeds[i] for i in order]), together[order]
    )
    np.testing.assert_array_equal(pixels, before)


def test_without_padding_images_are_flipped_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    crops = crop_and_flip(pixels, [2**62, 2**62 + 1], padding=0)
    np.testing.assert_array_equal(crops[0], pixels[0])
    np.testing.assert_array_equal(crops[1], pixels[1, :, ::-1])
    assert not np.shares_memory(crops, pixels)
