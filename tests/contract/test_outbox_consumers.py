"""Consumers in several processes: one has an event at a time, and no event is lost when one is killed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.claims import Case
from tests.support.consumers import consume
from tests.support.databases import Database, rows
from tests.support.processes import Process, begin
from tests.support.told import TOLD, read

TABLE = "mixin-exclusive-soft"
LEFT = "SELECT count(*) FROM accountlink_events"


@pytest.fixture
async def case(engine: AsyncEngine, kind: str) -> Case:
    """A table with an outbox, whose linker has the machine's clock, as every process has it."""
    links = TOLD[TABLE](kind)
    await links.create(engine)
    case = Case(links, engine)
    case.linker = links.linker()
    return case


def process(database: Database, marks: Path, **more: Any) -> Process:
    """Start a consumer."""
    return Process(consume, url=database.url, table=TABLE, marks=str(marks), **more)


@pytest.mark.parametrize("number", [2, pytest.param(8, marks=pytest.mark.stress)])
async def test_processes_share_the_events_among_them(
    case: Case, database: Database, engine: AsyncEngine, number: int, tmp_path: Path
) -> None:
    """Two and eight processes, while links go on: each event is in one's hands at a time, and done once, by one."""
    marks = tmp_path / "marks"
    marks.mkdir()
    running = [process(database, marks, passed_over=0.1) for _ in range(number)]
    for n in range(100):
        await case.link(1, f"before-{n}")
    await begin(running)
    for n in range(50):
        await case.link(1, f"meanwhile-{n}")
    done = Counter([number for each in running for number in await each.rest()])
    for event in await read(case):  # what came after the last of them had ended
        done[event.id] += 1
    assert dict.fromkeys(range(1, 151), 1) == done
    assert [(0,)] == await rows(engine, LEFT)


async def test_what_a_killed_process_had_in_hand_is_delivered_again(
    case: Case, database: Database, engine: AsyncEngine, kind: str, tmp_path: Path
) -> None:
    """F03: killed between delivery and acknowledgement: the event comes again, to another, and all others come once."""
    marks = tmp_path / "marks"
    marks.mkdir()
    for n in range(20):
        await case.link(1, f"sub-{n}")
    lease = 3.0
    dying = process(database, marks, hang_at=7, lease=lease)
    await begin([dying])
    done: Counter[int] = Counter()
    async with asyncio.timeout(30):
        while (number := await dying.hear()) > 0:
            done[number] += 1
    held = time.monotonic()
    assert -7 == number
    async with aclosing(case.linker.events(engine)) as deliveries:
        assert 7 not in [delivery.event.id async for delivery in deliveries]
    dying.kill()
    again = []
    async with asyncio.timeout(30), aclosing(case.linker.events(engine, poll=timedelta(milliseconds=50))) as deliveries:
        async for delivery in deliveries:
            again.append(delivery.event.id)
            await delivery.acknowledge()
            done[delivery.event.id] += 1
            if 7 in again and [(0,)] == await rows(engine, LEFT):
                break
    if kind != "sqlite":
        assert 7 == min(again), "it is the oldest, and free at once"
    assert time.monotonic() - held < lease + 10
    assert dict.fromkeys(range(1, 21), 1) == done
