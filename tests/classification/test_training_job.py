"""The job of training a classifier, in this process."""

import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from resnext_det import get_cfg
from resnext_det.classification.imagenet5k import ClassList
from resnext_det.classification.job import evaluate_weights
from resnext_det.classification.options import EvaluationOptions
from resnext_det.classification.trainer import ClassifierTrainer
from resnext_det.classification.training import check_config
from resnext_det.config import load_config
from resnext_det.engine import argument_parser, run_job, train_or_evaluate
from resnext_det.engine.failures import Situation, explain_in_evaluation, explain_out_of_memory
from resnext_det.errors import UserError
from resnext_det.modeling import ImageBatch, saved_module
from tests.classification.training_jobs import (
    CIFAR,
    COLOURS,
    IMAGENET,
    THREE,
    colour_data,
    colour_tree,
    logits_by_hand,
    losses_of,
    results_of,
    run,
)
from tests.engine.jobs import assert_same_run, final_state

DETECTOR = "quick/faster_rcnn_X26_8x4d_FPN"
RIGHT = 100 * 12 / 13  # of colour_data, when all is learnt
LEARN = ("SOLVER.MAX_ITER", "60", "SOLVER.BASE_LR", "0.02")
BOTH = pytest.mark.parametrize("config", [CIFAR, IMAGENET], ids=["crop", "imagenet"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that has learnt its classes."""
    output = tmp_path_factory.mktemp("finished") / "output"
    words = (*LEARN, "SOLVER.CHECKPOINT_PERIOD", "30", "TEST.EVAL_PERIOD", "30")
    assert run(output, data, *words) == 0
    return output


def last_line(capsys):
    """The line of an error, of which there is one."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@BOTH
def test_a_small_network_learns_to_tell_classes(config, data, tmp_path):
    assert run(tmp_path / "output", data, *LEARN, config=config) == 0
    found = results_of(tmp_path / "output")["classification"]
    assert found["accuracy"] == pytest.approx(RIGHT)
    assert found["top1_error"] == pytest.approx(100 - RIGHT)
    assert found["top5_error"] is None  # of three classes


def test_a_run_leaves_its_files(finished):
    for name in ("config.yaml", "log.txt", "model_0000029.pth", "model_best.pth"):
        assert (finished / name).is_file(), name
    content = final_state(finished)
    assert content["iteration"] == 59
    assert content["model"].keys() == torch.load(finished / "model_best.pth")["model"].keys()
    assert len(losses_of(finished)) == 3
    evaluations = json.loads((finished / "evaluations.json").read_text())
    assert [each["iteration"] for each in evaluations] == [30, 60]
    assert {each["metric"] for each in evaluations} == {"classification/accuracy"}
    assert evaluations[1]["value"] == pytest.approx(RIGHT)


def test_results_are_those_of_the_saved_network_on_normalised_images(data, finished):
    files = sorted((data / "val").rglob("*.png"))
    logits = logits_by_hand(finished, files)
    labels = np.array([THREE.index(file.parent.name) for file in files])
    accuracy = 100 * (logits.argmax(1) == labels).mean()
    assert results_of(finished)["classification"]["accuracy"] == pytest.approx(accuracy)


def test_the_saved_config_is_read_again_and_trains_the_same(data, finished, tmp_path):
    config = str(finished / "config.yaml")
    cfg = load_config(config)
    assert (cfg.CLASSIFIER.NUM_CLASSES, cfg.CLASSIFIER.NETWORK) == (3, "cifar")
    assert run(tmp_path / "output", None, config=config) == 0
    assert_same_run(final_state(tmp_path / "output"), final_state(finished))


def test_run_json_tells_whether_data_is_the_same(data, finished, tmp_path):
    def fingerprints(root):
        assert run(root / "output", root, "SOLVER.MAX_ITER", "1") == 0
        (start,) = json.loads((root / "output/run.json").read_text())
        return {name.removeprefix(str(root)): found for name, found in start["datasets"].items()}

    (start,) = json.loads((finished / "run.json").read_text())
    first = {name.removeprefix(str(data)): found for name, found in start["datasets"].items()}
    assert {name: found["images"] for name, found in first.items()} == {
        " (train)": 24,
        " (test)": 13,
    }
    copy = shutil.copytree(data, tmp_path / "copy")
    assert fingerprints(copy) == first
    (copy / "train/ant/0.png").rename(copy / "train/ant/zero.png")
    (copy / "val/ant/of_another.png").rename(copy / "val/bee/of_another.png")
    changed = fingerprints(copy)
    for split in (" (train)", " (test)"):
        assert changed[split] != first[split]


@pytest.mark.parametrize("weights", ["model_final.pth", "model_best.pth"])
def test_eval_classifier_finds_the_errors_of_the_run(weights, data, finished):
    found = evaluate_weights(str(finished / weights), data, EvaluationOptions())
    assert found["images"] == 13
    (errors,) = found["errors"].values()
    assert errors["top1"] == results_of(finished)["classification"]["top1_error"]
    assert errors["top1"] > 0


def test_weights_evaluate_alone_to_the_same_results(data, finished, tmp_path):
    weights = ("MODEL.WEIGHTS", str(finished / "model_final.pth"))
    assert run(tmp_path / "output", data, "--eval-only", *weights) == 0
    assert results_of(tmp_path / "output") == results_of(finished)
    assert not (tmp_path / "output/model_final.pth").exists()


def test_a_part_of_the_test_images_can_be_evaluated(data, finished, tmp_path, capsys):
    weights = ("MODEL.WEIGHTS", str(finished / "model_final.pth"))
    words = (*weights, "TEST.NUM_IMAGES", "2")  # the first of the classes' 5 + 4 + 4, and the 7th
    assert run(tmp_path / "output", data, "--eval-only", *words) == 0
    assert results_of(tmp_path / "output")["classification"]["accuracy"] == 100
    capsys.readouterr()
    words = (*weights, "TEST.NUM_IMAGES", "-1")
    assert run(tmp_path / "other", data, "--eval-only", *words) == 1
    assert "TEST.NUM_IMAGES -1" in last_line(capsys)


def _stop_after(monkeypatch, done):
    """Send this process SIGTERM in the iteration after which `done` are done."""
    after_step = ClassifierTrainer.after_step

    def stopping(self):
        if self.iter + 1 == done:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self)

    monkeypatch.setattr(ClassifierTrainer, "after_step", stopping)


@pytest.mark.parametrize("workers", ["0", "1"])
@BOTH
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    config, workers, data, tmp_path, monkeypatch
):
    assert run(tmp_path / "whole", data, config=config) == 0
    words = ("DATALOADER.NUM_WORKERS", workers)
    with monkeypatch.context() as patch:
        _stop_after(patch, 4)  # amid the second pass over the 24 images
        assert run(tmp_path / "parts", data, *words, config=config) == 0
    assert not (tmp_path / "parts/model_final.pth").exists()
    assert run(tmp_path / "parts", data, "--resume", *words, config=config) == 0
    assert_same_run(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    assert results_of(tmp_path / "parts") == results_of(tmp_path / "whole")


def test_a_finished_run_goes_on_for_more_iterations(data, tmp_path, capsys):
    assert run(tmp_path / "whole", data) == 0
    assert run(tmp_path / "parts", data, "SOLVER.MAX_ITER", "2") == 0
    capsys.readouterr()
    assert run(tmp_path / "parts", data, "--resume", "SOLVER.MAX_ITER", "2") == 1
    assert "is finished (iteration 2 of 2)" in last_line(capsys)
    assert run(tmp_path / "parts", data, "--resume") == 0
    assert_same_run(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_another_seed_is_another_run(data, tmp_path):
    for seed in ("1", "2"):
        assert run(tmp_path / seed, data, "SEED", seed) == 0
    with pytest.raises(AssertionError):
        assert_same_run(*(final_state(tmp_path / seed) for seed in ("1", "2")))


@BOTH
def test_a_tar_file_trains_as_the_tree_that_it_was_made_of(config, data, tmp_path):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for file in sorted((data / split).rglob("*.png")):
                archive.add(file, file.relative_to(data / split))
    assert run(tmp_path / "tree", data, config=config) == 0
    flags = tuple(f"--{split}-data={tmp_path / split}.tar" for split in ("train", "val"))
    assert run(tmp_path / "tar", None, *flags, config=config) == 0
    assert_same_run(final_state(tmp_path / "tar"), final_state(tmp_path / "tree"))
    assert results_of(tmp_path / "tar") == results_of(tmp_path / "tree")


@BOTH
def test_mixed_precision_trains_on_the_cpu(config, data, tmp_path):
    words = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    assert run(tmp_path / "bf16", data, *words, "SOLVER.MAX_ITER", "1", config=config) == 0
    assert run(tmp_path / "f32", data, "SOLVER.MAX_ITER", "1", config=config) == 0
    mixed, full = (losses_of(tmp_path / name) for name in ("bf16", "f32"))
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.05)
    assert {v.dtype for v in final_state(tmp_path / "bf16")["model"].values()} <= {
        torch.float32,
        torch.int64,
    }
    assert run(tmp_path / "more", data, *words, *LEARN, config=config) == 0
    assert results_of(tmp_path / "more")["classification"]["accuracy"] > 60


# batch norm sees parts of a batch by themselves
WITHOUT_BN = ("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BASE_LR", "0.01")


@BOTH
def test_accumulated_parts_train_as_the_whole_batch(config, data, tmp_path):
    for steps in ("1", "4"):
        words = (*WITHOUT_BN, "SOLVER.ACCUM_STEPS", steps)
        assert run(tmp_path / steps, data, *words, config=config) == 0
    whole, parts = (final_state(tmp_path / steps)["model"] for steps in ("1", "4"))
    moved = 0.0
    words = (*WITHOUT_BN, "SOLVER.MAX_ITER", "5")
    assert run(tmp_path / "before", data, *words, config=config) == 0
    for name, before in final_state(tmp_path / "before")["model"].items():
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)
        moved = max(moved, (whole[name] - before).abs().max().item())
    assert moved > 1e-4  # by one of the six iterations


def test_averaged_weights_are_evaluated_and_saved(data, finished, tmp_path, monkeypatch):
    evaluated = []
    test = ClassifierTrainer.test

    def recording(cfg, model, *evaluators):
        state = saved_module(model).state_dict()
        evaluated.append({name: value.clone() for name, value in state.items()})
        return test(cfg, model, *evaluators)

    monkeypatch.setattr(ClassifierTrainer, "test", staticmethod(recording))
    words = ("MODEL.WEIGHTS", str(finished / "model_final.pth"), "SOLVER.MAX_ITER", "3")
    words += ("SOLVER.EMA_DECAY", "0.2", "SOLVER.CHECKPOINT_PERIOD", "1")
    output = tmp_path / "output"
    assert run(output, data, *words) == 0
    average = final_state(finished)["model"]
    for iteration, decay in enumerate((2 / 11, 0.2, 0.2)):  # the first is (1 + t) / (10 + t)
        weights = torch.load(output / f"model_{iteration:07d}.pth", weights_only=True)["model"]
        average = {n: decay * average[n] + (1 - decay) * w for n, w in weights.items()}
    saved = torch.load(output / "model_final_ema.pth", weights_only=True)["model"]
    (used,) = evaluated
    for name, value in saved.items():
        assert torch.equal(value, used[name]), name
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], msg=name)
    assert not torch.equal(saved["linear.weight"], weights["linear.weight"])
    again = evaluate_weights(str(output / "model_final_ema.pth"), data, EvaluationOptions())
    (errors,) = again["errors"].values()
    assert errors["top1"] == results_of(output)["classification"]["top1_error"]


def _break(root, *names):
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:100])
    return {str(root / name) for name in names}


@pytest.mark.parametrize(("config", "workers"), [(CIFAR, "0"), (IMAGENET, "0"), (IMAGENET, "1")])
def test_images_that_cannot_be_read_are_left_out_and_listed(config, workers, tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    broken = _break(data / "train", "ant/1.png", "cat/7.png")
    words = ("DATALOADER.MAX_SKIPPED_IMAGES", "2", "DATALOADER.NUM_WORKERS", workers)
    assert run(tmp_path / "output", data, *words, config=config) == 0
    lines = (tmp_path / "output/skipped_images.jsonl").read_text().splitlines()
    assert {json.loads(line)["file_name"] for line in lines} == broken
    assert len(lines) == 2


@BOTH
def test_too_many_images_that_cannot_be_read_are_named(config, tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    broken = _break(data / "train", "ant/1.png", "cat/7.png")
    assert run(tmp_path / "one", data, "DATALOADER.MAX_SKIPPED_IMAGES", "1", config=config) == 1
    error = last_line(capsys)
    assert "2 images cannot be used, more than DATALOADER.MAX_SKIPPED_IMAGES 1" in error
    assert all(f"cannot read image {name}: " in error for name in broken)
    for name in list(broken)[:1]:  # mended, and the run begun anew in the same folder
        shutil.copy(data / "train/bee/0.png", name)
    assert run(tmp_path / "one", data, "DATALOADER.MAX_SKIPPED_IMAGES", "1", config=config) == 0
    _break(data / "train", "ant/1.png", "cat/7.png")
    capsys.readouterr()
    assert run(tmp_path / "none", data, "DATALOADER.MAX_SKIPPED_IMAGES", "0", config=config) == 1
    error = last_line(capsys)
    assert any(error.startswith(f"error: cannot read image {name}: ") for name in broken)


@BOTH
def test_a_test_image_that_cannot_be_read_is_named(config, tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    (broken,) = _break(data / "val", "bee/2.png")
    words = ("SOLVER.MAX_ITER", "1", "DATALOADER.MAX_SKIPPED_IMAGES", "5")
    assert run(tmp_path / "output", data, *words, config=config) == 1
    assert f"cannot read image {broken}: " in last_line(capsys)


@BOTH
def test_divergence_is_one_line_with_the_learning_rate(config, data, tmp_path, capsys):
    output = tmp_path / "output"
    words = ("SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "20")
    assert run(output, data, *words, config=config) == 1
    error = last_line(capsys)
    assert "training diverged at iteration " in error
    assert "loss_cls not finite, learning rate 1e+30, 8 images a step, " in error
    assert f"python tools/replay_batch.py {output}/nan_batch.pth" in error
    report = json.loads((output / "nan_batch.json").read_text())
    assert len(report["files"]) == 8
    assert all(Path(name).is_file() for name in report["files"])
    saved = torch.load(output / "nan_batch.pth", weights_only=True)["batch"]
    assert {tuple(item["image"].shape) for item in saved} == {(3, 32, 32)}
    assert all(("colour" in item) == (config == IMAGENET) for item in saved)


def test_weights_that_are_not_finite_are_one_line(data, finished, tmp_path, capsys):
    content = final_state(finished)
    content["model"]["linear.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "nan.pth"))
    assert run(tmp_path / "train", data, *weights) == 1
    assert "training diverged at iteration 1: loss_cls not finite" in last_line(capsys)
    assert run(tmp_path / "eval", data, "--eval-only", *weights) == 1
    assert "the network's logits are not finite" in last_line(capsys)


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (CIFAR, ["CLASSIFIER.NUM_CLASSES", "4"], "has 3 classes, CLASSIFIER.NUM_CLASSES is 4: set"),
        (CIFAR, ["CLASSIFIER.NUM_CLASSES", "1"], "CLASSIFIER.NUM_CLASSES 1 is less than 2"),
        (CIFAR, ["DATASETS.TEST", "('a','b')"], "DATASETS.TEST ['a', 'b']: a classifier takes one"),
        (CIFAR, ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty: there is nothing to train on"),
        (CIFAR, ["DATASETS.TRAIN", "('/absent',)"], "/absent"),
        (CIFAR, ["--train-data=/absent.tar"], "/absent.tar"),
        (
            CIFAR,
            ["--val-data=/absent/{0..2}.tar"],
            "3 of 3 files are absent, such as /absent/0.tar",
        ),
        (CIFAR, ["MODEL.RESNETS.DEPTH", "12"], "names no network: depth 12 is not 9 n + 2"),
        (CIFAR, ["MODEL.RESNETS.DEPTH", "2"], "names no network: depth 2 is not 9 n + 2"),
        (CIFAR, ["MODEL.RESNETS.NUM_GROUPS", "0"], "cardinality and width are at least 1"),
        (IMAGENET, ["MODEL.RESNETS.DEPTH", "27"], "depth 27 is not one of [26, 50, 101, 152, 200]"),
        (CIFAR, ["CLASSIFIER.NETWORK", "mnist"], "'mnist' is not one of imagenet, cifar"),
        (CIFAR, ["CLASSIFIER.AUGMENTATION", "x"], "AUGMENTATION 'x' is not one of imagenet, crop"),
        (CIFAR, ["CLASSIFIER.INTERPOLATION", "cubic"], "CLASSIFIER: interpolation cubic is not"),
        (CIFAR, ["CLASSIFIER.SIZE", "16"], "CLASSIFIER: size 16 is not in 32..4096 pixels"),
        (IMAGENET, ["CLASSIFIER.RESIZE", "24"], "CLASSIFIER: resize 24 is not in 32..4096"),
        (
            IMAGENET,
            ["CLASSIFIER.JITTER", "1.5"],
            "CLASSIFIER.JITTER 1.5: set it to a number from 0",
        ),
        (IMAGENET, ["CLASSIFIER.LIGHTING", "-1"], "CLASSIFIER.LIGHTING -1.0: set it to a number"),
        (
            CIFAR,
            ["CLASSIFIER.CLASSES", "/absent.json"],
            "/absent.json cannot be read: No such file",
        ),
        (CIFAR, ["CLASSIFIER.SIZES", "64"], "unknown config key 'CLASSIFIER.SIZES'; did you mean"),
        (CIFAR, ["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED True is of detectors: leave it at"),
        (CIFAR, ["SOLVER.ACCUM_STEPS", "3"], "SOLVER.ACCUM_STEPS 3 does not divide the 8 images"),
        (CIFAR, ["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER 'Adam' is not one of SGD, AdamW"),
        (CIFAR, ["MODEL.RESNETS.NORM", "XN"], "MODEL.RESNETS.NORM 'XN' is no norm of Detectron2"),
        (CIFAR, ["MODEL.WEIGHTS", "nothing.pth"], "MODEL.WEIGHTS nothing.pth does not exist"),
        (CIFAR, ["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is empty: there is nothing"),
        (
            CIFAR,
            ["--eval-only", "DATASETS.TEST", "('a', 'b')"],
            "DATASETS.TEST ['a', 'b']: a classifier takes one data set",
        ),
        (CIFAR, ["--eval-only", "SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH 0 must be greater"),
        (CIFAR, ["--eval-only", "DATALOADER.NUM_WORKERS", "-1"], "NUM_WORKERS -1 must not be"),
        (
            CIFAR,
            ["CLASSIFIER.JITTER", "0.2"],
            "CLASSIFIER.JITTER 0.2 has no effect with CLASSIFIER.AUGMENTATION crop: leave it",
        ),
        (CIFAR, ["INPUT.RANDOM_FLIP", "vertical"], "'vertical' is not one of horizontal, none"),
        (
            IMAGENET,
            ["MODEL.BACKBONE.NAME", "build_resnet_backbone"],
            "MODEL.BACKBONE.NAME build_resnet_backbone is not what a classifier is built of",
        ),
        (DETECTOR, [], "MODEL.META_ARCHITECTURE GeneralizedRCNN is no ImageClassifier: train it w"),
        ("", [], "--config-file is missing, e.g. configs/classification/"),
        ("classification/X50_32x4d", [], "'classification/X50_32x4d' does not exist, and no ship"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(config, words, message, data, tmp_path, capsys):
    assert run(tmp_path / "output", data, *words, config=config) == 1
    assert message in last_line(capsys)
    assert not (tmp_path / "output/last_checkpoint").exists()


def test_data_that_is_none_is_one_line(data, tmp_path, capsys):
    assert run(tmp_path / "output", tmp_path / "absent") == 1
    assert f"{tmp_path}/absent" in last_line(capsys)
    with tarfile.open(tmp_path / "packed.tar.xz", "w:xz") as archive:
        archive.add(data, "data")
    assert run(tmp_path / "output", tmp_path / "packed.tar.xz") == 1
    assert "packed.tar.xz" in (error := last_line(capsys)) and "compressed" in error
    (tmp_path / "other").mkdir()
    (tmp_path / "other/packed.tar.xz").touch()
    assert run(tmp_path / "output", tmp_path / "other") == 1
    assert "packed.tar.xz, which is compressed: unpack it" in last_line(capsys)


def test_test_data_of_other_classes_is_noticed_before_training(tmp_path, capsys):
    data = colour_data(tmp_path / "data")
    colour_tree(tmp_path / "more", ("dog",))
    shutil.copytree(tmp_path / "more/dog", data / "val/dog")
    assert run(tmp_path / "output", data) == 1
    assert f"{data}/val has 4 classes to test, the network 3" in last_line(capsys)
    assert not (tmp_path / "output/last_checkpoint").exists()


def test_a_data_set_that_is_nowhere_is_named_with_the_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run(tmp_path / "output", None) == 1
    error = last_line(capsys)
    assert f"DATASETS.TRAIN cifar10 is not below $DETECTRON2_DATASETS ({tmp_path}/cifar10)" in error
    assert error.endswith("say where the images are with --data or --train-data\n")
    data = colour_data(tmp_path / "data")
    words = ("DATASETS.TRAIN", f"('{data / 'train'}',)")
    assert run(tmp_path / "output", None, *words) == 1
    assert "DATASETS.TEST cifar10 is not below" in (error := last_line(capsys))
    assert error.endswith("with --data or --val-data\n")


def test_small_crops_of_large_images_are_warned_of(data, tmp_path, capsys):
    words = ("SOLVER.MAX_ITER", "1", "CLASSIFIER.RESIZE", "65")
    assert run(tmp_path / "output", data, *words, config=IMAGENET) == 0
    assert "tests see a small part of an image, 32 of 65 pixels" in capsys.readouterr().out
    words = ("SOLVER.MAX_ITER", "1", "CLASSIFIER.RESIZE", "64")
    assert run(tmp_path / "other", data, *words, config=IMAGENET) == 0
    assert "small part" not in capsys.readouterr().out


def test_a_batch_that_processes_cannot_share_is_named(monkeypatch):
    monkeypatch.setattr("resnext_det.engine.checks.comm.get_world_size", lambda: 3)
    with pytest.raises(UserError, match="IMS_PER_BATCH 128 .* use a multiple of 3"):
        check_config(get_cfg(CIFAR))


def test_detectors_and_classifiers_have_a_tool_each(data, tmp_path, capsys):
    def train_net(*words):
        return run_job(train_or_evaluate, argument_parser().parse_args(words))

    words = ["--config-file", CIFAR, "OUTPUT_DIR", str(tmp_path)]
    assert train_net(*words) == 1
    assert "ImageClassifier is no detector: train it with tools/train_class" in last_line(capsys)
    words = ["--config-file", DETECTOR, "OUTPUT_DIR", str(tmp_path), "CLASSIFIER.SIZE", "64"]
    assert train_net(*words) == 1
    assert "CLASSIFIER.SIZE 64 is of classifiers, and this is a detector's" in last_line(capsys)


def test_weights_of_another_number_of_classes_are_refused_in_evaluation(finished, tmp_path, capsys):
    colour_tree(tmp_path / "val", tuple(COLOURS))
    words = ("--eval-only", "CLASSIFIER.NUM_CLASSES", "7")
    words += ("MODEL.WEIGHTS", str(finished / "model_final.pth"))
    assert run(tmp_path / "output", tmp_path / "val", *words) == 1
    assert "tells 3 classes apart, CLASSIFIER.NUM_CLASSES is 7" in last_line(capsys)


@pytest.fixture(scope="module")
def of_a_list(tmp_path_factory):
    """A run on six of seven classes, of which the first four are the "1K" ones."""
    root = tmp_path_factory.mktemp("5k")
    order = ("bee", "dog", "fox", "gnu", "ant", "cat")  # both parts sorted
    ClassList(order, 4, (8,) * 6).write(root / "classes.json")
    colour_tree(root / "22k", tuple(COLOURS), each=8, seed=1)
    colour_tree(root / "val", order[:4], each=4, seed=2)
    for name, other in (("bee", "dog"), ("dog", "gnu"), ("fox", "elk")):
        source = root / "22k" / other / "0.png"
        shutil.copy(source, root / "val" / name / "of_another.png")
    flags = (f"--train-data={root / '22k'}", f"--val-data={root / 'val'}")
    words = ("CLASSIFIER.NUM_CLASSES", "6", "CLASSIFIER.CLASSES", str(root / "classes.json"))
    assert run(root / "output", None, *flags, *words, *LEARN) == 0
    return root, order, [*flags, *words]


def test_with_a_class_list_both_tasks_are_counted_as_the_paper_does(of_a_list):
    root, order, _ = of_a_list
    files = sorted((root / "val").rglob("*.png"))
    logits = logits_by_hand(root / "output", files)
    labels = np.array([order.index(file.parent.name) for file in files])
    results = results_of(root / "output")
    all_ways, first = results["classification"], results["classification_1k"]
    wrong = [(part.argmax(1) != labels).mean() for part in (logits, logits[:, :4])]
    assert all_ways["top1_error"] == pytest.approx(100 * wrong[0])
    assert first["top1_error"] == pytest.approx(100 * wrong[1])
    assert 0 < wrong[1] <= wrong[0]
    # not among the first five: the least probable of six
    assert all_ways["top5_error"] == pytest.approx(100 * (logits.argmin(1) == labels).mean())
    assert first["top5_error"] is None


def test_with_a_class_list_the_other_classes_are_left_out_of_training(of_a_list):
    root, order, _ = of_a_list
    cfg = load_config(str(root / "output/config.yaml"))
    loader = ClassifierTrainer.build_train_loader(cfg)
    seen = set()
    for _, batch in zip(range(12), loader, strict=False):  # two passes over 48 images
        for name, label in zip(batch.names, batch.labels.tolist(), strict=True):
            assert Path(name).parent.name == order[label]
            seen.add(name)
    assert len(seen) == 48
    assert not any("elk" in name for name in seen)


def test_a_class_list_that_does_not_fit_is_one_line(of_a_list, tmp_path, capsys):
    _root, _, words = of_a_list
    assert run(tmp_path / "output", None, *words, "CLASSIFIER.NUM_CLASSES", "5") == 1
    assert "classes.json has 6 classes, CLASSIFIER.NUM_CLASSES is 5: set" in last_line(capsys)
    ClassList(("bee", "yak"), 1, (8, 8)).write(tmp_path / "other.json")
    other = ("CLASSIFIER.CLASSES", str(tmp_path / "other.json"), "CLASSIFIER.NUM_CLASSES", "2")
    assert run(tmp_path / "output", None, *words, *other) == 1
    assert "lacks 1: yak" in last_line(capsys)


def test_want_of_memory_names_the_size_of_the_images():
    cfg = get_cfg(CIFAR)
    batch = ImageBatch(torch.zeros(2, 32, 40, 3, dtype=torch.uint8), torch.zeros(2).long(), "ab")
    message = explain_out_of_memory(Situation(cfg, 3, 0.1, batch, 0, "", 0), 1)
    assert message.startswith("out of memory at iteration 4: 2 images of up to 32x40 pixels")
    assert "smaller images: CLASSIFIER.SIZE (now 32)" in message
    evaluated = explain_in_evaluation(torch.OutOfMemoryError("CUDA out of memory"), cfg)
    assert "smaller images, CLASSIFIER.SIZE (now 32), which changes the results" in evaluated
    assert "INPUT." not in message + evaluated


def test_the_command_says_where_the_images_are(data, tmp_path):
    """Relative paths are the command's, not below $DETECTRON2_DATASETS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        assert run(tmp_path / "output", Path("."), "SOLVER.MAX_ITER", "1") == 0
        patch.setenv("DETECTRON2_DATASETS", str(data.parent))
        below = ("DATASETS.TRAIN", f"('{data.name}',)", "DATASETS.TEST", f"('{data.name}',)")
        assert run(tmp_path / "below", None, *below, "SOLVER.MAX_ITER", "1") == 0
    assert_same_run(final_state(tmp_path / "output"), final_state(tmp_path / "below"))
