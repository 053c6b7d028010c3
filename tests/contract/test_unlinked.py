"""Removed links that would be restored if the user linked the account again."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    Change,
    ConfigurationError,
    InvalidIdentity,
    Key,
    Linked,
    LinkPolicy,
    Ownership,
    Removal,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import create, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, POLICIES, Clock, identity, shared_tables, tokens

SOFT = [policy for name, policy in POLICIES.items() if name.endswith("-soft")]


async def add(linker: AccountLinker[Any, Any], engine: AsyncEngine, account: str, user: int = 1, **more: Any) -> Any:
    outcome = await linker.link(engine, user_id=user, identity=identity(account, **more), credentials=tokens())
    assert isinstance(outcome, Linked)
    return outcome


async def removed(
    linker: AccountLinker[Any, Any], engine: AsyncEngine, account: str, reason: str | None = None, **more: Any
) -> Any:
    link_id = (await add(linker, engine, account, **more)).account.id
    await linker.unlink(engine, user_id=more.get("user", 1), link_id=link_id, reason=reason)
    return link_id


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("policy", SOFT, ids=lambda policy: f"{policy.key.value}-{policy.ownership.value}")
async def test_the_removed_links_come_newest_first(engine: AsyncEngine, policy: LinkPolicy, how: str) -> None:
    """Only the user's own, only dead ones, of one provider if it is named; the last one removed comes first."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    first = await removed(linker, engine, "sub-1")
    other = await removed(linker, engine, "sub-2", provider="other")
    last = await removed(linker, engine, "sub-3")
    await add(linker, engine, "sub-4")
    await removed(linker, engine, "sub-5", user=2)
    async with bound(engine, how) as bind:
        found = await linker.unlinked(bind, user_id=1)
        of_one = await linker.unlinked(bind, user_id=1, provider="acme")
    assert [last, other, first] == [account.id for account in found]
    assert [last, first] == [account.id for account in of_one]
    assert all(account.deleted_at is not None and account.user_id == 1 for account in found)


@pytest.mark.parametrize("policy", SOFT, ids=lambda policy: f"{policy.key.value}-{policy.ownership.value}")
async def test_what_is_listed_is_what_a_link_restores(engine: AsyncEngine, policy: LinkPolicy) -> None:
    """Of several dead rows of one account the one is listed that linking restores; then none is left."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    keys = ("email", "email_key") if policy.key is Key.EMAIL else ("email",)
    insert = f"INSERT INTO connections (id, user_id, provider, account_id, {', '.join(keys)}, score, deleted_at) VALUES"
    rest = f"1, 'acme', 'sub-1', {', '.join(['$sub-1@example.com$'] * len(keys))}, 7".replace("$", "'")
    for number, month in ((11, 1), (12, 3), (13, 2)):
        await run_sql(engine, f"{insert} ({number}, {rest}, '2026-0{month}-01 00:00:00')")
    assert [12] == [account.id for account in await linker.unlinked(engine, user_id=1)]
    again = await add(linker, engine, "sub-1")
    assert (Change.RESTORED, 12) == (again.change, again.account.id)
    assert [] == await linker.unlinked(engine, user_id=1)


async def test_a_blocked_link_is_not_listed(engine: AsyncEngine) -> None:
    """What was removed for one of the policy's blocked reasons would not come back, and is left out."""
    tables = shared_tables(LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"}))
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    kept = await removed(linker, engine, "sub-1", reason="asked to")
    await removed(linker, engine, "sub-2", reason="fraud")
    assert [kept] == [account.id for account in await linker.unlinked(engine, user_id=1)]


async def test_another_owner_is_not_told_of(engine: AsyncEngine) -> None:
    """That another user has the account now does not show: the list is the same, and a link answers the conflict."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    kept = await removed(linker, engine, "sub-1")
    before = await linker.unlinked(engine, user_id=1)
    await add(linker, engine, "sub-1", user=2)
    assert before == await linker.unlinked(engine, user_id=1)
    assert [kept] == [account.id for account in before]


async def test_accounts_of_one_address_are_told_apart(engine: AsyncEngine) -> None:
    """Under Key.EMAIL dead rows of one address with other account ids are each restored by their own account."""
    tables = shared_tables(LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT))
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    one = await removed(linker, engine, "sub-1", email="ann@example.com")
    two = await removed(linker, engine, "sub-2", email="ann@example.com")
    assert [two, one] == [account.id for account in await linker.unlinked(engine, user_id=1)]
    await add(linker, engine, "sub-1", email="ann@example.com")
    assert [] == await linker.unlinked(engine, user_id=1)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_table_that_deletes_lists_nothing(engine: AsyncEngine) -> None:
    """Under Removal.DELETE there is nothing to list, and the call says so before any SQL."""
    tables = shared_tables(EXCLUSIVE)
    with pytest.raises(ConfigurationError, match=r"Removal\.SOFT"):
        await tables.linker().unlinked(engine, user_id=1)
    soft = shared_tables(EXCLUSIVE_SOFT).linker()
    with pytest.raises(InvalidIdentity):
        await soft.unlinked(engine, user_id=1, provider="ACME")
    with pytest.raises(ConfigurationError, match="user_id"):
        await soft.unlinked(engine, user_id="1")
