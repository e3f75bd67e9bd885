"""The web demo's server: what it answers, and what it refuses."""

import base64
import io
import json
import logging
import socket
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from resnext_det.errors import UserError
from resnext_det.inference import web, web_app, web_server
from resnext_det.inference.web import Limits, run_webdemo
from resnext_det.inference.web_server import listen
from tests.inference.web_demo import (
    BOXES,
    COLOURS,
    SCORES,
    ColourDetector,
    ask,
    coloured_image,
    connected,
    encoded,
    serving,
)

IMAGE = encoded(coloured_image())


@pytest.fixture
def detector():
    return ColourDetector()


@pytest.fixture
def url(detector):
    with serving(detector, Limits(upload_bytes=100_000, pixels=1_000_000)) as url:
        yield url


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of it at most."""

    def chunk(name: bytes, content: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + code

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_an_image_of_each_kind_gets_its_detections_best_first(url, kind):
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    content = encoded(coloured_image(), kind, **options)
    assert len(content) < 250_000
    if kind == "BMP":  # has no compression
        content = encoded(coloured_image().quantize(16), kind)
    status, answer = ask(url, content)
    assert status == 200
    assert (answer["width"], answer["height"]) == (320, 200)
    assert answer["seconds"] >= 0 and answer["picture"] is None
    found = answer["detections"]
    assert [d["name"] for d in found] == ["red", "green", "blue"]
    assert [d["class"] for d in found] == [0, 1, 2]
    for item in found:
        assert item["score"] == pytest.approx(SCORES[item["name"]])
        assert item["box"] == pytest.approx(BOXES[item["name"]], abs=2)


def test_masks_are_pictures_of_themselves(url):
    _, answer = ask(url, IMAGE)
    pixels = np.asarray(coloured_image())
    for item in answer["detections"]:
        kind, code = item["mask"]["url"].split(",")
        assert kind == "data:image/png;base64"
        mask = Image.open(io.BytesIO(base64.b64decode(code))).convert("RGBA").getchannel("A")
        whole = np.zeros(pixels.shape[:2], bool)
        x, y = item["mask"]["x"], item["mask"]["y"]
        whole[y : y + mask.height, x : x + mask.width] = np.asarray(mask) > 0
        assert np.array_equal(whole, (pixels == COLOURS[item["name"]]).all(axis=2))


def test_of_an_animation_the_first_frame_counts(url):
    empty = Image.new("RGB", coloured_image().size, (128, 128, 128))
    content = encoded(coloured_image(), "GIF", save_all=True, append_images=[empty])
    assert len(ask(url, content)[1]["detections"]) == 3
    content = encoded(empty, "GIF", save_all=True, append_images=[coloured_image()])
    assert ask(url, content)[1]["detections"] == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_are_those_of_the_upright_image(url, kind, orientation):
    content = encoded(coloured_image(), kind, orientation, **{"quality": 95})
    _, answer = ask(url, content)
    assert (answer["width"], answer["height"]) == (320, 200)
    for item in answer["detections"]:
        assert item["box"] == pytest.approx(BOXES[item["name"]], abs=2)
    # browsers turn a JPEG themselves, and not all of them the others
    assert (answer["picture"] is None) == (kind == "JPEG")
    if answer["picture"]:
        picture = Image.open(io.BytesIO(base64.b64decode(answer["picture"].split(",")[1])))
        difference = abs(np.asarray(picture).astype(int) - np.asarray(coloured_image()))
        assert picture.size == (320, 200) and difference.mean() < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_is_none(url, kind):
    content = encoded(coloured_image(), kind, exif=b"Exif\0\0nothing of that kind", quality=95)
    status, answer = ask(url, content)
    assert status == 200 and answer["picture"] is None
    assert (answer["width"], answer["height"]) == (320, 200)
    assert len(answer["detections"]) == 3


def test_a_mistake_of_the_server_itself_is_answered_in_words(url, monkeypatch):
    monkeypatch.setattr(web_app, "upright_picture", lambda image: 1 / 0)
    status, answer = ask(url, IMAGE)
    assert status == 500 and "console says more" in answer["error"]
    monkeypatch.undo()
    assert ask(url, IMAGE)[0] == 200


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"just words, no image", 415, "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image"),
        (encoded(coloured_image(), "TIFF", compression="tiff_lzw"), 415, "no image"),
        (encoded(coloured_image(), "PDF"), 415, "no image"),
        (encoded(coloured_image(), "JPEG")[:2000], 400, "cut off"),
        (IMAGE[:400], 400, "cut off"),
        (png_header(320, 200), 400, "cut off"),
        (png_header(1001, 1000), 413, "1001 x 1000 pixels; at most 1 million"),
        (png_header(30_000, 30_000), 413, "far too many pixels; at most 1 million"),
        (bytes(100_001), 413, "larger than"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_in_words(url, detector, content, status, words):
    got, answer = ask(url, content)
    assert got == status and words in answer["error"]
    assert not detector.images
    assert ask(url, IMAGE)[0] == 200  # the server goes on


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/detect", 405),
        ("PUT", "/detect", 405),
        ("DELETE", "/", 405),
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
        ("GET", "/web_page.js", 404),
        ("GET", "/../../../../../../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/..%5c..%5cetc%5cpasswd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/etc/passwd%00.png", 404),
        ("GET", "/file?path=/etc/passwd", 404),
        ("GET", "/detect/", 404),
    ],
)
def test_nothing_else_is_served(url, method, path, status):
    got, answer = ask(url, path=path, method=method)
    assert got == status
    assert set(answer) == {"error"} and "root:" not in answer["error"]


def test_queries_change_nothing(url):
    with connected(url) as connection:
        connection.request("GET", "/")
        page = connection.getresponse().read()
        connection.request("GET", "/?path=/etc/passwd&file=../../etc/passwd")
        assert connection.getresponse().read() == page


def test_the_page_needs_nothing_from_elsewhere_and_says_so(url):
    with connected(url) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        page = response.read().decode()
    assert "://" not in page and "colours, model.pth" in page
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Server"] is None


def test_errors_have_the_closed_headers_too(url):
    with connected(url) as connection:
        connection.request("GET", "/nothing")
        assert connection.getresponse().headers["X-Content-Type-Options"] == "nosniff"


def test_a_stated_size_is_refused_before_the_body_comes(url):
    with connected(url) as connection:
        connection.putrequest("POST", "/detect")
        connection.putheader("Content-Length", "10000000000")
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_a_body_without_a_stated_size_is_cut_off_at_the_limit(url, detector):
    with connected(url) as connection:
        chunks = (bytes(1000) for _ in range(101))
        connection.request("POST", "/detect", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413
    with connected(url) as connection:  # and one below it is taken
        headers = {"Transfer-Encoding": "chunked"}
        connection.request("POST", "/detect", [IMAGE], headers, encode_chunked=True)
        assert connection.getresponse().status == 200
    assert len(detector.images) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:80", 403),
        ("user@localhost@evil.example", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_only_requests_to_a_name_of_this_machine_are_served(url, detector, host, status):
    assert ask(url, IMAGE, host=host)[0] == status
    assert bool(detector.images) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),  # another port of this machine
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:7861"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
    ],
)
def test_pages_of_others_cannot_post(url, detector, headers, status):
    assert ask(url, IMAGE, host="127.0.0.1:7860", **headers)[0] == status
    assert bool(detector.images) == (status == 200)


def test_on_the_network_any_name_is_served_but_no_page_of_others(detector):
    with serving(detector, host=None) as url:
        assert ask(url, IMAGE, host="gpu.lab:7860")[0] == 200
        assert ask(url, IMAGE, host="gpu.lab:7860", origin="http://gpu.lab:7860")[0] == 200
        assert ask(url, IMAGE, host="gpu.lab:7860", origin="http://evil.example")[0] == 403


def test_images_are_worked_on_one_at_a_time_and_few_wait(detector):
    detector.gate.clear()
    answers = []
    with serving(detector, Limits(waiting=2)) as url:
        threads = [
            threading.Thread(target=lambda: answers.append(ask(url, IMAGE))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        _wait_for(lambda: len(answers) == 2)  # one is worked on, two wait
        assert all(status == 503 and "busy" in answer["error"] for status, answer in answers)
        with connected(url) as connection:  # the server answers meanwhile
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
        detector.gate.set()
        for thread in threads:
            thread.join(20)
        assert [status for status, _ in answers[2:]] == [200, 200, 200]
        assert detector.most_at_a_time == 1
        assert ask(url, IMAGE)[0] == 200  # there is room again


def test_an_image_that_nobody_waits_for_any_more_is_left_out(detector):
    detector.gate.clear()
    with serving(detector) as url:
        first = threading.Thread(target=ask, args=(url, IMAGE))
        first.start()
        _wait_for(lambda: len(detector.images) == 1)
        with connected(url) as connection:
            connection.request("POST", "/detect", IMAGE)
            time.sleep(0.2)  # the server has read it
        time.sleep(0.2)  # and that the connection is closed
        detector.gate.set()
        first.join(20)
        assert ask(url, IMAGE)[0] == 200
        assert len(detector.images) == 2


def test_a_slow_upload_is_ended_and_gives_its_place_back(detector):
    with serving(detector, Limits(upload_seconds=0.2, waiting=0)) as url:
        with connected(url) as connection:
            connection.putrequest("POST", "/detect")
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b"the beginning")
            response = connection.getresponse()
            assert response.status == 408 and "0.2 seconds" in json.loads(response.read())["error"]
        assert ask(url, IMAGE)[0] == 200


def test_a_detector_that_fails_is_told_of_and_does_not_end_the_server(url, detector, caplog):
    detector.error = RuntimeError("out of memory at 0x7f")
    with caplog.at_level(logging.ERROR):
        status, answer = ask(url, IMAGE)
    assert status == 500 and "console" in answer["error"] and "0x7f" not in answer["error"]
    assert "out of memory at 0x7f" in caplog.text
    detector.error = UserError("an image of 1 x 900 pixels is too narrow to resize")
    status, answer = ask(url, IMAGE)
    assert status == 400 and "too narrow" in answer["error"]
    detector.error = None
    assert ask(url, IMAGE)[0] == 200


def test_a_port_in_use_is_said_in_one_line():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1: .*in use.*--port") as e:
            run_webdemo("config", "weights", port=port)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "192.0.2.1"}, "port 0 of 192.0.2.1"),  # an address of nobody
        ({"host": "no such host"}, "port 0 of no such host"),
        ({"port": 70_000}, "port 70000 of 127.0.0.1"),
        ({"threshold": 1.5}, "threshold 1.5 .*0 to 1"),
        ({"threshold": float("nan")}, "threshold nan .*0 to 1"),
        ({}, "no-such-config"),
    ],
)
def test_a_wrong_start_is_said_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as e:
        run_webdemo("no-such-config.yaml", "none.pth", **{"port": 0, **changes})
    assert "\n" not in str(e.value)


def test_a_host_that_others_reach_is_warned_of(caplog):
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        with pytest.raises(UserError):
            run_webdemo("no-such-config.yaml", "none.pth", host=host, port=0)
        assert ("there is no password" in caplog.text) == warned


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, package):
    for name in ("web_app", "web_server"):
        monkeypatch.delitem(sys.modules, f"resnext_det.inference.{name}", raising=False)
        monkeypatch.delattr(sys.modules["resnext_det.inference"], name, raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'resnext_det\[web\]'"):
        run_webdemo("config", "weights", port=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"upload_bytes": 0}, {"pixels": 0}, {"pixels": 10**9}, {"waiting": -1},
        {"upload_seconds": 0},
    ],
)  # fmt: skip
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(UserError):
        Limits(**wrong)


def test_an_ipv6_address_is_listened_on():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with listen("::1", 0) as connection:
        port = connection.getsockname()[1]
        assert web_server.page_url(connection) == f"http://[::1]:{port}"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("gpu.lab", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_the_network(host, expected):
    assert web_server.is_loopback(host) is expected


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ("output/demo/config.yaml", "output/demo/model_final.pth", "demo, model_final.pth"),
        ("configs/quick/faster_rcnn_X26_8x4d_FPN.yaml", "a.pth", "faster_rcnn_X26_8x4d_FPN, a.pth"),
        ("faster_rcnn_X50_32x4d", "resnext://d2/X-50", "faster_rcnn_X50_32x4d, X-50"),
    ],
)
def test_a_model_is_named_by_run_or_config_and_weights(config, weights, expected):
    assert web.model_name(config, weights) == expected


def _wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
