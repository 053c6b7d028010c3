"""Measure a backfill and a rotation of keys of a whole table, alone and while an application uses the table.

    python -m benchmarks.rotation

It fills a table with rows that have two tokens each. First nothing else runs: plain text is sealed, the key is rotated,
and a scan finds nothing left. Then an application links, unlinks and reads meanwhile, and checks every answer; each run
is killed half-way, and another one goes on. Both are done on PostgreSQL and on SQLite.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.vault.rotation import Progress
from benchmarks.ground import database
from tests.support.rotating import RUNS, VAULTS, Application, opened, under_load


async def alone(engine: AsyncEngine, rows: int, batch: int, size: int) -> None:
    """Print how fast each task is, and how fast a scan that finds nothing."""
    application = Application(engine=engine, rows=rows, size=size)
    await application.fill()
    for task, run in RUNS.items():
        linker = application.vaulted.other_linker(vault=VAULTS[task])
        wall, cpu, end = await timed(run(engine, linker, batch_size=batch))
        assert (end.sealed, end.left) == (rows, 0)
        print(f"  {task:9} {rows / wall:9,.0f} rows/s   {rows / cpu:9,.0f} rows/s of this process's CPU")
        wall, cpu, end = await timed(run(engine, linker, batch_size=batch))
        assert (end.sealed, end.left) == (0, 0)
        print(f"  again     {wall:9.2f} s for a scan that finds nothing")
    async with engine.begin() as connection:
        await connection.run_sync(application.vaulted.tables.metadata.drop_all)


async def timed(steps: AsyncGenerator[Progress, None]) -> tuple[float, float, Progress]:
    """Run to the end, and return the seconds, the seconds of CPU, and the last progress."""
    wall, cpu, end = time.perf_counter(), time.process_time(), Progress(scanned=0, due=0)
    async for progress in steps:
        end = progress
    return time.perf_counter() - wall, time.process_time() - cpu, end


async def measure(url: str, title: str, options: argparse.Namespace) -> None:
    """Print the figures of one database."""
    engine = opened(url)
    print(
        f"{title}, {options.rows:,} rows, batches of {options.batch_size}, access tokens of {options.size} characters"
    )
    await alone(engine, options.rows, options.batch_size, options.size)
    for each in await under_load(engine, rows=options.rows, batch_size=options.batch_size, size=options.size):
        print(
            f"  {each.task:9} {each.resumed / each.seconds:9,.0f} rows/s under load, resumed after it was killed at "
            f"{each.killed_at:,} rows; {each.reads:,} reads and {each.links:,} links meanwhile, each checked"
        )
    await engine.dispose()


def main() -> None:
    """Measure both databases."""
    parser = argparse.ArgumentParser(description="Measure a backfill and a rotation of keys.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--size", type=int, default=1_000, help="the length of an access token")
    parser.add_argument("--database-url", help="a PostgreSQL server; without it a new one is started")
    parser.add_argument("--fsync", choices=["on", "off"], default="on", help="of the new server")
    options = parser.parse_args()
    with database(options.database_url, options.fsync) as url:
        given: sa.URL = url
        asyncio.run(measure(given.render_as_string(hide_password=False), "PostgreSQL by asyncpg", options))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(f"sqlite+aiosqlite:///{Path(folder) / 'links.db'}", "SQLite", options))


if __name__ == "__main__":
    main()
