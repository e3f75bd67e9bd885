"""The web demo: a page on this machine that shows what a detector finds in an image.

Starlette and uvicorn serve it. Gradio was looked at: it holds Pillow back, brings some twenty
packages, and its page asks a CDN for fonts.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .predictor import Predictor
from .web_images import HARD_MAX_PIXELS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the server takes from those who reach it.

    Attributes:
        upload_bytes: of one image file, at least 1.
        pixels: of one image, width x height, 1 to `HARD_MAX_PIXELS`. Decoding takes 3 or 4 bytes
            a pixel; masks take a byte a pixel for every detection.
        waiting: uploads taken, and held in memory, while one is worked on; at least 0.
        upload_seconds: for one upload to arrive in, above 0.

    Raises:
        UserError: for a value out of range.
    """

    upload_bytes: int = 20 * 1024**2
    pixels: int = 50_000_000
    waiting: int = 4
    upload_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.upload_bytes < 1:
            raise UserError(f"an upload limit of {self.upload_bytes} bytes lets nothing through")
        if not 1 <= self.pixels <= HARD_MAX_PIXELS:
            raise UserError(
                f"a limit of {self.pixels} pixels is out of range: 1 to {HARD_MAX_PIXELS}"
            )
        if self.waiting < 0 or self.upload_seconds <= 0:
            raise UserError("waiting has to be at least 0, and upload_seconds above 0")


def run_webdemo(
    config: str,
    weights: str,
    *,
    overrides: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    threshold: float = 0.5,
    limits: Limits | None = None,
    optimize: str | None = None,
    say: Callable[[str], None] = logger.info,
) -> None:
    """Build a predictor and serve the demo until Ctrl-C.

    Args:
        config: a config file, or the name of a shipped config.
        weights: of the whole detector: a file, or a URI that MODEL.WEIGHTS can name.
        overrides: KEY VALUE pairs for the config.
        host: address or name to listen on.
        port: 0 to 65535; 0 takes a free one.
        threshold: lowest score shown at first, 0 to 1.
        limits: None for the defaults.
        optimize: see `Predictor`.
        say: gets the line with the page's address, once the server answers there.

    Raises:
        UserError: for a missing package, an address that cannot be listened on, a threshold out
            of range, or whatever the predictor refuses.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold:g} is out of range: a score is from 0 to 1")
    try:
        from .web_app import build_app
        from .web_server import is_loopback, listen, serve
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        remedy = "pip install 'resnext_det[web]'"
        raise UserError(f"the web demo needs {package}, which is absent: {remedy}") from error
    with listen(host, port) as connection:  # before the weights, which take their time
        if not is_loopback(host):
            logger.warning(
                "all who reach %s can use this page and see its errors: there is no password", host
            )
        limits = limits or Limits()
        app = build_app(
            Predictor(
                config,
                weights,
                overrides=overrides,
                max_pixels=limits.pixels,
                optimize=optimize,
            ),
            title=model_name(config, weights),
            threshold=threshold,
            limits=limits,
            host=host if is_loopback(host) else None,
        )
        serve(app, connection, on_ready=lambda url: say(f"serving {url} (Ctrl-C ends it)"))


def model_name(config: str, weights: str) -> str:
    """Name a model for people: of a run the folder, else the config, and the weights' file."""
    path = Path(config)
    name = path.resolve().parent.name if path.name == "config.yaml" else path.stem
    return f"{name}, {weights.rstrip('/').rsplit('/', 1)[-1]}"
