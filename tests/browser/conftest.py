"""Fixtures for tests in a real browser. These tests share one Chromium, and so the event loop that it belongs to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser

from tests.support.chromium import run_chromium
from tests.support.databases import Database, fresh_database


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def started_chromium() -> AsyncIterator[Browser]:
    """One Chromium for all tests: its start costs more than most of them."""
    async with run_chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def chromium(started_chromium: Browser) -> AsyncIterator[Browser]:
    """A Chromium that no test has left anything in; each ``new_context()`` is a user with cookies of their own."""
    assert [] == started_chromium.contexts
    yield started_chromium
    for context in started_chromium.contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A fresh database on SQLite: what a browser shows does not depend on the database."""
    async with fresh_database("sqlite", tmp_path, None) as made:
        yield made
