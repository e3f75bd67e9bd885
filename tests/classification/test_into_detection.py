"""A trained classifier's file as MODEL.WEIGHTS of detectors, and tested by itself."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import resnext_det
from resnext_det.classification import load_classifier
from resnext_det.errors import UserError
from resnext_det.modeling import ImageClassifier
from resnext_det.modeling.classifier import saved_module
from resnext_det.weights import StrictCheckpointer, settings_of
from tests.helpers import randomise

SIZES = {
    "DEPTH": 26,
    "NUM_GROUPS": 8,
    "WIDTH_PER_GROUP": 4,
    "STEM_OUT_CHANNELS": 32,
    "RES2_OUT_CHANNELS": 64,
}
DETECTORS = (
    "mask_rcnn_X50_32x4d_FPN",
    "retinanet_X50_32x4d_FPN",
    "faster_rcnn_X50_32x4d",
    "quick/faster_rcnn_X26_8x4d_FPN",
)


def small(name, *, residual=True, **resnets):
    """A shipped config as an X-26-8x4d of few channels, for RGB images of ImageNet's mean."""
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    for key, value in {**SIZES, **resnets}.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.MODEL.RESNEXT.RESIDUAL = residual
    imagenet = resnext_det.get_cfg("classification/X50_32x4d_imagenet1k")
    cfg.INPUT.FORMAT = imagenet.INPUT.FORMAT
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = imagenet.MODEL.PIXEL_MEAN, imagenet.MODEL.PIXEL_STD
    return cfg


def trained(folder, cfg=None):
    """(classifier, file) as `tools/train_classifier.py` leaves it, of random weights."""
    cfg = cfg or small("classification/X50_32x4d_imagenet1k")
    model = randomise(ImageClassifier(cfg)).eval()
    checkpointer = StrictCheckpointer(
        saved_module(model), str(folder), settings=settings_of(cfg), trainer=torch.nn.Linear(1, 1)
    )
    checkpointer.save("model_final", iteration=9)
    return model, folder / "model_final.pth"


def cifar(*, residual=True):
    cfg = resnext_det.get_cfg("classification/quick/X29_8x4d_cifar10")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNEXT.RESIDUAL = residual
    return cfg


def load(cfg, file):
    model = build_model(cfg).eval()
    StrictCheckpointer(model, settings=settings_of(cfg)).load(str(file))
    return model


def refusal(cfg, file):
    with pytest.raises(UserError) as caught:
        load(cfg, file)
    return str(caught.value)


def image():
    """RGB (H, W, 3), uint8; both sides are multiples of every stride."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (64, 96, 3), generator=generator).byte()


@torch.no_grad()
def stages_of(classifier, pixels):
    network = classifier.network
    x = pixels.permute(2, 0, 1)[None].float()
    inner = classifier.classifier
    x = network.stem((x - inner.pixel_mean) / inner.pixel_std)
    found = {}
    for name, stage in zip(network.stage_names, network.stages, strict=True):
        x = found[name] = stage(x)
    return found


@torch.no_grad()
def stages_in_detector(model, pixels):
    x = model.preprocess_image([{"image": pixels.permute(2, 0, 1)}]).tensor
    if hasattr(model.backbone, "bottom_up"):
        return model.backbone.bottom_up(x)
    found = model.backbone(x)
    return {**found, "res5": model.roi_heads.res5(found["res4"])}


@pytest.mark.parametrize("name", [*DETECTORS, "faster_rcnn_X50_32x4d_DC5"])
def test_every_tensor_of_the_classifier_arrives(name, tmp_path):
    classifier, file = trained(tmp_path)
    torch.manual_seed(1)
    cfg = small(name)
    fresh = build_model(cfg)
    torch.manual_seed(1)
    model = load(cfg, file)
    left = {n: t for n, t in classifier.network.state_dict().items() if "num_batches" not in n}
    assert set(left) >= {"linear.weight", "stem.conv1.norm.running_var", "res5.1.conv3.weight"}
    heads = fresh.state_dict()
    for full, tensor in model.state_dict().items():
        short = full.removeprefix("roi_heads.").removeprefix("backbone.").removeprefix("bottom_up.")
        if short in left:
            assert torch.equal(tensor, left.pop(short)), full
        elif "num_batches" not in full:
            assert torch.equal(tensor, heads[full]), full  # as random as before
    assert set(left) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("name", [*DETECTORS, "faster_rcnn_X50_32x4d_DC5"])
def test_detectron2_loads_the_file_by_itself(name, tmp_path):
    classifier, file = trained(tmp_path)
    model = build_model(small(name))
    DetectionCheckpointer(model).load(str(file))
    left = {n: t for n, t in classifier.network.state_dict().items() if "num_batches" not in n}
    for full, tensor in model.state_dict().items():
        short = full.removeprefix("roi_heads.").removeprefix("backbone.").removeprefix("bottom_up.")
        if short in left:
            assert torch.equal(tensor, left.pop(short)), full
    assert set(left) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("residual", [True, False])
def test_a_detectors_features_are_the_classifiers(name, residual, tmp_path):
    trained_with = small("classification/X50_32x4d_imagenet1k", residual=residual)
    classifier, file = trained(tmp_path, trained_with)
    found = stages_in_detector(load(small(name, residual=residual), file), image())
    expected = stages_of(classifier, image())
    assert found and set(found) <= set(expected)
    for stage, features in found.items():
        scale = expected[stage].abs().max().item()
        torch.testing.assert_close(features, expected[stage], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            8,
            "MODEL.RESNETS is X-26-8x8d and the file's variant is X-26-8x4d.",
        ),
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is BGR and the file's channel_order is RGB."),
        (
            "MODEL.PIXEL_MEAN",
            [103.5, 116.25, 123.5],
            "MODEL.PIXEL_MEAN is [103.5, 116.25, 123.5] and the file's pixel_mean is "
            "[123.675, 116.28, 103.53].",
        ),
        (
            "MODEL.PIXEL_STD",
            [1.0, 1.0, 1.0],
            "MODEL.PIXEL_STD is [1, 1, 1] and the file's pixel_std is [58.395, 57.12, 57.375].",
        ),
    ],
)
def test_another_config_than_the_classifiers_is_refused(key, value, message, tmp_path):
    _, file = trained(tmp_path)
    cfg = small("mask_rcnn_X50_32x4d_FPN")
    cfg.merge_from_list([key, value])
    first, *lines_to_paste = refusal(cfg, file).splitlines()
    assert message in first and str(file) in first
    assert first.endswith("paste into the config:") and lines_to_paste


@pytest.mark.parametrize("name", ["mask_rcnn_X50_32x4d_FPN", "faster_rcnn_X50_32x4d"])
@pytest.mark.parametrize("residual", [True, False])
def test_shortcuts_in_one_of_both_alone_are_refused(name, residual, tmp_path):
    _, file = trained(tmp_path, small("classification/X50_32x4d_imagenet1k", residual=residual))
    message = refusal(small(name, residual=not residual), file)
    assert "\n" not in message
    assert "one of them has shortcuts, the other none (MODEL.RESNEXT.RESIDUAL)" in message
    assert "res2.0.shortcut.weight" in message


@pytest.mark.parametrize("name", ["mask_rcnn_X50_32x4d_FPN", "faster_rcnn_X50_32x4d"])
def test_a_cifar_networks_file_is_of_no_use_to_detectors(name, tmp_path):
    _, file = trained(tmp_path, cifar())
    cfg = small(name)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]
    message = refusal(cfg, file)
    assert "\n" not in message
    assert "the file's variant is X-29-8x4d. No detector has such a network." in message


def test_a_file_starts_another_classifier_of_its_variant(tmp_path):
    classifier, file = trained(tmp_path)
    cfg = small("classification/X50_32x4d_imagenet1k")
    cfg.CLASSIFIER.NUM_CLASSES = 3  # another task: a new last layer
    model = ImageClassifier(cfg)
    StrictCheckpointer(saved_module(model), settings=settings_of(cfg)).load(str(file))
    for name, tensor in model.network.state_dict().items():
        if not name.startswith("linear.") and "num_batches" not in name:
            assert torch.equal(tensor, classifier.network.state_dict()[name]), name
    assert model.network.linear.weight.shape[0] == 3


# Tested by themselves


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", ["imagenet", "cifar"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_trained_classifier_is_tested_as_it_was_trained(kind, residual, order, tmp_path):
    cfg = (
        cifar(residual=residual)
        if kind == "cifar"
        else small("classification/X50_32x4d_imagenet1k", residual=residual)
    )
    cfg.INPUT.FORMAT = order
    classifier, file = trained(tmp_path, cfg)
    loaded = load_classifier(str(file))
    assert loaded.network.residual is residual
    assert loaded.network.is_cifar is (kind == "cifar")
    assert loaded.network.name == ("X-29-8x4d" if kind == "cifar" else "X-26-8x4d")
    assert loaded.network.num_classes == (10 if kind == "cifar" else 1000)
    assert (loaded.source, loaded.expected.channel_order) == ("resnext_det", order)
    assert loaded.expected.pixel_mean == pytest.approx(tuple(cfg.MODEL.PIXEL_MEAN))
    pixels = image()[None]
    if kind == "cifar":
        pixels = pixels[:, :32, :32]
    with torch.no_grad():
        expected = classifier([{"image": pixels[0].permute(2, 0, 1)}])
        found = loaded.model(pixels)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
