"""Networks with classifiers, loaded with what their weights expect."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms.functional import normalize

from resnext_det.classification import load_classifier
from resnext_det.errors import UserError
from resnext_det.modeling import CifarResNeXt
from resnext_det.weights.catalog import CATALOG
from resnext_det.weights.download import original_path
from tests.classification.classifiers import converted, small_resnext
from tests.helpers import randomise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count=2, height=64, width=72):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def assert_same_logits(loaded, network, pixels):
    ours = loaded.model(pixels)
    theirs = network(normalize(pixels.permute(0, 3, 1, 2) / 255, MEAN, STD))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name, variant", [("resnext50_32x4d", "X-50-32x4d"), ("resnet50", "R-50")])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_converted_networks_logits_are_torchvisions(name, variant, order, tmp_path):
    network = randomise(torchvision.models.get_model(name, weights=None)).eval()
    file = converted(network, tmp_path / "w.pth", channel_order=order)
    loaded = load_classifier(str(file))
    assert loaded.network.name == variant and loaded.network.num_classes == 1000
    assert loaded.expected.channel_order == order
    assert_same_logits(loaded, network, images())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_publishers_file_and_the_converted_one_give_the_same(suffix, tmp_path):
    network = small_resnext()
    converted(network, tmp_path / f"w{suffix}")
    for file in (tmp_path / f"source_of_w{suffix}", tmp_path / f"w{suffix}"):
        loaded = load_classifier(str(file))
        assert loaded.source == "torchvision" and loaded.published is None
        assert_same_logits(loaded, network, images())


def test_weights_by_name_are_known_as_the_catalogs(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path))
    entry = CATALOG["torchvision/X-50-32x4d"]
    path = original_path(entry)
    path.parent.mkdir(parents=True)
    network = randomise(torchvision.models.resnext50_32x4d(weights=None)).eval()
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = replace(entry, sha256_prefix=digest[:8])
    monkeypatch.setitem(CATALOG, entry.name, entry)
    for weights in ("resnext://torchvision/X-50-32x4d", str(path)):
        loaded = load_classifier(weights)
        assert loaded.published == entry
        assert_same_logits(loaded, network, images(1))


def test_a_cifar_networks_classifier_is_loaded_too(tmp_path):
    network = randomise(CifarResNeXt(29, 2, 4, num_classes=10)).eval()
    content = {"model": network.state_dict(), "recipe": recipe("X-29-2x4d")}
    torch.save(content, tmp_path / "cifar.pth")
    loaded = load_classifier(str(tmp_path / "cifar.pth"))
    pixels = images(2, 32, 32)
    x = (pixels.permute(0, 3, 1, 2) - torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)) / 60
    with torch.no_grad():
        theirs = network(x)["linear"]
        ours = loaded.model(pixels)
    assert loaded.network.is_cifar
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def recipe(variant):
    return {
        "variant": variant,
        "channel_order": "RGB",
        "pixel_mean": [125.3, 123.0, 113.9],
        "pixel_std": [60.0, 60.0, 60.0],
        "stride_in_1x1": False,
        "bn_eps": 1e-5,
        "source": "resnext_det",
        "source_sha256": "",
        "licence": "unknown",
        "version": 1,
    }


def test_images_are_uint8_rgb_and_normalised_by_the_files_numbers(tmp_path):
    network = small_resnext()
    loaded = load_classifier(str(converted(network, tmp_path / "w.pth")))
    grey = torch.full((1, 64, 64, 3), 124, dtype=torch.uint8)
    red = grey.clone()
    red[..., 0] = 255
    for pixels in (grey, red):
        assert_same_logits(loaded, network, pixels)
    assert not np.allclose(loaded.model(grey).numpy(), loaded.model(red).numpy())


def test_weights_without_a_classifier_are_refused(tmp_path):
    state = {k: v for k, v in small_resnext().state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth has no classifier .*nothing to test"):
        load_classifier(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "weights, message",
    [
        ("resnext://torchvision/X-50-32x4", "no published weights are named"),
        ("https://a.b/c.pth", "https://a.b/c.pth is neither a file nor resnext://NAME"),
        ("nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_weights_that_are_nowhere_are_one_line(weights, message):
    with pytest.raises(UserError, match=message) as caught:
        load_classifier(weights)
    assert "\n" not in str(caught.value)
