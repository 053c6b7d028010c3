"""Consumers in several processes: one has an event at a time, and no event is lost when one is killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.claims import Case
from tests.support.databases import Database, rows
from tests.support.told import TOLD, read

ROOT = Path(__file__).parents[2]
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


async def process(database: Database, marks: Path, **more: Any) -> Process:
    """Start a consumer."""
    told = {"url": database.url, "table": TABLE, "marks": str(marks)} | more
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.consumers", json.dumps(told)),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=dict(os.environ),
    )


async def begin(running: list[Process]) -> None:
    """Wait until all are ready, and let them begin together."""
    for each in running:
        assert each.stdout is not None
        assert b"ready 0\n" == await each.stdout.readline()
    for each in running:
        assert each.stdin is not None
        each.stdin.write(b"go\n")


async def done_by(running: list[Process]) -> Counter[int]:
    """Wait for consumers to end, and count what they have acknowledged."""
    done: Counter[int] = Counter()
    for each in running:
        out, err = await each.communicate()
        assert 0 == each.returncode, err.decode()[-2_000:]
        done.update(int(line.split()[1]) for line in out.decode().splitlines() if line.startswith("done"))
    return done


@pytest.mark.parametrize("number", [2, pytest.param(8, marks=pytest.mark.stress)])
async def test_processes_share_the_events_among_them(
    case: Case, database: Database, engine: AsyncEngine, number: int, tmp_path: Path
) -> None:
    """Two and eight processes, while links go on: each event is in one's hands at a time, and done once, by one."""
    marks = tmp_path / "marks"
    marks.mkdir()
    running = [await process(database, marks, passed_over=0.1) for _ in range(number)]
    for n in range(100):
        await case.link(1, f"before-{n}")
    await begin(running)
    for n in range(50):
        await case.link(1, f"meanwhile-{n}")
    done = await done_by(running)
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
    dying = await process(database, marks, hang_at=7, lease=lease)
    await begin([dying])
    assert dying.stdout is not None
    done: Counter[int] = Counter()
    async with asyncio.timeout(30):
        while (line := (await dying.stdout.readline()).decode()) and not line.startswith("holds"):
            done[int(line.split()[1])] += 1
    held = time.monotonic()
    assert line.startswith("holds 7")
    async with aclosing(case.linker.events(engine)) as deliveries:
        assert 7 not in [delivery.event.id async for delivery in deliveries]
    dying.kill()
    await dying.wait()
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
