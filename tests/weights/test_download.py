import errno
import hashlib
import http.server
import io
import multiprocessing
import os
import sys
import threading
import time
import types
from functools import partial

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from resnext_det.errors import UserError
from resnext_det.weights import download
from resnext_det.weights.catalog import CATALOG, PublishedWeights
from resnext_det.weights.download import (
    cache_dir,
    local_weights,
    original_file,
    original_path,
    sha256_of,
)
from resnext_det.weights.recipe import VERSION

NAME = "torchvision/X-50-32x4d"
CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/network.pth"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        if self.path == "/redirect.pth":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/network.pth")
            self.end_headers()
        elif self.path in ("/short.pth", "/huge.pth"):
            size = 2 * len(CONTENT) if self.path == "/short.pth" else 5 * 1024**3
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(CONTENT)
        elif self.path == "/unsized.pth":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A web server of this machine that has `network.pth`."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "network.pth").write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(folder))
    return folder


@pytest.fixture
def entry(monkeypatch, cache, server):
    """Let the catalog's `NAME` be a file of the local server; call it to change its facts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def use(**changes):
        facts = {"url": f"{server}/network.pth", "sha256_prefix": SHA256[:8], **changes}
        entry = PublishedWeights(NAME, source="torchvision", licence="BSD-3-Clause", **facts)
        monkeypatch.setitem(CATALOG, NAME, entry)
        return entry

    use()
    return use


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Replace the converter by one that notes each call in a file and writes a tiny network."""
    notes = tmp_path / "conversions"
    notes.write_text("")

    def convert_published(original, entry, out):
        assert original.read_bytes() == CONTENT
        with notes.open("a") as file:
            file.write(f"{entry.name} {original}\n")
        time.sleep(0.2)
        temporary = out.with_suffix(".part")
        torch.save({"model": {"weight": torch.eye(2)}, "recipe": {}}, temporary)
        os.replace(temporary, out)

    converter = types.ModuleType("resnext_det.weights.convert")
    converter.convert_published = convert_published
    monkeypatch.setitem(sys.modules, converter.__name__, converter)
    return lambda: notes.read_text().splitlines()


def put_original(content=CONTENT):
    """What a user without network does."""
    path = original_path(CATALOG[NAME])
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def files_in(folder):
    return {p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_downloaded_converted_and_tidied_away(entry, conversions, cache):
    path = local_weights(NAME)
    assert path == cache / f"torchvision-X-50-32x4d-{SHA256[:8]}-v{VERSION}.pth"
    assert files_in(cache) == {path.name}
    assert len(conversions()) == 1


def test_the_second_time_needs_neither_network_nor_conversion(entry, conversions):
    first = local_weights(NAME)
    entry(url=NOWHERE)
    assert local_weights(NAME) == first
    assert len(conversions()) == 1


def test_converted_weights_in_a_read_only_cache_are_used(entry, conversions, monkeypatch):
    first = local_weights(NAME)

    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(download, "file_lock", read_only)
    assert local_weights(NAME) == first


def test_stock_detectron2_loads_a_path_of_the_catalog(entry, conversions):
    model = nn.Linear(2, 2, bias=False)
    DetectionCheckpointer(model).load(f"resnext://{NAME}")
    assert torch.equal(model.weight, torch.eye(2))


def test_detectron2_knows_which_paths_there_are(entry, conversions):
    assert PathManager.isfile(f"resnext://{NAME}") and PathManager.exists(f"resnext://{NAME}")
    assert not PathManager.isfile("resnext://torchvision/X-50")
    assert conversions() == []
    with PathManager.open(f"resnext://{NAME}", "rb") as file:
        assert torch.load(io.BytesIO(file.read()))["model"].keys() == {"weight"}
    with pytest.raises(UserError, match="did you mean torchvision/X-50-32x4d"):
        PathManager.get_local_path("resnext://torchvision/X-50-32x4")


def test_eight_processes_convert_once(entry, conversions):
    original = put_original()
    context = multiprocessing.get_context("fork")  # with the catalog and converter of this test
    results = context.Queue()
    workers = [
        context.Process(target=lambda: results.put(str(local_weights(NAME)))) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    paths = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(paths) == 1 and len(conversions()) == 1
    assert original.is_file()


def test_eight_threads_download_once(entry, server, monkeypatch, cache):
    streams = []
    stream = download._stream
    monkeypatch.setattr(download, "_stream", lambda *a: streams.append(a) or stream(*a))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(original_file(CATALOG[NAME])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(downloaded for _, downloaded in found) == 7 * [False] + [True]
    assert len(streams) == 1 and files_in(cache) == {"network.pth"}


def test_a_file_fetched_elsewhere_is_used_and_kept(entry, conversions):
    entry(url=NOWHERE)
    original = put_original()
    assert local_weights(NAME).is_file()
    assert original.is_file()


def test_two_publishers_files_of_one_name_are_told_apart(cache):
    paths = {original_path(CATALOG[f"{p}/X-101-32x8d"]) for p in ("detectron", "detectron2")}
    assert {path.name for path in paths} == {"X-101-32x8d.pkl"} and len(paths) == 2


def test_a_download_with_another_hash_is_not_kept(entry, conversions, cache):
    entry(sha256_prefix="00000000")
    with pytest.raises(UserError, match="was not kept: its sha256 is") as caught:
        local_weights(NAME)
    assert SHA256 in one_line(caught) and "starts with 00000000" in one_line(caught)
    assert files_in(cache) == set() and conversions() == []


def test_a_users_file_with_another_hash_is_refused_and_left(entry, conversions):
    original = put_original(b"something else")
    with pytest.raises(UserError, match="is not the published file.*left as it is") as caught:
        local_weights(NAME)
    assert str(original) in one_line(caught) and CATALOG[NAME].url in one_line(caught)
    assert original.read_bytes() == b"something else"


@pytest.mark.parametrize("md5", [MD5, 32 * "0"])
def test_md5_is_checked_where_it_is_published(entry, conversions, caplog, md5):
    entry(sha256_prefix="", md5=md5)
    put_original()
    if md5 == MD5:
        assert f"-{MD5[:8]}-v" in local_weights(NAME).name
        assert "no hash" not in caplog.text
    else:
        with pytest.raises(UserError, match=f"its md5 is {MD5}"):
            local_weights(NAME)


def test_the_hash_is_logged_where_none_is_published(entry, conversions, caplog):
    entry(sha256_prefix="")
    put_original()
    assert local_weights(NAME).name == f"torchvision-X-50-32x4d-v{VERSION}.pth"
    (record,) = [r for r in caplog.records if r.name == download.__name__]
    assert record.levelname == "WARNING"
    assert "states no hash" in record.getMessage() and SHA256 in record.getMessage()


@pytest.mark.parametrize("url", [NOWHERE, "/absent.pth", "/short.pth"])
def test_a_failed_download_says_what_to_do(entry, conversions, server, cache, url):
    url = url if url.startswith("http") else server + url
    entry(url=url)
    with pytest.raises(UserError, match="cannot download torchvision/X-50-32x4d") as caught:
        local_weights(NAME)
    message = one_line(caught)
    assert f"fetch {url} " in message
    assert f"put it at {cache / 'torchvision' / url.rsplit('/', 1)[1]} " in message
    for word in ("RESNEXT_DET_CACHE", "MODEL.WEIGHTS", "''"):
        assert word in message
    if url.endswith("short.pth"):
        assert f"ended after {len(CONTENT)} of {2 * len(CONTENT)} bytes" in message
    assert files_in(cache) == set()


def test_a_file_without_stated_size_is_downloaded(entry, server):
    path, downloaded = original_file(entry(url=f"{server}/unsized.pth"))
    assert downloaded and path.read_bytes() == CONTENT


def test_a_file_announced_as_too_large_is_not_read(entry, server, cache):
    entry(url=f"{server}/huge.pth")
    with pytest.raises(UserError, match="huge.pth is larger than 4294967296 bytes"):
        original_file(CATALOG[NAME])
    assert files_in(cache) == set()


def test_a_file_that_turns_out_too_large_is_stopped(entry, server, cache, monkeypatch):
    monkeypatch.setattr(download, "_MAX_BYTES", 1000)
    entry(url=f"{server}/unsized.pth")
    with pytest.raises(UserError, match="larger than 1000 bytes"):
        original_file(CATALOG[NAME])
    assert files_in(cache) == set()


@pytest.mark.parametrize(
    ("url", "prefix"), [("/network.pth", ""), ("/redirect.pth", SHA256[:8]), ("file", SHA256[:8])]
)
def test_only_https_or_http_with_a_hash_is_fetched(entry, server, url, prefix):
    url = "file:///network.pth" if url == "file" else server + url
    with pytest.raises(UserError, match="is not https"):
        original_file(entry(url=url, sha256_prefix=prefix))


def test_a_file_in_place_of_the_cache_folder_is_one_clear_error(entry, conversions, cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match="cannot write to the cache folder") as caught:
        local_weights(NAME)
    assert str(cache) in one_line(caught) and "RESNEXT_DET_CACHE" in one_line(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_cache_folder_is_one_clear_error(entry, conversions, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot write to the cache folder .*Permission denied"):
        local_weights(NAME)


def test_a_full_disk_is_one_clear_error(entry, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "replace", full)
    with pytest.raises(
        UserError, match="cache folder .*No space left on device.*RESNEXT_DET_CACHE"
    ):
        original_file(CATALOG[NAME])
    assert files_in(cache) == set()


def test_a_failed_conversion_keeps_the_download(entry, cache, monkeypatch):
    def fail(*_):
        raise UserError("no proof")

    converter = types.ModuleType("resnext_det.weights.convert")
    converter.convert_published = fail
    monkeypatch.setitem(sys.modules, converter.__name__, converter)
    with pytest.raises(UserError, match="no proof"):
        local_weights(NAME)
    assert files_in(cache) == {"network.pth"}


def test_the_cache_folder_is_chosen_when_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESNEXT_DET_CACHE", "~/weights")
    assert cache_dir() == tmp_path / "weights"
    monkeypatch.delenv("RESNEXT_DET_CACHE")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "iopath"))
    assert cache_dir() == tmp_path / "iopath" / "resnext_det"


def test_sha256_of_reads_large_files_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK", 7)
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "file") == SHA256


def test_no_progress_bar_in_a_log_file(entry, capfd):
    original_file(CATALOG[NAME])
    assert "%|" not in capfd.readouterr().err


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UserError, match="did you mean timm/X-50-32x4d.a1"):
        local_weights("timm/X-50-32x4d.a11")
