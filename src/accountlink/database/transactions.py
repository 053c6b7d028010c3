"""Run work in a savepoint of the caller's transaction, or in a transaction of accountlink's own.

A :class:`Place` runs one piece of work, and returns its result or a failure. :func:`run` runs the work again where that
is safe. The work is a synchronous function of a connection. It runs on one greenlet of SQLAlchemy, from taking the
connection to giving it back, so that the same code serves every bind. :meth:`Place.ask` awaits the application's guard
in the middle of the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import await_only

from accountlink.database import sqlite, violations
from accountlink.database.cancellation import let_go
from accountlink.database.catalogue import absent_tables
from accountlink.database.patience import Patience, final_error
from accountlink.errors import ConfigurationError, OutcomeUnknown, StoreBusy
from accountlink.tables.targets import TableMapping, as_a_write
from accountlink.values.facts import Failure, Trouble
from accountlink.values.secrecy import Concealed

Bind = AsyncEngine | AsyncConnection | AsyncSession
T = TypeVar("T")
U = TypeVar("U")
Work = Callable[[sa.Connection], T]

_REFUSED: Final = (Trouble.UNIQUE, Trouble.DEFERRABLE)
_SAVEPOINT: Final = ("SAVEPOINT al_call", "ROLLBACK TO SAVEPOINT al_call", "RELEASE SAVEPOINT al_call")
"""The statements of the savepoint. Its name never changes, so that they are prepared once and nothing is compiled:
``begin_nested`` counts its names, and compiles its statements anew at each call."""
_TRANSACTION: Final = ("BEGIN IMMEDIATE", "ROLLBACK", "COMMIT")
"""The statements of a transaction on an SQLite connection that would commit each statement by itself."""
_SUPPORTED: Final = ("postgresql", "sqlite")
on_greenlet: Final = AsyncSession().run_sync
"""Runs a whole piece of work on one greenlet; the session holds nothing. Through ``AsyncEngine.connect`` that takes
three greenlets and a task."""


# -- one piece of work ------------------------------------------------------------------------------------------------


class Place:
    """Run work, in a way that depends on the bind that the caller gave.

    Attributes:
        owned: Whether the transaction is accountlink's own, to be committed and tried again. On a caller's bind this is
            known once work has begun.
        session: The caller's session, if the caller gave one.
        committed: Whether the last attempt may have been committed.
        reconnects: Whether another attempt gets another connection.
        tables: The tables that the work needs. They are looked for if the database says that a table is missing.
        lock_timeout: How long statements wait for a lock, as PostgreSQL's setting has it, once work has begun; ``None``
            in a caller's transaction and on SQLite, where the connection's own setting decides.
        on_sqlite: Whether the database is SQLite, once work has begun.
    """

    owned: bool
    session: AsyncSession | None
    committed: bool
    reconnects: bool = False
    tables: Sequence[sa.Table] = ()
    lock_timeout: str | None = None
    on_sqlite: bool = False

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run a piece of work, and return a database error as a value; a failed piece leaves no change behind."""
        try:
            return await sheltered(on_greenlet(self._run, work))
        except violations.FAILURES as error:
            return violations.read(error)
        except Foreign as raised:
            foreign = raised.error
        raise foreign

    def reading(self) -> Place:
        """Return the place for work that changes nothing."""
        return self

    def ask(
        self,
        question: Callable[[AsyncConnection, U], Awaitable[T]],
        connection: sa.Connection,
        subject: Concealed[U],
    ) -> T:
        """Call the application's function during a piece of work, and raise its errors unchanged."""
        try:
            return await_only(self._asked(question, connection, subject))
        except violations.FAILURES as error:
            if connection.invalidated:
                raise  # it is the work's own connection that was lost
            raise Foreign(error) from None

    async def _asked(
        self,
        question: Callable[[AsyncConnection, U], Awaitable[T]],
        connection: sa.Connection,
        subject: Concealed[U],
    ) -> T:
        return await question(await self._opened(connection), subject.reveal())

    def _run(self, _: object, work: Work[T]) -> T:
        """Run the work on a connection, on the greenlet."""
        raise NotImplementedError

    async def _opened(self, connection: sa.Connection) -> AsyncConnection:
        """Return the asynchronous connection of the work, for code that awaits."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class CallersConnection(Place):
    """Run work in a savepoint of the caller's transaction, and change nothing else in that transaction.

    On a connection in AUTOCOMMIT the caller has no transaction. There the work is one statement that commits by itself,
    or on SQLite a transaction of accountlink's own. Only the connection shows which of the two it is, and a session
    chooses its connection when the work begins.

    Attributes:
        bind: The session or connection that the caller gave.
        mapping: The table, by which a session chooses one of its engines.
        needs: The guarantee that the work needs.
        wanted_by: The argument for which the work needs a transaction, for messages.
        own_lock_timeout: How long statements wait for a lock if the transaction is accountlink's own.
    """

    bind: AsyncSession | AsyncConnection
    mapping: TableMapping
    needs: Needs
    wanted_by: str
    own_lock_timeout: str | None
    tables: Sequence[sa.Table]
    session: AsyncSession | None
    owned: bool = False
    committed: bool = False

    def _run(self, _: object, work: Work[T]) -> T:
        connection = self._reached()
        if not self.owned:
            if self.on_sqlite:
                sqlite.begin_for_real(connection)
            return _between(connection, work, _SAVEPOINT)
        if self.needs is Needs.TRANSACTION or (self.needs is Needs.SNAPSHOTS and not self.on_sqlite):
            raise ConfigurationError(
                f"{self.wanted_by} needs a transaction around several statements, and this connection is in "
                "AUTOCOMMIT. Pass the engine, or a connection in a transaction."
            )
        self.committed = True
        if self.on_sqlite:
            return _between(connection, work, _TRANSACTION)
        self.lock_timeout = self.own_lock_timeout
        return work(connection)

    def _reached(self) -> sa.Connection:
        """Return the connection that the bind writes on, once it is known whose transaction that has."""
        try:
            connection: sa.Connection | None
            if isinstance(self.bind, AsyncSession):
                connection = self.bind.sync_session.connection(bind_arguments=as_a_write(self.mapping))
            else:
                connection = self.bind.sync_connection
            if connection is None:
                raise InvalidRequestError("The connection was never begun.")
            _check_dialect(connection.dialect)
            self.on_sqlite = connection.dialect.name == "sqlite"
            self.owned = _commits_by_itself(connection)
        except violations.FAILURES as error:
            raise Foreign(_unreached(violations.read(error))) from None
        return connection

    async def _opened(self, connection: sa.Connection) -> AsyncConnection:
        if isinstance(self.bind, AsyncConnection):
            return self.bind
        return await self.bind.connection(bind_arguments=as_a_write(self.mapping))


@dataclass(kw_only=True, eq=False)
class OwnTransactions(Place):
    """Run each piece of work on an engine, with a connection and a transaction for that piece alone."""

    engine: AsyncEngine
    tables: Sequence[sa.Table] = ()
    lock_timeout: str | None = None
    on_sqlite: bool = False
    owned: bool = True
    session: None = None
    committed: bool = False
    reconnects: bool = True

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run a piece of work in a transaction of its own, and commit it."""
        self.committed = False
        if not isinstance(self.engine.pool, sa.StaticPool):
            return await super().attempt(work)
        async with sqlite.turn(self.engine):
            return await super().attempt(work)

    def _run(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.begin() as connection:
            if self.on_sqlite:
                sqlite.begin_for_real(connection)
            result = work(connection)
            self.committed = True
        return result

    def reading(self) -> Place:
        """Return the place for work that changes nothing, which on SQLite waits for no writer."""
        if not self.on_sqlite:
            return self
        return OwnSnapshots(engine=self.engine, tables=self.tables, on_sqlite=True)

    async def _opened(self, connection: sa.Connection) -> AsyncConnection:
        return AsyncConnection(self.engine, connection)


class OwnSnapshots(OwnTransactions):
    """Run each piece of work on an SQLite engine in a transaction that only reads."""

    def _run(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.connect() as connection, sqlite.snapshot(connection):
            return work(connection)


class OwnStatements(OwnTransactions):
    """Run each piece of work as one statement on an engine, which commits by itself."""

    def _run(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.connect() as connection:
            self.committed = True
            try:
                return work(connection.execution_options(isolation_level="AUTOCOMMIT"))
            except DBAPIError as error:
                if violations.is_stale_plan(error):
                    connection.invalidate()  # psycopg would prepare no new plan on it
                raise


class FreshTransactions(OwnTransactions):
    """Run work on an engine in READ COMMITTED, so that each statement sees what was committed before it."""

    def _run(self, _: object, work: Work[T]) -> T:
        with self.engine.sync_engine.connect() as connected:
            connection = connected.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                result = work(connection)
                self.committed = True
        return result


def _between(connection: sa.Connection, work: Work[T], statements: tuple[str, str, str]) -> T:
    """Run work after the first statement and before the last; if the work fails, run the second instead."""
    begin, undo, end = statements
    connection.exec_driver_sql(begin)
    try:
        result = work(connection)
    except BaseException:
        if not connection.invalidated:  # or the connection is gone, and its transaction with it
            connection.exec_driver_sql(undo)
        raise
    connection.exec_driver_sql(end)
    return result


class Foreign(Exception):
    """Carry an error past the handling of database errors: one of the application's own code, or one ready to raise."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


async def sheltered(work: Coroutine[Any, Any, T]) -> T:
    """Run work so that a cancellation reaches it once at most, and wait until it has cleaned up.

    The cancel scopes of anyio, and so of Starlette, cancel a task again at every wait. A second cancellation would stop
    the clean-up that the first one began: giving the connection back, and cancelling the statement on the server.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        let_go(task)
        raise


# -- again, where that is safe ----------------------------------------------------------------------------------------


async def run(
    place: Place,
    work: Work[T | None],
    patience: Patience,
    *,
    again: Work[T | None] | None = None,
    silent: Callable[[], Awaitable[T | Failure | None]] | None = None,
    refused: Callable[[Failure], Awaitable[T | None]] | None = None,
) -> T:
    """Run work until the database has answered it, or until an error ends it.

    Args:
        place: Runs the work.
        work: The work. Its ``None`` is a result like any other, unless ``silent`` is given.
        patience: The attempts that are left.
        again: Replaces the work after an attempt whose answer was lost.
        silent: Is called when the work returned ``None`` because a concurrent transaction came between. It returns a
            result, or ``None`` to run the work again.
        refused: Is called with a unique violation. It returns a result, or ``None`` to run the work again. Without it
            the violation is raised.
    """
    while True:
        result = await place.attempt(again if again is not None and patience.ambiguous else work)
        if result is None and silent is not None:
            patience.runs -= 1
            result = await silent()
            if result is None and patience.runs > 0:
                continue
            if result is None:
                raise OutcomeUnknown if patience.ambiguous else StoreBusy
        if not isinstance(result, Failure):
            return cast("T", result)  # which may be None, where that is an answer
        if refused is None or result.trouble not in _REFUSED:
            await recover(place, result, patience)
            continue
        patience.causes -= 1
        answer = await refused(result)
        if answer is not None:
            return answer


async def read(place: Place, work: Work[T]) -> T:
    """Run work that changes nothing, again where that may help."""
    return await run(place.reading(), work, Patience(writes=False))


async def nothing_more() -> None:
    """Return ``None``, so that :func:`run` runs its work again without looking for a cause."""


async def recover(place: Place, failure: Failure, patience: Patience) -> None:
    """Prepare another attempt after a database error, or raise the error that ends the call."""
    error = await patience.recover(failure, owned=place.owned, reconnects=place.reconnects, committed=place.committed)
    if failure.trouble is Trouble.NO_TABLE:
        await _explain_absence(place, failure)
    if error is not None:
        raise error


async def _explain_absence(place: Place, failure: Failure) -> None:
    """Raise an error that names the tables of accountlink which the database lacks, if it lacks any."""
    absent = await place.attempt(partial(absent_tables, tables=place.tables))
    if isinstance(absent, Failure) or not absent:
        return
    named = ", ".join(repr(name) for name in absent)
    error = ConfigurationError(
        f"The database has no table {named}. Make it by an Alembic migration, or by "
        "`await connection.run_sync(Base.metadata.create_all)`; if it is there, look at the database, the schema and "
        "the search_path that this connection uses."
    )
    error.__cause__ = failure.error
    raise error


def done(place: Place, failure: Failure | None) -> None:
    """Raise the error for a failure after the work. A place of accountlink's own has committed the work already."""
    if failure is not None:
        raise final_error(failure, ambiguous=place.owned)


# -- whose transaction it is ------------------------------------------------------------------------------------------


class Needs(Enum):
    """Name the guarantee of the database that work needs."""

    STATEMENT = "one statement"
    TRANSACTION = "a transaction around several statements"
    SNAPSHOTS = "a transaction whose statements each see what was committed before them"


async def place_of(
    bind: Bind,
    mapping: TableMapping,
    *,
    tables: Sequence[sa.Table] = (),
    needs: Needs = Needs.STATEMENT,
    wanted_by: str = "",
    lock_timeout: str | None = None,
) -> Place:
    """Return the place that runs work on a bind, after flushing a session.

    Nothing else is sent before the work: whether there is a connection, and what it can do, shows then.

    Args:
        bind: The bind that the caller gave.
        mapping: The table, by which a session chooses one of its engines.
        tables: The tables that the work needs.
        needs: The guarantee that the work needs.
        wanted_by: The argument for which the work needs a transaction, for messages.
        lock_timeout: How long statements wait for a lock in a transaction of accountlink's own.

    Raises:
        ConfigurationError: Not an async engine, connection or session; or an engine of an unsupported database.
        Exception: The flush failed; this is the application's own error, unchanged.
    """
    if isinstance(bind, AsyncEngine):
        return place_on(bind, tables=tables, needs=needs, lock_timeout=lock_timeout)
    if not isinstance(bind, (AsyncSession, AsyncConnection)):
        raise ConfigurationError(_wrong_bind(bind))
    session = bind if isinstance(bind, AsyncSession) else None
    if session is not None and (session.new or session.dirty or session.deleted):
        await session.flush()  # which takes a greenlet, even if there is nothing to do
    return CallersConnection(
        bind=bind,
        session=session,
        mapping=mapping,
        tables=tables,
        needs=needs,
        wanted_by=wanted_by,
        own_lock_timeout=lock_timeout,
    )


def place_on(
    engine: AsyncEngine,
    *,
    tables: Sequence[sa.Table] = (),
    needs: Needs = Needs.STATEMENT,
    lock_timeout: str | None = None,
) -> OwnTransactions:
    """Return the place that runs work on an engine.

    Args:
        engine: The engine.
        tables: The tables that the work needs.
        needs: The guarantee that the work needs.
        lock_timeout: How long statements wait for a lock.

    Raises:
        ConfigurationError: A database that is not supported.
    """
    _check_dialect(engine.dialect)
    if engine.dialect.name == "sqlite":
        return OwnTransactions(engine=engine, tables=tables, on_sqlite=True)
    kinds: dict[Needs, type[OwnTransactions]]
    kinds = {Needs.STATEMENT: OwnStatements, Needs.TRANSACTION: OwnTransactions, Needs.SNAPSHOTS: FreshTransactions}
    return kinds[needs](engine=engine, tables=tables, lock_timeout=lock_timeout)


def _unreached(failure: Failure) -> BaseException:
    """Return the error for a failure to get a connection, when nothing has been sent yet."""
    error = final_error(failure)
    if violations.is_unusable(failure.error):
        error = ConfigurationError(
            "This session or connection can run nothing: it is closed, was never begun, has no engine, or its "
            "transaction is over. Pass an open one, or the engine."
        )
        error.__cause__ = failure.error
    return error


def _check_dialect(dialect: sa.Dialect) -> None:
    if dialect.name not in _SUPPORTED or not dialect.is_async:
        raise ConfigurationError(
            f"{dialect.name!r} with {dialect.driver!r} is not supported. "
            "Use postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite."
        )


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
    """Say whether a connection is in AUTOCOMMIT, by the driver's state, since an engine can be made that way too."""
    if connection.dialect.name != "sqlite":
        return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
    if not connection.in_transaction():
        connection.begin()  # what the next statement would do; the caller ends it as they would have ended that
    return sqlite.in_autocommit(connection)
