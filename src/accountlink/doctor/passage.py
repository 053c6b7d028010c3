"""Find out whether a pooler lies between an engine and its PostgreSQL server, by queries through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database import violations
from accountlink.doctor.clients import AsyncpgClient, Client, PsycopgClient, WrongRow, hang_up
from accountlink.values.facts import Failure, Trouble

T = TypeVar("T")
PATIENCE: Final = 4.0
"""The seconds that a look may take."""
_STEP: Final = 1.0
"""The seconds that each further connection may take."""
_CLIENTS: Final = 3
"""The number of clients: of three, two share a pooler process, where two such processes stand behind one address."""
_MIXED: Final = ("42P05", "26000")
"""The codes for a statement that exists already or does not exist, although this connection just made up its name."""

_GARBLED: Final = (LookupError, TypeError, ValueError)
"""The errors of a driver's set-up that was given the rows of another client's statement."""


class Passage(Enum):
    """Name the kind of connection between an engine and its PostgreSQL server."""

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
    """Return the errors that a look at the passage may raise.

    The driver is also asked directly, without SQLAlchemy around its errors.
    """
    driver: Any = engine.dialect.loaded_dbapi
    return (*violations.FAILURES, driver.Error, WrongRow)


def _read(error: Exception) -> Failure:
    if isinstance(error, violations.FAILURES) or getattr(error, "sqlstate", None) is not None:
        return violations.read(error)
    if isinstance(error, WrongRow):
        return Failure(trouble=Trouble.STALE_PLAN, error=error)
    return violations.read(sa.exc.OperationalError("", None, error))  # psycopg has no code for a lost connection


def _is_mixed(failure: Failure) -> bool:
    """Say whether an error is another client's statement met under a name of ours: ours were all new."""
    return failure.sqlstate in _MIXED or failure.trouble is Trouble.STALE_PLAN


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
            await hang_up(lines)
            task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if late and not task.cancelled():
            task.exception()  # heard here; what counts is that it came too late
    if late:
        raise TimeoutError
    return task.result()


@asynccontextmanager
async def _client(engine: AsyncEngine, lines: list[Any]) -> AsyncIterator[Client]:
    """Open one connection as the engine's pool would, note it before it is first used, and close it."""
    source = engine.sync_engine
    # The pool made anew has the creator and the listeners of the engine's; this engine has none of its own.
    pool = source.pool.recreate()
    sa.event.listen(pool, "connect", lambda made, _: lines.append(made.driver_connection), insert=True)
    twin = AsyncEngine(sa.Engine(pool, source.dialect, source.url, hide_parameters=True))
    try:
        async with twin.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            client = (AsyncpgClient if engine.dialect.driver == "asyncpg" else PsycopgClient)(connection, driver)
            try:
                client.first = await client.backend()  # a pooler lets clients in before it has a server for them
                yield client
            except BaseException:
                await hang_up([driver])
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
        unseen = len(clients) == 1 and client.first[0] != client.announced()  # a pooler makes that number up
        if not (shared or unseen) or not await client.prepares():
            return Passage.SAFE
        return Passage.MIXED if shared else Passage.UNSEEN


async def _first(engine: AsyncEngine, lines: list[Any], stack: AsyncExitStack) -> Client:
    """Open the first connection; the third time, what its set-up raises is the application's own."""
    for _ in range(2):
        with suppress(*_GARBLED):
            return await stack.enter_async_context(_client(engine, lines))
    return await stack.enter_async_context(_client(engine, lines))


async def _another(engine: AsyncEngine, lines: list[Any], stack: AsyncExitStack) -> Client | None:
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


async def _shared(clients: Sequence[Client]) -> bool:
    """Say whether a server process serves several clients, or a client several server processes."""
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
