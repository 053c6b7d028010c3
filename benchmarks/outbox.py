"""Measure the cost of reading the outbox, against a reader written by hand on the same server.

    python -m benchmarks.outbox

Four readers take events from one outbox in turn, a few in every round: in batches and one by one, by hand on asyncpg
and by the library. A ratio is taken within its round, so that a slow second of the machine falls on all alike. The
outbox is read twice: as it is after an insert, when PostgreSQL knows nothing of it, and after ANALYZE.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    Batch,
    Delivery,
    LinkedAccountMixin,
    LinkEvent,
    LinkPolicy,
    Ownership,
    Removal,
    link_outbox,
)
from tests.support.postgres import run_server

ROUNDS = 30
"""The rounds that are counted; the first few, in which statements are prepared, are not."""
WARM = 8
SINGLE = 10
"""The events that are read one by one in a round."""


class Base(DeclarativeBase):
    """Hold the benchmark's own metadata."""


class Connection(LinkedAccountMixin, Base):
    """Map the table whose events are read."""

    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


LINKER: AccountLinker[int, int] = AccountLinker(
    Connection, secrets=["benchmark".ljust(32, "-")], outbox=link_outbox(Base.metadata)
)
FILL = """
    INSERT INTO accountlink_events (occurred_at, type, user_id, provider, link_id, data, table_name)
    SELECT now(), 'updated', n::text, 'google', n::text, '{}', 'connections' FROM generate_series(1, $1) AS n
"""
TAKE = """
    SELECT id, occurred_at, type, user_id, other_user_id, provider, link_id, data FROM accountlink_events
     WHERE table_name = 'connections' AND NOT set_aside ORDER BY table_name, set_aside, id LIMIT $1
       FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM accountlink_events WHERE id = ANY($1::bigint[])"


@dataclass
class Reader:
    """Hold one way of reading, and its cost in each round."""

    name: str
    events: int
    statements: float
    read: Callable[[], Awaitable[None]]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Read for a round."""
        wall, cpu = time.perf_counter(), time.process_time()
        await self.read()
        self.wall.append((time.perf_counter() - wall) / self.events)
        self.cpu.append((time.process_time() - cpu) / self.events)

    def beside(self, floor: "Reader") -> str:
        """Return this reader's figures, beside those of the one that was written by hand."""
        wall = median(mine / theirs for mine, theirs in zip(self.wall, floor.wall, strict=True))
        cpu = median(self.cpu) * 1e6
        return (
            f"{self.name:<28}{1 / median(self.wall):>10,.0f} events/s{1 / wall:>8.2f} of by hand"
            f"{cpu:>9.1f} us CPU/event{self.statements:>8.2f} statements/event"
        )


async def by_hand(connection: asyncpg.Connection, size: int, times: int) -> None:
    """Lock some events, read them, delete them at once."""
    for _ in range(times):
        async with connection.transaction():
            rows = await connection.fetch(TAKE, size)
            events = [{**row, "user_id": int(row["user_id"]), "data": json.loads(row["data"])} for row in rows]
            await connection.execute(DELETE, [event["id"] for event in events])
        assert len(events) == size


async def by_batches(batches: AsyncGenerator[Batch[LinkEvent[int, int]]], size: int) -> None:
    """Take a batch and acknowledge it."""
    batch = await anext(batches)
    await batch.acknowledge()
    assert len(batch.events) == size


async def by_events(deliveries: AsyncGenerator[Delivery[LinkEvent[int, int]]], times: int) -> None:
    """Take events one by one and acknowledge each."""
    for _ in range(times):
        await (await anext(deliveries)).acknowledge()


async def measured(url: str, sizes: list[int], *, analysed: bool) -> list[str]:
    """Fill the outbox, and let all readers take turns at it."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    async with engine.begin() as begun:
        await begun.run_sync(Base.metadata.drop_all)
        await begun.run_sync(Base.metadata.create_all)
    per_round = sum(2 * size for size in sizes) + 2 * SINGLE
    await connection.execute(FILL, per_round * (ROUNDS + WARM) + 10_000)  # so that it is long to the end
    if analysed:
        await connection.execute("ANALYZE accountlink_events")
    pairs: list[tuple[Reader, Reader]] = []
    for size in sizes:
        hand = Reader(f"by hand, {size} at once", size, 4 / size, partial(by_hand, connection, size, 1))
        batches = LINKER.batches(engine, size=size)
        pairs.append(
            (
                hand,
                Reader(
                    f"batches(size={size})",
                    size,
                    4 / size,
                    partial(by_batches, batches, size),
                ),
            )
        )
    single = Reader("by hand, one by one", SINGLE, 4, partial(by_hand, connection, 1, SINGLE))
    pairs.append((single, Reader("events()", SINGLE, 4, partial(by_events, LINKER.events(engine), SINGLE))))
    for number in range(ROUNDS + WARM):
        if number == WARM:
            for reader in (each for pair in pairs for each in pair):
                reader.wall.clear()
                reader.cpu.clear()
        for pair in pairs:
            for reader in pair if number % 2 else reversed(pair):
                await reader.run()
    await connection.close()
    await engine.dispose()
    return [reader.beside(pair[0]) for pair in pairs for reader in pair]


async def main(url: str, sizes: list[int]) -> None:
    """Measure, and print."""
    print(f"SQLAlchemy {sa.__version__}, asyncpg {asyncpg.__version__}")
    for analysed in (False, True):
        print(f"\n{'analysed' if analysed else 'never analysed'}:")
        for line in await measured(url, sizes, analysed=analysed):
            print(f"  {line}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="sizes of batches")
    parser.add_argument("--fsync", choices=["on", "off"], default="on", help="whether a commit waits for the disk")
    arguments = parser.parse_args()
    with run_server(settings={"autovacuum": "off", "fsync": arguments.fsync}) as server:
        asyncio.run(main(server.url(driver="asyncpg"), arguments.sizes))
