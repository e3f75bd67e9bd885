"""The benchmark compares networks with equal weights, whoever made them."""

import pytest
import torch
from detectron2.modeling.backbone import ResNet
from PIL import Image
from torchvision.models import ResNeXt50_32X4D_Weights

from resnext_det.deploy.benchmark import Settings
from resnext_det.deploy.benchmark.agreement import compare_detections, compare_maps
from resnext_det.deploy.benchmark.exported import read_onnx, write_onnx
from resnext_det.deploy.benchmark.networks import Networks, bottom_up, noise
from resnext_det.deploy.benchmark.run import count_multiply_adds
from resnext_det.deploy.benchmark.sides import Sides
from resnext_det.deploy.benchmark.torchvision_rcnn import build_backbone, build_detector
from resnext_det.errors import UserError

CONFIG = "faster_rcnn_X50_32x4d_FPN"


@pytest.fixture(scope="module")
def networks():
    return Networks(Settings(CONFIG, size=64, repeats=2))


def test_detectron2s_side_is_its_own_resnet_with_our_weights(networks):
    assert type(bottom_up(networks.detectron2)) is ResNet
    ours = networks.ours.state_dict()
    theirs = networks.detectron2.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_random_networks_detect_and_the_sides_agree(networks):
    with torch.no_grad():
        one, other = (
            model([{"image": networks.image}])[0]["instances"]
            for model in (networks.detectron2, networks.ours)
        )
    assert len(one) >= 50
    found = compare_detections(one, other)
    assert found.matched == len(one)
    assert found.box < 0.01
    assert found.score < 1e-4


def test_trained_weights_are_those_of_both_sides(networks, tmp_path):
    weights = {name: tensor + 1 for name, tensor in networks.ours.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "model.pth")
    trained = Networks(Settings(CONFIG, weights=str(tmp_path / "model.pth"), size=64))
    for model in (trained.ours, trained.detectron2):
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_torchvisions_detector_has_the_same_layers(networks):
    theirs, model = networks.detectron2, build_detector(networks.cfg, networks.detectron2)
    images = networks.normalised(networks.image[None])
    with torch.no_grad():
        expected = theirs.backbone(images)
        maps = model.backbone(images)
        assert compare_maps(list(expected.values()), list(maps.values())) < 1e-5
        features = list(expected.values())
        for one, other in zip(
            theirs.proposal_generator.rpn_head(features), model.rpn.head(features), strict=True
        ):
            assert compare_maps(one, other) < 1e-5
        pooled = torch.rand(5, 256, 7, 7)
        scores, deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        logits, boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    torch.testing.assert_close(logits[:, 1:], scores[:, :-1])
    torch.testing.assert_close(logits[:, 0], scores[:, -1])  # the background
    torch.testing.assert_close(boxes[:, 4:], deltas)


def test_torchvision_does_not_resize(networks):
    seen = []
    model = build_detector(networks.cfg, networks.detectron2)
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model([noise(96, 64)])
    torch.testing.assert_close(seen[0], networks.normalised(noise(96, 64)[None]))


@pytest.mark.parametrize("name", ["faster_rcnn_X50_32x4d", "retinanet_X50_32x4d_FPN"])
def test_other_detectors_are_compared_but_for_torchvisions(name):
    networks = Networks(Settings(name, size=64))
    with torch.no_grad():
        expected = bottom_up(networks.detectron2)(networks.normalised(networks.image[None]))
        found = build_backbone(networks.cfg, bottom_up(networks.detectron2))(
            networks.normalised(networks.image[None])
        )
    assert compare_maps(list(expected.values()), list(found.values())) < 1e-5
    with pytest.raises(UserError, match="torchvision has no such network"):
        build_detector(networks.cfg, networks.detectron2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_exported_backbone_takes_any_size_and_number(networks, runtime, tmp_path):
    pytest.importorskip(runtime)
    pytest.importorskip("onnxscript")
    module = bottom_up(networks.detectron2)
    write_onnx(module, networks.normalised(networks.image[None]), tmp_path / "backbone.onnx")
    run = read_onnx(tmp_path / "backbone.onnx", runtime)
    images = networks.normalised(torch.stack([noise(96, 128), noise(96, 128, seed=1)]))
    with torch.no_grad():
        expected = list(module(images).values())
    assert compare_maps(expected, run(images)) < 1e-4


def test_multiply_adds_are_those_that_torchvision_states(networks):
    stated = ResNeXt50_32X4D_Weights.IMAGENET1K_V1.meta["_ops"] * 1e9  # with the classifier
    counted = count_multiply_adds(bottom_up(networks.detectron2), torch.zeros(1, 3, 224, 224))
    assert counted + 2048 * 1000 == pytest.approx(stated, rel=0.005)


def test_results_of_a_compiled_backbone_agree(networks):
    pytest.importorskip("openvino")
    sides = Sides(networks, "backbone")
    image = networks.normalised(networks.image[None])
    expected = sides.make("detectron2")(image)
    assert compare_maps(expected, sides.make("openvino-f32")(image)) < 1e-4


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("quick/faster_rcnn_X26_8x4d_FPN", (), "DEPTH 26"),
        (CONFIG, ("MODEL.RESNEXT.FORM", "a"), "form c"),
        (CONFIG, ("MODEL.RESNEXT.RESIDUAL", "False"), "form c"),
        (CONFIG, ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"), "BACKBONE.NAME"),
        ("no_such", (), "no_such"),
    ],
)
def test_networks_that_cannot_be_compared_are_named(config, overrides, message):
    with pytest.raises(UserError, match=message):
        Networks(Settings(config, overrides))


def test_a_photo_is_resized_and_in_the_configs_colours(tmp_path):
    Image.new("RGB", (60, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    image = Networks(Settings(CONFIG, image=tmp_path / "photo.png", size=64)).image
    assert image.shape == (3, 54, 107)  # the longer side is 1333 / 800 of 64 at most: 106.6
    assert image[:, 0, 0].tolist() == [200, 100, 0]
    with pytest.raises(UserError, match="absent.png"):
        Networks(Settings(CONFIG, image=tmp_path / "absent.png"))
