"""--limit, --score and --tta of the main job."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from resnext_det.config import load_config
from resnext_det.data import shapes
from resnext_det.data.custom import CustomData
from resnext_det.engine import Trainer, argument_parser, check_config, run_job, train_or_evaluate
from resnext_det.errors import UserError
from tests.engine.jobs import Run
from tests.evaluation.coco_sets import judge
from tests.helpers import randomise

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
SMALL = ("INPUT.MIN_SIZE_TEST", "64", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random ones of the quick config, by which every process evaluates the same model."""
    folder = tmp_path_factory.mktemp("weights")
    cfg = load_config(QUICK, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = Trainer.build_model(cfg)
    torch.save({"model": randomise(model).state_dict()}, folder / "random.pth")
    return str(folder / "random.pth")


@pytest.fixture
def evaluate(tmp_path, monkeypatch, weights):
    """Run the job with --eval-only on 8 shapes; returns the exit status."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 8, "shapes_minival": 8})

    def run(*words, config=QUICK):
        flags = [w for w in words if w.startswith("--") or w in words[1:2]]
        pairs = [w for w in words if w not in flags]
        own = ("MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "output"), *SMALL)
        command = ["--config-file", config, "--eval-only", *flags, *own, *pairs]
        return run_job(train_or_evaluate, argument_parser().parse_args(command))

    return run


def read(output):
    """Results, evaluation and detections of a run."""
    folder = output / "inference"
    files = (
        output / "results.json",
        folder / "evaluation.json",
        folder / "coco_instances_results.json",
    )
    return [json.loads(file.read_text()) for file in files]


def test_a_limit_evaluates_the_first_images_and_their_ground_truth_alone(
    evaluate, tmp_path, capsys
):
    assert evaluate("--limit", "3") == 0
    results, evaluation, found = read(tmp_path / "output")
    truth = json.loads(Path(MetadataCatalog.get("shapes_minival").json_file).read_text())
    ids = sorted(image["id"] for image in truth["images"])[:3]
    assert len(truth["images"]) == 8
    assert {row["image_id"] for row in found} == set(ids)
    content = {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in ids],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
    }
    reference = judge(content, found, "bbox")
    expected = [100 * s if s > -1 else math.nan for s in reference.stats]
    names = evaluation["tasks"]["bbox"]["figures"].keys()
    values = [math.nan if results["bbox"][n] is None else results["bbox"][n] for n in names]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert (evaluation["images"], evaluation["limit"], evaluation["tta"]) == (3, 3, False)
    assert "the figures are over 3 images alone" in capsys.readouterr().out
    objects = [row["objects"] for row in evaluation["tasks"]["bbox"]["classes"]]
    assert sum(objects) == sum(not a["iscrowd"] for a in content["annotations"])


def test_a_limit_above_the_number_of_images_takes_all(evaluate, tmp_path):
    assert evaluate("--limit", "50") == 0
    assert read(tmp_path / "output")[1]["images"] == 8


def test_classes_are_in_results_json_and_few_scalars_in_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 4})
    words = ["--config-file", QUICK, "--limit", "2", "--score", "0.01", *SMALL, "SOLVER.MAX_ITER"]
    words += ["1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", str(tmp_path / "output")]
    assert run_job(train_or_evaluate, argument_parser().parse_args(words)) == 0
    results, evaluation, _ = read(tmp_path / "output")
    assert (evaluation["images"], evaluation["score"]) == (2, 0.01)
    classes = results["bbox"]["per_class"]
    assert list(classes) == MetadataCatalog.get("shapes_minival").thing_classes
    for row in evaluation["tasks"]["bbox"]["classes"]:
        own = classes[row["name"]]
        assert list(own) == ["AP", "AP50", "AP75", "AR", "precision", "recall"]
        assert own.items() <= row.items()
        assert own["AP"] == results["bbox"][f"AP-{row['name']}"]
    metrics = (tmp_path / "output/metrics.json").read_text().splitlines()[-1]
    names = {name for name in json.loads(metrics) if name.startswith("bbox/")}
    figures = {f"bbox/{name}" for name in evaluation["tasks"]["bbox"]["figures"]}
    assert "bbox/AR100" in names <= figures | {f"bbox/AP-{name}" for name in classes}


def test_two_processes_evaluate_a_limit_as_one_does(tmp_path, weights):
    outputs = []
    for processes in ("1", "2"):
        output = tmp_path / processes
        run = Run(
            *(tmp_path, output, "--eval-only", "--limit=3", f"--num-gpus={processes}"),
            *("MODEL.WEIGHTS", weights, *SMALL),
        )
        assert run.wait() == 0, run.console
        outputs.append(read(output))
    assert outputs[0][1]["images"] == 3
    assert len(outputs[0][2]) > 10
    assert [row["image_id"] for row in outputs[0][2]] == [row["image_id"] for row in outputs[1][2]]
    for one, two in zip(outputs[0][2], outputs[1][2], strict=True):
        assert one["category_id"] == two["category_id"]
        np.testing.assert_allclose(one["bbox"], two["bbox"], atol=1e-3)
    assert outputs[0][1]["tasks"]["bbox"]["classes"] == outputs[1][1]["tasks"]["bbox"]["classes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "0"), "--limit 0 is no number of images: give a whole number from 1"),
        (("--limit", "many"), "--limit many is no number of images"),
        (("--limit=-5",), "--limit -5 is no number of images"),
        (("--score", "1.5"), "--score 1.5 is no score: give a number from 0 to 1"),
        (("--score", "nan"), "--score nan is no score"),
        (("--tta", "MODEL.KEYPOINT_ON", "True"), "keypoints (MODEL.KEYPOINT_ON True): test-time"),
        (("--tta", "MODEL.META_ARCHITECTURE", "RetinaNet"), "MODEL.META_ARCHITECTURE RetinaNet: "),
        (("--tta", "MODEL.META_ARCHITECTURE", "ProposalNetwork"), "ProposalNetwork: test-time"),
        (("--tta", "MODEL.LOAD_PROPOSALS", "True"), "proposals from files"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(words, message, tmp_path, capsys):
    pairs = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path))
    at = next((n for n, w in enumerate(words) if w.startswith("MODEL")), len(words))
    command = ["--config-file", QUICK, "--eval-only", *words[:at], *pairs, *words[at:]]
    assert run_job(train_or_evaluate, argument_parser().parse_args(command)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.COCO_EVALUATOR", "fast", "TEST.COCO_EVALUATOR 'fast' is not one of hotcoco, pyco"),
        ("TEST.SCORE", 2.0, "TEST.SCORE 2.0 (--score) is not in 0..1"),
        ("TEST.NUM_IMAGES", -1, "TEST.NUM_IMAGES -1 is negative"),
    ],
)
def test_bad_settings_of_evaluation_are_refused(key, value, message):
    cfg = load_config(QUICK, [key, str(value)])
    with pytest.raises(UserError) as refusal:
        check_config(cfg)
    assert message in str(refusal.value)


@pytest.fixture
def three_images(tmp_path):
    """A data set of noise, 3 images of two sizes and 2 classes; no image is square."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    for number, (height, width) in enumerate([(96, 128), (128, 96), (96, 128)], 1):
        name = f"{number}.png"
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / name)
        content["images"].append(
            {"id": number, "height": height, "width": width, "file_name": name}
        )
        content["annotations"].append(
            {
                **{"id": number, "image_id": number, "category_id": 1, "iscrowd": 0},
                **{"bbox": [10, 10, 40, 40], "area": 1600},
                "segmentation": [[10, 10, 50, 10, 50, 50]],
            }
        )
    (tmp_path / "noise.json").write_text(json.dumps(content))
    CustomData.read(str(tmp_path / "noise.json"), str(tmp_path)).register("noise")
    return "noise"


DETECTORS = [
    ("faster_rcnn_X50_32x4d", ("MODEL.RPN.POST_NMS_TOPK_TEST", "10")),
    (QUICK, ()),
    (QUICK, ("MODEL.MASK_ON", "True")),
]


def detect(config, settings, data, tmp_path, *, tta):
    """Detections of random weights on `data`, with their evaluation.json."""
    output = tmp_path / f"tta-{tta}"
    common = ["DATASETS.TEST", f"('{data}',)", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    common += ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATALOADER.NUM_WORKERS", "0"]
    common += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2", "INPUT.MIN_SIZE_TEST", "96"]
    common += ["TEST.AUG.ENABLED", str(tta), "OUTPUT_DIR", str(output)]
    cfg = load_config(config, [*common, *settings])
    check_config(cfg, eval_only=True)
    model = randomise(Trainer.build_model(cfg))
    results = Trainer.test(cfg, model)
    names = ("evaluation.json", "coco_instances_results.json")
    return results, *(json.loads((output / "inference" / name).read_text()) for name in names)


@pytest.mark.parametrize(("config", "settings"), DETECTORS)
def test_augmentation_at_the_plain_scale_without_flips_changes_nothing(
    config, settings, three_images, tmp_path
):
    settings = (*settings, "TEST.AUG.MIN_SIZES", "(96,)", "TEST.AUG.FLIP", "False")
    plain, _, expected = detect(config, settings, three_images, tmp_path, tta=False)
    results, evaluation, found = detect(config, settings, three_images, tmp_path, tta=True)
    assert evaluation["tta"] is True
    assert results.keys() == plain.keys()
    assert all(results[task].keys() == plain[task].keys() for task in plain)
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-2)
        assert ("segmentation" in one) == ("MODEL.MASK_ON" in settings)


@pytest.mark.parametrize(("config", "settings"), DETECTORS)
def test_augmentation_with_scales_and_flips_merges_other_detections(
    config, settings, three_images, tmp_path
):
    settings = (*settings, "TEST.AUG.MIN_SIZES", "(96, 128)", "TEST.AUG.FLIP", "True")
    _, _, plain = detect(config, settings, three_images, tmp_path, tta=False)
    results, evaluation, found = detect(config, settings, three_images, tmp_path, tta=True)
    assert "AP" in results["bbox"]
    assert evaluation["tta"] is True and found
    assert [row["bbox"] for row in found] != [row["bbox"] for row in plain]
