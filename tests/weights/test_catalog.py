import hashlib
import http.server
import threading
from functools import partial

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

import resnext_det
from resnext_det.config import config_names
from resnext_det.errors import UserError
from resnext_det.weights import catalog
from resnext_det.weights.sources import from_torchvision
from resnext_det.weights.sources.torchvision import rename
from tests.helpers import randomise


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as torchvision publishes it, on a web server of this machine."""
    folder = tmp_path_factory.mktemp("server")
    network = randomise(torchvision.models.resnext50_32x4d(weights=None))
    torch.save(network.state_dict(), folder / "network.pth")
    digest = hashlib.sha256((folder / "network.pth").read_bytes()).hexdigest()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/network.pth", digest, network.state_dict()
    server.shutdown()


@pytest.fixture
def entry(published, monkeypatch, tmp_path):
    url, digest, _ = published
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def use(**changes):
        fields = {"url": url, "sha256_prefix": digest[:8], "convert": from_torchvision}
        fields |= {"licence": "test", **changes}
        monkeypatch.setitem(catalog.CATALOG, "X-50-32x4d.pth", catalog.PretrainedFile(**fields))

    use()
    return use


def test_a_path_of_the_catalogue_downloads_and_renames(entry, published, tmp_path):
    path = PathManager.get_local_path("resnext_det://X-50-32x4d.pth")
    content = torch.load(path, weights_only=True)
    expected = from_torchvision(published[2])
    assert content["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(content["model"][name], tensor, rtol=0, atol=0)
    files = {p.name for p in (tmp_path / "resnext_det").iterdir() if p.suffix != ".lock"}
    assert files == {path.rsplit("/", 1)[1]}


def test_stock_detectron2_loads_it_into_a_feature_pyramid(entry, published):
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    loaded = model.backbone.bottom_up.state_dict()
    expected = from_torchvision(published[2])
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_the_second_time_nothing_is_downloaded(entry):
    first = catalog.local_weights("X-50-32x4d.pth")
    entry(url="http://127.0.0.1:9/gone.pth")
    assert catalog.local_weights("X-50-32x4d.pth") == first


def test_a_file_with_another_hash_is_refused_and_not_kept_as_weights(entry, tmp_path):
    entry(sha256_prefix="00000000")
    with pytest.raises(UserError, match="the published file starts with 00000000"):
        catalog.local_weights("X-50-32x4d.pth")
    assert not list((tmp_path / "resnext_det").glob("*X-50-32x4d.pth"))


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/gone.pth", "/absent.pth"])
def test_a_failed_download_says_what_to_do(entry, published, path):
    url = path if path.startswith("http") else published[0].replace("/network.pth", path)
    entry(url=url)
    with pytest.raises(
        UserError, match=r"cannot download .*put it at .*or set MODEL.WEIGHTS"
    ) as caught:
        catalog.local_weights("X-50-32x4d.pth")
    assert "\n" not in str(caught.value)


def test_a_file_fetched_elsewhere_is_used(entry, published, tmp_path):
    entry(url="http://127.0.0.1:9/network.pth")
    (tmp_path / "resnext_det").mkdir()
    torch.save(published[2], tmp_path / "resnext_det/network.pth")
    entry(
        url="http://127.0.0.1:9/network.pth",
        sha256_prefix=hashlib.sha256(
            (tmp_path / "resnext_det/network.pth").read_bytes()
        ).hexdigest()[:8],
    )
    assert catalog.local_weights("X-50-32x4d.pth").is_file()


def test_too_large_a_download_is_stopped(entry, monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_MAX_BYTES", 1000)
    with pytest.raises(UserError, match="larger than 1000 bytes"):
        catalog.local_weights("X-50-32x4d.pth")
    assert not list((tmp_path / "resnext_det").glob("*.pth"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"resnext_det://X-50\.pth; there are R-50\.pth"):
        catalog.local_weights("X-50.pth")


def test_every_entry_is_used_by_a_config():
    used = {resnext_det.get_cfg(n).MODEL.WEIGHTS for n in config_names()}
    assert {f"resnext_det://{name}" for name in catalog.CATALOG} <= used


def test_hashes_of_torchvisions_files_are_torchvisions():
    weights = torchvision.models
    assert catalog.CATALOG["R-50.pth"].url == weights.ResNet50_Weights.IMAGENET1K_V1.url
    assert catalog.CATALOG["R-101.pth"].url == weights.ResNet101_Weights.IMAGENET1K_V1.url
    assert catalog.CATALOG["R-50.pth"].sha256_prefix == "0676ba61"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.bn1.bias", "res2.0.conv1.norm.bias"),
        ("layer3.22.conv2.weight", "res4.22.conv2.weight"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
        ("fc.bias", "linear.bias"),
    ],
)
def test_torchvisions_names_become_detectron2s(theirs, ours):
    assert rename(theirs) == ours


def test_a_tensor_that_no_rule_knows_is_named():
    with pytest.raises(ValueError, match="not torchvision's names: head.weight"):
        from_torchvision({"conv1.weight": torch.zeros(1), "head.weight": torch.zeros(1)})
