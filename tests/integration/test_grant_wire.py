"""The cost of grants on the wire: statements and round trips, counted between client and server, and printed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.binds import bound
from tests.support.databases import Database
from tests.support.shares import SHARED, Sharing
from tests.support.wire import WireProxy

WARM = 7
"""Calls after which each driver has prepared its statements (psycopg prepares at the sixth)."""
Call = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


@pytest.fixture
async def wire(database: Database) -> AsyncIterator[WireProxy]:
    """A counting line to the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


def words(wire: WireProxy) -> list[str]:
    """The first word of each statement; of ours, what it is."""
    return [statement.split()[0].rstrip(";") for statement in wire.statements]


async def calls_of(case: Sharing) -> dict[str, Call]:
    """Each call in its usual endings, on a grant of its own."""
    one, other, held, several = [
        await case.issue(max_uses=n) for n in (1, 1, 1, 2 if case.shares.mapping.is_own else 1)
    ]
    await case.redeem(held.token)
    return {
        "issue": lambda bind: case.issue(1, bind),
        "redeem, granted again": lambda bind: case.redeem(held.token, 2, bind),
        "redeem, granted": lambda bind: case.redeem(one.token, 2, bind),
        "redeem, one of several": lambda bind: case.redeem(several.token, 2, bind),
        "redeem, refused": lambda bind: case.ended(case.redeem("A" * 43, 2, bind)),
        "redeem, refused as used up": lambda bind: case.ended(case.redeem(held.token, 3, bind)),
        "revoke": lambda bind: case.revoke(1, bind, grant_id=other.id),
        "active": lambda bind: case.shares.active(bind, grantee_id=case.user(2)),
        "expire": case.shares.expire,
    }


async def counted(case: Sharing, engine: AsyncEngine, wire: WireProxy, how: str) -> dict[str, tuple[int, list[str]]]:
    """The round trips and the statements of each call, once all is prepared."""
    for _ in range(WARM):
        for call in (await calls_of(case)).values():
            async with bound(engine, how) as bind:
                await call(bind)
    found: dict[str, tuple[int, list[str]]] = {}
    for name, call in (await calls_of(case)).items():
        async with bound(engine, how) as bind:
            if how == "connection":
                await bind.exec_driver_sql("SELECT 1")
            wire.reset()
            await call(bind)
            found[name] = (wire.trips, words(wire))
    return found


@pytest.mark.parametrize("how", ["engine", "autocommit", "connection"])
@pytest.mark.parametrize("name", ["own", "patients"])
async def test_each_call_is_one_statement(database: Database, wire: WireProxy, name: str, how: str) -> None:
    """A26: one statement and one trip, granted or refused; in a caller's transaction beside its savepoint."""
    made = await Sharing.made(SHARED[name](), database.engine())
    case = Sharing(made.shared, made.engine, clock=None)
    engine = database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)
    found = await counted(case, engine, wire, how)
    for call, (trips, statements) in found.items():
        print(f"\n{database.kind}, {name}, {how}, {call}: {trips} round trips: {statements}")  # noqa: T201  # to be read
    beside = ["SAVEPOINT", "RELEASE"] if how == "connection" else []
    ours = {call: [word for word in statements if word not in beside] for call, (_, statements) in found.items()}
    firsts = {"issue": "INSERT", "revoke": "WITH", "active": "SELECT", "expire": "WITH"}
    assert {call: [firsts.get(call, "WITH")] for call in found} == ours
    assert {3 if how == "connection" else 1} == {trips for trips, _ in found.values()}


@pytest.mark.parametrize("name", ["own-pairs", "patients-pairs"])
async def test_a_pairs_rule_costs_one_statement_more(database: Database, wire: WireProxy, name: str) -> None:
    """Between BEGIN and COMMIT two statements: one waits for its turn, so that the other sees what is committed."""
    made = await Sharing.made(SHARED[name](), database.engine())
    case = Sharing(made.shared, made.engine, clock=None)
    engine = database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)
    found = await counted(case, engine, wire, "engine")
    for call, (trips, statements) in found.items():
        print(f"\n{database.kind}, {name}, engine, {call}: {trips} round trips: {statements}")  # noqa: T201  # to be read
    redeemed = {call: each for call, each in found.items() if call.startswith("redeem")}
    in_vain = {call: each for call, each in redeemed.items() if "refused" in call}
    assert {(4, ("BEGIN", "SELECT", "WITH", "COMMIT"))} == {
        (trips, tuple(statements)) for call, (trips, statements) in redeemed.items() if call not in in_vain
    }
    assert 1 == len({(trips, tuple(statements)) for trips, statements in in_vain.values()})
    assert {1} == {trips for call, (trips, _) in found.items() if call not in redeemed}
