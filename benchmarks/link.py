"""What linking costs, against a hand-written upsert on the same server.

    python benchmarks/link.py

Ratios come from one interleaved run: in every round each contestant does one small batch of each case, and a ratio
is taken within its round, so that a slow second of the machine falls on all alike. What interleaving cannot even out
is where the system puts each connection's server process, which stays there. So a run has several sittings, each on
new connections, and the result is the median of the sittings with their range. Round trips are counted on the wire in
a pass of its own. The README beside this file says what the columns mean.
"""

import argparse
import asyncio
import dataclasses
import enum
import gc
import json
import platform
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from itertools import count
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import assert_never

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountMapping,
    Change,
    Key,
    Linked,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    ProviderIdentity,
    Removal,
    TokenSet,
)
from accountlink.storage.statements import Shape, Statements
from accountlink.testing.postgres import run_server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.wire import WireProxy  # a script's path begins at its own folder

ACCOUNTS = 32  # as many of each contestant are linked again in turn
RIVALS = 1_000_000_000  # added to an owner's id it is that of the user who comes second
EXPIRES_AT = datetime.now(UTC) + timedelta(hours=1)
ACCESS_TOKEN, REFRESH_TOKEN, SCOPES = "a" * 64, "r" * 64, frozenset({"calendar", "mail"})


class Base(DeclarativeBase):
    """The benchmark's own metadata."""


class Connection(LinkedAccountMixin, Base):
    """The table that all contestants share; each has provider accounts of its own in it."""

    __tablename__ = "accountlink_benchmark"
    __link_policy__ = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


LINKER: AccountLinker[int, int] = AccountLinker(Connection, secrets=["benchmark".ljust(32, "-")])

WRITTEN = ("email", "access_token", "refresh_token", "expires_at", "scopes", "updated_at")
FLOOR = f"""
INSERT INTO {Connection.__tablename__} AS held
  (user_id, provider, account_id, email, access_token, refresh_token, expires_at, scopes,
   updated_at, created_at, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 1)
ON CONFLICT (provider, account_id) WHERE deleted_at IS NULL DO UPDATE SET
  {", ".join(f"{c} = CASE WHEN held.user_id = $1 THEN excluded.{c} ELSE held.{c} END" for c in WRITTEN)}
RETURNING id, user_id, provider, account_id, email, scopes, created_at, updated_at, version,
  xmax = 0 AS created
"""
CORE = Statements(AccountMapping(Connection, policy=Connection.__link_policy__)).arms(
    Shape(email=True, credentials=("access_token", "refresh_token", "expires_at", "scopes"))
)


class Case(enum.Enum):
    """What a call meets, and so what it must answer."""

    FIRST = "first link"
    RELINK = "relink"
    CONFLICT = "conflict"


TITLES = {
    "floor": "asyncpg, hand-written upsert",
    "core": "Core statement, AUTOCOMMIT",
    "engine": "linker.link(engine)",
    "connection": "linker.link(connection) *",
    "session": "linker.link(session) *",
}
CORE_ANSWERS = {"created": Case.FIRST, "updated": Case.RELINK, "conflict": Case.CONFLICT}
Bind = AsyncEngine | AsyncConnection | AsyncSession
Link = Callable[[int, str], Awaitable[Case]]
"""Links a user to an account id of one provider, and says what it met."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of linking."""

    name: str
    link: Link


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one batch cost per call, in seconds."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A ratio: the median of the sittings, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the result."""

    contestant: str
    case: str
    wall_us: float
    wall_ratio: Spread
    cpu_us: float
    cpu_ratio: Spread
    trips: int


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A bound that the library sets itself, and the worst case that was measured."""

    title: str
    limit: float
    measured: Spread

    @property
    def verdict(self) -> str:
        """Whether it is met; a limit inside the spread is decided by no single run."""
        if self.measured.high <= self.limit:
            return "met"
        return "NOT met" if self.measured.low > self.limit else "undecided"


# The contestants


@asynccontextmanager
async def opened(url: sa.URL) -> AsyncIterator[list[Contestant]]:
    """Yield the contestants on two pools of one connection: asyncpg's own and SQLAlchemy's."""

    async def keep(_: object) -> None:
        """Leave the connection as it is: asyncpg's own reset is a second round trip."""

    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1, reset=keep) as pool:
            yield [
                Contestant(name="floor", link=partial(by_hand, pool)),
                Contestant(name="core", link=partial(by_core, autocommit)),
                Contestant(name="engine", link=partial(by_linker, engine)),
                Contestant(name="connection", link=partial(in_transaction, engine)),
                Contestant(name="session", link=partial(in_session, engine)),
            ]
    finally:
        await engine.dispose()


async def by_hand(pool: "asyncpg.Pool[asyncpg.Record]", user_id: int, account_id: str) -> Case:
    """Run the hand-written upsert, prepared by asyncpg itself, and tell the outcomes apart."""
    identity = (user_id, "acme", account_id, f"{account_id}@example.com")
    credentials = (ACCESS_TOKEN, REFRESH_TOKEN, EXPIRES_AT, " ".join(sorted(SCOPES)))
    async with pool.acquire() as connection:
        row = await connection.fetchrow(FLOOR, *identity, *credentials, datetime.now(UTC))
    assert row is not None
    if row["user_id"] != user_id:
        return Case.CONFLICT
    return Case.FIRST if row["created"] else Case.RELINK


async def by_core(autocommit: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Run the library's statement on SQLAlchemy, without the library."""
    now = datetime.now(UTC)
    parameters = {
        "al_user_id": user_id,
        "al_provider": "acme",
        "al_account_id": account_id,
        "al_email": f"{account_id}@example.com",
        "al_access_token": ACCESS_TOKEN,
        "al_refresh_token": REFRESH_TOKEN,
        "al_expires_at": EXPIRES_AT,
        "al_scopes": " ".join(sorted(SCOPES)),
        "al_created_at": now,
        "al_updated_at": now,
    }
    async with autocommit.connect() as connection:
        row = (await connection.execute(CORE, parameters)).one()
    return CORE_ANSWERS[row[0]]


async def by_linker(bind: Bind, user_id: int, account_id: str) -> Case:
    """Call the library as an application does, with values that are made for this call."""
    outcome = await LINKER.link(
        bind,
        user_id=user_id,
        identity=ProviderIdentity(provider="acme", account_id=account_id, email=f"{account_id}@example.com"),
        credentials=TokenSet(
            access_token=ACCESS_TOKEN, refresh_token=REFRESH_TOKEN, expires_at=EXPIRES_AT, scopes=SCOPES
        ),
    )
    match outcome:
        case Linked(change=Change.CREATED):
            return Case.FIRST
        case Linked():
            return Case.RELINK
        case OwnershipConflict():
            return Case.CONFLICT
        case _:
            assert_never(outcome)


async def in_transaction(engine: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Call the library in a transaction of the caller."""
    async with engine.begin() as connection:
        return await by_linker(connection, user_id, account_id)


async def in_session(engine: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Call the library in a session of the caller."""
    async with AsyncSession(engine) as session, session.begin():
        return await by_linker(session, user_id, account_id)


# Measuring


class Course:
    """Gives out calls, each account with a user of its own, and sees that every call meets what it should."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._users = count(1)
        self._standing: dict[str, list[tuple[int, str]]] = {}
        self._turn = count()

    def _fresh(self) -> tuple[int, str]:
        user_id = next(self._users)
        return user_id, f"{self._run}-{user_id}"

    async def prepare(self, contestant: Contestant) -> None:
        """Link the accounts that are linked again, and let statements, plans and caches settle."""
        if contestant.name not in self._standing:
            self._standing[contestant.name] = [self._fresh() for _ in range(ACCOUNTS)]
        for user_id, account_id in self._standing[contestant.name]:
            await contestant.link(user_id, account_id)
        for case in Case:
            await self.batch(contestant, case, 16)

    def _calls(self, contestant: Contestant, case: Case, number: int) -> list[tuple[int, str]]:
        if case is Case.FIRST:
            return [self._fresh() for _ in range(number)]
        standing = self._standing[contestant.name]
        turns = [standing[next(self._turn) % ACCOUNTS] for _ in range(number)]
        return turns if case is Case.RELINK else [(user_id + RIVALS, account_id) for user_id, account_id in turns]

    async def batch(self, contestant: Contestant, case: Case, number: int) -> Batch:
        """Do so many calls of one case, one after another."""
        calls = self._calls(contestant, case, number)
        link = contestant.link
        cpu, wall = time.process_time(), time.perf_counter()
        answers = [await link(user_id, account_id) for user_id, account_id in calls]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert answers == [case] * number, f"{contestant.name} answered {set(answers)}, not {case}"
        return Batch(wall=wall / number, cpu=cpu / number)


Measured = tuple[str, Case]


async def timed(url: sa.URL, sittings: int, rounds: int, size: int) -> list[dict[Measured, list[Batch]]]:
    """Run every contestant and case once per round, beginning each round with another contestant."""
    course = Course("timed")
    return [await _sitting(url, course, rounds, size) for _ in range(sittings)]


async def _sitting(url: sa.URL, course: Course, rounds: int, size: int) -> dict[Measured, list[Batch]]:
    batches: dict[Measured, list[Batch]] = {}
    async with opened(url) as contestants:
        for contestant in contestants:
            await course.prepare(contestant)
        gc.collect()
        for turn in range(rounds):
            start = turn % len(contestants)
            for case in Case:
                for contestant in contestants[start:] + contestants[:start]:
                    batch = await course.batch(contestant, case, size)
                    batches.setdefault((contestant.name, case), []).append(batch)
    return batches


async def counted(url: sa.URL) -> dict[Measured, int]:
    """Count the round trips of each contestant and case on the wire, on warm connections."""
    assert url.host is not None
    trips: dict[Measured, int] = {}
    course = Course("counted")
    async with (
        WireProxy(url.host, url.port or 5432) as proxy,
        opened(url.set(host="127.0.0.1", port=proxy.port)) as contestants,
    ):
        for contestant in contestants:
            await course.prepare(contestant)
            for case in Case:
                proxy.reset()
                await course.batch(contestant, case, 8)
                trips[contestant.name, case], rest = divmod(proxy.trips, 8)
                assert not rest, f"{contestant.name}, {case.value}: not every call took as many trips"
    return trips


# Reporting


def compare(sittings: Sequence[dict[Measured, list[Batch]]], trips: dict[Measured, int]) -> list[Line]:
    """Turn batches into medians, each ratio taken within its round."""
    return [
        Line(
            contestant=name,
            case=case.value,
            wall_us=median(batch.wall for sitting in sittings for batch in sitting[name, case]) * 1e6,
            wall_ratio=_ratio(sittings, (name, case), ("floor", case), attrgetter("wall")),
            cpu_us=median(batch.cpu for sitting in sittings for batch in sitting[name, case]) * 1e6,
            cpu_ratio=_ratio(sittings, (name, case), ("core", case), attrgetter("cpu")),
            trips=number,
        )
        for (name, case), number in trips.items()
    ]


def _ratio(
    sittings: Sequence[dict[Measured, list[Batch]]], own: Measured, other: Measured, cost: Callable[[Batch], float]
) -> Spread:
    medians = [
        median(cost(one) / cost(two) for one, two in zip(sitting[own], sitting[other], strict=True))
        for sitting in sittings
    ]
    return Spread(median=median(medians), low=min(medians), high=max(medians))


def judge(lines: Sequence[Line]) -> list[Aim]:
    """Hold the worst case of `linker.link(engine)` against each aim."""
    own = [line for line in lines if line.contestant == "engine"]
    trips = float(max(line.trips for line in own))
    by_median = attrgetter("median")
    return [
        Aim(title="client CPU, x Core", limit=1.3, measured=max((line.cpu_ratio for line in own), key=by_median)),
        Aim(title="wall clock, x floor", limit=1.8, measured=max((line.wall_ratio for line in own), key=by_median)),
        Aim(title="round trips", limit=1, measured=Spread(median=trips, low=trips, high=trips)),
    ]


def show(lines: Sequence[Line], aims: Sequence[Aim]) -> None:
    """Print a table for each case, then one line for each aim."""
    for case in Case:
        print(f"\n{case.value:<30} wall/call  x floor            CPU/call  x Core            trips")
        for line in lines:
            if line.case == case.value:
                print(
                    f"  {TITLES[line.contestant]:<28} {line.wall_us:6.0f} µs {line.wall_ratio!s:<18}"
                    f"{line.cpu_us:6.0f} µs {line.cpu_ratio!s:<18}{line.trips:4d}"
                )
    print("\n* in a transaction of the caller, whose BEGIN and COMMIT are two of the trips")
    print("\nlinker.link(engine), its worst case against each aim:")
    for aim in aims:
        print(f"{aim.verdict:>11}: {aim.title} {aim.measured!s}, aim at most {aim.limit:g}")


@contextmanager
def database(given: str | None, fsync: str) -> Iterator[sa.URL]:
    """Yield the URL of the given database, or of a new server that ends with the run."""
    if given is not None:
        yield sa.make_url(given).set(drivername="postgresql+asyncpg")
        return
    with run_server(settings={"fsync": fsync, "full_page_writes": fsync}) as server:
        yield sa.make_url(server.url(driver="asyncpg", database="postgres"))


@asynccontextmanager
async def table(url: sa.URL) -> AsyncIterator[str]:
    """Create the table, drop it afterwards, and yield what the run stands on."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
            settings = "current_setting('server_version'), current_setting('fsync')"
            server, fsync = (await connection.execute(sa.text(f"SELECT {settings}"))).one()
        packages = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", "asyncpg"))
        yield f"PostgreSQL {server}, fsync {fsync}; Python {platform.python_version()}, {packages}"
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        await engine.dispose()


async def measure(url: sa.URL, options: argparse.Namespace) -> None:
    """Count, time, and print."""
    async with table(url) as environment:
        trips = await counted(url)
        sittings = await timed(url, options.sittings, options.rounds, options.batch)
    lines = compare(sittings, trips)
    aims = judge(lines)
    if options.json:
        result = {
            "environment": environment,
            "sittings": options.sittings,
            "rounds": options.rounds,
            "batch": options.batch,
            "lines": [dataclasses.asdict(line) for line in lines],
            "aims": [dataclasses.asdict(aim) | {"verdict": aim.verdict} for aim in aims],
        }
        print(json.dumps(result, indent=2))
        return
    print(environment)
    print(f"{options.sittings} sittings of {options.rounds} rounds of {options.batch} calls")
    show(lines, aims)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="What linking costs, against a hand-written upsert.")
    parser.add_argument("--sittings", type=int, default=16, help="sets of new connections (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds in a sitting (%(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="calls per contestant, case and round (%(default)s)")
    parser.add_argument("--database-url", help="an existing PostgreSQL database, instead of a server of its own")
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="of its own server (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if min(options.sittings, options.rounds, options.batch) < 1:
        parser.error("--sittings, --rounds and --batch must be at least 1")
    with database(options.database_url, options.fsync) as url:
        asyncio.run(measure(url, options))


if __name__ == "__main__":
    main()
