"""The cost of a vault on PostgreSQL, counted on the wire: to seal and to keep tokens takes no round trip of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Change, Linked, OwnershipConflict, TokenSet, Transferred
from tests.support.databases import Database
from tests.support.models import identity, tokens
from tests.support.vaulted import Vaulted
from tests.support.wire import WireProxy

WARM = 8
"""Enough calls for each driver to have prepared its statements (psycopg prepares at the sixth)."""
TOKENS = tokens("access-1", "refresh-1", expires_at=None)
BESIDE = pytest.mark.parametrize("beside", ["nothing", "outbox", "ledger"])


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


@pytest.fixture
def engine(database: Database, wire: WireProxy) -> AsyncEngine:
    """An engine of one connection, through the proxy."""
    return database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)


@pytest.fixture
def direct(database: Database) -> AsyncEngine:
    """An engine past the proxy, for what is not counted."""
    return database.engine()


async def made(direct: AsyncEngine, beside: str = "nothing") -> Vaulted:
    """A table with a vault, and with a table for pending credentials."""
    more: Any = {} if beside == "nothing" else {beside: True}
    return await Vaulted(**more).create(direct)


async def warm_trips(wire: WireProxy, call: Callable[[int], Awaitable[None]]) -> int:
    """Return the round trips of a call that was made before; it gets a number, for values of its own."""
    trips = 0
    for number in range(1, 1 + WARM):
        wire.reset()
        await call(number)
        trips = wire.trips
    return trips


async def linked(vaulted: Vaulted, bind: AsyncEngine, user_id: int, number: int) -> Linked[Any, Any]:
    account = identity(f"sub-{number}")
    outcome = await vaulted.linker.link(bind, user_id=user_id, identity=account, credentials=TOKENS)
    assert isinstance(outcome, Linked)
    return outcome


async def claimed(vaulted: Vaulted, bind: AsyncEngine, user_id: int, number: int) -> str:
    account = identity(f"sub-{number}")
    outcome = await vaulted.linker.link(bind, user_id=user_id, identity=account, credentials=TOKENS)
    assert isinstance(outcome, OwnershipConflict)
    return str(outcome.transfer_token)


@BESIDE
async def test_a_link_seals_its_tokens_in_one_round_trip(
    wire: WireProxy, engine: AsyncEngine, direct: AsyncEngine, beside: str
) -> None:
    """A link that is created, updated or restored takes one statement, though a conflict would keep its tokens."""
    vaulted = await made(direct, beside)

    async def created(number: int) -> None:
        assert Change.CREATED is (await linked(vaulted, engine, 1, number)).change

    async def updated(number: int) -> None:
        assert Change.UPDATED is (await linked(vaulted, engine, 1, number)).change

    async def restored(number: int) -> None:
        link_id = (await linked(vaulted, direct, 1, number)).account.id
        await vaulted.linker.unlink(direct, user_id=1, link_id=link_id)
        wire.reset()
        assert Change.RESTORED is (await linked(vaulted, engine, 1, number)).change

    assert (1, 1, 1) == (
        await warm_trips(wire, created),
        await warm_trips(wire, updated),
        await warm_trips(wire, restored),
    )


@BESIDE
async def test_a_conflict_keeps_its_tokens_in_one_round_trip(
    wire: WireProxy, engine: AsyncEngine, direct: AsyncEngine, beside: str
) -> None:
    """The statement that finds the conflict keeps the tokens, for a claimant who has met it before and for another."""
    vaulted = await made(direct, beside)
    for number in range(1, 1 + WARM):
        await linked(vaulted, direct, 1, number)

    async def conflict(number: int) -> None:
        await claimed(vaulted, engine, 2, number)

    assert (1, 1) == (await warm_trips(wire, conflict), await warm_trips(wire, conflict))
    assert WARM == len(await vaulted.kept(direct))


@BESIDE
async def test_a_transfer_reads_what_was_kept_in_one_round_trip(
    wire: WireProxy, engine: AsyncEngine, direct: AsyncEngine, beside: str
) -> None:
    """A transfer that brings no tokens reads those that were kept; one that brings some does not."""
    vaulted = await made(direct, beside)

    async def transferred(number: int, credentials: TokenSet | None = None) -> None:
        await linked(vaulted, direct, 1, number)
        token = await claimed(vaulted, direct, 2, number)
        wire.reset()
        outcome = await vaulted.linker.transfer(engine, token, user_id=2, credentials=credentials)
        assert isinstance(outcome, Transferred)
        assert outcome.has_credentials

    async def brought(number: int) -> None:
        await transferred(number + WARM, TOKENS)

    assert (3, 2) == (await warm_trips(wire, transferred), await warm_trips(wire, brought))
    assert [] == await vaulted.kept(direct)


async def test_tokens_are_read_in_one_round_trip_and_replaced_in_two(
    wire: WireProxy, engine: AsyncEngine, direct: AsyncEngine
) -> None:
    """Reading is one statement; replacing reads and then writes, each in a trip, without a transaction."""
    vaulted = await made(direct)
    link_id = (await linked(vaulted, direct, 1, 1)).account.id
    linker = vaulted.linker

    async def by_id(_: int) -> None:
        assert TOKENS.access_token == (await linker.credentials(engine, user_id=1, link_id=link_id)).access_token

    async def by_provider(_: int) -> None:
        assert TOKENS.access_token == (await linker.credentials(engine, user_id=1, provider="acme")).access_token

    async def stored(number: int) -> None:
        assert (await linker.stored_credentials(engine, user_id=1, link_id=link_id)).refresh_token is not None

    async def replaced(number: int) -> None:
        new = tokens(f"access-{number + 1}", f"refresh-{number + 1}", expires_at=None)
        assert await linker.replace_credentials(
            engine, user_id=1, link_id=link_id, tokens=new, presented=f"refresh-{number}"
        )

    assert (1, 1, 1, 2) == (
        await warm_trips(wire, by_id),
        await warm_trips(wire, by_provider),
        await warm_trips(wire, stored),
        await warm_trips(wire, replaced),
    )
