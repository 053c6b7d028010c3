"""Fixtures for tests in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from tests.support.chromium import run_chromium


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A Chromium of the test's own; each ``new_context()`` is a user with cookies of their own."""
    async with run_chromium() as browser:
        yield browser
