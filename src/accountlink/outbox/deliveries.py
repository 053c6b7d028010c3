"""Keeps events in one consumer's hands: by their rows' locks on PostgreSQL, by a short lease on SQLite.

A lock lasts as long as the consumer's transaction, and ends with their process or their connection; others do not wait
for it, they skip it. SQLite locks no rows, and its one write lock must not be held while a consumer works; there the
row says whose it is, and until when.

Source: PostgreSQL documentation, "SELECT", The Locking Clause: SKIP LOCKED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Generic, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink.database import violations
from accountlink.database.cancellation import seen_through
from accountlink.database.transactions import Place, place_on, sheltered
from accountlink.outbox.reading import Reading, Taken
from accountlink.values.facts import Failure
from accountlink.values.secrecy import Parameters

Event = TypeVar("Event")
_GREENLETS: Final = AsyncSession()
"""Holds nothing: only its ``run_sync`` is used, which runs a whole step on one greenlet."""


class Hold(Generic[Event]):
    """Events in one consumer's hands, from :meth:`take` until the consumer acknowledges them or lets them go.

    Attributes:
        ambiguous: Whether a failure to acknowledge may hide a commit.
    """

    ambiguous: bool = False

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Take the oldest events that nobody holds, if there are any with a greater number than this."""
        raise NotImplementedError

    async def acknowledge(self) -> bool | Failure:
        """Delete the events for good; ``False``: they are not held any more, or not all of them."""
        raise NotImplementedError

    async def release(self) -> None:
        """Let go of events that are still held, and of whatever holds them."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Lock(Hold[Event]):
    """A transaction that keeps the events' rows locked (PostgreSQL).

    Attributes:
        size: How many events at the most.
    """

    engine: AsyncEngine
    reading: Reading[Event]
    size: int
    _connection: sa.Connection | None = field(default=None, init=False)
    _numbers: Sequence[int] = field(default=(), init=False)

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Begin, and lock."""
        try:
            taken = await sheltered(_GREENLETS.run_sync(self._locked, after))
        except violations.FAILURES as error:
            return violations.read(error)
        if taken is not None:
            self._numbers = taken.numbers
        return taken

    def _locked(self, _: object, after: int) -> Taken[Event] | None:
        self._connection = self.engine.sync_engine.connect()
        # A snapshot that outlives the statement would fail on rows that others have acknowledged since.
        connection = self._connection.execution_options(isolation_level="READ COMMITTED")
        bound = self.reading.named(connection, al_after=after, al_size=self.size)
        while rows := connection.execute(self.reading.locked, bound).all():
            taken, unreadable = self.reading.taken(connection, rows)
            if not unreadable:
                return taken
            # They are set aside at once and for good, whatever becomes of the others, which are taken anew.
            connection.execute(self.reading.set_aside, Parameters(al_numbers=unreadable))
            connection.commit()
        return None

    async def acknowledge(self) -> bool | Failure:
        """Delete, and commit."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        try:
            await sheltered(_GREENLETS.run_sync(self._deleted, connection))
        except violations.FAILURES as error:
            return violations.read(error)
        finally:
            if not connection.closed:
                await seen_through(_GREENLETS.run_sync(_hand_back, connection))
        return True

    def _deleted(self, _: object, connection: sa.Connection) -> None:
        connection.execute(self.reading.delete_locked, Parameters(al_numbers=self._numbers))
        self.ambiguous = True
        connection.commit()
        _hand_back(None, connection)

    async def release(self) -> None:
        """Roll back, and give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await seen_through(_GREENLETS.run_sync(_hand_back, connection))


def _hand_back(_: object, connection: sa.Connection) -> None:
    with suppress(*violations.FAILURES):  # the line is dead, and the lock with it
        connection.close()


@dataclass(kw_only=True, eq=False)
class Lease(Hold[Event]):
    """A claim in the events' rows, which ends by itself (SQLite).

    Attributes:
        place: Where each step is a transaction of its own.
        clock: The present moment, aware.
        length: How long the claim lasts.
        size: How many events at the most.
    """

    place: Place
    reading: Reading[Event]
    clock: Callable[[], datetime]
    length: timedelta
    size: int
    _claim: Parameters | None = field(default=None, init=False)

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Claim."""
        now = self.clock().astimezone(UTC)
        bound = Parameters(al_claim=uuid4(), al_now=now, al_until=now + self.length, al_after=after, al_size=self.size)
        # Known before it is asked for: a step that is broken off may have been committed.
        self._claim = Parameters(al_claim=bound["al_claim"], al_first=after, al_last=2**63 - 1)
        taken = await self.place.attempt(partial(self._claimed, bound=bound))
        if isinstance(taken, Failure):
            return taken
        if taken is None:
            self._claim = None
            return None
        self._claim |= {"al_first": taken.numbers[0], "al_last": taken.numbers[-1], "al_size": len(taken.numbers)}
        return taken

    def _claimed(self, connection: sa.Connection, bound: Parameters) -> Taken[Event] | None:
        bound = self.reading.named(connection, **bound)
        while rows := connection.execute(self.reading.claimed, bound).all():
            taken, unreadable = self.reading.taken(connection, rows)
            if unreadable:
                connection.execute(self.reading.set_aside, Parameters(al_numbers=unreadable))
            if taken.events:
                return taken
        return None

    async def acknowledge(self) -> bool | Failure:
        """Delete, if the claim is still there."""
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
        """Take the claim back; where that fails, it ends by itself."""
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
) -> tuple[Place, Callable[[], Hold[Event]]]:
    """Say where events are held, and what makes holds.

    Args:
        engine: Where transactions are opened.
        reading: Which events.
        clock: The present moment, aware.
        lease: How long a lease lasts.
        size: How many events are held together at the most.
        tables: What the work needs, to be looked for if the database says that something is not there.

    Raises:
        ConfigurationError: A database that is not supported.
    """
    place = place_on(engine, tables=tables)
    if place.dialect == "sqlite":
        return place, partial(Lease, place=place, reading=reading, clock=clock, length=lease, size=size)
    return place, partial(Lock, engine=engine, reading=reading, size=size)
