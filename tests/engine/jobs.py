"""Training jobs in processes of their own, which tests signal and kill."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from resnext_det.data import shapes
from resnext_det.engine import argument_parser, run_job, train_or_evaluate

# imports everything once; each job is then forked from it in no time
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.engine.jobs"])

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
SMALL = (
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "1e-3", "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "0",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20",
)  # fmt: skip


def small_shapes(datasets: Path, images: int = 8) -> None:
    """Let the embedded data set be a handful of images, drawn below `datasets`."""
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    shapes.SPLIT_SIZES = {"shapes_train": images, "shapes_minival": 4}


def _main(words: tuple[str, ...], datasets: Path, console: Path) -> None:
    with console.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    sys.argv = ["tools/train_net.py", *words]
    small_shapes(datasets)
    raise SystemExit(run_job(train_or_evaluate, argument_parser().parse_args(words)))


class Run:
    """A job of the quick config in a process; its console goes to a file.

    Attributes:
        process: what to signal.
        output: its `OUTPUT_DIR`.
    """

    def __init__(self, root: Path, output: Path, *words: str, config: str = QUICK) -> None:
        self.output = output
        self._console = root / f"console-{time.monotonic_ns()}.txt"
        flags = [w for w in words if w.startswith("--")]
        pairs = [w for w in words if not w.startswith("--")]
        arguments = (*flags, "--config-file", config, *SMALL, "OUTPUT_DIR", str(output), *pairs)
        datasets = root / "datasets"
        self.process = _CONTEXT.Process(target=_main, args=(arguments, datasets, self._console))
        self.process.start()

    def wait(self, seconds: float = 100) -> int:
        """The exit status; a job that takes longer is killed."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"the job did not end in {seconds} s:\n{self.console}")
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], bool], seconds: float = 100) -> None:
        """Wait till something is so, while the job runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"the job ended before:\n{self.console}"
            assert time.monotonic() < end, f"the job did not get there:\n{self.console}"
            time.sleep(0.01)

    @property
    def console(self) -> str:
        """What it printed so far, on stdout and stderr."""
        with contextlib.suppress(FileNotFoundError):
            return self._console.read_text()
        return ""


def final_state(output: Path) -> dict:
    """The last checkpoint of a finished run."""
    return torch.load(output / "model_final.pth", weights_only=True)


def assert_same_run(first: dict, second: dict) -> None:
    """Compare weights, optimiser and iteration of two checkpoints bit by bit."""
    assert first["iteration"] == second["iteration"]
    assert first["model"].keys() == second["model"].keys()
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    states = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (first, second)]
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][index][name]), (index, name)
