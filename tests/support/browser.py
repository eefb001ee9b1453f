"""A headless Chromium for tests that open pages; they skip, with a reason, where there is none."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT = "no Chromium is on the PATH" if CHROMIUM is None else "playwright is not installed"
HERE = CHROMIUM is not None and importlib.util.find_spec("playwright") is not None
needs_browser = pytest.mark.skipif(not HERE, reason=WITHOUT)

# Nothing is asked of any network but by the page itself; the sandbox needs a user who is not root.
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--no-first-run", "--enable-unsafe-swiftshader")  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium and give playwright's browser; close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_OPTIONS))
        try:
            yield running
        finally:
            running.close()


class Watched:
    """A page of a browser, what it asked of other places than its own, and what went wrong in it.

    Args:
        running: of ``browser``.
        address: of the page; what it loads from anywhere else stands in ``outside``.
        width: of the window in pixels.
        height: of the window in pixels.
    """

    def __init__(self, running: Any, address: str, *, width: int = 1280, height: int = 900) -> None:
        self.outside: list[str] = []
        self.mistakes: list[str] = []
        self.page = running.new_page(viewport={"width": width, "height": height})
        origin = "/".join(address.split("/", 3)[:3])
        self.page.on("request", lambda request: self._asked(request.url, origin))
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.on("console", lambda line: self.mistakes.append(line.text) if line.type == "error" else None)
        self.page.goto(address)

    def _asked(self, url: str, origin: str) -> None:
        if not url.startswith((origin, "data:", "blob:")):
            self.outside.append(url)

    def picture(self, file: Path, *, whole: bool = True) -> Path:
        """Take a screenshot, of the whole page or of what the window shows."""
        self.page.screenshot(path=str(file), full_page=whole)
        return file
