"""Errors on ImageNet-1K's validation set that others have published, to stand beside ours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from ..weights.catalog import PublishedWeights
from .protocols import Protocol

VALIDATION_IMAGES = 50_000

# The paper's, of one centre crop, by variant and size of the crop: top-1, top-5 and where
_PAPER = {
    ("R-50", 224): (23.9, None, "Table 3"),
    ("R-101", 224): (22.0, 6.0, "Table 5"),
    ("R-200", 224): (21.7, 5.8, "Table 5"),
    ("R-200", 320): (20.1, 4.8, "Table 5"),
    ("X-50-2x40d", 224): (23.0, None, "Table 3"),
    ("X-50-4x24d", 224): (22.6, None, "Table 3"),
    ("X-50-8x14d", 224): (22.3, None, "Table 3"),
    ("X-50-32x4d", 224): (22.2, None, "Table 3"),
    ("X-101-2x40d", 224): (21.7, None, "Table 3"),
    ("X-101-4x24d", 224): (21.4, None, "Table 3"),
    ("X-101-8x14d", 224): (21.3, None, "Table 3"),
    ("X-101-32x4d", 224): (21.2, 5.6, "Tables 3 and 4"),
    ("X-101-1x100d", 224): (21.3, 5.7, "Table 4"),
    ("X-101-2x64d", 224): (20.7, 5.5, "Table 4"),
    ("X-101-64x4d", 224): (20.4, 5.3, "Table 5"),
    ("X-101-64x4d", 320): (19.1, 4.4, "Table 5"),
}
# Section 5.1, "Residual connections", of networks without shortcuts: top-1
_PAPER_PLAIN = {"R-50": 31.2, "X-50-32x4d": 26.1}
# Table 6, trained on ImageNet-5K, one crop of 224: by variant top-1 and top-5
_PAPER_5K = {
    "5K-way": {
        "R-50": (45.5, 19.4),
        "X-50-32x4d": (42.3, 16.8),
        "R-101": (42.4, 16.9),
        "X-101-32x4d": (40.1, 15.1),
    },
    "1K-way": {
        "R-50": (27.1, 8.2),
        "X-50-32x4d": (24.4, 6.6),
        "R-101": (24.2, 6.8),
        "X-101-32x4d": (22.2, 5.7),
    },
}


Row = tuple[str, float, float | None]


@dataclass(frozen=True)
class PublishedErrors:
    """Somebody's figures.

    Attributes:
        told_by: who says so, of which network.
        top1: error in percent.
        top5: likewise, None where none is stated.
    """

    told_by: str
    top1: float
    top5: float | None

    @property
    def row(self) -> Row:
        """For `errors_table`."""
        return f"published: {self.told_by}", self.top1, self.top5


def published_errors(
    variant: str,
    published: PublishedWeights | None,
    protocol: Protocol,
    way: str,
    *,
    residual: bool = True,
) -> list[PublishedErrors]:
    """What is published of these weights, and of the paper's network of their variant.

    Args:
        variant: e.g. "X-50-32x4d".
        published: the weights' entry of the catalog, None for others.
        protocol: of the test. Only single crops have figures: the paper gives one for dense testing
            (Section 5.1: 17.7 and 3.7) and does not say of which network.
        way: "1K" for a network of ImageNet-1K's classes; "5K-way" or "1K-way".
        residual: whether the network has shortcuts.

    Returns:
        The publisher's first.
    """
    if protocol.crops != "1":
        return []
    if not residual:
        if way != "1K" or protocol.size != 224 or variant not in _PAPER_PLAIN:
            return []
        told_by = f"paper, Section 5.1, its {variant} without shortcuts"
        return [PublishedErrors(told_by, _PAPER_PLAIN[variant], None)]
    if way in _PAPER_5K:
        figures = _PAPER_5K[way].get(variant) if protocol.size == 224 else None
        return [PublishedErrors(f"paper, Table 6, its {variant}", *figures)] if figures else []
    if way != "1K":  # other classes
        return []
    found = []
    if published is not None and published.top1 is not None and protocol.size == 224:
        errors = (_error_of(accuracy) for accuracy in (published.top1, published.top5))
        found.append(PublishedErrors(f"publisher of {published.name}", *errors))
    if (variant, protocol.size) in _PAPER:
        top1, top5, where = _PAPER[variant, protocol.size]
        found.append(PublishedErrors(f"paper, {where}, its {variant}", top1, top5))
    return found


def errors_table(rows: Sequence[Row]) -> str:
    """A table of errors in percent; one that is None or NaN, as there is none, prints as "-"."""
    cells = [
        (name, *("-" if e is None or math.isnan(e) else f"{e:.2f}" for e in errors))
        for name, *errors in rows
    ]
    headers = ("error", "top-1 %", "top-5 %")
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def _error_of(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 - accuracy, 3)
