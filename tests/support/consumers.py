"""Consumes events in its own process, and proves for each event that no other process has it meanwhile.

``python -m tests.support.consumers '{"url": ..., "table": ..., "marks": ..., "hang_at": 7}'``

It says ``ready`` once it is, and begins when it is sent a line.

In hand, an event has a file of its name in the folder of marks, which nobody makes a second time. What was acknowledged
is written to the output, number by number; at ``hang_at`` the process says so and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import tune_sqlite
from tests.support.claims import Case
from tests.support.told import TOLD


async def consume(
    *, url: str, table: str, marks: str, hang_at: int = 0, lease: float = 60, passed_over: float = 0
) -> None:
    """Wait for the word to begin, and consume until nothing is left.

    Args:
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
    say("ready", 0)
    await asyncio.to_thread(sys.stdin.readline)
    left = True
    while left:
        left = False
        async for delivery in linker.events(engine, lease=timedelta(seconds=lease)):
            number = delivery.event.id
            if number == hang_at:
                say("holds", number)
                await asyncio.sleep(60)
            mark = Path(marks) / str(number)
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            await asyncio.sleep(random.uniform(0, 0.004))  # noqa: S311  # some work, not a secret
            mark.unlink()
            if random.random() < passed_over:  # noqa: S311  # as above
                left = True
                continue
            await delivery.acknowledge()
            say("done", number)
    await engine.dispose()


def say(word: str, number: int) -> None:
    sys.stdout.write(f"{word} {number}\n")
    sys.stdout.flush()


def main(told: str) -> None:
    """Do what the command line says."""
    given: dict[str, Any] = json.loads(told)
    asyncio.run(consume(**given))


if __name__ == "__main__":
    main(sys.argv[1])
