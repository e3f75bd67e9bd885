"""Stopping between two iterations, by a signal or by a hook, with a checkpoint and status 0."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(BaseException):
    """Training ends before its last iteration, on every process, and not by a failure.

    Not an `Exception`, so that Detectron2's loop does not log it as one.

    Attributes:
        reason: for the user.
        resumable: whether the run is meant to go on.
    """

    def __init__(self, reason: str, *, resumable: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.resumable = resumable


class StoppedOutsideTraining(BaseException):
    """A signal ends the job where there is nothing to write a checkpoint of.

    Attributes:
        signal: which one.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.signal = received


class StopSignals:
    """Hears SIGTERM and SIGINT for a job's whole life; only a program's main thread does.

    While training runs they are noted, and a second SIGINT interrupts at once, as Python does by
    itself. Before it, and in a job that only evaluates, the first one ends the job. After training
    was stopped they are ignored: the process is about to end.

    Attributes:
        received: the first one.
        ending: whether it ends the job.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.ending = False
        self._interrupts = 0
        self._training = False
        self._owner = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        in_main = threading.current_thread() is threading.main_thread()
        for number in _SIGNALS if in_main else ():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals in place of ending by them, while training runs; hear them if need be."""
        self._training = True
        try:
            with contextlib.nullcontext() if self._previous else self:
                yield
        finally:
            self._training = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = self.received or signal.Signals(number)
        self._interrupts += number == signal.SIGINT
        if self._training:
            if self._interrupts > 1:
                raise KeyboardInterrupt
        elif os.getpid() != self._owner:  # a data worker, which a terminal signals as well
            os._exit(0)
        elif first:
            self.ending = True
            raise StoppedOutsideTraining(self.received)

    def agreed(self) -> signal.Signals | None:
        """The signal that any process has received; every process has to ask."""
        if comm.get_world_size() == 1:
            return self.received
        highest = torch.tensor([int(self.received or 0)])
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
        return signal.Signals(highest.item()) if highest.item() else None

    def raise_if_agreed(self) -> None:
        """End an evaluation, which is done anew when the run goes on; every process has to ask.

        Raises:
            TrainingStopped: on every process, if any has received a signal.
        """
        if received := self.agreed():
            raise TrainingStopped(f"stopped by {received.name}", resumable=True)


class StopOnSignal(HookBase):
    """Ends training after the iteration in which a signal came. The last hook, and on all ranks."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def after_step(self) -> None:
        """Ask all processes, and stop."""
        received = self._signals.agreed()
        if received and self.trainer.iter + 1 < self.trainer.max_iter:
            raise TrainingStopped(f"stopped by {received.name}", resumable=True)


class StoppableEvaluator(DatasetEvaluator):
    """Another evaluator that a signal ends between two images.

    That one is built when it begins: after the loader, by which a data set may be made or moved.
    Each process asks the others once: where it is as its signal comes, or after its last image.
    """

    def __init__(self, build: Callable[[], DatasetEvaluator], signals: StopSignals) -> None:
        self._build, self._signals = build, signals

    def reset(self) -> None:
        """See `DatasetEvaluator`."""
        self._evaluator = self._build()
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """See `DatasetEvaluator`.

        Raises:
            TrainingStopped: if a signal came.
        """
        if self._signals.received:
            self._signals.raise_if_agreed()
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict:
        """See `DatasetEvaluator`.

        Raises:
            TrainingStopped: if a signal came to any process.
        """
        self._signals.raise_if_agreed()
        return self._evaluator.evaluate()


def save_last(checkpointer: Checkpointer, iteration: int) -> None:
    """Write a checkpoint of the iteration, unless its periodic one is there; on all processes."""
    name = f"model_{iteration:07d}"
    if comm.is_main_process() and checkpointer.get_checkpoint_file().endswith(f"{name}.pth"):
        return
    checkpointer.save(name, iteration=iteration)


def resume_command() -> str:
    """The command line of this program with `--resume`, to paste into a shell.

    Of torchrun and srun, whose own words are not known, only the names.
    """
    words = [word for word in sys.argv[1:] if word != "--resume"]
    command = shlex.join([sys.argv[0], "--resume", *words])
    launchers = {"TORCHELASTIC_RUN_ID": "torchrun ...", "SLURM_STEP_NUM_TASKS": "srun ... python"}
    launcher = next((name for key, name in launchers.items() if key in os.environ), "python")
    return f"{launcher} {command}"


def leave_stopping_to_the_trainer(_: int) -> None:
    """For data workers, which a terminal or Slurm signals as well.

    One that ended by a signal would make torch raise an error anywhere in the trainer. One that
    leaves quietly is missed only when the next batch is asked of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
