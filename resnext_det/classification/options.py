"""How a test is to be made: what the user says, filled up with what the weights say."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from .network import LoadedClassifier
from .protocols import DENSE_SCALES, Protocol, resizing_for
from .testing import BATCH

_GPU_WORKERS = 4


@dataclass(frozen=True)
class EvaluationOptions:
    """What the command line says; None leaves it to the weights or the machine.

    Attributes:
        size: side of the crops in pixels; by default that of the run that trained the weights,
            of others 224, or 32 for CIFAR networks.
        crops: "1", "10" or "dense".
        scales: shorter sides in pixels, for "dense" alone.
        resize: shorter side in pixels before a crop.
        interpolation: "bilinear" or "bicubic".
        classes: a class list of ImageNet-5K, for weights trained on it.
        limit: only so many images, evenly spaced.
        batch: crops that go through the network at once.
        workers: processes that read images. By default 4 beside a GPU and none beside a network on
            the CPU, whose threads they would disturb.
        device: e.g. "cuda", "cpu"; by default a GPU where there is one.
        skip: how many images that cannot be read may be left out.
    """

    size: int | None = None
    crops: str = "1"
    scales: Sequence[int] | None = None
    resize: int | None = None
    interpolation: str | None = None
    classes: Path | None = None
    limit: int | None = None
    batch: int = BATCH
    workers: int | None = None
    device: str | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: for numbers out of range, or options that do not go together.
        """
        for name, least in (("limit", 1), ("batch", 1), ("workers", 0), ("skip", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: at least {least}")
        if self.crops == "dense" and (self.size, self.resize) != (None, None):
            raise UserError(
                "--crops dense takes whole images: give --scales, not --size or --resize"
            )
        if self.crops != "dense" and self.scales is not None:
            raise UserError("--scales goes with --crops dense alone")

    def workers_beside(self, device: torch.device) -> int:
        """How many processes read images."""
        if self.workers is not None:
            return self.workers
        return min(_GPU_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0


def protocol_for(loaded: LoadedClassifier, options: EvaluationOptions) -> Protocol:
    """Fill up what the options leave open.

    Raises:
        UserError: for values out of range, or more than a crop of a CIFAR image.
    """
    if loaded.network.is_cifar and options.crops != "1":
        raise UserError(
            f"--crops {options.crops}: {loaded.network.name} is a CIFAR network, tested on whole "
            "images, --crops 1"
        )
    record = loaded.record
    usual = loaded.network.input_size if record is None else record.size
    size = usual if options.size is None else options.size
    if record is None:
        shorter, interpolation = resizing_for(size, loaded.published, loaded.source)
    else:
        shorter = record.resize if size == record.size else size
        interpolation = record.interpolation
    return Protocol(
        size=size,
        resize=shorter if options.resize is None else options.resize,
        interpolation=options.interpolation or interpolation,
        crops=options.crops,
        scales=DENSE_SCALES if options.scales is None else tuple(options.scales),
    )


def find_device(name: str | None) -> torch.device:
    """The device of that name, by default a GPU where there is one.

    Raises:
        UserError: if it cannot be used.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    if device.type == "meta":
        raise UserError("--device meta computes nothing: use cpu or cuda")
    return device
