"""Scaling a schedule to another batch, and the warning where nobody asked for it."""

import pytest

from resnext_det import get_cfg
from resnext_det.engine.schedule import Reference, scale_schedule, warn_of_rate
from resnext_det.errors import UserError
from tests.engine.jobs import Run

CONFIG = "faster_rcnn_X50_32x4d"


def scaled(*overrides, processes=1, config=CONFIG):
    cfg = get_cfg(config)
    cfg.merge_from_list(list(overrides))
    table = scale_schedule(cfg, Reference.read(config), overrides, processes)
    return cfg, table


def test_an_eighth_of_the_batch_takes_eight_times_the_iterations_at_an_eighth_of_the_rate():
    plain = get_cfg(CONFIG)
    cfg, table = scaled("SOLVER.IMS_PER_BATCH", "2")
    assert plain.SOLVER.IMS_PER_BATCH == 16
    assert pytest.approx(plain.SOLVER.BASE_LR / 8) == cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.MAX_ITER == plain.SOLVER.MAX_ITER * 8
    assert tuple(step * 8 for step in plain.SOLVER.STEPS) == cfg.SOLVER.STEPS
    assert cfg.SOLVER.WARMUP_ITERS == plain.SOLVER.WARMUP_ITERS * 8
    assert cfg.SOLVER.CHECKPOINT_PERIOD == plain.SOLVER.CHECKPOINT_PERIOD * 8
    assert cfg.TEST.EVAL_PERIOD == plain.TEST.EVAL_PERIOD * 8
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}
    assert rows["SOLVER.MAX_ITER"] == [str(plain.SOLVER.MAX_ITER), str(cfg.SOLVER.MAX_ITER)]
    assert rows["SOLVER.BASE_LR"] == [f"{plain.SOLVER.BASE_LR:g}", f"{cfg.SOLVER.BASE_LR:g}"]


def test_what_the_command_line_says_wins():
    plain = get_cfg(CONFIG)
    cfg, table = scaled("SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.5", "TEST.EVAL_PERIOD", 7)
    assert (cfg.SOLVER.BASE_LR, cfg.TEST.EVAL_PERIOD) == (0.5, 7)
    assert cfg.SOLVER.MAX_ITER == 2 * plain.SOLVER.MAX_ITER
    assert table.count("the command line") == 3


def test_a_batch_for_a_number_of_processes_follows_them():
    cfg, _ = scaled("SOLVER.REFERENCE_WORLD_SIZE", "8", processes=2)
    assert cfg.SOLVER.IMS_PER_BATCH == 4
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 0  # Detectron2 would scale again


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH -2 must be greater than 0"):
        scaled("SOLVER.IMS_PER_BATCH", "-2")


def test_the_job_prints_the_table_and_keeps_the_values(tmp_path):
    words = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "1")
    run = Run(tmp_path, tmp_path / "output", "--auto-scale", *words)
    assert run.wait() == 0, run.console
    assert "the schedule for 4 images a step:" in run.console
    line = next(row for row in run.console.splitlines() if row.startswith("SOLVER.MAX_ITER"))
    assert line.split()[1:] == ["800", "1", "the", "command", "line"]
    assert "rate per image" not in run.console


@pytest.mark.parametrize(
    ("times", "message"), [(1.4, ""), (0.7, ""), (1.6, "is 1.6 times"), (0.5, "is 1/2 of")]
)
def test_a_rate_far_off_the_configs_is_warned_of(times, message, caplog):
    cfg = get_cfg(CONFIG)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR *= times / 4
    caplog.set_level("WARNING", "resnext_det")
    warn_of_rate(cfg, Reference.read(CONFIG))
    if not message:
        assert not caplog.records
    else:
        assert f"{message} the config's rate per image" in caplog.text
        assert "--auto-scale sets it" in caplog.text
