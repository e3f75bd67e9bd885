"""What a classifier's file tells of its run, and classes that have to be the same everywhere."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnext_det.classification import load_classifier
from resnext_det.classification.job import evaluate_weights
from resnext_det.classification.options import EvaluationOptions, protocol_for
from resnext_det.classification.protocols import Protocol
from resnext_det.classification.record import (
    RECORD,
    ClassifierRecord,
    is_text_order_of_numbers,
    record_in,
    require_same_classes,
)
from resnext_det.errors import UserError
from resnext_det.weights.catalog import CATALOG
from resnext_det.weights.files import read_file
from tests.classification.classifiers import CLASSES, converted, make_tree, small_resnext
from tests.classification.training_jobs import (
    IMAGENET,
    THREE,
    colour_data,
    colour_tree,
    results_of,
    run,
)

SIZES = ("CLASSIFIER.SIZE", "64", "CLASSIFIER.RESIZE", "72", "SOLVER.MAX_ITER", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images that resizing and cropping change: 200 x 100 pixels."""
    root = colour_data(tmp_path_factory.mktemp("data"), size=100)
    for file in root.rglob("*.png"):
        with Image.open(file) as image:
            wide = Image.new("RGB", (200, 100), (250, 250, 0))
            wide.paste(image, (50, 0))
        wide.save(file)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An ImageNet network's run at 64 pixels; the saved file is made to tell classes apart."""
    output = tmp_path_factory.mktemp("finished") / "output"
    assert run(output, data, *SIZES, config=IMAGENET) == 0
    return output


def record_of(file):
    return record_in(read_file(file), str(file))


def test_each_file_tells_the_runs_test_and_classes(finished):
    known = ClassifierRecord(64, 72, "bicubic", THREE)
    assert record_of(finished / "model_final.pth") == known
    loaded = load_classifier(str(finished / "model_final.pth"))
    assert loaded.record == known
    assert (loaded.source, loaded.published) == ("resnext_det", None)
    assert protocol_for(loaded, EvaluationOptions()) == Protocol(64, 72, "bicubic")
    assert protocol_for(loaded, EvaluationOptions(size=96)) == Protocol(96, 96, "bicubic")
    said = EvaluationOptions(resize=80, interpolation="bilinear")
    assert protocol_for(loaded, said) == Protocol(64, 80, "bilinear")


def test_eval_classifier_tests_as_the_run_did(data, finished, tmp_path):
    """With weights by which the error depends on how images are resized and cut."""
    file = weights_that_see_resizing(finished, tmp_path / "sharp.pth", data)
    words = ("--eval-only", "MODEL.WEIGHTS", str(file), *SIZES)
    assert run(tmp_path / "output", data, *words, config=IMAGENET) == 0
    expected = results_of(tmp_path / "output")["classification"]["top1_error"]
    (errors,) = evaluate_weights(str(file), data, EvaluationOptions())["errors"].values()
    assert errors["top1"] == expected
    other = EvaluationOptions(size=224)
    (errors,) = evaluate_weights(str(file), data, other)["errors"].values()
    assert errors["top1"] != expected


@torch.no_grad()
def weights_that_see_resizing(finished, file, data):
    """The run's weights, whose class 1 wins or not by a threshold between two protocols' logits."""
    content = torch.load(finished / "model_final.pth", weights_only=True)
    model = load_classifier(str(finished / "model_final.pth")).model
    with Image.open(next((data / "val").rglob("*.png"))) as image:
        found = []
        for protocol in (Protocol(64, 72, "bicubic"), Protocol(224, 224, "bicubic")):
            (views,) = protocol.cut(image)
            x = torch.from_numpy(views[:1].copy())
            found.append(model(x)[0])
    # a last layer along the difference of the two: class 0 for one protocol, class 1 for the other
    weight, bias = content["model"]["linear.weight"], content["model"]["linear.bias"]
    difference = found[0] - found[1]
    mix = torch.stack([difference, -difference, torch.zeros(3)])
    middle = (found[0] + found[1]) / 2
    content["model"]["linear.bias"] = mix @ (bias - middle)
    content["model"]["linear.weight"] = mix @ weight
    torch.save(content, file)
    return file


def test_a_network_that_was_trained_on_is_not_its_publishers(finished, tmp_path):
    published = CATALOG["torchvision/X-50-32x4d.v2"]
    content = torch.load(finished / "model_final.pth", weights_only=True)
    digest = published.sha256_prefix.ljust(64, "0")
    content["recipe"] |= {"source": "torchvision", "source_sha256": digest}
    torch.save(content, tmp_path / "tuned.pth")
    loaded = load_classifier(str(tmp_path / "tuned.pth"))
    assert (loaded.source, loaded.published) == ("resnext_det", None)
    del content[RECORD]  # as the converter writes it
    torch.save(content, tmp_path / "published.pth")
    loaded = load_classifier(str(tmp_path / "published.pth"))
    assert (loaded.source, loaded.published) == ("torchvision", published)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 8},
        {"size": "64"},
        {"resize": 32},
        {"interpolation": "area"},
        {"classes": []},
        {"classes": [1, 2, 3]},
        {"classes": 3},
        {"more": 1},
        {"classes": ["ant", "bee"]},
    ],
)
def test_a_damaged_record_is_one_line(change, finished, tmp_path):
    content = torch.load(finished / "model_final.pth", weights_only=True)
    content[RECORD] |= change
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="damaged") as caught:
        load_classifier(str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value) and "w.pth" in str(caught.value)


def test_files_from_elsewhere_have_no_record(tmp_path):
    weights = converted(small_resnext(), tmp_path / "w.pth")
    assert record_of(Path(weights)) is None


# Classes


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ab", "ab"),
        ("ab", "01"),
        ("01", "ab"),
        ([str(n) for n in range(11)], [f"n{n:02}" for n in range(11)]),
    ],
)
def test_classes_that_go_together(ours, theirs):
    assert require_same_classes(ours, theirs, "here") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ("abc", "ab", "here has 2 classes, not 3"),
        ("abd", "acd", "here: class 1 is 'c', but 'b' to the network"),
        ("ab", "ba", "here: class 0 is 'b', but 'a' to the network"),
        ("01", "12", "here: class 0 is '1', but '0' to the network"),
        (
            sorted(map(str, range(11))),
            list(map(str, range(11))),
            "here: class 2 is '2', but '10' to the network",
        ),
    ],
)
def test_other_classes_are_refused(ours, theirs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        require_same_classes(ours, theirs, "here")


def test_numbers_in_the_order_of_text():
    assert is_text_order_of_numbers(["0", "1", "10", "2"])
    assert not is_text_order_of_numbers(["0", "1", "2"])
    assert not is_text_order_of_numbers(["00", "01", "10"])
    assert not is_text_order_of_numbers(["n0", "n1", "n10", "n2"])


def last_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_a_test_set_of_other_classes_is_refused_before_training(tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    (data / "val/cat").rename(data / "val/bat")
    assert run(tmp_path / "output", data) == 1
    assert f"{data}/val: class 1 is 'bat', but 'bee' to the network" in last_line(capsys)
    assert not (tmp_path / "output/last_checkpoint").exists()


def test_images_that_were_trained_on_are_no_test(tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    assert run(tmp_path / "output", data / "train") == 1
    assert "training and test images are the same; name others" in last_line(capsys)
    words = ("DATASETS.TRAIN", f"('{data / 'train'}',)", "DATASETS.TEST", "()")
    assert run(tmp_path / "output", None, *words, "SOLVER.MAX_ITER", "1") == 0


@pytest.mark.parametrize("way", ["train_classifier", "eval_classifier"])
def test_weights_are_not_tested_on_other_classes(way, data, finished, tmp_path, capsys):
    weights = str(finished / "model_final.pth")
    colour_tree(tmp_path / "val", ("ant", "bee", "dog"))
    if way == "eval_classifier":
        with pytest.raises(UserError, match="class 2 is 'dog', but 'cat' to the network"):
            evaluate_weights(weights, tmp_path / "val", EvaluationOptions())
        return
    words = ("--eval-only", "MODEL.WEIGHTS", weights, *SIZES)
    assert run(tmp_path / "output", tmp_path / "val", *words, config=IMAGENET) == 1
    assert "class 2 is 'dog', but 'cat' to the network" in last_line(capsys)


def test_weights_from_elsewhere_get_a_line_on_numbered_folders(tmp_path):
    weights = converted(small_resnext(), tmp_path / "w.pth")
    make_tree(tmp_path / "val", ("0", "1", "10", "2", "3", "4", "5"))
    assert len(CLASSES) == 7
    said = []
    evaluate_weights(str(weights), tmp_path / "val", EvaluationOptions(size=64), say=said.append)
    assert any("in the order of text, 0, 1, 10, as ImageFolder does" in line for line in said)
    shutil.move(tmp_path / "val/10", tmp_path / "val/6")
    said.clear()
    evaluate_weights(str(weights), tmp_path / "val", EvaluationOptions(size=64), say=said.append)
    assert said and not any("order of text" in line for line in said)


def test_names_need_not_be_utf8(tmp_path):
    data = colour_data(tmp_path / "data")
    file = os.fsencode(data / "train/ant/0.png")
    os.rename(file, file.replace(b"0.png", b"caf\xe9.png"))
    assert run(tmp_path / "output", data, "SOLVER.MAX_ITER", "1") == 0
