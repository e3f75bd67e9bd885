"""A publisher's file, by its name in the catalog, reaches the detector of a shipped config."""

import hashlib
from dataclasses import replace

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torchvision.transforms.functional import normalize

import resnext_det
from resnext_det.config import config_names
from resnext_det.errors import UserError
from resnext_det.weights import StrictCheckpointer, settings_of
from resnext_det.weights.catalog import CATALOG
from resnext_det.weights.download import original_path
from tests.helpers import randomise
from tests.weights.test_loading import zoo_pickle

NAME = "openmmlab/X-50-32x4d"  # in torchvision's names


def put(entry, path, monkeypatch):
    """Let the file at `path` be the published one of a catalog entry."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = replace(entry, sha256_prefix=digest[:8] if entry.sha256_prefix else "")
    monkeypatch.setitem(CATALOG, entry.name, known)


def load(cfg):
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    StrictCheckpointer(model, settings=settings_of(cfg)).load(cfg.MODEL.WEIGHTS)
    return model


@pytest.fixture
def published(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path))
    network = randomise(torchvision.models.resnext50_32x4d(weights=None)).eval()
    path = original_path(CATALOG[NAME])
    path.parent.mkdir(parents=True)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, path)
    put(CATALOG[NAME], path, monkeypatch)
    return network


def test_a_shipped_configs_weights_give_the_publishers_features(published):
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    assert f"resnext://{NAME}" == cfg.MODEL.WEIGHTS
    model = load(cfg)
    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        ours = model.backbone.bottom_up(model.preprocess_image([{"image": pixels}]).tensor)
        x = normalize(pixels / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[None]
        x = published.maxpool(published.relu(published.bn1(published.conv1(x))))
        for index in range(1, 5):
            x = getattr(published, f"layer{index}")(x)
            found = ours[f"res{index + 1}"]
            assert (found - x).abs().max() < 1e-4 * x.abs().max()


def test_another_preprocessing_than_the_files_is_refused(published):
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"MODEL.PIXEL_STD is \[1, 1, 1\] .*\[58.395, 57.12"):
        load(cfg)


def test_a_file_of_another_network_is_not_taken_for_the_catalogs(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path))
    path = original_path(CATALOG[NAME])
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    put(CATALOG[NAME], path, monkeypatch)
    with pytest.raises(UserError, match="holds R-50, not X-50-32x4d"):
        load(resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN"))


def test_the_bgr_pickle_of_detectron2_fits_its_configs(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path))
    entry = CATALOG["detectron2/X-101-32x8d"]
    path = original_path(entry)
    path.parent.mkdir(parents=True)
    expected = zoo_pickle(resnext_det.Variant(101, 32, 8), path)
    with caplog.at_level("WARNING", "resnext_det"):
        model = load(resnext_det.get_cfg("faster_rcnn_X101_32x8d_FPN"))
    assert "states no hash" in caplog.text
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_every_shipped_config_agrees_with_its_weights_entry():
    for name in config_names():
        cfg = resnext_det.get_cfg(name)
        if not cfg.MODEL.WEIGHTS:
            continue
        entry = CATALOG[cfg.MODEL.WEIGHTS.removeprefix("resnext://")]
        settings = settings_of(cfg)
        assert settings.variant == entry.variant
        assert settings.channel_order == entry.preprocessing.channel_order
        assert settings.pixel_mean == entry.preprocessing.pixel_mean
        assert settings.pixel_std == entry.preprocessing.pixel_std
        assert settings.stride_in_1x1 == entry.stride_in_1x1
