import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_det.evaluation.measures import measures_of, run_hotcoco
from resnext_det.evaluation.per_class import class_table, operating_point
from resnext_det.evaluation.truth import make_truth
from tests.evaluation.coco_sets import SIGMAS, in_columns, judge, make_set

MAX_DETECTIONS = {"bbox": 100, "segm": 100, "keypoints": 20}


def count_matches(content, results, task, score):
    """(right, wrong, objects) of each class, from every match that pycocotools made."""
    results = [r for r in results if r["score"] >= score]
    judged = judge(
        content,
        results,
        task,
        iouThrs=np.array([0.5]),
        areaRng=[[0, 1e5**2]],
        areaRngLbl=["all"],
        maxDets=[MAX_DETECTIONS[task]],
    )
    counts = {c["id"]: [0, 0, 0] for c in content["categories"]}
    for image in filter(None, judged.evalImgs):
        matches, ignored = image["dtMatches"][0], image["dtIgnore"][0]
        entry = counts[image["category_id"]]
        for match, ignore in zip(matches, ignored, strict=True):
            if not ignore:
                entry[0 if match else 1] += 1
        entry[2] += sum(not ignore for ignore in image["gtIgnore"])
    return [tuple(counts[c]) for c in sorted(counts)]


def assert_counted(content, results, task, score):
    sigmas = SIGMAS if task == "keypoints" else ()
    truth = make_truth(content)
    found = in_columns(results, truth.image_ids)
    precision, recall = operating_point(truth, found, task, score=score, sigmas=sigmas)
    for k, (right, wrong, objects) in enumerate(count_matches(content, results, task, score)):
        if right + wrong:
            assert precision[k] == pytest.approx(100 * right / (right + wrong), abs=1e-6)
        else:
            assert math.isnan(precision[k])
        if objects:
            assert recall[k] == pytest.approx(100 * right / objects, abs=1e-6)
        else:
            assert math.isnan(recall[k])


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(["bbox", "segm", "keypoints"]),
    score=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 6),
    objects=st.integers(0, 6),
    detections=st.integers(0, 12),
    classes=st.integers(1, 4),
    crowds=st.sampled_from([0, 0.3, 1]),
    steps=st.integers(1, 9),
)
def test_precision_and_recall_are_those_of_pycocotools_matches(task, score, **sizes):
    assert_counted(*make_set(**sizes), task, score)


@pytest.mark.parametrize("task", ["bbox", "keypoints"])
def test_only_as_many_detections_count_as_coco_takes(task):
    content, results = make_set(0, images=3, objects=8, detections=400, classes=2, steps=40)
    assert_counted(content, results, task, 0.0)


def test_a_detection_turned_inside_out_is_ignored():
    content, results = make_set(1, images=20, objects=8, detections=30, crowds=0, steps=3)
    for row in results[::2]:
        row["bbox"][2] = -5.0
    assert sum(right for right, _, _ in count_matches(content, results, "bbox", 0.2)) > 10
    assert_counted(content, results, "bbox", 0.2)


def a_case():
    """Two cats of which one is found; a dog twice found; a crowd of dogs; a cat on a dog."""
    boxes = {"cat": (0, 0, 10, 10), "cat 2": (0, 50, 10, 10), "dog": (40, 0, 20, 20)}

    def box(name):
        return list(map(float, boxes[name]))

    def truth(number, category, bbox, crowd=0):
        return {
            **{"id": number, "image_id": 1, "category_id": category, "iscrowd": crowd},
            **{"bbox": bbox, "area": bbox[2] * bbox[3]},
        }

    def found(category, bbox, score):
        return {"image_id": 1, "category_id": category, "bbox": bbox, "score": score}

    content = {
        "images": [{"id": 1, "width": 128, "height": 96}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 9, "name": "ox"}],
        "annotations": [
            truth(1, 1, box("cat")),
            truth(2, 1, box("cat 2")),
            truth(3, 2, box("dog")),
            truth(4, 2, [80.0, 0.0, 40.0, 40.0], crowd=1),
        ],
    }
    results = [
        found(1, box("cat"), 0.9),
        found(1, box("cat 2"), 0.4),  # below the operating point
        found(2, box("dog"), 0.8),
        found(2, box("dog"), 0.7),  # a duplicate
        found(2, [85.0, 5.0, 10.0, 10.0], 0.6),  # in the crowd
        found(2, [90.0, 9.0, 10.0, 10.0], 0.6),  # likewise
        found(1, box("dog"), 0.5),  # the wrong class, at the operating point
    ]
    return content, results


def test_a_case_counted_by_hand():
    content, results = a_case()
    for row in results:
        row["segmentation"] = {"size": [96, 128], "counts": "PP6"}
        row["keypoints"] = [0.0] * 3
    truth = make_truth(content)
    found = in_columns(results, truth.image_ids)
    precision, recall = operating_point(truth, found, "bbox", score=0.5)
    assert truth.names == ("cat", "dog", "ox")
    np.testing.assert_allclose(precision, [50, 50, np.nan])  # 1 of 2; 1 of 2, 2 ignored
    np.testing.assert_allclose(recall, [50, 100, np.nan])
    precision, recall = operating_point(truth, found, "bbox", score=0.1)
    np.testing.assert_allclose(precision, [200 / 3, 50, np.nan])
    np.testing.assert_allclose(recall, [100, 100, np.nan])


def test_the_table_has_the_data_sets_order_and_counts_no_crowds():
    content, results = make_set(3, images=20, classes=4)
    content["categories"].reverse()
    truth = make_truth(content)
    detections = in_columns(results, truth.image_ids)
    found = detections.in_hotcoco(truth.coco, "bbox")
    measures = measures_of(run_hotcoco(truth, found, "bbox"), "bbox")
    rows = class_table(truth, detections, measures, score=0.4)
    assert [row["category_id"] for row in rows] == [3, 10, 17, 24]
    assert [row["name"] for row in rows] == ["class 3", "class 10", "class 17", "class 24"]
    for row in rows:
        own = [a for a in content["annotations"] if a["category_id"] == row["category_id"]]
        assert row["objects"] == sum(not a["iscrowd"] for a in own)
    assert rows[-1]["objects"] == 0
    assert math.isnan(rows[-1]["AP"]) and math.isnan(rows[-1]["recall"])
    assert rows[-1]["precision"] == 0  # it is found and is nowhere
