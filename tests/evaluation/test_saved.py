import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util

from resnext_det.errors import UserError
from resnext_det.evaluation.results_file import read_detections
from resnext_det.evaluation.saved import evaluate_results
from resnext_det.evaluation.truth import make_truth, read_truth
from tests.evaluation.coco_sets import HEIGHT, SIGMAS, WIDTH, judge, make_set, write_set


def read(folder):
    return json.loads((folder / "evaluation.json").read_text())


def assert_figures(figures, reference):
    expected = [100 * s if s > -1 else None for s in reference.stats]
    assert len(figures) == len(expected)
    for value, own in zip(figures.values(), expected, strict=True):
        assert (value is None) == (own is None)
        assert own is None or value == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_a_saved_file_has_pycocotools_figures(tmp_path, evaluator):
    content, results = make_set(0, images=12, detections=10)
    annotations, file = write_set(tmp_path, content, results)
    text = evaluate_results(
        file,
        annotations=annotations,
        tasks=["bbox", "segm"],
        score=0.3,
        evaluator=evaluator,
        output=tmp_path / "out",
    )
    evaluation = read(tmp_path / "out")
    assert evaluation["dataset"] == "truth.json"
    assert evaluation["implementation"].startswith(evaluator)
    assert (evaluation["images"], evaluation["score"], evaluation["limit"]) == (12, 0.3, None)
    saved = json.loads((tmp_path / "out/results.json").read_text())
    for task in ("bbox", "segm"):
        figures = evaluation["tasks"][task]["figures"]
        reference = judge(content, results, task)
        assert reference.stats[0] > 0
        assert_figures(figures, reference)
        assert f"{task}: AP {100 * reference.stats[0]:.2f}, AP50" in text
        assert figures.items() <= saved[task].items()
        assert saved[task]["per_class"].keys() == {"class 3", "class 10", "class 17"}
    lines = [line.split() for line in text.splitlines() if line.startswith("class 10 ")]
    assert len(lines) == 2 and all(len(line) == 9 for line in lines)


def test_everything_that_the_entries_have_is_evaluated(tmp_path):
    content, results = make_set(1, images=8)
    for row in results:
        del row["keypoints"]
    annotations, file = write_set(tmp_path, content, results)
    evaluate_results(file, annotations=annotations, output=tmp_path / "out")
    assert list(read(tmp_path / "out")["tasks"]) == ["bbox", "segm"]


def test_boxes_that_are_absent_are_those_around_masks_or_keypoints(tmp_path):
    content, results = make_set(2, images=8, crowds=0)
    for task, kept in (("segm", "segmentation"), ("keypoints", "keypoints")):
        rows = [
            {key: row[key] for key in ("image_id", "category_id", "score", kept)} for row in results
        ]
        _, file = write_set(tmp_path, content, rows)
        truth = make_truth(content)
        detections, tasks = read_detections(file, truth)
        assert tasks == (task,)
        reference = judge(content, rows, task, keep_boxes=True)
        theirs = [reference.cocoDt.anns[n + 1] for n in range(len(rows))]
        np.testing.assert_allclose(detections.boxes, [a["bbox"] for a in theirs])
        np.testing.assert_allclose(detections.areas(task), [a["area"] for a in theirs])


def test_masks_may_be_polygons_or_plain_run_lengths(tmp_path):
    content, results = make_set(3, images=2)
    results = results[:3]
    mask = mask_util.decode(results[0]["segmentation"])
    runs = np.diff(np.flatnonzero(np.diff([2, *mask.ravel(order="F"), 2]))).tolist()
    results[0]["segmentation"] = {
        "size": [HEIGHT, WIDTH],
        "counts": runs if not mask[0, 0] else [0, *runs],
    }
    results[1]["segmentation"] = [[8, 8, 40, 8, 40, 30, 8, 30]]
    _, file = write_set(tmp_path, content, results)
    detections, _ = read_detections(file, make_truth(content))
    areas = detections.areas("segm")
    assert areas[0] == mask.sum()
    assert areas[1] == 32 * 22
    assert areas[2] == mask_util.area(results[2]["segmentation"])


def test_a_limit_leaves_out_the_other_images(tmp_path):
    content, results = make_set(4, images=9)
    annotations, file = write_set(tmp_path, content, results)
    text = evaluate_results(
        file, annotations=annotations, tasks=["bbox"], limit=4, output=tmp_path / "out"
    )
    ids = sorted(image["id"] for image in content["images"])[:4]
    few = {
        **content,
        "images": [i for i in content["images"] if i["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
    reference = judge(few, [r for r in results if r["image_id"] in ids], "bbox")
    evaluation = read(tmp_path / "out")
    assert_figures(evaluation["tasks"]["bbox"]["figures"], reference)
    assert (evaluation["images"], evaluation["limit"]) == (4, 4)
    assert "over the first 4 images alone" in text


def test_a_config_names_the_test_set_and_the_sigmas(tmp_path):
    content, results = make_set(5, images=8)
    annotations, file = write_set(tmp_path, content, results)
    config = tmp_path / "config.yaml"
    config.write_text(f"TEST:\n  KEYPOINT_OKS_SIGMAS: {list(SIGMAS)}\n")
    evaluate_results(
        file,
        annotations=annotations,
        config_file=str(config),
        tasks=["keypoints"],
        output=tmp_path / "out",
    )
    figures = read(tmp_path / "out")["tasks"]["keypoints"]["figures"]
    assert_figures(figures, judge(content, results, "keypoints"))


def test_a_run_is_judged_by_its_own_training(tmp_path):
    """Its config names no weights where training began at random, and yet it was trained."""
    content, results = make_set(5, images=8, crowds=0)
    for row in results:
        row["score"], row["bbox"] = 0.9, [100.0, 60.0, 9.0, 9.0]
    annotations, file = write_set(tmp_path, content, results)
    config = tmp_path / "config.yaml"
    config.write_text('MODEL: {WEIGHTS: ""}\nSOLVER: {MAX_ITER: 1000}\n')

    def evaluate():
        return evaluate_results(
            file, annotations=annotations, config_file=str(config), tasks=["bbox"]
        )

    text = evaluate()
    assert "bbox: AP 0.00" in text and "random weights" not in text
    rows = [{"iteration": 20 * n - 1, "total_loss": 1.0} for n in range(1, 51)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    text = evaluate()
    assert "random weights" not in text and "not trained enough" not in text
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows[:20])))
    assert "training stopped at iteration 400 of 1000" in evaluate()


def test_no_detections_are_ap_0(tmp_path):
    content, _ = make_set(6, images=8, crowds=0)
    annotations, file = write_set(tmp_path, content, [])
    text = evaluate_results(file, annotations=annotations)
    assert "bbox: AP 0.00, AP50 0.00" in text
    assert "detected nothing" in text


def change(**fields):
    def alter(results):
        results[1].update(fields)

    return alter


def drop(field):
    def alter(results):
        del results[1][field]

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (change(image_id=5000), "entry 1 has image_id 5000, which is no image of the annotation"),
        (change(image_id="7"), "entry 1 has image_id '7', which is no image"),
        (change(category_id=99), "entry 1 has category_id 99, which is no category"),
        (change(category_id=True), "entry 1 has category_id True, which is no category"),
        (change(score=math.nan), "entry 1 has score nan, which is not a finite number"),
        (change(score="high"), "entry 1 has score 'high'"),
        (
            change(bbox=[1, 2, math.inf, 4]),
            "entry 1 has bbox [1, 2, inf, 4], which is not 4 finite",
        ),
        (change(bbox=[1, 2, 3]), "entry 1 has bbox [1, 2, 3]"),
        (change(bbox=None), "entry 1 has bbox None"),
        (change(keypoints=[1, 2]), "entry 1 has keypoints [1, 2]"),
        (change(keypoints=[1, 2, 3]), "the entries differ in their number of keypoints"),
        (change(segmentation={}), "entry 1 has a segmentation that is neither"),
        (change(segmentation=[]), "entry 1 has a segmentation that is neither"),
        (change(segmentation={"size": [3, 3], "counts": "9"}), "entry 1 has a segmentation that"),
        *(
            (change(segmentation={"size": [HEIGHT, WIDTH], "counts": counts}), "entry 1 has a seg")
            for counts in (
                [0, 48000],
                [0, -48],
                [0.5, HEIGHT * WIDTH - 0.5],
                [True, HEIGHT * WIDTH - 1],
                [],
                [0, 10**400],
                "zzzzzz!!~~",
                "",
                "é",
                None,
            )
        ),
        *(
            (change(segmentation=[polygon]), "entry 1 has a segmentation that is neither")
            for polygon in (
                [math.nan] * 6,
                [0, 0, 1e9, 0, 1e9, 1e9],
                [0, 0, -1e9, 0, 9, 9],
                [0, 0, 9, 0],
                [0, 0, 9, 0, 9, 9, 1],
                ["0"] * 6,
                [10**400] * 6,
                6,
            )
        ),
        (change(segmentation=None), "entry 1 has a segmentation that is neither"),
        (change(score=10**400), "entry 1 has score 10000"),
        (change(bbox=[1, 2, 10**400, 3]), "entry 1 has bbox [1, 2, 10000"),
        (change(keypoints=[10**400] * 9), "entry 1 has keypoints [10000"),
        (change(image_id=10**400), "entry 1 has image_id 10000"),
        (change(category_id=10**400), "entry 1 has category_id 10000"),
        (drop("score"), "entry 1 has no 'score'"),
        (drop("bbox"), "entry 1 has no 'bbox'"),
        (lambda results: results.__setitem__(1, "box"), "entry 1 is 'box', not a detection"),
        (lambda results: results.__setitem__(0, {"image_id": 1}), "entry 0 has none of bbox, segm"),
    ],
)
def test_the_first_bad_entry_is_named_in_one_line(tmp_path, alter, message):
    content, results = make_set(7, images=6)
    alter(results)
    annotations, file = write_set(tmp_path, content, results)
    with pytest.raises(UserError) as refusal:
        evaluate_results(file, annotations=annotations)
    assert str(refusal.value).startswith(f"{file}: ") and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "is not JSON: "),
        ('{"annotations": []}', "holds no list of detections"),
        ("[" * 100_000, "is not JSON: "),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_results_file_is_refused(tmp_path, text, message):
    annotations, file = write_set(tmp_path, *make_set(8))
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as refusal:
        evaluate_results(file, annotations=annotations)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not a COCO annotation file: "),
        ('{"images": []}', "is not a COCO annotation file: KeyError: 'categories'"),
        ('{"images": [{"id": ["a"]}], "categories": []}', "is not a COCO annotation file: "),
        (None, "cannot be read: "),
    ],
)
def test_annotations_that_are_none_are_refused(tmp_path, text, message):
    annotations = tmp_path / "truth.json"
    if text is not None:
        annotations.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_truth(annotations)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 1.5}, "--score 1.5 is no score: give a number from 0 to 1"),
        ({"score": math.nan}, "--score nan is no score"),
        ({"score": "high"}, "--score high is no score: give a number from 0 to 1"),
        ({"limit": 0}, "--limit 0 is no number of images"),
        ({"limit": "x"}, "--limit x is no number of images: give a whole number from 1"),
        ({"limit": "-1"}, "--limit -1 is no number of images"),
        ({"evaluator": "fast"}, "--evaluator fast is not one of hotcoco, pycocotools"),
        ({"annotations": None}, "name the ground truth: --annotations FILE, or --config-file"),
    ],
)
def test_a_bad_option_is_refused(tmp_path, options, message):
    annotations, file = write_set(tmp_path, *make_set(9))
    with pytest.raises(UserError) as refusal:
        evaluate_results(file, **{"annotations": annotations, **options})
    assert message in str(refusal.value)


def test_a_task_that_the_entries_lack_is_refused(tmp_path):
    content, results = make_set(10)
    for row in results:
        del row["segmentation"]
    annotations, file = write_set(tmp_path, content, results)
    with pytest.raises(UserError, match=r"--tasks segm: entry 0 of .* has no 'segmentation'"):
        evaluate_results(file, annotations=annotations, tasks=["segm"])
