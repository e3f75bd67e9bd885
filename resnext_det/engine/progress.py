"""What a run shows while it trains: a line now and then, a bar on a terminal, and its files."""

import datetime
import logging
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from tqdm import tqdm

logger = logging.getLogger(__name__)

_WINDOW = 20  # iterations that a shown value is the median of


class Throughput(HookBase):
    """Records `images_per_second` and `memory_mb`, the peak, each iteration; after the timer."""

    def __init__(self, images_per_batch: int) -> None:
        self._images = images_per_batch

    def after_step(self) -> None:
        """Record them."""
        storage = self.trainer.storage
        if "time" in storage.histories():
            seconds = storage.history("time").latest()
            storage.put_scalar("images_per_second", self._images / seconds)
        storage.put_scalar("memory_mb", peak_memory_mb(), smoothing_hint=False)


def peak_memory_mb() -> float:
    """Peak memory of this process so far in MiB: a GPU's if one is in use, or the main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def describe_progress(storage: EventStorage, max_iter: int) -> dict[str, str]:
    """What is worth showing now, by name: ETA, losses, rate, seconds, images per second, memory."""
    shown = {}
    histories = storage.histories()

    def median(name: str) -> float:
        return histories[name].median(_WINDOW) if name in histories else math.nan

    if math.isfinite(seconds := median("time")):
        left = datetime.timedelta(seconds=int(seconds * (max_iter - storage.iter - 1)))
        shown["eta"] = str(left)
    losses = [name for name in histories if "loss" in name]
    shown |= {name: f"{median(name):.4g}" for name in sorted(losses, key=_total_first)}
    if "lr" in histories:
        shown["lr"] = f"{histories['lr'].latest():.5g}"
    if math.isfinite(seconds):
        shown["time"] = f"{seconds:.4f} s"
        shown["data"] = f"{median('data_time'):.4f} s"
        shown["images/s"] = f"{median('images_per_second'):.3g}"
    if "memory_mb" in histories:
        shown["memory"] = f"{histories['memory_mb'].latest():.0f} MB"
    return shown


def _total_first(name: str) -> tuple[bool, str]:
    return name != "total_loss", name


class ProgressLine(EventWriter):
    """A line every so many iterations, into the log; on the console unless a bar is there."""

    def __init__(self, max_iter: int, *, on_console: bool) -> None:
        self._max_iter = max_iter
        self._level = logging.INFO if on_console else logging.DEBUG
        self._written = -1

    def write(self) -> None:
        """Log the line, once an iteration."""
        storage = get_event_storage()
        if storage.iter in (self._max_iter, self._written):
            return  # the last one was shown before the evaluation
        self._written = storage.iter
        shown = describe_progress(storage, self._max_iter)
        words = "  ".join(f"{name}: {value}" for name, value in shown.items())
        logger.log(self._level, "iter: %d/%d  %s", storage.iter + 1, self._max_iter, words)


class ProgressBar(HookBase):
    """A live bar on a terminal."""

    def before_train(self) -> None:
        """Show it."""
        trainer = self.trainer
        self._bar = tqdm(
            total=trainer.max_iter, initial=trainer.start_iter, unit="it", dynamic_ncols=True
        )

    def after_step(self) -> None:
        """Move it."""
        shown = describe_progress(self.trainer.storage, self.trainer.max_iter)
        names = ("total_loss", "lr", "data", "images/s", "memory")
        self._bar.set_postfix({n: shown[n] for n in names if n in shown}, refresh=False)
        self._bar.update()
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self._bar.close()  # before what the evaluation says

    def after_train(self) -> None:
        """Leave its last state on the terminal."""
        self._bar.close()


def progress_bar() -> ProgressBar | None:
    """A bar if a person looks at the console."""
    return ProgressBar() if sys.stderr.isatty() and sys.stdout.isatty() else None


class StrictJSONWriter(JSONWriter):
    """`JSONWriter` whose lines are JSON: it leaves out NaN and infinity, which JSON lacks.

    It opens its file at the first line, so that a run that is refused leaves an older one alone.
    """

    def __init__(self, json_file: str) -> None:
        self._json_file = json_file
        self._file_handle = None

    def write(self) -> None:
        """Append the newest scalars."""
        if self._file_handle is None:
            super().__init__(self._json_file)
        scalars = get_event_storage().latest()
        dropped = {k: v for k, v in scalars.items() if not math.isfinite(v[0])}
        for name in dropped:
            del scalars[name]
        try:
            super().write()
        finally:
            scalars.update(dropped)

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file_handle is not None:
            super().close()


def run_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Progress on the console, `metrics.json` and TensorBoard events in `folder`."""
    line = ProgressLine(max_iter, on_console=progress_bar() is None)
    metrics = StrictJSONWriter(str(Path(folder) / "metrics.json"))
    return [line, metrics, TensorboardXWriter(folder)]


class KeepHistory(HookBase):
    """Carries the newest values of all scalars over an interruption, for medians and reports."""

    def __init__(self) -> None:
        self._loaded: Mapping[str, list] = {}

    def before_train(self) -> None:
        """Put them where they were."""
        for name, values in self._loaded.items():
            for value, iteration in values:
                self.trainer.storage.histories()[name].update(value, iteration)

    def state_dict(self) -> dict:
        """Name -> [(value, iteration), ...]."""
        if not hasattr(self.trainer, "storage"):
            return {}
        histories = self.trainer.storage.histories()
        return {name: history.values()[-_WINDOW:] for name, history in histories.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        """See `state_dict`."""
        self._loaded = state_dict
