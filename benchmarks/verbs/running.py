"""Runs both contestants through every verb: counted once, then timed in turns."""

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.measured import Batch
from benchmarks.verbs import by_hand, by_library
from benchmarks.verbs.tasks import Task, Tasks, Verb
from tests.support.compilations import Compilations
from tests.support.wire import WireProxy

WARM = 8
"""The calls after which statements, plans and caches have settled."""
COUNTED = 8
Call = Callable[[Verb, Task], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """Hold both ways of doing a verb, each on one connection of its own; and what compiles the library's statements."""

    hand: Call
    library: Call
    compilations: Compilations
    tasks: Tasks

    @property
    def both(self) -> tuple[Call, Call]:
        """The library, and what it is held against."""
        return self.library, self.hand


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Hold the counts of one call.

    Attributes:
        statements: What the server executes, BEGIN and COMMIT included.
        trips: Round trips.
        compilations: Statements that SQLAlchemy compiled, once every kind of call had been made before.
    """

    statements: float
    trips: float
    compilations: float


@asynccontextmanager
async def opened(direct: sa.URL, url: sa.URL, run: str) -> AsyncIterator[Contestants]:
    """Open the contestants.

    Args:
        direct: Where rows are made for them.
        url: Where they work.
        run: What their accounts are called.
    """

    async def keep(_: object) -> None:
        """Leave the connection as it is: asyncpg's own reset is a second round trip."""

    engine, helper = (create_async_engine(at, pool_size=1, max_overflow=0) for at in (url, direct))
    maker = await asyncpg.connect(_dsn(direct))
    try:
        async with asyncpg.create_pool(_dsn(url), min_size=1, max_size=1, reset=keep) as pool:

            async def hand(verb: Verb, task: Task) -> None:
                async with pool.acquire() as connection:
                    await by_hand.CALLS[verb](connection, task)  # type: ignore[arg-type]  # a pool's proxy of one

            async def library(verb: Verb, task: Task) -> None:
                await by_library.CALLS[verb](engine, task)

            yield Contestants(
                hand=hand, library=library, compilations=Compilations(engine), tasks=Tasks(run, helper, maker)
            )
    finally:
        await maker.close()
        await engine.dispose()
        await helper.dispose()


def _dsn(url: sa.URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def _warm(contestants: Contestants) -> None:
    for verb in Verb:
        for call in contestants.both:
            for task in await contestants.tasks.of(verb, WARM):
                await call(verb, task)


async def counted(url: sa.URL) -> dict[Verb, tuple[Counts, Counts]]:
    """Count what each verb takes, by the library and by hand, on warm connections."""
    assert url.host is not None
    counts: dict[Verb, tuple[Counts, Counts]] = {}
    async with (
        WireProxy(url.host, url.port or 5432) as proxy,
        opened(url, url.set(host="127.0.0.1", port=proxy.port), "counted") as contestants,
    ):
        await _warm(contestants)
        for verb in Verb:
            library, hand = [await _counts(proxy, contestants, call, verb) for call in contestants.both]
            counts[verb] = library, hand
    return counts


async def _counts(proxy: WireProxy, contestants: Contestants, call: Call, verb: Verb) -> Counts:
    tasks = await contestants.tasks.of(verb, COUNTED)
    proxy.reset()
    contestants.compilations.reset()
    for task in tasks:
        await call(verb, task)
    return Counts(
        statements=len(proxy.statements) / COUNTED,
        trips=proxy.trips / COUNTED,
        compilations=len(contestants.compilations.anew) / COUNTED,
    )


Rounds = tuple[list[Batch], list[Batch]]
"""The library's batches and those by hand, round by round."""


async def timed(url: sa.URL, sittings: int, rounds: int, size: int) -> list[dict[Verb, Rounds]]:
    """Run every verb by both once per round; each sitting has new connections."""
    return [await _sitting(url, f"timed-{number}", rounds, size) for number in range(sittings)]


async def _sitting(url: sa.URL, run: str, rounds: int, size: int) -> dict[Verb, Rounds]:
    batches: dict[Verb, Rounds] = {verb: ([], []) for verb in Verb}
    async with opened(url, url, run) as contestants:
        await _warm(contestants)
        gc.collect()
        for turn in range(rounds):
            for verb in Verb:
                given = [await contestants.tasks.of(verb, size) for _ in contestants.both]
                pairs = list(zip(contestants.both, given, batches[verb], strict=True))
                for call, tasks, into in reversed(pairs) if turn % 2 else pairs:
                    into.append(await _batch(call, verb, tasks))
    return batches


async def _batch(call: Call, verb: Verb, tasks: Sequence[Task]) -> Batch:
    cpu, wall = time.process_time(), time.perf_counter()
    for task in tasks:
        await call(verb, task)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Batch(wall=wall / len(tasks), cpu=cpu / len(tasks))
