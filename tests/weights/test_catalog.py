import importlib.metadata
import importlib.util
import json
import re
import runpy
from pathlib import Path

import pytest
import torchvision
import yaml
from detectron2 import model_zoo
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler

from resnext_det.errors import UserError
from resnext_det.variants import Variant
from resnext_det.weights.catalog import CATALOG, by_sha256, find, format_catalog
from resnext_det.weights.recipe import DETECTRON, IMAGENET

ENTRIES = [pytest.param(entry, id=entry.name) for entry in CATALOG.values()]
SOURCES = {"torch7", "torchvision", "timm", "cadene", "openmmlab", "caffe2", "detectron2"}
LICENCES = {"BSD-3-Clause", "Apache-2.0", "CC-BY-NC-4.0", "CC-BY-SA-3.0"}


def of(*publishers):
    return {name: entry for name, entry in CATALOG.items() if entry.publisher in publishers}


def package_file(package, path):
    """A file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / path


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_are_well_formed(entry):
    assert re.fullmatch(r"[a-z0-9]+/[RX]-[0-9xd-]+(\.[a-z0-9]+)?", entry.name)
    assert str(Variant.parse(entry.variant)) == entry.variant
    assert entry.source in SOURCES and entry.licence in LICENCES
    assert entry.url.startswith("https://") or entry.publisher == "cadene"
    assert entry.url.endswith(f"/{entry.file_name}") and " " not in entry.url
    assert not entry.stride_in_1x1
    if entry.top1 is not None:
        assert 75 < entry.top1 < 90
    if entry.top5 is not None:
        assert entry.top1 < entry.top5 < 100


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_hash_is_the_one_at_the_end_of_the_url(entry):
    if entry.url.endswith(".pth"):
        assert re.fullmatch("[0-9a-f]{8}", entry.sha256_prefix)
        assert entry.url.endswith(f"-{entry.sha256_prefix}.pth")
    else:
        assert entry.sha256_prefix == ""
    assert re.fullmatch("([0-9a-f]{32})?", entry.md5)


def test_no_file_stands_twice():
    for values in (
        [entry.url for entry in CATALOG.values()],
        [entry.sha256_prefix for entry in CATALOG.values() if entry.sha256_prefix],
        [(entry.publisher, entry.file_name) for entry in CATALOG.values()],
    ):
        assert len(set(values)) == len(values)


def test_files_of_one_origin_agree():
    for variant in ("X-101-32x4d", "X-101-64x4d"):
        ports = [CATALOG[f"{publisher}/{variant}"] for publisher in ("cadene", "openmmlab")]
        assert {entry.licence for entry in ports} == {CATALOG[f"authors/{variant}"].licence}
    ported, origin = CATALOG["openmmlab/X-101-32x8d.detectron2"], CATALOG["detectron2/X-101-32x8d"]
    assert ported.preprocessing == origin.preprocessing
    assert ported.licence == origin.licence


# The publishers' own records, where a package holds them


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("R-50", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("R-101", torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
        ("X-50-32x4d", torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
        ("X-50-32x4d.v2", torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V2),
        ("X-101-32x8d", torchvision.models.ResNeXt101_32X8D_Weights.IMAGENET1K_V1),
        ("X-101-32x8d.v2", torchvision.models.ResNeXt101_32X8D_Weights.IMAGENET1K_V2),
        ("X-101-64x4d", torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
    ],
)
def test_torchvisions_files_are_as_torchvision_says(name, weights):
    entry = CATALOG[f"torchvision/{name}"]
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    assert (entry.url, entry.top1, entry.top5) == (weights.url, metrics["acc@1"], metrics["acc@5"])
    transform = weights.transforms()
    assert transform.crop_size == [224]
    assert_preprocessing(entry, transform.mean, transform.std)


def test_all_of_torchvisions_resnexts_are_there():
    names = [n for n in torchvision.models.list_models() if n.startswith("resnext")]
    urls = {w.url for n in names for w in torchvision.models.get_model_weights(n)}
    assert urls <= {entry.url for entry in CATALOG.values()}


def assert_preprocessing(entry, mean, std):
    """Compare with an RGB mean and std of images of 0..1."""
    assert entry.preprocessing.channel_order == "RGB"
    assert entry.preprocessing.pixel_mean == pytest.approx([255 * value for value in mean])
    assert entry.preprocessing.pixel_std == pytest.approx([255 * value for value in std])


def timm_records():
    """Url, with the repository's present owner, to timm's record, for plain ResNeXts."""
    resnet = pytest.importorskip("timm.models.resnet")
    records = {}
    for model, default in resnet.default_cfgs.items():
        if re.fullmatch(r"resnext\d+_\d+x\d+d", model):
            for record in default.cfgs.values():
                url = (record.url or "").replace(
                    "rwightman/pytorch-image-models", "huggingface/pytorch-image-models"
                )
                records[url] = (model, record)
    records.pop("")
    return records


def test_timms_and_facebooks_files_are_as_timm_says():
    records = timm_records()
    entries = of("timm", "ssl", "swsl", "wsl")
    for entry in entries.values():
        model, record = records[entry.url]
        assert model.replace("resnext", "X-").replace("_", "-") == entry.variant
        assert record.license == entry.licence.lower()
        assert_preprocessing(entry, record.mean, record.std)
    assert len(entries) == 21


def test_all_of_timms_plain_resnexts_are_there():
    assert set(timm_records()) <= {entry.url for entry in CATALOG.values()}


def test_cadenes_files_are_as_pretrainedmodels_says():
    pytest.importorskip("pretrainedmodels")
    from pretrainedmodels.models.resnext import pretrained_settings

    readme = importlib.metadata.metadata("pretrainedmodels").get_payload()
    for name, entry in of("cadene").items():
        settings = pretrained_settings[name.replace("cadene/X-", "resnext").replace("-", "_")]
        record = settings["imagenet"]
        assert entry.url == record["url"]
        assert (record["input_space"], record["input_range"]) == ("RGB", [0, 1])
        assert_preprocessing(entry, record["mean"], record["std"])
        title = entry.variant.replace("X-", "ResNeXt").replace("-", "_")
        for publisher, row in (
            ("cadene", rf"\[{title}\]\S* \| Our porting"),
            ("authors", rf"{title} \| \[Torch7\]\S*"),
        ):
            published = re.search(rf"^{row} \| ([\d.]+) \| ([\d.]+)", readme, re.MULTILINE)
            stated = CATALOG[f"{publisher}/{entry.variant}"]
            assert (stated.top1, stated.top5) == tuple(map(float, published.groups()))


def test_openmmlabs_files_are_as_mmengine_says():
    hub = json.loads(package_file("mmengine", "hub/openmmlab.json").read_text())
    for name, entry in of("openmmlab").items():
        prefix = "detectron2/" if name.endswith(".detectron2") else ""
        assert entry.url == hub[prefix + entry.variant.replace("X-", "resnext").replace("-", "_")]
    hub = json.loads(package_file("mmengine", "hub/mmcls.json").read_text())
    for entry in of("mmcls").values():
        assert entry.url == hub[entry.variant.replace("X-", "resnext").replace("-", "_")]


def test_mmpretrains_accuracies_are_as_mmpretrain_says():
    configs = package_file("mmpretrain", ".mim/configs")
    records = {
        record["Weights"]: record["Results"][0]["Metrics"]
        for record in yaml.safe_load((configs / "resnext/metafile.yml").read_text())["Models"]
    }
    found = of("mmcls")
    assert records.keys() == {entry.url for entry in found.values()}
    for entry in found.values():
        metrics = records[entry.url]
        assert entry.top1 == metrics["Top 1 Accuracy"]
        assert entry.top5 == metrics["Top 5 Accuracy"]
    settings = runpy.run_path(str(configs / "_base_/datasets/imagenet_bs32_pil_resize.py"))
    preprocessor = settings["data_preprocessor"]
    assert preprocessor["to_rgb"]
    assert tuple(preprocessor["mean"]) == IMAGENET.pixel_mean
    assert tuple(preprocessor["std"]) == IMAGENET.pixel_std


def test_detectrons_files_are_as_detectron2_says():
    urls = {
        "X-101-64x4d": "FAIR/X-101-64x4d",
        "X-101-32x8d": "FAIR/X-101-32x8d",
        "X-152-32x8d.in5k": "FAIR/X-152-32x8d-IN5k",
    }
    found = of("detectron")
    assert {f"detectron/{name}" for name in urls} == set(found)
    for name, theirs in urls.items():
        entry = found[f"detectron/{name}"]
        assert entry.url == ModelCatalog.get(f"ImageNetPretrained/{theirs}")
        assert entry.preprocessing == DETECTRON


def test_detectron2s_file_is_as_its_config_says():
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml")
    entry = CATALOG["detectron2/X-101-32x8d"]
    path = cfg.MODEL.WEIGHTS.replace("detectron2://", Detectron2Handler.S3_DETECTRON2_PREFIX)
    assert entry.url == path
    assert entry.preprocessing.channel_order == cfg.INPUT.FORMAT == "BGR"
    assert entry.preprocessing.pixel_mean == tuple(cfg.MODEL.PIXEL_MEAN)
    assert entry.preprocessing.pixel_std == tuple(cfg.MODEL.PIXEL_STD)
    assert entry.stride_in_1x1 == cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert Variant.parse(entry.variant).cardinality == cfg.MODEL.RESNETS.NUM_GROUPS


def test_look_up_by_name():
    assert find("timm/X-50-32x4d.a1h").sha256_prefix == "0146ab0a"
    with pytest.raises(UserError) as caught:
        find("torchvison/X-50-32x4d")
    message = str(caught.value)
    assert "did you mean torchvision/X-50-32x4d" in message
    assert "python tools/convert_weights.py --list" in message
    assert "\n" not in message


def test_look_up_by_sha256():
    for entry in CATALOG.values():
        if entry.sha256_prefix:
            assert by_sha256(entry.sha256_prefix.upper() + 56 * "0") is entry
    assert by_sha256(64 * "0") is None


def test_the_table_has_every_entry_and_fits_a_terminal():
    lines = format_catalog().splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines if "/" in line.split(" ")[0]}
    assert rows.keys() == CATALOG.keys()
    assert rows["authors/X-50-32x4d"] == ["77.8", "-", "CC-BY-NC-4.0", "RGB", "none"]
    assert rows["detectron/X-101-64x4d"] == ["-", "-", "CC-BY-SA-3.0", "BGR", "md5"]
    assert rows["ssl/X-101-32x4d"] == ["81.0", "95.7", "CC-BY-NC-4.0", "RGB", "sha256"]
    assert "as published" in lines[-2] and "not measured here" in lines[-2]
