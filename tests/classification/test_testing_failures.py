"""Tests of a classifier that run out of memory, and images that would make them."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.classification import Errors, ImageSet, Protocol, read_tree, run_test
from resnext_det.errors import UserError
from tests.classification.classifiers import CLASSES, make_tree

SMALL = Protocol(size=32, resize=32)


def first_class(images):
    """Logits of a network that finds the first class in every image."""
    return torch.eye(1, len(CLASSES)).expand(len(images), -1)


class InDataWorkers(ImageSet):
    """Seven images that cannot be read."""

    def name(self, index):
        return str(index)


class Killed(InDataWorkers):
    def read(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class WithoutMemory(InDataWorkers):
    def read(self, index):
        raise MemoryError


def run(model, images, **options):
    return run_test(model, images, SMALL, {"all": Errors()}, **options)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_is_one_line_with_the_batch_and_the_workers(error, tmp_path):
    def model(images):
        raise error

    message = "^out of memory with --batch 5 --workers 0: lower these, or test smaller images$"
    with pytest.raises(UserError, match=message) as caught:
        run(model, read_tree(make_tree(tmp_path / "val")), batch=5)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Killed,
            r"^a data worker died \(DataLoader worker .*\), most often for want of memory, with",
        ),
        (WithoutMemory, "^out of memory with"),
    ],
)
def test_so_is_it_in_a_data_worker(kind, message):
    images = kind(Path("val"), CLASSES, np.arange(len(CLASSES)))
    with pytest.raises(UserError, match=f"{message} --batch 3 --workers 1: lower these") as caught:
        run(first_class, images, batch=3, workers=1)
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback(tmp_path):
    def model(images):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="^shapes cannot be multiplied$"):
        run(model, read_tree(make_tree(tmp_path / "val")))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_resizing_makes_too_large_is_named_or_left_out(workers, tmp_path):
    root = make_tree(tmp_path / "val")
    Image.new("RGB", (1, 90000)).save(root / "bee/1.png")
    message = (
        "^cannot use image .*/bee/1.png: 1 x 90000 pixels resized to a shorter side of 32 are "
        r"32 x 2880000, more than \d+ \(--skip N leaves out"
    )
    with pytest.raises(UserError, match=message):
        run(first_class, read_tree(root), workers=workers)
    outcome = run(first_class, read_tree(root), workers=workers, skip=1)
    assert (outcome.images, len(outcome.unreadable)) == (13, 1)
