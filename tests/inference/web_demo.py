"""A web demo with a detector that finds coloured areas, served in a thread."""

import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from resnext_det.images import pil_to_bgr
from resnext_det.inference.web import Limits
from resnext_det.inference.web_app import build_app
from resnext_det.inference.web_server import build_server, listen

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SCORES = {"red": 0.9, "green": 0.6, "blue": 0.3}
SIZE = (320, 200)  # width, height
# x0, y0, x1, y1; the corner of each is missing, so that a mask is not its box
BOXES = {"red": (20, 100, 80, 180), "green": (120, 20, 200, 60), "blue": (230, 120, 300, 190)}
CORNER = 20  # pixels, at the lower right


class ColourDetector:
    """Has the interface of `Predictor`, and finds the red, green and blue areas of an image.

    Attributes:
        images: those it was given.
        most_at_a_time: calls that ran at once.
        gate: while it is cleared, calls wait.
    """

    def __init__(self, class_names: tuple[str, ...] = tuple(COLOURS), *, masks: bool = True):
        self.class_names = list(class_names)
        self.images: list[Image.Image] = []
        self.most_at_a_time = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self._masks = masks
        self._running = 0

    def __call__(self, image: Image.Image) -> Instances:
        self.images.append(image)
        self._running += 1
        self.most_at_a_time = max(self.most_at_a_time, self._running)
        assert self.gate.wait(20)
        self._running -= 1
        if self.error:
            raise self.error
        pixels = pil_to_bgr(image)[:, :, ::-1].astype(int)
        found = Instances(pixels.shape[:2])
        masks = {n: (abs(pixels - COLOURS[n]) < 100).all(axis=2) for n in COLOURS}
        kept = {n: mask for n, mask in masks.items() if mask.any()}
        boxes = []
        for mask in kept.values():
            rows, columns = np.nonzero(mask)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # the lowest score first: the page has to sort
        order = sorted(range(len(boxes)), key=lambda i: SCORES[list(kept)[i]])
        names = [list(kept)[i] for i in order]
        found.pred_boxes = Boxes(torch.tensor([boxes[i] for i in order]).reshape(-1, 4).float())
        found.scores = torch.tensor([SCORES[n] for n in names])
        found.pred_classes = torch.tensor([list(COLOURS).index(n) for n in names]).long()
        if self._masks:
            stack = [kept[n] for n in names] or np.zeros((0, *pixels.shape[:2]), bool)
            found.pred_masks = torch.from_numpy(np.array(stack))
        return found


def coloured_image() -> Image.Image:
    """A grey image with one area of each colour at its place in `BOXES`."""
    image = Image.new("RGB", SIZE, (128, 128, 128))
    for name, (x0, y0, x1, y1) in BOXES.items():
        image.paste(COLOURS[name], (x0, y0, x1, y1))
        image.paste((128, 128, 128), (x1 - CORNER, y1 - CORNER, x1, y1))
    return image


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1, **options) -> bytes:
    """An image file's content; its pixels are stored so that `orientation` turns them upright."""
    # the inverse of what EXIF says to do: 1 nothing, 3 half a turn, 6 a quarter clockwise
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    if orientation != 1:
        image = image.transpose(turns[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@contextlib.contextmanager
def serving(detector: object, limits: Limits | None = None, host: str | None = "127.0.0.1"):
    """Serve on a free port of 127.0.0.1; gives the page's address."""
    app = build_app(
        detector, title="colours, model.pth", threshold=0.5, limits=limits or Limits(), host=host
    )
    ready: list[str] = []
    event = threading.Event()
    with listen("127.0.0.1", 0) as connection:
        server = build_server(app, connection, lambda url: (ready.append(url), event.set()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]})
        thread.start()
        try:
            assert event.wait(20)
            yield ready[0]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    """A connection that sends what it is told, paths and headers as they are."""
    parts = urlsplit(url)
    with contextlib.closing(
        http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    ) as connection:
        yield connection


def ask(
    url: str, body: bytes | None = None, path: str = "/detect", method: str = "POST", **headers: str
) -> tuple[int, dict]:
    """Send a request; a header `sec_fetch_site` is Sec-Fetch-Site.

    Returns:
        The status, and the answer's JSON.
    """
    with connected(url) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
