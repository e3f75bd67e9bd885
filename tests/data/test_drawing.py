"""Pictures of objects: what stands where, pixel by pixel."""

import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from resnext_det.data import drawing, labels
from resnext_det.data.drawing import COLOURS, Shown, bones_of, class_colour, draw_objects
from resnext_det.data.labels import text_colour
from resnext_det.data.sheets import TITLE_PIXELS, on_sheet, with_title

GREY = (128, 128, 128)


def grey(width=300, height=200):
    return np.full((height, width, 3), GREY, np.uint8)


@pytest.fixture
def places(monkeypatch):
    """Of each label that was asked for: its place, or None."""
    found = []

    def record(*arguments):
        found.append(labels.draw_label(*arguments))
        return found[-1]

    monkeypatch.setattr(drawing, "draw_label", record)
    return found


def overlap(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_labels_lie_in_the_picture_and_cover_nothing_however_many_there_are(places):
    rng = np.random.default_rng(0)
    objects = [
        Shown((*xy, *(xy + wh)), i % 9, f"class {i}", wrong=i % 3 == 0)
        for i, (xy, wh) in enumerate(
            zip(rng.uniform(-20, 300, (60, 2)), rng.uniform(0, 90, (60, 2)), strict=True)
        )
    ]
    draw_objects(grey(), objects, font_size=16)
    there = [place for place in places if place]
    assert len(places) == 60 and 5 < len(there) < 60
    for i, place in enumerate(there):
        assert 0 <= place[0] < place[2] <= 300 and 0 <= place[1] < place[3] <= 200
        assert not any(overlap(place, other) for other in there[:i])


def test_a_name_wider_than_the_picture_is_cut_off(places):
    name = "a name that is wider than the picture " * 9
    draw_objects(grey(), [Shown((280, 190, 400, 300), 0, name)])
    ((x0, _, x1, _),) = places
    assert x0 >= 0 and 280 < x1 - x0 <= 300 and x1 <= 300


def test_labels_stand_at_another_side_where_the_first_is_taken(places):
    draw_objects(grey(), [Shown((100, 80, 200, 160), i, "a") for i in range(4)])
    rows = [place[1] for place in places]
    assert len(set(rows)) == 4 and {place[0] for place in places} == {100}


def test_a_mistake_is_marked_also_where_its_label_finds_no_place():
    right = [Shown((100, 80, 200, 160), 0, "a")] * 8
    plain = np.asarray(draw_objects(grey(), right)).astype(int)
    for number in range(8):
        objects = list(right)
        objects[number] = Shown((100, 80, 200, 160), 0, "a", wrong=True)
        marked = np.asarray(draw_objects(grey(), objects)).astype(int)
        corner = marked[149:160, 189:200]
        assert (corner == 0).all(axis=2).any() and (corner == 255).all(axis=2).any()
        assert not (plain[149:160, 189:200] == 0).all(axis=2).any()


def test_the_mark_of_a_small_object_leaves_it_to_be_seen():
    marked = np.asarray(draw_objects(grey(), [Shown((100, 80, 108, 86), 0, "", wrong=True)]))
    np.testing.assert_array_equal(marked[82:84, 102:106], np.full((2, 4, 3), GREY))
    assert (marked[86:97, 108:119] == 0).all(axis=2).any()
    corner = draw_objects(grey(), [Shown((299, 199, 300, 200), 0, "", wrong=True)])
    assert (np.asarray(corner)[189:, 289:] == 0).all(axis=2).any()


def luminance(colour):
    unit = np.array(colour) / 255
    return np.where(unit <= 0.03928, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4) @ (
        0.2126, 0.7152, 0.0722,
    )  # fmt: skip


@pytest.mark.parametrize("number", range(len(COLOURS)))
def test_text_can_be_read_on_every_colour(number):
    ground = class_colour(number)
    text = {"black": (0, 0, 0), "white": (255, 255, 255)}[text_colour(ground)]
    dark, bright = sorted((luminance(ground), luminance(text)))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_polygons_and_bitmasks_are_the_same_area_at_every_scale(scale):
    mask = np.zeros((200, 300), bool)
    mask[60:120, 100:180] = True
    outline = np.array([[100, 60], [180, 60], [180, 120], [100, 120]], float)
    box = (100, 60, 180, 120)
    pictures = [
        np.asarray(draw_objects(grey(), [Shown(box, 0, "", **shape)], scale=scale))
        for shape in ({"polygons": [outline]}, {"bitmask": mask})
    ]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].shape == (200 * scale, 300 * scale, 3)
    blended = 0.45 * np.array(class_colour(0)) + 0.55 * np.array(GREY)
    inside = pictures[0][round(90 * scale), round(140 * scale)]
    np.testing.assert_allclose(inside, blended, atol=1)
    np.testing.assert_array_equal(pictures[0][round(140 * scale), round(140 * scale)], GREY)


def test_degenerate_outlines_are_left_out():
    objects = [Shown((5, 5, 5, 5), 0, "", polygons=[np.zeros((2, 2))])]
    assert draw_objects(grey(), objects).size == (300, 200)


def test_bones_join_the_names_that_the_metadata_knows():
    metadata = Metadata(
        keypoint_names=("a", "b", "c"),
        keypoint_connection_rules=[("a", "c", (0, 0, 0)), ("a", "d", (0, 0, 0))],
    )
    assert bones_of(metadata) == [(0, 2)]
    assert bones_of(Metadata()) == []


def test_a_sheet_holds_all_pictures_whole_in_their_order():
    sizes = [(40, 30), (60, 20), (50, 70)]
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [
        with_title(Image.new("RGB", size, colour), "a title that is far too long " * 5)
        for size, colour in zip(sizes, colours, strict=True)
    ]
    assert [p.size for p in pictures] == [(w, h + TITLE_PIXELS) for w, h in sizes]
    sheet = np.asarray(on_sheet(pictures, 2)).astype(int)
    middles = []
    for (width, height), colour in zip(sizes, colours, strict=True):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert len(rows) == width * height
        middles.append((rows.mean(), columns.mean()))
    assert middles[0][1] < middles[1][1] and middles[2][0] > middles[0][0]
