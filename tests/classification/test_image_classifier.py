"""Classifiers in training, against torchvision's."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

import resnext_det
from resnext_det.modeling import CifarResNeXt, ImageBatch
from resnext_det.modeling.classifier import ImageClassifier, build_classifier_network, saved_module
from tests.helpers import randomise, torchvision_name

CLASSES = 7
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)  # of RGB


def config(order="RGB", **resnets):
    """An X-26-4x4d of the paper's channels, which torchvision's class can be too."""
    cfg = resnext_det.get_cfg("classification/X50_32x4d_imagenet1k")
    cfg.MODEL.DEVICE = "cpu"
    sizes = {"DEPTH": 26, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 4}
    for key, value in {**sizes, **resnets}.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.CLASSIFIER.NUM_CLASSES = CLASSES
    cfg.INPUT.FORMAT = order
    step = 1 if order == "RGB" else -1
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(MEAN[::step]), list(STD[::step])
    return cfg


def batch(count=3, height=64, width=48, colour=None):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, height, width, 3), generator=generator)
    labels = torch.arange(count) % CLASSES
    return ImageBatch(images.byte(), labels, [f"{i}.png" for i in range(count)], colour)


def pair(order):
    """An `ImageClassifier` of random weights, and torchvision's network with the same for RGB."""
    theirs = torchvision.models.ResNet(
        Bottleneck, [2, 2, 2, 2], num_classes=CLASSES, groups=4, width_per_group=4
    )
    randomise(theirs)
    ours = ImageClassifier(config(order))
    state = ours.network.state_dict()
    converted = {name: theirs.state_dict()[torchvision_name(name)] for name in state}
    if order == "BGR":
        converted["stem.conv1.weight"] = converted["stem.conv1.weight"].flip(1)
    ours.network.load_state_dict(converted, strict=True)
    assert len(converted) == len(theirs.state_dict())
    return ours, theirs


def normalised(images):
    """RGB (N, H, W, 3) as torchvision's network takes it."""
    x = images.permute(0, 3, 1, 2).double()
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_torchvisions(order, training):
    ours, theirs = pair(order)
    theirs.train(training)
    given = batch()
    with torch.no_grad():
        expected = theirs(normalised(given.images).float())
        ours.classifier.train(training)  # statistics of the batch, or the network's own
        found = ours.eval()(given) if not training else ours.classifier(given.images)
    assert_close(found, expected)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_loss_gradients_and_statistics_are_torchvisions(order):
    ours, theirs = pair(order)
    given = batch()
    losses = ours.train().double()(given)
    assert list(losses) == ["loss_cls"]
    losses["loss_cls"].backward()
    logits = theirs.train().double()(normalised(given.images))
    expected = F.cross_entropy(logits, given.labels)
    expected.backward()
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert all(g.any() for g in gradients.values())
    for name, parameter in ours.network.named_parameters():
        gradient = gradients.pop(torchvision_name(name))
        if order == "BGR" and name == "stem.conv1.weight":
            gradient = gradient.flip(1)
        assert_close(parameter.grad, gradient, 1e-9)
    assert not gradients
    for name, tensor in ours.network.named_buffers():
        assert_close(tensor, theirs.get_buffer(torchvision_name(name)), 1e-9)


def test_images_one_by_one_in_detectron2s_form_give_the_same():
    model = randomise(ImageClassifier(config()))
    given = batch()
    dicts = [
        {"image": image.permute(2, 0, 1), "label": int(label), "file_name": "x"}
        for image, label in zip(given.images, given.labels, strict=True)
    ]
    with torch.no_grad():
        loss = model.train()(given)["loss_cls"]
        assert torch.equal(model(dicts)["loss_cls"], loss)
        logits = model.eval()(given)
        assert torch.equal(model(dicts), logits)
        assert torch.equal(model([{"image": d["image"]} for d in dicts]), logits)  # no labels
    assert logits.shape == (3, CLASSES)


def test_each_image_of_a_batch_is_a_dict_and_back():
    colour = torch.arange(36.0).view(3, 3, 4)
    for given in (batch(), batch(colour=colour)):
        items = list(given)
        assert len(items) == len(given) == 3
        assert items[1]["image"].shape == (3, 64, 48)
        assert torch.equal(items[1]["image"][0], given.images[1, :, :, 0])
        assert (items[2]["label"], items[2]["file_name"]) == (2, "2.png")
        again = ImageBatch.of(items)
        assert torch.equal(again.images, given.images) and again.images.dtype == torch.uint8
        assert torch.equal(again.labels, given.labels) and again.labels.dtype == torch.int64
        assert list(again.names) == list(given.names)
        if given.colour is None:
            assert again.colour is None
        else:
            assert torch.equal(again.colour, given.colour)
    with pytest.raises(IndexError):
        batch()[3]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_colour_maps_are_of_rgb_values_before_normalisation(order):
    generator = torch.Generator().manual_seed(2)
    colour = torch.rand((3, 3, 4), generator=generator) - 0.3
    colour[:, :, 3] *= 100
    ours, theirs = pair(order)
    given = batch(colour=colour)
    changed = torch.empty_like(given.images, dtype=torch.float32)
    for n, row, column in torch.cartesian_prod(*map(torch.arange, given.images.shape[:3])):
        matrix, offset = colour[n, :, :3], colour[n, :, 3]
        changed[n, row, column] = matrix @ given.images[n, row, column].float() + offset
    with torch.no_grad():
        expected = theirs.eval()(normalised(changed).float())
        assert_close(ours.eval()(given), expected)
        assert not torch.allclose(ours(batch()), expected, rtol=1e-2)


def test_nothing_is_done_to_colours_by_the_identity():
    model = randomise(ImageClassifier(config())).eval()
    identity = torch.eye(3, 4).expand(3, -1, -1)
    with torch.no_grad():
        assert_close(model(batch(colour=identity)), model(batch()), 1e-5)


@pytest.mark.parametrize("sizes", [(32, 4), (1, 64), (2, 40)])
@pytest.mark.parametrize("kind", ["imagenet", "cifar"])
def test_networks_start_as_the_authors_do(sizes, kind):
    torch.manual_seed(0)
    cfg = config(NUM_GROUPS=sizes[0], WIDTH_PER_GROUP=sizes[1])
    cfg.CLASSIFIER.NETWORK = kind
    if kind == "cifar":
        cfg.MODEL.RESNETS.DEPTH = 29
    network = build_classifier_network(cfg)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    depth, projections = (29, 3) if kind == "cifar" else (26, 4)
    assert len(convolutions) == len(norms) == depth - 1 + projections
    for layer in convolutions:
        assert layer.bias is None
        side = layer.kernel_size[0]
        expected = math.sqrt(2 / (side * side * layer.out_channels))
        # the standard error of a deviation from n normal numbers is 1 / sqrt(2 n) of it
        count = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
        assert abs(layer.weight.mean().item()) < 5 * expected / math.sqrt(count)
    for norm in norms:  # the last of a block too, which detectors may start at zero
        assert (norm.weight == 1).all() and not norm.bias.any()
        assert not norm.running_mean.any() and (norm.running_var == 1).all()
    assert not network.linear.bias.any() and network.linear.weight.any()


def test_checkpoints_hold_the_network_alone():
    model = ImageClassifier(config())
    assert saved_module(model) is model.network
    assert "stem.conv1.weight" in saved_module(model).state_dict()
    detector_like = nn.Linear(2, 2)
    assert saved_module(detector_like) is detector_like


def test_a_cifar_config_builds_a_network_of_its_sizes():
    cfg = resnext_det.get_cfg("classification/quick/X29_8x4d_cifar10")
    network = ImageClassifier(cfg).network
    assert isinstance(network, CifarResNeXt)
    with torch.no_grad():
        maps = network.stem(torch.zeros(1, 3, 32, 32))
        sizes = [tuple(maps.shape[1:])]
        for stage in network.stages:
            maps = stage(maps)
            sizes.append(tuple(maps.shape[1:]))
    assert sizes == [(16, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)]
