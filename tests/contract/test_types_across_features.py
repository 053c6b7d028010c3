"""Columns whose type differs from database to database, in every feature that meets them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    Change,
    ConfigurationError,
    Linked,
    OwnershipConflict,
    Transferred,
    link_outbox,
    transfer_ledger,
)
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, Clock, identity

MOMENT = sa.DateTime(timezone=True)


class OfOneDatabase(sa.types.TypeDecorator[str]):
    """A type that refuses every database but one."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        if dialect.name != self.name:
            raise NotImplementedError(f"made for {self.name}")
        return dialect.type_descriptor(sa.Text())


def padded(length: int) -> Any:
    """CHAR(n) on PostgreSQL alone."""
    return sa.String(length).with_variant(sa.CHAR(length), "postgresql")


def linker_of(types: Mapping[str, Any], *more: sa.Column[Any]) -> tuple[AccountLinker[Any, Any], sa.Table]:
    """A linker of a table with a ledger and an outbox; columns that are not named have an ordinary type."""
    metadata = sa.MetaData()
    names = ("id", "user_id", "provider", "account_id", "email")
    columns = [sa.Column(name, types.get(name, sa.Text), primary_key=name == "id") for name in names]
    marks = [sa.Column(name, MOMENT) for name in ("created_at", "deleted_at")]
    table = sa.Table("links", metadata, *columns, *marks, *more)
    live = table.c.deleted_at.is_(None)
    key = (table.c.provider, table.c.account_id)
    sa.Index("one_owner", *key, unique=True, postgresql_where=live, sqlite_where=live)
    linker: AccountLinker[Any, Any] = AccountLinker(
        AccountMapping(table, policy=EXCLUSIVE_SOFT),
        secrets=SECRETS,
        ledger=transfer_ledger(metadata),
        outbox=link_outbox(metadata),
        clock=Clock(),
    )
    return linker, table


async def life(linker: AccountLinker[Any, Any], table: sa.Table, engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """Link, claim, transfer, remove and restore; then return of each event its type, its users, slug and link."""
    new = {table.c.id: "link-1"}
    made = await linker.link(engine, user_id="ann", identity=identity("sub-1"), values=new)
    assert isinstance(made, Linked)
    assert ("link-1", "acme", "sub-1") == (made.account.id.rstrip(" "), made.account.provider, made.account.account_id)
    claim = await linker.link(engine, user_id="bob", identity=identity("sub-1"))
    assert isinstance(claim, OwnershipConflict)
    assert claim.transfer_token is not None
    assert isinstance(await linker.transfer(engine, claim.transfer_token, user_id="bob"), Transferred)
    await linker.unlink(engine, user_id="bob", link_id="link-1")
    removed = await linker.unlinked(engine, user_id="bob", provider="acme")
    assert [("acme", "sub-1")] == [(account.provider, account.account_id) for account in removed]
    again = await linker.link(engine, user_id="bob", identity=identity("sub-1"))
    assert isinstance(again, Linked)
    assert again.change is Change.RESTORED
    events = [event async for batch in linker.batches(engine) for event in batch.events]
    assert {(again.account.id, "acme")} == {(event.link_id, event.provider) for event in events}
    return [(event.type.value, event.user_id, event.other_user_id) for event in events]


@pytest.mark.parametrize("role", ["id", "user_id", "provider", "account_id"])
async def test_a_type_made_for_one_database_serves_there(engine: AsyncEngine, role: str) -> None:
    """A type that refuses the other database is asked about its own alone."""
    linker, table = linker_of({role: OfOneDatabase(engine.dialect.name)})
    await create(engine, table.metadata)
    told = await life(linker, table, engine)
    assert ["linked", "conflict", "transferred", "unlinked", "restored"] == [kind for kind, _, _ in told]


async def test_a_text_that_is_padded_on_one_database_only(database: Database, engine: AsyncEngine) -> None:
    """A variant pads as a CHAR(n) does: slugs come back bare, and events name ids as rows have them."""
    types = {"id": padded(20), "user_id": padded(12), "provider": padded(12), "account_id": padded(60)}
    linker, table = linker_of(types)
    await create(engine, table.metadata)
    ann, bob = (name.ljust(12) if database.is_postgresql else name for name in ("ann", "bob"))
    expected = [
        ("linked", ann, None),
        ("conflict", bob, ann),
        ("transferred", bob, ann),
        ("unlinked", bob, None),
        ("restored", bob, None),
    ]
    assert expected == await life(linker, table, engine)


@pytest.mark.parametrize("role", ["email", "access_token"])
def test_a_padded_variant_keeps_no_text_that_comes_back(role: str) -> None:
    """It is refused where the declared CHAR(n) is: what came back would not be what was stored."""
    columns: list[sa.Column[Any]] = [
        sa.Column(name, sa.Text, primary_key=name == "id") for name in ("id", "user_id", "provider")
    ]
    columns += [sa.Column("account_id", sa.Text), sa.Column(role, padded(9000)), sa.Column("deleted_at", MOMENT)]
    table = sa.Table("links", sa.MetaData(), *columns)
    with pytest.raises(ConfigurationError, match=f"{role!r}.* its type is"):
        AccountMapping(table, policy=EXCLUSIVE_SOFT)


VALUES = {
    "pickled": (sa.PickleType(), {"a": {1, 2}}),
    "span": (sa.Interval(), timedelta(hours=1)),
    "longer on PostgreSQL": (sa.String(3).with_variant(sa.Text, "postgresql"), "a long text"),
    "text or JSON": (sa.JSON().with_variant(sa.Text, "postgresql"), "a text"),
    "number or text": (sa.Text().with_variant(sa.BigInteger, "sqlite").with_variant(sa.BigInteger, "postgresql"), 7),
}


@pytest.mark.parametrize(("kind_of_value", "value"), VALUES.values(), ids=VALUES)
async def test_a_value_that_the_database_takes_is_not_refused(
    engine: AsyncEngine, kind_of_value: Any, value: object
) -> None:
    """The check of an application's values knows a column's type as each database has it."""
    linker, table = linker_of({}, sa.Column("more", kind_of_value))
    await create(engine, table.metadata)
    await linker.link(engine, user_id="ann", identity=identity(), values={table.c.id: "1", table.c.more: value})
    async with engine.connect() as connection:
        assert value == (await connection.execute(sa.select(table.c.more))).scalar_one()


REFUSED = {
    "too long for a domain": (postgresql.DOMAIN("short", sa.String(3)).with_variant(sa.String(3), "sqlite"), "a text"),
    "too long for a variant": (sa.Text().with_variant(sa.String(3), "postgresql"), "a text"),
    "no span": (sa.Interval(), 3600),
    "no number": (sa.Text().with_variant(sa.BigInteger, "sqlite").with_variant(sa.BigInteger, "postgresql"), "7"),
}


@pytest.mark.parametrize(("kind_of_value", "value"), REFUSED.values(), ids=REFUSED)
async def test_a_value_that_no_database_takes_is_told_by_its_column(kind_of_value: Any, value: object) -> None:
    """Before any SQL: no engine is asked."""
    linker, table = linker_of({}, sa.Column("more", kind_of_value))
    with pytest.raises(ConfigurationError, match="'more' of 'links'"):
        await linker.link(
            None,  # type: ignore[arg-type]  # refused later than a value
            user_id="ann",
            identity=identity(),
            values={table.c.more: value},
        )


async def test_a_removed_link_without_a_key_is_not_listed(engine: AsyncEngine) -> None:
    """Linking again would make a new row: no link finds one from before the key was there."""
    linker, table = linker_of({})
    await create(engine, table.metadata)
    made = await linker.link(engine, user_id="ann", identity=identity(), values={table.c.id: "old"})
    assert isinstance(made, Linked)
    await linker.unlink(engine, user_id="ann", link_id="old")
    assert ["old"] == [account.id for account in await linker.unlinked(engine, user_id="ann")]
    await run_sql(engine, "UPDATE links SET account_id = NULL")
    assert [] == await linker.unlinked(engine, user_id="ann")
    again = await linker.link(engine, user_id="ann", identity=identity(), values={table.c.id: "new"})
    assert isinstance(again, Linked)
    assert again.change is Change.CREATED


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=False)
async def test_an_event_set_aside_is_told_with_its_tenant(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the schema in which the consumer's connection has the tables: whose event it is."""
    metadata = sa.MetaData(schema="tenant")
    columns: list[sa.Column[Any]] = [
        sa.Column(name, sa.Text, primary_key=name == "id") for name in ("id", "user_id", "provider")
    ]
    table = sa.Table("links", metadata, *columns, sa.Column("account_id", sa.Text), sa.Column("deleted_at", MOMENT))
    live = table.c.deleted_at.is_(None)
    sa.Index("one_owner", table.c.provider, table.c.account_id, unique=True, postgresql_where=live)
    linker: AccountLinker[Any, Any] = AccountLinker(
        AccountMapping(table, policy=EXCLUSIVE_SOFT), outbox=link_outbox(metadata)
    )
    await run_sql(engine, "DROP SCHEMA IF EXISTS acme_inc CASCADE", "CREATE SCHEMA acme_inc")
    tenant = engine.execution_options(schema_translate_map={"tenant": "acme_inc"})
    await create(tenant, metadata)
    await linker.link(tenant, user_id="ann", identity=identity(), values={table.c.id: "1"})
    await run_sql(engine, "UPDATE acme_inc.accountlink_events SET provider = NULL")
    with caplog.at_level(logging.WARNING, logger="accountlink.outbox"):
        assert [] == [batch async for batch in linker.batches(tenant)]
    assert "of acme_inc.links cannot be read" in caplog.text
    assert "it stays in acme_inc.accountlink_events" in caplog.text
    assert [(True,)] == await rows(engine, "SELECT set_aside FROM acme_inc.accountlink_events")
