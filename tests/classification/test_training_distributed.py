"""Classifiers trained by two processes on a CPU."""

import json

import pytest
import torch

from resnext_det.classification.job import evaluate_weights
from resnext_det.classification.options import EvaluationOptions
from tests.classification.training_jobs import (
    CIFAR,
    IMAGENET,
    colour_data,
    command,
    losses_of,
    results_of,
    run,
)
from tests.engine.jobs import final_state
from tests.helpers import REPO, run_tool

# with batch norm each process would normalise by its own images
ALIKE = ("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BASE_LR", "0.01")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_data(tmp_path_factory.mktemp("data"))


def run_two(output, data, *words, config=CIFAR):
    """Run a job in two processes."""
    line = command(output, data, "--num-gpus=2", *words, config=config)
    tool = REPO / "tools/train_classifier.py"
    done = run_tool(tool, *line, datasets=output.parent, cwd=output.parent)
    assert (output / "log.txt.rank1").is_file(), done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("config", [CIFAR, IMAGENET], ids=["crop", "imagenet"])
def test_two_processes_train_as_one_does_with_the_same_batch(config, data, tmp_path):
    done = run_two(tmp_path / "two", data, *ALIKE, config=config)
    assert done.returncode == 0, done.stderr
    assert run(tmp_path / "one", data, *ALIKE, config=config) == 0
    losses = [losses_of(tmp_path / name) for name in ("one", "two")]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    one, two = (final_state(tmp_path / name)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert results_of(tmp_path / "two") == results_of(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_count_the_errors_of_the_saved_network_over_all_images(data, tmp_path):
    """With batch norm, of 13 images: 7 and 6."""
    output = tmp_path / "output"
    words = ("SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "3", "SOLVER.EARLY_STOP_PATIENCE", "9")
    done = run_two(output, data, *words)
    assert done.returncode == 0, done.stderr
    found = evaluate_weights(str(output / "model_final.pth"), data, EvaluationOptions())
    (errors,) = found["errors"].values()
    assert results_of(output)["classification"]["top1_error"] == errors["top1"]
    assert (100 / 13) * round(errors["top1"] * 13 / 100) == pytest.approx(errors["top1"])
    evaluations = json.loads((output / "evaluations.json").read_text())
    assert [each["iteration"] for each in evaluations] == [3, 6]


@pytest.mark.slow
def test_a_mistake_in_two_processes_is_one_line_in_the_end(data, tmp_path):
    done = run_two(tmp_path / "output", data, "CLASSIFIER.NUM_CLASSES", "4")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "has 3 classes, CLASSIFIER.NUM_CLASSES is 4" in last
    assert "Traceback" not in done.stderr
