"""The memory that a side needs, in a process that does nothing else."""

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ...quiet import silence_deprecations
from .networks import Networks
from .settings import Settings
from .sides import Sides

_STATM = Path("/proc/self/statm")
_INTERVAL = 0.002  # seconds between looks at the memory


@dataclass(frozen=True)
class Memory:
    """Peaks of resident memory in MiB, beyond what the process had after its imports.

    Attributes:
        make: while the model was built and compiled.
        run: while it ran two images, after what only building needed was let go.
    """

    make: float
    run: float


def is_measurable() -> bool:
    """Whether the system tells a process's memory; Linux does."""
    return _STATM.is_file()


def measure_memory(
    settings: Settings, scope: str, name: str, quantized: Path | None = None
) -> Memory:
    """Build and run one side in a new process on as many threads as this one has.

    Args:
        settings: of the benchmark.
        scope: one of `SCOPES`.
        name: one of `TITLES`.
        quantized: see `Sides`.

    Raises:
        BrokenProcessPool: if the system ended the process, as for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_measure, settings, scope, name, quantized, threads).result()


def _measure(
    settings: Settings, scope: str, name: str, quantized: Path | None, threads: int
) -> Memory:
    silence_deprecations()
    torch.set_num_threads(threads)
    before = _resident()
    with _peak() as make:
        networks = Networks(settings)
        side = Sides(networks, scope, quantized).make(name)
    image = networks.image[None]
    if scope == "backbone":
        image = networks.normalised(image)
    del networks
    gc.collect()
    with _peak() as run:
        for _ in range(2):
            side(image)
    return Memory(*((peak[0] - before) / 2**20 for peak in (make, run)))


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """Look at the memory again and again: `ru_maxrss` would tell the parent's of a new process."""
    peak = [_resident()]
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], _resident())
            time.sleep(_INTERVAL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
