"""Rule ``unsafe-pooling``: the way to the database, which no catalogue shows."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database import sqlite, violations
from accountlink.database.patience import final_error
from accountlink.database.transactions import sheltered
from accountlink.doctor import passage
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.passage import Passage
from accountlink.errors import ConfigurationError
from accountlink.values.facts import Failure

T = TypeVar("T")
RULE: Final = "unsafe-pooling"

_RECIPE: Final = (
    "Make the engine with create_async_engine(url, **pooler_options(url)), or let the pooler keep prepared statements "
    "apart (PgBouncer 1.21 or newer: max_prepared_statements)."
)
_BEGIN: Final = re.compile(r"\s*BEGIN\b\s*(\w+)?", re.IGNORECASE)
_LOCKING: Final = ("IMMEDIATE", "EXCLUSIVE")


async def check_pooling(engine: AsyncEngine) -> Finding | None:
    """Look for a way to the database that mixes statements up, or an SQLite engine that does not begin for real.

    Nothing is written, and nothing of the engine's own connections, settings or listeners is changed. On PostgreSQL up
    to three connections are opened beside the engine's pool, and closed.

    Args:
        engine: The engine that the application links with.

    Returns:
        The finding, or ``None``.

    Raises:
        ConfigurationError: Neither PostgreSQL nor SQLite.
        StoreUnavailable: The database cannot be reached.
        StoreBusy: It did not answer in time.
    """
    match engine.dialect.name:
        case "postgresql":
            return _of_passage(_answered(await passage.observe(engine)))
        case "sqlite":
            return _of_sqlite(*_answered(await _observe_sqlite(engine)))
        case other:
            raise ConfigurationError(f"{other!r} is not supported. Use PostgreSQL or SQLite.")


def _answered(seen: T | Failure) -> T:
    """Return what was seen, or raise what the failure comes to: outside of any handler, so that it has no context."""
    if not isinstance(seen, Failure):
        return seen
    raise final_error(seen)


def _finding(severity: Severity, message: str, fix: str) -> Finding:
    return Finding(rule=RULE, severity=severity, table="", object=None, columns=(), message=message, fix=fix)


def _of_passage(seen: Passage) -> Finding | None:
    if seen is Passage.SAFE:
        return None
    if seen is Passage.UNSEEN:
        return _finding(
            Severity.WARNING,
            "Something stands between the engine and the PostgreSQL server, and the driver prepares statements by "
            "name. Too few connections could be had to see whether it pools per transaction; if it does, a query may "
            "silently return another client's rows.",
            f"Run the doctor where two connections can be had. If it pools per transaction: {_RECIPE}",
        )
    return _finding(
        Severity.ERROR,
        "A pooler gives each transaction another server connection, and the driver prepares statements by name, which "
        "stay behind on the server connection. A query may silently return the rows of another client's statement, or "
        "fail with SQLSTATE 26000 or 42P05.",
        _RECIPE,
    )


def _of_sqlite(begun: str | None, busy_timeout: int) -> Finding | None:
    fix = "Call tune_sqlite(engine)."
    if begun is None:
        return _finding(
            Severity.ERROR,
            "The SQLite driver does not begin a transaction where SQLAlchemy does: a savepoint that comes first "
            "commits by itself, and outlives the rollback of the transaction around it.",
            fix,
        )
    if begun and begun not in _LOCKING:
        return _finding(
            Severity.ERROR,
            "Transactions begin without the write lock: one that reads before it writes fails at once when another "
            "has written in between, however long the busy timeout.",
            fix,
        )
    if busy_timeout <= 0:
        return _finding(
            Severity.ERROR, "busy_timeout is 0: a writer fails at once instead of waiting for another.", fix
        )
    if not begun:
        return _finding(
            Severity.WARNING,
            "A transaction is begun, but past SQLAlchemy, so that it could not be seen whether it takes the write lock "
            "at its beginning.",
            "Begin with BEGIN IMMEDIATE, or leave it to tune_sqlite(engine).",
        )
    return None


async def _observe_sqlite(engine: AsyncEngine) -> tuple[str | None, int] | Failure:
    """Begin a transaction of the engine's, and say how it began (``None``: not at all), and the busy timeout."""
    try:
        async with asyncio.timeout(passage.PATIENCE), sqlite.turn(engine):
            return await sheltered(_begun(engine))
    except violations.FAILURES as error:
        return violations.read(error)


async def _begun(engine: AsyncEngine) -> tuple[str | None, int]:
    async with engine.connect() as connection:
        return await connection.run_sync(_begin)


def _begin(connection: sa.Connection) -> tuple[str | None, int]:
    said: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: Any) -> None:
        said.append(statement)

    sa.event.listen(connection, "before_cursor_execute", listen)
    try:
        with connection.begin() as transaction:
            begun = [found[1] or "DEFERRED" for found in map(_BEGIN.match, said) if found]
            open_already = sqlite.in_transaction(connection)
            busy_timeout = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
            transaction.rollback()
    finally:
        sa.event.remove(connection, "before_cursor_execute", listen)
    if not open_already:
        return None, int(busy_timeout)
    return (begun[-1].upper() if begun else ""), int(busy_timeout)
