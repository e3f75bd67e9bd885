"""The whole of a test: what it refuses, and what it fills up."""

from pathlib import Path

import pytest
import torch

from resnext_det.classification.imagenet5k import ClassList
from resnext_det.classification.job import evaluate_weights
from resnext_det.classification.network import LoadedClassifier
from resnext_det.classification.options import EvaluationOptions, protocol_for
from resnext_det.classification.protocols import Protocol
from resnext_det.errors import UserError
from resnext_det.weights.catalog import CATALOG
from resnext_det.weights.network import Network
from resnext_det.weights.recipe import IMAGENET
from tests.classification.classifiers import CLASSES, converted, make_tree, small_resnext

X50 = Network((3, 4, 6, 3), 32, 4, num_classes=1000)
CIFAR = Network((3, 3, 3), 8, 64, num_classes=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    converted(small_resnext(), folder / "w.pth")
    state = {k: v for k, v in small_resnext().state_dict().items() if not k.startswith("fc.")}
    torch.save(state, folder / "headless.pth")
    make_tree(folder / "val")
    make_tree(folder / "few", ("a", "b"), 1)
    ClassList((*CLASSES, "yak"), 7, (1,) * 8).write(folder / "eight.json")
    ClassList(CLASSES, 3, (1,) * 7).write(folder / "three.json")
    return folder


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data": "nowhere"}, "there is no file or folder .*nowhere"),
        ({"data": "few"}, r"few has 2 classes, .*w.pth has 7 \(--classes says which are which"),
        ({"weights": "headless.pth"}, "headless.pth has no classifier"),
        ({"report": "none/out.json"}, "out.json: there is no folder .*none"),
        ({"report": "few"}, "few is a folder: name a file in it"),
        ({"classes": "w.pth"}, "w.pth is no list of classes"),
        ({"classes": "eight.json"}, "eight.json lists 8 classes, .*w.pth has 7"),
        ({"classes": "three.json"}, "val has 7 folders for 3 classes; it has beside them 4: dog"),
        ({"size": 8}, "size 8 is not in 32..4096 pixels"),
        ({"size": 0}, "size 0 is not in 32..4096 pixels"),
        ({"resize": 100}, "resize 100 is less than size 224"),
        ({"scales": [224]}, "--scales goes with --crops dense alone"),
        ({"crops": "dense", "size": 224}, "--crops dense takes whole images"),
        ({"limit": 0}, "--limit 0: at least 1"),
        ({"batch": 0}, "--batch 0: at least 1"),
        ({"workers": -1}, "--workers -1: at least 0"),
        ({"device": "abacus"}, "--device abacus cannot be used"),
        ({"device": "meta"}, "--device meta computes nothing"),
    ],
)
def test_a_mistake_is_one_line(folder, given, message):
    paths = {"weights": "w.pth", "data": "val"}
    options = {key: value for key, value in given.items() if key not in (*paths, "report")}
    paths = {key: folder / given.get(key, value) for key, value in paths.items()}
    if "classes" in options:
        options["classes"] = folder / options["classes"]
    report = folder / given["report"] if "report" in given else None
    with pytest.raises(UserError, match=message) as caught:
        evaluate_weights(
            str(paths["weights"]), paths["data"], EvaluationOptions(**options), report=report
        )
    assert "\n" not in str(caught.value)


def loaded(network, name=None, source="torchvision"):
    return LoadedClassifier(None, network, IMAGENET, source, name and CATALOG[name], None)


def test_what_is_not_said_is_as_the_publisher_did():
    options = EvaluationOptions()
    v2 = loaded(X50, "torchvision/X-50-32x4d.v2")
    assert protocol_for(v2, options) == Protocol(224, 232, "bilinear")
    authors = loaded(X50, source="torch7")
    assert protocol_for(authors, options) == Protocol(224, 256, "bicubic")
    assert protocol_for(authors, EvaluationOptions(size=320)) == Protocol(320, 320, "bicubic")
    said = EvaluationOptions(resize=288, interpolation="bilinear")
    assert protocol_for(authors, said) == Protocol(224, 288, "bilinear")


def test_cifar_networks_take_whole_images():
    assert protocol_for(loaded(CIFAR), EvaluationOptions()) == Protocol(32, 32, "bilinear")
    with pytest.raises(UserError, match="--crops 10: X-29-8x64d is a CIFAR network"):
        protocol_for(loaded(CIFAR), EvaluationOptions(crops="10"))


def test_1k_of_5k_is_counted_both_ways(tmp_path):
    """The last layer's bias alone decides: class 5 wins among all, class 1 among the first."""
    network = small_resnext()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([1.0, 3, 2, 0, 0, 9, 0]))
    weights = converted(network, tmp_path / "w.pth")
    ClassList(CLASSES, 3, (1,) * 7).write(tmp_path / "three.json")
    data = make_tree(tmp_path / "val", CLASSES[:3])
    options = EvaluationOptions(classes=tmp_path / "three.json", size=64)
    results = evaluate_weights(str(weights), Path(data), options)
    errors = results["errors"]
    assert errors["7-way"]["top1"] == 100
    assert errors["7-way"]["top5"] == 0
    assert errors["3-way"]["top1"] == pytest.approx(200 / 3)
