"""The web demo's ASGI application: one page, and one address that takes images."""

import asyncio
import base64
import hashlib
import html
import json
import logging
import time
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UserError
from .predictor import Predictor
from .web import Limits
from .web_images import Refusal, describe_detections, open_upload, upright_picture

logger = logging.getLogger(__name__)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_app(
    predictor: Predictor,
    *,
    title: str,
    threshold: float = 0.5,
    limits: Limits,
    host: str | None = "127.0.0.1",
) -> ASGIApp:
    """Make the application.

    Args:
        predictor: called with one image at a time, in a thread.
        title: name of the model, shown on the page.
        threshold: lowest score shown at first, 0 to 1.
        limits: for uploads.
        host: the loopback address that is listened on: only requests that name this machine are
            served. None serves any name.
    """
    settings = {"title": title, "threshold": threshold, "max_bytes": limits.upload_bytes}
    page, policy = _read_page(settings)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    detector = _Detector(predictor, limits)
    app = Starlette(
        routes=[Route("/", show_page), Route("/detect", detector.answer, methods=["POST"])],
        exception_handlers={
            Refusal: _explain_refusal,
            HTTPException: _explain_status,
            Exception: _explain_failure,
        },
    )
    app.router.redirect_slashes = False
    return _Guard(app, None if host is None else {"localhost", "127.0.0.1", "::1", host})


def _read_page(settings: dict) -> tuple[str, str]:
    """Put the page together, and the policy that lets only its own script and style run."""
    folder = Path(__file__).parent
    page, style, script = (
        (folder / f"web_page.{suffix}").read_text(encoding="utf-8")
        for suffix in ("html", "css", "js")
    )
    page = Template(page).substitute(
        title=html.escape(settings["title"]),
        settings=html.escape(json.dumps(settings)),
        limit=f"{settings['max_bytes'] / 1024**2:.3g}",
        style=style,
        script=script,
    )
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    ]
    policy = (
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; "
        "img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy.format(*hashes)


async def _explain_refusal(request: Request, error: Refusal) -> Response:
    return JSONResponse({"error": error.reason}, status_code=error.status)


async def _explain_status(request: Request, error: HTTPException) -> Response:
    words = {404: "There is nothing at this address.", 405: "This address takes no such request."}
    reason = words.get(error.status_code, error.detail)
    return JSONResponse({"error": reason}, status_code=error.status_code, headers=error.headers)


async def _explain_failure(request: Request, error: Exception) -> Response:
    """Of a mistake of ours; Starlette raises it again, so that the console has its traceback."""
    reason = "The server failed on this request; its console says more."
    return JSONResponse({"error": reason}, status_code=500)


class _Detector:
    """Answers uploads: one image is worked on at a time, few wait, and others are sent away."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self._taken = 0
        self._turn = anyio.Lock()

    async def answer(self, request: Request) -> Response:
        """Take an image file as the request's body, and return what is found in it as JSON."""
        if self._taken > self._limits.waiting:
            raise Refusal(503, "The detector is busy with other images: try again in a moment.")
        self._taken += 1  # before the body is read, so that few bodies are in memory
        try:
            data = await self._read(request)
            async with self._turn:
                if await request.is_disconnected():  # the page has moved on to another image
                    return Response(status_code=499)
                return JSONResponse(await anyio.to_thread.run_sync(self._detect, data))
        except ClientDisconnect:
            return Response(status_code=499)
        except asyncio.CancelledError:  # the server ends, and has waited for long enough
            raise Refusal(503, "The server was ended.") from None
        finally:
            self._taken -= 1

    async def _read(self, request: Request) -> bytes:
        most = self._limits.upload_bytes
        too_large = Refusal(413, f"The file is larger than {most / 1024**2:.3g} MB.")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        parts, size = [], 0
        try:
            with anyio.fail_after(self._limits.upload_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            seconds = f"{self._limits.upload_seconds:g} seconds"
            raise Refusal(408, f"The upload took longer than {seconds}.") from None
        if not size:
            raise Refusal(400, "The request is empty: send an image file as its body.")
        return b"".join(parts)

    def _detect(self, data: bytes) -> dict:
        image = open_upload(data, self._limits.pixels)
        picture = upright_picture(image)
        start = time.perf_counter()
        try:
            found = self._predictor(image)
        except UserError as error:
            raise Refusal(400, f"The detector refuses this image: {error}.") from error
        except Exception as error:  # the server goes on; the console has what to report
            logger.exception("the detector failed on an image of %s pixels", image.size)
            reason = "The detector failed on this image; the server's console says more."
            raise Refusal(500, reason) from error
        seconds = time.perf_counter() - start
        height, width = found.image_size
        return {
            "width": width,
            "height": height,
            "seconds": round(seconds, 4),
            "detections": describe_detections(found, self._predictor.class_names),
            "picture": picture,
        }


class _Guard:
    """Refuses requests that pages of others make a browser send, and closes down the answers."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        reason = self._refusal(scope["method"], Headers(scope=scope))
        app = JSONResponse({"error": reason}, status_code=403) if reason else self._app
        await app(scope, receive, send_closed)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused, if it is.

        A name of another that points to 127.0.0.1 would make its page one of ours (DNS
        rebinding). What a browser tells about the origin is judged as by Go's
        CrossOriginProtection; programs other than browsers tell nothing.
        """
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return "This server answers only to the name that it was started with."
        if method in ("GET", "HEAD"):
            return None
        site = headers.get("sec-fetch-site")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:
            origin = headers.get("origin")
            foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
        return "Pages of other sites may not use this server." if foreign else None


def _hostname(host: str) -> str | None:
    """A Host header without its port, in lower case; None where it makes no sense."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
