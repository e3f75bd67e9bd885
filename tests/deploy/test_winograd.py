"""The RPN head by Winograd's algorithm against Detectron2's, with random weights."""

import pytest
import torch
from detectron2.modeling.proposal_generator import StandardRPNHead

from resnext_det.deploy.compiled import optimize
from resnext_det.deploy.winograd import rpn_head_by_winograd
from tests.deploy.models import assert_same, detections, detector, images

needs_nnpack = pytest.mark.skipif(
    not torch._nnpack_available(), reason="PyTorch has no NNPACK for this CPU"
)


def rpn_head(**settings):
    torch.manual_seed(0)
    return StandardRPNHead(in_channels=16, num_anchors=3, **settings).eval()


@needs_nnpack
@pytest.mark.parametrize("batch", [1, 2])
def test_it_gives_detectron2s_logits_and_deltas_for_small_and_large_maps(batch):
    head = rpn_head()
    features = [torch.randn(batch, 16, *size) for size in ((61, 47), (45, 46), (5, 9), (1, 1))]
    features[0] = features[0].contiguous(memory_format=torch.channels_last)
    kept = [x.clone() for x in features]
    with torch.no_grad():
        logits, deltas = head(features)
    found = rpn_head_by_winograd(head)(*features)
    assert len(found) == 8
    for one, other in zip(found, (*logits, *deltas), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())
    assert all(map(torch.equal, features, kept))


@pytest.mark.parametrize(
    "head",
    [rpn_head(conv_dims=[8, 8]), torch.nn.Conv2d(16, 16, 3), type("Mine", (StandardRPNHead,), {})],
    ids=["several convolutions", "a layer", "a subclass"],
)
def test_other_heads_are_left_to_the_engine(head):
    if isinstance(head, type):
        head = head(in_channels=16, num_anchors=3)
    assert rpn_head_by_winograd(head) is None


@pytest.mark.parametrize(
    "change",
    [
        {"stride": (2, 2)},
        {"padding": (0, 0)},
        {"dilation": (2, 2)},
        {"norm": torch.nn.GroupNorm(2, 16)},
        {"activation": torch.nn.Tanh()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_convolutions_are_left_to_the_engine(change):
    head = rpn_head()
    for name, value in change.items():
        setattr(head.conv, name, value)
    assert rpn_head_by_winograd(head) is None


def test_without_nnpack_the_engine_takes_it(monkeypatch):
    monkeypatch.setattr(torch, "_nnpack_available", lambda: False)
    assert rpn_head_by_winograd(rpn_head()) is None


@needs_nnpack
def test_detections_in_large_maps_stay_the_same(monkeypatch):
    pytest.importorskip("openvino")
    calls = []
    convolve = torch._nnpack_spatial_convolution

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", counted)
    model, inputs = detector(), images((224, 256))
    found = detections(optimize(model, engine="openvino"), inputs)[0]
    assert calls and calls[-1][2:] == (56, 64)
    assert_same(found, detections(model, inputs)[0])
    calls.clear()
    detections(optimize(model, engine="openvino", streams=2), inputs)
    detections(optimize(model, engine="eager"), inputs)
    assert not calls
