"""What lies between an engine and its PostgreSQL server, found out by asking through it.

The answers must be right through an unsafe engine, too. So every question is a statement of its own text that carries
a tag, which its answer must show, and none but the two that are about names has a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from accountlink.database import violations
from accountlink.values.facts import Failure, Trouble

T = TypeVar("T")
PATIENCE: Final = 4.0
"""Seconds that looking may take."""
_STEP: Final = 1.0
"""Seconds that each further connection may take."""
_CLIENTS: Final = 3
"""Of three clients two share a pooler process, where two such processes stand behind one address."""
_MIXED: Final = ("42P05", "26000")
"""A statement of that name exists already, or none does: to a connection that made the name up just now."""

_GARBLED: Final = (LookupError, TypeError, ValueError)
"""What a driver's set-up raises that was given the rows of somebody else's statement."""


class Passage(Enum):
    """What lies between an engine and its PostgreSQL server."""

    SAFE = "no statement of the engine's can be mistaken for another client's"
    MIXED = "server connections change hands between transactions, and statements keep their names there"
    UNSEEN = "statements have names, and too few connections could be had to see whether servers change hands"


async def observe(engine: AsyncEngine) -> Passage | Failure:
    """Look at the way from an engine to its server, over connections of its own that are closed again.

    The engine's pool is left alone; the new connections are made as its own are, listeners included.

    Args:
        engine: An engine of PostgreSQL.

    Returns:
        What was seen, or the failure to get there. A driver's set-up may stumble over another client's prepared
        statements: that is an observation, not a failure.
    """
    lines: list[Any] = []
    try:
        return await _within(PATIENCE, _observed(engine, lines), lines)
    except _errors(engine) as error:
        failure = _read(error)
        return Passage.MIXED if _is_mixed(failure) else failure


def _errors(engine: AsyncEngine) -> tuple[type[Exception], ...]:
    """What may be raised here, where the driver is also asked directly, without SQLAlchemy around its errors."""
    driver: Any = engine.dialect.loaded_dbapi
    return (*violations.FAILURES, driver.Error, _WrongRow)


def _read(error: Exception) -> Failure:
    if isinstance(error, violations.FAILURES) or getattr(error, "sqlstate", None) is not None:
        return violations.read(error)
    if isinstance(error, _WrongRow):
        return Failure(trouble=Trouble.STALE_PLAN, error=error)
    return violations.read(sa.exc.OperationalError("", None, error))  # psycopg has no code for a lost connection


def _is_mixed(failure: Failure) -> bool:
    """Whether an error is another client's statement met under a name of ours: ours were all new."""
    return failure.sqlstate in _MIXED or failure.trouble is Trouble.STALE_PLAN


class _WrongRow(Exception):  # never leaves this module
    """An answer to somebody else's question."""


_Backend: TypeAlias = tuple[int, str]
"""A server process: its number, and when its server began, since two servers may stand behind one address."""


class _Client:
    """One connection of our own to whatever answers at the engine's address.

    Attributes:
        first: The server process that ran its first transaction.
    """

    first: _Backend

    def __init__(self, connection: AsyncConnection, driver: Any) -> None:  # a driver's connection: two libraries'
        self.connection = connection
        self.driver = driver

    def told(self) -> int:
        """The process number that came with the connection."""
        raise NotImplementedError

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        """Run a statement without a name, however the engine is configured."""
        raise NotImplementedError

    async def prepares(self) -> bool:
        """Whether the engine's statements get names that reach the server as they are; leaves none there."""
        raise NotImplementedError

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """A transaction, begun and ended by the driver."""
        made: AbstractAsyncContextManager[object] = self.driver.transaction()
        return made

    async def backend(self) -> _Backend:
        """Say which server process runs a transaction."""
        async with self.transaction():
            return await self.current()

    async def current(self) -> _Backend:
        """Say which server process it is, within a transaction."""
        tag = _tag()
        query = "pg_backend_pid(), CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS text)"
        for row in await self.rows(f"SELECT '{tag}', {query}"):  # hexadecimal, made here
            match tuple(row):
                case (answered, int(pid), str(server)) if answered == tag:
                    return pid, server
        raise _WrongRow

    async def forget(self, names: Sequence[str]) -> None:
        """Remove prepared statements from the server, within the transaction that made them."""
        for name in names:
            quoted = name.replace('"', '""')
            await self.rows(f'DEALLOCATE "{quoted}"')


class _Asyncpg(_Client):
    def told(self) -> int:
        return int(self.driver.get_server_pid())

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        found: Sequence[Sequence[object]] = await (await self.driver.prepare(query, name="")).fetch()
        return found

    async def prepares(self) -> bool:
        # SQLAlchemy and asyncpg each have a cache, and who names a statement depends on the versions of both. So two
        # statements ask whether they have a name themselves: one takes SQLAlchemy's way, one asyncpg's own (a ping).
        self.connection = await self.connection.execution_options(
            isolation_level="READ COMMITTED"
        )  # so in a transaction
        query, given = _names(tag := _tag()), f"accountlink_{uuid4().hex}"
        named = _read_names(tag, (await self.connection.exec_driver_sql(query)).fetchall())
        named = named or _read_names(tag, await self.driver.fetch(query))
        if named:
            there = _read_names(tag, await (await self.driver.prepare(query, name=given)).fetch())
            if given not in there:
                named = []  # a pooler gave it a name of its own, and looks after it
            else:
                await self.forget(_read_names(tag, await self.rows(query)))  # asyncpg has closed some of them itself
        await self.connection.rollback()
        return bool(named)


class _Psycopg(_Client):
    def told(self) -> int:
        return int(self.driver.info.backend_pid)

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        cursor = await self.driver.execute(query, prepare=False)
        found: Sequence[Sequence[object]] = await cursor.fetchall() if cursor.description else ()
        return found

    async def prepares(self) -> bool:
        if self.driver.prepare_threshold is None:
            return False
        tag = _tag()
        async with self.transaction():
            cursor = await self.driver.execute(_names(tag), prepare=True)
            names = _read_names(tag, await cursor.fetchall())
            kept = all(name.startswith("_pg3_") for name in names)  # or a pooler gave it a name of its own
            if kept:
                await self.forget(names)
        return kept


def _tag() -> str:
    """Make a statement unlike any other: a name, or an answer, that fits it can only be its own."""
    return uuid4().hex


def _names(tag: str) -> str:
    """A statement that asks for its own name; without a name it is not listed."""
    return f"SELECT '{tag}', name FROM pg_prepared_statements WHERE strpos(statement, '{tag}') > 0"  # noqa: S608


def _read_names(tag: str, rows: Sequence[Sequence[object]]) -> list[str]:
    names = []
    for row in rows:
        match tuple(row):
            case (answered, str(name)) if answered == tag:
                names.append(name)
            case _:
                raise _WrongRow
    return names


async def _within(seconds: float, work: Coroutine[Any, Any, T], lines: Sequence[Any]) -> T:
    """Run work that is given up, in time or when cancelled, by hanging up first.

    A driver that waits for a silent server heeds its cancellation by asking that server to cancel, and waits again.
    """
    task = asyncio.ensure_future(work)
    late = True
    try:
        await asyncio.wait({task}, timeout=seconds)
        late = not task.done()
    finally:
        if not task.done():
            await _hang_up(lines)
            task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if late and not task.cancelled():
            task.exception()  # heard here; what counts is that it came too late
    if late:
        raise TimeoutError
    return task.result()


async def _hang_up(lines: Sequence[Any]) -> None:
    for driver in lines:
        if hasattr(driver, "terminate"):
            driver.terminate()  # asyncpg, whose close() waits for the server
        else:
            await driver.close()  # psycopg's does not


@asynccontextmanager
async def _client(engine: AsyncEngine, lines: list[Any]) -> AsyncIterator[_Client]:
    """Open one connection as the engine's pool would, note it before it is first used, and close it."""
    source = engine.sync_engine
    # The pool made anew has the creator and the listeners of the engine's; this engine has none of its own.
    pool = source.pool.recreate()
    sa.event.listen(pool, "connect", lambda made, _: lines.append(made.driver_connection), insert=True)
    twin = AsyncEngine(sa.Engine(pool, source.dialect, source.url, hide_parameters=True))
    try:
        async with twin.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            client = (_Asyncpg if engine.dialect.driver == "asyncpg" else _Psycopg)(connection, driver)
            try:
                client.first = await client.backend()  # a pooler lets clients in before it has a server for them
                yield client
            except BaseException:
                await _hang_up([driver])
                await connection.invalidate()
                raise
    finally:
        await twin.dispose()


async def _observed(engine: AsyncEngine, lines: list[Any]) -> Passage:
    async with AsyncExitStack() as stack:
        client = await _first(engine, lines, stack)
        clients = [client]
        while len(clients) < _CLIENTS and (another := await _another(engine, lines, stack)) is not None:
            clients.append(another)
        shared = await _shared(clients)
        unseen = len(clients) == 1 and client.first[0] != client.told()  # a pooler makes that number up
        if not (shared or unseen) or not await client.prepares():
            return Passage.SAFE
        return Passage.MIXED if shared else Passage.UNSEEN


async def _first(engine: AsyncEngine, lines: list[Any], stack: AsyncExitStack) -> _Client:
    """Open the first connection; the third time, what its set-up raises is the application's own."""
    for _ in range(2):
        with suppress(*_GARBLED):
            return await stack.enter_async_context(_client(engine, lines))
    return await stack.enter_async_context(_client(engine, lines))


async def _another(engine: AsyncEngine, lines: list[Any], stack: AsyncExitStack) -> _Client | None:
    """Open one more connection that gets through to the server; ``None`` where no more are to be had."""
    more: list[Any] = []

    try:
        client = await _within(_STEP, stack.enter_async_context(_client(engine, more)), more)
    except _GARBLED:
        return None
    except _errors(engine) as error:
        if _is_mixed(_read(error)):
            raise
        return None
    lines += more
    return client


async def _shared(clients: Sequence[_Client]) -> bool:
    """Whether a server process serves several clients, or a client several server processes."""
    seen = [{client.first} for client in clients]
    everyone = range(len(clients))

    def shared() -> bool:
        return sum(map(len, seen)) > len(set().union(*seen)) or any(len(backends) > 1 for backends in seen)

    async def look(numbers: Iterable[int]) -> None:
        for number in numbers:
            for _ in range(2):  # a pooler that takes its servers in turn gives two in a row
                if not shared():
                    seen[number].add(await clients[number].backend())

    await look(everyone)
    for holder in everyone:  # a pooler that keeps a client's last server for it gives that one away
        if not shared():
            async with clients[holder].transaction():
                seen[holder].add(await clients[holder].current())
                await look(number for number in everyone if number != holder)
    return shared()
