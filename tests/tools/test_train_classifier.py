"""`tools/train_classifier.py` from a shell, and the tools that go on from its run."""

import json
import tarfile

import pytest

from tests.classification.training_jobs import CIFAR, IMAGENET, colour_data, command, results_of
from tests.helpers import REPO, run_tool

TOOL = REPO / "tools/train_classifier.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return colour_data(tmp_path_factory.mktemp("train_classifier"))


def train(folder, output, *words, config=CIFAR):
    line = command(output, folder, *words, config=config)
    return run_tool(TOOL, *line, datasets=output.parent, cwd=output.parent)


def test_it_trains_and_eval_classifier_finds_the_same_error(folder):
    output = folder / "output"
    done = train(folder, output, "SOLVER.MAX_ITER", "20")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.split("\n")) < 12
    error = results_of(output)["classification"]["top1_error"]
    assert f"results on {folder}:\n| error " in done.stdout
    assert f"| measured, 3 classes | {error:.2f} " in done.stdout
    words = ("--weights", output / "model_final.pth", "--data", ".", "--json", "found.json")
    tool = REPO / "tools/eval_classifier.py"
    done = run_tool(tool, *words, datasets=folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text())
    assert found["images"] == 13
    assert found["errors"]["3 classes"]["top1"] == error


def test_a_batch_that_diverged_is_run_again(folder):
    output = folder / "diverged"
    words = ("SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "20")
    done = train(folder, output, *words, config=IMAGENET)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: training diverged at iteration ")
    batch = output / "nan_batch.pth"
    assert f"python tools/replay_batch.py {batch}" in done.stderr
    done = run_tool(REPO / "tools/replay_batch.py", batch, datasets=folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "loss_cls: nan"


def test_a_mistake_is_one_line(folder):
    file = folder / "cifar10.tar.xz"
    with tarfile.open(file, "w:xz") as archive:
        archive.add(folder / "train", "train")
    done = train(file, folder / "mistake", "DATASETS.TEST", f"('{folder}',)")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert str(file) in done.stderr and "compressed" in done.stderr
    assert done.stdout.count("\n") < 4
