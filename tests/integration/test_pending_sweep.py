"""Deleting pending credentials whose time is over takes none that were renewed in the meantime (PostgreSQL)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import OwnershipConflict
from tests.support.databases import Database
from tests.support.gate import behind
from tests.support.models import identity, tokens
from tests.support.vaulted import Vaulted

pytestmark = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
RENEW = "UPDATE accountlink_pending_credentials SET kept_until = timestamptz '2027-01-01 00:00:00Z' WHERE user_id IN "


async def conflict(vaulted: Vaulted, bind: Any, user_id: int) -> OwnershipConflict:
    outcome = await vaulted.linker.link(bind, user_id=user_id, identity=identity(), credentials=tokens())
    assert isinstance(outcome, OwnershipConflict)
    return outcome


async def over(engine: AsyncEngine, *claimants: int) -> Vaulted:
    """A link, and the tokens of claimants, whose time is over."""
    vaulted = await Vaulted().create(engine)
    await vaulted.linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    for user_id in claimants:
        await conflict(vaulted, engine, user_id)
    vaulted.clock.now += timedelta(minutes=12)
    return vaulted


async def users(vaulted: Vaulted, engine: AsyncEngine) -> list[str]:
    return sorted(row.user_id for row in await vaulted.kept(engine))


async def test_a_claimants_own_tokens_are_renewed_and_not_deleted(engine: AsyncEngine) -> None:
    """The statement that writes a row whose time was over does not take it for one that it has to delete."""
    vaulted = await over(engine, 2, 3)
    token = (await conflict(vaulted, engine, 2)).transfer_token
    assert ["2"] == await users(vaulted, engine)
    outcome: Any = await vaulted.linker.transfer(engine, str(token), user_id=2)
    assert outcome.has_credentials


async def test_tokens_that_another_call_has_just_renewed_are_not_deleted(
    database: Database, engine: AsyncEngine
) -> None:
    """A row that was over when the statement began, and was renewed before it came to it, stays."""
    vaulted = await over(engine, 2, 3, 4)
    calling = database.engine()
    ended = await behind(engine, f"{RENEW} ('2', '3')", [conflict(vaulted, calling, 2)], waiting=1, commit=True)
    assert [OwnershipConflict] == [type(each) for each in ended]
    assert ["2", "3"] == await users(vaulted, engine)


async def test_a_locked_row_is_neither_deleted_nor_waited_for(database: Database, engine: AsyncEngine) -> None:
    """A conflict answers while another transaction renews a row whose time is over, and that row stays."""
    vaulted = await over(engine, 2, 3)
    async with engine.connect() as other:
        await other.exec_driver_sql(f"{RENEW} ('3')")
        await conflict(vaulted, database.engine(), 2)
        await other.commit()
    assert ["2", "3"] == await users(vaulted, engine)


async def test_a_call_deletes_a_hundred_rows_at_most(engine: AsyncEngine) -> None:
    """No call takes long for what many others have left; the next ones delete the rest."""
    vaulted = await over(engine, *range(2, 203))
    left = []
    for user_id in (1_001, 1_002, 1_003):
        await conflict(vaulted, engine, user_id)
        left.append(len(await vaulted.kept(engine)))
    assert [102, 3, 3] == left
