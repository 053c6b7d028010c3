"""Unlinking and reading: idempotent, and only ever the user's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    AccountNotFound,
    AmbiguousAccount,
    ConfigurationError,
    InvalidIdentity,
    LastAccount,
    Linked,
    LinkPolicy,
    Unlinked,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER, POLICIES, Clock, identity, shared_tables, tokens

pytestmark = pytest.mark.each_driver


async def add(linker: AccountLinker[Any, Any], engine: AsyncEngine, user: int, account: str, **more: Any) -> Any:
    outcome = await linker.link(engine, user_id=user, identity=identity(account, **more), credentials=tokens())
    assert isinstance(outcome, Linked)
    return outcome.account.id


@pytest.mark.parametrize("how", BINDS)
async def test_unlinking_twice_keeps_the_first_timestamp(engine: AsyncEngine, how: str) -> None:
    """A second unlink answers the same and writes nothing: the first timestamp and reason stay."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    link = await add(linker, engine, 1, "sub-1")
    async with bound(engine, how) as bind:
        first = await linker.unlink(bind, user_id=1, link_id=link, reason="first")
    stored = await rows(engine, "SELECT * FROM connections")
    async with bound(engine, how) as bind:
        second = await linker.unlink(bind, user_id=1, link_id=link, reason="second")
    assert first == second
    assert stored == await rows(engine, "SELECT * FROM connections")
    assert first.account.deleted_at is not None


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_only_the_users_own_link_is_unlinked(engine: AsyncEngine, policy: LinkPolicy, how: str) -> None:
    """A31: another user's link id and one that never was get one answer, and nothing is written."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    link = await add(linker, engine, 1, "sub-1")
    before = await rows(engine, "SELECT * FROM connections")
    messages = set()
    async with bound(engine, how) as bind:
        for link_id in (link, 999):
            with pytest.raises(AccountNotFound) as caught:
                await linker.unlink(bind, user_id=2, link_id=link_id)
            messages.add((str(caught.value), repr(vars(caught.value))))
    assert 1 == len(messages)
    assert before == await rows(engine, "SELECT * FROM connections")
    async with bound(engine, how) as bind:
        assert isinstance(await linker.unlink(bind, user_id=1, link_id=link), Unlinked)
    assert [] == list(await linker.accounts(engine, user_id=1))


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_parallel_unlinks_all_tell_the_truth(engine: AsyncEngine, policy: LinkPolicy) -> None:
    """Sixteen concurrent unlinks have one answer under SOFT; under DELETE one succeeds, the others find no link."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    link = await add(linker, engine, 1, "sub-1")
    results = await asyncio.gather(
        *(linker.unlink(engine, user_id=1, link_id=link) for _ in range(16)), return_exceptions=True
    )
    kinds = sorted({type(result).__name__ for result in results})
    if policy is EXCLUSIVE_SOFT:
        assert ["Unlinked"] == kinds
        assert 1 == len({repr(result) for result in results})
    else:
        assert ["AccountNotFound", "Unlinked"] == kinds
        assert 1 == sum(isinstance(result, Unlinked) for result in results)


async def test_a_reason_needs_a_column(engine: AsyncEngine) -> None:
    """Nothing is dropped in silence: a reason without a column for it is a configuration error."""
    with pytest.raises(ConfigurationError, match="reason"):
        await shared_tables(EXCLUSIVE).linker().unlink(engine, user_id=1, link_id=1, reason="x")


@pytest.mark.parametrize("how", BINDS)
async def test_accounts_lists_live_links_oldest_first(engine: AsyncEngine, how: str) -> None:
    """Only live links of this user are listed, oldest first, of one provider where one is named."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    a, b, c = [await add(linker, engine, 1, account) for account in ("a", "b", "c")]
    other = await add(linker, engine, 1, "d", provider="other")
    await add(linker, engine, 2, "e")
    await linker.unlink(engine, user_id=1, link_id=b)
    async with bound(engine, how) as bind:
        assert [a, c, other] == [account.id for account in await linker.accounts(bind, user_id=1)]
        assert [other] == [account.id for account in await linker.accounts(bind, user_id=1, provider="other")]
        assert [] == list(await linker.accounts(bind, user_id=3))
    with pytest.raises(InvalidIdentity):
        await linker.accounts(engine, user_id=1, provider="Other")


async def test_account_returns_one_live_link(engine: AsyncEngine) -> None:
    """By id or by provider; several of one provider are ambiguous, dead and foreign ones not found."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    a, b = await add(linker, engine, 1, "a"), await add(linker, engine, 1, "b")
    other = await add(linker, engine, 1, "c", provider="other")
    assert a == (await linker.account(engine, user_id=1, link_id=a)).id
    assert other == (await linker.account(engine, user_id=1, provider="other")).id
    with pytest.raises(AmbiguousAccount) as caught:
        await linker.account(engine, user_id=1, provider="acme")
    assert ("acme", 2) == (caught.value.provider, caught.value.count)
    await linker.unlink(engine, user_id=1, link_id=b)
    assert a == (await linker.account(engine, user_id=1, provider="acme")).id
    for call in ({"user_id": 2, "link_id": a}, {"user_id": 1, "link_id": b}, {"user_id": 1, "provider": "none-such"}):
        with pytest.raises(AccountNotFound):
            await linker.account(engine, **call)
    with pytest.raises(ConfigurationError, match="link_id or a provider"):
        await linker.account(engine, user_id=1)
    with pytest.raises(ConfigurationError, match="id is str"):
        await linker.account(engine, user_id=1, link_id=str(a))


@pytest.mark.parametrize("how", BINDS)
async def test_find_owner_signs_in(engine: AsyncEngine, how: str) -> None:
    """The live owner of an exclusive account is found, or None; PER_USER is refused, because owners can be several."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    link = await add(linker, engine, 1, "sub-1")
    async with bound(engine, how) as bind:
        owner = await linker.find_owner(bind, provider="acme", account_id="sub-1")
        assert owner is not None
        assert (1, link) == (owner.user_id, owner.id)
        assert await linker.find_owner(bind, provider="acme", account_id="sub-2") is None
        assert await linker.find_owner(bind, provider="other", account_id="sub-1") is None
    await linker.unlink(engine, user_id=1, link_id=link)
    assert await linker.find_owner(engine, provider="acme", account_id="sub-1") is None
    with pytest.raises(ConfigurationError, match="EXCLUSIVE"):
        await shared_tables(PER_USER).linker().find_owner(engine, provider="acme", account_id="sub-1")


@pytest.mark.parametrize("how", ["engine", "connection", "session"])
async def test_the_last_account_is_guarded(engine: AsyncEngine, how: str) -> None:
    """A39: the guard is asked before the last live link goes, on the transaction's own connection."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    asked: list[tuple[int, int]] = []
    has_password = False

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        live = sa.select(sa.func.count()).select_from(tables.Connection).where(tables.Connection.deleted_at.is_(None))
        asked.append((user_id, (await connection.execute(live)).scalar_one()))
        return has_password

    linker = tables.linker(guard_last=guard)
    a, b = await add(linker, engine, 1, "a"), await add(linker, engine, 1, "b")
    async with bound(engine, how) as bind:
        await linker.unlink(bind, user_id=1, link_id=a)
    assert [] == asked
    async with bound(engine, how) as bind:
        with pytest.raises(LastAccount):
            await linker.unlink(bind, user_id=1, link_id=b)
        await linker.unlink(bind, user_id=1, link_id=a)
    assert [(1, 1)] == asked
    assert [b] == [account.id for account in await linker.accounts(engine, user_id=1)]
    has_password = True
    async with bound(engine, how) as bind:
        await linker.unlink(bind, user_id=1, link_id=b)
    assert [] == list(await linker.accounts(engine, user_id=1))


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_two_last_accounts_cannot_go_at_once(engine: AsyncEngine, policy: LinkPolicy) -> None:
    """A39: of two parallel unlinks of a user's last two links one succeeds, and the other is the last one."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        await asyncio.sleep(0.01)
        return False

    linker = tables.linker(guard_last=guard)
    for round_ in range(10):
        links = [await add(linker, engine, round_, f"{round_}-{name}") for name in "ab"]
        results = await asyncio.gather(
            *(linker.unlink(engine, user_id=round_, link_id=link) for link in links), return_exceptions=True
        )
        assert ["LastAccount", "Unlinked"] == sorted(type(result).__name__ for result in results)
        assert 1 == len(await linker.accounts(engine, user_id=round_))


async def test_a_guards_own_error_leaves_the_callers_transaction_usable(engine: AsyncEngine) -> None:
    """The caller gets the guard's error unchanged; the savepoint is rolled back, and the transaction continues."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        raise LookupError("the guard's own")

    linker = tables.linker(guard_last=guard)
    link = await add(linker, engine, 1, "a")
    async with AsyncSession(engine) as session:
        session.add(tables.Note(text="kept"))
        with pytest.raises(LookupError):
            await linker.unlink(session, user_id=1, link_id=link)
        await session.commit()
    assert [("kept",)] == await rows(engine, "SELECT text FROM notes")
    assert [link] == [account.id for account in await linker.accounts(engine, user_id=1)]
