"""Measure what a vault costs: linking with and without one, and reading a token beside a query by hand.

    python -m benchmarks.vault

One interleaved run for each database: in every round each contestant does a small batch of calls, all on the very same
connection, and a ratio is taken within its round. Each sitting has a new connection, and the result is the median of
the sittings with their range. Round trips, statements and compilations are counted in a pass of its own. The README
beside this folder says what the columns mean.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import tune_sqlite
from benchmarks.ground import database, tables
from benchmarks.measured import Batch, Spread, compared, typical
from benchmarks.vault.contestants import COMPARISONS, Contestant, Rows, Task, by_hand, reading, writing
from tests.support.compilations import Compilations
from tests.support.wire import WireProxy

DRIVERS = ("asyncpg", "psycopg", "aiosqlite")
WARM = 8
"""The calls after which statements, plans and caches have settled: psycopg prepares at the sixth."""
COUNTED = 8
Sitting = dict[str, list[Batch]]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Hold the counts of one call.

    Attributes:
        trips: Round trips; the statements that run where there is no network.
        compilations: Statements that SQLAlchemy compiled, once every kind of call had been made before.
    """

    trips: float
    compilations: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """Describe one line of the result."""

    title: str
    against: str
    wall_us: float
    wall_ratio: Spread
    cpu_us: float
    cpu_ratio: Spread
    own: Counts
    other: Counts
    limit: float | None

    @property
    def verdict(self) -> str:
        """Say whether the wall clock and the CPU meet the aim; one inside the spread is decided by no single run."""
        if self.limit is None:
            return ""
        wall, cpu = _met(self.wall_ratio, self.limit), _met(self.cpu_ratio, self.limit)
        return f"{self.limit:g}: wall {wall}, CPU {cpu}"


def _met(ratio: Spread, limit: float) -> str:
    if ratio.high <= limit:
        return "met"
    return "NOT met" if ratio.low > limit else "undecided"


# -- running ----------------------------------------------------------------------------------------------------------


def _engine(url: sa.URL) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    if url.get_backend_name() == "sqlite":
        tune_sqlite(engine)
    return engine


@asynccontextmanager
async def opened(direct: sa.URL, url: sa.URL, run: str) -> AsyncIterator[tuple[AsyncEngine, list[Contestant]]]:
    """Open an engine of one connection, and the contestants that share it.

    Args:
        direct: Where rows are made for them.
        url: Where they work.
        run: What their accounts are called.
    """
    engine, helper = _engine(url), _engine(direct)
    rows = Rows(helper, run)
    try:
        yield engine, [*writing(engine, rows), *reading(engine, rows), *by_hand(engine, rows)]
    finally:
        await engine.dispose()
        await helper.dispose()


async def _batch(contestant: Contestant, tasks: Sequence[Task]) -> Batch:
    call = contestant.call
    cpu, wall = time.process_time(), time.perf_counter()
    for task in tasks:
        await call(task)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Batch(wall=wall / len(tasks), cpu=cpu / len(tasks))


async def _warm(contestants: Sequence[Contestant]) -> None:
    for contestant in contestants:
        await _batch(contestant, await contestant.prepare(WARM))


async def timed(url: sa.URL, run: str, rounds: int, size: int) -> Sitting:
    """Run every contestant once per round, beginning each round with another one."""
    batches: Sitting = {}
    async with opened(url, url, run) as (_, contestants):
        await _warm(contestants)
        gc.collect()
        for turn in range(rounds):
            first = turn * len(contestants) // rounds
            order = [*contestants[first:], *contestants[:first]]
            for contestant in order if turn % 2 else reversed(order):
                batch = await _batch(contestant, await contestant.prepare(size))
                batches.setdefault(contestant.name, []).append(batch)
    return batches


@asynccontextmanager
async def _counting(url: sa.URL, engine_url: sa.URL) -> AsyncIterator[tuple[WireProxy | None, sa.URL]]:
    if url.host is None:
        yield None, engine_url
        return
    async with WireProxy(url.host, url.port or 5432) as proxy:
        yield proxy, engine_url.set(host="127.0.0.1", port=proxy.port)


async def counted(url: sa.URL) -> dict[str, Counts]:
    """Count what each contestant's call takes, on a warm connection."""
    counts: dict[str, Counts] = {}
    async with _counting(url, url) as (proxy, through), opened(url, through, "counted") as (engine, contestants):
        compilations = Compilations(engine)
        await _warm(contestants)
        for contestant in contestants:
            tasks = await contestant.prepare(COUNTED)
            compilations.reset()
            if proxy is not None:
                proxy.reset()
            await _batch(contestant, tasks)
            trips = compilations.run if proxy is None else proxy.trips
            counts[contestant.name] = Counts(trips=trips / COUNTED, compilations=len(compilations.anew) / COUNTED)
    return counts


# -- reporting --------------------------------------------------------------------------------------------------------


def compare(sittings: Sequence[Sitting], counts: dict[str, Counts]) -> list[Line]:
    """Turn batches into medians, each ratio taken within its round."""
    wall, cpu = attrgetter("wall"), attrgetter("cpu")
    lines = []
    for each in COMPARISONS:
        pairs = [(sitting[each.own], sitting[each.other]) for sitting in sittings]
        own = [sitting[each.own] for sitting in sittings]
        lines.append(
            Line(
                title=each.title,
                against=each.other,
                wall_us=typical(own, wall),
                wall_ratio=compared(pairs, wall),
                cpu_us=typical(own, cpu),
                cpu_ratio=compared(pairs, cpu),
                own=counts[each.own],
                other=counts[each.other],
                limit=each.limit,
            )
        )
    return lines


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    print(f"{'':<33}{'against':<20}{'wall':>8}  {'ratio, wall':<19}{'CPU':>8}  {'ratio, CPU':<19}", end="")
    print("trips    compiled  aim")
    for line in lines:
        trips = f"{line.own.trips:g} ({line.other.trips:g})"
        print(
            f"{line.title:<33}{line.against:<20}{line.wall_us:5.0f} µs  {line.wall_ratio!s:<19}"
            f"{line.cpu_us:5.0f} µs  {line.cpu_ratio!s:<19}{trips:<9}{line.own.compilations:<10g}{line.verdict}"
        )


@contextmanager
def databases(options: argparse.Namespace) -> Iterator[list[sa.URL]]:
    """Yield the URL of a database for each driver."""
    chosen: list[str] = options.drivers
    with tempfile.TemporaryDirectory() as folder, database(options.database_url, options.fsync) as server:
        yield [
            sa.URL.create("sqlite+aiosqlite", database=str(Path(folder, "benchmark.sqlite")))
            if driver == "aiosqlite"
            else server.set(drivername=f"postgresql+{driver}")
            for driver in chosen
        ]


async def measure(url: sa.URL, options: argparse.Namespace) -> dict[str, object]:
    """Count, time, and print."""
    load = os.getloadavg()[0]
    async with tables(url) as environment:
        counts = await counted(url)
        sittings = [
            await timed(url, f"timed-{number}", options.rounds, options.batch) for number in range(options.sittings)
        ]
    lines = compare(sittings, counts)
    environment = f"{environment}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    if not options.json:
        print(f"{environment}\n{options.sittings} sittings of {options.rounds} rounds of {options.batch} calls\n")
        show(lines)
        print()
    return {"environment": environment, "lines": [dataclasses.asdict(line) for line in lines]}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="What a vault costs.")
    parser.add_argument("--sittings", type=int, default=6, help="new connections (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds in a sitting (%(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="calls per contestant and round (%(default)s)")
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=DRIVERS, help="(all)")
    parser.add_argument("--database-url", help="an existing PostgreSQL database, instead of a server of its own")
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="of its own server (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if min(options.sittings, options.rounds, options.batch) < 1:
        parser.error("--sittings, --rounds and --batch must be at least 1")
    with databases(options) as urls:
        results = [asyncio.run(measure(url, options)) for url in urls]
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print("in brackets: of what it is held against; on SQLite statements, not round trips")


if __name__ == "__main__":
    main()
