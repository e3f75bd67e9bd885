"""Every figure equals pycocotools' own."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_det.evaluation.measures import FIGURES, measures_of, run_hotcoco, run_pycocotools
from resnext_det.evaluation.truth import make_truth
from tests.evaluation.coco_sets import SIGMAS, in_columns, judge, make_set

TASKS = ("bbox", "segm", "keypoints")


def assert_equals_pycocotools(content, results, evaluator="hotcoco"):
    truth = make_truth(content)
    detections = in_columns(results, truth.image_ids)
    for task in TASKS:
        sigmas = SIGMAS if task == "keypoints" else ()
        if evaluator == "hotcoco":
            found = detections.in_hotcoco(truth.coco, task)
            measures = measures_of(run_hotcoco(truth, found, task, sigmas=sigmas), task)
        else:
            measures = run_pycocotools(truth, detections, task, sigmas=sigmas)
        reference = judge(content, results, task)
        figures = measures.figures()
        assert list(figures) == list(FIGURES[task])
        assert len(figures) == len(reference.stats)
        for (name, value), stat in zip(figures.items(), reference.stats, strict=True):
            assert_percent(value, stat, f"{task} {name}")
        precision, recall = reference.eval["precision"], reference.eval["recall"]
        for k in range(len(truth.names)):
            figures = measures.of_class(k)
            assert_percent(figures["AP"], mean(precision[:, :, k, 0, -1]), f"{task} AP of {k}")
            assert_percent(figures["AP50"], mean(precision[0, :, k, 0, -1]), f"{task} AP50 of {k}")
            assert_percent(figures["AP75"], mean(precision[5, :, k, 0, -1]), f"{task} AP75 of {k}")
            assert_percent(figures["AR"], mean(recall[:, k, 0, -1]), f"{task} AR of {k}")


def mean(values):
    values = values[values > -1]
    return values.mean() if values.size else -1


def assert_percent(value, expected, name):
    if expected == -1:
        assert math.isnan(value), name
    else:
        assert value == pytest.approx(100 * expected, abs=1e-6), name


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 5),
    objects=st.integers(0, 6),
    detections=st.integers(0, 12),
    classes=st.integers(1, 4),
    crowds=st.sampled_from([0, 0.2, 0.8, 1]),
    steps=st.integers(1, 9),
    polygons=st.booleans(),
)
def test_any_small_set_has_pycocotools_figures(**sizes):
    assert_equals_pycocotools(*make_set(**sizes))


@pytest.mark.parametrize("seed", range(3))
def test_a_class_may_have_more_than_100_detections_in_an_image(seed):
    content, results = make_set(
        seed, images=3, objects=12, detections=400, classes=2, steps=40, crowds=0.1
    )
    most = max(
        sum((r["image_id"], r["category_id"]) == pair for r in results)
        for pair in {(r["image_id"], r["category_id"]) for r in results}
    )
    assert most > 100
    assert_equals_pycocotools(content, results)


@pytest.mark.parametrize("missing", ["images", "annotations", "detections", "objects of a size"])
def test_what_is_missing_is_missing_in_pycocotools_too(missing):
    content, results = make_set(1, images=6, classes=3)
    if missing == "images":
        content["images"], content["annotations"], results = [], [], []
    elif missing == "annotations":
        content["annotations"] = []
    elif missing == "detections":
        results = []
    else:
        content["annotations"] = [a for a in content["annotations"] if a["area"] > 32**2]
        assert content["annotations"]
    assert_equals_pycocotools(content, results)


def test_boxes_of_no_area_or_turned_inside_out_are_those_of_pycocotools():
    content, results = make_set(2, images=5, detections=10)
    for number, row in enumerate(results):
        if number % 3:
            row["bbox"][2 + number % 2] = (-5.0, 0.0)[number % 3 - 1]
    for annotation in content["annotations"][::2]:
        annotation["bbox"][2] = 0.0
    assert_equals_pycocotools(content, results)


def test_the_selectable_pycocotools_is_pycocotools():
    content, results = make_set(3, polygons=True)
    assert_equals_pycocotools(content, results, evaluator="pycocotools")
    assert_equals_pycocotools(content, [], evaluator="pycocotools")


def test_the_written_file_has_the_figures(tmp_path):
    content, results = make_set(4, images=30, detections=20, steps=50)
    truth = make_truth(content)
    detections = in_columns(results, truth.image_ids)
    detections.write(tmp_path / "coco_instances_results.json", truth.image_ids)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(written) == len(results) > 100
    for task in TASKS:
        sigmas = SIGMAS if task == "keypoints" else ()
        found = detections.in_hotcoco(truth.coco, task)
        measures = measures_of(run_hotcoco(truth, found, task, sigmas=sigmas), task)
        reference = judge(content, written, task)
        assert 0 < reference.stats[0] < 1
        expected = [100 * s if s > -1 else math.nan for s in reference.stats]
        np.testing.assert_allclose(list(measures.figures().values()), expected, atol=1e-9)


def test_curves_are_means_over_the_classes_with_objects():
    content, results = make_set(5, images=20, classes=4)
    truth = make_truth(content)
    detections = in_columns(results, truth.image_ids)
    found = detections.in_hotcoco(truth.coco, "bbox")
    measures = measures_of(run_hotcoco(truth, found, "bbox"), "bbox")
    curves = measures.curves(truth.names)
    precision = judge(content, results, "bbox").eval["precision"][:, :, :, 0, -1]
    assert (precision[0, 0, -1], precision[0, 0, :-1].min() > -1) == (-1, True)
    np.testing.assert_allclose(curves["recall"], np.linspace(0, 1, 101), atol=1e-12)
    for key, values in (
        ("0.50", precision[0]),
        ("0.75", precision[5]),
        ("mean", precision.mean(axis=0)),
    ):
        expected = 100 * values[:, :-1].mean(axis=1)
        np.testing.assert_allclose(curves["precision"][key], expected, atol=1e-3)
    assert list(curves["classes"]) == list(truth.names[:-1])
    np.testing.assert_allclose(
        curves["classes"][truth.names[1]], 100 * precision[0, :, 1], atol=1e-3
    )


def test_sigmas_change_keypoint_figures_as_in_pycocotools():
    content, results = make_set(6, images=20, crowds=0)
    truth = make_truth(content)
    detections = in_columns(results, truth.image_ids)
    found = detections.in_hotcoco(truth.coco, "keypoints")
    for sigmas in ((0.3, 0.3, 0.3), (0.02, 0.02, 0.02)):
        run = run_hotcoco(truth, found, "keypoints", sigmas=sigmas)
        reference = judge(content, results, "keypoints", kpt_oks_sigmas=np.array(sigmas))
        np.testing.assert_allclose(
            measures_of(run, "keypoints").precision, reference.eval["precision"], atol=1e-9
        )
