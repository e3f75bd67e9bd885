"""Submitting the training job to Slurm by submitit, and queueing it again when its time is up.

Slurm's notice before the time limit, SIGUSR2, makes the job stop as SIGTERM does: after the
iteration, with a checkpoint. Then submitit queues it again, and it goes on from there.
"""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from ..config import load_config
from ..errors import UserError, one_line
from .job import train_or_evaluate
from .launch import argument_parser, run_job
from .slurm import Resources

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """A command that runs a job of training.

    Attributes:
        command: what it is called on a command line.
        parser: of its own words.
        job: what it runs.
    """

    command: str
    parser: Callable[[], argparse.ArgumentParser]
    job: Callable[[argparse.Namespace], object]


TRAIN_NET = Program("tools/train_net.py", argument_parser, train_or_evaluate)

# Slurm kills a task whose job is preempted or cancelled some time after SIGTERM (GraceTime,
# KillWait); one that ended by itself before would count as finished, and not be queued again.
_PATIENCE_SECONDS = 300


class SubmittedTask:
    """One task of the job, which submitit runs on its node; what the program's command does.

    Attributes:
        words: the command line of the program.
        program: which one.
        restarted: whether the job ran before, and so goes on from its checkpoint if it has one.
    """

    def __init__(
        self, words: Sequence[str], program: Program = TRAIN_NET, *, restarted: bool = False
    ) -> None:
        self.words = list(words)
        self.program = program
        self.restarted = restarted
        self._asked = False  # to be queued again
        self._finished = False

    def __call__(self) -> int:
        """Run it.

        Returns:
            0; a user's mistake ends the process with status 1 after its line.
        """
        submitit = import_submitit()
        environment = submitit.JobEnvironment()
        number = getattr(signal, f"SIG{environment.USR_SIG}")
        requeue = signal.getsignal(number)
        bypass = signal.getsignal(signal.SIGTERM)  # while nothing is trained
        if callable(requeue):  # not so where submitit debugs in its own process
            signal.signal(number, self._stop_then(requeue, bypass))
        status = self._run()
        if status:
            sys.exit(status)
        if self._finished or environment.global_rank != 0 or not callable(requeue):
            return 0
        self._wait_until_asked()
        requeue(number, None)  # ends the process
        return 0

    def checkpoint(self) -> object:
        """Submitit asks what to run next: the same, from the job's own checkpoint."""
        again = SubmittedTask(self.words, self.program, restarted=True)
        return import_submitit().helpers.DelayedSubmission(again)

    def _run(self) -> int:
        args = self.program.parser().parse_args(self.words)
        args.restarted = self.restarted
        before, sys.argv = (
            sys.argv,
            [self.program.command, *self.words],
        )  # what reports and records show
        try:
            return run_job(self._train, args)
        finally:
            sys.argv = before

    def _train(self, args: argparse.Namespace) -> None:
        cfg = load_config(args.config_file, args.opts)
        results = Path(cfg.OUTPUT_DIR) / "results.json"
        before = _stamp(results)
        self.program.job(args)
        self._finished = _stamp(results) not in (None, before)  # not so if a signal stopped it

    def _stop_then(self, requeue: Callable, bypass: object) -> Callable:
        own = os.getpid()

        def handle(number: int, frame: FrameType | None) -> None:
            self._asked = True
            if self._finished or os.getpid() != own:  # Slurm signals data workers, too
                return
            if signal.getsignal(signal.SIGTERM) is not bypass:
                signal.raise_signal(signal.SIGTERM)  # training writes a checkpoint and returns
            else:
                requeue(number, frame)  # there is nothing to save

        return handle

    def _wait_until_asked(self) -> None:
        """Wait for Slurm, after a SIGTERM without its notice.

        It is not for us to tell a preemption from a cancellation, which must not be undone.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._asked:
            if time.monotonic() > end:
                logger.warning("stopped, and Slurm has not asked for more: the job ends here")
                sys.exit(128 + signal.SIGTERM)
            time.sleep(0.1)


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def import_submitit() -> ModuleType:
    """Import submitit, which only this job needs.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import submitit
        import submitit.helpers
    except ImportError as error:
        raise UserError(
            f"submitit is not installed: {shlex.quote(sys.executable)} -m pip install submitit"
        ) from error
    return submitit


def submission_parser(programs: Sequence[Program] = (TRAIN_NET,)) -> argparse.ArgumentParser:
    """The options before `--`; what follows it is the job's command line."""
    parser = argparse.ArgumentParser(
        usage="submit_slurm.py [options] -- --config-file FILE [KEY VALUE ...]",
        description="Submit training to Slurm: one task a GPU; it is queued again at its time "
        "limit and goes on from its checkpoint.",
    )
    add = parser.add_argument
    commands = [program.command for program in programs]
    add("--tool", choices=commands, default=commands[0], help=f"to run (default {commands[0]})")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="each gets a task")
    add("--tasks-per-node", type=int, metavar="N", help="without GPUs: processes on CPUs")
    add("--cpus-per-task", type=int, metavar="N", help="cores of each task, data workers included")
    add("--mem", metavar="SIZE", help="memory of a node, e.g. 200G")
    add("--hours", type=float, default=24, help="time limit (default 24)")
    add("--requeues", type=int, default=10, metavar="N", help="time limits to outlive (default 10)")
    add("--partition")
    add("--account")
    add("--name", default="resnext_det", help="in the queue (default resnext_det)")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any option of sbatch")
    add("--folder", type=Path, default=Path("output/slurm"), help="for logs, shared by all nodes")
    add("--dry-run", action="store_true", help="print the batch script and submit nothing")
    return parser


def submit(command_line: Sequence[str], programs: Sequence[Program] = (TRAIN_NET,)) -> str:
    """Submit the job, or with `--dry-run` show what would be.

    Args:
        command_line: of `submission_parser()`, `--`, and of the program.
        programs: that can be submitted, the default first.

    Returns:
        For the user: the job's number and logs, or the batch script.

    Raises:
        UserError: for resources or a config that cannot be, or without submitit or Slurm.
    """
    own, words = _split(command_line)
    args = submission_parser(programs).parse_args(own)
    program = next(program for program in programs if program.command == args.tool)
    resources = _resources(args)
    if args.requeues < 0:
        raise UserError(f"--requeues {args.requeues} must not be negative")
    check_words(words, resources, program)
    submitit = import_submitit()
    task = f"{resources.processes} tasks of: {shlex.join(['python', program.command, *words])}"
    if args.dry_run:
        return f"{batch_script(resources, args.folder)}\n# {task}"
    try:
        executor = submitit.SlurmExecutor(args.folder, max_num_timeout=args.requeues)
        executor.update_parameters(**resources.parameters())
        job = executor.submit(SubmittedTask(words, program))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Slurm takes no job from here: {one_line(error)}") from error
    return (
        f"submitted job {job.job_id}, {task}\nlogs: {job.paths.stdout}\nstop: scancel {job.job_id}"
    )


def batch_script(resources: Resources, folder: Path) -> str:
    """The file that sbatch is given."""
    import_submitit()
    from submitit.slurm.slurm import _make_sbatch_string  # SlurmExecutor asks for srun

    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    return _make_sbatch_string(command=command, folder=folder, **resources.parameters())


def check_words(words: Sequence[str], resources: Resources, program: Program) -> None:
    """Refuse a job's command line before it waits in a queue.

    Raises:
        UserError: for a config or override that is none, a batch that the tasks cannot share, or
            processes of its own.
    """
    args = program.parser().parse_args(words)
    if not args.config_file:
        raise UserError(
            "--config-file is missing after --, e.g. configs/faster_rcnn_X50_32x4d.yaml"
        )
    if args.num_gpus != 1 or args.num_machines != 1:
        raise UserError(
            "--num-gpus and --num-machines stand not after --: --nodes, --gpus-per-node and "
            "--tasks-per-node say how many tasks there are"
        )
    cfg = load_config(args.config_file, args.opts)
    batch = cfg.SOLVER.IMS_PER_BATCH
    if not (args.eval_only or args.auto_scale) and batch % resources.processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} (the total) cannot be shared by {resources.processes} "
            f"tasks: use a multiple of {resources.processes}"
        )


def _split(command_line: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(command_line)
    if "--" in words:
        at = words.index("--")
        return words[:at], words[at + 1 :]
    if {"-h", "--help"} & set(words):
        return words, []
    raise UserError("the job's own words stand after --, e.g. -- --config-file configs/...")


def _resources(args: argparse.Namespace) -> Resources:
    more = []
    for pair in args.sbatch:
        key, equals, value = pair.partition("=")
        if not (key.strip("-") and equals):
            raise UserError(f"--sbatch {pair}: say KEY=VALUE, e.g. qos=long")
        more.append((key.strip("-"), value))
    fields = (
        *("nodes", "hours", "gpus_per_node", "tasks_per_node", "cpus_per_task"),
        *("mem", "partition", "account", "name"),
    )
    return Resources(**{field: getattr(args, field) for field in fields}, more=tuple(more))
