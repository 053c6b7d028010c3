"""Keeps an event in one consumer's hands: by its row's lock on PostgreSQL, by a short lease on SQLite.

A lock lasts as long as the consumer's transaction, and ends with his process or his connection; others do not wait for
it, they skip it. SQLite locks no rows, and its one write lock must not be held while a consumer works; there the row
says whose it is, and until when.

Source: PostgreSQL documentation, "SELECT", The Locking Clause: SKIP LOCKED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from accountlink.core.events import LINK_EVENTS, EventType, LinkEvent
from accountlink.core.facts import Failure
from accountlink.storage import violations
from accountlink.storage.cancellation import seen_through, sheltered
from accountlink.storage.column_types import read_moment
from accountlink.storage.mapping import AccountMapping
from accountlink.storage.outbox import word
from accountlink.storage.transactions import Place

Event = TypeVar("Event")
_select: Final[Callable[..., sa.Select[Any]]] = cast("Any", sa.select)
"""Columns are chosen at run time: their types are not known here."""


class Taken(NamedTuple, Generic[Event]):
    """An event that was taken, and its number."""

    number: int
    event: Event


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[Event]):
    """The statements that read the events of one table from an outbox.

    Attributes:
        outbox: The outbox.
        source: The table whose events are read.
        types: The types that are known here; a newer version's events are left to it.
        row: What is read of an event's row, its number first.
        read: Makes an event of that.
    """

    outbox: sa.Table
    source: sa.Table
    types: Sequence[EventType]
    row: Sequence[sa.ColumnElement[Any]]
    read: Callable[[sa.Row[Any]], Event]

    def _oldest(self, table: sa.FromClause, *chosen: sa.ColumnElement[Any]) -> sa.Select[Any]:
        c = table.c
        known = c.type.in_([word(kind) for kind in self.types])
        mine = c.table_name == sa.literal(self.source.fullname, sa.Text)
        after = c.id > sa.bindparam("al_after", type_=c.id.type)
        return _select(*chosen).where(mine, known, after).order_by(c.id).limit(sa.literal_column("1"))

    @cached_property
    def locked(self) -> sa.Select[Any]:
        """The oldest event that nobody holds, locked (PostgreSQL)."""
        return self._oldest(self.outbox, *self.row).with_for_update(skip_locked=True)

    @cached_property
    def claimed(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """The oldest event that nobody holds, or has held for too long, claimed (SQLite)."""
        free, c = self.outbox.alias("free"), self.outbox.c
        now = sa.bindparam("al_now", type_=c.claimed_until.type)
        oldest = self._oldest(free, free.c.id).where(
            sa.or_(free.c.claimed_until.is_(None), free.c.claimed_until <= now)
        )
        claim = sa.update(self.outbox).where(c.id == oldest.scalar_subquery())
        return claim.values(claimed_by=self._claim(), claimed_until=sa.bindparam("al_until")).returning(*self.row)

    @cached_property
    def delete_locked(self) -> sa.Delete:
        """Delete an event."""
        return sa.delete(self.outbox).where(self._is_the_event())

    @cached_property
    def delete_claimed(self) -> sa.Delete:
        """Delete an event that is still claimed (SQLite)."""
        return self.delete_locked.where(self.outbox.c.claimed_by == self._claim())

    @cached_property
    def give_up(self) -> sa.Update:
        """Let whatever was claimed go (SQLite)."""
        let_go = sa.update(self.outbox).where(self.outbox.c.claimed_by == self._claim())
        return let_go.values(claimed_by=sa.null(), claimed_until=sa.null())

    def _is_the_event(self) -> sa.ColumnElement[bool]:
        return self.outbox.c.id == sa.bindparam("al_event_id", type_=self.outbox.c.id.type)

    def _claim(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_claim", type_=self.outbox.c.claimed_by.type)


def link_events(mapping: AccountMapping[Any, Any], outbox: sa.Table) -> Reading[LinkEvent[Any, Any]]:
    """How the events of a table of links are read."""
    c, user = outbox.c, mapping.columns["user_id"].type
    users = [sa.cast(c[name], user).label(name) for name in ("user_id", "other_user_id")]
    link_id = sa.cast(c.link_id, mapping.columns["id"].type).label("link_id")
    row = (c.id, c.occurred_at, c.type, *users, c.provider, link_id, c.data)
    return Reading(outbox=outbox, source=mapping.table, types=LINK_EVENTS, row=row, read=_link_event)


def _link_event(row: sa.Row[Any]) -> LinkEvent[Any, Any]:
    number, moment, kind, user_id, other_user_id, provider, link_id, data = tuple[Any, ...](row)
    occurred_at = read_moment(moment)
    assert occurred_at is not None  # noqa: S101  # the column takes no null
    return LinkEvent(
        id=number,
        occurred_at=occurred_at,
        type=EventType(kind),
        user_id=user_id,
        other_user_id=other_user_id,
        provider=provider,
        link_id=link_id,
        data=data,
    )


class Hold(Generic[Event]):
    """One event in one consumer's hands, from :meth:`take` until he acknowledges it or lets it go.

    Attributes:
        ambiguous: Whether a failure to acknowledge may hide a commit.
    """

    ambiguous: bool = False

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Take the oldest event that nobody holds, if there is one with a greater number than this."""
        raise NotImplementedError

    async def acknowledge(self) -> bool | Failure:
        """Delete the event for good; ``False``: it is not held any more."""
        raise NotImplementedError

    async def release(self) -> None:
        """Let go of an event that is still held, and of whatever holds it."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Lock(Hold[Event]):
    """A transaction that keeps the event's row locked (PostgreSQL)."""

    engine: AsyncEngine
    reading: Reading[Event]
    _connection: AsyncConnection | None = field(default=None, init=False)
    _number: int = field(default=0, init=False)

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Begin, and lock."""
        self._connection = self.engine.connect()
        try:
            row = await sheltered(self._locked(self._connection, after))
        except violations.FAILURES as error:
            return violations.read(error)
        if row is None:
            return None
        self._number = row[0]
        return Taken(self._number, self.reading.read(row))

    async def _locked(self, connection: AsyncConnection, after: int) -> sa.Row[Any] | None:
        _ = await connection.start()
        # A snapshot that outlives the statement would fail on rows that others have acknowledged since.
        _ = await connection.execution_options(isolation_level="READ COMMITTED")
        result = await connection.execute(self.reading.locked, {"al_after": after})
        row: sa.Row[Any] | None = result.first()
        return row

    async def acknowledge(self) -> bool | Failure:
        """Delete, and commit."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        try:
            await sheltered(self._deleted(connection))
        except violations.FAILURES as error:
            return violations.read(error)
        finally:
            await seen_through(_hand_back(connection))
        return True

    async def _deleted(self, connection: AsyncConnection) -> None:
        await connection.execute(self.reading.delete_locked, {"al_event_id": self._number})
        self.ambiguous = True
        await connection.commit()

    async def release(self) -> None:
        """Roll back, and give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await seen_through(_hand_back(connection))


async def _hand_back(connection: AsyncConnection) -> None:
    if connection.sync_connection is None:
        return  # it has not begun
    with suppress(*violations.FAILURES):  # the line is dead, and the lock with it
        await connection.close()


@dataclass(kw_only=True, eq=False)
class Lease(Hold[Event]):
    """A claim in the event's row, which ends by itself (SQLite).

    Attributes:
        place: Where each step is a transaction of its own.
        clock: The present moment, aware.
        length: How long the claim lasts.
    """

    place: Place
    reading: Reading[Event]
    clock: Callable[[], datetime]
    length: timedelta
    _claim: UUID | None = field(default=None, init=False)
    _number: int = field(default=0, init=False)

    async def take(self, after: int) -> Taken[Event] | Failure | None:
        """Claim."""
        now = self.clock().astimezone(UTC)
        self._claim = uuid4()
        bound = {"al_claim": self._claim, "al_now": now, "al_until": now + self.length, "al_after": after}
        row = await self.place.attempt(lambda connection: connection.execute(self.reading.claimed, bound).first())
        if row is None:
            self._claim = None
        if row is None or isinstance(row, Failure):
            return row
        self._number = row[0]
        return Taken(self._number, self.reading.read(row))

    async def acknowledge(self) -> bool | Failure:
        """Delete, if the claim is still there."""
        if self._claim is None:
            return False
        bound = {"al_claim": self._claim, "al_event_id": self._number}
        deleted = await self.place.attempt(lambda c: c.execute(self.reading.delete_claimed, bound).rowcount)
        if isinstance(deleted, Failure):
            return deleted
        self._claim = None
        return deleted == 1

    async def release(self) -> None:
        """Take the claim back; where that fails, it ends by itself."""
        claim, self._claim = self._claim, None
        if claim is not None:
            await seen_through(
                self.place.attempt(lambda connection: connection.execute(self.reading.give_up, {"al_claim": claim}))
            )


def holder(
    engine: AsyncEngine,
    place: Place,
    reading: Reading[Event],
    *,
    clock: Callable[[], datetime],
    lease: timedelta,
) -> Callable[[], Hold[Event]]:
    """What makes holds.

    Args:
        engine: Where transactions are opened that keep a lock.
        place: Where the steps of a lease are transactions of their own.
        reading: Which events.
        clock: The present moment, aware.
        lease: How long a lease lasts.
    """
    if place.dialect == "sqlite":
        return partial(Lease, place=place, reading=reading, clock=clock, length=lease)
    return partial(Lock, engine=engine, reading=reading)
