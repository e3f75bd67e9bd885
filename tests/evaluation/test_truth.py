"""Annotation files as they are found in the wild."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from resnext_det.config import load_config
from resnext_det.data import shapes
from resnext_det.engine import Trainer, check_config
from resnext_det.errors import UserError
from resnext_det.evaluation import CocoEvaluator
from resnext_det.evaluation.saved import evaluate_results
from resnext_det.evaluation.summary import evaluate_tasks
from resnext_det.evaluation.truth import make_truth, read_truth
from tests.evaluation.coco_sets import HEIGHT, WIDTH, in_columns, judge, make_set, write_set


def assert_figures(figures, reference):
    assert reference.stats[0] > 0.005
    values = [-1 if v is None or math.isnan(v) else v / 100 for v in figures.values()]
    np.testing.assert_allclose(values, reference.stats, atol=1e-8)


RENAMINGS = {
    "beyond a float's whole numbers": lambda i: 2**53 + 1 + i,
    "text": lambda i: f"image {i:04}",
    "negative": lambda i: i - 2000,
}


def renamed(seed, rename, **sizes):
    """A set with other image ids, and the same with its own."""
    content, results = make_set(seed, **sizes)
    changed = [
        {**content, "images": [{**i, "id": rename(i["id"])} for i in content["images"]]},
        [{**r, "image_id": rename(r["image_id"])} for r in results],
    ]
    changed[0]["annotations"] = [
        {**a, "image_id": rename(a["image_id"])} for a in content["annotations"]
    ]
    return *changed, content, results


@pytest.mark.parametrize("ids", RENAMINGS)
def test_any_image_ids_have_pycocotools_figures_and_stay_in_the_files(ids, tmp_path):
    content, results, own_content, own_results = renamed(
        0, RENAMINGS[ids], images=12, detections=30
    )
    annotations, file = write_set(tmp_path, content, results)
    output = tmp_path / "out"
    evaluate_results(file, annotations=annotations, tasks=["bbox", "segm"], output=output)
    tasks = json.loads((output / "evaluation.json").read_text())["tasks"]
    for task in ("bbox", "segm"):
        assert_figures(tasks[task]["figures"], judge(own_content, own_results, task))
    assert [a["image_id"] for a in read_truth(annotations).content["annotations"]] == [
        a["image_id"] for a in content["annotations"]
    ]


@pytest.fixture
def register(tmp_path):
    """Register a ground truth as a data set, whose file is the first argument's content."""
    names = []

    def forget(name):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)

    def add(content, name="found_in_the_wild"):
        forget(name)
        annotations = tmp_path / f"{name}.json"
        annotations.write_text(json.dumps(content))
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            json_file=str(annotations),
            evaluator_type="coco",
            thing_classes=[c["name"] for c in content["categories"]],
            thing_dataset_id_to_contiguous_id={
                c["id"]: index for index, c in enumerate(content["categories"])
            },
        )
        names.append(name)
        return name

    yield add
    for name in names:
        forget(name)


def outputs(content, results):
    """The entries as a model's inputs and outputs, images in an order of their own."""
    places = {c["id"]: index for index, c in enumerate(content["categories"])}
    for image in [i["id"] for i in content["images"]]:
        rows = [r for r in results if r["image_id"] == image]
        boxes = torch.tensor([r["bbox"] for r in rows]).reshape(-1, 4)
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1))
        instances.scores = torch.tensor([r["score"] for r in rows])
        instances.pred_classes = torch.tensor(
            [places[r["category_id"]] for r in rows], dtype=torch.int64
        )
        yield [{"image_id": image}], [{"instances": instances}]


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("ids", RENAMINGS)
def test_a_model_is_evaluated_on_any_image_ids_as_by_detectron2(register, tmp_path, ids, limit):
    content, results, *_ = renamed(0, RENAMINGS[ids], images=12, detections=40)
    if limit:  # a model sees the first images, and Detectron2 a file of these
        content["images"] = sorted(content["images"], key=lambda image: image["id"])
        seen = {**content, "images": content["images"][:limit]}
    else:
        seen = content
    name = register(content)
    ours = CocoEvaluator(name, output_dir=str(tmp_path / "ours"), limit=limit)
    if limit:
        name = register(seen, "few")
    theirs = COCOEvaluator(name, ("bbox",), output_dir=str(tmp_path), use_fast_impl=False)
    for evaluator in (ours, theirs):
        evaluator.reset()
        for inputs, found in outputs(seen, results):
            evaluator.process(inputs, found)
    expected = theirs.evaluate()["bbox"]
    measured = ours.evaluate()["bbox"]
    assert expected["AP"] > 0.5
    for metric, value in expected.items():
        np.testing.assert_allclose(measured[metric], value, atol=1e-6)
    files = [tmp_path / "ours", tmp_path]
    rows = [json.loads((f / "coco_instances_results.json").read_text()) for f in files]
    assert rows[0] == rows[1]


def test_processes_count_their_own_images():
    """Detections of two processes, put together, belong to the images that they were found on."""
    from resnext_det.evaluation.buffer import DetectionBuffer
    from resnext_det.evaluation.detections import from_instances

    parts = []
    for score in (0.25, 0.5):
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 1, 1]]))
        instances.scores, instances.pred_classes = torch.tensor([score]), torch.tensor([0])
        parts.append(DetectionBuffer())
        parts[-1].add(from_instances(instances, 1))
    parts[0].extend(parts[1], 3)
    assert parts[0].detections().images.tolist() == [1, 4]
    assert parts[0].detections().scores.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("strange", ["images", "categories"])
def test_annotations_of_what_is_not_listed_count_for_nothing(strange):
    content, results = make_set(2, images=10, classes=4, crowds=0.1)
    whole = evaluate_tasks(*truth_and_found(content, results), ["bbox", "segm"])
    extra = {"images": ("image_id", 5000), "categories": ("category_id", 99)}[strange]
    more = [{**a, extra[0]: extra[1], "id": 900 + a["id"]} for a in content["annotations"]]
    content = {**content, "annotations": more + content["annotations"]}
    again = evaluate_tasks(*truth_and_found(content, results), ["bbox", "segm"])
    np.testing.assert_equal(again, whole)
    for task in ("bbox", "segm"):
        assert_figures(again[task]["figures"], judge(content, results, task))
        for row in again[task]["classes"]:
            assert not row["precision"] > 100 and not row["recall"] > 100


def truth_and_found(content, results):
    truth = make_truth(content)
    return truth, in_columns(results, truth.image_ids)


def test_each_annotation_counts_once_whatever_its_id():
    content, results = make_set(3, images=10, crowds=0)
    expected = judge(content, results, "bbox")
    for annotation in content["annotations"]:
        annotation["id"] = 1 + annotation["id"] // 2  # each twice
    measured = evaluate_tasks(*truth_and_found(content, results), ["bbox"])["bbox"]
    assert_figures(measured["figures"], expected)
    assert sum(row["objects"] for row in measured["classes"]) == len(content["annotations"])
    for annotation in content["annotations"]:
        del annotation["id"]
    again = evaluate_tasks(*truth_and_found(content, results), ["bbox"])["bbox"]
    np.testing.assert_equal(again, measured)


def bad_category(*values):
    def alter(content):
        content["categories"] += [{"id": value, "name": "again"} for value in values]

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (bad_category(3), "two categories have the id 3"),
        (bad_category("7"), "category id '7' is no whole number"),
        (bad_category(-1), "category id -1 is no whole number"),
        (bad_category(2**53 + 1), "is no whole number from 0 to 2**53"),
        (lambda content: content["images"].append({"id": "a"}), "TypeError"),
        (lambda content: content["annotations"][0].update(area=10**400), "too large"),
    ],
)
def test_a_file_that_would_be_misread_is_refused_in_one_line(tmp_path, alter, message):
    content, results = make_set(4)
    alter(content)
    annotations, _ = write_set(tmp_path, content, results)
    with pytest.raises(UserError) as refusal:
        read_truth(annotations)
    assert "is not a COCO annotation file: " in str(refusal.value)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("bbox", "bbox", None),
        ("bbox", "bbox", [1, 2, 3]),
        ("bbox", "bbox", [1, 2, 3, math.nan]),
        ("bbox", "area", None),
        ("bbox", "area", math.nan),
        ("segm", "segmentation", None),
        ("segm", "segmentation", []),
        ("segm", "segmentation", [[]]),
        ("segm", "segmentation", [[1, 2, 3, 4]]),
        ("segm", "segmentation", [[1, 2, 3, math.nan, 5, 6]]),
        ("segm", "segmentation", {"size": [HEIGHT, WIDTH], "counts": [0, 5]}),
        ("keypoints", "num_keypoints", None),
        ("keypoints", "keypoints", [1, 2]),
    ],
)
def test_a_value_that_nothing_can_be_measured_by_is_named(tmp_path, task, field, value):
    content, results = make_set(5, images=6)
    content["annotations"][1][field] = value
    annotations, file = write_set(tmp_path, content, results)
    with pytest.raises(UserError) as refusal:
        if field != "bbox" or value is not None:
            read_truth(annotations).require(task)
        evaluate_results(file, annotations=annotations, tasks=[task])
    words = str(refusal.value)
    assert f"so {task} cannot be evaluated" in words or "is not a COCO annotation file" in words
    assert "\n" not in words


QUICK = "quick/faster_rcnn_X26_8x4d_FPN"


def test_a_test_set_that_cannot_be_evaluated_stops_before_training(register, tmp_path, monkeypatch):
    content, _ = make_set(6, images=6, classes=5)
    cfg = load_config(QUICK, ["MODEL.DEVICE", "cpu"])
    cfg.DATASETS.TEST = (register(content),)
    check_config(cfg, eval_only=True)
    del content["annotations"][1]["area"]
    register(content)
    with pytest.raises(UserError, match="annotation 2 of image .* has no 'area', so bbox"):
        check_config(cfg, eval_only=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 2, "shapes_minival": 1})
    monkeypatch.setattr(Trainer, "build_model", lambda cfg: pytest.fail("a model was built"))
    with pytest.raises(UserError, match="annotation 2 of image .* has no 'area', so bbox"):
        Trainer(cfg)
    content["annotations"][1]["area"] = 9.0
    del content["annotations"][2]["segmentation"]
    register(content)
    check_config(cfg, eval_only=True)
    cfg.MODEL.MASK_ON = True
    with pytest.raises(UserError, match="has no 'segmentation', so segm cannot be evaluated"):
        check_config(cfg, eval_only=True)
    del content["annotations"]  # of a secret test set
    register(content)
    check_config(cfg, eval_only=True)
