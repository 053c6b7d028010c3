"""Consumes events in a process of its own, and proves for each event that no other process has it meanwhile.

In hand, an event has a file of its name in the folder of marks, which nobody makes a second time. The process says each
number that it has acknowledged; at ``hang_at`` it says so, negative, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import tune_sqlite
from tests.support.claims import Case
from tests.support.processes import Say, Wait
from tests.support.told import TOLD


async def consume(
    say: Say,
    wait: Wait,
    *,
    url: str,
    table: str,
    marks: str,
    hang_at: int = 0,
    lease: float = 60,
    passed_over: float = 0,
) -> None:
    """Wait for the word to begin, and consume until nothing is left.

    Args:
        say: Tells the test.
        wait: Waits for the test.
        url: Of the database.
        table: Which of the tables with an outbox.
        marks: The folder of marks.
        hang_at: The number of the event to die with.
        lease: In seconds.
        passed_over: How often an event is passed over for a round.
    """
    postgresql = url.startswith("postgresql")
    engine = create_async_engine(url)
    if not postgresql:
        tune_sqlite(engine, busy_timeout=30_000)
    case = Case(TOLD[table]("any"), engine)
    linker = case.links.linker()  # whose clock is the machine's, as every process has it
    await linker.accounts(engine, user_id=case.user(1))  # so that the pool is warm
    say("ready")
    await wait()
    left = True
    while left:
        left = False
        async for delivery in linker.events(engine, lease=timedelta(seconds=lease)):
            number = delivery.event.id
            if number == hang_at:
                say(-number)
                await asyncio.sleep(60)
            mark = Path(marks) / str(number)
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            await asyncio.sleep(random.uniform(0, 0.004))  # noqa: S311  # some work, not a secret
            mark.unlink()
            if random.random() < passed_over:  # noqa: S311  # as above
                left = True
                continue
            await delivery.acknowledge()
            say(number)
    await engine.dispose()
