"""`tools/eval_classifier.py` from a shell."""

import json

import pytest
import torch
import torchvision
from torchvision import transforms
from torchvision.transforms import functional as F

from resnext_det.classification.imagenet5k import ClassList
from tests.classification.classifiers import (
    CLASSES,
    converted,
    make_image,
    make_tree,
    small_resnext,
)
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/eval_classifier.py"


NORMALISE = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


@pytest.fixture(scope="module")
@torch.no_grad()
def network():
    """Random, but not with the same answer to every image."""
    network = small_resnext()
    images = torch.stack([NORMALISE(make_image(seed, 64, 64)) for seed in range(20)])
    network.fc.bias -= network(images).mean(0)
    return network


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval_classifier")
    converted(network, folder / "w.pth")
    make_tree(folder / "val")
    return folder


def run(folder, *words):
    return run_tool(TOOL, *words, datasets=folder, cwd=folder)


def centre_crop(image):
    return [F.center_crop(F.resize(image, 64), 64)]


def ten_crops(image):
    return F.ten_crop(F.resize(image, 72), 64)


def whole_images(image):
    resized = [F.resize(image, size) for size in (64, 80)]
    return [*resized, *map(F.hflip, resized)]


@torch.no_grad()
def errors_of(network, root, views, first=None, step=1):
    """Top-1 and top-5 error in percent by a loop over every `step`th image.

    The logits of its views are averaged, and the `first` classes compete.
    """
    data = torchvision.datasets.ImageFolder(str(root))
    wrong1 = wrong5 = 0
    chosen = range(0, len(data), step)
    for image, label in map(data.__getitem__, chosen):
        logits = torch.stack([network(NORMALISE(view)[None])[0] for view in views(image)]).mean(0)
        ranking = logits[:first].argsort(descending=True).tolist()
        wrong1 += ranking[0] != label
        wrong5 += label not in ranking[:5]
    return {"top1": 100 * wrong1 / len(chosen), "top5": 100 * wrong5 / len(chosen)}


def found_by(found):
    return {name: found[name] for name in ("top1", "top5")}


def test_errors_are_printed_and_written(folder, network):
    words = ("--weights", "w.pth", "--data", "val", "--size", "64", "--json", "out.json")
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    expected = errors_of(network, folder / "val", centre_crop)
    assert "w.pth: X-26-4x4d, 7 classes, RGB images" in done.stdout
    assert "centre crop of 64 from shorter side 64, bilinear" in done.stdout
    assert f"| measured, 7 classes | {expected['top1']:.2f}" in done.stdout
    content = json.loads((folder / "out.json").read_text())
    assert found_by(content["errors"]["7 classes"]) == pytest.approx(expected)
    assert content["images"] == 14 and content["protocol"]["size"] == 64


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (ten_crops, ("--crops", "10", "--size", "64", "--resize", "72")),
        (whole_images, ("--crops", "dense", "--scales", "64", "80")),
    ],
)
def test_other_protocols_on_a_part_of_the_images(views, words, folder, network):
    words = ("--weights", "w.pth", "--data", "val", "--limit", "7", *words)
    done = run(folder, *words, "--json", "part.json")
    assert done.returncode == 0, done.stderr
    assert "val: 7 images of 7 classes" in done.stdout
    found = json.loads((folder / "part.json").read_text())["errors"]["7 classes"]
    expected = errors_of(network, folder / "val", views, step=2)
    assert found_by(found) == pytest.approx(expected)
    assert expected != errors_of(network, folder / "val", centre_crop, step=2)


def test_a_network_of_more_classes_is_tested_both_ways(folder, network):
    # the first three classes are of the smaller set; the tree has no others
    make_tree(folder / "val3", CLASSES[:3], 4)
    ClassList(CLASSES, 3, (1,) * 7).write(folder / "classes.json")
    words = ("--weights", "w.pth", "--data", "val3", "--size", "64", "--classes", "classes.json")
    done = run(folder, *words, "--json", "both.json")
    assert done.returncode == 0, done.stderr
    errors = json.loads((folder / "both.json").read_text())["errors"]
    assert list(errors) == ["7-way", "3-way"]
    # Section 5.2: any label of the other classes is wrong, or only the first ones compete
    of_all = errors_of(network, folder / "val3", centre_crop)
    of_first = errors_of(network, folder / "val3", centre_crop, first=3)
    assert found_by(errors["7-way"]) == pytest.approx(of_all)
    assert errors["3-way"]["top1"] == pytest.approx(of_first["top1"])
    assert errors["3-way"]["top5"] is None
    assert of_first["top1"] < of_all["top1"]


def test_the_papers_errors_stand_beside(folder, tmp_path):
    network = torchvision.models.resnext50_32x4d(weights=None)
    converted(network.eval(), tmp_path / "x50.pth")
    make_tree(tmp_path / "val1000", tuple(f"n{i:08d}" for i in range(1000)), 1)
    words = ("--weights", "x50.pth", "--data", "val1000", "--limit", "2", "--batch", "2")
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "measured, 1K" in done.stdout
    assert "| published: paper, Table 3, its X-50-32x4d | 22.20" in done.stdout
    assert "centre crop of 224 from shorter side 256" in done.stdout
    assert "published errors are of all 50000 validation images" in done.stdout


def test_broken_images_are_an_error_or_left_out_and_counted(folder):
    root = make_tree(folder / "broken")
    (root / "cat/1.png").write_bytes(b"x")
    words = ("--weights", "w.pth", "--data", "broken", "--size", "64")
    done = run(folder, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read image broken/cat/1.png: it is none of")
    done = run(folder, *words, "--skip", "1")
    assert done.returncode == 0, done.stderr
    assert "13 images in" in done.stdout
    assert "1 images could not be read and were left out" in done.stdout


def test_a_mistake_is_one_line(folder):
    done = run(folder, "--weights", "w.pth", "--data", "val", "--resize", "100")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == ("error: resize 100 is less than size 224: no crop fits the image\n")
