"""The cost of a transfer on PostgreSQL, counted on the wire: one statement reads, one decides, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import OwnershipConflict
from tests.support.claims import CLAIMED, Case
from tests.support.databases import Database, rows
from tests.support.models import identity, tokens
from tests.support.wire import WireProxy

WARM = 8
"""Enough calls for each driver to have prepared its statements (psycopg prepares at the sixth)."""


@pytest.fixture(params=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


@pytest.fixture
async def wire(database: Database) -> AsyncIterator[WireProxy]:
    """A counting proxy in front of the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


@pytest.fixture(params=["mixin-exclusive-soft", "exclusive-soft-ledger"])
async def case(database: Database, request: pytest.FixtureRequest) -> Case:
    """With a version, and with a ledger."""
    links = CLAIMED[request.param](database.kind)
    engine = database.engine()
    await links.create(engine)
    return Case(links, engine)


def through(wire: WireProxy, database: Database) -> AsyncEngine:
    return database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)


async def another_way(connection: AsyncConnection, user_id: int) -> bool:
    return True


def kinds_of(wire: WireProxy) -> list[str]:
    """Return the verb of a statement: for one with parts, the verb of its last part."""
    found = []
    for statement in wire.statements:
        words = statement.upper().split()
        found.append("UPDATE" if "UPDATE CONNECTIONS SET" in " ".join(words) else words[0].rstrip(";"))
    return found


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("engine", ["SELECT", "UPDATE"]),
        ("session", ["SAVEPOINT", "SELECT", "UPDATE", "RELEASE"]),
        ("guarded", ["BEGIN", "SELECT", "SELECT", "UPDATE", "COMMIT"]),
    ],
)
async def test_a_transfer_is_two_round_trips(
    database: Database, wire: WireProxy, case: Case, how: str, expected: list[str]
) -> None:
    """F25: an engine reads and decides in a trip each, without a transaction; a guard adds one, and the lock."""
    engine = through(wire, database)
    if how == "guarded":
        case.linker = case.links.linker(clock=case.clock, guard_last=another_way)
    counted: dict[str, int] = {}
    executed: list[str] = []
    for n in range(WARM):
        await case.link(1, f"sub-{n}")
        token = await case.claim(2, f"sub-{n}")
        for name in ("transferred", "already_owner"):
            async with AsyncSession(engine) as session:
                if how == "session":
                    await session.execute(sa.text("SELECT 1"))
                wire.reset()
                bind: Any = session if how == "session" else engine
                assert name == await case.ended(token, 2, bind, credentials=tokens("after"))
                counted[name] = wire.trips
                executed = kinds_of(wire) if name == "transferred" else executed
                await session.commit()
    print(f"\n{database.kind}, {how}: {counted} round trips; {executed}")  # noqa: T201  # to be read in the log
    assert (len(expected), expected) == (counted["transferred"], executed)
    assert {"engine": 1, "session": 3, "guarded": 3}[how] == counted["already_owner"]


async def test_a_conflict_with_a_ledger_is_one_round_trip_and_writes_nothing(
    database: Database, wire: WireProxy
) -> None:
    """A25: reading the epoch costs a conflict no trip and no byte of write-ahead log."""
    links = CLAIMED["exclusive-soft-ledger"](database.kind)
    direct, engine = database.engine(), through(wire, database)
    await links.create(direct)
    case = Case(links, direct)
    await case.link(1)
    assert "transferred" == await case.ended(await case.claim(2), 2)
    written, trips = [], 0
    async with direct.connect() as connection:
        await connection.exec_driver_sql("CHECKPOINT")
    for _ in range(20):
        before = (await rows(direct, "SELECT pg_current_wal_insert_lsn()"))[0][0]
        wire.reset()
        outcome = await case.linker.link(engine, user_id=3, identity=identity(), credentials=tokens())
        trips = wire.trips
        assert isinstance(outcome, OwnershipConflict)
        assert outcome.transfer_token is not None
        bytes_ = await rows(direct, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), CAST(:b AS pg_lsn))", b=before)
        written.append(int(bytes_[0][0]))
    assert 1 == trips
    assert [0] * 15 == sorted(written)[:15], written
