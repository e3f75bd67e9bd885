import csv
import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from resnext_det.data import drawing
from resnext_det.data.drawing import MASK_OPACITY, class_colour
from resnext_det.inference.collection import Collection, to_records
from resnext_det.inference.image_ids import image_ids
from resnext_det.inference.pictures import draw_detections
from tests.helpers import TINY_COCO, needs_tiny_coco

NAMES = ["a", "b, c", "d"]
BOXES = [[10.0, 40.0, 50.0, 70.0], [60.0, 45.0, 90.0, 75.0]]
GREY = (128, 128, 128)


def instances(height=80, width=100, scores=(0.9, 0.6), classes=(2, 1), **fields):
    found = Instances((height, width))
    found.pred_boxes = Boxes(torch.tensor(BOXES[: len(scores)]).reshape(-1, 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    for name, value in fields.items():
        found.set(name, value)
    return found


def masks(height=80, width=100):
    full = torch.zeros(2, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(full, BOXES, strict=True):
        mask[int(y0) : int(y1), int(x0) : int((x0 + x1) / 2)] = True
    return full


@pytest.fixture
def metadata():
    yield MetadataCatalog.get("of_outputs").set(
        thing_classes=NAMES, thing_dataset_id_to_contiguous_id={3: 0, 7: 1, 9: 2}
    )
    MetadataCatalog.remove("of_outputs")


def rgb(class_id):
    return np.array(class_colour(class_id), float)


def test_records_are_plain_and_their_masks_are_cocos():
    found = instances(pred_masks=masks(), pred_keypoints=torch.full((2, 3, 3), 0.5))
    records = json.loads(json.dumps(to_records(found, NAMES)))
    assert records[0]["class"] == "d" and records[1]["class_id"] == 1
    assert records[0]["score"] == pytest.approx(0.9, abs=1e-5)
    assert records[1]["box"] == BOXES[1]
    assert records[0]["keypoints"] == [[0.5, 0.5, 0.5]] * 3
    for record, mask in zip(records, masks(), strict=True):
        np.testing.assert_array_equal(mask_util.decode(record["mask"]), mask.numpy())


def test_csv_has_a_row_a_detection(metadata, tmp_path):
    collection = Collection(metadata)
    collection.add("x,y.png", instances())
    collection.add("nothing.png", instances(scores=(), classes=()))
    collection.write_csv(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["file"], r["class"], r["class_id"]) for r in rows] == [
        ("x,y.png", "d", "2"),
        ("x,y.png", "b, c", "1"),
    ]
    assert [float(rows[1][key]) for key in ("x0", "y0", "x1", "y1")] == BOXES[1]


def test_json_lists_images_without_detections_too(metadata, tmp_path):
    collection = Collection(metadata)
    collection.add("a.png", instances())
    collection.add("b.png", instances(30, 20, scores=(), classes=()))
    collection.write_json(tmp_path / "p.json")
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["class_names"] == NAMES
    assert content["images"][1] == {"file": "b.png", "width": 20, "height": 30, "detections": []}
    assert len(content["images"][0]["detections"]) == 2


def test_coco_results_have_the_data_sets_category_ids(metadata, tmp_path):
    collection = Collection(metadata)
    for name in ("a.png", "b.png"):
        collection.add(name, instances(pred_masks=masks()))
    collection.write_coco(tmp_path / "results.json", tmp_path / "images.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["category_id"] for r in results] == [9, 7, 9, 7]
    assert [r["image_id"] for r in results] == [1, 1, 2, 2]
    assert results[0]["bbox"] == [10, 40, 40, 30]
    np.testing.assert_array_equal(mask_util.decode(results[1]["segmentation"]), masks()[1].numpy())
    images = json.loads((tmp_path / "images.json").read_text())
    assert images[1] == {"id": 2, "file_name": "b.png", "width": 100, "height": 80}


@needs_tiny_coco
def test_images_of_the_test_set_keep_their_ids(tmp_path, monkeypatch):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    truth = COCO(str(TINY_COCO / "annotations/instances_val2017.json"))
    chosen = truth.loadImgs(sorted(truth.imgs)[:3])

    def ids(*images):
        collection = Collection(MetadataCatalog.get("coco_minival"))
        for name, width, height in images:
            collection.add(f"/anywhere/{name}", instances(height, width))
        collection.write_coco(tmp_path / "results.json", tmp_path / "images.json")
        found = truth.loadRes(str(tmp_path / "results.json")) if len(images) == 3 else None
        written = [i["id"] for i in json.loads((tmp_path / "images.json").read_text())]
        assert found is None or sorted(found.getImgIds()) == sorted(truth.getImgIds())
        return written

    images = [(i["file_name"], i["width"], i["height"]) for i in chosen]
    assert ids(*images) == [i["id"] for i in chosen]
    # one that is not of the set, or of another size, and all are numbered
    assert ids(*images, ("other.jpg", 10, 10)) == [1, 2, 3, 4]
    assert ids(images[0], (images[1][0], 1, 1)) == [1, 2]


def test_pictures_show_boxes_and_masks_where_they_are():
    image = np.full((400, 500, 3), GREY, np.uint8)
    image[:, :, 0] = 30  # blue
    found = instances(400, 500, pred_masks=masks(400, 500))
    picture = np.asarray(draw_detections(image, found, NAMES)).astype(float)
    assert picture.shape == (400, 500, 3)
    plain = np.array((128, 128, 30))
    for (x0, y0, x1, y1), class_id in zip(np.int64(BOXES), (2, 1), strict=True):
        for x, y in ((x0, y0 + 20), (x1 - 1, y0 + 20), (x1 - 5, y1 - 1)):
            np.testing.assert_allclose(picture[y, x], rgb(class_id), atol=1)
        blended = MASK_OPACITY * rgb(class_id) + (1 - MASK_OPACITY) * plain
        np.testing.assert_allclose(picture[y0 + 20, x0 + 8], blended, atol=1)
        np.testing.assert_allclose(picture[y0 + 20, x1 - 8], plain, atol=1)
        np.testing.assert_allclose(picture[y1 + 1, x1 - 5], plain, atol=1)
        assert (picture[y0 - 8 : y0, x0] == rgb(class_id).round()).all()  # its label
    assert image[0, 0].tolist() == [30, 128, 128]  # the input is not drawn on


def test_small_images_are_enlarged_by_a_whole_number_unless_told_not_to():
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    nothing = instances(scores=(), classes=())
    picture = np.asarray(draw_detections(image, nothing, NAMES))
    np.testing.assert_array_equal(picture, image[:, :, ::-1].repeat(4, axis=0).repeat(4, axis=1))
    same = np.asarray(draw_detections(image, nothing, NAMES, enlarge=False))
    np.testing.assert_array_equal(same, image[:, :, ::-1])


@pytest.mark.parametrize(
    "box",
    [[0, 0, 500, 400], [480, 0, 500, 20], [0, 390, 10, 400], [495, 395, 500, 400], [-9, -9, 0, 0]],
)
def test_a_label_lies_wholly_in_the_picture(box, monkeypatch):
    labels = []

    def record(*arguments):
        labels.append(draw_label(*arguments))
        return labels[-1]

    draw_label = drawing.draw_label
    monkeypatch.setattr(drawing, "draw_label", record)
    found = instances(400, 500, scores=(0.5,), classes=(2,))
    found.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    draw_detections(np.full((400, 500, 3), GREY, np.uint8), found, NAMES)
    ((x0, y0, x1, y1),) = labels
    assert 0 <= x0 < x0 + 30 < x1 <= 500
    assert 0 <= y0 < y0 + 10 < y1 <= 400


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    image = np.full((400, 500, 3), GREY, np.uint8)
    found = instances(400, 500, classes=(0, 1))
    found.pred_boxes = Boxes(torch.tensor([[100.0, 100, 200, 200]] * 2))
    both = np.asarray(draw_detections(image, found, NAMES))
    for i in range(2):
        alone = np.asarray(draw_detections(image, found[i : i + 1], NAMES))
        label = np.zeros(both.shape[:2], bool)
        label[:100] = (alone[:100] != GREY).any(axis=2)  # above its box, when alone
        colour = (both == rgb(i).round()).all(axis=2).sum()
        assert colour > 0.5 * label.sum() > 100


def test_keypoints_are_joined_where_both_ends_were_found():
    image = np.full((400, 500, 3), GREY, np.uint8)
    points = torch.tensor([[[220.0, 300, 1], [320, 300, 1], [420, 300, 0]]])
    found = instances(400, 500, scores=(0.5,), classes=(0,), pred_keypoints=points)
    picture = np.asarray(draw_detections(image, found, NAMES, bones=[(0, 1), (1, 2)]))
    np.testing.assert_array_equal(picture[300, 270], rgb(0).round())
    np.testing.assert_array_equal(picture[300, 370], GREY)
    np.testing.assert_array_equal(picture[300, 320], (255, 255, 255))
    np.testing.assert_array_equal(picture[300, 420], GREY)


@pytest.fixture
def listed(tmp_path):
    """A data set of which only the annotation file's images are known."""

    def listed(*images):
        file = tmp_path / "listed.json"
        file.write_text(json.dumps({"images": list(images)}))
        MetadataCatalog.get("listed").json_file = str(file)
        return "listed"

    yield listed
    MetadataCatalog.remove("listed")


def test_images_that_a_name_does_not_tell_apart_get_no_id_of_the_set(listed):
    same = {"width": 64, "height": 48}
    files = ("a/1.png", "b/1.png", "2.png")
    name = listed(*({"id": 10 + i, "file_name": f, **same} for i, f in enumerate(files)))
    assert image_ids(name, [("2.png", 64, 48)]) == [12]
    assert image_ids(name, [("1.png", 64, 48)]) == [1]
    assert image_ids(name, [("2.png", 64, 48), ("1.png", 64, 48)]) == [1, 2]


def test_an_image_without_a_size_is_an_unknown_one(listed):
    name = listed({"id": 10, "file_name": "1.png"})
    assert image_ids(name, [("1.png", 64, 48)]) == [1]
