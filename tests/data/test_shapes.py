import hashlib
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image

from resnext_det.data import shapes
from tests.helpers import digests


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 12, "shapes_minival": 4})
    return tmp_path


def test_two_drawings_have_the_same_bytes(small, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        for name in shapes.SPLIT_SIZES:
            shapes.draw_split(name, folder)
    assert digests(first) == digests(second)
    assert len(digests(first)) == 12 + 4 + 2


def test_the_drawing_has_not_changed_unnoticed():
    # From shapes.draw_image itself: guards that figures measured on the set stay comparable.
    # Whoever changes the drawing changes _FOLDER and this value, and measures the demo again.
    pixels, objects = shapes.draw_image((2017, 0, 0))
    assert (
        hashlib.sha256(pixels.tobytes() + json.dumps(objects).encode()).hexdigest()[:16]
        == "4372103f2f40128c"
    )


def test_splits_share_no_image(small):
    train, minival = (DatasetCatalog.get(n) for n in ("shapes_train", "shapes_minival"))
    pixels = {read_image(r["file_name"], "RGB").tobytes() for r in (*train, *minival)}
    assert len(pixels) == 16


def test_annotations_fit_the_pixels(small):
    for record in DatasetCatalog.get("shapes_train"):
        assert 1 <= len(record["annotations"]) <= 4
        assert (record["height"], record["width"]) == read_image(record["file_name"], "RGB").shape[
            :2
        ]
        for item in record["annotations"]:
            rle = mask_util.frPyObjects(item["segmentation"], 128, 128)[0]
            x, y, w, h = item["bbox"]
            assert x >= 0 and y >= 0 and x + w <= 128 and y + h <= 128
            np.testing.assert_allclose(mask_util.toBbox(rle), item["bbox"], atol=2)


def test_an_object_covers_its_polygon_in_the_image():
    pixels, objects = shapes.draw_image((1, 2, 3))
    rng = np.random.default_rng((1, 2, 3))
    background = shapes._texture(rng, int(rng.integers(3, 9)))
    changed = (pixels.astype(int) != background.astype(int)).any(axis=2)
    polygons = [p for o in objects for p in o["segmentation"]]
    mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, 128, 128))).astype(bool)
    assert (changed & mask).sum() > 0.9 * mask.sum()
    assert (changed & ~mask).sum() < 0.25 * mask.sum()  # antialiased rims


def test_every_class_occurs(small):
    records = DatasetCatalog.get("shapes_train")
    assert {a["category_id"] for r in records for a in r["annotations"]} == set(range(5))
    assert MetadataCatalog.get("shapes_train").thing_classes == list(shapes.CLASSES)


def test_the_set_is_drawn_once(small, monkeypatch):
    DatasetCatalog.get("shapes_minival")
    monkeypatch.setattr(shapes, "draw_image", lambda seed: pytest.fail("drawn again"))
    assert len(DatasetCatalog.get("shapes_train")) == 12


def test_an_interrupted_drawing_leaves_nothing(small, monkeypatch):
    def interrupt(seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        DatasetCatalog.get("shapes_train")
    assert list(small.iterdir()) == []
