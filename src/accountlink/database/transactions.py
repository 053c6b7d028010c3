"""Whose transaction it is: the caller's, in which a savepoint guards the work, or accountlink's own.

A :class:`Place` runs one piece of work at a time and answers with its result or with a :class:`~.violations.Failure`.
The work itself is synchronous and runs on SQLAlchemy's greenlet, so that one code serves every bind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from accountlink.database import sqlite, violations
from accountlink.database.cancellation import sheltered
from accountlink.errors import ConfigurationError
from accountlink.tables.targets import TableMapping, as_a_write
from accountlink.values.facts import Failure
from accountlink.values.secrecy import Concealed

Bind = AsyncEngine | AsyncConnection | AsyncSession
T = TypeVar("T")
U = TypeVar("U")
Talk = Callable[[AsyncConnection], Awaitable[T]]
Work = Callable[[sa.Connection], T]

_SUPPORTED: Final = ("postgresql", "sqlite")
_GREENLETS: Final = AsyncSession()
"""Holds nothing: only its ``run_sync`` is used, which runs a whole piece of work, from taking a connection to giving it
back, on one greenlet. Through ``AsyncEngine.connect`` the same takes three greenlets and a task."""


class Place:
    """Where work runs.

    Attributes:
        owned: Whether the transaction is accountlink's own, to be committed and tried again.
        dialect: The database's name: ``"postgresql"`` or ``"sqlite"``.
        session: The caller's session, if there is one.
        ambiguous: Whether the last failure may hide a commit.
        reconnects: Whether another attempt gets another connection.
        tables: What the work needs, to be looked for if the database says that something is not there.
    """

    owned: bool
    dialect: str
    session: AsyncSession | None
    ambiguous: bool
    reconnects: bool = False
    tables: Sequence[sa.Table] = ()

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run one piece of work; a database error comes back as a value, and leaves nothing behind."""
        raise NotImplementedError

    async def converse(self, talk: Talk[T]) -> T | Failure:
        """Run work that also waits for other things than the database, in one transaction or savepoint."""
        raise NotImplementedError


class Foreign(Exception):
    """Carries what the application's own code raised past the handling of database errors, which is not for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


async def ask(
    question: Callable[[AsyncConnection, U], Awaitable[T]], connection: AsyncConnection, subject: Concealed[U]
) -> T:
    """Ask the application, inside a conversation; what its code raises is its own, database errors included."""
    try:
        return await question(connection, subject.reveal())
    except violations.FAILURES as error:
        if connection.invalidated:
            raise  # it is the conversation's own connection that was lost
        raise Foreign(error) from None


@dataclass(kw_only=True, eq=False)
class CallersTransaction(Place):
    """The caller's transaction: the work runs in one savepoint, and nothing else of it is touched.

    Attributes:
        connection: The connection that the transaction is on.
        opened: The same connection, for a conversation.
    """

    connection: sa.Connection
    opened: Callable[[], Awaitable[AsyncConnection]]
    session: AsyncSession | None
    dialect: str
    owned: bool = False
    ambiguous: bool = False

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run the work in a savepoint, which a failure rolls back."""
        try:
            return await sheltered(_GREENLETS.run_sync(_in_savepoint, self.connection, work))
        except violations.FAILURES as error:
            return violations.read(error)

    async def converse(self, talk: Talk[T]) -> T | Failure:
        """Run the conversation in a savepoint, which a failure rolls back."""
        try:
            return await sheltered(self._in_savepoint(talk))
        except violations.FAILURES as error:
            return violations.read(error)

    async def _in_savepoint(self, talk: Talk[T]) -> T:
        connection = await self.opened()
        await connection.run_sync(_savepoint)
        try:
            result = await talk(connection)
        except BaseException:
            await connection.run_sync(_undo)
            raise
        await connection.run_sync(_release)
        return result


@dataclass(kw_only=True, eq=False)
class _OwnConnections(Place):
    """An engine: each piece of work has a connection, and its transaction, to itself."""

    engine: AsyncEngine
    dialect: str
    owned: bool = True
    session: None = None
    ambiguous: bool = False
    reconnects: bool = True

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run the work on a connection of its own and commit it."""
        self.ambiguous = False
        try:
            return await sheltered(_GREENLETS.run_sync(self._alone, work))
        except violations.FAILURES as error:
            return violations.read(error)

    def _alone(self, _: object, work: Work[T]) -> T:
        raise NotImplementedError


class OwnStatements(_OwnConnections):
    """An engine whose database links in one statement: each piece of work commits by itself."""

    def _alone(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.connect() as connection:
            self.ambiguous = True
            try:
                return work(connection.execution_options(isolation_level="AUTOCOMMIT"))
            except DBAPIError as error:
                if violations.is_stale_plan(error):
                    connection.invalidate()  # psycopg would prepare no new plan on it
                raise


class OwnTransactions(_OwnConnections):
    """An engine whose work takes several statements: each piece of it is a transaction."""

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run the work in a transaction of its own and commit it."""
        async with sqlite.turn(self.engine):
            return await super().attempt(work)

    def _alone(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.begin() as connection:
            _begin_sqlite(connection)
            result = work(connection)
            self.ambiguous = True
        return result

    async def converse(self, talk: Talk[T]) -> T | Failure:
        """Run the conversation in a transaction of its own and commit it."""
        self.ambiguous = False
        try:
            async with sqlite.turn(self.engine):
                return await sheltered(self._in_transaction(talk))
        except violations.FAILURES as error:
            return violations.read(error)

    async def _in_transaction(self, talk: Talk[T]) -> T:
        async with self.engine.begin() as connection:
            await connection.run_sync(_begin_sqlite)
            result = await talk(connection)
            self.ambiguous = True
        return result


class FreshTransactions(OwnTransactions):
    """Run work in own transactions, in which each statement sees all that was committed before, at any isolation."""

    def _alone(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.connect() as connected:
            connection = connected.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                result = work(connection)
                self.ambiguous = True
        return result


@dataclass(kw_only=True, eq=False)
class AutocommitConnection(Place):
    """A connection, given by the caller, that commits each statement by itself."""

    connection: sa.Connection
    session: AsyncSession | None
    dialect: str
    owned: bool = True
    ambiguous: bool = True

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run the work as it is (PostgreSQL: one statement), or in a transaction of its own (SQLite)."""
        run = _in_driver_transaction if self.dialect == "sqlite" else _as_it_is
        try:
            return await sheltered(_GREENLETS.run_sync(run, self.connection, work))
        except violations.FAILURES as error:
            return violations.read(error)


async def place_of(bind: Bind, mapping: TableMapping, *, several_statements: bool = False) -> Place | Failure:
    """Say whose transaction a bind is. A session is flushed.

    Args:
        bind: What the caller gave.
        mapping: Says which of a session's engines is meant.
        several_statements: Whether the work needs a transaction on an engine even where one statement usually does.

    Returns:
        The place, or the failure to get a connection. What a flush raises is the caller's own and is raised.

    Raises:
        ConfigurationError: Not an async engine, connection or session, or a database that is not supported.
    """
    if isinstance(bind, AsyncEngine):
        return place_on(bind, several_statements=several_statements)
    if not isinstance(bind, (AsyncSession, AsyncConnection)):
        raise ConfigurationError(_wrong_bind(bind))
    session = bind if isinstance(bind, AsyncSession) else None
    if session is not None and (session.new or session.dirty or session.deleted):
        await session.flush()  # which takes a greenlet, even if there is nothing to do
    try:
        connection, autocommit = await sheltered(bind.run_sync(_connection_of, mapping))
    except violations.FAILURES as error:
        return violations.read(error)
    dialect = connection.dialect.name
    if not autocommit:
        opened = partial(_opened, bind, mapping)
        return CallersTransaction(connection=connection, opened=opened, session=session, dialect=dialect)
    if several_statements:
        raise ConfigurationError(
            "guard_last needs a transaction around several statements, and this connection is in AUTOCOMMIT. "
            "Pass the engine, or a connection in a transaction."
        )
    return AutocommitConnection(connection=connection, session=session, dialect=dialect)


def place_on(engine: AsyncEngine, *, several_statements: bool = False) -> Place:
    """Return the place for work on an engine.

    Raises:
        ConfigurationError: A database that is not supported.
    """
    dialect = _dialect(engine.dialect)
    if dialect == "postgresql" and not several_statements:
        return OwnStatements(engine=engine, dialect=dialect)
    return OwnTransactions(engine=engine, dialect=dialect)


def _connection_of(bind: Session | sa.Connection, mapping: TableMapping) -> tuple[sa.Connection, bool]:
    """The connection that a bind writes on, and whether that commits each statement by itself."""
    connection = bind.connection(bind_arguments=as_a_write(mapping)) if isinstance(bind, Session) else bind
    _dialect(connection.dialect)
    return connection, _commits_by_itself(connection)


async def _opened(bind: AsyncSession | AsyncConnection, mapping: TableMapping) -> AsyncConnection:
    """The connection that a bind writes on, for code that awaits."""
    return bind if isinstance(bind, AsyncConnection) else await bind.connection(bind_arguments=as_a_write(mapping))


def _dialect(dialect: sa.Dialect) -> str:
    if dialect.name not in _SUPPORTED or not dialect.is_async:
        raise ConfigurationError(
            f"{dialect.name!r} with {dialect.driver!r} is not supported. "
            "Use postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite."
        )
    return dialect.name


def _wrong_bind(bind: object) -> str:
    remedies = {
        "async_sessionmaker": "Open a session: `async with maker.begin() as session: ...`, and pass the session.",
        "sessionmaker": "accountlink is async: make an async_sessionmaker, open a session, and pass the session.",
        "async_scoped_session": "Pass the session itself: `scoped()`.",
        "Engine": "accountlink is async: use create_async_engine().",
        "Connection": "accountlink is async: use create_async_engine() and its connections.",
        "Session": "accountlink is async: use an AsyncSession.",
    }
    name = type(bind).__name__
    remedy = remedies.get(name, "Pass an AsyncEngine, an AsyncConnection or an AsyncSession.")
    return f"{name} cannot be the bind of a link. {remedy}"


def _commits_by_itself(connection: sa.Connection) -> bool:
    """Whether a connection is in AUTOCOMMIT, asked of the driver, since an engine can be made that way too."""
    if connection.dialect.name != "sqlite":
        return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
    if not connection.in_transaction():
        connection.begin()  # as the next statement would; the caller ends it as they would have ended that one
    return sqlite.in_autocommit(connection)


def _as_it_is(_: object, connection: sa.Connection, work: Work[T]) -> T:
    return work(connection)


def _in_savepoint(_: object, connection: sa.Connection, work: Work[T]) -> T:
    _savepoint(connection)
    try:
        result = work(connection)
    except BaseException:
        _undo(connection)
        raise
    _release(connection)
    return result


def _savepoint(connection: sa.Connection) -> None:
    """Set a savepoint of our own.

    Its name never changes, so that its statements are prepared once, and nothing has to be compiled: SQLAlchemy's
    ``begin_nested`` counts its names, and compiles its statements anew at each call.
    """
    _begin_sqlite(connection)
    connection.exec_driver_sql("SAVEPOINT al_call")


def _undo(connection: sa.Connection) -> None:
    if not connection.invalidated:  # or the connection is gone, and its transaction with it
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT al_call")


def _release(connection: sa.Connection) -> None:
    connection.exec_driver_sql("RELEASE SAVEPOINT al_call")


def _begin_sqlite(connection: sa.Connection) -> None:
    """Begin for real where an untuned SQLite driver has not: a savepoint that comes first would commit by itself."""
    if connection.dialect.name == "sqlite" and not sqlite.in_transaction(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_driver_transaction(_: object, connection: sa.Connection, work: Work[T]) -> T:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        result = work(connection)
    except BaseException:
        if not connection.invalidated:  # or the connection is gone, and its transaction with it
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
    return result
