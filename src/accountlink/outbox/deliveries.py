"""Reserve events for one consumer: by row locks on PostgreSQL, by a lease on SQLite.

A lock lasts as long as the consumer's transaction, and ends with the process or the connection. Other consumers skip a
locked row without waiting. SQLite locks no rows, and its one write lock must not be held while a consumer works. There
the row itself names the claim that holds it, and the end of that claim.

Source: PostgreSQL documentation, "SELECT", The Locking Clause: SKIP LOCKED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Generic, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database import violations
from accountlink.database.cancellation import seen_through
from accountlink.database.transactions import OwnTransactions, Place, Work, on_greenlet, place_on, sheltered
from accountlink.outbox.reading import Reading, Taken
from accountlink.values.facts import Failure
from accountlink.values.secrecy import Parameters

Event = TypeVar("Event")
T = TypeVar("T")


class Hold(Generic[Event]):
    """Hold events for one consumer, from the moment they are taken until the consumer acknowledges or releases them.

    Attributes:
        place: Runs the work that takes the events.
    """

    place: Place

    def take(self, connection: sa.Connection, after: int) -> Taken[Event] | None:
        """Take the oldest events with a greater number that no consumer holds; return ``None`` for none."""
        raise NotImplementedError

    async def acknowledge(self) -> bool | Failure:
        """Delete the events for good, or return ``False`` if they are not all held any more."""
        raise NotImplementedError

    async def release(self) -> None:
        """Release the events that are still held, and the connection or claim that holds them."""
        raise NotImplementedError

    @property
    def ambiguous(self) -> bool:
        """Say whether a failure to acknowledge may hide a commit."""
        return self.place.committed


@dataclass(kw_only=True, eq=False)
class OpenTransaction(OwnTransactions):
    """Run work in a transaction that stays open afterwards, until it is committed or released (PostgreSQL)."""

    connection: sa.Connection | None = field(default=None, init=False)

    def _run(self, _: object, work: Work[T]) -> T:
        self.connection = self.engine.sync_engine.connect()
        # A snapshot that outlives the statement would fail on rows that other consumers have acknowledged since.
        return work(self.connection.execution_options(isolation_level="READ COMMITTED"))

    async def attempt(self, work: Work[T]) -> T | Failure:
        """Run a piece of work; a failure ends the transaction."""
        result = await super().attempt(work)
        if isinstance(result, Failure):
            await self.release()
        return result

    async def commit(self, last: Work[None]) -> bool | Failure:
        """Run the last piece of work and commit, or return ``False`` if the transaction has ended before."""
        connection, self.connection = self.connection, None
        if connection is None:
            return False
        try:
            await sheltered(on_greenlet(self._committed, connection, last))
        except violations.FAILURES as error:
            return violations.read(error)
        finally:
            if not connection.closed:
                await seen_through(on_greenlet(_hand_back, connection))
        return True

    def _committed(self, _: object, connection: sa.Connection, last: Work[None]) -> None:
        last(connection)
        self.committed = True
        connection.commit()
        _hand_back(None, connection)

    async def release(self) -> None:
        """Roll the transaction back, and give its connection back."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await seen_through(on_greenlet(_hand_back, connection))


def _hand_back(_: object, connection: sa.Connection) -> None:
    with suppress(*violations.FAILURES):  # the line is dead, and the lock with it
        connection.close()


@dataclass(kw_only=True, eq=False)
class Lock(Hold[Event]):
    """Hold events by a transaction that keeps their rows locked (PostgreSQL).

    Attributes:
        place: The transaction.
        size: The most events to hold.
    """

    place: OpenTransaction
    reading: Reading[Event]
    size: int
    _numbers: Sequence[int] = field(default=(), init=False)

    def take(self, connection: sa.Connection, after: int) -> Taken[Event] | None:
        """Lock the rows of the oldest free events."""
        bound = self.reading.named(connection, al_after=after, al_size=self.size)
        while rows := connection.execute(self.reading.locked, bound).all():
            taken, unreadable = self.reading.taken(connection, rows)
            if not unreadable:
                self._numbers = taken.numbers
                return taken
            # Unreadable events are set aside at once, in a commit of their own. The others are then taken again.
            connection.execute(self.reading.set_aside, Parameters(al_numbers=unreadable))
            connection.commit()
        return None

    async def acknowledge(self) -> bool | Failure:
        """Delete the events, and commit."""
        return await self.place.commit(self._delete)

    def _delete(self, connection: sa.Connection) -> None:
        connection.execute(self.reading.delete_locked, Parameters(al_numbers=self._numbers))

    async def release(self) -> None:
        """End the transaction, and with it the locks."""
        await self.place.release()


@dataclass(kw_only=True, eq=False)
class Lease(Hold[Event]):
    """Hold events by a claim in their rows, which ends by itself (SQLite).

    Attributes:
        place: Runs each step in a transaction of its own.
        clock: Returns the present moment, aware.
        length: How long the claim lasts.
        size: The most events to hold.
    """

    place: Place
    reading: Reading[Event]
    clock: Callable[[], datetime]
    length: timedelta
    size: int
    _claim: Parameters | None = field(default=None, init=False)

    def take(self, connection: sa.Connection, after: int) -> Taken[Event] | None:
        """Write a claim into the rows of the oldest free events."""
        if self._claim is not None:  # an attempt whose answer was lost may have claimed some
            connection.execute(self.reading.give_up, self._claim)
        now = self.clock().astimezone(UTC)
        # The claim is stored before the statement runs, because a cancelled step may have been committed.
        self._claim = Parameters(al_claim=uuid4(), al_first=after, al_last=2**63 - 1)
        claim = self.reading.named(
            connection,
            al_claim=self._claim["al_claim"],
            al_now=now,
            al_until=now + self.length,
            al_after=after,
            al_size=self.size,
        )
        while rows := connection.execute(self.reading.claimed, claim).all():
            taken, unreadable = self.reading.taken(connection, rows)
            if unreadable:
                connection.execute(self.reading.set_aside, Parameters(al_numbers=unreadable))
            if taken.events:
                found = {"al_first": taken.numbers[0], "al_last": taken.numbers[-1], "al_size": len(taken.numbers)}
                self._claim = Parameters(self._claim | found)
                return taken
        self._claim = None
        return None

    async def acknowledge(self) -> bool | Failure:
        """Delete the events, if the claim is still in their rows."""
        claim = self._claim
        if claim is None:
            return False
        deleted = await self.place.attempt(lambda c: c.execute(self.reading.delete_claimed, claim).rowcount)
        if isinstance(deleted, Failure):
            return deleted
        if deleted:
            self._claim = None
        return deleted > 0

    async def release(self) -> None:
        """Remove the claim from the rows; if that fails, the claim ends by itself."""
        claim, self._claim = self._claim, None
        if claim is not None:
            await seen_through(self.place.attempt(lambda connection: connection.execute(self.reading.give_up, claim)))


def holder(
    engine: AsyncEngine,
    reading: Reading[Event],
    clock: Callable[[], datetime],
    lease: timedelta,
    size: int,
    *,
    tables: Sequence[sa.Table],
) -> Callable[[], Hold[Event]]:
    """Return a function that makes holds on an engine.

    Args:
        engine: The engine that opens the transactions.
        reading: Reads the events of one table.
        clock: Returns the present moment, aware.
        lease: How long a lease lasts.
        size: The most events that are held together.
        tables: The tables that the work needs. They are looked for if the database says that a table is missing.

    Raises:
        ConfigurationError: A database that is not supported.
    """
    place = place_on(engine, tables=tables)
    if engine.dialect.name == "sqlite":
        return partial(Lease, place=place, reading=reading, clock=clock, length=lease, size=size)
    return lambda: Lock(place=OpenTransaction(engine=engine, tables=tables), reading=reading, size=size)
