"""Real databases for tests: an empty one for each test, on SQLite and on PostgreSQL by both drivers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import tune_sqlite
from tests.support.postgres import MEMORY, PostgresServer

KINDS = ("sqlite", "asyncpg", "psycopg")
_EMPTY = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public;
"""
"""Emptying a database takes milliseconds, making one takes half a second."""
EMPTIES: Final = "emptying"
"""What the connection that does it is called; it stays for all tests, and is none that a test has left behind."""


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
        first.dialect.initialize = _as_it_is  # type: ignore[assignment]  # it has asked the server what it is
        sync.dialect = sync.pool._dialect = first.dialect
        sync._compiled_cache = first._compiled_cache


def _as_it_is(_connection: sa.Connection) -> None:
    """Leave a dialect as it is when one more engine first connects: it is the same server."""


_UNTOUCHED: Final[set[tuple[int | None, str | None]]] = set()
"""The databases in which no test has made a table yet."""
_WRITTEN: Final[WeakKeyDictionary[sa.MetaData, dict[Hashable, str]]] = WeakKeyDictionary()
"""The statements that make the tables of a metadata, by driver and tables; empty until they are wanted again."""


def _place(url: sa.URL) -> tuple[int | None, str | None]:
    return url.port, url.database


@dataclass
class Database:
    """One fresh database, and the engines that a test opened on it."""

    kind: str
    url: str
    server: PostgresServer | None = None
    _engines: list[AsyncEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        _UNTOUCHED.add(_place(sa.make_url(self.url)))

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
        # On a disk it would wait at each commit.
        with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else folder) as place:
            database = Database(kind=kind, url=f"sqlite+aiosqlite:///{Path(place) / 'test.db'}")
            try:
                yield database
            finally:
                await database.dispose()
        return
    assert server is not None
    _administration(server).execute(_EMPTY)
    database = Database(kind=kind, url=server.url(driver=kind), server=server)
    try:
        yield database
    finally:
        await database.dispose()


@cache
def _administration(server: PostgresServer) -> psycopg.Connection:
    """Connect once for all tests, to empty the database between them; it ends with the server."""
    url = sa.make_url(server.url()).set(drivername="postgresql", query={"application_name": EMPTIES})
    return psycopg.connect(url.render_as_string(), autocommit=True)


async def create(engine: AsyncEngine, metadata: sa.MetaData) -> None:
    """Make all tables of a metadata that are not there yet."""
    async with engine.begin() as connection:
        await connection.run_sync(_create, metadata)


def _create(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Make the tables; again in an empty database, by the statements of the first time.

    SQLAlchemy looks for each table and compiles each statement anew: an eighth of the suite's time went there.
    """
    place = _place(connection.engine.url)
    empty = place in _UNTOUCHED and all(table.schema is None for table in metadata.tables.values())
    _UNTOUCHED.discard(place)  # what stands in a schema of its own may be there from an earlier test
    if empty and "schema_translate_map" not in connection.get_execution_options():
        shape = (connection.dialect.driver, *((key, len(table.indexes)) for key, table in metadata.tables.items()))
        known = _WRITTEN.setdefault(metadata, {})
        if shape in known:
            script = known[shape] = known[shape] or _script(connection.dialect, metadata)
            run = "executescript" if connection.dialect.name == "sqlite" else "execute"
            adapted: Any = connection.connection.dbapi_connection
            adapted.run_async(methodcaller(run, script))
            return
        known[shape] = ""
    metadata.create_all(connection)


def _script(dialect: sa.Dialect, metadata: sa.MetaData) -> str:
    statements: list[str] = []
    metadata.create_all(
        MockConnection(dialect, lambda ddl, *_: statements.append(str(ddl.compile(dialect=dialect)))), checkfirst=False
    )
    return ";\n".join(statements)


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
