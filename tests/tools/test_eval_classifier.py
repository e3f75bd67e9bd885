"""`tools/eval_classifier.py` from a shell."""

import json

import pytest
import torch
import torchvision
from torchvision import transforms

from resnext_det.classification.imagenet5k import ClassList
from tests.classification.classifiers import CLASSES, converted, make_tree, small_resnext
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/eval_classifier.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval_classifier")
    converted(small_resnext(), folder / "w.pth")
    make_tree(folder / "val")
    return folder


def run(folder, *words):
    return run_tool(TOOL, *words, datasets=folder, cwd=folder)


@torch.no_grad()
def errors_of_torchvision(root, size):
    preset = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = torchvision.datasets.ImageFolder(str(root), preset)
    network = small_resnext()
    right = [network(x[None])[0].topk(5).indices.tolist() for x, _ in data]
    labels = [label for _, label in data]
    pairs = list(zip(right, labels, strict=True))
    count = len(labels)
    wrong1, wrong5 = sum(r[0] != n for r, n in pairs), sum(n not in r for r, n in pairs)
    return 100 * wrong1 / count, 100 * wrong5 / count


def test_errors_are_printed_and_written(folder):
    words = ("--weights", "w.pth", "--data", "val", "--size", "64", "--json", "out.json")
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    top1, top5 = errors_of_torchvision(folder / "val", 64)
    assert "w.pth: X-26-4x4d, 7 classes, RGB images" in done.stdout
    assert "centre crop of 64 from shorter side 64, bilinear" in done.stdout
    assert f"| measured, 7 classes | {top1:.2f}" in done.stdout
    content = json.loads((folder / "out.json").read_text())
    found = content["errors"]["7 classes"]
    assert (found["top1"], found["top5"]) == (pytest.approx(top1), pytest.approx(top5))
    assert content["images"] == 14 and content["protocol"]["size"] == 64


@pytest.mark.parametrize("words", [("--crops", "10"), ("--crops", "dense", "--scales", "64", "80")])
def test_other_protocols_run_on_a_part_of_the_images(folder, words):
    if "10" in words:
        words = (*words, "--size", "64", "--resize", "72")
    done = run(folder, "--weights", "w.pth", "--data", "val", "--limit", "7", *words)
    assert done.returncode == 0, done.stderr
    assert "val: 7 images of 7 classes" in done.stdout


def test_a_network_of_more_classes_is_tested_both_ways(folder):
    # the first three classes are of the smaller set; the tree has no others
    make_tree(folder / "val3", CLASSES[:3])
    ClassList(CLASSES, 3, (1,) * 7).write(folder / "classes.json")
    words = ("--weights", "w.pth", "--data", "val3", "--size", "64", "--classes", "classes.json")
    done = run(folder, *words, "--json", "both.json")
    assert done.returncode == 0, done.stderr
    errors = json.loads((folder / "both.json").read_text())["errors"]
    assert list(errors) == ["7-way", "3-way"]
    assert errors["3-way"]["top1"] <= errors["7-way"]["top1"]
    assert errors["3-way"]["top5"] is None


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
    assert done.stderr == ("error: --resize 100 is less than --size 224: no crop fits the image\n")
