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
