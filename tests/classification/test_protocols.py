"""Resizing and crops against torchvision's on the same PIL images."""

import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from resnext_det.classification.protocols import (
    Protocol,
    centre_crop,
    resize,
    resizing_for,
    ten_crops,
)
from resnext_det.errors import UserError
from resnext_det.weights.catalog import CATALOG
from tests.classification.classifiers import make_image

SIZES = [(500, 375), (375, 500), (333, 500), (300, 300), (257, 256), (256, 901), (91, 60)]
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def to_numpy(image):
    return np.asarray(image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shorter", [256, 232, 320])
@pytest.mark.parametrize("interpolation", MODES)
def test_resizing_is_torchvisions(size, shorter, interpolation):
    image = make_image(1, *size)
    theirs = transforms.Resize(shorter, MODES[interpolation])(image)
    np.testing.assert_array_equal(resize(image, shorter, interpolation), to_numpy(theirs))


@pytest.mark.parametrize("size", [*SIZES[:-1], (224, 224), (225, 224), (226, 227), (227, 229)])
def test_crops_are_torchvisions(size):
    image = make_image(2, *size)
    pixels = np.asarray(image)
    theirs = to_numpy(transforms.CenterCrop(224)(image))
    np.testing.assert_array_equal(centre_crop(pixels, 224), theirs)
    theirs = np.stack([to_numpy(crop) for crop in transforms.TenCrop(224)(image)])
    np.testing.assert_array_equal(ten_crops(pixels, 224), theirs)


@pytest.mark.parametrize("size", SIZES)
def test_one_view_is_torchvisions_preset(size):
    image = make_image(3, *size)
    preset = torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1.transforms()
    (views,) = Protocol(224, 256, "bilinear").cut(image)
    assert views.shape == (1, 224, 224, 3) and views.dtype == np.uint8
    ours = F.normalize(
        torch.from_numpy(views[0].copy()).permute(2, 0, 1) / 255, preset.mean, preset.std
    )
    # torchvision's preset resizes PIL images as PIL images, and tensors otherwise
    assert torch.equal(ours, preset(image))


def test_dense_views_are_whole_images_and_their_mirror_images():
    image = make_image(4, 100, 80)
    views = Protocol(crops="dense", scales=(64, 96)).cut(image)
    assert [v.shape for v in views] == [(2, 64, 80, 3), (2, 96, 120, 3)]
    for view, shorter in zip(views, (64, 96), strict=True):
        theirs = transforms.Resize(shorter)(image)
        np.testing.assert_array_equal(view[0], to_numpy(theirs))
        np.testing.assert_array_equal(view[1], to_numpy(F.hflip(theirs)))


@pytest.mark.parametrize("crops", ["1", "10", "dense"])
def test_an_image_that_resizing_makes_too_large_is_refused(crops):
    image = Image.new("RGB", (1500, 1))
    message = "^1500 x 1 pixels resized to a shorter side of 256 are 384000 x 256, more than 89"
    with pytest.raises(UserError, match=message):
        Protocol(crops=crops, scales=(256,)).cut(image)
    assert Protocol(size=32, resize=32).cut(image)[0].shape == (1, 32, 32, 3)


def test_the_number_of_views_is_that_of_the_arrays():
    image = make_image(5)
    for protocol in (Protocol(), Protocol(crops="10"), Protocol(crops="dense", scales=(64, 96))):
        assert sum(len(v) for v in protocol.cut(image)) == protocol.views


def torchvisions_presets():
    for name, entry in CATALOG.items():
        if entry.publisher == "torchvision":
            for weights in map(torchvision.models.get_model_weights, model_names(entry)):
                yield from ((name, w) for w in weights if w.url == entry.url)


def model_names(entry):
    if entry.variant.startswith("R-"):
        return [f"resnet{entry.variant[2:]}"]
    depth, template = entry.variant[2:].split("-")
    return [f"resnext{depth}_{template}"]


def test_torchvisions_weights_are_resized_as_its_records_say():
    presets = dict(torchvisions_presets())
    assert len(presets) == sum(e.publisher == "torchvision" for e in CATALOG.values())
    for name, weights in presets.items():
        theirs = weights.transforms()
        mode = theirs.interpolation.value
        expected = (theirs.resize_size[0], mode)
        assert resizing_for(theirs.crop_size[0], CATALOG[name], "torchvision") == expected, name


TIMM_NAMES = {"gluon": "gluon_in1k", "c1": "c1_in1k", "ra": "ra_in1k"}
TIMM_NAMES |= {tag: f"{tag}_in1k" for tag in ("a1", "a1h", "a2", "a3")}


def timms_names():
    for name, entry in CATALOG.items():
        if entry.variant == "X-101-32x48d":  # timm builds none
            continue
        arch = "resnext" + entry.variant[2:].replace("-", "_")
        if entry.publisher == "timm":
            yield name, f"{arch}.{TIMM_NAMES[name.rsplit('.', 1)[1]]}"
        elif entry.publisher in ("ssl", "swsl", "wsl"):
            data = {"ssl": "yfcc100m", "swsl": "ig1b", "wsl": "ig1b"}[entry.publisher]
            yield name, f"{arch}.fb_{entry.publisher}_{data}_ft_in1k"


@pytest.mark.parametrize("name, theirs", list(timms_names()))
def test_timms_weights_are_resized_as_its_records_say(name, theirs):
    config = timm.get_pretrained_cfg(theirs)
    assert config is not None
    # timm tests at test_input_size; the crop_pct that goes with 224 pixels is what we need
    at_224 = config.test_input_size == (3, 224, 224)
    crop_pct = config.test_crop_pct if at_224 and config.test_crop_pct else config.crop_pct
    expected = (math.floor(224 / crop_pct), config.interpolation)
    assert resizing_for(224, CATALOG[name], "timm") == expected


def test_other_weights_are_resized_as_their_layouts_trainers_did():
    assert resizing_for(224, None, "torch7") == (256, "bicubic")  # fb.resnet.torch
    assert resizing_for(224, None, "resnext_det") == (256, "bilinear")
    assert resizing_for(224, CATALOG["authors/X-101-64x4d"], "torch7") == (256, "bicubic")
    assert resizing_for(224, CATALOG["openmmlab/X-50-32x4d"], "torchvision") == (256, "bicubic")


def test_at_320_the_shorter_side_is_the_crops():
    for entry in (None, *CATALOG.values()):
        assert resizing_for(320, entry, "torchvision")[0] == 320


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crops": "5"}, "crops 5 is not one of 1, 10, dense"),
        ({"interpolation": "area"}, "interpolation area is not bilinear or bicubic"),
        ({"size": 16}, "size 16 is not in 32..4096 pixels"),
        ({"scales": (224, 9000)}, "scales 9000 is not in 32..4096 pixels"),
        ({"scales": ()}, "scales: name at least one"),
        ({"size": 320}, "resize 256 is less than size 320: no crop fits the image"),
    ],
)
def test_an_impossible_protocol_is_one_line(values, message):
    with pytest.raises(UserError, match=message):
        Protocol(**values)
