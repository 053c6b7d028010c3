"""Races in which every call has looked before any of them may write: each answer is true all the same.

A lock holds the calls back until all wait for it. What each has read is then out of date, which chance brings about
once in many rounds, and this in each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Change, LastAccount, Linked, LinkPolicy, OwnershipConflict, Unlinked
from tests.contract.test_two_indexes import ORDERS, cloud_accounts
from tests.support.databases import Database, create, rows, run_sql
from tests.support.gate import behind
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, POLICIES, identity, shared_tables, tokens
from tests.support.shares import PAIRED, SHARED, Sharing

pytestmark = pytest.mark.parametrize("kind", ["asyncpg"])
POOL: Final = 12
"""How many calls meet in the server."""
ROW: Final = (
    "INSERT INTO connections (user_id, provider, account_id, email, email_key, version, score, created_at) VALUES "
)


@pytest.fixture
def pool(database: Database) -> AsyncEngine:
    """The engine of the calls."""
    return database.engine(pool_size=POOL, max_overflow=0)


def errors_of(engine: AsyncEngine) -> list[BaseException]:
    """Note from now on what errors the database gives, whatever is made of them."""
    seen: list[BaseException] = []
    sa.event.listen(engine.sync_engine, "handle_error", lambda context: seen.append(context.original_exception))
    return seen


def changes(outcomes: list[Any]) -> Counter[Any]:
    return Counter(o.change if isinstance(o, Linked) else type(o) for o in outcomes)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_first_links_of_one_user(pool: AsyncEngine, engine: AsyncEngine, policy: LinkPolicy) -> None:
    """All found no row and wait for a rival's, which is rolled back: one creates, the rest update, no error is met."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    calls = [linker.link(pool, user_id=1, identity=identity(), credentials=tokens()) for _ in range(2 * POOL)]
    rival = ROW + "(1, 'acme', 'sub-1', 'sub-1@example.com', 'sub-1@example.com', 1, 7, now())"
    if "email_key" not in tables.Connection.__table__.c:
        rival = rival.replace(" email_key,", "").replace(" 'sub-1@example.com', 1,", " 1,")
    errors = errors_of(pool)
    outcomes = await behind(engine, rival, calls, waiting=POOL)
    assert {Change.CREATED: 1, Change.UPDATED: 2 * POOL - 1} == changes(outcomes)
    assert [] == errors
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM connections")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
async def test_first_links_under_two_indexes(pool: AsyncEngine, engine: AsyncEngine, order: tuple[str, str]) -> None:
    """F14: with a key per user and a key for all, a user's own calls meet no violation and no false conflict."""
    metadata, linker = cloud_accounts()
    await create(engine, metadata)
    await run_sql(engine, *order)
    calls = [linker.link(pool, user_id=1, identity=identity(), credentials=tokens()) for _ in range(2 * POOL)]
    rival = "INSERT INTO cloud_provider_accounts (user_id, provider, provider_account_id) VALUES (1, 'acme', 'sub-1')"
    errors = errors_of(pool)
    outcomes = await behind(engine, rival, calls, waiting=POOL)
    assert {Change.CREATED: 1, Change.UPDATED: 2 * POOL - 1} == changes(outcomes)
    assert [] == errors


@pytest.mark.parametrize("commit", [True, False], ids=["committed", "rolled back"])
async def test_users_behind_an_owner_whom_nobody_sees_yet(pool: AsyncEngine, engine: AsyncEngine, commit: bool) -> None:
    """F06: all calls wait for an owner who has not committed: then all conflict with this owner, or one call links."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    calls = [linker.link(pool, user_id=10 + n, identity=identity()) for n in range(POOL)]
    rival = ROW.replace(" email_key,", "") + "(1, 'acme', 'sub-1', NULL, 1, 7, now())"
    outcomes = await behind(engine, rival, calls, waiting=POOL, commit=commit)
    live = await rows(engine, "SELECT user_id FROM connections")
    assert 1 == len(live)
    assert {live[0][0]} == {o.owner_id if isinstance(o, OwnershipConflict) else o.account.user_id for o in outcomes}
    assert (
        {OwnershipConflict: POOL} if commit else {Change.CREATED: 1, OwnershipConflict: POOL - 1} == changes(outcomes)
    )


async def test_restores_of_one_user(pool: AsyncEngine, engine: AsyncEngine) -> None:
    """All found the row dead and wait for its lock: one restores it, the rest update it."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(first, Linked)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    calls = [linker.link(pool, user_id=1, identity=identity(), credentials=tokens()) for _ in range(POOL)]
    outcomes = await behind(engine, "SELECT 1 FROM connections FOR UPDATE", calls, waiting=POOL)
    assert {Change.RESTORED: 1, Change.UPDATED: POOL - 1} == changes(outcomes)
    assert {first.account.id} == {outcome.account.id for outcome in outcomes}


async def test_restores_behind_another_users_link(pool: AsyncEngine, engine: AsyncEngine) -> None:
    """F17, A32: all calls read a dead row; another user links first, and each call gets a conflict with that user."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(first, Linked)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    before = await rows(engine, "SELECT * FROM connections")
    calls = [linker.link(pool, user_id=1, identity=identity(), credentials=tokens()) for _ in range(POOL)]
    rival = ROW.replace(" email_key,", "") + "(2, 'acme', 'sub-1', NULL, 1, 7, now())"
    outcomes = await behind(engine, rival, calls, waiting=POOL, commit=True)
    assert {OwnershipConflict: POOL} == changes(outcomes)
    assert {2} == {outcome.owner_id for outcome in outcomes}
    assert before == await rows(engine, "SELECT * FROM connections WHERE user_id = 1")


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_a_user_who_unlinks_both_of_two_links_at_once(
    pool: AsyncEngine, engine: AsyncEngine, policy: LinkPolicy
) -> None:
    """A39: both calls counted two links and wait for a lock: one unlinks, the other finds its link the last."""

    async def no_other_way(_connection: object, _user: object) -> bool:
        return False

    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker(guard_last=no_other_way)
    links = [await linker.link(engine, user_id=1, identity=identity(f"sub-{n}")) for n in range(2)]
    calls = [linker.unlink(pool, user_id=1, link_id=link.account.id) for link in links if isinstance(link, Linked)]
    outcomes = await behind(engine, "SELECT 1 FROM connections FOR UPDATE", calls, waiting=2)
    assert {Unlinked: 1, LastAccount: 1} == Counter(map(type, outcomes))
    assert 1 == len(await linker.accounts(engine, user_id=1))


@pytest.mark.parametrize("name", ["own", "patients", "counted"])
async def test_users_who_redeem_one_token(pool: AsyncEngine, engine: AsyncEngine, name: str) -> None:
    """A18, F25: all found the token unused and wait for its lock: one has the grant, the rest are refused."""
    case = await Sharing.made(SHARED[name](), pool, clock=None)
    issued = await case.issue()
    calls = [case.ended(case.redeem(issued.token, user)) for user in range(2, 2 + POOL)]
    lock = f"SELECT 1 FROM {case.shares.mapping.table.fullname} FOR UPDATE"
    assert {"granted": 1, "grant_rejected": POOL - 1} == Counter(await behind(engine, lock, calls, waiting=POOL))


@pytest.mark.parametrize("name", PAIRED)
async def test_tokens_of_one_pair(pool: AsyncEngine, engine: AsyncEngine, name: str) -> None:
    """All wait for the rows of their tokens: all are granted, one after the other, and one grant is active."""
    case = await Sharing.made(SHARED[name](), pool, clock=None)
    issued = [await case.issue() for _ in range(4)]
    calls = [case.ended(case.redeem(each.token, 2)) for each in issued]
    lock = f"SELECT 1 FROM {case.shares.mapping.table.fullname} FOR UPDATE"
    assert {"granted": 4} == Counter(await behind(engine, lock, calls, waiting=4))
    assert 1 == sum((await case.flags()).values())
    assert 1 == len(await case.active(grantor_id=1, grantee_id=2))
