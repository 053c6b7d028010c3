"""Real databases for tests: an empty one for each test, on SQLite and on PostgreSQL by both drivers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import tune_sqlite
from tests.support.postgres import PostgresServer

KINDS = ("sqlite", "asyncpg", "psycopg")
_EMPTY = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public;
"""
"""Emptying a database takes milliseconds, making one takes half a second."""


_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a folder of its own is made in it
"""Where files are kept in memory, if there is such a place: SQLite's would wait for the disk at each commit."""
_FIRST: Final[dict[str, sa.Engine]] = {}
"""The first engine of each kind that has connected, whose dialect and compiled statements later ones use."""


def _share_what_is_compiled(kind: str, engine: AsyncEngine) -> None:
    """Let an engine use what an earlier one of its kind has compiled: a quarter of the suite's time went there.

    SQLAlchemy remembers a compiled statement by its dialect and its key, so both engines need one dialect. Tests that
    count compilations make engines of their own.
    """
    sync = engine.sync_engine
    first = _FIRST.setdefault(kind, sync)
    if first is not sync and getattr(first.dialect, "server_version_info", None):
        sync.dialect = sync.pool._dialect = first.dialect
        sync._compiled_cache = first._compiled_cache


@dataclass
class Database:
    """One fresh database, and the engines that a test opened on it."""

    kind: str
    url: str
    server: PostgresServer | None = None
    _engines: list[AsyncEngine] = field(default_factory=list)

    @property
    def is_postgresql(self) -> bool:
        return self.kind != "sqlite"

    def engine(self, **options: Any) -> AsyncEngine:
        """Open an engine; it is disposed of with the database."""
        alike = set(options) <= {"pool_size", "max_overflow"}
        if self.is_postgresql:
            options = {"pool_size": 20, "max_overflow": 50} | options
        engine = create_async_engine(options.pop("url", self.url), **options)
        if alike:
            _share_what_is_compiled(self.kind, engine)
        if not self.is_postgresql:
            tune_sqlite(engine, busy_timeout=30_000)
        self._engines.append(engine)
        return engine

    def untuned(self) -> AsyncEngine:
        """An SQLite engine as SQLAlchemy makes it."""
        engine = create_async_engine(self.url)
        self._engines.append(engine)
        return engine

    async def dispose(self) -> None:
        for engine in self._engines:
            await engine.dispose()


@asynccontextmanager
async def fresh_database(kind: str, folder: Path, server: PostgresServer | None) -> AsyncIterator[Database]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else folder) as place:
            database = Database(kind=kind, url=f"sqlite+aiosqlite:///{Path(place) / 'test.db'}")
            try:
                yield database
            finally:
                await database.dispose()
        return
    assert server is not None
    admin = await asyncpg.connect(host=server.host, port=server.port, user=server.user, database="postgres")
    try:
        await admin.execute(_EMPTY)
        database = Database(kind=kind, url=server.url(driver=kind), server=server)
        try:
            yield database
        finally:
            await database.dispose()
    finally:
        await admin.close()


async def create(engine: AsyncEngine, metadata: sa.MetaData) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


async def run_sql(engine: AsyncEngine, *statements: str) -> None:
    """Run statements that no model describes: triggers, odd indexes, roles."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def collation_without_case(engine: AsyncEngine) -> None:
    """Make ``nocase``, which is not deterministic; a server built without ICU has to be told of one it cannot make."""
    if await rows(engine, "SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'"):
        options = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
        await run_sql(engine, f"CREATE COLLATION nocase ({options})")
    else:
        told = "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'nocase'"
        await run_sql(engine, 'CREATE COLLATION nocase FROM "C"', told)


async def rows(engine: AsyncEngine, query: str, **parameters: object) -> list[tuple[Any, ...]]:
    """Read by raw SQL, past the library."""
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.text(query), parameters)]
