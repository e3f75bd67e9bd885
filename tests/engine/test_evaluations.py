"""The best checkpoint, early stopping, and the average of the weights."""

import json
import math

import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn

from resnext_det.engine.averaging import AverageWeights
from resnext_det.engine.evaluations import Evaluation, EvaluationLog, deciding_metric
from resnext_det.engine.stopping import TrainingStopped
from resnext_det.errors import UserError
from tests.engine.jobs import Run

NAN = math.nan


class Counting(TrainerBase):
    """Trains nothing."""

    def run_step(self):
        pass


def evaluate_in_turn(folder, values, *, patience=0, start=0, length=None):
    """Evaluate after each iteration; gives what was kept as best, and why it stopped."""
    kept, left = [], list(values)
    trainer = Counting()
    evaluation = Evaluation(
        1,
        lambda: {"bbox": {"AP": left.pop(0)}},
        EvaluationLog(folder / "evaluations.json"),
        lambda done, metric, value: kept.append((done, metric, value)),
        patience=patience,
    )
    trainer.register_hooks([evaluation])
    try:
        trainer.train(start, length or start + len(values))
    except TrainingStopped as stopped:
        return kept, stopped
    return kept, None


def test_the_best_is_kept_and_nan_never_wins(tmp_path):
    kept, _ = evaluate_in_turn(tmp_path, [NAN, 1.0, NAN, 0.5, 3.0, 3.0, NAN])
    assert kept == [(2, "bbox/AP", 1.0), (5, "bbox/AP", 3.0)]
    entries = json.loads((tmp_path / "evaluations.json").read_text())
    assert [e["value"] for e in entries] == [None, 1.0, None, 0.5, 3.0, 3.0, None]


def test_nothing_but_nan_keeps_nothing(tmp_path):
    assert evaluate_in_turn(tmp_path, [NAN, NAN])[0] == []


def test_training_stops_after_evaluations_without_a_better_one(tmp_path):
    kept, stopped = evaluate_in_turn(tmp_path, [1.0, 2.0, 1.5, NAN, 5.0], patience=2)
    assert [done for done, *_ in kept] == [1, 2]
    assert not stopped.resumable
    assert "stopped early: 2 evaluations without a better one" in stopped.reason


def test_the_best_is_known_after_an_interruption(tmp_path):
    evaluate_in_turn(tmp_path, [1.0, 4.0, 2.0])
    kept, stopped = evaluate_in_turn(tmp_path, [3.0, 3.0], start=3, patience=3)
    assert kept == []
    assert stopped is None
    assert len(json.loads((tmp_path / "evaluations.json").read_text())) == 5


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path):
    with pytest.raises(IndexError):  # the third finds no value
        evaluate_in_turn(tmp_path, [1.0, 4.0], length=4)
    kept, _ = evaluate_in_turn(tmp_path, [9.0, 2.0, 1.0], start=3, length=5)
    assert kept == [(3, "bbox/AP", 9.0)]


def test_a_best_checkpoint_that_was_not_written_is_written_by_the_next_start(tmp_path):
    evaluate_in_turn(tmp_path, [1.0])

    def full_disk(*_):
        raise OSError("killed while the best checkpoint was written")

    trainer, log = Counting(), EvaluationLog(tmp_path / "evaluations.json")
    trainer.register_hooks([Evaluation(1, lambda: {"bbox": {"AP": 4.0}}, log, full_disk)])
    with pytest.raises(OSError):
        trainer.train(1, 3)
    kept, _ = evaluate_in_turn(tmp_path, [4.0, 2.0], start=2, length=3)
    assert kept == [(2, "bbox/AP", 4.0)]


def test_the_last_evaluation_done_again_counts_once(tmp_path):
    evaluate_in_turn(tmp_path, [1.0, 4.0])
    kept, _ = evaluate_in_turn(tmp_path, [4.0], start=2, length=2)
    assert kept == [(2, "bbox/AP", 4.0)]
    entries = json.loads((tmp_path / "evaluations.json").read_text())
    assert [e["iteration"] for e in entries] == [1, 2]


def test_a_run_that_stopped_early_does_not_go_on_by_itself(tmp_path):
    _, stopped = evaluate_in_turn(tmp_path, [3.0, 2.0, 1.0], patience=2, length=9)
    assert stopped
    with pytest.raises(UserError, match="stopped early already, after iteration 3"):
        evaluate_in_turn(tmp_path, [9.0], patience=2, start=3, length=9)
    kept, _ = evaluate_in_turn(tmp_path, [9.0], patience=3, start=3, length=4)
    assert kept == [(4, "bbox/AP", 9.0)]


def test_the_average_of_a_run_is_what_eval_only_evaluates(tmp_path):
    output = tmp_path / "output"
    words = ("SOLVER.MAX_ITER", "6", "SOLVER.EMA_DECAY", "0.9", "SOLVER.BASE_LR", "5e-3")
    run = Run(tmp_path, output, *words)
    assert run.wait() == 0, run.console
    results = output / "inference/coco_instances_results.json"
    trained = json.loads(results.read_text())
    results.unlink()
    run = Run(tmp_path, output, "--eval-only", "--resume", *words)
    assert run.wait() == 0, run.console
    assert "evaluating the averaged weights" in run.console
    assert json.loads(results.read_text()) == trained
    run = Run(tmp_path, output, "--eval-only", "--resume", *words, "SOLVER.EMA_DECAY", "0")
    assert run.wait() == 0, run.console
    assert json.loads(results.read_text()) != trained


def test_a_damaged_log_is_named(tmp_path):
    (tmp_path / "evaluations.json").write_text("[{")
    with pytest.raises(UserError, match="evaluations.json is damaged"):
        evaluate_in_turn(tmp_path, [1.0], start=2)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}}, ("segm/AP", 2.0)),
        ({"bbox": {"AP": 1.0}, "keypoints": {"AP": 2.0}}, ("keypoints/AP", 2.0)),
        ({"one": {"bbox": {"AP": 1.0}}, "two": {"bbox": {"AP": 2.0}}}, ("bbox/AP", 1.0)),
        ({"box_proposals": {"AR@1000": 5.0}}, ("box_proposals/AR@1000", 5.0)),
        (
            {
                "classification": {"accuracy": 75.0, "top1_error": 25.0, "top5_error": NAN},
                "classification_1k": {"accuracy": 90.0, "top1_error": 10.0, "top5_error": 1.0},
            },
            ("classification/accuracy", 75.0),  # of errors a lower one would be better
        ),
    ],
)
def test_what_decides(results, expected):
    assert deciding_metric(results) == expected


def test_the_average_follows_the_formula():
    model = nn.Linear(1, 1, bias=False)
    average = AverageWeights(model, 0.5)
    average.trainer = Counting()
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    model.weight.data.fill_(2.0)
    average.before_train()
    expected = 2.0
    for average.trainer.iter, value in enumerate(values):
        model.weight.data.fill_(value)
        average.after_step()
        decay = min(0.5, (2 + average.trainer.iter) / (11 + average.trainer.iter))
        expected = decay * expected + (1 - decay) * value
    assert average.weights["weight"].item() == pytest.approx(expected)
    with average.in_use():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 5.0


def test_a_run_with_an_average_evaluates_and_resumes_it(tmp_path):
    words = ("SOLVER.EMA_DECAY", "0.9", "SOLVER.MAX_ITER", "6")
    files = []
    for name in ("whole", "parts"):
        output = tmp_path / name
        run = Run(tmp_path, output, *words)
        assert run.wait() == 0, run.console
        if name == "parts":
            (output / "last_checkpoint").write_text("model_0000001.pth")
            run = Run(tmp_path, output, "--resume", *words)
            assert run.wait() == 0, run.console
        assert "the results are those of the averaged weights" in run.console
        files.append(torch.load(output / "model_final_ema.pth", weights_only=True)["model"])
        best = torch.load(output / "model_best.pth", weights_only=True)
        assert (best["iteration"], best["metric"]) == (6, "bbox/AP")
        last = torch.load(output / "model_final.pth", weights_only=True)["model"]
        assert not torch.equal(
            files[-1]["backbone.fpn_output2.weight"], last["backbone.fpn_output2.weight"]
        )
    for key, value in files[0].items():
        assert torch.equal(files[1][key], value), key
