"""Which process of a job this is, by the variables of torchrun and Slurm."""

import pytest

from resnext_det.engine.cluster import Place, is_restarted, place_of_process
from resnext_det.errors import UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "12",
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
    assert place_of_process({**SLURM, "SLURM_NTASKS": "1"}) is None
    assert place_of_process(SLURM, own_processes=2) is None


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
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"SLURM_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_restart_is_known(environment, restarted):
    assert is_restarted(environment) == restarted
