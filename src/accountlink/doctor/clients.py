"""One connection to whatever answers at an engine's address, and what is asked through it, for each driver.

The answers must be right through an unsafe engine, too. So every question is a statement of its own text that carries
a tag, which its answer must show, and none but the two that are about names has a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from accountlink.doctor.catalogue.tokens import quoted


class WrongRow(Exception):
    """Say that an answer belongs to another client's question."""


Backend: TypeAlias = tuple[int, str]
"""The type of a server process: its number and its server's start, since one address may lead to two servers."""


class Client:
    """Hold one connection of our own to whatever answers at the engine's address.

    Attributes:
        first: The server process that ran its first transaction.
    """

    first: Backend

    def __init__(self, connection: AsyncConnection, driver: Any) -> None:  # a driver's connection: two libraries'
        self.connection = connection
        self.driver = driver

    def announced(self) -> int:
        """Return the process number that came with the connection."""
        raise NotImplementedError

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        """Run a statement without a name, however the engine is configured."""
        raise NotImplementedError

    async def prepares(self) -> bool:
        """Say whether the engine's statements get names that reach the server as they are; leave none there."""
        raise NotImplementedError

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """Return a transaction that the driver begins and ends."""
        made: AbstractAsyncContextManager[object] = self.driver.transaction()
        return made

    async def backend(self) -> Backend:
        """Say which server process runs a transaction."""
        async with self.transaction():
            return await self.current()

    async def current(self) -> Backend:
        """Say which server process it is, within a transaction."""
        tag = _tag()
        query = "pg_backend_pid(), CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS text)"
        for row in await self.rows(f"SELECT '{tag}', {query}"):  # hexadecimal, made here
            match tuple(row):
                case (answered, int(pid), str(server)) if answered == tag:
                    return pid, server
        raise WrongRow

    async def forget(self, names: Sequence[str]) -> None:
        """Remove prepared statements from the server, within the transaction that made them."""
        for name in names:
            await self.rows(f"DEALLOCATE {quoted(name)}")


class AsyncpgClient(Client):
    """Hold a connection of asyncpg."""

    def announced(self) -> int:
        """Return the process number that asyncpg was given."""
        return int(self.driver.get_server_pid())

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        """Run a statement by the empty name, which asyncpg keeps nowhere."""
        found: Sequence[Sequence[object]] = await (await self.driver.prepare(query, name="")).fetch()
        return found

    async def prepares(self) -> bool:
        """Ask in a transaction, so that each question meets one server process."""
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


class PsycopgClient(Client):
    """Hold a connection of psycopg 3."""

    def announced(self) -> int:
        """Return the process number that psycopg was given."""
        return int(self.driver.info.backend_pid)

    async def rows(self, query: str) -> Sequence[Sequence[object]]:
        """Run a statement that psycopg does not prepare."""
        cursor = await self.driver.execute(query, prepare=False)
        found: Sequence[Sequence[object]] = await cursor.fetchall() if cursor.description else ()
        return found

    async def prepares(self) -> bool:
        """Ask by a statement that psycopg prepares at once; with its threshold off it prepares none."""
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
    """Return a statement that asks for its own name; without a name it is not listed."""
    return f"SELECT '{tag}', name FROM pg_prepared_statements WHERE strpos(statement, '{tag}') > 0"  # noqa: S608


def _read_names(tag: str, rows: Sequence[Sequence[object]]) -> list[str]:
    names = []
    for row in rows:
        match tuple(row):
            case (answered, str(name)) if answered == tag:
                names.append(name)
            case _:
                raise WrongRow
    return names


async def hang_up(lines: Sequence[Any]) -> None:
    """Close connections of either driver without a word to the server."""
    for driver in lines:
        if hasattr(driver, "terminate"):
            driver.terminate()  # asyncpg, whose close() waits for the server
        else:
            await driver.close()  # psycopg's does not
