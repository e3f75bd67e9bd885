"""Every public source of weights: a genuine file, converted, loaded into a detector, exported."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torchvision.models.resnet import Bottleneck

import resnext_det
from resnext_det import ResNeXt
from resnext_det.errors import UserError
from resnext_det.variants import Variant
from resnext_det.weights import StrictCheckpointer, convert, files, settings_of
from resnext_det.weights.sources import (
    SOURCES,
    cadene,
    caffe2,
    detectron2,
    openmmlab,
    torch7,
)
from resnext_det.weights.sources import torchvision as torchvision_source
from tests.helpers import randomise, torchvision_name
from tests.weights.public_files import (
    KINDS,
    SAME_RULES,
    SMALL,
    PublicFile,
    basic_block_network,
    moco_tensors,
    random_network,
    run_converter,
    tensors_of,
    write_with_header,
)

TOLERANCE = 1e-4  # of the largest feature


def convert_to(out: Path, *words: object) -> dict:
    """Convert without a mistake; the report."""
    done = run_converter(*words, out, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def refusal(*words: object) -> str:
    """The one line of an error that the tool ends with."""
    done = run_converter(*words)
    assert done.status == 1, done.err
    assert done.out == ""
    last = done.err.strip().split("\n")[-1]
    assert last.startswith("error: ")
    assert done.err.count("error: ") == 1
    return last


@dataclass(frozen=True)
class Converted:
    kind: str
    file: Path
    public: PublicFile
    out: Path
    report: dict

    @property
    def source(self) -> str:
        return KINDS[self.kind].source


def write_and_convert(kind: str, folder: Path, *options: object, suffix: str = ".pth") -> Converted:
    file, out = folder / f"public{KINDS[kind].suffix}", folder / f"converted{suffix}"
    public = KINDS[kind].write(file)
    report = convert_to(out, *options, file)
    return Converted(kind, file, public, out, report)


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory):
    """One file of each kind and what the tool made of it, without options."""
    return write_and_convert(request.param, tmp_path_factory.mktemp("source"))


def loaded(out: Path) -> tuple[dict, dict]:
    """(tensors, recipe) of a converted file, read without running anything."""
    if out.suffix == ".pth":
        content = torch.load(out, weights_only=True)
        return content["model"], content["recipe"]
    with safetensors.safe_open(out, framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        return {name: file.get_tensor(name) for name in file.keys()}, recipe  # noqa: SIM118


def detector_config(public: PublicFile, order: str, name: str = "quick/faster_rcnn_X26_8x4d_FPN"):
    """A detector for a file, with what its publisher documents of images, in `order`."""
    variant = Variant.parse(public.variant)
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NUM_GROUPS = variant.depth, variant.cardinality
    resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1 = variant.width, public.stride_in_1x1
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 64, 256
    in_order, mean, std = public.expects
    step = 1 if order == in_order else -1
    cfg.INPUT.FORMAT = order
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(mean[::step]), list(std[::step])
    return cfg


@torch.no_grad()
def detector_features(cfg, weights: Path, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of a detector's ResNeXt for an RGB image (3, H, W) of 0..255."""
    model = build_model(cfg).eval()
    StrictCheckpointer(model, settings=settings_of(cfg)).load(str(weights))
    if cfg.INPUT.FORMAT == "BGR":
        image = image.flip(0)
    x = model.preprocess_image([{"image": image}]).tensor
    if hasattr(model.backbone, "bottom_up"):
        return model.backbone.bottom_up(x)
    found = model.backbone(x)
    return {**found, "res5": model.roi_heads.res5(found["res4"])}


def random_image() -> torch.Tensor:
    """RGB, of 0..255; the sizes are multiples of every stride, so that nothing is padded."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)


def assert_library_features(found: dict[str, torch.Tensor], public: PublicFile) -> None:
    expected = public.features(random_image().float()[None])
    assert found
    for name, features in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(features, expected[name], rtol=0, atol=TOLERANCE * scale)


# From file to detector


def test_the_source_and_the_network_are_told_from_the_file(converted):
    report, public = converted.report, converted.public
    assert report["source"] == converted.source
    assert report["variant"] == public.variant
    assert (report["wrapper"], report["prefix"]) == (public.wrapper, public.prefix)


def test_every_tensor_of_the_file_is_counted(converted):
    report, public = converted.report, converted.public
    dropped = [name for names in report["dropped"].values() for name in names]
    names = [*report["converted"], *dropped]
    assert len(set(names)) == len(names) == public.count
    assert len(dropped) == public.dropped
    assert report["counts"] == {
        "in_file": public.count,
        "converted": public.count - public.dropped,
        "dropped": {reason: len(names) for reason, names in report["dropped"].items()},
        "unexplained": 0,
    }


def test_a_detector_computes_the_librarys_features(converted):
    cfg = detector_config(converted.public, converted.public.expects[0])
    found = detector_features(cfg, converted.out, random_image())
    assert list(found) == ["res2", "res3", "res4", "res5"]
    assert_library_features(found, converted.public)


def test_the_proof_compared_the_librarys_outputs(converted):
    outputs = converted.public.features(random_image().float()[None])
    assert list(converted.report["differences"]) == list(outputs)
    assert all(value <= TOLERANCE for value in converted.report["differences"].values())


def test_the_output_says_what_its_publisher_documents(converted):
    tensors, recipe = loaded(converted.out)
    order, mean, std = converted.public.expects
    assert recipe == converted.report["recipe"]
    assert (recipe["channel_order"], recipe["variant"]) == (order, converted.public.variant)
    assert recipe["pixel_mean"] == pytest.approx(mean)
    assert recipe["pixel_std"] == pytest.approx(std)
    assert recipe["stride_in_1x1"] is converted.public.stride_in_1x1
    assert recipe["source_sha256"] == convert.sha256_of(converted.file)
    assert all(tensor.is_floating_point() for n, tensor in tensors.items() if "num_b" not in n)


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_the_tensors_are_the_files_own(converted):
    tensors = {torchvision_name(name): tensor for name, tensor in loaded(converted.out)[0].items()}
    if converted.public.expects[0] == "BGR":
        tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    assert_identical(tensors, converted.public.original)


def test_the_way_back_to_torchvision_is_bit_identical(converted, tmp_path):
    out = tmp_path / "back.pth"
    if converted.public.stride_in_1x1:  # the same tensors are another network in torchvision
        assert "strides in the 3x3" in refusal("--to", "torchvision", converted.out, out)
        assert not list(tmp_path.iterdir())
        return
    done = run_converter("--to", "torchvision", converted.out, out)
    assert done.status == 0, done.err
    exported = torch.load(out, weights_only=True)
    assert_identical(exported, converted.public.original)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *((kind, ".safetensors") for kind in SMALL if kind not in SAME_RULES),
        ("torchvision", ".pth"),
        ("half precision", ".pth"),
        ("detectron2 ResNeXt", ".pth"),
        ("t7 of form b", ".pth"),
    ],
)
def test_images_of_the_other_channel_order_give_the_same_features(kind, suffix, tmp_path):
    order = "RGB" if KINDS[kind].source == "caffe2" else "BGR"
    made = write_and_convert(kind, tmp_path, "--channel-order", order, suffix=suffix)
    cfg = detector_config(made.public, order)
    found = detector_features(cfg, made.out, random_image())
    assert_library_features(found, made.public)
    _, recipe = loaded(made.out)
    assert recipe["channel_order"] == order
    assert recipe["pixel_mean"] == pytest.approx(made.public.expects[1][::-1])
    assert recipe["pixel_std"] == pytest.approx(made.public.expects[2][::-1])
    if not made.public.stride_in_1x1:
        done = run_converter("--to", "timm", made.out, tmp_path / "back.safetensors")
        assert done.status == 0, done.err
        exported = safetensors.torch.load_file(tmp_path / "back.safetensors")
        assert_identical(exported, made.public.original)


@pytest.mark.parametrize("kind", ["mmpretrain"])
def test_a_c4_detector_computes_the_librarys_features(kind, tmp_path):
    made = write_and_convert(kind, tmp_path)
    cfg = detector_config(made.public, "RGB", "faster_rcnn_X50_32x4d")
    found = detector_features(cfg, made.out, random_image())
    assert list(found) == ["res4", "res5"]
    assert_library_features(found, made.public)


def test_the_average_wins_over_the_trained_weights_and_the_report_says_so(tmp_path):
    made = write_and_convert("timm checkpoint", tmp_path)
    assert made.report["wrapper"] == "state_dict_ema"
    checkpoint = torch.load(made.file, weights_only=False)
    other = convert_to(tmp_path / "o.pth", "--wrapper", "state_dict", made.file)
    assert other["wrapper"] == "state_dict"
    for out, key in ((made.out, "state_dict_ema"), (tmp_path / "o.pth", "state_dict")):
        tensors = {torchvision_name(name): t for name, t in loaded(out)[0].items()}
        assert_identical(tensors, dict(checkpoint[key]))
    assert not torch.equal(
        checkpoint["state_dict"]["conv1.weight"], checkpoint["state_dict_ema"]["conv1.weight"]
    )


def test_a_safetensors_file_with_a_header_of_any_length_is_read(tmp_path):
    for low_byte in range(0, 256, 8):
        write_with_header(tmp_path / "in.safetensors", low_byte)
        assert files.read_file(tmp_path / "in.safetensors").kind == "safetensors", low_byte


def test_stock_detectron2_loads_a_converted_file(tmp_path):
    made = write_and_convert("t7", tmp_path)
    model = build_model(detector_config(made.public, "RGB"))
    DetectionCheckpointer(model).load(str(made.out))
    tensors = loaded(made.out)[0]
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, tensors[name]), name


# Trained detectors and the way back


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("form", ["a", "b", "c"])
@pytest.mark.parametrize("name", ["faster_rcnn_X50_32x4d", "quick/faster_rcnn_X26_8x4d_FPN"])
def test_a_trained_detector_is_exported_bit_identically(name, form, order, tmp_path):
    public = PublicFile({}, lambda images: {}, 0)  # an X-26-8x4d of ImageNet's mean and std
    cfg = detector_config(public, order, name)
    cfg.MODEL.RESNEXT.FORM, cfg.MODEL.RESNETS.NORM = form, "BN"
    model = randomise(build_model(cfg))
    StrictCheckpointer(model, str(tmp_path), settings=settings_of(cfg)).save("model_final", iter=3)
    report = convert_to(tmp_path / "o.pth", "--to", "torchvision", tmp_path / "model_final.pth")
    exported = torch.load(tmp_path / "o.pth", weights_only=True)

    tensors = model.state_dict()
    body = [n for n in tensors if ".stem." in n or any(f".res{i}." in n for i in (2, 3, 4, 5))]
    assert report["counts"]["in_file"] == len(tensors)
    assert report["counts"]["converted"] == len(body)
    expected = {}
    for full in body:
        short = full.removeprefix("backbone.").removeprefix("bottom_up.")
        place, _, layer = short.removeprefix("roi_heads.").partition(".")
        if ".paths." not in full:
            if form == "a" and layer.split(".")[1] == "norm" and place != "stem":
                layer = layer.replace("norm", "conv3.norm")
            expected[torchvision_name(f"{place}.{layer}")] = tensors[full]
        elif ".paths.0." in full:
            paths = [tensors[full.replace(".paths.0.", f".paths.{i}.")] for i in range(8)]
            merged = torchvision_name(f"{place}.{layer}".replace(".paths.0", ""))
            axis = 1 if full.endswith(".conv3.weight") else 0
            expected[merged] = torch.cat(paths, axis) if paths[0].dim() else paths[0]
    if order == "BGR":
        expected["conv1.weight"] = expected["conv1.weight"].flip(1)
    assert_identical(exported, expected)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_export_loads_strictly_into_the_librarys_class(library, suffix, tmp_path):
    made = write_and_convert("t7", tmp_path, "--channel-order", "BGR")
    out = tmp_path / f"back{suffix}"
    report = convert_to(out, "--to", library, made.out)
    assert report["reference"].split()[0] == library
    if library == "timm":
        net = timm.models.resnet.ResNet(
            timm.models.resnet.Bottleneck, [2] * 4, 10, cardinality=8, base_width=4
        )
    else:
        net = torchvision.models.ResNet(Bottleneck, [2] * 4, 10, groups=8, width_per_group=4)
    if suffix == ".pth":
        net.load_state_dict(torch.load(out, weights_only=True), strict=True)
    else:
        safetensors.torch.load_model(net, out, strict=False)
    for name, tensor in made.public.original.items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_a_network_that_torchvision_cannot_build_is_not_exported(tmp_path):
    cfg = resnext_det.get_cfg("quick/faster_rcnn_X26_8x4d_FPN")  # a stem of 32 channels
    cfg.MODEL.DEVICE = "cpu"
    model = randomise(build_model(cfg))
    StrictCheckpointer(model, str(tmp_path), settings=settings_of(cfg)).save("model_final")
    line = refusal("--to", "torchvision", tmp_path / "model_final.pth", tmp_path / "o.pth")
    assert "32 channels in the stem" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


# Accounts


def test_the_report_is_also_written_to_a_file(tmp_path):
    KINDS["torchvision"].write(tmp_path / "in.pth")
    done = run_converter(tmp_path / "in.pth", tmp_path / "o.pth", "--json", tmp_path / "r.json")
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["counts"]["in_file"] == len(random_network().state_dict())
    assert report["output_sha256"] == convert.sha256_of(tmp_path / "o.pth")
    assert str(tmp_path / "o.pth") in done.out


@pytest.mark.parametrize("report", ["in.pth", "o.pth", "folder"])
def test_a_report_that_would_destroy_a_file_is_refused(report, tmp_path):
    KINDS["torchvision"].write(tmp_path / "in.pth")
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "in.pth").read_bytes()
    line = refusal(tmp_path / "in.pth", tmp_path / "o.pth", "--json", tmp_path / report)
    assert str(tmp_path / report) in line
    assert (tmp_path / "in.pth").read_bytes() == before
    assert not (tmp_path / "o.pth").exists()


def test_options_may_stand_between_the_two_files(tmp_path):
    KINDS["torchvision"].write(tmp_path / "in.pth")
    done = run_converter(tmp_path / "in.pth", "--channel-order", "BGR", tmp_path / "o.pth")
    assert done.status == 0, done.err
    assert (tmp_path / "o.pth").is_file()


def refused_file(tmp_path: Path, tensors: dict, *options: object) -> str:
    """Write tensors, which the tool must refuse without a trace; its line."""
    torch.save(tensors, tmp_path / "in.pth")
    line = refusal(tmp_path / "in.pth", tmp_path / "o.pth", *options)
    assert str(tmp_path / "in.pth") in line
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]
    return line


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tensor_that_no_rule_explains_is_named_and_nothing_written(prefix, tmp_path):
    tensors = {**random_network().state_dict(), "foo.bar": torch.zeros(1)}
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    assert f": {prefix}foo.bar" in refused_file(tmp_path, tensors)


def test_an_unexplained_tensor_of_an_openmmlab_backbone_is_named(tmp_path):
    tensors = {**random_network().state_dict(), "foo.bar": torch.zeros(1)}
    tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items() if "fc." not in name}
    assert "backbone.foo.bar" in refused_file(tmp_path, {"state_dict": tensors})


@pytest.mark.parametrize("name", ["layer3.1.bn2.running_var", "conv1.weight", "fc.bias"])
def test_a_missing_tensor_is_an_error(name, tmp_path):
    tensors = random_network().state_dict()
    del tensors[name]
    detectron2_name = {
        "layer3.1.bn2.running_var": "res4.1.conv2.norm.running_var",
        "conv1.weight": "stem.conv1.weight",
        "fc.bias": "linear.bias",
    }[name]
    assert detectron2_name in refused_file(tmp_path, tensors)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("seresnext50_32x4d", "squeeze-and-excitation"),
        ("resnext50d_32x4d", "a deep stem"),
        ("skresnext50_32x4d", "no source has such names"),
        ("resnet50_gn", "norm.running_mean"),
    ],
)
def test_a_relative_of_the_resnext_is_refused_with_what_it_has(name, hint, tmp_path):
    net = timm.create_model(name, pretrained=False)
    assert hint in refused_file(tmp_path, net.state_dict())


def test_basic_blocks_are_refused(tmp_path):
    line = refused_file(tmp_path, basic_block_network().state_dict())
    assert "bottleneck" in line
    assert "ResNet-18" in line


def swapped(name: str) -> str:
    """Exchange the norms of res3.0.conv1 and conv2, of equal shapes."""
    for a, b in (("1", "2"), ("2", "1")):
        if name.startswith(f"res3.0.conv{a}.norm"):
            return name.replace(f"conv{a}", f"conv{b}", 1)
    return name


SWAP = (r"^res3\.0\.conv[12]\.norm.*", lambda match: swapped(match[0]))


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("torchvision", torchvision_source),
        ("cadene", cadene),
        ("openmmlab backbone", openmmlab),
        ("detectron ResNeXt", caffe2),
        ("detectron2 ResNet", caffe2),
        ("detectron2 from torchvision", detectron2),
    ],
)
def test_a_wrong_rule_fails_the_proof_and_writes_nothing(kind, rules, tmp_path, monkeypatch):
    KINDS[kind].write(tmp_path / "public")
    monkeypatch.setattr(rules, "RULES", (*rules.RULES, SWAP))
    line = refusal(tmp_path / "public", tmp_path / "o.pth")
    assert "the proof failed" in line
    assert [p.name for p in tmp_path.iterdir()] == ["public"]


@pytest.mark.parametrize("kind", ["t7", "t7 of form b"])
def test_a_wrong_name_of_a_torch7_layer_fails_the_proof(kind, tmp_path, monkeypatch):
    KINDS[kind].write(tmp_path / "public")
    right = torch7._layers

    def wrong(network):
        swap = {".conv1.norm": ".conv2.norm", ".conv2.norm": ".conv1.norm"}
        for path, name in right(network):
            layer = next((key for key in swap if name.endswith(key)), None)
            is_it = name.startswith("res3.0.") and layer
            yield path, name.replace(layer, swap[layer]) if is_it else name

    monkeypatch.setattr(torch7, "_layers", wrong)
    line = refusal(tmp_path / "public", tmp_path / "o.pth")
    assert "the proof failed" in line
    assert [p.name for p in tmp_path.iterdir()] == ["public"]


def test_a_wrong_rule_of_the_way_back_fails_the_proof(tmp_path, monkeypatch):
    made = write_and_convert("torchvision", tmp_path)
    back = convert.BACK
    swap = (r"^(layer2\.0\.bn)([12])", lambda match: match[1] + {"1": "2", "2": "1"}[match[2]])
    monkeypatch.setattr(convert, "BACK", (*back, swap))
    before = sorted(tmp_path.iterdir())
    line = refusal("--to", "torchvision", made.out, tmp_path / "o.pth")
    assert "the proof failed" in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_flipped_first_layer_fails_the_proof(tmp_path, monkeypatch):
    KINDS["torchvision"].write(tmp_path / "in.pth")
    monkeypatch.setattr(
        convert, "_for_order", lambda given, order: given.renamed.conversion.tensors
    )
    line = refusal(tmp_path / "in.pth", tmp_path / "o.pth", "--channel-order", "BGR")
    assert "the proof failed: res2" in line
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


# Sources that the user names


@pytest.mark.parametrize(
    "kind",
    [
        "torchvision",
        "timm",
        "openmmlab backbone",
        "detectron ResNeXt",
        "detectron2 from torchvision",
        "t7",
    ],
)
def test_a_wrong_source_is_one_line(kind, tmp_path):
    file, right = tmp_path / "public", KINDS[kind].source
    KINDS[kind].write(file)
    # torchvision's names are timm's, and OpenMMLab's without its prefix
    same = {"torchvision", "timm", "openmmlab"} if right in ("torchvision", "timm") else {right}
    for source in sorted(set(SOURCES) - same):
        line = refusal("--source", source, file, tmp_path / "o.pth")
        assert str(file) in line
        assert [p.name for p in tmp_path.iterdir()] == ["public"]
    report = convert_to(tmp_path / "o.pth", "--source", right, file)
    assert report["source"] == right


def test_mocos_projection_of_two_layers_is_left_out(tmp_path):
    """MoCo v2's projection has two layers, which no ResNeXt has."""
    net = random_network()
    tensors = moco_tensors(net, mlp=True)
    torch.save({"epoch": 800, "arch": "resnext50", "state_dict": tensors}, tmp_path / "in.pth")
    report = convert_to(tmp_path / "o.pth", tmp_path / "in.pth")
    assert report["num_classes"] is None
    assert report["counts"]["in_file"] == len(tensors)
    dropped = [name for names in report["dropped"].values() for name in names]
    assert {n for n in dropped if "encoder_q" in n} == {n for n in tensors if "encoder_q.fc" in n}
    found = {torchvision_name(name): t for name, t in loaded(tmp_path / "o.pth")[0].items()}
    assert_identical(found, tensors_of(net, fc=False))


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("to_rgb", ["to_rgb=False", "bgr_to_rgb=True"])
def test_the_config_inside_an_openmmlab_file_tells_its_preprocessing(style, to_rgb, tmp_path):
    models = pytest.importorskip("mmpretrain.models", reason="MMPretrain is not installed")
    theirs = randomise(models.ResNeXt(depth=50, groups=32, width_per_group=4, style=style))
    tensors = {f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    config = f"norm = dict(mean=[1.5, 2, 3], std=[4.0, 5.0, 6.5], {to_rgb})\n"
    config += f"backbone = dict(style='{style}')"
    file = tmp_path / "faster_rcnn.pth"
    torch.save({"meta": {"config": config}, "state_dict": tensors}, file)
    report = convert.convert_file(file, tmp_path / "out.pth")
    assert report.recipe["channel_order"] == ("BGR" if "False" in to_rgb else "RGB")
    assert report.recipe["pixel_mean"] == [1.5, 2.0, 3.0]
    assert report.recipe["pixel_std"] == [4.0, 5.0, 6.5]
    assert report.recipe["stride_in_1x1"] == (style == "caffe")
    assert report.preprocessing_from == "the config in the file"

    weights = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    ours = ResNeXt(50, 32, 4, norm="FrozenBN", stride_in_1x1=style == "caffe").eval()
    ours.load_state_dict(
        {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs.eval()
        expected, found = theirs(image)[-1], ours(image)["res5"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_an_openmmlab_file_that_does_not_tell_is_noted_or_asked_for(tmp_path):
    network = torchvision.models.resnext50_32x4d(weights=None)
    tensors = {f"backbone.{n}": t for n, t in network.state_dict().items() if n[:2] != "fc"}
    tensors["neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": tensors}, tmp_path / "detector.pth")
    report = convert.convert_file(tmp_path / "detector.pth", tmp_path / "out.pth")
    assert any("style caffe take BGR" in note for note in report.notes)
    torch.save(network.state_dict(), tmp_path / "resnext50_caffe.pth")
    with pytest.raises(UserError, match="does not tell"):
        convert.convert_file(tmp_path / "resnext50_caffe.pth", tmp_path / "out.pth")
