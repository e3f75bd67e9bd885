"""Running a classifier over a tree of images."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..engine.failures import explain_dead_worker, is_out_of_memory
from ..errors import UserError, one_line
from .image_set import ImageSet
from .protocols import Protocol
from .topk import Errors

logger = logging.getLogger(__name__)

BATCH = 32  # crops a pass: less than half a GB for X-101-64x4d at 224 pixels

# Groups of views of one size, each (N * V, H, W, 3) uint8, image by image; labels (N,); and what
# was wrong with images that could not be read
Batch = tuple[list[Tensor], Tensor, list[str]]
Model = Callable[[Tensor], Tensor]


@dataclass
class Outcome:
    """What a test found.

    Attributes:
        errors: by the way of counting, in the order given.
        unreadable: a line for each image that was left out.
        seconds: it took, reading included.
    """

    errors: dict[str, Errors]
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """How many were tested."""
        return next(iter(self.errors.values())).images


class ViewsOfImages(Dataset):
    """The views of each image, (V, H, W, 3) arrays, and its label; or why it cannot be read."""

    def __init__(self, images: ImageSet, protocol: Protocol) -> None:
        self._images, self._protocol = images, protocol

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray], int] | str:
        try:
            image = self._images.read(index)
        except UserError as error:
            return str(error)
        try:
            views = self._protocol.cut(image)
        except UserError as error:
            return f"cannot use image {self._images.name(index)}: {error}"
        return views, int(self._images.labels[index])


def run_test(
    model: Model,
    images: ImageSet,
    protocol: Protocol,
    errors: dict[str, Errors],
    *,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
    workers: int = 0,
    skip: int = 0,
) -> Outcome:
    """Test a classifier.

    Args:
        model: maps (N, H, W, 3) RGB, uint8, 0..255, to logits (N, outputs), such as a `Classifier`
            in evaluation mode.
        images: to test on; their labels are indices into the outputs.
        protocol: what is cut out of them.
        errors: ways of counting, which are added to.
        device: of the model.
        batch: at most so many crops go through the network at once.
        workers: processes that read images; 0 reads them in this one.
        skip: how many images that cannot be read may be left out.

    Raises:
        UserError: for more such images than `skip`, with the first of them, if none is left, if
            logits are not finite, or for want of memory.
    """
    outcome = Outcome(errors)
    start = time.perf_counter()
    batches = _loader(images, protocol, batch, workers, device)
    try:
        with torch.inference_mode(), tqdm(total=len(images), unit="image", disable=None) as bar:
            for groups, labels, unreadable in batches:
                for reason in unreadable:
                    _leave_out(outcome.unreadable, reason, skip)
                if len(labels):
                    logits = mean_logits(model, groups, len(labels), batch, device).cpu()
                    for one in errors.values():
                        one.add(logits, labels)
                bar.update(len(labels) + len(unreadable))
    except (MemoryError, RuntimeError) as error:
        if reason := _want_of_memory(error, batch, workers):
            raise UserError(reason) from error
        raise
    outcome.seconds = time.perf_counter() - start
    if not outcome.images:
        raise UserError(f"{images.root}: no image could be read, e.g. {outcome.unreadable[0]}")
    return outcome


def mean_logits(
    model: Model, groups: Sequence[Tensor], count: int, batch: int, device: torch.device | str
) -> Tensor:
    """Average the logits of all views of each of `count` images.

    Args:
        model: see `run_test`.
        groups: each (count * V, H, W, 3), image by image, V and the size its own.
        count: of images.
        batch: crops in a pass.
        device: of the model.

    Returns:
        (count, outputs).
    """
    total, views = 0.0, 0
    for group in groups:
        logits = torch.cat([model(p.to(device, non_blocking=True)) for p in group.split(batch)])
        of_each = logits.unflatten(0, (count, -1))  # (count, V, outputs)
        total = total + of_each.sum(1)
        views += of_each.shape[1]
    return total / views


def _loader(
    images: ImageSet,
    protocol: Protocol,
    batch: int,
    workers: int,
    device: torch.device | str,
) -> DataLoader:
    # whole images differ in size, so each is a batch of its own
    at_once = 1 if protocol.crops == "dense" else max(1, batch // protocol.views)
    return DataLoader(
        ViewsOfImages(images, protocol),
        batch_size=at_once,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.device(device).type == "cuda",
    )


def _collate(items: Sequence[tuple[list[np.ndarray], int] | str]) -> Batch:
    unreadable = [item for item in items if isinstance(item, str)]
    readable = [item for item in items if not isinstance(item, str)]
    groups = [
        torch.from_numpy(np.concatenate(views))
        for views in zip(*(views for views, _ in readable), strict=True)
    ]
    return groups, torch.tensor([label for _, label in readable], dtype=torch.long), unreadable


def _want_of_memory(error: BaseException, batch: int, workers: int) -> str | None:
    """One line for a test that ran out of memory or lost a process; None for anything else."""
    if is_out_of_memory(error):
        what = "out of memory"
    elif explain_dead_worker(error):
        what = f"a data worker died ({one_line(error)}), most often for want of memory,"
    else:
        return None
    return f"{what} with --batch {batch} --workers {workers}: lower these, or test smaller images"


def _leave_out(unreadable: list[str], reason: str, skip: int) -> None:
    unreadable.append(reason)
    if skip:
        logger.warning("left out: %s", reason)
    if len(unreadable) > skip:
        if not skip:
            raise UserError(f"{reason} (--skip N leaves out up to N such images)")
        first = "; ".join(unreadable[:5])
        raise UserError(
            f"{len(unreadable)} images cannot be read, more than --skip {skip}: {first}"
        )
