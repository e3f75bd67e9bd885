"""Which process of a job this is, by the variables of torchrun and Slurm."""

import os
import subprocess
import sys

import pytest

from resnext_det.engine.cluster import (
    Place,
    is_restarted,
    launcher_of_process,
    place_of_process,
)
from resnext_det.errors import UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "12",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "70001",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_TASKS_PER_NODE": "8,4",
}


def test_torchruns_variables():
    assert place_of_process(TORCHRUN) == Place(5, 8, 1, 4, "env://")
    assert place_of_process({**SLURM, **TORCHRUN}) == Place(5, 8, 1, 4, "env://")


def test_slurms_variables():
    assert place_of_process(SLURM) == Place(9, 12, 1, 4, "tcp://node07:25001")
    own = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert place_of_process(own).url == "tcp://10.0.0.1:29500"


def test_a_process_of_its_own_has_no_place():
    assert place_of_process({}) is None
    assert place_of_process({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert place_of_process(SLURM, own_processes=2) is None


def test_a_batch_script_without_srun_is_one_process_and_says_so(caplog):
    script = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert place_of_process({**script, "SLURM_PROCID": "0"}) is None
    assert "Slurm has 12 tasks for this job, and this is one process" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID is not set"),
        ({"SLURM_PROCID": "first"}, "invalid literal for int"),
        ({"SLURM_JOB_NODELIST": None}, "SLURM_JOB_NODELIST is not set"),
    ],
)
def test_a_broken_environment_is_named(change, message):
    environment = {k: v for k, v in {**SLURM, **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        place_of_process(environment)


@pytest.mark.parametrize(
    ("environment", "restarted"),
    [
        ({}, False),
        ({"SLURM_RESTART_COUNT": "0"}, False),
        ({"SLURM_RESTART_COUNT": "1"}, True),
        ({"TORCHELASTIC_RUN_ID": "none"}, True),
    ],
)
def test_a_restart_is_possible(environment, restarted):
    assert is_restarted(environment) == restarted


def test_the_launcher_of_two_starts_is_the_same_and_of_another_job_is_not():
    assert launcher_of_process({}) is None
    assert launcher_of_process({"SLURM_JOB_ID": "7"}) == launcher_of_process({"SLURM_JOB_ID": "7"})
    assert launcher_of_process({"SLURM_JOB_ID": "7"}) != launcher_of_process({"SLURM_JOB_ID": "8"})
    code = (
        "from resnext_det.engine.cluster import launcher_of_process;"
        "print(launcher_of_process({'TORCHELASTIC_RUN_ID': 'none'}))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(names) == 1
    assert f" {os.getpid()} " in names.pop()
