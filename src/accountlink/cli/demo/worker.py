"""The worker behind the outbox: it takes the events, and keeps them as notices for the page."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, ShareGrants
from accountlink.cli.demo.models import Told

POLL = timedelta(milliseconds=400)
"""The time until the page shows an event, about."""
_PAUSE = 2.0
"""Seconds until the database is tried again."""

log = logging.getLogger(__name__)


async def work(engine: AsyncEngine, linker: AccountLinker[int, int], shares: ShareGrants) -> None:
    """Take the events of connections and of shares until the task is cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for events in (linker.events, shares.events):
            tasks.create_task(_consume(engine, events))


async def _consume(engine: AsyncEngine, events: Callable[..., AsyncGenerator[Any, None]]) -> None:
    while True:
        try:
            async with aclosing(events(engine, poll=POLL)) as deliveries:
                async for delivery in deliveries:
                    await _tell(engine, delivery.event)
                    await delivery.acknowledge()
        except Exception as problem:  # noqa: BLE001  # one odd event, or a database that is away, must not end the worker
            log.warning("the outbox could not be read, and is tried again: %s", type(problem).__name__)
            await asyncio.sleep(_PAUSE)


async def _tell(engine: AsyncEngine, event: Any) -> None:
    """Keep an event, once, however often it is delivered."""
    async with engine.begin() as connection:
        if await connection.scalar(select(Told.event_id).where(Told.event_id == event.id)) is None:
            await connection.execute(
                insert(Told).values(
                    event_id=event.id,
                    occurred_at=event.occurred_at,
                    type=event.type.value,
                    user_id=event.user_id,
                    other_user_id=event.other_user_id,
                    provider=getattr(event, "provider", None),
                    link_id=event.link_id,
                )
            )
