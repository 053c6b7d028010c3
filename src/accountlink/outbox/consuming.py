"""Deliveries: events from the outbox, one by one or in batches, each in one consumer's hands until acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import final_error
from accountlink.database.transactions import read
from accountlink.errors import ConfigurationError, DeliveryExpired
from accountlink.outbox.deliveries import Hold, holder
from accountlink.outbox.reading import Reading, Taken
from accountlink.tables.arguments import NO_TIME, check_kind, check_span
from accountlink.values.facts import Failure

Event = TypeVar("Event")
MOST: Final = 10_000
"""Events of one batch at the most."""


class _InHand(Generic[Event]):
    """What is held until it is acknowledged.

    Attributes:
        acknowledged: Whether it is done with.
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
    """An event in your hands: nobody else gets it until you acknowledge it, or go on without.

    Attributes:
        event: What happened.
        acknowledged: Whether it is done with.
    """

    __slots__ = ("event",)

    def __init__(self, taken: Taken[Event], hold: Hold[Event]) -> None:
        super().__init__(hold)
        (self.event,) = taken.events

    def __repr__(self) -> str:
        return f"Delivery(event={self.event!r}, acknowledged={self.acknowledged})"

    async def acknowledge(self) -> None:
        """Say that the event is done with: once this returns, nobody gets it again. A second call does nothing.

        Raises:
            DeliveryExpired: It is not yours any more: you went on to the next one, or on SQLite its lease has ended.
            StoreUnavailable: The connection that held it is gone: it will be delivered again.
            OutcomeUnknown: The connection was lost around the commit: it may be delivered again.
            StoreBusy: A statement or a lock was not to be had in time: it will be delivered again.
        """
        await self._acknowledge()


class Batch(_InHand[Event]):
    """Events in your hands: nobody else gets one of them until you acknowledge them all, or go on without.

    Attributes:
        events: What happened, oldest first; at least one event.
        acknowledged: Whether they are done with.
    """

    __slots__ = ("events",)

    def __init__(self, taken: Taken[Event], hold: Hold[Event]) -> None:
        super().__init__(hold)
        self.events: Final[Sequence[Event]] = tuple(taken.events)

    def __repr__(self) -> str:
        return f"Batch({len(self.events)} events, acknowledged={self.acknowledged})"

    async def acknowledge(self) -> None:
        """Say that all the events are done with: once this returns, nobody gets one of them again.

        All of them, or none: where it raises, none is done with, unless the outcome is unknown. A second call does
        nothing.

        Raises:
            DeliveryExpired: They are not yours any more: you went on to the next batch, or on SQLite the lease has
                ended and another consumer has taken one of them.
            StoreUnavailable: The connection that held them is gone: all will be delivered again.
            OutcomeUnknown: The connection was lost around the commit: either all will be delivered again, or none.
            StoreBusy: A statement or a lock was not to be had in time: all will be delivered again.
        """
        await self._acknowledge()


@dataclass(frozen=True, kw_only=True)
class Feed(Generic[Event]):
    """The events of one table, for whoever consumes them.

    Attributes:
        owner: The public class that the outbox is given to, for messages.
        outbox: The outbox, if there is one.
        reading: Says how the events of the table are read from an outbox of a database.
        clock: Returns the present moment, aware.
        tables: The tables that the work needs, to be looked for if the database says that something is not there.
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
        """Deliver the events.

        Args:
            method: The public method that was called, for messages.
            engine: Where transactions are opened.
            hand_over: Makes a delivery of events that are held.
            poll: How long to wait when a round has ended; ``None`` ends with it.
            lease: How long events are held on SQLite at the most.
            size: How many events are delivered together at the most.

        Raises:
            ConfigurationError: There is no outbox, an argument is of the wrong kind, or the database is not supported.
        """
        check_span("poll", poll, least=NO_TIME, optional=True)
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
    """Deliver events, oldest first; what is passed over unacknowledged comes again in the next round."""
    passed_over = 0
    while True:
        held = hold()
        try:
            taken = await read(held.place, partial(held.take, after=passed_over))
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
