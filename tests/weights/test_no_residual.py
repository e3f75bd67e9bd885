"""Files of networks without shortcuts (Section 5.1), and files that have lost theirs."""

import pytest
import torch
import torchvision
from torchvision.models.resnet import Bottleneck

from resnext_det.classification import load_classifier
from resnext_det.errors import UserError
from resnext_det.modeling import ResNeXt
from resnext_det.weights import StrictCheckpointer
from resnext_det.weights.convert import convert_file, export_file
from resnext_det.weights.recipe import IMAGENET, Settings
from tests.helpers import randomise


def trained_here(folder, *, residual=False, without=()):
    """(network, file) of an X-26-4x4d, as this package writes it; `without` parts of names."""
    network = randomise(ResNeXt(26, 4, 4, residual=residual, num_classes=7)).eval()
    expected = (IMAGENET.channel_order, IMAGENET.pixel_mean, IMAGENET.pixel_std)
    checkpointer = StrictCheckpointer(
        network, str(folder), settings=Settings("X-26-4x4d", *expected)
    )
    weights = network.state_dict()
    kept = {name: t for name, t in weights.items() if not any(part in name for part in without)}
    checkpointer.save_weights("trained", kept)
    return network, folder / "trained.pth"


def refusal(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 64, 64, 3), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def logits(network, pixels):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.pixel_mean, IMAGENET.pixel_std))
    return network((pixels.permute(0, 3, 1, 2) - mean) / std)["linear"]


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_network_without_shortcuts_passes_the_conversion_and_its_proof(tmp_path):
    network, file = trained_here(tmp_path)
    report = convert_file(file, tmp_path / "again.pth", channel_order="BGR")
    assert list(report.differences) == ["res2", "res3", "res4", "res5", "linear"]
    loaded = load_classifier(str(tmp_path / "again.pth"))
    assert not loaded.network.residual and loaded.expected.channel_order == "BGR"
    assert_close(loaded.model(images()), logits(network, images()))
    ordinary = ResNeXt(26, 4, 4, num_classes=7).eval()
    incompatible = ordinary.load_state_dict(network.state_dict(), strict=False)
    assert all(".shortcut." in name for name in incompatible.missing_keys)
    assert not torch.allclose(logits(ordinary, images()), logits(network, images()), rtol=0.1)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_no_library_has_such_a_network(library, tmp_path):
    _, file = trained_here(tmp_path)
    message = refusal(export_file, file, tmp_path / "out.pth", library)
    assert message.endswith(f"{library} has no network without shortcuts")
    assert not (tmp_path / "out.pth").exists()


def without_shortcuts(folder):
    """torchvision's file of an X-26-4x4d, without its downsample tensors."""
    network = torchvision.models.ResNet(
        Bottleneck, [2, 2, 2, 2], num_classes=7, groups=4, width_per_group=4
    )
    whole = randomise(network).state_dict()
    kept = {name: tensor for name, tensor in whole.items() if ".downsample." not in name}
    assert len(whole) - len(kept) == 4 * 6
    torch.save(kept, folder / "public.pth")
    return folder / "public.pth"


@pytest.mark.parametrize("read", ["load", "convert"])
def test_a_publishers_file_that_has_lost_all_shortcuts_is_refused(read, tmp_path):
    file = without_shortcuts(tmp_path)
    out = tmp_path / "out.pth"
    message = (
        refusal(load_classifier, str(file)) if read == "load" else refusal(convert_file, file, out)
    )
    assert (
        f"{file} does not make a X-26-4x4d: 20 tensors missing: res2.0.shortcut.weight" in message
    )
    assert not out.exists()


def test_so_is_one_in_detectron2s_names_that_says_nothing_of_itself(tmp_path):
    network, _ = trained_here(tmp_path)
    torch.save({"model": network.state_dict()}, tmp_path / "bare.pth")
    message = refusal(load_classifier, str(tmp_path / "bare.pth"))
    assert "20 tensors missing: res2.0.shortcut.weight" in message


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        (("res3.0.shortcut.",), "5 tensors missing: res3.0.shortcut.weight"),
        (("shortcut.norm.bias",), "4 tensors missing: res2.0.shortcut.norm.bias"),
        (("res5.1.conv2.weight",), "1 tensors missing: res5.1.conv2.weight"),
    ],
)
def test_a_network_trained_here_that_has_lost_some_tensors_is_refused(without, missing, tmp_path):
    _, file = trained_here(tmp_path, residual=True, without=without)
    assert missing in refusal(load_classifier, str(file))


def test_a_network_without_shortcuts_that_lacks_a_layer_is_refused(tmp_path):
    _, file = trained_here(tmp_path, without=("res4.1.conv1.norm.weight",))
    message = refusal(load_classifier, str(file))
    assert "1 tensors missing: res4.1.conv1.norm.weight" in message
