"""Measure how idle grants of a whole table are kept alive, by two workers and beside the provider.

    python -m benchmarks.keep_alive

It fills a table with idle links. Two processes keep them alive; one is killed half-way and started again. Each grant
has to be renewed once: the provider, on loopback, counts how often each refresh token is presented. Then one process
renews different links, in turn with calls of the provider alone, ten at a time in both. Both are done on PostgreSQL and
on SQLite.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import OAuthRefresher, TokenSet
from accountlink.providers import OAuthClient
from accountlink.vault.refresher import Refresher
from accountlink.vault.upkeep import AT_ONCE
from benchmarks.ground import database
from tests.support.keeping import IDLE, Kept, LoopbackRefresher, Turn, loopback_provider, opened, two_workers

DEADLINE = timedelta(seconds=20)
OVER = timedelta(seconds=-5)


@dataclass(kw_only=True)
class Longest:
    """The longest transaction that PostgreSQL tells of, looked for all the time, and what it ran last."""

    seconds: float = 0.0
    query: str = ""
    looks: int = 0
    closing: bool = False

    def begin(self) -> None:
        """Begin anew: what came before, such as filling the table, does not count."""
        self.seconds, self.query, self.looks = 0.0, "", 0

    async def look(self, engine: AsyncEngine) -> None:
        """Look until it is told to close."""
        query = sa.text(
            "SELECT extract(epoch FROM clock_timestamp() - xact_start), query FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name = '' "
            "AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
        )
        other = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")
        async with other.connect() as connection:
            while not self.closing:
                for seconds, ran in await connection.execute(query):
                    if seconds > self.seconds:
                        self.seconds, self.query = float(seconds), " ".join(ran.split())[:60]
                self.looks += 1
                await asyncio.sleep(0.02)
        await other.dispose()


async def killed_half_way(engine: AsyncEngine, rows: int) -> None:
    """Print what two workers did, one of which was killed."""
    longest = Longest()
    looking = asyncio.ensure_future(longest.look(engine)) if engine.dialect.name == "postgresql" else None
    figures = await two_workers(engine, rows, filled=longest.begin)
    longest.closing = True
    if looking is not None:
        await looking
    renewed = [each.kept.renewed for each in figures.turns]
    print(
        f"  two workers, one killed after {figures.killed_at:,} calls and started again: {rows / figures.seconds:,.0f} "
        f"calls/s; they renewed {renewed[0]:,} and {renewed[1]:,}"
    )
    print(
        f"  each grant renewed once; {figures.in_flight} tokens presented twice, which the killed worker was "
        f"presenting; one more turn renewed {figures.last.kept.renewed} and took {figures.last.seconds:.2f} s"
    )
    print(f"  {_statements(figures.turns[0])} statements for each grant; a connection out of the pool for "
          f"{1000 * max(each.longest for each in (*figures.turns, figures.last)):.0f} ms at the longest")  # fmt: skip
    if looking is not None:
        print(f"  longest transaction in pg_stat_activity, {longest.looks:,} looks: {1000 * longest.seconds:.0f} ms, "
              f"in {longest.query}")  # fmt: skip


def _statements(did: Turn) -> str:
    return f"{did.statements / max(1, did.kept.renewed):.1f}"


# -- beside the provider alone ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Speed:
    """The calls per second of a way of renewing, and those per second of CPU, of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def measure(self, calls: int, work: Callable[[], Awaitable[object]]) -> None:
        """Measure work that makes so many calls."""
        wall, cpu = time.perf_counter(), time.process_time()
        await work()
        self.wall.append(calls / (time.perf_counter() - wall))
        self.cpu.append(calls / (time.process_time() - cpu))


async def beside_the_provider(engine: AsyncEngine, calls: int, rounds: int) -> None:
    """Print how many different links one process renews, beside the calls of the provider that it makes for it."""
    async with loopback_provider() as provider:
        raw = LoopbackRefresher(provider.port)
        url = f"http://127.0.0.1:{provider.port}/token"
        client = OAuthClient(client_id="me", client_secret="benchmark", token_endpoint=url)  # noqa: S106  # no secret
        refreshers: dict[str, Refresher] = {
            "OAuthRefresher": OAuthRefresher({"acme": [client]}),
            "a bare socket": raw,
        }
        for name, refresher in refreshers.items():
            await _beside(engine, name, refresher, calls, rounds)
        await raw.aclose()


async def _beside(engine: AsyncEngine, name: str, refresher: Refresher, calls: int, rounds: int) -> None:
    kept = Kept(refresher)
    await kept.fill(engine, calls * 2 * rounds, expires_in=OVER)
    numbers, speeds = count(1), {way: Speed() for way in ("alone", "keep_alive", "credentials")}

    async def alone() -> None:
        async def ask(number: int) -> None:
            tokens = TokenSet(access_token="a", refresh_token=f"{name[:1]}-{number}.0")  # noqa: S106  # no secret
            await refresher.renew("acme", tokens, deadline=DEADLINE)

        await at_once(iter([next(numbers) for _ in range(calls)]), ask)

    async def keep_alive() -> None:
        found = await kept.keeping.keep_alive(engine, idle=IDLE, limit=calls)
        assert calls == found.renewed

    async def credentials() -> None:
        async def ask(user_id: int) -> None:
            await kept.keeping.credentials(engine, user_id=user_id, provider="acme")

        await at_once(iter([next(users) for _ in range(calls)]), ask)

    users = iter(range(calls * 2 * rounds, 0, -1))  # keep_alive begins at the other end
    for _ in range(rounds):
        await speeds["alone"].measure(calls, alone)
        await speeds["keep_alive"].measure(calls, keep_alive)
        await speeds["credentials"].measure(calls, credentials)
    for way, speed in speeds.items():
        ratio = statistics.median(each / by for each, by in zip(speed.wall, speeds["alone"].wall, strict=True))
        print(
            f"  {name:15} {way:12} {statistics.median(speed.wall):7,.0f}/s   "
            f"{statistics.median(speed.cpu):7,.0f} per second of this process's CPU   {ratio:.2f} of alone"
        )
    async with engine.begin() as connection:
        await connection.run_sync(kept.tables.metadata.drop_all)


async def at_once(numbers: Iterator[int], ask: Callable[[int], Awaitable[None]]) -> None:
    """Ask for each number, as many at one time as keep_alive does."""

    async def take() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(take() for _ in range(AT_ONCE)))


async def measure(url: str, title: str, options: argparse.Namespace) -> None:
    """Print the figures of one database."""
    engine = opened(url)
    print(f"{title}, {options.rows:,} idle links; {options.rounds} rounds of {options.calls} calls", flush=True)
    await beside_the_provider(engine, options.calls, options.rounds)
    await killed_half_way(engine, options.rows)
    await engine.dispose()


def main() -> None:
    """Measure both databases."""
    parser = argparse.ArgumentParser(description="Measure how idle grants are kept alive.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=200, help="renewals of a round beside the provider")
    parser.add_argument("--rounds", type=int, default=5)
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
