"""Faster layers against torchvision's and Detectron2's own, with random weights and statistics."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from resnext_det import get_cfg
from resnext_det.modeling.fast import FastROIPooler, FoldingConv2d, accelerate
from resnext_det.modeling.fast_roi_align import roi_align
from tests.helpers import randomise

SIDE = 96  # of images, in pixels


def random_boxes(count):
    """Boxes of all sizes, some beyond the image's borders, one without an area."""
    corners = torch.rand(count, 4) * (SIDE + 40) - 20
    low, high = corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])
    boxes = torch.cat([low, high], 1)
    boxes[0, 2:] = boxes[0, :2]
    return boxes


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_roi_align_equals_torchvisions_forward_and_backward(
    ratio, aligned, memory_format, monkeypatch
):
    monkeypatch.setattr("resnext_det.modeling.fast_roi_align._BOXES", 16)
    monkeypatch.setattr("resnext_det.modeling.fast_roi_align._BLOCK", 100)
    torch.manual_seed(ratio)
    scales = (1 / 4, 1 / 8, 1 / 16)
    maps = [torch.randn(2, 5, int(SIDE * s), int(SIDE * s) + 3).double() for s in scales]
    maps = [m.to(memory_format=memory_format) for m in maps]
    boxes = torch.cat([torch.randint(2, (40, 1)), random_boxes(40)], 1).double()
    levels = torch.randint(3, (40,))
    ours = [m.clone().requires_grad_() for m in maps]
    theirs = [m.clone().requires_grad_() for m in maps]

    out = roi_align(ours, boxes, levels, (7, 5), scales, ratio, aligned)
    expected = torch.zeros_like(out, memory_format=torch.contiguous_format)
    for level, scale in enumerate(scales):
        here = levels == level
        pooled = torchvision.ops.roi_align(
            theirs[level].contiguous(), boxes[here], (7, 5), scale, ratio, aligned
        )
        expected = expected.index_put((here.nonzero()[:, 0],), pooled)
    without = roi_align(maps, boxes, levels, (7, 5), scales, ratio, aligned)
    for each in (out, without):
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-12)
        assert each.is_contiguous(memory_format=memory_format)

    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-11)


def test_roi_align_of_no_boxes_is_empty_and_has_gradients_of_zero():
    features = torch.randn(1, 3, 8, 8, requires_grad=True)
    out = roi_align([features], torch.zeros(0, 5), torch.zeros(0).long(), (7, 7), (1 / 4,))
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_what_was_pooled_outlives_other_images_and_threads():
    generator = torch.Generator().manual_seed(0)
    sizes = (24, 8, 40, 8, 24, 16)
    boxes = torch.tensor([[0.0, 4, 4, 30, 28]])

    def pool(feature):
        return roi_align([feature], boxes, torch.zeros(1).long(), (7, 7), (1 / 4,))

    features = [torch.rand(1, 3, side, side, generator=generator) for side in sizes]
    with torch.inference_mode():
        one_by_one = [pool(feature) for feature in features]
    one_by_one[:3] = [pool(feature) for feature in features[:3]]
    with ThreadPoolExecutor(3) as threads:
        at_once = list(threads.map(pool, features * 20))
    for i, feature in enumerate(features):
        expected = torchvision.ops.roi_align(feature, boxes, (7, 7), 1 / 4, aligned=True)
        for found in (one_by_one[i], *at_once[i :: len(features)]):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_boxes_too_large_for_memory_are_left_to_torchvision():
    features = torch.randn(1, 2, 8, 8)
    boxes = torch.tensor([[-1e8, -1e8, 1e8, 1e8]])
    pooler = accelerate(ROIPooler((7, 7), (1 / 4,), 1, "ROIAlignV2"))
    plain = ROIPooler((7, 7), (1 / 4,), 1, "ROIAlignV2")
    assert torch.equal(pooler([features], [Boxes(boxes)]), plain([features], [Boxes(boxes)]))


@pytest.mark.parametrize("levels", [1, 4])
def test_the_pooler_equals_detectron2s(levels):
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32][:levels]
    plain = ROIPooler((7, 7), scales, 0, "ROIAlignV2", canonical_box_size=32, canonical_level=3)
    fast = accelerate(copy.deepcopy(plain))
    assert isinstance(fast, FastROIPooler)
    features = [torch.randn(2, 4, int(SIDE * s), int(SIDE * s)) for s in scales]
    boxes = [Boxes(random_boxes(30)), Boxes(random_boxes(7))]
    torch.testing.assert_close(fast(features, boxes), plain(features, boxes), rtol=0, atol=1e-5)


def test_poolers_of_other_kinds_stay_detectron2s():
    for kind in ("ROIPool", "ROIAlignRotated"):
        assert type(accelerate(ROIPooler((7, 7), (1 / 4,), 2, kind))) is ROIPooler


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN", ""])
def test_a_folded_norm_gives_the_same_outputs_and_gradients(norm, bias):
    torch.manual_seed(1)
    layer = get_norm(norm, 32)
    plain = Conv2d(16, 32, 3, 2, 1, groups=4, bias=bias, norm=layer, activation=torch.relu)
    randomise(plain)
    plain.double()
    fast = accelerate(copy.deepcopy(plain))
    assert (type(fast) is FoldingConv2d) == (norm in ("FrozenBN", "BN"))
    for training in (False, True):
        outputs = []
        for conv in (plain, fast):
            conv.train(training).zero_grad()
            x = torch.linspace(-1, 1, 2 * 16 * 9 * 9).view(2, 16, 9, 9).double().requires_grad_()
            out = conv(x)
            (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
            outputs.append([out, x.grad, *(p.grad for p in conv.parameters())])
        for one, other in zip(*outputs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        for one, other in zip(plain.buffers(), fast.buffers(), strict=True):
            assert torch.equal(one, other)


def _batch():
    generator = torch.Generator().manual_seed(3)
    batch = []
    for _ in range(2):
        truth = Instances((SIDE, SIDE))
        truth.gt_boxes = Boxes(torch.tensor([[5.0, 8, 60, 70], [30, 20, 90, 50]]))
        truth.gt_classes = torch.tensor([0, 0])
        truth.gt_masks = BitMasks(torch.rand(2, SIDE, SIDE, generator=generator) > 0.5)
        points = torch.rand(2, 17, 3, generator=generator) * 40 + 10
        points[..., 2] = 2
        truth.gt_keypoints = Keypoints(points)
        image = torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": truth})
    return batch


def _losses(model):
    torch.manual_seed(0)
    with EventStorage(0):
        losses = model.train()(_batch())
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("kind", ["faster FPN", "mask C4", "keypoint FPN"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_detector_has_the_same_losses_and_gradients(kind, memory_format):
    cfg = get_cfg("mask_rcnn_X50_32x4d" if "C4" in kind else "faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # take all proposals: their order depends on rounding
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 30
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 200
    if "keypoint" in kind:
        if memory_format == torch.channels_last:
            pytest.skip("Detectron2's keypoint loss takes only contiguous maps")
        cfg.MODEL.KEYPOINT_ON = True
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    torch.manual_seed(2)
    plain = build_model(cfg)
    for norm in plain.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.3, 0.6)
            norm.bias.normal_(0, 0.1)
    plain = plain.to(memory_format=memory_format)
    fast = accelerate(copy.deepcopy(plain))
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(m, (FoldingConv2d, FastROIPooler)) for m in fast.modules()) > 50
    (losses, gradients), (expected, expected_gradients) = _losses(fast), _losses(plain)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    # some are zero but for rounding, as that of a bias before a softmax
    smallest = 1e-4 * max(value.norm() for value in expected_gradients.values())
    for name, value in expected_gradients.items():
        error = (gradients[name] - value).norm() / value.norm().clamp(min=smallest)
        assert error < 1e-2, name  # rounding turns some ReLUs


def test_detectron2s_classes_are_as_they_were():
    accelerate(Conv2d(4, 4, 1, norm=FrozenBatchNorm2d(4)))
    assert type(Conv2d(4, 4, 1, norm=FrozenBatchNorm2d(4))) is Conv2d
    assert type(ROIPooler((7, 7), (1 / 4,), 0, "ROIAlign").level_poolers[0]) is ROIAlign


def test_a_norm_with_a_hook_is_called():
    layer = accelerate(nn.Sequential(Conv2d(4, 4, 3, norm=FrozenBatchNorm2d(4))))
    seen = []
    layer[0].norm.register_forward_hook(lambda *args: seen.append(args[2]))
    out = layer(torch.rand(1, 4, 8, 8))
    assert torch.equal(seen[0], out)


def test_too_many_pixels_in_bfloat16_are_pooled_in_float32(monkeypatch):
    """torchvision has no half precision on a CPU."""
    monkeypatch.setattr("resnext_det.modeling.fast_roi_align._MAX_ENTRIES", 1)
    pooler = accelerate(
        nn.ModuleList([ROIPooler(4, scales=[0.25], sampling_ratio=0, pooler_type="ROIAlignV2")])
    )[0]
    features, boxes = torch.rand(1, 3, 16, 16), [Boxes(torch.tensor([[1.0, 2, 40, 50]]))]
    half = features.bfloat16()
    pooled = pooler([half], boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, pooler([half.float()], boxes).bfloat16(), rtol=0, atol=0)
