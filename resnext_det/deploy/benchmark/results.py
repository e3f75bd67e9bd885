"""What a benchmark found, as JSON can hold it."""

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from .agreement import Agreement
from .memory import Memory
from .settings import BASELINE, TITLES, Settings

_PACKAGES = ("torch", "torchvision", "openvino", "onnxruntime", "nncf", "resnext_det")


@dataclass(frozen=True)
class Rate:
    """Images per second.

    Attributes:
        batch: images in a call.
        streams: calls at the same time.
        images_per_second: the median.
    """

    batch: int
    streams: int
    images_per_second: float


@dataclass
class Row:
    """One side of one scope; what was not measured is None.

    Attributes:
        name: one of `TITLES`.
        missing: why it could not be measured, e.g. what to install.
        seconds: of each timed call with one image.
        make_s: seconds of compiling, and of quantising or exporting if that was part of it.
        first_s: seconds of the first call.
        new_size_s: seconds of the first call with an image of another size.
        flops_share: of the rate of a float32 matrix product, of a backbone.
        difference: of a backbone's maps from the baseline's, see `compare_maps`.
        agreement: of a detector's results with the baseline's.
        rates: for each number of images in a call, and of streams.
        memory: in a process of its own.
    """

    name: str
    missing: str | None = None
    seconds: list[float] = field(default_factory=list)
    make_s: float | None = None
    first_s: float | None = None
    new_size_s: float | None = None
    flops_share: float | None = None
    difference: float | None = None
    agreement: Agreement | None = None
    rates: list[Rate] = field(default_factory=list)
    memory: Memory | None = None

    @property
    def title(self) -> str:
        """What tables call the side."""
        return TITLES[self.name]

    @property
    def median(self) -> float:
        """Seconds an image."""
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        """Seconds that nine of ten calls stay below."""
        return float(np.percentile(self.seconds, 90))

    def rate(self, batch: int, streams: int) -> float | None:
        """Images per second."""
        for rate in self.rates:
            if (rate.batch, rate.streams) == (batch, streams):
                return rate.images_per_second
        return None


@dataclass
class Report:
    """All that a benchmark found.

    Attributes:
        settings: what was asked for.
        machine: see `describe_machine`.
        height: of the image, in pixels.
        width: likewise.
        rows: of each scope.
        multiply_adds: of the backbone for the image; None where it was not timed.
        peak_flops_per_s: rate of a float32 matrix product; None where it was not timed.
        parts: seconds of each part of each side, see `time_parts`.
        forms: seconds of each form of Fig. 3, see `time_forms`.
    """

    settings: Settings
    machine: dict[str, object]
    height: int
    width: int
    rows: dict[str, list[Row]] = field(default_factory=dict)
    multiply_adds: int | None = None
    peak_flops_per_s: float | None = None
    parts: dict[str, dict[str, float | None]] = field(default_factory=dict)
    forms: dict[str, dict[str, float]] = field(default_factory=dict)

    def ratio(self, scope: str, row: Row) -> float:
        """How many times as fast as the baseline of the same scope a side is."""
        baseline = next(r for r in self.rows[scope] if r.name == BASELINE)
        return baseline.median / row.median

    def as_json(self) -> dict:
        """Plain values, with medians and ratios."""
        content = asdict(self)
        content["settings"]["image"] = self.settings.image and str(self.settings.image)
        for scope, rows in self.rows.items():
            for row, item in zip(rows, content["rows"][scope], strict=True):
                measured = bool(row.seconds)
                item["title"] = row.title
                item["median_s"] = row.median if measured else None
                item["p90_s"] = row.p90 if measured else None
                item["ratio"] = self.ratio(scope, row) if measured else None
        return content


def describe_machine() -> dict[str, object]:
    """The CPU, its cores, torch's threads, and versions; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or None
    return next((ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name")), None)
