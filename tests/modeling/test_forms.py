"""Fig. 3: the three forms are one network. Everything here is compared in float64."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import resnext_det
from resnext_det import ResNeXt, convert_form
from resnext_det.modeling import form_of
from resnext_det.modeling.blocks import (
    FORMS,
    AggregatedBlock,
    ConcatenatedBlock,
    PlainBottleneckBlock,
)
from resnext_det.weights import StrictCheckpointer
from tests.helpers import randomise

PAIRS = list(itertools.permutations(FORMS, 2))
BLOCKS = {"a": AggregatedBlock, "b": ConcatenatedBlock, "c": BottleneckBlock}


def backbone(form, norm="BN", residual=True, **changes):
    arguments = {"depth": 26, "cardinality": 4, "width": 2, "stem_out_channels": 8}
    arguments |= {"res2_out_channels": 16, "out_features": ["res2", "res3", "res4", "res5"]}
    return ResNeXt(**arguments | changes, form=form, norm=norm, residual=residual).double()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_outputs_and_gradients_agree_between_forms(source, target, residual):
    first = randomise(backbone(source, residual=residual), seed=3)
    second = backbone(target, residual=residual)
    second.load_state_dict(convert_form(first.state_dict(), target))
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        expected = first.train(training)(image)
        actual = second.train(training)(image)
        assert_same(actual, expected)
        for model, outputs in ((first, expected), (second, actual)):
            model.zero_grad()
            sum((o**2).mean() for o in outputs.values()).backward()
        assert_same(gradients(second), convert_form(gradients(first), target))
    # running statistics were updated in train mode
    assert_same(second.state_dict(), convert_form(first.state_dict(), target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_state_dict_comes_back_bit_for_bit(source, target, norm):
    state = randomise(backbone(source, norm)).state_dict()
    converted = convert_form(state, target)
    assert list(sorted(converted)) == sorted(backbone(target, norm).state_dict())
    assert (form_of(state), form_of(converted)) == (source, target)
    again = convert_form(converted, source)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"stride": 2, "stride_in_1x1": True}, {"dilation": 2}, {"num_groups": 1}],
)
def test_a_block_equals_detectron2s_bottleneck(form, options):
    arguments = {"bottleneck_channels": 12, "num_groups": 3, "norm": "BN", **options}
    theirs = randomise(BottleneckBlock(8, 16, **arguments)).double().eval()
    ours = BLOCKS[form](8, 16, **arguments).double().eval()
    state = {f"res2.0.{name}": tensor for name, tensor in theirs.state_dict().items()}
    converted = convert_form(state, form)
    ours.load_state_dict({k.removeprefix("res2.0."): v for k, v in converted.items()})
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-12)


def test_forms_start_from_the_same_distribution():
    stds = {}
    for form in FORMS:
        torch.manual_seed(0)
        block = BLOCKS[form](64, 64, bottleneck_channels=64, num_groups=8, norm="BN")
        state = {f"res2.0.{name}": tensor for name, tensor in block.state_dict().items()}
        stds[form] = {n: v.std() for n, v in convert_form(state, "c").items() if v.dim() == 4}
    for form in ("a", "b"):
        for name, std in stds["c"].items():
            torch.testing.assert_close(stds[form][name], std, rtol=0.05, atol=0)


def detector(name, form):
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNEXT.FORM = form
    cfg.MODEL.RESNETS.DEPTH = 26
    cfg.MODEL.RESNETS.NUM_GROUPS = 4
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    return build_model(cfg).double()


def losses(model):
    torch.manual_seed(0)  # images, and which anchors and regions are sampled
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 50.0]]))
    truth.gt_classes = torch.tensor([1])
    image = (255 * torch.rand(3, 64, 64)).double()
    with EventStorage():
        return model.train()([{"image": image, "instances": truth, "height": 64, "width": 64}])


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("name", ["faster_rcnn_X50_32x4d", "faster_rcnn_X50_32x4d_FPN"])
def test_a_detector_trained_in_one_form_runs_in_another(
    name, source, target, tmp_path, monkeypatch
):
    # Detectron2 hands float32 boxes to NMS, so a float64 model's scores must follow
    monkeypatch.setattr(
        "detectron2.modeling.proposal_generator.proposal_utils.batched_nms",
        lambda boxes, scores, classes, limit: batched_nms(boxes, scores.float(), classes, limit),
    )
    first = detector(name, source)
    optimizer = torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=1e-3)
    sum(losses(first).values()).backward()
    optimizer.step()
    StrictCheckpointer(first, str(tmp_path)).save("trained")

    second = detector(name, target)
    checkpointer = StrictCheckpointer(second)
    checkpointer.whole_model = True
    checkpointer.load(str(tmp_path / "trained.pth"))
    assert_same(losses(second), losses(first))
    for model in (first, second):
        model.zero_grad()
        sum(losses(model).values()).backward()
    assert_same(
        {n: g for n, g in gradients(second).items() if g is not None},
        convert_form({n: g for n, g in gradients(first).items() if g is not None}, target),
    )


@pytest.mark.parametrize("form", ["a", "b"])
def test_a_cardinality_that_does_not_divide_is_named_with_the_width(form):
    with pytest.raises(ValueError, match="cardinality 3 does not divide .* 128 channels"):
        BLOCKS[form](64, 256, bottleneck_channels=128, num_groups=3)


@pytest.mark.parametrize("form", ["a", "b"])
def test_a_norm_that_mixes_paths_is_refused(form):
    with pytest.raises(ValueError, match="norm 'GN' is not per channel"):
        backbone(form, norm="GN", cardinality=8, width=4, res2_out_channels=32)


def test_unknown_forms_are_named():
    with pytest.raises(ValueError, match="form 'd' is not one of a, b, c"):
        backbone("d")
    with pytest.raises(ValueError, match="form 'd' is not one of a, b, c"):
        convert_form({}, "d")


def test_a_deformable_block_cannot_be_split():
    state = {
        "res5.0.conv2_offset.weight": torch.zeros(1),
        "res5.0.conv2.weight": torch.zeros(4, 2, 3, 3),
    }
    with pytest.raises(ValueError, match="res5.0 has deformable layers"):
        convert_form(state, "a")


def test_names_outside_of_blocks_are_left_alone():
    state = {
        "roi_heads.box_head.fc1.weight": torch.zeros(2),
        "backbone.fpn_lateral2.norm.bias": torch.ones(1),
    }
    converted = convert_form({**state, **prefixed("backbone.bottom_up.")}, "a")
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())
    assert "backbone.bottom_up.res2.0.paths.3.conv3.weight" in converted


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in backbone("c").state_dict().items()}


def test_depth_two_collapses_into_a_wide_dense_block():
    """Fig. 4: C basic blocks of width d, summed, are one dense basic block of width C d."""
    cardinality, width, channels = 4, 3, 8
    convolution = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    paths = [
        (convolution(channels, width), convolution(width, channels)) for _ in range(cardinality)
    ]
    x = torch.randn(2, channels, 10, 10)
    aggregated = sum(second(F.relu(first(x))) for first, second in paths)
    wide_first = torch.cat([first.weight for first, _ in paths], dim=0)
    wide_second = torch.cat([second.weight for _, second in paths], dim=1)
    assert wide_first.shape == (cardinality * width, channels, 3, 3)  # dense: no groups
    dense = F.conv2d(F.relu(F.conv2d(x, wide_first, padding=1)), wide_second, padding=1)
    torch.testing.assert_close(aggregated, dense, rtol=1e-4, atol=1e-5)


def test_without_shortcuts_a_block_is_its_residual_branch_alone():
    with_shortcut = randomise(BottleneckBlock(8, 16, bottleneck_channels=8, num_groups=2)).eval()
    plain = PlainBottleneckBlock(8, 16, bottleneck_channels=8, num_groups=2).eval()
    state = {k: v for k, v in with_shortcut.state_dict().items() if not k.startswith("shortcut")}
    plain.load_state_dict(state)
    captured = []
    with_shortcut.conv3.register_forward_hook(lambda *call: captured.append(call[2].clone()))
    x = torch.randn(1, 8, 6, 6)
    with_shortcut(x)
    torch.testing.assert_close(plain(x), F.relu(captured[0]), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_ablation_lacks_exactly_the_projections(form):
    whole, plain = (backbone(form, residual=r).state_dict() for r in (True, False))
    missing = set(whole) - set(plain)
    assert set(plain) <= set(whole)
    assert missing and all(".0.shortcut." in name for name in missing)
    assert plain["res2.1.conv3.weight" if form != "a" else "res2.1.paths.0.conv3.weight"].any()


def test_the_ablation_is_chosen_by_the_config_and_keeps_the_c4_head_alike():
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    cfg.MODEL.RESNEXT.RESIDUAL = False
    cfg.MODEL.RESNETS.DEPTH = 26
    network = resnext_det.build_resnext_backbone(cfg, ShapeSpec(channels=3))
    head, _ = resnext_det.ResNeXtRes5ROIHeads._build_res5_block(cfg)
    for block in (*network.res4, *head):
        assert isinstance(block, PlainBottleneckBlock)


@pytest.mark.parametrize("form", FORMS)
def test_zero_initialisation_finds_the_last_norm(form):
    block = backbone(form, zero_init_residual=True).res3[1]
    x = torch.rand(1, 32, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
