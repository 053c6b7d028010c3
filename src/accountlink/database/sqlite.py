"""Tune SQLite engines, so that several writers can share a database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import ConfigurationError

BUSY_TIMEOUT: Final = 5_000
"""The default time for which a writer waits for another, in milliseconds."""
_LONGEST: Final = 2**31 - 1
"""The busy timeouts that SQLite accepts."""
_TUNED: Final = "accountlink_busy_timeout"
"""The key under which a pooled connection stores the busy timeout that it was tuned for."""
_READS: Final = "accountlink_reads"
"""The execution option of a connection whose transactions only read."""
_timeouts: Final[WeakKeyDictionary[sa.Engine, int]] = WeakKeyDictionary()
"""The engines that are tuned, each with its busy timeout."""


def tune_sqlite(engine: AsyncEngine, *, busy_timeout: int = BUSY_TIMEOUT) -> AsyncEngine:
    """Make an SQLite engine safe for concurrent writers and for savepoints.

    Every transaction begins with ``BEGIN IMMEDIATE``, so that a writer waits for its turn instead of failing half-way
    with a stale snapshot, and so that a rollback also undoes a transaction that began with a savepoint. Only
    accountlink's own reads begin with ``BEGIN``, so that they wait for no writer. The journal is a write-ahead log,
    foreign keys are enforced.

    The tuning holds for all transactions that begin after the call, also on connections that the pool opened before. A
    second call only replaces the ``busy_timeout``. An engine and its copies by ``execution_options()`` are tuned
    together.

    Args:
        engine: An engine of ``sqlite+aiosqlite``.
        busy_timeout: How long a writer waits for another, in milliseconds.

    Returns:
        The same engine.

    Raises:
        ConfigurationError: The engine is no ``AsyncEngine`` of SQLite, or the busy timeout no whole number of
            milliseconds. Each transaction raises it, too, where something else than this function begins transactions
            on the engine.

    Source: SQLite documentation, "Transactions" and "PRAGMA busy_timeout"; SQLAlchemy documentation, "pysqlite:
    serializable isolation, savepoints, transactional DDL".
    """
    given: object = engine
    if not isinstance(given, AsyncEngine):
        raise ConfigurationError(
            f"tune_sqlite() takes an AsyncEngine of sqlite+aiosqlite, not {type(given).__name__}. Make it with "
            "create_async_engine()."
        )
    if given.dialect.name != "sqlite":
        raise ConfigurationError(
            f"tune_sqlite() takes an AsyncEngine of sqlite+aiosqlite, not one of {given.dialect.name}. Leave other "
            "engines as they are."
        )
    wait: object = busy_timeout
    if not isinstance(wait, int) or isinstance(wait, bool) or not 0 <= wait <= _LONGEST:
        raise ConfigurationError(f"busy_timeout= is a whole number of milliseconds, from 0 to {_LONGEST}.")
    original = _original(engine.sync_engine)
    _timeouts[original] = busy_timeout
    sa.event.listen(original, "begin", _begin)  # SQLAlchemy keeps one function once
    return engine


def _original(engine: sa.Engine) -> sa.Engine:
    """Return the engine from which ``execution_options()`` made another; the listeners of the first serve both."""
    while isinstance(engine, OptionEngine):
        engine = engine._proxied  # noqa: SLF001  # SQLAlchemy has no other way to it
    return engine


def _begin(connection: sa.Connection) -> None:
    """Tune a connection before its first transaction, then begin the transaction in SQLite."""
    try:
        _begin_immediate(connection)
    except BaseException:
        # Without this SQLAlchemy would treat the connection as still beginning, and never begin on it again. Later
        # statements would then commit one by one, or be lost.
        vars(connection)["_Connection__in_begin"] = False
        raise


def _begin_immediate(connection: sa.Connection) -> None:
    if in_transaction(connection):
        raise ConfigurationError(
            "A transaction has begun already when tune_sqlite() is about to begin it: a listener of the application's "
            "own, or the driver (autocommit=False). Take that away, since tune_sqlite() does the same."
        )
    busy_timeout = _timeouts[_original(connection.engine)]
    if connection.info.get(_TUNED) != busy_timeout:
        for setting in (
            f"busy_timeout = {busy_timeout}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "foreign_keys = ON",
        ):
            connection.exec_driver_sql(f"PRAGMA {setting}")
        connection.info[_TUNED] = busy_timeout
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN" if options.get(_READS) else "BEGIN IMMEDIATE")


_turns: Final[WeakKeyDictionary[sa.Pool, asyncio.Lock]] = WeakKeyDictionary()


def turn(engine: AsyncEngine) -> AbstractAsyncContextManager[object]:
    """Wait for a turn on an engine that has one connection for all, as a database in memory has.

    Two concurrent calls on one connection would share one transaction, and each would commit the other's work.
    """
    if not isinstance(engine.pool, sa.StaticPool):
        return nullcontext()
    return _turns.setdefault(engine.pool, asyncio.Lock())


def begin_for_real(connection: sa.Connection) -> None:
    """Begin a transaction in SQLite if there is none yet: a savepoint outside a transaction would commit by itself."""
    if not in_transaction(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def snapshot(connection: sa.Connection) -> Iterator[None]:
    """Begin a transaction that only reads: it sees one snapshot, takes no lock for writing, and waits for no writer.

    Where a listener of the application's own begins the engine's transactions, that decides about the lock.
    """
    with connection.execution_options(**{_READS: True}).begin():
        if not in_transaction(connection):
            connection.exec_driver_sql("BEGIN")
        yield


def in_transaction(connection: sa.Connection) -> bool:
    """Say whether SQLite itself has an open transaction, whatever SQLAlchemy's state says."""
    return bool(_driver(connection).in_transaction)


def in_autocommit(connection: sa.Connection) -> bool:
    """Say whether each statement on the connection commits by itself: no transaction is open, and none is begun."""
    driver = _driver(connection)
    return driver.isolation_level is None and not driver.in_transaction


def _driver(connection: sa.Connection) -> Any:  # aiosqlite's connection, an extra's type
    return connection.connection.driver_connection
