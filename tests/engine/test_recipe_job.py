"""Jobs compare the config with the recipe of their weights, and print what to paste."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from resnext_det.config import config_dir
from resnext_det.data import shapes
from resnext_det.engine import argument_parser, run_job, train_or_evaluate
from resnext_det.engine.lazy import train_or_evaluate_lazy
from resnext_det.errors import UserError, user_message
from resnext_det.weights.convert import convert_file
from tests.helpers import randomise, run_tool

QUICK = "quick/faster_rcnn_X26_8x4d_FPN"
LAZY = "lazy/quick/faster_rcnn_X26_8x4d_FPN"
# torchvision's documented transforms, for images of 0..255
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SUFFIXES = [".pth", ".safetensors"]


@pytest.fixture(autouse=True)
def few_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 4, "shapes_minival": 2})
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small network of torchvision's, converted: suffix -> file; "R.pth" has no groups."""
    folder = tmp_path_factory.mktemp("converted")
    for name, (groups, width) in {"X": (8, 4), "R": (1, 64)}.items():
        network = ResNet(
            Bottleneck, [2, 2, 2, 2], groups=groups, width_per_group=width, num_classes=100
        )
        torch.save(randomise(network).state_dict(), folder / f"{name}-torchvision.pth")
        for suffix in SUFFIXES:
            convert_file(folder / f"{name}-torchvision.pth", folder / f"{name}{suffix}")
    return {path.name.removeprefix("X"): path for path in folder.iterdir()}


def config(weights="", **changes):
    """A config for the network of `converted`; `changes` are section__KEY=value."""
    tree = {
        "_BASE_": str(config_dir() / f"{QUICK}.yaml"),
        "MODEL": {
            "WEIGHTS": str(weights),
            "PIXEL_MEAN": MEAN,
            "PIXEL_STD": STD,
            "RESNETS": {"STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256},
        },
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "FORMAT": "RGB"},
        "SOLVER": {"MAX_ITER": 1, "IMS_PER_BATCH": 2},
        "DATASETS": {"TEST": []},
        "OUTPUT_DIR": "output",
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def pasted(tree, lines):
    """`tree` with what the lines of YAML say."""

    def merge(old, new):
        both = old.keys() & new.keys() if isinstance(old, dict) else ()
        return (
            {**old, **new, **{k: merge(old[k], new[k]) for k in both}}
            if both
            else ({**old, **new} if isinstance(new, dict) else new)
        )

    found = yaml.safe_load(lines)
    assert isinstance(found, dict)
    return merge(tree, found)


@pytest.fixture
def run(capsys):
    """Run the job with a config; returns its status, output and error."""

    def run(tree, *flags):
        Path("config.yaml").write_text(yaml.safe_dump(tree))
        args = argument_parser().parse_args(["--config-file", "config.yaml", *flags])
        capsys.readouterr()
        status = run_job(train_or_evaluate, args)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def lines_to_paste(error):
    """The first line of an error, and those under it. A resumed file is named by no key."""
    first, _, lines = error.partition("\n")
    named = r"error: ((MODEL\.WEIGHTS|train\.init_checkpoint) )?\S+ does not go with the config: "
    assert re.match(named, first)
    assert first.endswith("paste into the config:")
    assert "Traceback" not in error
    return first, lines


def assert_not_begun(out):
    assert "iter:" not in out
    assert not any(file.read_text() for file in Path("output").glob("metrics*.json"))
    assert not list(Path().rglob("model_final.pth"))


FLIPS = {
    "depth": ({"MODEL__RESNETS__DEPTH": 50}, "X-50-8x4d", "X-26-8x4d"),
    "groups": ({"MODEL__RESNETS__NUM_GROUPS": 4}, "X-26-4x4d", "X-26-8x4d"),
    "width": ({"MODEL__RESNETS__WIDTH_PER_GROUP": 8}, "X-26-8x8d", "X-26-8x4d"),
    # the same shapes except in the 3x3 layers
    "template": (
        {"MODEL__RESNETS__NUM_GROUPS": 4, "MODEL__RESNETS__WIDTH_PER_GROUP": 8},
        "X-26-4x8d",
        "X-26-8x4d",
    ),
    "channel order": ({"INPUT__FORMAT": "BGR"}, "BGR", "RGB"),
    "mean": (
        {"MODEL__PIXEL_MEAN": [103.53, 116.28, 123.675]},
        "[103.53, 116.28, 123.675]",
        "[123.675, 116.28, 103.53]",
    ),
    "std": (
        {"MODEL__PIXEL_STD": [1.0, 1.0, 1.0]},
        "[1, 1, 1]",
        "[58.395, 57.12, 57.375]",
    ),
    "stride": ({"MODEL__RESNETS__STRIDE_IN_1X1": True}, "True", "False"),
}


@pytest.mark.parametrize(
    ("flip", "suffix"),
    [*((flip, ".pth") for flip in FLIPS), ("template", ".safetensors"), ("mean", ".safetensors")],
)
def test_a_flipped_field_is_named_and_the_lines_mend_it(flip, suffix, converted, run):
    changes, configs, files = FLIPS[flip]
    tree = config(converted[suffix], **changes)
    status, out, error = run(tree)
    assert status == 1
    first, lines = lines_to_paste(error)
    assert str(converted[suffix]) in first
    assert len(re.findall(r" is .* and the file's ", first)) == 1
    assert f" is {configs} and the file's " in first
    assert f" is {files}." in first
    assert_not_begun(out)
    status, out, error = run(pasted(tree, lines))
    assert (status, error) == (0, "")
    assert "iter: 1/" in out


def test_all_fields_are_named_at_once_and_mended_at_once(converted, run):
    everything = {k: v for changes, *_ in FLIPS.values() for k, v in changes.items()}
    tree = config(converted[".pth"], **everything)
    status, _, error = run(tree)
    first, lines = lines_to_paste(error)
    assert status == 1
    assert first.count("and the file's ") == 5
    assert run(pasted(tree, lines))[0] == 0


def test_lines_pasted_below_a_config_do_not_hide_what_it_says(converted, run):
    """YAML keeps the second of two MODEL keys: the first, with WEIGHTS, must not get lost."""
    status, _, error = run(config(converted[".pth"], MODEL__PIXEL_STD=[1.0, 1.0, 1.0]))
    assert status == 1
    with Path("config.yaml").open("a") as file:
        file.write(lines_to_paste(error)[1])
    args = argument_parser().parse_args(["--config-file", "config.yaml"])
    status = run_job(train_or_evaluate, args)
    if status == 0:  # as it may refuse a key that occurs twice
        assert recipe_of("output/model_final.pth")["source"] == "torchvision"


def test_lines_for_a_network_without_groups_mend_the_config(converted, run):
    tree = config(converted["R.pth"])
    status, _, error = run(tree)
    assert status == 1
    assert run(pasted(tree, lines_to_paste(error)[1]))[0] == 0


def with_recipe(source, target, **changes):
    """A copy of a converted file with another recipe."""
    if source.suffix == ".pth":
        content = torch.load(source, weights_only=True)
        content["recipe"].update(changes)
        torch.save(content, target)
    else:
        with safe_open(source, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        metadata["recipe"] = json.dumps({**json.loads(metadata["recipe"]), **changes})
        save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_epsilon_is_an_error_with_both_values(suffix, converted, run, tmp_path):
    file = with_recipe(converted[suffix], tmp_path / f"eps{suffix}", bn_eps=1e-3)
    status, out, error = run(config(file))
    assert status == 1
    assert "is 1e-05 and the file's bn_eps is 0.001" in error
    assert error.count("\n") == 1  # no config can mend it
    assert_not_begun(out)


@pytest.mark.parametrize(
    "values", [[102.9801, 115.9465, 122.7717], [0.0, 0.0, 0.0], [1e-5, 1234567.0, 0.4815162342]]
)
def test_printed_numbers_are_those_of_the_file(values, converted, run, tmp_path):
    file = with_recipe(converted[".pth"], tmp_path / "mean.pth", pixel_mean=values)
    tree = config(file)
    status, _, error = run(tree)
    assert status == 1
    mended = pasted(tree, lines_to_paste(error)[1])
    assert mended["MODEL"]["PIXEL_MEAN"] == values
    assert run(mended)[0] == 0


def test_a_mean_that_only_its_rounding_changes_agrees(converted, run):
    assert run(config(converted[".pth"], MODEL__PIXEL_MEAN=[123.68, 116.28, 103.53]))[0] == 0


def recipe_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["recipe"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_checkpoints_carry_the_recipe_of_the_weights(suffix, converted, run):
    assert run(config(converted[suffix]))[0] == 0
    original = torch.load(converted[".pth"], weights_only=True)["recipe"]
    assert original["source"] == "torchvision"
    assert len(original["source_sha256"]) == 64
    assert recipe_of("output/model_final.pth") == original


def test_checkpoints_trained_from_random_weights_carry_the_configs_recipe(run):
    assert run(config("", INPUT__FORMAT="BGR"))[0] == 0
    found = recipe_of("output/model_final.pth")
    assert (found["variant"], found["channel_order"]) == ("X-26-8x4d", "BGR")
    assert (found["pixel_mean"], found["pixel_std"]) == (MEAN, STD)
    assert (found["stride_in_1x1"], found["source_sha256"]) == (False, "")


@pytest.mark.parametrize("start", ["converted", "random"])
def test_evaluation_and_resumption_compare_a_checkpoint_too(start, converted, run):
    weights = converted[".pth"] if start == "converted" else ""
    assert run(config(weights))[0] == 0
    final = Path("output/model_final.pth")
    test = {"DATASETS__TEST": ["shapes_minival"], "OUTPUT_DIR": "test"}
    more = {"SOLVER__MAX_ITER": 2}
    changes = {k: v for flip in FLIPS.values() for k, v in flip[0].items()}
    before = final.read_bytes()
    for tree, flag in (
        (config(final, **test, **changes), "--eval-only"),
        (config(weights, **more, **changes), "--resume"),
    ):
        status, out, error = run(tree, flag)
        assert status == 1, flag
        first, lines = lines_to_paste(error)
        assert "model_final.pth" in first
        for flip in ("channel order", "mean", "std", "stride"):
            _, configs, files = FLIPS[flip]
            assert f" is {configs} and the file's " in first
            assert f" is {files}" in first
        assert "is X-50-4x8d and the file's variant is X-26-8x4d" in first
        assert "iter:" not in out
        assert not Path("test/inference").exists()
        assert final.read_bytes() == before
    status, _, error = run(pasted(config(final, **test, **changes), lines), "--eval-only")
    assert (status, error) == (0, "")
    assert Path("test/results.json").is_file()
    status, out, error = run(pasted(tree, lines), "--resume")
    assert (status, error) == (0, "")
    assert "resuming from output/model_final.pth at iteration 1 of 2" in out
    assert recipe_of(final)["source"] == ("torchvision" if weights else "resnext_det")


def test_the_message_of_a_resumed_run_does_not_name_weights_that_were_not_read(run):
    assert run(config(""))[0] == 0
    error = run(config("", SOLVER__MAX_ITER=2, INPUT__FORMAT="BGR"), "--resume")[2]
    assert "output/model_final.pth" in error
    assert "MODEL.WEIGHTS output" not in error


def test_weights_without_a_recipe_give_one_warning(converted, run, tmp_path):
    content = torch.load(converted[".pth"], weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    output = tmp_path / "bare"
    status, out, _ = run(config(tmp_path / "bare.pth", OUTPUT_DIR=str(output)))
    assert status == 0
    (line,) = [line for line in out.splitlines() if "carries no recipe" in line]
    assert "WARNING" in line
    assert str(tmp_path / "bare.pth") in line
    assert (output / "log.txt").read_text().count("carries no recipe") == 1


def test_two_refusals_keep_the_curves_of_the_earlier_run(run):
    assert run(config(""))[0] == 0
    curves = Path("output/metrics.json").read_text()
    torch.save({"model": {}, "recipe": recipe_of("output/model_final.pth")}, "w.pth")
    for _ in range(2):
        assert run(config("w.pth", INPUT__FORMAT="BGR"))[0] == 1
    assert curves
    assert curves in [file.read_text() for file in Path("output").glob("metrics*.json")]


def test_the_lines_survive_the_way_out_of_another_process():
    message = "w.pth does not go: paste into the config:\nMODEL:\n  RESNETS:\n    DEPTH: 26"
    trace = f"Traceback (most recent call last):\n  File\nresnext_det.errors.UserError: {message}\n"
    wrapped = RuntimeError(f"\n\n-- Process 1 terminated with the following error:\n{trace}\n")
    assert user_message(wrapped) == message
    assert user_message(UserError(message)) == message


def test_two_processes_print_the_lines_once(converted, run, tmp_path):
    tree = config(converted[".pth"], MODEL__RESNETS__NUM_GROUPS=4, INPUT__FORMAT="BGR")
    expected = run(tree)[2]  # and draws the images
    tool = Path(__file__).parents[2] / "tools/train_net.py"
    words = (tool, "--config-file", tmp_path / "config.yaml", "--num-gpus", 2)
    done = run_tool(*words, datasets=tmp_path / "datasets", cwd=tmp_path)
    assert done.returncode == 1
    errors = done.stderr[done.stderr.index("error: ") :]
    assert errors == expected
    assert "Traceback" not in done.stdout + done.stderr
    assert "iter:" not in done.stdout


# Python configs

ORDERS = ("model.input_format", "dataloader.train.mapper.image_format")
LAZY_FLIPS = {
    "depth": (["model.backbone.bottom_up.depth=50"], "X-50-8x4d", "X-26-8x4d"),
    "groups": (["model.backbone.bottom_up.cardinality=4"], "X-26-4x4d", "X-26-8x4d"),
    "width": (["model.backbone.bottom_up.width=8"], "X-26-8x8d", "X-26-8x4d"),
    "order": (
        [f"{key}=BGR" for key in (*ORDERS, "dataloader.test.mapper.image_format")],
        "BGR",
        "RGB",
    ),
    "mean": (["model.pixel_mean=[1.0,2.0,3.0]"], "[1, 2, 3]", "[123.675, 116.28, 103.53]"),
    "std": (["model.pixel_std=[1.0,2.0,3.0]"], "[1, 2, 3]", "[58.395, 57.12, 57.375]"),
    "stride": (["+model.backbone.bottom_up.stride_in_1x1=True"], "True", "False"),
}


def python_config(weights, *overrides):
    overrides = [
        f"train.init_checkpoint={weights}",
        f"model.pixel_mean={MEAN}",
        f"model.pixel_std={STD}",
        "model.backbone.bottom_up.stem_out_channels=64",
        "model.backbone.bottom_up.res2_out_channels=256",
        "train.max_iter=1",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "train.output_dir=output",
        *overrides,
    ]
    return (
        "from resnext_det.engine.lazy_config import load_lazy_config\n"
        f"_cfg = load_lazy_config({LAZY!r}, {overrides!r})\n"
        "model, dataloader, optimizer = _cfg.model, _cfg.dataloader, _cfg.optimizer\n"
        "lr_multiplier, train = _cfg.lr_multiplier, _cfg.train\n"
    )


@pytest.fixture
def run_python(capsys):
    def run(text, *flags):
        Path("config.py").write_text(text)
        args = argument_parser().parse_args(["--config-file", "config.py", *flags])
        capsys.readouterr()
        status = run_job(train_or_evaluate_lazy, args)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("flip", LAZY_FLIPS)
def test_a_python_config_gets_assignments_to_paste(flip, converted, run_python):
    overrides, configs, files = LAZY_FLIPS[flip]
    text = python_config(converted[".pth"], *overrides)
    status, out, error = run_python(text)
    assert status == 1
    first, lines = lines_to_paste(error)
    assert f" is {configs} and the file's " in first
    assert f" is {files}." in first
    assert_not_begun(out)
    status, out, error = run_python(text + lines)
    assert (status, error) == (0, "")
    assert "iter: 1/" in out


def test_a_python_config_of_another_kind_of_network_gets_assignments_too(converted, run_python):
    text = python_config(converted["R.pth"])
    status, _, error = run_python(text)
    assert status == 1
    assert run_python(text + lines_to_paste(error)[1])[0] == 0


def test_a_python_config_gets_all_assignments_at_once(converted, run_python):
    text = python_config(
        converted[".safetensors"], *(o for flip in LAZY_FLIPS.values() for o in flip[0])
    )
    status, _, error = run_python(text)
    assert status == 1
    assert run_python(text + lines_to_paste(error)[1])[0] == 0


def test_a_python_config_compares_checkpoints_too(converted, run_python):
    assert run_python(python_config(converted[".pth"]))[0] == 0
    assert recipe_of("output/model_final.pth")["source"] == "torchvision"
    flip = LAZY_FLIPS["order"][0]
    final = Path("output/model_final.pth").absolute()
    for text, flag in (
        (python_config(final, "train.output_dir=test", *flip), "--eval-only"),
        (python_config("''", "train.max_iter=2", *flip), "--resume"),
    ):
        status, out, error = run_python(text, flag)
        assert status == 1
        assert "iter:" not in out
        status, _, error = run_python(text + lines_to_paste(error)[1], flag)
        assert (status, error) == (0, "")


def test_a_python_config_with_two_channel_orders_is_an_error(converted, run_python):
    status, out, error = run_python(python_config(converted[".pth"], f"{ORDERS[0]}=BGR"))
    assert status == 1
    assert error.startswith(
        "error: the model and its loaders differ in channel order: model.input_format=BGR, "
    )
    assert error.count("\n") == 1
    assert_not_begun(out)


def test_the_keys_in_a_python_configs_error_are_its_own(converted, run_python):
    error = run_python(python_config(converted[".pth"], *LAZY_FLIPS["mean"][0]))[2]
    assert "model.pixel_mean is" in error
    assert "MODEL.PIXEL_MEAN" not in error


def test_nothing_is_logged_as_an_error_without_a_mistake(converted, run, caplog):
    with caplog.at_level(logging.ERROR):
        assert run(config(converted[".pth"]))[0] == 0
    assert not caplog.records
    assert os.listdir("output")
