import pickle

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import build_resnet_backbone

import resnext_det
from resnext_det import ResNeXt, Variant
from resnext_det.errors import UserError
from resnext_det.weights import StrictCheckpointer
from resnext_det.weights.arrival import body_names
from tests.helpers import randomise

BN_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


def caffe2_name(name):
    """Detectron2's name -> that of its ImageNet pickles, e.g. res2_0_branch2a_bn_gamma."""
    if name.startswith("linear"):
        return name.replace("linear.weight", "pred_w").replace("linear.bias", "pred_b")
    parts = name.split(".")
    if parts[0] == "stem":
        return "conv1_w" if parts[-2] != "norm" else f"res_conv1_bn_{BN_NAMES[parts[-1]]}"
    branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    start = f"{parts[0]}_{parts[1]}_{branch[parts[2]]}"
    return f"{start}_w" if parts[-2] != "norm" else f"{start}_bn_{BN_NAMES[parts[-1]]}"


def zoo_pickle(variant, path):
    """An ImageNet file as Detectron2's model zoo has it, of random weights."""
    network = ResNeXt(
        variant.depth, variant.cardinality, variant.width, norm="FrozenBN", num_classes=1000
    )
    arrays = {caffe2_name(k): v.numpy() for k, v in randomise(network).state_dict().items()}
    content = {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    return network.state_dict()


def detector(name="quick/faster_rcnn_X26_8x4d_FPN", **resnets):
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return build_model(cfg)


@pytest.mark.parametrize("variant", [Variant(50), Variant(101, 32, 8)], ids=str)
def test_detectron2s_own_imagenet_pickles_load(variant, tmp_path):
    file = tmp_path / "zoo.pkl"
    expected = zoo_pickle(variant, file)
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = variant.depth
    cfg.MODEL.RESNETS.NUM_GROUPS = variant.cardinality
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = variant.width
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(theirs).load(str(file))
    ours = ResNeXt(
        variant.depth, variant.cardinality, variant.width, norm="FrozenBN", out_features=["res5"]
    )
    StrictCheckpointer(ours).load(str(file))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_a_zoo_pickle_reaches_a_c4_detectors_backbone_and_head(tmp_path):
    file = tmp_path / "X.pkl"
    expected = zoo_pickle(Variant(50, 32, 4), file)
    model = detector("faster_rcnn_X50_32x4d")
    StrictCheckpointer(model).load(str(file))
    loaded = {k: model.state_dict()[k] for k in body_names(model.state_dict())}
    assert len(loaded) == sum(not k.startswith("linear") for k in expected)
    for name, tensor in loaded.items():
        short = name.removeprefix("backbone.").removeprefix("roi_heads.")
        torch.testing.assert_close(tensor, expected[short], rtol=0, atol=0)


def heuristic_file(state_dict, path):
    torch.save({"model": state_dict, "matching_heuristics": True}, path)
    return str(path)


def small_backbone(**changes):
    arguments = {"depth": 26, "cardinality": 8, "width": 4, "norm": "BN"}
    arguments |= {"stem_out_channels": 32, "res2_out_channels": 64, **changes}
    return randomise(ResNeXt(**arguments))


def test_imagenet_weights_load_and_the_summary_counts_them(tmp_path, caplog):
    network = small_backbone()
    model = detector()
    with caplog.at_level("INFO", "resnext_det"):
        StrictCheckpointer(model).load(heuristic_file(network.state_dict(), tmp_path / "w.pth"))
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)
    count = sum(not name.endswith("num_batches_tracked") for name in network.state_dict())
    assert f"backbone: {count}/{count} tensors loaded; heads: 0/" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, r"res2.0.conv1.weight \(file \(64, 32, 1, 1\), model \(32, 32, 1, 1\)\)"),
        # equal bottleneck widths: only the grouped layers differ, so most of the file fits
        (
            {"cardinality": 4, "width": 8},
            r"137/145 .*conv2.weight \(file \(32, 8, 3, 3\).*a 4x8d network.*NUM_GROUPS 4",
        ),
        ({"stem_out_channels": 64}, r"stem.conv1.weight \(file \(64, 3, 7, 7\)"),
    ],
)
def test_weights_of_another_network_are_an_error(changes, message, tmp_path):
    file = heuristic_file(small_backbone(**changes).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        StrictCheckpointer(detector()).load(file)


def test_weights_of_another_depth_are_an_error(tmp_path):
    file = heuristic_file(small_backbone().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError,
        match=r"145/265 .*Missing: res2.2.conv1.*another depth: res2",
    ):
        StrictCheckpointer(detector(DEPTH=50)).load(file)


def test_an_unconverted_torchvision_file_is_an_error_that_names_its_tensors(tmp_path):
    file = heuristic_file(torchvision.models.resnet50().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError,
        match=r"Unused in the file: conv1.weight, .*in torchvision's names",
    ):
        StrictCheckpointer(detector("faster_rcnn_R50")).load(file)


def test_a_detector_is_evaluated_only_with_all_of_its_tensors(tmp_path):
    file = heuristic_file(small_backbone().state_dict(), tmp_path / "w.pth")
    checkpointer = StrictCheckpointer(detector())
    checkpointer.whole_model = True
    with pytest.raises(UserError, match="tensors of the model did not load"):
        checkpointer.load(file)


def test_a_detectors_own_checkpoint_comes_back(tmp_path):
    model = randomise(detector(), seed=1)
    StrictCheckpointer(model, str(tmp_path)).save("model_final")
    again = detector()
    checkpointer = StrictCheckpointer(again, str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def with_offsets(network, channels=18):
    """Give res3 the layers that tell where a deformable one looks; none is run here."""
    for block in network.res3:
        block.conv2_offset = torch.nn.Conv2d(block.conv1.out_channels, channels, 3)
    return network


def deformable_detector(**options):
    model = detector()
    with_offsets(model.backbone.bottom_up, **options)
    return model


def offsets_of(model):
    return {name: t for name, t in model.state_dict().items() if ".conv2_offset." in name}


def test_offsets_of_deformable_layers_are_new_beside_imagenet_weights(tmp_path):
    network = small_backbone()
    file = heuristic_file(network.state_dict(), tmp_path / "w.pth")
    model = deformable_detector()
    before = {name: tensor.clone() for name, tensor in offsets_of(model).items()}
    checkpointer = StrictCheckpointer(model)
    checkpointer.load(file)
    body = {k: v for k, v in network.state_dict().items() if not k.endswith("tracked")}
    heads = len([n for n in model.state_dict() if not n.endswith("tracked")]) - len(body)
    count = f"{len(body)}/{len(body)}"
    assert checkpointer.summary == f"backbone: {count} tensors loaded; heads: 0/{heads}"
    assert len(before) == 4
    for name, tensor in offsets_of(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    for name, tensor in body.items():
        loaded = model.backbone.bottom_up.state_dict()[name]
        torch.testing.assert_close(loaded, tensor, rtol=0, atol=0)


def test_trained_offsets_come_back_and_none_may_be_lost(tmp_path):
    model = randomise(deformable_detector(), seed=1)
    StrictCheckpointer(model, str(tmp_path)).save("model_final")
    again = deformable_detector()
    checkpointer = StrictCheckpointer(again)
    checkpointer.whole_model = True
    checkpointer.load(str(tmp_path / "model_final.pth"))
    for name, tensor in offsets_of(model).items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    lost = "backbone.bottom_up.res3.1.conv2_offset.bias"
    rest = {name: tensor for name, tensor in model.state_dict().items() if name != lost}
    torch.save({"model": rest}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=f"1 of .* did not load, e.g. {lost}"):
        checkpointer.load(str(tmp_path / "part.pth"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (detector, r"Unused in the file: res3.0.conv2_offset.weight.*DEFORM_ON_PER_STAGE"),
        (
            lambda: deformable_detector(channels=27),
            r"Of another shape: res3.0.conv2_offset.weight \(file \(18, .*model \(27,",
        ),
    ],
)
def test_offsets_of_a_file_that_the_model_does_not_have_are_an_error(build, message, tmp_path):
    file = heuristic_file(with_offsets(small_backbone()).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        StrictCheckpointer(build()).load(file)


class Attack:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth"])
def test_a_file_that_would_run_code_is_refused(name, tmp_path, capsys):
    file = tmp_path / name
    content = {"model": {"stem.conv1.weight": np.zeros(1), "x": Attack()}}
    file.write_bytes(pickle.dumps(content)) if name.endswith("pkl") else torch.save(content, file)
    with pytest.raises(UserError, match=f"{file} is not .*readable"):
        StrictCheckpointer(detector()).load(str(file))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps([1])])
@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth"])
def test_a_damaged_file_is_named(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=str(file)) as caught:
        StrictCheckpointer(detector()).load(str(file))
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match="MODEL.WEIGHTS nothing.pth does not exist"):
        StrictCheckpointer(detector()).load("nothing.pth")


@pytest.mark.parametrize(
    ("file", "model", "named"),
    [
        ({"depth": 50}, {}, "res2.2.conv1.weight"),  # every tensor of the shallower model is there
        ({}, {"residual": False}, "res2.0.shortcut.weight"),
    ],
)
def test_a_file_with_more_than_the_network_is_an_error(file, model, named, tmp_path):
    source = heuristic_file(small_backbone(**file).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"Unused in the file: {named}"):
        StrictCheckpointer(small_backbone_in_a_module(**model)).load(source)


def small_backbone_in_a_module(**changes):
    return torch.nn.ModuleDict({"backbone": small_backbone(**changes)})


@pytest.mark.parametrize(
    "content", [{"state_dict": {"a": torch.zeros(1)}}, [1], {"model": None}, torch.zeros(1)]
)
def test_a_file_of_another_layout_is_named(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"{tmp_path / 'w.pth'}") as caught:
        StrictCheckpointer(small_backbone_in_a_module()).load(str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)


def test_an_address_that_cannot_be_reached_is_one_line():
    with pytest.raises(UserError, match="MODEL.WEIGHTS http://127.0.0.1:9/w.pth cannot be read"):
        StrictCheckpointer(small_backbone_in_a_module()).load("http://127.0.0.1:9/w.pth")
