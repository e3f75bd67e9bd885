"""Top-1 and top-5 errors against hand-made cases and against sorting."""

import numpy as np
import pytest
import torch

from resnext_det.classification.topk import Errors, ranks
from resnext_det.errors import UserError


def test_ranks_of_hand_made_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert ranks(logits, torch.tensor([0, 0, 2])).tolist() == [0, 2, 1]


def test_a_tie_counts_against_the_network():
    errors = Errors()
    errors.add(torch.zeros(4, 10), torch.tensor([0, 3, 5, 9]))
    assert (errors.top1, errors.top5) == (100, 100)
    errors = Errors()
    # two ahead, two equal: the third to fifth place, the worst counts
    errors.add(torch.tensor([[9.0, 9, 5, 5, 5, 1, 0]]), torch.tensor([3]))
    assert (errors.top1, errors.top5) == (100, 0)
    errors.add(torch.tensor([[9.0, 9, 5, 5, 5, 5, 0]]), torch.tensor([3]))
    assert (errors.top1, errors.top5) == (100, 50)


def test_batches_add_up_to_what_sorting_says():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 20)).astype(np.float32)
    labels = rng.integers(0, 20, 200)
    errors = Errors()
    for start in range(0, 200, 64):
        part = slice(start, start + 64)
        errors.add(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    order = np.argsort(-logits, axis=1)
    assert errors.images == 200
    assert errors.top1 == 100 * np.mean(order[:, 0] != labels)
    right5 = [label in row for row, label in zip(order[:, :5], labels, strict=True)]
    assert errors.top5 == pytest.approx(100 * (1 - np.mean(right5)))


def test_top5_of_five_classes_says_nothing():
    errors = Errors()
    errors.add(torch.eye(5), torch.tensor([0, 1, 2, 3, 0]))
    assert errors.top1 == 20 and errors.top5 is None


def test_only_the_first_outputs_compete_for_those_who_ask():
    # 3 classes of "1K", 4 others; the right one is class 1 each time
    logits = torch.tensor(
        [
            [0.0, 5, 1, 9, 0, 0, 0],  # an other is first
            [0.0, 5, 1, 0, 0, 0, 0],  # right both ways
            [6.0, 5, 1, 0, 0, 0, 0],  # one of the 1K is first
            [0.0, 5, 1, 9, 8, 7, 6],  # four others: still among five
            [6.0, 5, 1, 9, 8, 7, 6],  # four others and one of the 1K: the sixth
        ]
    )
    labels = torch.ones(5, dtype=torch.long)
    whole, among_first = Errors(), Errors(first=3)
    for errors in (whole, among_first):
        errors.add(logits, labels)
    assert (whole.top1, whole.top5) == (80, 20)
    assert (among_first.top1, among_first.top5) == (40, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_not_right(value):
    logits = torch.zeros(1, 10)
    logits[0, 4] = value
    with pytest.raises(UserError, match="logits are not finite"):
        Errors().add(logits, torch.tensor([4]))
