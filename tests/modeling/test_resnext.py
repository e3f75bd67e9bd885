import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, ResNet, build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from resnext_det import ResNeXt, ResNeXtRes5ROIHeads
from resnext_det.variants import Variant
from resnext_det.weights.sources.torchvision import from_torchvision
from tests.helpers import randomise

STAGES = ["res2", "res3", "res4", "res5"]


def resnets_cfg(depth, groups, width, norm="BN", name="build_resnext_backbone"):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = norm
    return cfg


@pytest.mark.parametrize(
    ("depth", "groups", "width", "norm", "stride_in_1x1", "dilation"),
    [
        (50, 32, 4, "FrozenBN", False, 1),
        (50, 1, 64, "FrozenBN", True, 1),
        (50, 32, 4, "BN", False, 2),
        (101, 32, 8, "FrozenBN", False, 1),
        (50, 4, 24, "GN", False, 1),
    ],
)
def test_it_equals_detectron2s_resnet(depth, groups, width, norm, stride_in_1x1, dilation):
    cfg = resnets_cfg(depth, groups, width, norm)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    cfg.MODEL.RESNETS.RES5_DILATION = dilation
    if norm == "GN":
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32  # group norm's 32 groups must divide the channels
    theirs = randomise(build_resnet_backbone(cfg, ShapeSpec(channels=3))).eval()
    ours = build_backbone(cfg).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, actual = theirs(image), ours(image)
    assert list(actual) == STAGES
    for name in STAGES:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize(
    ("reference", "variant"),
    [
        (torchvision.models.resnext50_32x4d, Variant(50, 32, 4)),
        (torchvision.models.resnext101_32x8d, Variant(101, 32, 8)),
        (torchvision.models.resnet50, Variant(50)),
    ],
)
def test_it_equals_torchvisions_network(reference, variant):
    theirs = randomise(reference(weights=None)).eval()
    ours = ResNeXt(
        variant.depth,
        variant.cardinality,
        variant.width,
        num_classes=1000,
        out_features=[*STAGES, "linear"],
    ).eval()
    converted = from_torchvision(theirs.state_dict()).tensors
    missing, unexpected = ours.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)

    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        actual = ours(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for name, layer in zip(STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            x = getattr(theirs, layer)(x)
            torch.testing.assert_close(actual[name], x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual["linear"], theirs(image), rtol=1e-5, atol=1e-5)


def test_it_equals_timms_network():
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model("resnext101_32x4d", pretrained=False)).eval()
    ours = ResNeXt(101, 32, 4, norm="FrozenBN", out_features=STAGES).eval()
    converted = from_torchvision(theirs.state_dict()).tensors
    missing, unexpected = ours.load_state_dict(converted, strict=False)
    assert not missing
    unexpected = [n for n in unexpected if not n.endswith("num_batches_tracked")]
    assert unexpected == ["linear.weight", "linear.bias"]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, indices=[1, 2, 3, 4])[1]
        for feature, value in zip(expected, ours(image).values(), strict=True):
            # FrozenBN rounds otherwise than BatchNorm2d over 101 layers
            torch.testing.assert_close(value, feature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [26, 50, 101, 152, 200])
def test_strides_and_channels_at_every_depth(depth):
    with torch.device("meta"):
        backbone = ResNeXt(depth, 32, 4, out_features=["stem", *STAGES])
        outputs = backbone(torch.randn(1, 3, 64, 128))
    strides = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
    channels = {"stem": 64, "res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
    for name, spec in backbone.output_shape().items():
        assert (spec.stride, spec.channels) == (strides[name], channels[name])
        assert outputs[name].shape == (1, channels[name], 64 // spec.stride, 128 // spec.stride)


@pytest.mark.parametrize(
    ("variant", "millions"),
    [(Variant(50, 32, 4), 25.0), (Variant(50), 25.5)],  # Table 1
)
def test_parameters_are_those_of_table_1(variant, millions):
    with torch.device("meta"):
        network = ResNeXt(variant.depth, variant.cardinality, variant.width, num_classes=1000)
    parameters = sum(p.numel() for p in network.parameters())
    # Table 1 rounds down: torchvision's ResNet-50 has 25.557 M parameters
    assert millions <= parameters / 1e6 < millions + 0.1


def test_bottleneck_widths_double_per_stage_as_in_table_1():
    with torch.device("meta"):
        network = ResNeXt(50, 32, 4)
    for name, width in zip(STAGES, (128, 256, 512, 1024), strict=True):
        for block in getattr(network, name):
            assert block.conv2.groups == 32
            assert block.conv2.in_channels == block.conv2.out_channels == width


def test_stride_two_lies_in_the_3x3_layer():
    with torch.device("meta"):
        network = ResNeXt(50, 32, 4)
    for name in STAGES[1:]:
        first = getattr(network, name)[0]
        assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_freezes_exactly_the_named_stages(freeze_at):
    network = ResNeXt(26, 2, 4, stem_out_channels=8, res2_out_channels=8, freeze_at=freeze_at)
    for index, name in enumerate(["stem", *STAGES], start=1):
        stage = getattr(network, name)
        assert all(p.requires_grad == (index > freeze_at) for p in stage.parameters())


def test_trained_batch_norm_starts_blocks_as_identities():
    cfg = resnets_cfg(26, 2, 4, "BN")
    network = build_backbone(cfg)
    assert all(
        (block.conv3.norm.weight == 0).all() for s in STAGES for block in getattr(network, s)
    )
    frozen = build_backbone(resnets_cfg(26, 2, 4, "FrozenBN"))
    assert all((block.conv3.norm.weight == 1).all() for s in STAGES for block in getattr(frozen, s))


def test_an_impossible_dilation_is_named():
    with pytest.raises(ValueError, match="res5_dilation 3"):
        ResNeXt(50, res5_dilation=3)


def test_deformable_layers_need_the_compiled_extension():
    pytest.importorskip("torch")
    try:
        import detectron2._C  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"detectron2\._C"):
            ResNeXt(26, 2, 4, deform_on_per_stage=[False, False, False, True])
    else:
        network = ResNeXt(26, 2, 4, deform_on_per_stage=[False, False, False, True])
        assert hasattr(network.res5[0], "conv2_offset")


@pytest.mark.parametrize("depth", [26, 50])
def test_the_c4_head_is_the_networks_own_conv5(depth):
    cfg = resnets_cfg(depth, 32, 4, "FrozenBN")
    res5, channels = ResNeXtRes5ROIHeads._build_res5_block(cfg)
    whole = randomise(ResNeXt(depth, 32, 4, norm="FrozenBN", out_features=["res4", "res5"])).eval()
    assert channels == 2048
    assert list(res5.state_dict()) == list(whole.res5.state_dict())
    res5.load_state_dict(whole.res5.state_dict())
    with torch.no_grad():
        outputs = whole(torch.randn(1, 3, 64, 64))
        torch.testing.assert_close(res5(outputs["res4"]), outputs["res5"], rtol=0, atol=0)


def test_the_c4_head_has_the_names_of_detectron2s():
    cfg = resnets_cfg(50, 32, 4, "FrozenBN")
    theirs = ROI_HEADS_REGISTRY.get("Res5ROIHeads")._build_res5_block(cfg)[0]
    ours = ResNeXtRes5ROIHeads._build_res5_block(cfg)[0]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_the_c4_head_refuses_deformable_layers():
    cfg = resnets_cfg(50, 32, 4)
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE"):
        ResNeXtRes5ROIHeads._build_res5_block(cfg)


@pytest.mark.parametrize(
    ("ours", "theirs", "levels"),
    [
        ("build_resnext_fpn_backbone", "build_resnet_fpn_backbone", STAGES),
        ("build_retinanet_resnext_fpn_backbone", "build_retinanet_resnet_fpn_backbone", STAGES[1:]),
    ],
)
def test_feature_pyramids_equal_detectron2s(ours, theirs, levels):
    cfg = resnets_cfg(50, 32, 4, "FrozenBN", name=theirs)
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.OUT_FEATURES = levels
    reference = randomise(build_backbone(cfg)).eval()
    cfg.MODEL.BACKBONE.NAME = ours
    pyramid = build_backbone(cfg).eval()
    pyramid.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        expected, actual = reference(image), pyramid(image)
    assert pyramid.output_shape() == reference.output_shape()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-5)


def test_all_builders_are_registered_as_resnets():
    for name in ("backbone", "fpn_backbone"):
        assert f"build_resnext_{name}" in BACKBONE_REGISTRY
    assert "build_retinanet_resnext_fpn_backbone" in BACKBONE_REGISTRY
    assert "ResNeXtRes5ROIHeads" in ROI_HEADS_REGISTRY
    assert issubclass(ResNeXt, ResNet)
    assert issubclass(ResNeXt, nn.Module)
