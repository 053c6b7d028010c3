"""A backfill and a rotation of keys that are killed half-way, while the application links, unlinks and reads."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.effort import Effort
from tests.support.rotating import under_load


async def test_every_row_is_readable_at_every_moment(engine: AsyncEngine, effort: Effort) -> None:
    """A process that is killed leaves no row between two states, and the next one goes on where it stopped."""
    rows, batch_size = (100_000, 500) if effort.full else (300, 50)
    for figures in await under_load(engine, rows=rows, batch_size=batch_size):
        assert 0 < figures.resumed < rows
        assert 0 < figures.reads
        assert 0 < figures.links
