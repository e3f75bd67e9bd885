import base64
import io
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.report.gallery import choose, describe, judge
from tests.report.runs import write_data


def thing(box, category, crowd=0):
    return {
        "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": crowd,
    }  # fmt: skip


def found(box, category, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def record(*things, image=1):
    return {"image_id": image, "file_name": f"{image}.png", "annotations": list(things)}


def only(records, detections, threshold=0.5):
    (judged,) = judge(records, detections, {1: 0, 2: 1}, threshold)
    return judged


BOX = [10, 10, 20, 20]


@pytest.mark.parametrize(
    ("things", "detections", "counts"),  # right, wrong, missed
    [
        ([thing(BOX, 0)], [found(BOX, 1, 0.9)], (1, 0, 0)),
        ([thing(BOX, 0)], [found(BOX, 2, 0.9)], (0, 1, 1)),
        ([thing(BOX, 0)], [found(BOX, 1, 0.4)], (0, 0, 1)),
        ([thing(BOX, 0)], [found(BOX, 1, 0.9), found(BOX, 1, 0.8)], (1, 1, 0)),
        ([thing(BOX, 0)], [found([10, 10, 20, 9], 1, 0.9)], (0, 1, 1)),
        ([thing(BOX, 0)], [found([10, 10, 20, 11], 1, 0.9)], (1, 0, 0)),
        ([thing(BOX, 0, crowd=1)], [found(BOX, 1, 0.9), found(BOX, 1, 0.8)], (0, 0, 0)),
        ([thing(BOX, 0, crowd=1)], [found(BOX, 2, 0.9)], (0, 1, 0)),
        ([], [found(BOX, 1, 0.9)], (0, 1, 0)),
    ],
)
def test_predictions_are_judged_as_by_hand(things, detections, counts):
    image = only([record(*things)], detections)
    right, wrong, missed = counts
    assert (image.right.count(True), image.right.count(False), image.found.count(False)) == counts
    total = 2 * right + wrong + missed
    assert image.f1 == (2 * right / total if total else None)


def test_judgement_is_that_of_pycocotools(capsys):
    rng = np.random.default_rng(0)
    images, annotations, detections = [], [], []
    for image in range(1, 61):
        images.append({"id": image, "width": 100, "height": 100})
        for _ in range(int(rng.integers(0, 7))):
            box = [float(v) for v in (*(60 * rng.random(2)), *(5 + 35 * rng.random(2)))]
            category = int(rng.integers(1, 3))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.2)}
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 4))):
                near = [v + 4 * rng.normal() for v in box[:2]] + box[2:]
                detections.append(found(near, category, float(rng.random()), image))
    threshold = 0.3
    truth = COCO()
    truth.dataset = {
        "images": images, "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }  # fmt: skip
    truth.createIndex()
    kept = [d for d in detections if d["score"] >= threshold]
    reference = COCOeval(truth, truth.loadRes([dict(d) for d in kept]), "bbox")
    reference.params.iouThrs = np.array([0.5])
    reference.params.areaRng, reference.params.areaRngLbl = [[0, 1e10]], ["all"]
    reference.evaluate()
    wanted = {i["id"]: [0, 0, 0, 0] for i in images}  # right, wrong, ignored, missed
    for part in filter(None, reference.evalImgs):
        matched, ignored = part["dtMatches"][0] > 0, part["dtIgnore"][0].astype(bool)
        objects = np.array(part["gtIgnore"]) == 0
        numbers = wanted[part["image_id"]]
        numbers[0] += int((matched & ~ignored).sum())
        numbers[1] += int((~matched & ~ignored).sum())
        numbers[2] += int(ignored.sum())
        numbers[3] += int((objects & (part["gtMatches"][0] == 0)).sum())

    records = [
        record(*(thing(a["bbox"], a["category_id"] - 1, a["iscrowd"])
                 for a in annotations if a["image_id"] == i["id"]), image=i["id"])
        for i in images
    ]  # fmt: skip
    judged = judge(records, detections, {1: 0, 2: 1}, threshold)
    ours = {
        j.record["image_id"]: [
            j.right.count(True), j.right.count(False), j.right.count(None), j.found.count(False)
        ]
        for j in judged
    }  # fmt: skip
    assert ours == wanted
    assert all(sum(column) > 5 for column in zip(*wanted.values(), strict=True))


def test_the_best_and_the_worst_are_chosen_and_none_twice():
    records, detections = [], []
    for image, (things, right, wrong) in enumerate(
        [(1, 1, 0), (3, 3, 0), (2, 1, 0), (2, 0, 0), (1, 0, 5), (0, 0, 0)], 1
    ):
        boxes = [[40.0 * i, 0, 20, 20] for i in range(things + wrong)]
        records.append(record(*(thing(b, 0) for b in boxes[:things]), image=image))
        detections += [found(b, 1, 0.9, image) for b in boxes[:right] + boxes[things:]]
    judged = judge(records, detections, {1: 0}, 0.5)

    def ids(count):
        return [[i.record["image_id"] for i in half] for half in choose(judged, count)]

    assert ids(4) == [[2, 1], [5, 4]]
    assert ids(1) == [[2], []]
    assert ids(100) == [[2, 1, 3], [5, 4]]  # image 6 has nothing to tell
    assert ids(0) == [[], []]


def test_an_image_with_nothing_right_is_none_of_the_best():
    records = [record(thing(BOX, 0), image=i) for i in range(1, 5)]
    detections = [found(BOX, 1, 0.9, 1)]
    best, worst = choose(judge(records, detections, {1: 0}, 0.5), 4)
    assert [i.record["image_id"] for i in best] == [1]
    assert sorted(i.record["image_id"] for i in worst) == [2, 3, 4]
    best, worst = choose(judge(records, [], {1: 0}, 0.5), 1)
    assert (best, len(worst)) == ([], 1)


def pixels(url):
    kind, data = url.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_pictures_show_the_boxes_and_their_texts_say_so(tmp_path):
    data = write_data(tmp_path / "data")
    data.register("gallery_set")
    records = DatasetCatalog.get("gallery_set")
    metadata = MetadataCatalog.get("gallery_set")
    detections = [found([40, 30, 20, 16], 2, 0.75)]
    image = judge(records, detections, metadata.thing_dataset_id_to_contiguous_id, 0.5)[0]
    shown = describe(image, metadata, 0.5, ("bbox",))
    assert shown["truth_alt"] == "Ground truth of 0.png: circle (missed)."
    assert "0.5 or more: square 0.75 (wrong)." in shown["predicted_alt"]
    truth, predicted = pixels(shown["truth_url"]), pixels(shown["predicted_url"])
    scale = truth.shape[0] / 48
    assert scale == truth.shape[1] / 64 == math.floor(scale) > 1
    differs = np.abs(truth - predicted).sum(2) > 60

    def edge(x, y, width):  # the lower side of a box
        row = slice(round(y * scale) - 3, round(y * scale) + 1)
        return differs[row, round((x + 2) * scale) : round((x + width - 2) * scale)].any(0).mean()

    assert edge(10, 26, 20) > 0.9 and edge(40, 46, 20) > 0.9
    assert edge(35, 20, 20) < 0.1
    DatasetCatalog.remove("gallery_set")
    MetadataCatalog.remove("gallery_set")
