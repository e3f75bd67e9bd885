"""Runs that are stopped, killed and damaged, and go on."""

import json
import os
import random
import signal
import time

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from resnext_det.engine import argument_parser, run_job
from resnext_det.engine.record import fingerprint
from resnext_det.engine.resuming import newest_checkpoint
from tests.engine.jobs import Run, assert_same_run, final_state

LENGTH = ("SOLVER.MAX_ITER", "12")
AUGMENTED = ("INPUT.MIN_SIZE_TRAIN", "(48,64,80)")  # random sizes besides random flips


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of 12 iterations that nothing disturbed."""
    root = tmp_path_factory.mktemp("uninterrupted")
    run = Run(root, root / "output", *LENGTH, *AUGMENTED)
    assert run.wait() == 0, run.console
    return final_state(run.output)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(uninterrupted, tmp_path, workers):
    output = tmp_path / "output"
    words = (*LENGTH, *AUGMENTED, "DATALOADER.NUM_WORKERS", workers)
    chance = random.Random(int(workers) + time.time_ns())
    for kill in range(3):
        resume = ("--resume",) if (output / "last_checkpoint").is_file() else ()
        run = Run(tmp_path, output, *resume, *words)
        old = _marker(output)
        run.wait_for(lambda old=old: _marker(output) != old)
        time.sleep(chance.uniform(0, 0.3))  # anywhere in the next iterations, or in their writing
        run.process.kill()  # which a run that has just ended does not mind
        run.wait()
        if _marker(output) == "model_final.pth":
            break
        print(f"kill {kill} after {_marker(output)}")
    if not (output / "results.json").is_file():
        run = Run(tmp_path, output, "--resume", *words)
        assert run.wait() == 0, run.console
    assert_same_run(final_state(output), uninterrupted)
    rows = [json.loads(line)["iteration"] for line in (output / "metrics.json").open()]
    assert rows == sorted(set(rows))


def _marker(output):
    file = output / "last_checkpoint"
    return file.read_text() if file.is_file() else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_iteration_writes_a_checkpoint_and_says_how_to_go_on(
    uninterrupted, tmp_path, number
):
    output = tmp_path / "output"
    words = (*LENGTH, *AUGMENTED, "SOLVER.CHECKPOINT_PERIOD", "5")
    run = Run(tmp_path, output, *words)
    run.wait_for(lambda: (output / "model_0000004.pth").is_file())
    os.kill(run.process.pid, number)
    assert run.wait() == 0, run.console
    assert f"stopped by {number.name} after iteration" in run.console
    assert "--resume --config-file" in run.console
    assert not (output / "results.json").exists()
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 0, run.console
    assert_same_run(final_state(output), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_iteration_is_one_line(tmp_path, number):
    output = tmp_path / "output"
    run = Run(tmp_path, output, *LENGTH)
    run.wait_for((output / "log.txt").is_file)
    os.kill(run.process.pid, number)
    assert run.wait() == 0, run.console
    if "after iteration" not in run.console:  # it had begun to train by then
        assert f"stopped by {number.name}, not while training: no checkpoint" in run.console
        assert not (output / "last_checkpoint").exists()
    assert "Traceback" not in run.console


def test_a_signal_ends_an_evaluation_that_is_the_job_with_its_status(tmp_path):
    words = ("--eval-only", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "1200")
    run = Run(tmp_path, tmp_path / "output", *words)
    run.wait_for((tmp_path / "output/config.yaml").is_file)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.console
    assert run.console.strip().endswith("stopped by SIGTERM")
    assert "Traceback" not in run.console


def test_a_run_killed_before_its_evaluation_is_only_evaluated(uninterrupted, tmp_path):
    output = tmp_path / "output"
    words = (*LENGTH, *AUGMENTED)
    run = Run(tmp_path, output, *words)
    run.wait_for(lambda: _marker(output) == "model_final.pth")
    os.kill(run.process.pid, signal.SIGKILL)
    run.wait()
    (output / "results.json").unlink(missing_ok=True)
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 0, run.console
    assert json.loads((output / "results.json").read_text())["bbox"]["AP"] >= 0
    assert_same_run(final_state(output), uninterrupted)
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 1
    assert "is finished (iteration 12 of 12): raise the number" in run.console


def test_a_run_killed_between_its_last_two_checkpoints_gets_the_final_one(uninterrupted, tmp_path):
    output = tmp_path / "output"
    words = (*LENGTH, *AUGMENTED)
    run = Run(tmp_path, output, *words)
    assert run.wait() == 0, run.console
    (output / "model_final.pth").unlink()
    (output / "results.json").unlink()
    (output / "last_checkpoint").write_text("model_0000011.pth")
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 0, run.console
    assert_same_run(final_state(output), uninterrupted)
    assert (output / "results.json").is_file()


def _damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "bit", "empty", "absent"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(uninterrupted, tmp_path, how):
    output = tmp_path / "output"
    run = Run(tmp_path, output, *LENGTH, *AUGMENTED)
    run.wait_for(lambda: (output / "model_0000005.pth").is_file())
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 0, run.console
    newest = output / _marker(output)
    _damage(newest, how)
    run = Run(tmp_path, output, "--resume", *LENGTH, *AUGMENTED)
    assert run.wait() == 0, run.console
    assert f"checkpoint {newest} is damaged (" in run.console
    assert "the one before" in run.console
    assert_same_run(final_state(output), uninterrupted)


def test_nothing_to_resume_is_an_error(tmp_path):
    run = Run(tmp_path, tmp_path / "output", "--resume", *LENGTH)
    assert run.wait() == 1
    assert f"--resume: there is no checkpoint in {tmp_path}/output" in run.console
    assert run.console.count("\n") < 8


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    output = tmp_path / "output"
    run = Run(tmp_path, output, "SOLVER.MAX_ITER", "2")
    assert run.wait() == 0, run.console
    for file in output.glob("model_*.pth"):
        _damage(file, "cut")
    run = Run(tmp_path, output, "--resume", *LENGTH)
    assert run.wait() == 1
    assert f"error: every checkpoint in {output} is damaged" in run.console


def test_a_changed_config_is_shown_and_holds(tmp_path):
    output = tmp_path / "output"
    run = Run(tmp_path, output, "SOLVER.MAX_ITER", "4")
    assert run.wait() == 0, run.console
    words = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "5e-4", "SOLVER.WEIGHT_DECAY", "0.1")
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 0, run.console
    for line in ("MAX_ITER: 4 -> 6", "BASE_LR: 0.001 -> 0.0005", "WEIGHT_DECAY: 0.05 -> 0.1"):
        assert f"SOLVER.{line}" in run.console
    assert "SOLVER.CHECKPOINT_PERIOD" not in run.console.replace("--resume", "")
    groups = final_state(output)["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {5e-4}
    assert 0.1 in {group["weight_decay"] for group in groups}


def test_a_start_that_failed_leaves_the_record_of_the_run(tmp_path):
    output = tmp_path / "output"
    assert Run(tmp_path, output, "SOLVER.MAX_ITER", "4").wait() == 0
    config, marker = (output / "config.yaml").read_text(), _marker(output)
    finished = ("--resume", "SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "5e-4")
    absent = ("MODEL.WEIGHTS", "/absent.pth", "SOLVER.BASE_LR", "0.5")
    other = ("--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth"))
    for words, status in ((finished, 1), (absent, 1), ((*other, "TEST.SCORE", "0.9"), 0)):
        run = Run(tmp_path, output, *words)
        assert run.wait() == status, run.console
        assert (output / "config.yaml").read_text() == config
        assert _marker(output) == marker
    (output / "last_checkpoint").unlink()
    changed = ("--resume", "SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "5e-4")
    run = Run(tmp_path, output, *changed)
    assert run.wait() == 0, run.console
    for line in ("MAX_ITER: 4 -> 6", "BASE_LR: 0.001 -> 0.0005"):
        assert f"SOLVER.{line}" in run.console


def test_without_a_marker_the_most_iterations_count_and_not_a_name(tmp_path):
    def checkpoint(name, iteration):
        content = {"model": {}, "trainer": {}, "iteration": iteration}
        torch.save(content, tmp_path / name)

    checkpoint("model_final.pth", 5)
    checkpoint("model_0000009.pth", 9)
    assert newest_checkpoint(tmp_path).name == "model_0000009.pth"
    checkpoint("model_final.pth", 11)
    assert newest_checkpoint(tmp_path).name == "model_final.pth"
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    assert newest_checkpoint(tmp_path).name in ("model_final.pth", "model_0000009.pth")


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / ".writing-abc.pth").write_bytes(b"half")
    run = Run(tmp_path, output, "SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "0")
    assert run.wait() == 0, run.console
    assert not list(output.glob(".writing-*"))
    assert (output / "model_final.pth").is_file()


def test_the_folder_records_what_ran(tmp_path):
    output = tmp_path / "output"
    for words in (("SOLVER.MAX_ITER", "2"), ("--resume", "SOLVER.MAX_ITER", "3")):
        run = Run(tmp_path, output, *words)
        assert run.wait() == 0, run.console
    starts = json.loads((output / "run.json").read_text())
    assert len(starts) == 2
    assert starts[1]["config_changes"] == ["SOLVER.MAX_ITER: 2 -> 3"]
    assert starts[0]["seed"] == 1
    assert starts[0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert starts[0]["versions"]["detectron2"]
    assert starts[0]["git"] is None or len(starts[0]["git"]["commit"]) == 40
    fingerprints = starts[0]["datasets"]
    assert set(fingerprints) == {"shapes_train", "shapes_minival"}
    for name, found in fingerprints.items():
        file = next((tmp_path / "datasets").rglob(f"{name}.json"))
        digest = os.popen(f"sha256sum {file}").read().split()[0]
        assert found == {"annotation_file": str(file), "sha256": digest}


def test_a_data_set_whose_file_is_gone_is_told_by_its_records(tmp_path):
    MetadataCatalog.get("gone").json_file = str(tmp_path / "gone.json")
    DatasetCatalog.register("gone", lambda: [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}])
    try:
        found = fingerprint("gone")
    finally:
        DatasetCatalog.remove("gone")
        MetadataCatalog.remove("gone")
    assert found["images"] == 2 and len(found["sha256"]) == 64


def test_a_random_seed_is_kept_over_an_interruption(tmp_path):
    output = tmp_path / "output"
    words = ("SEED", "-1", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    run = Run(tmp_path, output, *words)
    assert run.wait() == 0, run.console
    final = final_state(output)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    (output / "model_final.pth").unlink()
    run = Run(tmp_path, output, "--resume", *words)
    assert run.wait() == 0, run.console
    assert_same_run(final_state(output), final)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(tmp_path):
    output = tmp_path / "output"
    if os.geteuid() != 0 or os.system(f"mkdir {output} && mount -t tmpfs -o size=26m t {output}"):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        run = Run(tmp_path, output, "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "1")
        status = run.wait()
        assert status == 1, run.console
        assert "No space left on device" in run.console or "cannot be written" in run.console
        assert "Traceback" not in run.console
        kept = output / _marker(output)
        assert torch.load(kept, weights_only=True)["iteration"] == int(kept.stem[6:])
        assert not list(output.glob(".writing-*"))
    finally:
        os.system(f"umount {output}")


def test_a_signal_that_code_in_c_makes_an_error_of_is_a_signal_still(capsys):
    def job(args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:  # as bindings do with what a callback raises
            raise RuntimeError("conversion failed") from error

    args = argument_parser().parse_args(["--config-file", "a", "--eval-only"])
    assert run_job(job, args) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
