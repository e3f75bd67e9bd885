"""What Slurm is asked for, and its list of nodes. Nothing here needs Slurm or submitit."""

import math
import re
from dataclasses import dataclass

from ..errors import UserError

# Before the time limit; an iteration and the writing of a checkpoint have to fit.
_SIGNAL_SECONDS = 180
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[\]]*\])")
_FIRST_OF_RANGES = re.compile(r"\[(\d+)(?:-\d+)?(?:,\d+(?:-\d+)?)*\]")
_MEMORY = re.compile(r"\d+[KMGT]?")


def first_host(nodes: str) -> str:
    """Find the first host of Slurm's compact list of nodes, without `scontrol`.

    `node[003-010,12],other` gives `node003`; `rack[1-2]n[0-7]` gives `rack1n0`.

    Args:
        nodes: as in SLURM_JOB_NODELIST.

    Raises:
        UserError: if this is no list of nodes.
    """
    first = _COMMA_OUTSIDE_BRACKETS.split(nodes.strip(), maxsplit=1)[0]
    host = _FIRST_OF_RANGES.sub(r"\1", first)
    if not host or re.search(r"[\[\]\s,]", host):
        raise UserError(f"{nodes!r} is no list of Slurm's nodes, such as node[003-010,12]")
    return host


@dataclass(frozen=True)
class Resources:
    """What a job asks of Slurm: one task a GPU, or some a node on CPUs.

    Attributes:
        nodes: machines.
        hours: time limit, after which the job is queued again.
        gpus_per_node: 0 for CPUs.
        tasks_per_node: processes of a node; None for one a GPU.
        cpus_per_task: cores of each process; None for the partition's default.
        mem: of a node, in Slurm's words, e.g. 200G; None for the partition's default.
        partition: None for the cluster's default.
        account: None for the user's default.
        name: of the job in the queue.
        more: other options of sbatch by name, e.g. {"qos": "long"}.

    Raises:
        UserError: for a number or memory that cannot be, or as many tasks as GPUs cannot serve.
    """

    nodes: int = 1
    hours: float = 24
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    partition: str | None = None
    account: str | None = None
    name: str = "resnext_det"
    more: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for key in ("nodes", "hours", "tasks_per_node", "cpus_per_task"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{_option(key)} {value} must be greater than 0")
        if self.gpus_per_node < 0:
            raise UserError(f"--gpus-per-node {self.gpus_per_node} must not be negative")
        if not self.gpus_per_node and self.tasks_per_node is None:
            raise UserError(
                "say --gpus-per-node, for one task each, or --tasks-per-node to train on CPUs"
            )
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise UserError(
                f"--tasks-per-node {self.tasks_per_node} with --gpus-per-node "
                f"{self.gpus_per_node}: each GPU has one task"
            )
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise UserError(f"--mem {self.mem!r} is no size in Slurm's words, such as 200G")

    @property
    def processes(self) -> int:
        """Of the job, on all nodes."""
        return self.nodes * (self.gpus_per_node or self.tasks_per_node)

    def parameters(self) -> dict:
        """These resources as submitit's `SlurmExecutor.update_parameters` takes them.

        A task that fails ends the others. Tasks are told the number of their cores again, as srun
        no longer takes it from sbatch since Slurm 22.05.
        """
        srun = ["--kill-on-bad-exit=1"]
        more = dict(self.more)
        if self.cpus_per_task is not None:
            srun.append(f"--cpus-per-task={self.cpus_per_task}")
        if self.mem is not None:
            more["mem"] = self.mem
        parameters = {
            "job_name": self.name,
            "partition": self.partition,
            "account": self.account,
            "time": math.ceil(60 * self.hours),
            "nodes": self.nodes,
            "ntasks_per_node": self.gpus_per_node or self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "signal_delay_s": _SIGNAL_SECONDS,
            "srun_args": srun,
            "additional_parameters": {"requeue": True, **more},
        }
        return {key: value for key, value in parameters.items() if value is not None}


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
