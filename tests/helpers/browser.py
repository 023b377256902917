"""Chromium of the machine, without a network but this computer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser; without one the test is skipped, under CI=true it fails."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "needs Chromium: apt install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # Chromium puts a socket into its temporary folder, whose path must be short.
        own = {**os.environ, "TMPDIR": "/tmp"}
        browser = playwright.chromium.launch(executable_path=path, args=[*_FLAGS, _OFFLINE], env=own)
        yield browser
        browser.close()
