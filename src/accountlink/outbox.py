"""Deliveries: events from the outbox, one at a time, each to one consumer, until he acknowledges it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Final, Generic, TypeVar

from accountlink import attempts
from accountlink.core.facts import Failure
from accountlink.errors import DeliveryExpired
from accountlink.storage.deliveries import Hold, Taken
from accountlink.storage.transactions import Place

Event = TypeVar("Event")


class Delivery(Generic[Event]):
    """An event in your hands: nobody else gets it until you acknowledge it, or go on without.

    Attributes:
        event: What happened.
        acknowledged: Whether it is done with.
    """

    __slots__ = ("_hold", "acknowledged", "event")

    def __init__(self, event: Event, hold: Hold[Event]) -> None:
        self.event: Final = event
        self.acknowledged = False
        self._hold = hold

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
        if self.acknowledged:
            return
        result = await self._hold.acknowledge()
        if isinstance(result, Failure):
            attempts.acknowledged(result, ambiguous=self._hold.ambiguous)
        if not result:
            raise DeliveryExpired
        self.acknowledged = True


async def deliver(
    place: Place, hold: Callable[[], Hold[Event]], *, poll: timedelta | None
) -> AsyncGenerator[Delivery[Event], None]:
    """Deliver events, oldest first; what is passed over unacknowledged comes again in the next round.

    Args:
        place: Says what is tried again.
        hold: Makes what can hold one event.
        poll: How long to wait when a round has ended; ``None`` ends with it.
    """
    passed_over = 0
    while True:
        held = hold()
        try:
            taken = await _taken(place, held, passed_over)
            if taken is not None:
                delivery = Delivery(taken.event, held)
                yield delivery
                if not delivery.acknowledged:
                    passed_over = taken.number
        finally:
            await held.release()
        if taken is not None:
            continue
        if poll is None:
            return
        passed_over = 0
        await asyncio.sleep(poll.total_seconds())


async def _taken(place: Place, held: Hold[Event], after: int) -> Taken[Event] | None:
    patience = attempts.Patience(writes=False)
    while isinstance(result := await held.take(after), Failure):
        await held.release()
        await patience.recover(place, result)
    return result
