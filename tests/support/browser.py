"""Pages in headless Chromium, as Linux distributions package it, without a network."""

import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from playwright.sync_api import sync_playwright

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 800}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # root, no graphics card
_CANVAS = ".viewer-canvas canvas"


@contextmanager
def browser():
    """Chromium; tests are skipped without it, which `.ci/run` does not let happen."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(_NAMES)}")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        yield running
        running.close()


class Page:
    """An open page.

    Attributes:
        page: playwright's.
        complaints: errors and warnings in the console, errors of scripts, and requests for other files.
    """

    def __init__(self, running, file, *, viewport=WIDE, **options):
        self.complaints = []
        self.page = running.new_context(viewport=viewport, offline=True, **options).new_page()
        self.page.on("console", lambda text: self._complain(text.text, text.type in ("error", "warning")))
        self.page.on("pageerror", lambda error: self._complain(str(error)))
        self.page.on("request", lambda request: self._complain(request.url, request.url.startswith(("http", "ws"))))
        self.page.goto(file.as_uri())

    def _complain(self, text, serious=True):
        if serious:
            self.complaints.append(text)

    def choose(self, case):
        """Click a case and wait until the viewer says how that went."""
        self.page.get_by_role("button", name=case, exact=True).click()
        self.page.wait_for_function("!/^(Loading.*|)$/.test(document.querySelector('.viewer-status').textContent)")
        return self.page.inner_text(".viewer-status")

    def canvas(self):
        """(H, W, 3) from 0 to 1."""
        return imread(io.BytesIO(self.page.locator(_CANVAS).screenshot()))[..., :3]

    def sideways(self):
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def keep(self, name):
        """Keep pictures of the page's top and of the viewer for people, if the environment says where."""
        folder = os.environ.get("REHRSEG_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.evaluate("window.scrollTo(0, 0)")
            self.page.screenshot(path=f"{folder}/{name}.png")
            self.page.locator("#viewer").screenshot(path=f"{folder}/{name}-viewer.png")


def coloured(picture):
    """Where a picture (H, W, 3) is not grey."""
    return np.ptp(picture, axis=-1) > 0.15
