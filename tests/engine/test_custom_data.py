"""A data set of one's own, from the command line to evaluation and pictures."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from resnext_det.engine import argument_parser, run_job, train_or_evaluate
from resnext_det.evaluation.pictures import draw_run

QUICK = (
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "1e-4", "SEED", "1",
    "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "5", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
)  # fmt: skip
CLASSES = {7: "kiwi", 3: "apple"}  # sparse, unsorted: apple comes first


def write(folder, name, images=4, categories=CLASSES, **changes):
    """A COCO file of square fruits on grey, and its images."""
    (folder / name).mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": n} for i, n in categories.items()]
    for index in range(images):
        pixels = np.full((64, 80, 3), 128, np.uint8)
        pixels[16:48, 20:52] = (40, 160, 40)
        Image.fromarray(pixels).save(folder / name / f"{index}.png")
        content["images"].append(
            {"id": index, "file_name": f"{index}.png", "width": 80, "height": 64}
        )
        content["annotations"].append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": list(categories)[index % len(categories)],
                "bbox": [20, 16, 32, 32],
                "area": 1024,
                "iscrowd": 0,
            }
        )
    content.update(changes)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return ["json", str(folder / f"{name}.json"), "images", str(folder / name)]


def flags(split, words):
    return [f"--{split}-{words[0]}", words[1], f"--{split}-{words[2]}", words[3]]


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, config="quick/faster_rcnn_X26_8x4d_FPN"):
        args = argument_parser().parse_args(["--config-file", config, *words])
        return run_job(train_or_evaluate, args)

    return run


def own(tmp_path):
    return flags("train", write(tmp_path, "train")) + flags("val", write(tmp_path, "val", 2))


def test_it_trains_evaluates_and_is_found_again_by_the_run(job, tmp_path, capsys):
    assert job(*own(tmp_path), *QUICK, "OUTPUT_DIR", "run") == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {"AP", "AP-apple", "AP-kiwi"} <= set(results["bbox"])
    detections = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    assert {d["category_id"] for d in detections} <= set(CLASSES)

    for name in ("custom_train", "custom_val"):  # as in another process
        MetadataCatalog.remove(name)
    words = ("MODEL.WEIGHTS", "run/model_final.pth", "OUTPUT_DIR", "again")
    assert job("--eval-only", *words, config="run/config.yaml") == 0
    assert json.loads((tmp_path / "again/results.json").read_text()) == results
    assert MetadataCatalog.get("custom_val").thing_classes == ["apple", "kiwi"]
    assert (tmp_path / "again/datasets.json").is_file()
    assert all(picture.is_file() for picture in draw_run(tmp_path / "run"))


def test_several_files_of_a_split_are_put_together(job, tmp_path, capsys):
    more = flags("train", write(tmp_path, "more", 3))
    assert job(*own(tmp_path), *more, *QUICK, "OUTPUT_DIR", "run") == 0
    kept = json.loads((tmp_path / "run/datasets.json").read_text())
    assert list(kept) == ["custom_train", "custom_train_2", "custom_val"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train-json", "a.json"], "1 --train-json and 0 --train-images: each file needs"),
        (["--val-json", "a.json", "--val-images", "."], "a.json is no file: a COCO annotation"),
        (["--train-json", "bad.json", "--train-images", "."], "bad.json is not a COCO annotation"),
        (["--train-json", "list.json", "--train-images", "."], "list.json is not a COCO annota"),
        (["--train-json", "none.json", "--train-images", "."], "none.json lists no category"),
        (["--train-json", "twice.json", "--train-images", "."], "a category's id or name occurs"),
        (["--train-json", "none.json", "--train-images", "gone"], "gone is no folder: the folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(job, tmp_path, capsys, words, message):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "none.json").write_text('{"categories": []}')
    twice = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]
    (tmp_path / "twice.json").write_text(json.dumps({"categories": twice}))
    assert job(*words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_categories_for_evaluation_are_shown(job, tmp_path, capsys):
    train = flags("train", write(tmp_path, "train"))
    val = flags("val", write(tmp_path, "val", 2, {3: "pear", 7: "kiwi", 9: "plum"}))
    assert job(*train, *val, *QUICK) == 1
    error = capsys.readouterr().err
    assert "train.json and " in error
    assert "differ in categories (3: apple / pear, 9: absent / plum)" in error


def test_a_number_of_classes_of_ones_own_that_does_not_fit_is_refused(job, tmp_path, capsys):
    assert job(*own(tmp_path), *QUICK, "MODEL.ROI_HEADS.NUM_CLASSES", "3") == 1
    error = capsys.readouterr().err
    assert "dataset custom_train has 2 classes (apple, kiwi)" in error
    assert "set MODEL.ROI_HEADS.NUM_CLASSES 2" in error


def test_masks_asked_of_boxes_are_refused_before_the_model_is_built(job, tmp_path, capsys):
    words = ("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.DEVICE", "cpu")
    assert job(*own(tmp_path), *QUICK, *words, config="mask_rcnn_X50_32x4d_FPN") == 1
    error = capsys.readouterr().err
    assert "custom_train: 4 of 4 annotations have no masks (the first is of " in error
    assert "set MODEL.MASK_ON False" in error


def test_a_set_without_annotations_is_refused(job, tmp_path, capsys):
    train = flags("train", write(tmp_path, "train", annotations=[]))
    assert job(*train, *QUICK) == 1
    assert "custom_train: no image has an annotation to train on" in capsys.readouterr().err


def test_broken_images_are_left_out_up_to_the_budget(job, tmp_path, capsys):
    words = [*own(tmp_path), *QUICK, "SOLVER.MAX_ITER", "6"]
    for index in (0, 1):
        data = (tmp_path / f"train/{index}.png").read_bytes()
        (tmp_path / f"train/{index}.png").write_bytes(data[: len(data) // 2])
    assert job(*words, "OUTPUT_DIR", "run") == 0
    lines = (tmp_path / "run/skipped_images.jsonl").read_text().splitlines()
    assert {json.loads(line)["file_name"] for line in lines} == {
        str(tmp_path / f"train/{i}.png") for i in (0, 1)
    }
    assert capsys.readouterr().out.count("left out ") == 2
    assert job(*words, "DATALOADER.MAX_SKIPPED_IMAGES", "1", "OUTPUT_DIR", "less") == 1
    error = capsys.readouterr().err
    assert "more than DATALOADER.MAX_SKIPPED_IMAGES 1; python tools/check_data.py finds" in error


def test_a_broken_annotation_is_left_out_with_its_image(job, tmp_path, capsys):
    polygons = [[[20, 16, 52, 16, 52, 48]], [[20, 16, 52, 48.0, 52, "x"]]]
    train = flags("train", write(tmp_path, "train"))
    content = json.loads((tmp_path / "train.json").read_text())
    for index, annotation in enumerate(content["annotations"]):
        annotation["segmentation"] = polygons[index == 0]
    (tmp_path / "train.json").write_text(json.dumps(content))
    more = ("MODEL.MASK_ON", "True", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", "run")
    assert job(*train, *QUICK, *more) == 0
    out = capsys.readouterr().out
    assert f"left out {tmp_path}/train/0.png: cannot use the annotations of image" in out
