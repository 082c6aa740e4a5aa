"""A folder served on a port of this machine, and a page of it in headless Chromium."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PATIENCE = 60_000  # milliseconds before a page that does not answer is given up


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder as ``python -m http.server`` does, without lines on the terminal."""

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder for the block's time; yield its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def chromium() -> str:
    """Return the path of Chromium, or skip the test."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("there is no Chromium on this machine")


@contextlib.contextmanager
def page_of(address: str, **settings: Any) -> Iterator[Any]:
    """Open an address in headless Chromium; yield the page.

    ``page.requested`` has the addresses of all requests, ``page.complaints`` what the page wrote to
    the console as warnings and errors. ``settings`` are those of the browser's context.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    program = chromium()
    with tempfile.TemporaryDirectory() as profile, playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=list(QUIET),
            **settings,
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.requested = []
        page.complaints = []
        context.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda line: _note(page, line))
        page.goto(address)
        try:
            yield page
        finally:
            context.close()


def _note(page: Any, line: Any) -> None:
    if line.type in ("warning", "error"):
        page.complaints.append(line.text)
