"""Training begins only if every tensor of the backbone arrives; else one line says why."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models.resnet import Bottleneck

from resnext_det import ResNeXt
from resnext_det.data import shapes
from resnext_det.engine import argument_parser, run_job, train_or_evaluate
from tests.helpers import randomise
from tests.weights.t7_files import write_resnext_t7

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
FAST = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)")
FAST += ("DATASETS.TEST", "()", "OUTPUT_DIR", "output")


@pytest.fixture(autouse=True)
def few_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 2})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(capsys):
    """Run tools/train_net.py's job; returns its status, output and error."""

    def train(weights, *words, flags=()):
        command = ["--config-file", QUICK, *flags, *FAST, "MODEL.WEIGHTS", str(weights), *words]
        capsys.readouterr()
        status = run_job(train_or_evaluate, argument_parser().parse_args(command))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return train


def tensors(depth=26, cardinality=8, width=4, norm="BN", **changes):
    """A random backbone of the quick config's sizes, in Detectron2's names."""
    sizes = {"stem_out_channels": 32, "res2_out_channels": 64, **changes}
    return dict(randomise(ResNeXt(depth, cardinality, width, norm=norm, **sizes)).state_dict())


def saved(content, name="w.pth"):
    """Save as Detectron2's converters do; returns the path."""
    torch.save({"model": content, "matching_heuristics": True}, name)
    return Path(name).absolute()


def assert_refused(done, file):
    """Refused before the first iteration, in one line and without a wall of warnings."""
    status, out, error = done
    assert status == 1
    assert error.startswith(f"error: MODEL.WEIGHTS {file}")
    assert error.count("\n") == 1
    assert len((out + error).splitlines()) < 10
    assert "iter:" not in out
    assert not list(Path("output").glob("*.pth"))
    return error


def named(error, title):
    """The names under a title, and how many there are in all."""
    found = re.search(rf"{title}: (.*?)\. (?:Unused|Of another|Likely)", error)
    assert found, error
    names, _, rest = found[1].partition(", ... (")
    names = re.sub(r" \(file \([\d, ]*\), model \([\d, ]*\)\)", "", names).split(", ")
    return names, int(rest.split()[0]) if rest else len(names)


def arrived(error):
    loaded, total = re.search(r"backbone: (\d+)/(\d+) tensors loaded\.", error).groups()
    return int(loaded), int(total)


def body(content):
    return [name for name in content if not name.endswith("num_batches_tracked")]


def test_the_output_says_that_all_arrived(train):
    content = tensors()
    status, out, error = train(saved(content))
    assert (status, error) == (0, "")
    loaded, total = re.search(r"backbone: (\d+)/(\d+) tensors loaded", out).groups()
    assert int(loaded) == int(total) == len(body(content))
    assert out.index("tensors loaded") < out.index("iter: 1/")
    trained = torch.load("output/model_final.pth", weights_only=True)["model"]
    moved = [
        (trained[f"backbone.bottom_up.{name}"] - content[name]).abs().max()
        for name in body(content)
        if "running" not in name
    ]
    assert max(moved) < 0.01  # by the one step with the rate that a warm-up begins with


@pytest.mark.parametrize(
    "name", ["stem.conv1.weight", "res2.0.shortcut.norm.running_var", "res5.1.conv3.norm.bias"]
)
def test_one_missing_tensor_is_named(name, train):
    content = tensors()
    total = len(body(content))
    del content[name]
    file = saved(content)
    error = assert_refused(train(file), file)
    assert arrived(error) == (total - 1, total)
    assert named(error, "Missing") == ([name], 1)


def test_of_many_missing_tensors_five_are_named(train):
    content = {k: v for k, v in tensors().items() if not k.startswith("res5.")}
    file = saved(content)
    error = assert_refused(train(file), file)
    absent = [name for name in body(tensors()) if name.startswith("res5.")]
    names, count = named(error, "Missing")
    assert count == len(absent)
    assert len(names) == 5
    assert set(names) <= set(absent)


@pytest.mark.parametrize(
    "name", ["stem.extra.weight", "res3.0.conv4.weight", "res2.2.conv1.weight"]
)
def test_one_tensor_too_many_is_named(name, train):
    content = tensors() | {name: torch.zeros(4)}
    file = saved(content)
    error = assert_refused(train(file), file)
    assert named(error, "Unused in the file") == ([name], 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stem.conv1.weight", (32, 4, 7, 7)),
        ("res4.1.conv2.norm.running_mean", (1,)),
        ("res3.0.conv1.weight", (64, 64)),
    ],
)
def test_one_tensor_of_another_shape_is_named_with_both_shapes(name, shape, train):
    content = tensors()
    expected = tuple(content[name].shape)
    file = saved(content | {name: torch.zeros(shape)})
    error = assert_refused(train(file), file)
    assert named(error, "Of another shape") == ([name], 1)
    assert str(shape) in error
    assert str(expected) in error


def test_an_unconverted_torchvision_file_says_how_to_convert_it(train):
    network = torchvision.models.ResNet(
        Bottleneck, [2, 2, 2, 2], groups=8, width_per_group=4, num_classes=10
    )
    for content in (network.state_dict(), {"state_dict": network.state_dict()}):
        torch.save(content, "tv.pth")
        file = Path("tv.pth").absolute()
        error = assert_refused(train(file), file)
        assert f"python tools/convert_weights.py {file} OUT.pth" in error
    torch.save(network.state_dict(), file)
    error = assert_refused(train(file), file)
    assert arrived(error)[0] == 0
    assert "torchvision" in error
    assert named(error, "Unused in the file")[0][0] == "conv1.weight"
    assert len(named(error, "Unused in the file")[0]) == 5


def test_another_template_of_the_same_width_is_told_from_the_3x3_layers(train):
    file = saved(tensors(cardinality=8, width=8))
    words = ("MODEL.RESNETS.NUM_GROUPS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4")
    error = assert_refused(train(file, *words), file)
    names, count = named(error, "Of another shape")
    assert (len(names), count) == (5, 8)
    assert all(name.endswith(".conv2.weight") for name in names)
    loaded, total = arrived(error)
    assert total - loaded == 8
    assert "NUM_GROUPS 8" in error
    assert "WIDTH_PER_GROUP 8" in error
    assert "Missing" not in error
    assert "Unused" not in error
    words = ("MODEL.RESNETS.NUM_GROUPS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "8")
    assert train(file, *words)[0] == 0


@pytest.mark.parametrize(("in_file", "in_config"), [(50, 101), (101, 50), (26, 50)])
def test_another_depth_is_told(in_file, in_config, train):
    file = saved(tensors(depth=in_file))
    error = assert_refused(train(file, "MODEL.RESNETS.DEPTH", str(in_config)), file)
    title = "Missing" if in_file < in_config else "Unused in the file"
    names, count = named(error, title)
    blocks = abs(in_file - in_config) // 3
    assert (len(names), count) == (5, 15 * blocks)  # three layers: a weight and four of a norm
    assert "another depth" in error
    assert "MODEL.RESNETS.DEPTH" in error


def test_a_torch7_file_says_how_to_convert_it(train):
    write_resnext_t7(Path("x.t7"), depth=26, cardinality=8, width=4, num_classes=10)
    file = Path("x.t7").absolute()
    error = assert_refused(train(file), file)
    assert "Torch7" in error
    assert f"python tools/convert_weights.py {file} OUT.pth" in error


def test_no_weights_with_frozen_layers_are_an_error(train):
    status, out, error = train("", "MODEL.BACKBONE.FREEZE_AT", "2")
    assert status == 1
    assert re.match(r"error: no weights were named and \d+ random tensors are frozen", error)
    assert error.count("\n") == 1
    assert "iter:" not in out
    assert len((out + error).splitlines()) < 10


def test_no_weights_without_frozen_layers_train(train):
    status, out, error = train("", "MODEL.BACKBONE.FREEZE_AT", "0")
    assert (status, error) == (0, "")
    assert "iter: 1/" in out


C4 = (
    *("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
    *("MODEL.BACKBONE.NAME", "build_resnext_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "('res4',)", "MODEL.RPN.IN_FEATURES", "('res4',)"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "((16, 32, 64),)"),
)


def test_a_stage_that_the_model_lacks_is_not_missed_in_it(train):
    content = tensors()
    status, out, error = train(saved(content), *C4)
    assert (status, error) == (0, "")
    count = len([name for name in body(content) if not name.startswith("res5.")])
    assert f"backbone: {count}/{count} tensors loaded" in out


def test_a_stage_that_the_model_has_is_missed_in_a_file_without_it(train):
    content = {k: v for k, v in tensors().items() if not k.startswith("res4.")}
    file = saved(content)
    error = assert_refused(train(file, *C4), file)
    assert named(error, "Missing")[0][0].startswith("res4.")


@pytest.mark.parametrize("present", [True, False])
def test_counters_do_not_matter(present, train):
    content = tensors(norm="BN")
    if present:  # in a file for FrozenBN, which has none
        words = ("MODEL.RESNETS.NORM", "FrozenBN")
    else:
        content, words = {name: content[name] for name in body(content)}, ()
    status, out, error = train(saved(content), *words)
    assert (status, error) == (0, "")
    count = len(body(content))
    assert f"backbone: {count}/{count} tensors loaded" in out


def test_a_classifier_beside_the_backbone_is_no_tensor_too_many(train):
    classifier = {"linear.weight": torch.zeros(10, 512), "linear.bias": torch.zeros(10)}
    assert train(saved(tensors() | classifier))[0] == 0


def test_a_missing_classifier_or_head_is_no_error_but_counted(train):
    out = train(saved(tensors()))[1]
    loaded, total = re.search(r"heads: (\d+)/(\d+)", out).groups()
    assert int(loaded) == 0
    model = torch.load("output/model_final.pth", weights_only=True)["model"]
    heads = [n for n in body(model) if "bottom_up" not in n and not n.startswith("pixel_")]
    assert int(total) == len(heads)


def test_a_detectors_checkpoint_without_a_tensor_is_refused_for_training_and_test(train):
    assert train("")[0] == 0
    content = torch.load("output/model_final.pth", weights_only=True)
    Path("output/model_final.pth").unlink()
    for name in (
        "backbone.bottom_up.res3.1.conv2.weight",
        "roi_heads.box_predictor.cls_score.bias",
    ):
        rest = {k: v for k, v in content["model"].items() if k != name}
        torch.save({**content, "model": rest}, "part.pth")
        for flags in ((), ("--eval-only",)):
            if "roi_heads" in name and not flags:
                continue  # a new head is what training from ImageNet weights has
            words = ("DATASETS.TEST", "('shapes_minival',)") if flags else ()
            done = train("part.pth", *words, flags=flags)
            error = assert_refused(done, "part.pth")
            assert name.removeprefix("backbone.bottom_up.") in error


def test_another_norm_is_told(train):
    file = saved(tensors(norm="GN"))
    error = assert_refused(train(file), file)
    assert all(
        name.endswith(("running_mean", "running_var")) for name in named(error, "Missing")[0]
    )
    assert "MODEL.RESNETS.NORM" in error


def test_two_networks_in_one_file_are_refused(train):
    both = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in tensors().items()}
    file = saved(both)
    assert_refused(train(file), file)


@pytest.mark.parametrize("content", [{}, {"a": torch.zeros(1)}])
def test_a_file_without_a_backbone_is_refused(content, train):
    file = saved(content)
    assert arrived(assert_refused(train(file), file))[0] == 0
