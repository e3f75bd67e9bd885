"""One training iteration: accumulated, in mixed precision, with less memory, reproducible."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from resnext_det import get_cfg
from resnext_det.engine import Trainer
from resnext_det.engine.step import NonFiniteLossError, TrainingStep

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
SIDE = 64


def images(count):
    """Random images with two boxes each, as the mapper gives them."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for _ in range(count):
        truth = Instances((SIDE, SIDE))
        truth.gt_boxes = Boxes(torch.tensor([[4.0, 6, 40, 44], [20, 10, 60, 30]]))
        truth.gt_classes = torch.tensor([0, 3])
        image = torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": truth})
    return batch


def config(norm="FrozenBN"):
    cfg = get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.FPN.NORM = ""
    # the same samples, however the images are cut into parts
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 100000
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 10
    return cfg


def train(model, batches, *, steps=1, **options):
    """Train a copy by SGD; gives it and the losses."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    step = TrainingStep(model, batches, optimizer, seed=5, **options)
    losses = []
    for step.iter in range(steps):
        with EventStorage(step.iter) as storage:
            step.run_step()
            losses.append({k: v for k, (v, _) in storage.latest().items() if "loss" in k})
    return model, losses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Trainer.build_model(config())


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_equal_the_whole_batch(model, parts):
    whole = images(4)
    size = 4 // parts
    cut = [whole[i : i + size] for i in range(0, 4, size)]
    one, losses = train(model, [whole] * 2, steps=2)
    several, same_losses = train(model, cut * 2, steps=2, accumulate=parts)
    for expected, found in zip(losses, same_losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for (name, a), b in zip(one.named_parameters(), several.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("network", ["FPN", "C4"])
def test_activation_checkpointing_changes_nothing_but_memory(network):
    """Batch norm's statistics included, which a second forward pass must not update again."""
    cfg = config("BN")
    if network == "C4":
        cfg = get_cfg("faster_rcnn_X50_32x4d")
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
    torch.manual_seed(0)
    plain = Trainer.build_model(cfg)
    cfg.MODEL.RESNEXT.CHECKPOINT = True
    saving = Trainer.build_model(cfg)
    saving.load_state_dict(plain.state_dict())
    trained, losses = train(plain, [images(2)] * 2, steps=2)
    same, same_losses = train(saving, [images(2)] * 2, steps=2)
    assert same_losses == losses
    for name, value in trained.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name


def test_activation_checkpointing_keeps_fewer_activations():
    def kept(checkpoint):
        cfg = config()
        cfg.MODEL.RESNEXT.CHECKPOINT = checkpoint
        backbone = Trainer.build_model(cfg).backbone.bottom_up
        held = {}

        def note(tensor):
            held[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = backbone(torch.randn(1, 3, 128, 128, requires_grad=True))
        assert out["res5"].requires_grad
        return sum(held.values())

    assert kept(True) < 0.5 * kept(False)


def test_bfloat16_trains_on_a_cpu_near_float32(model):
    _, exact = train(model, [images(2)])
    trained, losses = train(model, [images(2)], precision=torch.bfloat16)
    assert losses != exact
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # the others depend on the RPN's order
        assert losses[0][name] == pytest.approx(exact[0][name], rel=0.02), name
    assert all(p.dtype == torch.float32 for p in trained.parameters())


def test_an_iteration_draws_the_same_numbers_whatever_came_before(model):
    cfg = get_cfg(QUICK)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    sampling = Trainer.build_model(cfg)
    first = train(sampling, [images(2)] * 3, steps=3)
    torch.rand(7)
    second = train(sampling, [images(2)] * 3, steps=3)
    assert first[1] == second[1]


def test_the_weights_are_as_they_were_before_a_loss_that_is_not_finite(model):
    broken = copy.deepcopy(model)
    broken.roi_heads.box_predictor.cls_score.bias.data[0] = float("inf")
    optimizer = torch.optim.SGD(broken.parameters(), lr=0.01)
    step = TrainingStep(broken.train(), [images(2)], optimizer)
    before = copy.deepcopy(broken.state_dict())
    step.iter = 0
    with EventStorage(0), pytest.raises(NonFiniteLossError) as raised:
        step.run_step()
    assert not all(map(torch.isfinite, map(torch.tensor, raised.value.losses.values())))
    assert all(torch.equal(v, broken.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("memory_format", "last"), [("auto", True), ("channels_last", True), ("contiguous", False)]
)
def test_the_memory_format_is_the_configs(memory_format, last):
    cfg = config()
    cfg.MODEL.MEMORY_FORMAT = memory_format
    weight = Trainer.build_model(cfg).backbone.fpn_output2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("fast", [True, False])
def test_fast_layers_are_the_configs(fast):
    cfg = config()
    cfg.MODEL.FAST_LAYERS = fast
    names = {type(m).__name__ for m in Trainer.build_model(cfg).modules()}
    assert ("FastROIPooler" in names) == ("FoldingConv2d" in names) == fast


def test_the_papers_detector_trains_in_bfloat16_on_a_cpu():
    """ROIPool, which torchvision has not in half precision there."""
    cfg = get_cfg("faster_rcnn_X50_32x4d")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 26
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4, 4
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    torch.manual_seed(0)
    detector = Trainer.build_model(cfg)
    (exact,), (rounded,) = (
        train(detector, iter([images(1)]), precision=precision)[1]
        for precision in (None, torch.bfloat16)
    )
    assert exact.keys() == rounded.keys()
    for name, value in exact.items():
        assert rounded[name] == pytest.approx(value, rel=0.1, abs=0.05), name
