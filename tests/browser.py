"""Headless Chromium for tests of pages, and axe for their accessibility.

A test module makes its own fixture, so that one Chromium serves all of its tests:

    @pytest.fixture(scope="module")
    def browser():
        with chromium() as browser:
            yield browser
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # containers, where tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@contextlib.contextmanager
def chromium() -> "Iterator[Browser]":
    """Start the Chromium on PATH; skips the test where there is none, or no Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: "Browser", url: str, **context: object) -> "Iterator[Page]":
    """Open a page in a profile of its own; at the end nothing may have gone wrong in it.

    Args:
        browser: from `chromium()`.
        url: `http://...`, or `file.as_uri()`.
        **context: of `browser.new_context`, e.g. viewport=PHONE, color_scheme="dark".

    Raises:
        AssertionError: at the end, if a script failed, the console has an error (a refused
            Content-Security-Policy among them), or anything was asked of another origin. An
            answer of the server with an error's status is none: tests look at these themselves.
    """
    problems: list[str] = []

    def listen(message: "ConsoleMessage") -> None:
        if message.type == "error" and "the server responded with a status" not in message.text:
            problems.append(f"console: {message.text}")

    own = (url.split("#")[0].rstrip("/"), "data:", "blob:")
    with browser.new_context(**{"viewport": DESKTOP, **context}) as profile:
        page = profile.new_page()
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("console", listen)
        page.on(
            "request",
            lambda r: r.url.startswith(own) or problems.append(f"asked for {r.url}"),
        )
        page.goto(url)
        yield page
    assert not problems, problems


def violations(page: "Page") -> list[str]:
    """What axe finds wrong with a page's accessibility, a line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']}: {n['html'][:200]}" for v in found for n in v["nodes"]]


def overflow(page: "Page") -> int:
    """By how many pixels the page is wider than its window: it should not scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
