"""A transfer token of one tenant is worth nothing with another, however alike their rows are."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    AccountMapping,
    OwnershipConflict,
    TokenSuperseded,
    Transferred,
    transfer_ledger,
)
from tests.support.databases import create, run_sql
from tests.support.models import EXCLUSIVE, SECRETS, identity


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
@pytest.mark.parametrize("counts", ["version", "ledger"])
@pytest.mark.parametrize("session", [True, False])
async def test_a_token_is_good_for_its_own_tenant_alone(engine: AsyncEngine, counts: str, session: bool) -> None:
    """The tenants' rows have one id, owner, account and version, as whoever runs one tenant can bring about."""
    metadata = sa.MetaData()
    links = sa.Table(
        "links",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer),
        sa.Column("provider", sa.Text),
        sa.Column("account_id", sa.Text),
        *([sa.Column("version", sa.Integer)] if counts == "version" else []),
        sa.UniqueConstraint("provider", "account_id"),
        schema="tenant",
    )
    ledger = transfer_ledger(metadata) if counts == "ledger" else None
    linker = AccountLinker(AccountMapping(links, policy=EXCLUSIVE), secrets=SECRETS, ledger=ledger)
    await run_sql(engine, "DROP SCHEMA IF EXISTS a, b CASCADE", "CREATE SCHEMA a", "CREATE SCHEMA b")
    tokens = {}
    tenants = {name: engine.execution_options(schema_translate_map={"tenant": name}) for name in ("a", "b")}
    for name, tenant in tenants.items():
        await create(tenant, metadata)
        await linker.link(tenant, user_id=1, identity=identity())
        if counts == "version":
            await run_sql(engine, f"UPDATE {name}.links SET version = 1")
        conflict = await linker.link(tenant, user_id=2, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        tokens[name] = str(conflict.transfer_token)

    async with AsyncSession(tenants["b"]) as theirs:
        bind = theirs if session else tenants["b"]
        with pytest.raises(TokenSuperseded):
            await linker.transfer(bind, tokens["a"], user_id=2)
        assert [1] == [each.user_id for each in await linker.accounts(bind, user_id=1)]
        assert isinstance(await linker.transfer(bind, tokens["b"], user_id=2), Transferred)
