"""Counting top-1 and top-5 errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many other classes are as probable as the right one or more: (N,) from 0.

    A tie counts against the network, so that one which says nothing is not right by chance of the
    order; `torch.topk` breaks ties in an order that it does not define.

    Args:
        logits: (N, classes), or probabilities.
        labels: (N,) int64.

    Raises:
        UserError: if a logit is NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise UserError("the network's logits are not finite: its weights have diverged")
    right = logits.gather(1, labels[:, None])
    return (logits >= right).sum(1) - 1


@dataclass
class Errors:
    """Top-1 and top-5 errors, counted batch by batch.

    Attributes:
        first: only this many of the outputs compete, the first ones; None for all.
        images: how many were counted.
        wrong1: of these, how many whose class is not the first.
        wrong5: of these, how many whose class is not among the first five.
        num_classes: how many outputs compete, 0 before any batch.
    """

    first: int | None = None
    images: int = 0
    wrong1: int = 0
    wrong5: int = 0
    num_classes: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (N, outputs) of the network.
            labels: (N,) int64, of classes that compete.

        Raises:
            UserError: if a logit is NaN or infinite.
        """
        logits = logits[:, : self.first]
        self.num_classes = logits.shape[1]
        rank = ranks(logits, labels)
        self.images += len(labels)
        self.wrong1 += int((rank >= 1).sum())
        self.wrong5 += int((rank >= 5).sum())

    def __add__(self, other: "Errors") -> "Errors":
        """Both counts together, of the same way of counting."""
        return Errors(
            self.first,
            self.images + other.images,
            self.wrong1 + other.wrong1,
            self.wrong5 + other.wrong5,
            max(self.num_classes, other.num_classes),
        )

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.wrong1 / self.images

    @property
    def top5(self) -> float | None:
        """In percent; None with five classes or fewer, of which one is always right."""
        return 100 * self.wrong5 / self.images if self.num_classes > 5 else None
