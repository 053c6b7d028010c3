"""A real browser: the system's Chromium without a window, driven by Playwright, with no way to any other machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest
from playwright.async_api import Browser, async_playwright

VARIABLE: Final = "ACCOUNTLINK_TEST_CHROMIUM"
REMEDY: Final = "Install Chromium (Debian: apt-get install chromium)."
_NAMES: Final = ("chromium", "google-chrome")
_OPTIONS: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


def required_chromium() -> str:
    """Find Chromium; without it the test is skipped, or fails where it was promised that there is one."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None and os.environ.get(VARIABLE) == "required":
        pytest.fail(f"{VARIABLE} is 'required', and there is no chromium on PATH. {REMEDY}")
    if found is None:
        pytest.skip(f"there is no chromium on PATH. {REMEDY}")
    return found


@asynccontextmanager
async def run_chromium(*, without: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """Run a browser with an empty profile for the length of a ``with`` block.

    Playwright ends its processes and removes its files, also when the test run is killed. It starts Chromium without
    Chromium's own sandbox, which refuses root and many containers: only pages of the tests are opened.

    Args:
        without: Options that Playwright gives Chromium by itself, and that shall be left out.

    Yields:
        The browser. Each ``new_context()`` of it is a user: with cookies, storage and tabs of their own.
    """
    program = required_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=_OPTIONS, ignore_default_args=without)
        try:
            yield browser
        finally:
            await browser.close()
