"""Deliver events from the outbox, one by one or in batches, each to one consumer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience, final_error
from accountlink.database.transactions import run
from accountlink.errors import ConfigurationError, DeliveryExpired
from accountlink.outbox.deliveries import Hold, holder
from accountlink.outbox.reading import Reading, Taken
from accountlink.tables.arguments import NO_TIME, check_kind, check_span
from accountlink.values.facts import Failure

Event = TypeVar("Event")
MOST: Final = 10_000
"""The most events of one batch."""


class _InHand(Generic[Event]):
    """Hold events until the consumer acknowledges them.

    Attributes:
        acknowledged: Whether the events are acknowledged.
    """

    __slots__ = ("_hold", "acknowledged")

    def __init__(self, hold: Hold[Event]) -> None:
        self.acknowledged = False
        self._hold = hold

    async def _acknowledge(self) -> None:
        if self.acknowledged:
            return
        result = await self._hold.acknowledge()
        if isinstance(result, Failure):
            raise final_error(result, ambiguous=self._hold.ambiguous)
        if not result:
            raise DeliveryExpired
        self.acknowledged = True


Held = TypeVar("Held", bound=_InHand[Any])


class Delivery(_InHand[Event]):
    """Hold one event for you: no other consumer gets it until you acknowledge it, or go on without.

    Attributes:
        event: The event.
        acknowledged: Whether you have acknowledged it.
    """

    __slots__ = ("event",)

    def __init__(self, taken: Taken[Event], hold: Hold[Event]) -> None:
        super().__init__(hold)
        (self.event,) = taken.events

    def __repr__(self) -> str:
        return f"Delivery(event={self.event!r}, acknowledged={self.acknowledged})"

    async def acknowledge(self) -> None:
        """Delete the event for good, so that no consumer gets it again. A second call does nothing.

        Raises:
            DeliveryExpired: The event is no longer held for you: you went on to the next one, or on SQLite its lease
                has ended.
            StoreUnavailable: The connection that held the event failed. The event will be delivered again.
            OutcomeUnknown: The connection was lost around the commit. The event may be delivered again.
            StoreBusy: A statement or a lock took longer than the time limit. The event will be delivered again.
        """
        await self._acknowledge()


class Batch(_InHand[Event]):
    """Hold events for you: no other consumer gets one of them until you acknowledge them all, or go on without.

    Attributes:
        events: The events, oldest first; at least one.
        acknowledged: Whether you have acknowledged them.
    """

    __slots__ = ("events",)

    def __init__(self, taken: Taken[Event], hold: Hold[Event]) -> None:
        super().__init__(hold)
        self.events: Final[Sequence[Event]] = tuple(taken.events)

    def __repr__(self) -> str:
        return f"Batch({len(self.events)} events, acknowledged={self.acknowledged})"

    async def acknowledge(self) -> None:
        """Delete all the events for good, so that no consumer gets one of them again.

        Either all are deleted, or none. An error means that none is deleted, except for ``OutcomeUnknown``, after which
        either is possible. A second call does nothing.

        Raises:
            DeliveryExpired: The events are no longer held for you: you went on to the next batch, or on SQLite the
                lease has ended and another consumer has taken one of them.
            StoreUnavailable: The connection that held the events failed. All will be delivered again.
            OutcomeUnknown: The connection was lost around the commit. Either all will be delivered again, or none.
            StoreBusy: A statement or a lock took longer than the time limit. All will be delivered again.
        """
        await self._acknowledge()


@dataclass(frozen=True, kw_only=True)
class Feed(Generic[Event]):
    """Deliver the events of one table to consumers.

    Attributes:
        owner: The public class that takes the outbox, for messages.
        outbox: The outbox, if there is one.
        reading: Returns the object that reads the events of the table from an outbox, by dialect.
        clock: Returns the present moment, aware.
        tables: The tables that the work needs. They are looked for if the database says that a table is missing.
    """

    owner: str
    outbox: sa.Table | None
    reading: Callable[[sa.Table, sa.Dialect], Reading[Event]]
    clock: Callable[[], datetime]
    tables: Sequence[sa.Table]

    def consume(
        self,
        method: str,
        engine: AsyncEngine,
        hand_over: Callable[[Taken[Event], Hold[Event]], Held],
        *,
        poll: timedelta | None,
        lease: timedelta,
        size: int,
    ) -> AsyncGenerator[Held, None]:
        """Check the arguments of a consumer, and return the generator that delivers the events.

        Args:
            method: The public method that was called, for messages.
            engine: The engine that opens the transactions.
            hand_over: Makes a delivery of events that are held.
            poll: How long to wait after a round; ``None`` ends the deliveries then.
            lease: How long events are held on SQLite at the most.
            size: How many events are delivered together at the most.

        Raises:
            ConfigurationError: There is no outbox, an argument is of the wrong kind, or the database is not supported.
        """
        if poll is not None:
            check_span("poll", poll, least=NO_TIME)
        check_span("lease", lease)
        _check_size(size)
        if self.outbox is None:
            raise ConfigurationError(f"{method}() needs {self.owner}(outbox=link_outbox(Base.metadata)).")
        check_kind("engine", engine, AsyncEngine)
        reading = self.reading(self.outbox, engine.dialect)
        hold = holder(engine, reading, self.clock, lease, size, tables=self.tables)
        return _rounds(hold, hand_over, poll)


def _check_size(size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST:
        raise ConfigurationError(f"size= takes a whole number from 1 to {MOST}.")


async def _rounds(
    hold: Callable[[], Hold[Event]],
    hand_over: Callable[[Taken[Event], Hold[Event]], Held],
    poll: timedelta | None,
) -> AsyncGenerator[Held, None]:
    """Deliver events, oldest first; events that were not acknowledged come again in the next round."""
    passed_over = 0
    while True:
        held = hold()
        try:
            take = partial(held.take, after=passed_over)
            taken: Taken[Any] | None = await run(
                held.place, take, Patience(writes=False)
            )  # a claim that was lost ends by itself
            if taken is not None:
                delivery = hand_over(taken, held)
                yield delivery
                if not delivery.acknowledged:
                    passed_over = taken.numbers[-1]
        finally:
            await held.release()
        if taken is not None:
            continue
        if poll is None:
            return
        passed_over = 0
        await asyncio.sleep(poll.total_seconds())
