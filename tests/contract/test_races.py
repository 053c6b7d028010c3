"""Races, on each database: many rounds of many tasks, and one consistent answer each time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import AccountLinker, Change, Linked, LinkPolicy, OwnershipConflict
from tests.support.databases import Database, create, rows
from tests.support.effort import Effort
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, POLICIES, identity, shared_tables, tokens

TASKS = 64


def changes(outcomes: list[Any]) -> Counter[Change]:
    assert all(isinstance(outcome, Linked) for outcome in outcomes), Counter(map(repr, outcomes))
    return Counter(outcome.change for outcome in outcomes)


async def many(linker: AccountLinker[Any, Any], engine: AsyncEngine, users: list[int], account: str) -> list[Any]:
    calls = (linker.link(engine, user_id=user, identity=identity(account), credentials=tokens()) for user in users)
    return list(await asyncio.gather(*calls))


def a_real_pool(database: Database) -> AsyncEngine:
    return database.engine(pool_size=32 if database.is_postgresql else 4, max_overflow=0)


async def test_one_user_racing_themselves(database: Database, effort: Effort) -> None:
    """64 tasks of one user on one account: one creates the row, 63 update it."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    rounds = effort.rounds(4, full=200)
    for round_ in rounds:
        outcomes = await many(linker, engine, [1] * TASKS, f"sub-{round_}")
        assert {Change.CREATED: 1, Change.UPDATED: TASKS - 1} == changes(outcomes)
        assert 1 == len({outcome.account.id for outcome in outcomes})
    counts = await rows(engine, "SELECT count(*), count(DISTINCT account_id) FROM connections")
    assert [(len(rounds), len(rounds))] == counts


async def test_many_users_racing_for_one_account(database: Database, effort: Effort) -> None:
    """F27: 64 users on one account: one gets it, 63 conflicts all name the true owner."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    rounds = effort.rounds(4, full=200)
    for round_ in rounds:
        outcomes = await many(linker, engine, list(range(1, TASKS + 1)), f"sub-{round_}")
        winners = [outcome for outcome in outcomes if isinstance(outcome, Linked)]
        conflicts = [outcome for outcome in outcomes if isinstance(outcome, OwnershipConflict)]
        assert (1, TASKS - 1) == (len(winners), len(conflicts))
        assert {winners[0].account.user_id} == {conflict.owner_id for conflict in conflicts}
    assert [(len(rounds),)] == await rows(engine, "SELECT count(*) FROM connections")


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_one_user_racing_themselves_under_each_policy(
    database: Database, policy: LinkPolicy, effort: Effort
) -> None:
    """64 tasks of one user under each policy: one row, created once."""
    engine = a_real_pool(database)
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    for round_ in effort.rounds(1, full=5):
        outcomes = await many(linker, engine, [1] * TASKS, f"sub-{round_}")
        assert {Change.CREATED: 1, Change.UPDATED: TASKS - 1} == changes(outcomes)


async def test_one_user_restoring_in_parallel(database: Database, effort: Effort) -> None:
    """32 restores of one dead row: one restores it, the rest update it, all under its id."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(first, Linked)
    for _ in effort.rounds(4, full=30):
        await linker.unlink(engine, user_id=1, link_id=first.account.id)
        outcomes = await many(linker, engine, [1] * 32, "sub-1")
        assert {Change.RESTORED: 1, Change.UPDATED: 31} == changes(outcomes)
        assert {first.account.id} == {outcome.account.id for outcome in outcomes}


async def test_restores_racing_other_users_links(database: Database, effort: Effort) -> None:
    """F17: 32 restores by the former owner against 32 other users: one live row, whose owner all conflicts name."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    for round_ in effort.rounds(4, full=30):
        account = f"sub-{round_}"
        first = await linker.link(engine, user_id=1, identity=identity(account))
        assert isinstance(first, Linked)
        await linker.unlink(engine, user_id=1, link_id=first.account.id)
        outcomes = await many(linker, engine, [user for n in range(2, 34) for user in (1, n)], account)
        live = await rows(
            engine, "SELECT user_id FROM connections WHERE deleted_at IS NULL AND account_id = :a", a=account
        )
        assert 1 == len(live)
        owners = {o.owner_id if isinstance(o, OwnershipConflict) else o.account.user_id for o in outcomes}
        assert {live[0][0]} == owners


async def test_links_racing_unlinks(database: Database, effort: Effort) -> None:
    """Linking and unlinking one account at once: every answer is true, and at most one row is live."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(first, Linked)
    for _ in effort.rounds(4, full=20):
        links = [linker.link(engine, user_id=1, identity=identity()) for _ in range(12)]
        unlinks = [linker.unlink(engine, user_id=1, link_id=first.account.id) for _ in range(4)]
        outcomes = await asyncio.gather(
            *(call for four in zip(*[iter(links)] * 3, unlinks, strict=True) for call in four)
        )
        assert {first.account.id} == {outcome.account.id for outcome in outcomes}
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM connections")


async def test_sessions_racing_in_transactions_of_their_own(database: Database, effort: Effort) -> None:
    """Callers with transactions of their own race alike: one creates, the rest wait for that one and update."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()

    async def one(user: int, account: str) -> Any:
        async with AsyncSession(engine) as session, session.begin():
            return await linker.link(session, user_id=user, identity=identity(account))

    for round_ in effort.rounds(3, full=20):
        outcomes = await asyncio.gather(*(one(1, f"self-{round_}") for _ in range(24)))
        assert {Change.CREATED: 1, Change.UPDATED: 23} == changes(list(outcomes))
        outcomes = await asyncio.gather(*(one(user, f"all-{round_}") for user in range(24)))
        assert 1 == sum(isinstance(outcome, Linked) for outcome in outcomes)


@pytest.mark.stress
async def test_a_thousand_users_one_identity(database: Database) -> None:
    """F27: a thousand users at once on one identity: one owner, 999 conflicts that name that owner."""
    engine = a_real_pool(database)
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    outcomes = await many(tables.linker(), engine, list(range(1, 1001)), "sub-1")
    owners = {o.owner_id if isinstance(o, OwnershipConflict) else o.account.user_id for o in outcomes}
    assert 1 == len(owners)
    assert 999 == sum(isinstance(outcome, OwnershipConflict) for outcome in outcomes)
