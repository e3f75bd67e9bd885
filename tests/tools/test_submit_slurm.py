"""`tools/submit_slurm.py`: the batch script, and jobs run by submitit and stand-ins for Slurm."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from resnext_det.classification import training
from resnext_det.data import shapes
from resnext_det.engine.slurm import Resources, first_host
from resnext_det.engine.submission import (
    TRAIN_NET,
    Program,
    SubmittedTask,
    batch_script,
    submit,
)
from resnext_det.errors import UserError
from tests.helpers import REPO, run_tool
from tests.tools.fake_slurm import install

submitit = pytest.importorskip("submitit")

TOOL = REPO / "tools/submit_slurm.py"
QUICK = ("--config-file", "quick/faster_rcnn_X26_8x4d_FPN")
SMALL = ("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64")
GPUS = ("--gpus-per-node", "8")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """A data root with a handful of shapes, made here as other processes would make them all."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "datasets"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node003", "node003"),
        ("node[003-010,12],other", "node003"),
        ("node[12,003-010]", "node12"),
        ("gpu-a1,gpu-b[2-3]", "gpu-a1"),
        ("gpu-st-p4d-24xlarge-[1-2]", "gpu-st-p4d-24xlarge-1"),
        ("rack[1-2]n[0-7,9]", "rack1n0"),
        ("n[01,05]-ib.cluster.local", "n01-ib.cluster.local"),
        ("localhost", "localhost"),
        (" c1-10,c1-11 ", "c1-10"),
    ],
)
def test_the_first_host_of_a_compact_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", ",a", "node[003", "node]1[", "node[a-b]", "two words"])
def test_what_is_no_list_of_nodes_is_refused(nodes):
    with pytest.raises(UserError, match=re.escape(repr(nodes))):
        first_host(nodes)


def test_the_batch_script_asks_for_a_task_a_gpu(tmp_path):
    resources = Resources(
        nodes=2, gpus_per_node=8, hours=1.5, cpus_per_task=6, mem="200G", partition="gpu",
        account="vision", more=(("qos", "long"),),
    )  # fmt: skip
    text = batch_script(resources, tmp_path)
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line}
    assert asked >= {
        "nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "time=90", "cpus-per-task=6", "mem=200G",
        "partition=gpu", "account=vision", "qos=long", "signal=USR2@180", "requeue",
    }  # fmt: skip
    (srun,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert " --kill-on-bad-exit=1 --cpus-per-task=6 " in srun
    assert srun.endswith(f"{sys.executable} -u -m submitit.core._submit {tmp_path}")


def test_on_cpus_the_tasks_are_counted_and_no_gpu_is_asked_for(tmp_path):
    resources = Resources(tasks_per_node=4)
    assert resources.processes == 4
    text = batch_script(resources, tmp_path)
    assert "ntasks-per-node=4" in text
    assert "gpus" not in text


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path):
    words = ("--nodes", 2, *GPUS, "--dry-run", "--", *QUICK, *SMALL[2:], "SOLVER.IMS_PER_BATCH", 16)
    done = run_tool(TOOL, *words, datasets=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "# 16 tasks of: python tools/train_net.py --config-file quick/faster" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (QUICK, "the job's own words stand after --"),
        (("--nodes", "0", *GPUS, "--", *QUICK), "--nodes 0 must be greater than 0"),
        (("--hours", "0", *GPUS, "--", *QUICK), "--hours 0.0 must be greater than 0"),
        (("--", *QUICK), "say --gpus-per-node, for one task each, or --tasks-per-node"),
        ((*GPUS, "--tasks-per-node", "4", "--", *QUICK), "--tasks-per-node 4 with --gpus-per-node"),
        ((*GPUS, "--mem", "lots", "--", *QUICK), "--mem 'lots' is no size in Slurm's words"),
        ((*GPUS, "--sbatch", "qos", "--", *QUICK), "--sbatch qos: say KEY=VALUE"),
        ((*GPUS, "--requeues", "-1", "--", *QUICK), "--requeues -1 must not be negative"),
        ((*GPUS, "--"), "--config-file is missing after --"),
        ((*GPUS, "--", *QUICK, "SOLVER.MAXITER", "3"), "did you mean SOLVER.MAX_ITER"),
        ((*GPUS, "--", "--num-gpus", "8", *QUICK), "--num-gpus and --num-machines stand not"),
        (
            (*GPUS, "--", *QUICK, "SOLVER.IMS_PER_BATCH", "12"),
            "SOLVER.IMS_PER_BATCH 12 (the total) cannot be shared by 8 tasks",
        ),
    ],
)
def test_a_mistake_is_named_before_the_queue(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        submit(words)
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match='Slurm takes no job from here: .*"srun"'):
        submit(("--folder", str(tmp_path), *GPUS, "--", *QUICK, "SOLVER.IMS_PER_BATCH", "8"))


def test_without_submitit_it_is_one_line_with_the_command(tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError('no submitit')")
    command = [
        *(sys.executable, TOOL, *GPUS, "--dry-run", "--", *QUICK, "SOLVER.IMS_PER_BATCH", "8")
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: submitit is not installed: {sys.executable} -m pip install submitit\n"
    )


def test_submitit_runs_the_job_in_another_process(tmp_path, datasets):
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    words = (*QUICK, *SMALL, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "output"))
    job = executor.submit(SubmittedTask(words))
    assert job.result() == 0
    assert "AP" in json.loads((tmp_path / "output/results.json").read_text())["bbox"]
    (start,) = json.loads((tmp_path / "output/run.json").read_text())
    assert start["command"].startswith("tools/train_net.py --config-file quick/")


def test_a_mistake_in_the_job_ends_it_with_its_line(tmp_path, datasets):
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    words = (*QUICK, *SMALL, "MODEL.WEIGHTS", "gone.pth", "OUTPUT_DIR", str(tmp_path / "output"))
    job = executor.submit(SubmittedTask(words))
    job.wait()
    assert job.stderr().endswith("error: MODEL.WEIGHTS gone.pth does not exist\n")


def test_the_job_runs_in_this_process_where_submitit_debugs(tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 2})
    words = (*QUICK, *SMALL, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "output"))
    words += ("DATASETS.TEST", "()")
    before = list(sys.argv)
    job = submitit.AutoExecutor(tmp_path / "logs", cluster="debug").submit(SubmittedTask(words))
    assert job.result() == 0
    assert (tmp_path / "output/model_final.pth").is_file()
    assert sys.argv == before


def test_what_is_queued_again_goes_on():
    again = SubmittedTask(["--config-file", "a"]).checkpoint()
    assert (again.function.words, again.function.restarted) == (["--config-file", "a"], True)


@pytest.fixture
def signals():
    """Leave the handlers as they were."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_notice_queues_the_job_again_at_once_where_nothing_is_trained(signals):
    heard = []
    task = SubmittedTask([])
    bypass = signal.getsignal(signal.SIGTERM)
    handle = task._stop_then(lambda number, frame: heard.append("queued again"), bypass)
    signal.signal(signal.SIGUSR2, handle)
    signal.raise_signal(signal.SIGUSR2)
    assert heard == ["queued again"]
    signal.signal(signal.SIGTERM, lambda *_: heard.append("stopped"))  # as training does
    signal.raise_signal(signal.SIGUSR2)
    assert heard == ["queued again", "stopped"]
    task._finished = True
    signal.raise_signal(signal.SIGUSR2)
    assert heard == ["queued again", "stopped"]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def signal_in_training(slurm, log, number):
    """Signal the tasks with their data workers once the first shows an iteration."""
    wait_for(lambda: log.is_file() and "iter: " in log.read_text())
    for pid in map(int, (slurm / "tasks").read_text().split()):
        os.killpg(pid, number)


@pytest.fixture
def slurm(tmp_path, monkeypatch, datasets):
    folder = install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    if not (folder / "ended").is_file() and (folder / "tasks").is_file():
        for pid in map(int, (folder / "tasks").read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def test_two_tasks_stop_at_the_time_limit_and_go_on_when_queued_again(slurm, tmp_path):
    output, logs = tmp_path / "output", tmp_path / "logs"
    words = (*QUICK, *SMALL, "SOLVER.MAX_ITER", "100", "OUTPUT_DIR", str(output))
    words += ("DATALOADER.NUM_WORKERS", "1")
    answer = submit(("--tasks-per-node", "2", "--hours", "1", "--folder", str(logs), "--", *words))
    assert answer.startswith("submitted job 17, 2 tasks of: python tools/train_net.py")
    signal_in_training(slurm, logs / "17_0_log.out", signal.SIGUSR2)
    wait_for((slurm / "ended").is_file)
    printed = (logs / "17_0_log.out").read_text()
    stopped = int(re.search(r"stopped by SIGTERM after iteration (\d+) of 100", printed)[1])
    assert 0 < stopped < 100
    assert f"model_{stopped - 1:07d}.pth at iteration {stopped} of 100" in printed
    assert (slurm / "ended").read_text() == "1"  # restarts
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 99
    assert "AP" in json.loads((output / "results.json").read_text())["bbox"]
    starts = json.loads((output / "run.json").read_text())
    assert [start["processes"] for start in starts] == [2, 2]


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(slurm, tmp_path):
    output, logs = tmp_path / "output", tmp_path / "logs"
    words = (*QUICK, *SMALL, "SOLVER.MAX_ITER", "1000", "OUTPUT_DIR", str(output))
    submit(("--tasks-per-node", "1", "--hours", "1", "--folder", str(logs), "--", *words))
    signal_in_training(slurm, logs / "17_0_log.out", signal.SIGTERM)
    wait_for((output / "last_checkpoint").is_file)
    time.sleep(1)
    (pid,) = map(int, (slurm / "tasks").read_text().split())
    os.killpg(pid, signal.SIGKILL)  # as Slurm does after a while
    wait_for((slurm / "ended").is_file)
    assert (slurm / "ended").read_text() == "0"


def test_classifiers_are_submitted_by_their_own_tool():
    tool = "tools/train_classifier.py"
    own = ["--dry-run", "--tool", tool, "--gpus-per-node", "8", "--"]
    program = Program(tool, training.argument_parser, training.train_or_evaluate)
    config = "classification/X50_32x4d_imagenet1k"
    shown = submit([*own, "--config-file", config, "--data", "imagenet"], (TRAIN_NET, program))
    words = f"8 tasks of: python {tool} --config-file {config} --data imagenet"
    assert words in shown
    with pytest.raises(UserError, match="IMS_PER_BATCH 100 .* cannot be shared by 8 tasks"):
        submit([*own, "--config-file", config, "SOLVER.IMS_PER_BATCH", "100"], (program,))
    again = SubmittedTask(["--config-file", config], program).checkpoint()
    assert again.function.program is program
