"""Idle grants that two workers keep alive, one of which is killed half-way."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.vault.upkeep import AT_ONCE
from tests.support.effort import Effort
from tests.support.keeping import two_workers


@pytest.mark.parametrize(
    "kind", ["asyncpg", *(pytest.param(each, marks=pytest.mark.stress) for each in ("sqlite", "psycopg"))]
)
async def test_each_idle_grant_is_renewed_once(engine: AsyncEngine, effort: Effort) -> None:
    """Each token is presented once; those that the killed worker was presenting are presented once more, and live."""
    rows = 100_000 if effort.full else 200
    figures = await two_workers(engine, rows)
    assert all(0 < each.kept.renewed < rows for each in figures.turns)
    assert 0 == sum(each.kept.failed + each.kept.ended for each in (*figures.turns, figures.last))
    assert figures.in_flight <= figures.last.kept.renewed <= AT_ONCE  # a lease may be taken, and no token presented yet
