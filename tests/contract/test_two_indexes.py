"""F14: a table with a per-user and a global unique index: a user in a race with their own calls has no conflict."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from accountlink import AccountLinker, AccountMapping, Change, Linked, OwnershipConflict
from tests.support.databases import Database, create, rows, run_sql
from tests.support.effort import Effort
from tests.support.models import EXCLUSIVE, identity, tokens

TASKS = 64
PER_USER = "CREATE UNIQUE INDEX per_user ON cloud_provider_accounts (user_id, provider, provider_account_id)"
GLOBAL = "CREATE UNIQUE INDEX global ON cloud_provider_accounts (provider, provider_account_id)"
ORDERS = {"per user first": (PER_USER, GLOBAL), "global first": (GLOBAL, PER_USER)}


def cloud_accounts() -> tuple[sa.MetaData, AccountLinker[Any, Any]]:
    metadata = sa.MetaData()
    table = sa.Table(
        "cloud_provider_accounts",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("provider_account_id", sa.Text, nullable=False),
        sa.Column("account_email", sa.Text),
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("scopes", sa.Text),
    )
    c = table.c
    mapping: AccountMapping[Any, Any] = AccountMapping(
        table, policy=EXCLUSIVE, account_id=c.provider_account_id, email=c.account_email
    )
    return metadata, AccountLinker(mapping)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
async def test_a_user_racing_themselves_under_two_indexes(
    database: Database, order: tuple[str, str], effort: Effort
) -> None:
    """Rounds of 64 tasks: no false conflict, no deadlock surfaces, one live row, created once."""
    engine = database.engine(pool_size=32 if database.is_postgresql else 4, max_overflow=0)
    metadata, linker = cloud_accounts()
    await create(engine, metadata)
    await run_sql(engine, *order)
    rounds = effort.rounds(4, full=200)
    for round_ in rounds:
        account = identity(f"sub-{round_}")
        outcomes = await asyncio.gather(
            *(linker.link(engine, user_id=1, identity=account, credentials=tokens()) for _ in range(TASKS))
        )
        changes = Counter(o.change if isinstance(o, Linked) else type(o) for o in outcomes)
        assert {Change.CREATED: 1, Change.UPDATED: TASKS - 1} == changes
    assert [(len(rounds),)] == await rows(engine, "SELECT count(*) FROM cloud_provider_accounts")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
async def test_users_racing_under_two_indexes(database: Database, order: tuple[str, str], effort: Effort) -> None:
    """Two users of 32 tasks each on one account: one owner, whom every conflict names."""
    engine = database.engine(pool_size=32 if database.is_postgresql else 4, max_overflow=0)
    metadata, linker = cloud_accounts()
    await create(engine, metadata)
    await run_sql(engine, *order)
    for round_ in effort.rounds(3, full=20):
        account = identity(f"sub-{round_}")
        outcomes = await asyncio.gather(
            *(linker.link(engine, user_id=n % 2, identity=account, credentials=tokens()) for n in range(TASKS))
        )
        owners = {o.owner_id if isinstance(o, OwnershipConflict) else o.account.user_id for o in outcomes}
        assert 1 == len(owners)
        assert 1 == sum(isinstance(o, Linked) and o.change is Change.CREATED for o in outcomes)
