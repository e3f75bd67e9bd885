"""The recipe in a file: what it says comes back, and a damaged one is an error."""

import hashlib
import json
import logging
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from safetensors import safe_open
from torchvision.models import ResNet as TorchvisionResNet
from torchvision.models.resnet import Bottleneck

import resnext_det
from resnext_det import ResNeXt
from resnext_det.errors import UserError
from resnext_det.weights import StrictCheckpointer, settings_of
from resnext_det.weights.conventions import Options
from resnext_det.weights.convert import convert_file, export_file
from resnext_det.weights.files import read_file
from resnext_det.weights.recipe import Recipe
from tests.helpers import randomise

SUFFIXES = [".pth", ".safetensors"]


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A small network of torchvision's: the network and its file."""
    network = TorchvisionResNet(
        Bottleneck, [2, 2, 2, 2], groups=8, width_per_group=4, num_classes=100
    )
    file = tmp_path_factory.mktemp("public") / "torchvision.pth"
    torch.save(randomise(network).state_dict(), file)
    return SimpleNamespace(network=network.eval(), file=file)


@pytest.fixture(scope="module")
def converted(public):
    files = {suffix: public.file.with_name(f"out{suffix}") for suffix in SUFFIXES}
    for file in files.values():
        convert_file(public.file, file)
    return files


def settings(**changes):
    cfg = resnext_det.get_cfg("quick/faster_rcnn_X26_8x4d_FPN")
    # torchvision's documented transforms, for images of 0..255
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    for key, value in changes.items():
        cfg.merge_from_list([key, value])
    return settings_of(cfg)


def backbone():
    network = ResNeXt(26, 8, 4, norm="FrozenBN", out_features=["res5"])
    return torch.nn.ModuleDict({"backbone": network})


@pytest.fixture(scope="module")
def model():
    return backbone()


def load(file, **options):
    StrictCheckpointer(backbone(), settings=settings(), **options).load(str(file))


def written_recipe(file):
    """What the file says, read by other means than the package's."""
    if file.suffix == ".pth":
        return torch.load(file, weights_only=True)["recipe"]
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["recipe"])


def rewrite(source, target, recipe):
    """A copy with another recipe: a value, or for safetensors any text."""
    if source.suffix == ".pth":
        content = {**torch.load(source, weights_only=True), "recipe": recipe}
        torch.save(content, target)
    else:
        text = recipe if isinstance(recipe, bytes) else json.dumps(recipe).encode()
        tensors = safetensors.torch.load_file(source)
        metadata = {"format": "pt", "recipe": text.decode(), "note": "x" * 200}
        safetensors.torch.save_file(tensors, target, metadata)
        if target.read_bytes()[0] == 0x80:  # which test_files.py looks at
            safetensors.torch.save_file(tensors, target, {**metadata, "note": "x" * 208})
    return target


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_converted_file_says_where_it_is_from_and_what_it_expects(suffix, converted, public):
    recipe = written_recipe(converted[suffix])
    assert recipe["variant"] == "X-26-8x4d"
    assert recipe["channel_order"] == "RGB"
    assert recipe["pixel_mean"] == [255 * v for v in (0.485, 0.456, 0.406)]
    assert recipe["pixel_std"] == pytest.approx([255 * v for v in (0.229, 0.224, 0.225)])
    assert recipe["stride_in_1x1"] is False
    assert recipe["bn_eps"] == public.network.bn1.eps
    assert recipe["source"] == "torchvision"
    assert recipe["source_sha256"] == hashlib.sha256(public.file.read_bytes()).hexdigest()
    assert recipe["licence"] == "unknown"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_the_user_says_is_written(suffix, public, tmp_path):
    said = Options(
        input_order="BGR",
        pixel_mean=(1.5, 2.5, 3.5),
        pixel_std=(4.0, 5.0, 6.0),
        stride_in_1x1=True,
        licence="CC-BY",
    )
    with pytest.raises(UserError, match="strides in the 3x3"):
        convert_file(public.file, tmp_path / f"no{suffix}", said)  # its stride is elsewhere
    said = Options("torchvision", None, "BGR", (1.5, 2.5, 3.5), (4.0, 5.0, 6.0), None, "CC-BY")
    convert_file(public.file, tmp_path / f"out{suffix}", said)
    recipe = written_recipe(tmp_path / f"out{suffix}")
    assert (recipe["channel_order"], recipe["licence"]) == ("BGR", "CC-BY")
    assert (recipe["pixel_mean"], recipe["pixel_std"]) == ([1.5, 2.5, 3.5], [4.0, 5.0, 6.0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_channel_order_turns_first_layer_mean_and_std(suffix, public, converted, tmp_path):
    file = tmp_path / f"bgr{suffix}"
    convert_file(public.file, file, channel_order="BGR")
    there, plain = written_recipe(file), written_recipe(converted[suffix])
    assert there["channel_order"] == "BGR"
    assert there["pixel_mean"] == plain["pixel_mean"][::-1]
    assert there["pixel_std"] == plain["pixel_std"][::-1]
    with pytest.raises(UserError, match="INPUT.FORMAT is RGB and the file's channel_order is BGR"):
        load(file)
    again = tmp_path / f"again{suffix}"
    convert_file(file, again, channel_order="RGB")
    assert {**written_recipe(again), "source": "", "source_sha256": ""} == {
        **plain,
        "source": "",
        "source_sha256": "",
    }
    weight = StrictCheckpointer(model := backbone()).load(str(again)) and model["backbone"].stem
    assert torch.equal(weight.conv1.weight, public.network.conv1.weight)


def test_an_exported_file_has_no_recipe(converted, tmp_path):
    for suffix in SUFFIXES:
        export_file(converted[".pth"], tmp_path / f"tv{suffix}")
        raw = read_file(tmp_path / f"tv{suffix}")
        assert "recipe" not in raw.content
        assert "recipe" not in raw.metadata


def test_a_config_without_a_resnext_is_not_compared(converted, caplog):
    cfg = resnext_det.get_cfg("quick/faster_rcnn_X26_8x4d_FPN")
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    assert settings_of(cfg) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_agreeing_weights_load_without_a_warning(suffix, converted, caplog):
    with caplog.at_level(logging.INFO, "resnext_det"):
        load(converted[suffix])
    assert "backbone: 145/145 tensors loaded" in caplog.text
    assert "carries no recipe" not in caplog.text


DAMAGED = {
    **{
        f"without {name}": (lambda r, name=name: {k: v for k, v in r.items() if k != name})
        for name in Recipe("", "", (), ()).as_dict()
    },
    "empty": lambda r: {},
    "a list": lambda r: [1, 2],
    "a text": lambda r: "RGB",
    "a number": lambda r: 7,
    **{
        f"{name} {value!r}": (lambda r, name=name, value=value: {**r, name: value})
        for name, values in {
            "variant": (50, None, ["X-26-8x4d"], "", "ResNeXt", "X-26-8x4d\nMODEL: 1"),
            "channel_order": (3, None, "GBR", "rgb", ["RGB"]),
            "pixel_mean": (
                "123",
                123.0,
                None,
                [1.0, 2.0],
                [1.0, 2.0, None],
                [1.0, 2.0, "x"],
                [1.0, 2.0, float("nan")],
                [[1.0], [2.0], [3.0]],
                [],
            ),
            "pixel_std": ("1", [1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("inf"), 1.0], {}),
            "stride_in_1x1": ("no", 2, None, [False]),
            "bn_eps": ("small", None, -1.0, float("nan"), [1e-5]),
            "source": (5, None),
            "source_sha256": (5, None),
            "licence": (None, 3),
            "version": (0, 2, "1", None, [1]),
        }.items()
        for value in values
    },
}


def small_file(folder, suffix, recipe):
    """A file with a recipe and a single tensor: the recipe is what is read first."""
    source = folder / f"source{suffix}"
    tensors = {"stem.conv1.weight": torch.zeros(64, 3, 7, 7)}
    if suffix == ".pth":
        torch.save({"model": tensors}, source)
    else:
        safetensors.torch.save_file(tensors, source)
    return rewrite(source, folder / f"w{suffix}", recipe)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_recipe_is_one_clear_error(damage, suffix, converted, model, tmp_path):
    recipe = DAMAGED[damage](written_recipe(converted[".safetensors"]))
    file = small_file(tmp_path, suffix, recipe)
    with pytest.raises(UserError) as caught:
        StrictCheckpointer(model, settings=settings()).load(str(file))
    assert str(file) in str(caught.value)
    assert "its recipe" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "damage", ["without licence", "version 2", "pixel_mean [1.0, 2.0]", "channel_order 'GBR'"]
)
def test_a_damaged_recipe_is_not_converted(damage, suffix, converted, tmp_path):
    recipe = DAMAGED[damage](written_recipe(converted[suffix]))
    file = rewrite(converted[suffix], tmp_path / f"w{suffix}", recipe)
    with pytest.raises(UserError, match="its recipe") as caught:
        convert_file(file, tmp_path / "out.pth")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"{'variant': 1}", b"variant: X-26-8x4d", b"\xc3\xa9", b"[" * 100_000]
)
def test_metadata_that_is_not_json_is_one_clear_error(text, model, tmp_path):
    file = small_file(tmp_path, ".safetensors", text)
    with pytest.raises(UserError, match="its recipe is not JSON") as caught:
        StrictCheckpointer(model, settings=settings()).load(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_nothing_is_none(converted, tmp_path, caplog):
    file = rewrite(converted[".pth"], tmp_path / "w.pth", None)
    load(file)
    assert caplog.text.count("carries no recipe") == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_a_recipe_is_warned_of_once(suffix, converted, tmp_path, caplog):
    tensors = read_file(converted[suffix]).content
    tensors = tensors.get("model", tensors)
    file = tmp_path / f"bare{suffix}"
    torch.save(tensors, file) if suffix == ".pth" else safetensors.torch.save_file(tensors, file)
    load(file)
    (record,) = [r for r in caplog.records if "carries no recipe" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert str(file) in record.getMessage()


def detectron2s_own_network():
    """Detectron2's ResNet of the same sizes; its builder knows no depth of 26."""
    stages, inner = [], 64
    for index in range(4):
        outer = 256 * 2**index
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                2,
                stride_per_block=[1 if index == 0 else 2, 1],
                in_channels=inner,
                out_channels=outer,
                bottleneck_channels=32 * 2**index,
                num_groups=8,
                norm="FrozenBN",
                stride_in_1x1=False,
            )
        )
        inner = outer
    return ResNet(BasicStem(3, 64, norm="FrozenBN"), stages, out_features=["res5"])


def test_stock_detectron2_loads_the_file_and_computes_torchvisions_features(converted, public):
    network = detectron2s_own_network()
    detector = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"bottom_up": network})})
    DetectionCheckpointer(detector).load(str(converted[".pth"]))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs = public.network
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        found = network(images)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
