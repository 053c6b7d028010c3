"""Tenants with a schema each, by ``schema_translate_map``, can share a ledger and an outbox without meeting there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    AccountMapping,
    AlreadyOwner,
    Linked,
    OwnershipConflict,
    ShareGrants,
    TokenSuperseded,
    Transferred,
    grants_table,
    link_outbox,
    transfer_ledger,
)
from tests.support.databases import create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, SECRETS, identity

pytestmark = pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class House:
    """Links and grants in a schema per tenant; one ledger and one outbox beside them."""

    linker: AccountLinker[Any, Any]
    shares: ShareGrants
    engine: AsyncEngine

    @classmethod
    async def built(cls, engine: AsyncEngine, *, soft: bool = True) -> House:
        metadata = sa.MetaData()
        moment = sa.DateTime(timezone=True)
        links = sa.Table(
            "links",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("user_id", sa.Integer),
            sa.Column("provider", sa.Text),
            sa.Column("account_id", sa.Text),
            *([sa.Column("deleted_at", moment)] if soft else []),
            schema="tenant",
        )
        live = links.c.deleted_at.is_(None) if soft else None
        sa.Index("one_owner", links.c.provider, links.c.account_id, unique=True, postgresql_where=live)
        ledger, outbox = transfer_ledger(metadata), link_outbox(metadata)
        grants = grants_table(metadata, user_id=sa.Integer(), link_id=sa.Integer(), schema="tenant")
        mapping = AccountMapping(links, policy=EXCLUSIVE_SOFT if soft else EXCLUSIVE)
        linker = AccountLinker(mapping, secrets=SECRETS, ledger=ledger, outbox=outbox)
        house = cls(linker, ShareGrants(grants, accounts=linker, outbox=outbox), engine)
        await run_sql(engine, "DROP SCHEMA IF EXISTS a, b, tenant CASCADE", "CREATE SCHEMA a", "CREATE SCHEMA b")
        for name in ("a", "b"):
            await create(house.of(name), metadata)
        return house

    def of(self, name: str) -> AsyncEngine:
        """The engine of one tenant."""
        return self.engine.execution_options(schema_translate_map={"tenant": name})

    async def read(self, name: str) -> list[tuple[str, object]]:
        """Read all events of one tenant's links and grants."""
        found: list[tuple[str, object]] = []
        for deliveries in (self.linker.events(self.of(name)), self.shares.events(self.of(name))):
            events: AsyncIterator[Any] = deliveries
            async with aclosing(deliveries):
                async for delivery in events:
                    found.append((delivery.event.type.value, delivery.event.user_id))
                    await delivery.acknowledge()
        return found

    async def offered(self, bind: Any) -> str:
        """User 1 links an account, and user 2 comes to the conflict."""
        first = await self.linker.link(bind, user_id=1, identity=identity())
        assert isinstance(first, Linked)
        assert 1 == first.account.id, "the same id with each tenant"
        conflict = await self.linker.link(bind, user_id=2, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        return str(conflict.transfer_token)


@pytest.mark.parametrize("soft", [True, False])
async def test_a_tenants_removal_ends_no_token_of_another(engine: AsyncEngine, soft: bool) -> None:
    """The epochs of two links with one id are two: what one tenant does to theirs, the other's token outlives."""
    house = await House.built(engine, soft=soft)
    a, b = house.of("a"), house.of("b")
    token = await house.offered(a)
    await house.offered(b)
    await house.linker.unlink(b, user_id=1, link_id=1)
    assert isinstance(await house.linker.transfer(a, token, user_id=2), Transferred)
    assert isinstance(await house.linker.transfer(a, token, user_id=2), AlreadyOwner)
    names = await rows(engine, "SELECT table_name, epoch FROM accountlink_transfer_ledger ORDER BY 1")
    assert [("a.links", 1), ("b.links", 1)] == names


async def test_a_tenants_own_removal_ends_their_token(engine: AsyncEngine) -> None:
    """The epoch that a token was issued in is over once the tenant's own link was unlinked and restored."""
    house = await House.built(engine)
    a = house.of("a")
    token = await house.offered(a)
    await house.linker.unlink(a, user_id=1, link_id=1)
    await house.linker.link(a, user_id=1, identity=identity())
    with pytest.raises(TokenSuperseded):
        await house.linker.transfer(a, token, user_id=2)


async def test_a_grant_ends_with_the_link_of_its_own_tenant(engine: AsyncEngine) -> None:
    """A grant about a link is over when that link was transferred, not when another tenant's with the same id was."""
    house = await House.built(engine)
    tokens = {}
    for name in ("a", "b"):
        tokens[name] = await house.offered(house.of(name))
        grant = await house.shares.issue(house.of(name), grantor_id=1, link_id=1, expires_in=HOUR)
        await house.shares.redeem(house.of(name), grant.token, grantee_id=3)
    await house.linker.transfer(house.of("b"), tokens["b"], user_id=2)
    assert [1] == [grant.link_id for grant in await house.shares.active(house.of("a"), grantee_id=3)]
    assert [] == list(await house.shares.active(house.of("b"), grantee_id=3))


async def test_each_tenant_reads_their_own_events(engine: AsyncEngine) -> None:
    """Whose events an engine reads is said by its schema_translate_map, for links and for grants."""
    house = await House.built(engine)
    await house.linker.link(house.of("a"), user_id=1, identity=identity())
    await house.linker.link(house.of("b"), user_id=2, identity=identity())
    await house.shares.issue(house.of("a"), grantor_id=1, link_id=1, expires_in=HOUR)
    assert [("linked", 2)] == await house.read("b")
    assert [("linked", 1), ("grant_issued", 1)] == await house.read("a")


async def test_a_callers_session_and_connection_say_the_tenant(engine: AsyncEngine) -> None:
    """A connection that the caller has mapped to a schema writes that tenant's events and epochs."""
    house = await House.built(engine)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(AsyncSession(house.of("a")))
        connection: AsyncConnection = await stack.enter_async_context(engine.connect())
        _ = await connection.execution_options(schema_translate_map={"tenant": "b"})
        await house.linker.link(session, user_id=1, identity=identity())
        await house.linker.link(connection, user_id=2, identity=identity())
        await session.commit()
        await connection.commit()
    assert [("linked", 1)] == await house.read("a")
    assert [("linked", 2)] == await house.read("b")


async def test_without_a_map_the_name_is_the_declared_one(engine: AsyncEngine) -> None:
    """An engine without translation stores the schema and name that the table was declared with."""
    house = await House.built(engine)
    await run_sql(engine, "ALTER SCHEMA a RENAME TO tenant")
    await house.linker.link(engine, user_id=1, identity=identity())
    assert [("tenant.links",)] == await rows(engine, "SELECT table_name FROM accountlink_events")


async def test_a_second_tenant_compiles_no_statement(engine: AsyncEngine) -> None:
    """The tenant's name is a parameter: what one tenant's calls have compiled serves all others."""
    house = await House.built(engine)
    for name in ("a", "b"):
        await house.offered(house.of(name))
    await house.read("a")
    hits: list[str] = []

    def listen(_: object, __: object, ___: object, ____: object, context: Any, _____: object) -> None:
        hits.append(context.cache_hit.name)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", listen)
    await house.read("b")
    assert {"CACHE_HIT"} == set(hits)
