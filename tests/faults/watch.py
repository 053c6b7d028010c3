"""Looks at a database from outside the library and its engines: rows, and whatever a call left running there."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any, Protocol

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import tune_sqlite
from tests.support.databases import Database

PATIENCE = 2.0
"""Seconds within which a server notices that a client is gone."""
_NAME = "under-test"
_OWN = "datname = current_database() AND application_name = 'under-test'"


def watched_engine(database: Database, **options: Any) -> AsyncEngine:
    """An engine whose connections the watch can tell from those of others."""
    if database.is_postgresql:
        names = {"server_settings": {"application_name": _NAME}}
        args = names if database.kind == "asyncpg" else {"application_name": _NAME}
        options["connect_args"] = args | options.get("connect_args", {})
        return database.engine(**options)
    return tune_sqlite(database.untuned(), busy_timeout=int(PATIENCE * 1000))


class Watch(Protocol):
    """Show the state of a database as an outside observer sees it."""

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the answer to a query."""
        ...

    def left_behind(self, engine: AsyncEngine) -> Any:  # an awaitable of a list
        """Return what the engine's calls have left in the database, apart from its idle pool."""
        ...


class _Postgres:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(record) for record in await self._connection.fetch(query)]

    async def left_behind(self, engine: AsyncEngine) -> list[object]:
        found = await self.rows(f"SELECT state, query FROM pg_stat_activity WHERE {_OWN}")
        busy: list[object] = [row for row in found if row[0] != "idle"]
        more = len(found) - _pooled(engine)
        return busy + ([f"{more} connections that are not the pool's"] if more > 0 else [])


class _SQLite:
    def __init__(self, path: str) -> None:
        self._path = path

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._path, timeout=PATIENCE)) as connection:
            return connection.execute(query).fetchall()

    async def left_behind(self, engine: AsyncEngine) -> list[object]:
        more = len(await workers()) - _pooled(engine)
        left: list[object] = [f"{more} threads of connections that are not the pool's"] if more > 0 else []
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return [*left, "the write lock"]
            connection.execute("ROLLBACK")
        return left


async def workers() -> list[str]:
    """The threads of SQLite connections; one outlives a refused connection by a moment."""
    return [thread.name for thread in threading.enumerate() if "connection_worker" in thread.name]


def _pooled(engine: AsyncEngine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedin() + pool.checkedout())


@asynccontextmanager
async def watching(database: Database) -> AsyncIterator[Watch]:
    """Open a watch on a database.

    A test that looks for what was left has the garbage collected; what is older than the test is no part of that.
    """
    gc.collect()
    gc.freeze()
    if not database.is_postgresql:
        yield _SQLite(make_url(database.url).database or "")
        return
    assert database.server is not None
    server = database.server
    connection = await asyncpg.connect(
        host=server.host, port=server.port, user=server.user, database=make_url(database.url).database
    )
    try:
        yield _Postgres(connection)
    finally:
        await connection.close()


async def soon(look: Callable[[], Any], *, patience: float = PATIENCE) -> Any:  # what the look returns at last
    """Look until there is nothing to see, or patience ends; return what was seen last."""
    deadline = asyncio.get_running_loop().time() + patience
    while (seen := await look()) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  # a server tells nobody
        await asyncio.sleep(0.005)
    return seen


def checked_out(engine: AsyncEngine) -> int:
    """How many connections the pool thinks are in use."""
    pool: Any = engine.pool
    return int(pool.checkedout())
