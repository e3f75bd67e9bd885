"""Several processes: the same results as one, and an end when one of them dies."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resnext_det.data import shapes
from resnext_det.data.stream import BatchStream
from tests.engine.jobs import QUICK, SMALL, Run, assert_same_run, final_state, small_shapes
from tests.helpers import REPO

TRAIN_NET = str(REPO / "tools/train_net.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")

# A process averages its loss over its samples. With the same number of samples in every image, and
# none drawn at random, the average over processes is that over all images.
ALIKE = (
    *SMALL, "SOLVER.OPTIMIZER", "SGD", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "6",
    "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "100000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "False", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "10", "INPUT.MIN_SIZE_TRAIN", "(48,64)",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a handful of drawn images in `datasets`."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", dict(shapes.SPLIT_SIZES))
        patch.setenv("DETECTRON2_DATASETS", "")
        small_shapes(folder / "datasets")
        shapes.shapes_folder()
    return folder


def start(root, output, *command, words=(), prefix=(), **environment):
    """Start a command of the quick config in the background; its console goes to a file."""
    own = ("--config-file", QUICK, *ALIKE, "OUTPUT_DIR", str(output), *words)
    console = (root / f"{output.name}.txt").open("a")
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(root / "datasets"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    return subprocess.Popen(
        (*prefix, *command, *own), stdout=console, stderr=console, env=environment, cwd=root
    )


def console(root, output):
    return (root / f"{output.name}.txt").read_text()


def losses(output):
    rows = [json.loads(line) for line in (output / "metrics.json").open()]
    found = [row["total_loss"] for row in rows if "total_loss" in row]
    assert found
    return found


@pytest.fixture(scope="module")
def alone(root):
    """The run in one process."""
    run = Run(root, root / "alone", *ALIKE)
    assert run.wait() == 0, run.console
    return run.output


@pytest.fixture(scope="module")
def by_torchrun(root):
    """The run in two processes of torchrun."""
    output = root / "torchrun"
    job = start(root, output, *TORCHRUN, "--standalone", "--nproc-per-node", "2", TRAIN_NET)
    assert job.wait(150) == 0, console(root, output)
    return output


@pytest.fixture(scope="module")
def by_num_gpus(root):
    """The run in two processes of its own."""
    output = root / "num_gpus"
    job = start(root, output, sys.executable, TRAIN_NET, "--num-gpus", "2")
    assert job.wait(150) == 0, console(root, output)
    return output


@pytest.mark.parametrize("way", ["by_torchrun", "by_num_gpus"])
def test_two_processes_train_as_one_does_with_the_same_batch(way, alone, request):
    together = request.getfixturevalue(way)
    assert (together / "log.txt.rank1").is_file()
    torch.testing.assert_close(losses(together), losses(alone), rtol=1e-5, atol=1e-6)
    one, two = final_state(alone)["model"], final_state(together)["model"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def _children(pid):
    """Processes of torchrun's agent or of our launcher, which run the job, in order of start."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def _wait_for(condition, job, root, output):
    for _ in range(1500):
        if condition():
            return
        assert job.poll() is None, console(root, output)
        time.sleep(0.1)
    pytest.fail(f"it did not get there:\n{console(root, output)}")


def _ranks(agent):
    """The two processes of a job that have begun to train."""
    found = []
    for pid in _children(agent.pid):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if "train_net" in command or "spawn_main" in command:  # not multiprocessing's tracker
            found.append(pid)
    return found


def test_an_elastic_run_survives_the_killing_of_a_rank(root, by_torchrun):
    output = root / "elastic"
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    job = start(root, output, *TORCHRUN, *options, TRAIN_NET)
    _wait_for((output / "model_0000001.pth").is_file, job, root, output)
    os.kill(_ranks(job)[1], signal.SIGKILL)
    assert job.wait(150) == 0, console(root, output)
    assert "the job was started again: going on from its checkpoint" in console(root, output)
    assert len(json.loads((output / "run.json").read_text())) == 2
    assert_same_run(final_state(output), final_state(by_torchrun))
    assert losses(output)[-1] == losses(by_torchrun)[-1]
    assert "error: another process of the job died" in console(root, output)
    assert "[rank0]: Traceback" not in console(root, output)


def test_a_machine_that_joins_lets_the_run_go_on(root):
    output = root / "joined"
    options = ("--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3")
    options += ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29657", "--rdzv-id", "j")
    command = (*TORCHRUN, *options, "--rdzv-conf", "last_call_timeout=2", TRAIN_NET)
    words = ("SOLVER.MAX_ITER", "400", "SOLVER.CHECKPOINT_PERIOD", "10")
    # two agents of one machine would wait for each other's store
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    first = start(root, output, *command, words=words, **environment)
    _wait_for((output / "model_0000009.pth").is_file, first, root, output)
    second = start(root, output, *command, words=words, **environment)
    try:
        assert first.wait(200) == 0, console(root, output)
    finally:
        second.kill()
        second.wait()
    starts = json.loads((output / "run.json").read_text())
    assert [each["processes"] for each in starts] == [1, 2]
    assert "the job was started again: going on from its checkpoint" in console(root, output)
    assert not list(output.glob("previous-*"))
    assert final_state(output)["iteration"] == 399


def test_several_processes_evaluate_the_model_that_they_save(root):
    """With batch norm in training each process has statistics of its own images."""
    output = root / "statistics"
    command = (sys.executable, TRAIN_NET, "--num-gpus", "2")
    words = ("MODEL.RESNETS.NORM", "BN", "SOLVER.BASE_LR", "3e-3", "SOLVER.EMA_DECAY", "0.5")
    job = start(root, output, *command, words=words)
    assert job.wait(150) == 0, console(root, output)
    found = json.loads((output / "inference/coco_instances_results.json").read_text())
    weights = ("MODEL.WEIGHTS", str(output / "model_final_ema.pth"))
    alone = root / "statistics_alone"
    job = start(root, alone, *command[:2], "--eval-only", words=(*words, *weights))
    assert job.wait(150) == 0, console(root, alone)
    again = json.loads((alone / "inference/coco_instances_results.json").read_text())
    key = lambda d: (d["image_id"], -d["score"])  # noqa: E731
    assert len(found) == len(again) > 0
    for one, other in zip(sorted(found, key=key), sorted(again, key=key), strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_port_in_use_is_one_line(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        output = root / "port"
        flags = ("--num-gpus", "2", "--dist-url", url)
        job = start(root, output, sys.executable, TRAIN_NET, *flags)
        assert job.wait(100) == 1, console(root, output)
    last = console(root, output).strip().splitlines()[-1]
    assert last.startswith(f"error: the processes cannot meet at {url}: its port is in use")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_ends_the_job_within_a_minute(root, victim):
    output = root / f"dead{victim}"
    words = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "2")
    job = start(root, output, sys.executable, TRAIN_NET, "--num-gpus", "2", words=words)
    _wait_for((output / "model_0000001.pth").is_file, job, root, output)
    os.kill(_ranks(job)[victim], signal.SIGKILL)
    killed = time.monotonic()
    assert job.wait(60) == 1, console(root, output)
    assert time.monotonic() - killed < 60
    last = console(root, output).strip().splitlines()[-1]
    assert last.startswith(f"error: process {victim} of 2 died (")
    assert "SIGKILL" in last
    assert "--resume" in last


def test_a_signal_stops_all_processes_with_a_checkpoint(root, by_num_gpus):
    output = root / "stopped"
    command = (sys.executable, TRAIN_NET, "--num-gpus", "2")
    job = start(root, output, *command)
    _wait_for((output / "model_0000001.pth").is_file, job, root, output)
    job.send_signal(signal.SIGTERM)
    assert job.wait(100) == 0, console(root, output)
    if not (output / "results.json").is_file():
        assert "go on from the checkpoint in" in console(root, output)
        job = start(root, output, *command, "--resume")
        assert job.wait(100) == 0, console(root, output)
    assert_same_run(final_state(output), final_state(by_num_gpus))


@pytest.fixture
def two_nodes():
    """Two network namespaces that are linked by a virtual cable."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"resnext{os.getpid()}{side}" for side in "ab"]
    cable = [f"rx{os.getpid()}{side}"[:15] for side in "ab"]
    commands = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", cable[0], "type", "veth", "peer", "name", cable[1]],
    ]
    for number, (name, device) in enumerate(zip(names, cable, strict=True), 1):
        inside = ["ip", "-n", name]
        commands += [
            ["ip", "link", "set", device, "netns", name],
            [*inside, "addr", "add", f"10.77.0.{number}/24", "dev", device],
            [*inside, "link", "set", device, "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")
        yield list(zip(names, cable, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_nodes_train_as_one_machine_does(root, two_nodes, by_torchrun):
    output = root / "nodes"
    jobs = []
    for number, (node, device) in enumerate(two_nodes):
        options = ("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1")
        meeting = ("--master-addr", "10.77.0.1", "--master-port", "29511")
        jobs.append(
            start(
                root,
                output,
                *(*TORCHRUN, *options, *meeting, TRAIN_NET),
                prefix=("ip", "netns", "exec", node),
                GLOO_SOCKET_IFNAME=device,
            )
        )
    for job in jobs:
        assert job.wait(150) == 0, console(root, output)
    assert_same_run(final_state(output), final_state(by_torchrun))
    assert json.loads((output / "run.json").read_text())[0]["processes"] == 2


def test_slurms_tasks_find_each_other(root, by_torchrun):
    output = root / "slurm"
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
    }
    jobs = [
        start(
            *(root, output, sys.executable, TRAIN_NET),
            **{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    for job in jobs:
        assert job.wait(150) == 0, console(root, output)
    assert_same_run(final_state(output), final_state(by_torchrun))


def test_the_order_of_the_images_does_not_depend_on_the_processes(monkeypatch):
    def part(rank, processes, accumulate=1, start=0):
        monkeypatch.setattr("resnext_det.data.stream.comm.get_rank", lambda: rank)
        monkeypatch.setattr("resnext_det.data.stream.comm.get_world_size", lambda: processes)
        stream = BatchStream(
            lambda seed: itertools.cycle(range(seed, seed + 11)),
            images_per_batch=8,
            accumulate=accumulate,
            groups=[index % 2 for index in range(16)],
            seed=3,
        )
        stream.start = start
        return list(itertools.islice(stream, 4 * accumulate))

    whole = part(0, 1)
    halves = [part(rank, 2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    quarters = part(0, 1, accumulate=4)
    in_order = [[*itertools.chain(*quarters[i : i + 4])] for i in range(0, 16, 4)]
    assert in_order == whole
    assert part(0, 1, start=2)[:2] == whole[2:]
    assert all(len({index % 2 for _, index in batch}) == 1 for batch in whole)
    seeds = [seed for batch in whole for seed, _ in batch]
    assert len(set(seeds)) == len(seeds)
