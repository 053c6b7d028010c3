"""F09: four processes of twelve users behind PgBouncer in transaction mode, on four server connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.databases import Database, create, fresh_database
from tests.support.models import EXCLUSIVE_SOFT, make_tables
from tests.support.pgbouncer import Pooler, run_pgbouncer
from tests.support.pooled import PROCESSES, USERS, behind
from tests.support.postgres import PostgresServer


@pytest.fixture(params=["asyncpg", pytest.param("psycopg", marks=pytest.mark.stress)])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[Pooler]:
    with run_pgbouncer(postgres) as running:
        yield running


async def left_on_servers(pooler: Pooler) -> list[str]:
    """Return the prepared statements that are still on the server connections."""
    held: list[str] = []
    clients = []
    for _ in range(4):  # as many as there are servers, so that each is looked at
        client = await asyncpg.connect(
            host=pooler.host, port=pooler.port, user=pooler.user, database="postgres", statement_cache_size=0
        )
        clients.append(client)
        await client.execute("BEGIN")
        held += [row["statement"] for row in await client.fetch("SELECT statement FROM pg_prepared_statements")]
    for client in clients:
        await client.close()
    return held


async def test_with_the_recipe_every_answer_is_right(database: Database, pooler: Pooler) -> None:
    """F09: with ``pooler_options`` 1,008 of 1,008 answers are right, and no prepared statement is left on a server."""
    await create(database.engine(), make_tables(EXCLUSIVE_SOFT).metadata)
    counted = await behind(pooler.url(driver=database.kind), rounds=21, recipe=True)
    assert {"right": PROCESSES * USERS * 21, "wrong": 0, "failed": 0} == dict(counted)
    assert [] == await left_on_servers(pooler)


async def test_without_the_recipe_asyncpg_is_not_to_be_trusted(postgres: PostgresServer, pooler: Pooler) -> None:
    """F09: with asyncpg's defaults answers fail or belong to another client, so the test above can find it."""
    async with fresh_database("asyncpg", Path(), postgres) as database:
        await create(database.engine(), make_tables(EXCLUSIVE_SOFT).metadata)
        counted = await behind(pooler.url(), rounds=6, recipe=False)
    assert 0 < counted["wrong"] + counted["failed"], counted


async def test_without_the_recipe_psycopg_is_not_to_be_trusted(postgres: PostgresServer) -> None:
    """F09: with psycopg's defaults the second client that prepares meets the first one's statement."""

    async def repeat(engine: AsyncEngine, question: str) -> None:
        for _ in range(7):  # psycopg prepares what it has seen more than five times, and forgets it at a rollback
            async with engine.begin() as connection:
                await connection.execute(sa.text(question))

    with run_pgbouncer(postgres, default_pool_size=1) as pooler:
        first, second = (create_async_engine(pooler.url(driver="psycopg")) for _ in range(2))
        await repeat(first, "SELECT 1")
        with pytest.raises(DBAPIError) as raised:
            await repeat(second, "SELECT 2")
        await first.dispose()
        await second.dispose()
    assert "42P05" == getattr(raised.value.orig, "sqlstate", None)
