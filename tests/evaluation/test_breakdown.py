import contextlib
import io
import json

import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.evaluation.breakdown import confusion, error_breakdown

A, B, C = [0, 0, 100, 100], [200, 0, 100, 100], [0, 200, 100, 100]
NEAR_A = [50, 0, 100, 100]  # IoU with A is 5000 / 15000 = 1/3
HALF = 100 * 51 / 101  # AP, all of whose precision is 1 up to recall 0.5


def truth_of(*objects, classes=2):
    """Objects as (class, box) or (class, box, iscrowd)."""
    return {
        "images": [{"id": 7, "width": 400, "height": 400}],
        "categories": [{"id": 3 * c, "name": f"class {c}"} for c in range(1, classes + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": 3 * category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(any(crowd)),
            }
            for number, (category, box, *crowd) in enumerate(objects, 1)
        ],
    }


def detections(*found):
    return [
        {"image_id": 7, "category_id": 3 * category, "bbox": box, "score": score}
        for category, box, score in found
    ]


def evaluated(truth, found, iou_type="bbox"):
    coco = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(coco, coco.load_res(found), iou_type)
    evaluator.evaluate()
    return evaluator


# Truth, detections, AP50 by hand, the one kind of error, and what mending it gains by hand.
CASES = {
    # class 1 has a false positive before its only hit: 50; class 2 has nothing
    "classification": (
        ((1, A), (2, B)), ((1, A, 0.8), (1, B, 0.9)), 25, 75,
    ),
    "localisation": (((1, A),), ((1, NEAR_A, 0.9),), 0, 100),
    # class 1 has a false positive before its only hit, class 2 is perfect
    "both": (
        ((1, B), (2, A)), ((1, B, 0.8), (1, NEAR_A, 0.9), (2, A, 0.7)), 75, 25,
    ),
    # precision is 1 up to recall 0.5 and 2/3 up to recall 1
    "duplicate": (
        ((1, A), (1, B)), ((1, A, 0.9), (1, A, 0.8), (1, B, 0.7)),
        100 * (51 + 50 * 2 / 3) / 101, 100 - 100 * (51 + 50 * 2 / 3) / 101,
    ),
    "background": (((1, A),), ((1, C, 0.9), (1, A, 0.8)), 50, 50),
    "missed": (((1, A), (1, B)), ((1, A, 0.9),), HALF, 100 - HALF),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_error_is_told_from_the_others(kind):
    objects, found, ap, gain = CASES[kind]
    errors = error_breakdown(evaluated(truth_of(*objects), detections(*found)))
    assert errors["AP50"] == pytest.approx(ap)
    assert errors["counts"] == {other: int(other == kind) for other in CASES}
    assert errors["delta"].pop(kind) == pytest.approx(gain)
    assert list(errors["delta"].values()) == pytest.approx([0] * 5)


def test_perfect_detections_have_no_error():
    errors = error_breakdown(
        evaluated(truth_of((1, A), (2, B)), detections((1, A, 0.9), (2, B, 0.9)))
    )
    assert errors["AP50"] == pytest.approx(100)
    assert set(errors["counts"].values()) == {0}


def test_a_detection_in_a_crowd_is_no_error():
    truth = truth_of((1, B), (1, A, True))
    errors = error_breakdown(evaluated(truth, detections((1, [0, 0, 40, 40], 0.9), (1, B, 0.8))))
    assert errors["AP50"] == pytest.approx(100)
    assert set(errors["counts"].values()) == {0}


def test_the_base_of_a_random_set_is_pycocotools_ap50_and_json_can_hold_it():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 250, (60, 2))
    boxes = np.hstack([corners, random.uniform(20, 120, (60, 2))])
    classes = random.integers(1, 4, 60).tolist()
    truth = truth_of(*zip(classes, boxes.tolist(), strict=True), classes=4)  # the last is empty
    moved = (boxes + random.normal(0, 8, boxes.shape)).tolist()
    guessed = [int(random.integers(1, 5)) if random.random() < 0.3 else c for c in classes]
    found = detections(*zip(guessed, moved, random.random(60).tolist(), strict=True))
    errors = error_breakdown(evaluated(truth, found))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        coco_eval = COCOeval(reference, reference.loadRes(found), "bbox")
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    assert 5 < errors["AP50"] < 95
    assert errors["AP50"] == pytest.approx(100 * coco_eval.stats[1])
    assert json.loads(json.dumps(errors, allow_nan=False)) == errors


def test_without_a_detection_all_is_missed():
    errors = error_breakdown(evaluated(truth_of((1, A), (1, B)), []))
    assert (errors["AP50"], errors["counts"]["missed"]) == (0, 2)


def test_there_are_no_errors_to_break_down_without_objects_or_for_keypoints():
    assert error_breakdown(evaluated(truth_of(), detections((1, A, 0.9)))) is None
    assert error_breakdown(evaluated(truth_of((1, A, True)), detections((1, A, 0.9)))) is None
    keypoints = hotcoco.COCOeval(hotcoco.COCO(truth_of()), hotcoco.COCO(truth_of()), "keypoints")
    assert error_breakdown(keypoints) is None
    assert confusion(keypoints, 0.5) is None


def test_the_confusion_counts_objects_by_row_and_predictions_by_column():
    truth = truth_of((1, A), (1, B), (2, C), (2, [200, 200, 50, 50]))
    found = detections(
        (1, A, 0.9), (2, B, 0.8), (2, C, 0.7), (1, [300, 300, 50, 50], 0.6),
        (2, [200, 200, 50, 50], 0.4),
    )  # fmt: skip
    result = confusion(evaluated(truth, found), 0.5)
    assert result["labels"] == ["class 1", "class 2", "background"]
    assert result["matrix"] == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert (result["iou"], result["score"]) == (0.5, 0.5)
    assert confusion(evaluated(truth, found), 0.4)["matrix"][1] == [0, 2, 0]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
