"""The crops of the embedded shapes."""

import threading

import numpy as np
import pytest
from PIL import Image

from resnext_det.classification import shape_crops
from resnext_det.classification.folder import read_tree
from resnext_det.classification.shape_crops import crop_box, shape_crops_folder
from resnext_det.data import shapes
from tests.helpers import digests


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 12, "shapes_minival": 8})
    return tmp_path


def test_each_object_of_a_split_is_a_crop_of_its_class(small):
    folder = shape_crops_folder()
    assert folder == small / "shape-crops-v1"
    for split, name in (("train", "shapes_train"), ("val", "shapes_minival")):
        tree = read_tree(folder / split)
        objects = [a["category_id"] for r in shapes.load_shapes(name) for a in r["annotations"]]
        expected = {c: objects.count(i) for i, c in enumerate(shapes.CLASSES)}
        found = {c: int((tree.labels == i).sum()) for i, c in enumerate(tree.classes)}
        assert found == expected
        for index in range(len(tree)):
            with Image.open(tree.path(index)) as image:
                assert image.size == (64, 64) and image.mode == "RGB" and image.format == "PNG"


def test_no_crop_is_in_both_splits(small):
    folder = shape_crops_folder()
    train, val = (set(digests(folder / split).values()) for split in ("train", "val"))
    assert train and val and not train & val


@pytest.mark.parametrize(
    "bbox, box",
    [
        ((40, 50, 20, 20), (37, 47, 63, 73)),  # 15 % of 20 on each side
        ((40, 50, 20, 10), (37, 42, 63, 68)),
        ((0, 108, 20, 20), (0, 102, 26, 128)),  # moved inside, still square
        ((5, 0, 110, 120), (0, 0, 128, 128)),
    ],
)
def test_hand_made_boxes(bbox, box):
    assert crop_box(bbox) == pytest.approx(box)


def test_a_crop_shows_its_object(small, monkeypatch):
    pixels = np.full((128, 128, 3), (0, 0, 200), np.uint8)
    pixels[30:50, 60:80] = (250, 100, 0)
    square = {"category_id": 2, "bbox": [60.0, 30.0, 20.0, 20.0], "area": 400.0, "iscrowd": 0}
    square["segmentation"] = [[60.0, 30.0, 80.0, 30.0, 80.0, 50.0, 60.0, 50.0]]
    monkeypatch.setattr(shapes, "draw_image", lambda seed: (pixels, [dict(square)]))
    with Image.open(shape_crops_folder() / "val" / "square" / "0000.png") as image:
        crop = np.asarray(image)
    # 26 pixels became 64: the object takes from 3 / 26 to 23 / 26 of them
    assert (crop[9:55, 9:55] == (250, 100, 0)).all()
    for edge in (crop[:5], crop[-5:], crop[:, :5], crop[:, -5:]):
        assert (edge == (0, 0, 200)).all()


def test_crops_have_the_same_bytes_every_time(small, monkeypatch):
    first = digests(shape_crops_folder())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small / "again"))
    assert digests(shape_crops_folder()) == first


def test_crops_are_cut_once(small, monkeypatch):
    folder = shape_crops_folder()
    monkeypatch.setattr(shape_crops, "load_shapes", lambda name: pytest.fail("cut again"))
    assert shape_crops_folder() == folder


def test_several_at_once_leave_one_whole_folder(small, monkeypatch):
    shapes.shapes_folder()
    both, load = threading.Barrier(2, timeout=60), shapes.load_shapes

    def load_together(name):  # both have seen that there is no folder yet
        both.wait()
        return load(name)

    monkeypatch.setattr(shape_crops, "load_shapes", load_together)
    found = []
    threads = [threading.Thread(target=lambda: found.append(shape_crops_folder())) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [small / "shape-crops-v1"] * 2
    assert sorted(p.name for p in small.iterdir()) == ["shape-crops-v1", "shapes-v1"]
    assert (small / "shape-crops-v1").stat().st_mode & 0o777 == 0o755


def test_interrupted_cutting_leaves_nothing(small, monkeypatch):
    def interrupt(bbox):
        raise KeyboardInterrupt

    monkeypatch.setattr(shape_crops, "crop_box", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shape_crops_folder()
    assert [p.name for p in small.iterdir()] == ["shapes-v1"]
