"""What SQLite needs before several writers can share it, as one function."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import ConfigurationError

BUSY_TIMEOUT: Final = 5_000
"""How long a writer waits for another, in milliseconds, unless told otherwise."""


def tune_sqlite(engine: AsyncEngine, *, busy_timeout: int = BUSY_TIMEOUT) -> AsyncEngine:
    """Make an SQLite engine safe for concurrent writers and for savepoints; call it once, before first use.

    Every transaction begins with ``BEGIN IMMEDIATE``, so that a writer waits for its turn instead of failing half-way
    with a stale snapshot, and so that a rollback also undoes a transaction that began with a savepoint. The journal is
    a write-ahead log, foreign keys are enforced.

    Args:
        engine: An engine of ``sqlite+aiosqlite``.
        busy_timeout: How long a writer waits for another, in milliseconds.

    Returns:
        The same engine.

    Raises:
        ConfigurationError: The engine is not an SQLite engine.

    Source: SQLite documentation, "Transactions" and "PRAGMA busy_timeout"; SQLAlchemy documentation, "pysqlite:
    serializable isolation, savepoints, transactional DDL".
    """
    given: object = engine
    if not isinstance(given, AsyncEngine) or given.dialect.name != "sqlite":
        raise ConfigurationError(
            "tune_sqlite() takes an AsyncEngine of sqlite+aiosqlite. Leave other engines as they are."
        )

    wait: object = busy_timeout
    if isinstance(wait, bool) or not isinstance(wait, int) or not 0 <= wait < 2**31:
        raise ConfigurationError("busy_timeout= takes a whole number of milliseconds, from 0 to 2147483647.")

    def on_connect(connection: Any, _record: object) -> None:  # the driver's connection
        connection.isolation_level = None  # the driver begins nothing by itself any more
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine.sync_engine, "connect", on_connect)
    sa.event.listen(engine.sync_engine, "begin", on_begin)
    return engine


_turns: Final[WeakKeyDictionary[sa.Pool, asyncio.Lock]] = WeakKeyDictionary()


def turn(engine: AsyncEngine) -> AbstractAsyncContextManager[object]:
    """Wait for one's turn on an engine that has one connection for all, as SQLAlchemy gives a database in memory.

    Two transactions at once on one connection would be one, and each would commit the other's half.
    """
    if not isinstance(engine.pool, sa.StaticPool):
        return nullcontext()
    return _turns.setdefault(engine.pool, asyncio.Lock())


def in_transaction(connection: sa.Connection) -> bool:
    """Whether SQLite itself has an open transaction, whatever SQLAlchemy believes."""
    return bool(_driver(connection).in_transaction)


def in_autocommit(connection: sa.Connection) -> bool:
    """Whether the connection commits each statement by itself: nobody began, and the driver will not."""
    driver = _driver(connection)
    return driver.isolation_level is None and not driver.in_transaction


def _driver(connection: sa.Connection) -> Any:  # aiosqlite's connection, an extra's type
    return connection.connection.driver_connection
