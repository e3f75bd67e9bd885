"""Which process of a job this one is, by the variables that torchrun and Slurm set."""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .slurm import first_host

logger = logging.getLogger(__name__)

# Slurm names no port: one from the job's number, in the range that is free for such uses
_PORTS = range(15000, 30000)


@dataclass(frozen=True)
class Place:
    """One process of a distributed job.

    Attributes:
        rank: of all processes.
        processes: how many there are.
        local_rank: of those on this machine, which is the GPU that it takes.
        local_processes: how many those are.
        url: where the processes meet, for `torch.distributed`; torchrun's is in its variables.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int
    url: str


def place_of_process(
    environment: Mapping[str, str] = os.environ, *, own_processes: int = 1
) -> Place | None:
    """Find this process's place.

    Args:
        environment: torchrun's variables go before Slurm's.
        own_processes: more than 1 if this process is to start some itself (`--num-gpus`), as in the
            batch script of a Slurm job; Slurm's tasks do not count then.

    Returns:
        None if it is no process of a job of several.

    Raises:
        UserError: if a variable is absent or no number.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return _of_torchrun(environment)
        # set by srun alone; a batch script is one process, whatever SLURM_NTASKS says
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
        if own_processes == 1 and "SLURM_PROCID" in environment and tasks > 1:
            return _of_slurm(environment, tasks)
        reserved = environment.get("SLURM_NTASKS") or "1"
        if own_processes == 1 and "SLURM_STEP_NUM_TASKS" not in environment and reserved != "1":
            logger.warning(
                "Slurm has %s tasks for this job, and this is one process: start it by srun to use "
                "them",
                reserved,
            )
    except KeyError as error:
        raise UserError(
            f"the environment names a distributed job, but {error.args[0]} is not set: start it by "
            "torchrun or srun"
        ) from error
    except ValueError as error:
        raise UserError(f"the environment of a distributed job: {error}") from error
    return None


def launcher_of_process(environment: Mapping[str, str] = os.environ) -> str | None:
    """Name what has started this process, and starts it again after a failure or a preemption.

    torchrun's counter of restarts does not count machines that join or leave, and each machine
    counts by itself; but its agent, the parent of this process, stays the same. So does the number
    of a Slurm job that is queued again.

    Returns:
        The same text for each start by the same torchrun or Slurm job; None without either.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        parent = os.getppid()
        return f"torchrun {socket.gethostname()} {parent} {_start_time(parent)}"
    if "SLURM_JOB_ID" in environment:
        return f"slurm {environment['SLURM_JOB_ID']}"
    return None


def is_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this may be a later start of the same torchrun or Slurm job.

    Always so under torchrun; `launcher_of_process` tells then whether it is one.
    """
    requeued = environment.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return requeued or "TORCHELASTIC_RUN_ID" in environment


def _start_time(process: int) -> str:
    """A process's start in Linux's ticks since boot, as numbers of processes are used again."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    return Place(
        rank=int(environment["RANK"]),
        processes=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", 0)),
        local_processes=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        url="env://",
    )


def _of_slurm(environment: Mapping[str, str], tasks: int) -> Place:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    job = int(environment.get("SLURM_JOB_ID", 0))
    port = int(environment.get("MASTER_PORT") or _PORTS[job % len(_PORTS)])
    on_node = (
        environment.get("SLURM_STEP_TASKS_PER_NODE")
        or environment.get("SLURM_TASKS_PER_NODE")
        or ""
    )
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        processes=tasks,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_processes=_tasks_on_node(on_node, int(environment.get("SLURM_NODEID", 0)), tasks),
        url=f"tcp://{address}:{port}",
    )


def _tasks_on_node(counts: str, node: int, tasks: int) -> int:
    """Read Slurm's compact counts, e.g. "8(x2),4" of three nodes; all tasks if there are none."""
    each: list[int] = []
    for part in filter(None, counts.split(",")):
        count, _, times = part.partition("(x")
        each += [int(count)] * int(times.rstrip(")") or 1)
    return each[node] if node < len(each) else tasks
