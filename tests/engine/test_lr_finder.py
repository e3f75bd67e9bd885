import json
import math

import numpy as np
import pytest
from PIL import Image

from resnext_det.data import shapes
from resnext_det.engine import run_job
from resnext_det.engine.launch import custom_pairs
from resnext_det.engine.lr_finder import Sweep, decay_for, find_lr, lr_finder_parser, plot_sweep
from tests.helpers import REPO, run_tool

QUICK = ("--config-file", "quick/faster_rcnn_X26_8x4d_FPN")
SMALL = ("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)")


def swept(loss, count=100, noise=0.0):
    """A sweep over 1e-6..1 with `loss` of log10(rate)."""
    rates = np.geomspace(1e-6, 1, count)
    random = np.random.default_rng(0).normal(size=count)
    losses = [loss(math.log10(r)) * (1 + noise * e) for r, e in zip(rates, random, strict=True)]
    return Sweep(rates.tolist(), losses, decay_for(count))


def fall_and_rise(x, steepest=-3.0):
    """Falls from 3 to 1, fastest at 10^steepest, and rises again beyond 10^-1.5."""
    return 2 - math.tanh(1.5 * (x - steepest)) + max(0.0, 4 * (x + 1.5)) ** 2


@pytest.mark.parametrize("count", [50, 100, 400])
@pytest.mark.parametrize("steepest", [-4.0, -3.0, -2.5])
def test_the_steepest_descent_is_found_where_it_is(steepest, count):
    rate = swept(lambda x: fall_and_rise(x, steepest), count).suggestion()
    assert abs(math.log10(rate) - steepest) < 0.35


def test_noise_moves_it_little():
    rate = swept(fall_and_rise, noise=0.05).suggestion()
    assert abs(math.log10(rate) + 3) < 0.6


@pytest.mark.parametrize(
    "loss", [lambda x: 2.0, lambda x: 3.0 + x / 6, lambda x: 2 + max(0, x + 2) ** 2]
)
def test_a_loss_that_never_falls_gives_no_rate(loss):
    assert swept(loss).suggestion() is None
    assert swept(loss, noise=0.02).suggestion() is None


def test_a_sweep_that_ended_at_once_gives_no_rate():
    assert Sweep([], [], 0.9).suggestion() is None
    assert Sweep([1.0] * 5, [5.0, 4.0, 3.0, 2.0, 1.0], 0.9).suggestion() is None


def test_the_average_is_corrected_for_its_start():
    assert Sweep([1, 2, 3], [5.0, 5.0, 5.0], 0.98).smoothed == pytest.approx([5, 5, 5])
    assert Sweep([1, 2], [1.0, 2.0], 0.5).smoothed == pytest.approx([1, (0.5 + 2) / 1.5])


def test_the_average_spans_a_tenth_of_the_sweep_and_at_most_fastais():
    assert [decay_for(n) for n in (10, 100, 500, 5000)] == pytest.approx([0.5, 0.9, 0.98, 0.98])


@pytest.mark.parametrize("losses", [[], [1.0], [3.0, 2.0, 1.0]])
def test_a_short_sweep_is_drawn(losses, tmp_path):
    plot_sweep(Sweep([10.0**-i for i in range(len(losses))], losses, 0.9), 0.01, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 1


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Sweep on a handful of shapes; returns the exit status."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 8, "shapes_minival": 4})

    def run(*words):
        args = lr_finder_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path / "output")])
        return run_job(find_lr, args)

    return run


def read_report(tmp_path):
    return json.loads((tmp_path / "output/lr_finder/lr_finder.json").read_text())


def test_it_sweeps_suggests_and_leaves_a_run_in_the_folder_alone(job, tmp_path, capsys):
    output = tmp_path / "output"
    output.mkdir()
    for name in ("metrics.json", "last_checkpoint", "config.yaml"):
        (output / name).write_text("the run's")
    words = ("--iterations", "40", "--min-lr", "1e-5", "--max-lr", "1e-1")
    assert job(*QUICK, *words, *SMALL, "SOLVER.BASE_LR", "0.02") == 0
    report = read_report(tmp_path)
    assert report["rates"] == pytest.approx(np.geomspace(1e-5, 1e-1, 40)[: len(report["rates"])])
    assert len(report["rates"]) == len(report["losses"]) == len(report["smoothed"]) >= 20
    assert report["config_lr"] == 0.02
    assert 1e-5 < report["suggested_lr"] < 1e-1
    printed = capsys.readouterr().out
    assert f"\nSOLVER.BASE_LR {report['suggested_lr']:g}\n" in printed
    assert "for 2 images a step (the config says 0.02)" in printed
    names = {f.name for f in (output / "lr_finder").iterdir()}
    assert names == {"log.txt", "lr_finder.json", "lr_finder.png"}
    assert {f.name for f in output.iterdir() if f.is_file()} == {
        "metrics.json", "last_checkpoint", "config.yaml",
    }  # fmt: skip
    assert (output / "metrics.json").read_text() == "the run's"


def test_it_ends_where_the_loss_diverges(job, tmp_path, capsys):
    words = ("--min-lr", "1e-3", "--max-lr", "1e9", "--iterations", "30")
    assert job(*QUICK, *words, *SMALL, "SOLVER.OPTIMIZER", "SGD") == 0
    report = read_report(tmp_path)
    assert len(report["losses"]) < 30
    assert report["stopped"].startswith("the loss is ")
    assert all(map(math.isfinite, report["losses"]))
    assert f"stopped after {len(report['losses'])} iterations: the loss is" in (
        capsys.readouterr().out
    )


def test_rates_too_low_to_learn_give_no_suggestion(job, tmp_path, capsys):
    words = ("--min-lr", "1e-12", "--max-lr", "1e-11", "--iterations", "10")
    assert job(*QUICK, *words, *SMALL) == 0
    assert read_report(tmp_path)["suggested_lr"] is None
    assert "no rate can be suggested: the loss did not fall" in capsys.readouterr().out


def test_the_first_loss_is_that_of_training(job, tmp_path):
    """The same weights, images and random numbers as a run of the same seed."""
    from resnext_det.engine import argument_parser, train_or_evaluate

    seed = ("SEED", "3", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    assert job(*QUICK, "--iterations", "10", *SMALL, *seed) == 0
    run = [*QUICK, *SMALL, *seed, "OUTPUT_DIR", str(tmp_path / "run")]
    assert run_job(train_or_evaluate, argument_parser().parse_args(run)) == 0
    first = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[0])
    assert read_report(tmp_path)["losses"][0] == pytest.approx(first["total_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*QUICK, "--min-lr", "1", "--max-lr", "0.1"), "--min-lr 1 --max-lr 0.1: the first must"),
        ((*QUICK, "--min-lr", "1", "--max-lr", "1"), "--min-lr 1 --max-lr 1: the first must"),
        ((*QUICK, "--min-lr", "0"), "--min-lr 0 --max-lr 1: the first must be greater than 0"),
        ((*QUICK, "--max-lr", "inf"), "--min-lr 1e-06 --max-lr inf"),
        ((*QUICK, "--min-lr", "nan"), "--min-lr nan --max-lr 1"),
        ((*QUICK, "--iterations", "9"), "--iterations 9: a sweep takes at least 10"),
        ((*QUICK, "--resume"), "no --resume, --eval-only"),
        ((*QUICK, "--eval-only"), "no --resume, --eval-only"),
        ((), "--config-file is missing"),
        ((*QUICK, "SOLVER.BASELR", "1"), "did you mean SOLVER.BASE_LR"),
        ((*QUICK, "MODEL.WEIGHTS", "gone.pth"), "MODEL.WEIGHTS gone.pth does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(job, tmp_path, capsys, words, message):
    assert job(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_several_processes_are_refused(tmp_path):
    words = (REPO / "tools/find_lr.py", *QUICK, "--num-gpus", 2, "OUTPUT_DIR", tmp_path / "output")
    done = run_tool(*words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: a rate is found in one process: leave out --num-gpus" in done.stderr
    assert not (tmp_path / "output").exists()


def test_the_parser_keeps_the_flags_for_data_of_ones_own():
    args = lr_finder_parser().parse_args(["--train-json", "a", "--train-images", "b"])
    assert custom_pairs(args)["train"] == [("a", "b")]
