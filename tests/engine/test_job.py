"""The main job in this process: what it refuses, and in what words."""

import json

import pytest
import torch

import resnext_det
from resnext_det.data import shapes
from resnext_det.engine import (
    Trainer,
    argument_parser,
    check_config,
    prepare,
    run_job,
    train_or_evaluate,
)
from resnext_det.engine.results import write_results
from resnext_det.errors import UserError, user_message
from tests.helpers import needs_tiny_coco, write_coco_subset

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run the job on a handful of shapes; returns the exit status."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 8, "shapes_minival": 4})

    def run(*words, config=QUICK):
        command = ["--config-file", config, *words]
        if not any(w == "OUTPUT_DIR" for w in words):
            command += ["OUTPUT_DIR", str(tmp_path / "output")]
        return run_job(train_or_evaluate, argument_parser().parse_args(command))

    return run


FAST = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)")


def test_it_trains_evaluates_and_writes_its_files(job, tmp_path):
    assert job(*FAST) == 0
    output = tmp_path / "output"
    for name in ("metrics.json", "results.json", "config.yaml", "log.txt", "model_final.pth"):
        assert (output / name).is_file()
    assert (output / "inference/coco_instances_results.json").is_file()
    assert list(output.glob("events.out.tfevents.*"))
    results = json.loads((output / "results.json").read_text())
    assert 0 <= results["bbox"]["AP"] <= results["bbox"]["AP50"] <= 100

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    for line in (output / "metrics.json").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_new_run_in_an_old_folder_starts_new_curves(job, tmp_path):
    output = tmp_path / "output"
    for _ in range(2):
        assert job(*FAST) == 0
    (output / "model_of_mine.pth").touch()
    assert job(*FAST) == 0
    for name in ("metrics.json", "previous-1/metrics.json", "previous-2/metrics.json"):
        assert [json.loads(line)["iteration"] for line in (output / name).open()] == [1, 2]
    assert (output / "previous-1/model_final.pth").is_file()
    assert not (output / "previous-1/model_of_mine.pth").exists()


def test_a_new_run_started_again_before_its_first_checkpoint_leaves_the_old_one(job, tmp_path):
    assert job(*FAST) == 0
    words = ["--config-file", QUICK, *FAST, "OUTPUT_DIR", str(tmp_path / "output")]
    prepare(argument_parser().parse_args(words))  # and is killed
    args = argument_parser().parse_args(words)
    args.restarted = True
    prepare(args)
    assert not args.resume


def test_a_checkpoint_evaluates_alone_to_the_same_results(job, tmp_path):
    assert job(*FAST) == 0
    first = json.loads((tmp_path / "output/results.json").read_text())
    weights = str(tmp_path / "output/model_final.pth")
    status = job("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "again"))
    assert status == 0
    assert json.loads((tmp_path / "again/results.json").read_text()) == first


def test_resuming_goes_on_at_the_saved_iteration(job, tmp_path, capsys):
    every = (*FAST[2:], "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.BASE_LR", "1e-4")
    assert job("SOLVER.MAX_ITER", "4", *every) == 0
    (tmp_path / "output/last_checkpoint").write_text("model_0000001.pth")
    assert job("--resume", "SOLVER.MAX_ITER", "4", *every) == 0
    assert "model_0000001.pth at iteration 2 of 4" in capsys.readouterr().out
    at_2 = torch.load(tmp_path / "output/model_0000001.pth", weights_only=True)
    resumed = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert (at_2["iteration"], resumed["iteration"]) == (1, 3)
    steps = [
        s["step"].item() for s in resumed["trainer"]["_trainer"]["optimizer"]["state"].values()
    ]
    assert set(steps) == {4}  # AdamW counts on where the checkpoint left it


def test_resuming_a_finished_run_is_an_error(job, capsys):
    assert job(*FAST) == 0
    assert job("--resume", *FAST) == 1
    assert (
        "is finished (iteration 2 of 2): raise the number of iterations" in capsys.readouterr().err
    )


@no_gpu
def test_without_a_gpu_the_cpu_is_used_and_said_once(job, capsys):
    assert job(*FAST) == 0
    assert capsys.readouterr().out.count("no GPU is visible: running on the CPU") == 1


@no_gpu
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE cuda: no GPU is visible to torch"),
        (
            ["SOLVER.AMP.ENABLED", "True"],
            "SOLVER.AMP.DTYPE float16 needs a GPU: on the CPU set SOLVER.AMP.DTYPE bfloat16",
        ),
        (["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER 'Adam' is not one of SGD, AdamW"),
        (["SOLVER.MAXITER", "3"], "unknown config key 'SOLVER.MAXITER'; did you mean SOLVER.MAX"),
        (["SOLVER.MAX_ITER", "3", "--resume"], "--resume stands after the KEY VALUE overrides"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "dataset shapes_train has 5 classes (circle"),
        (["MODEL.WEIGHTS", "nothing.pth"], "MODEL.WEIGHTS nothing.pth does not exist"),
        (
            ["MODEL.WEIGHTS", "resnext://torchvision/R-51"],
            "no published weights are named 'torchvision/R-51'",
        ),
        (["DATASETS.TRAIN", "('coco_trainval',)"], "dataset coco_trainval is not registered"),
        (["MODEL.RESNETS.DEPTH", "34"], "depth 34 is not one of [26, 50, 101, 152, 200]"),
        (["MODEL.RESNEXT.FORM", "z"], "MODEL.RESNEXT.FORM 'z' is not one of a, b, c"),
        (["MODEL.RESNETS.NORM", "XN"], "MODEL.RESNETS.NORM 'XN' is no norm of Detectron2"),
        (
            ["MODEL.BACKBONE.NAME", "build_resnext"],
            "MODEL.BACKBONE.NAME 'build_resnext' is not reg",
        ),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER 0 must be greater than 0"),
        (["SOLVER.MAX_ITER", "None"], "SOLVER.MAX_ITER None must be a number"),
        (["SOLVER.BASE_LR", "float('nan')"], "SOLVER.BASE_LR"),
        (["SOLVER.CHECKPOINT_PERIOD", "-1"], "SOLVER.CHECKPOINT_PERIOD -1 must not be negative"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.PIXEL_MEAN", "[1.0, 2.0]"], "MODEL.PIXEL_MEAN has 2 channels, MODEL.PIXEL_STD 3"),
        (["MODEL.DEVICE", "abacus"], "MODEL.DEVICE 'abacus' is not a device"),
        (["MODEL.BACKBONE.FREEZE_AT", "6"], "MODEL.BACKBONE.FREEZE_AT 6 is not in 0..5"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(job, capsys, words, message):
    assert job(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("faster_rcnn_X51", "config file 'faster_rcnn_X51' does not exist, and no shipped config"),
        ("", "--config-file is missing"),
    ],
)
def test_an_unknown_config_is_one_line(job, capsys, config, message):
    assert job(config=config) == 1
    assert message in capsys.readouterr().err


def test_a_missing_dataset_is_one_line(job, capsys):
    assert job("MODEL.WEIGHTS", "", config="faster_rcnn_X50_32x4d") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: dataset coco_trainval35k is not at ")
    assert error.count("\n") == 1


@needs_tiny_coco
@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_is_one_line(job, capsys, tmp_path, workers):
    coco = write_coco_subset(tmp_path / "datasets", 2) / "coco"
    (coco / "train2017").unlink()
    (coco / "train2017").mkdir()
    small = ("MODEL.RESNETS.DEPTH", "26", "MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", "1")
    small += ("MODEL.BACKBONE.FREEZE_AT", "0")
    status = job(*small, "DATALOADER.NUM_WORKERS", workers, config="faster_rcnn_X50_32x4d")
    error = capsys.readouterr().err
    assert status == 1
    assert f" cannot read image {coco}/train2017/" in error.split("\n")[-2]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-gpus", "0"], "--num-gpus 0 --num-machines 1: both must be at least 1"),
        (["--num-machines", "2"], "--num-machines > 1 needs --dist-url"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank 2 is not in 0..1"),
    ],
)
def test_impossible_launches_are_one_line(job, capsys, words, message):
    assert job(*words) == 1
    assert message in capsys.readouterr().err


def test_divergence_is_one_line_with_the_learning_rate(job, capsys):
    assert job(*FAST[2:], "SOLVER.MAX_ITER", "30", "SOLVER.BASE_LR", "1e30") == 1
    printed = capsys.readouterr()
    assert "training diverged at iteration" in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.out


@needs_tiny_coco
def test_missing_test_data_is_noticed_before_training(job, capsys, tmp_path):
    coco = write_coco_subset(tmp_path / "datasets", 2) / "coco"
    (coco / "val2017").unlink()
    assert job("MODEL.WEIGHTS", "", config="faster_rcnn_X50_32x4d") == 1
    printed = capsys.readouterr()
    assert "dataset coco_minival is not at" in printed.err
    assert "iter:" not in printed.out


def test_another_form_is_resumed_only_as_weights(job, capsys, tmp_path):
    assert job(*FAST) == 0
    more = ("SOLVER.MAX_ITER", "3", *FAST[2:], "MODEL.RESNEXT.FORM", "b")
    assert job("--resume", *more) == 1
    assert "trained in another MODEL.RESNEXT.FORM than b" in capsys.readouterr().err
    weights = str(tmp_path / "output/model_final.pth")
    again = ("MODEL.RESNEXT.FORM", "b", "OUTPUT_DIR", str(tmp_path / "b"))
    assert job("--eval-only", "MODEL.WEIGHTS", weights, *again) == 0
    results = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("output", "b")]
    assert results[0] == results[1]


def test_a_bug_keeps_its_traceback():
    def buggy(args):
        raise ZeroDivisionError

    args = argument_parser().parse_args(["--config-file", QUICK])
    with pytest.raises(ZeroDivisionError):
        run_job(buggy, args)


def test_a_users_mistake_is_found_inside_another_process_report():
    report = RuntimeError(
        "-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1\nresnext_det.errors.UserError: cannot read image a.jpg: gone\n'
    )
    assert user_message(report) == "cannot read image a.jpg: gone"
    assert user_message(UserError("plain")) == "plain"
    assert user_message(ValueError("other")) is None


def test_a_batch_that_processes_cannot_share_is_named(monkeypatch):
    monkeypatch.setattr("resnext_det.engine.checks.comm.get_world_size", lambda: 3)
    with pytest.raises(UserError, match="IMS_PER_BATCH 16 .* use a multiple of 3"):
        check_config(resnext_det.get_cfg("faster_rcnn_X50_32x4d"))


def test_adamw_gets_detectron2s_parameter_groups():
    cfg = resnext_det.get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cpu"
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert parameters == {id(p) for p in model.parameters()}
    norm = id(model.backbone.bottom_up.stem.conv1.norm.weight)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[norm] == cfg.SOLVER.WEIGHT_DECAY_NORM == 0
    assert decay[id(model.backbone.bottom_up.stem.conv1.weight)] == cfg.SOLVER.WEIGHT_DECAY
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert isinstance(Trainer.build_optimizer(cfg, model), torch.optim.SGD)


def test_results_with_nan_are_json(tmp_path):
    write_results({"bbox": {"AP": 1.5, "APl": float("nan")}}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"bbox": {"AP": 1.5, "APl": None}}
