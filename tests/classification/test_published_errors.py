"""Published errors beside measured ones."""

import pytest

from resnext_det.classification.protocols import Protocol
from resnext_det.classification.published import published_errors
from resnext_det.weights.catalog import CATALOG

TV = CATALOG["torchvision/X-50-32x4d"]
X101 = CATALOG["authors/X-101-64x4d"]


def figures(*args):
    return [(p.top1, p.top5) for p in published_errors(*args)]


def test_the_publishers_and_the_papers_stand_side_by_side():
    found = published_errors("X-50-32x4d", TV, Protocol(), "1K")
    assert [(p.top1, p.top5) for p in found] == [(22.382, 6.302), (22.2, None)]
    assert [p.told_by for p in found] == [
        "publisher of torchvision/X-50-32x4d",
        "paper, Table 3, its X-50-32x4d",
    ]


def test_at_320_only_the_paper_has_figures():
    protocol = Protocol(size=320, resize=320)
    assert figures("X-101-64x4d", X101, protocol, "1K") == [(19.1, 4.4)]
    assert figures("X-50-32x4d", TV, protocol, "1K") == []


def test_table_6_is_for_networks_of_5000_classes():
    assert figures("X-101-32x4d", None, Protocol(), "5K-way") == [(40.1, 15.1)]
    assert figures("X-101-32x4d", None, Protocol(), "1K-way") == [(22.2, 5.7)]
    assert figures("X-101-64x4d", None, Protocol(), "5K-way") == []


@pytest.mark.parametrize("crops", ["10", "dense"])
def test_more_crops_have_none(crops):
    assert figures("X-101-64x4d", X101, Protocol(crops=crops), "1K") == []


def test_the_authors_files_have_the_papers_errors():
    """Two sources of the same figures: the README's accuracies, and the paper's tables."""
    for entry in (e for e in CATALOG.values() if e.publisher == "authors"):
        publishers, papers = figures(entry.variant, entry, Protocol(), "1K")
        assert publishers[0] == pytest.approx(papers[0])
        if publishers[1] is not None:
            assert publishers[1] == pytest.approx(papers[1])


def without_shortcuts(variant, protocol=None, way="1K"):
    found = published_errors(variant, None, protocol or Protocol(), way, residual=False)
    return [(p.told_by, p.top1, p.top5) for p in found]


@pytest.mark.parametrize("variant, top1", [("R-50", 31.2), ("X-50-32x4d", 26.1)])
def test_networks_without_shortcuts_have_the_ablations_error_alone(variant, top1):
    told_by = f"paper, Section 5.1, its {variant} without shortcuts"
    assert without_shortcuts(variant) == [(told_by, top1, None)]
    assert top1 not in [p.top1 for p in published_errors(variant, None, Protocol(), "1K")]


@pytest.mark.parametrize(
    ("variant", "protocol", "way"),
    [
        ("R-101", Protocol(), "1K"),
        ("X-50-32x4d", Protocol(size=320, resize=320), "1K"),
        ("X-50-32x4d", Protocol(crops="10"), "1K"),
        ("X-50-32x4d", Protocol(), "5K-way"),
        ("X-50-32x4d", Protocol(), "1K-way"),
        ("X-50-32x4d", Protocol(), "7 classes"),
    ],
)
def test_elsewhere_networks_without_shortcuts_have_none(variant, protocol, way):
    assert without_shortcuts(variant, protocol, way) == []
