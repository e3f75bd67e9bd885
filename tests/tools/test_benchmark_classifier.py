"""The benchmark of classifiers: both sides see the same images and find the same logits."""

import json

from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/benchmark_classifier.py"


def test_it_prints_ratios_of_two_sides_that_agree(tmp_path):
    numbers = "--images 3 --batch 2 --train-batch 2 --rounds 1"
    words = (*numbers.split(), "--model", "resnet50", "--json", "speed.json")
    done = run_tool(TOOL, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    sides = {"torchvision, plain loop", "ours"}
    for part, rows in (("evaluation", sides), ("training", {*sides, "ours, bfloat16"})):
        assert set(results[part]) == rows
        for name, found in results[part].items():
            assert f"| {name} " in done.stdout
            assert found["images_per_second"] > 0 and found["times_as_fast"] > 0
        assert results[part]["torchvision, plain loop"]["times_as_fast"] == 1
    assert all(found["difference"] < 1e-4 for found in results["evaluation"].values())


def test_images_that_are_not_there_are_one_line(tmp_path):
    done = run_tool(TOOL, "--data", "nowhere", datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: nowhere cannot be read: No such file or directory\n"
