"""Telling a network from shapes, of files that hold none."""

import re
import tracemalloc

import pytest
import torch

from resnext_det import ResNeXt
from resnext_det.errors import UserError
from resnext_det.modeling import CifarResNeXt
from resnext_det.weights.network import network_of

IMAGENET = {"depth": 26, "cardinality": 8, "width": 4}
CIFAR = {"depth": 20, "cardinality": 2, "width": 8}


def tensors_of(is_cifar=False):
    with torch.device("meta"):
        network = CifarResNeXt(**CIFAR) if is_cifar else ResNeXt(**IMAGENET, num_classes=10)
        return network.state_dict()


def meta(*shape):
    return torch.empty(shape, device="meta")


def refusal_of(tensors):
    with pytest.raises(UserError) as caught:
        network_of(tensors, "w.pth")
    return str(caught.value)


@pytest.mark.parametrize("is_cifar", [False, True])
def test_sizes_are_told(is_cifar):
    network = network_of(tensors_of(is_cifar), "w.pth")
    sizes = {name: getattr(network, name) for name in IMAGENET}
    assert sizes == (CIFAR if is_cifar else IMAGENET)
    assert (network.is_cifar, network.num_classes) == (is_cifar, 10)


@pytest.mark.parametrize("is_cifar", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("linear.weight", (), "is no classifier, of (classes, channels)"),
        ("linear.weight", (10,), "is no classifier, of (classes, channels)"),
        ("linear.weight", (0, 64), "is empty: the file is damaged"),
        ("res2.0.conv2.weight", (2, 4, 3, 3), "has fewer channels than one of its groups takes"),
        ("res2.0.conv2.weight", (0, 4, 3, 3), "is empty: the file is damaged"),
        ("res2.0.conv2.weight", (4, 0, 3, 3), "is empty: the file is damaged"),
        ("stem.conv1.weight", (0, 3, 3, 3), "is empty: the file is damaged"),
        ("res3.0.conv3.weight", (0, 8, 1, 1), "is empty: the file is damaged"),
    ],
)
def test_a_shape_that_no_network_has_is_named(is_cifar, name, shape, why):
    message = refusal_of(tensors_of(is_cifar) | {name: meta(*shape)})
    assert re.match(r"w\.pth[: ]", message)
    assert f"{name} of shape {shape} {why}" in message


def test_a_missing_block_is_named_however_large_the_numbers_are():
    tensors = tensors_of() | {"res2.1000000.conv1.weight": meta(1)}
    tracemalloc.start()
    try:
        assert "res2.2 is missing: the file is incomplete" in refusal_of(tensors)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
