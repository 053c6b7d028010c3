"""A table that was never made: the first call says which, and what makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    ConfigurationError,
    LinkPolicy,
    ShareGrants,
    grants_table,
    link_outbox,
    transfer_ledger,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity, make_tables, tokens

CALLS: dict[str, Callable[[AccountLinker[Any, Any], Any], Awaitable[Any]]] = {
    "link": lambda linker, bind: linker.link(bind, user_id=1, identity=identity(), credentials=tokens()),
    "unlink": lambda linker, bind: linker.unlink(bind, user_id=1, link_id=1),
    "accounts": lambda linker, bind: linker.accounts(bind, user_id=1),
    "unlinked": lambda linker, bind: linker.unlinked(bind, user_id=1),
    "account": lambda linker, bind: linker.account(bind, user_id=1, link_id=1),
    "find_owner": lambda linker, bind: linker.find_owner(bind, provider="acme", account_id="sub-1"),
}


def plain_links() -> tuple[sa.MetaData, AccountMapping[Any, Any]]:
    """A table without a version, so that transfers need a ledger."""
    metadata = sa.MetaData()
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    table = sa.Table(
        "links",
        metadata,
        sa.Column("id", key, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
    )
    return metadata, AccountMapping(table, policy=LinkPolicy())


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_first_call_names_the_missing_table(
    engine: AsyncEngine, call: Callable[[AccountLinker[Any, Any], Any], Awaitable[Any]], how: str
) -> None:
    """The error names the table and what makes it; the caller's transaction goes on."""
    tables = make_tables(EXCLUSIVE_SOFT)
    linker = tables.linker()
    await run_sql(engine, "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    async with bound(engine, how) as bind:
        with pytest.raises(ConfigurationError) as caught:
            await call(linker, bind)
        if how in ("connection", "session"):
            await bind.execute(sa.text("INSERT INTO notes (id, text) VALUES (1, 'kept')"))
    assert "'connections'" in str(caught.value)
    assert "create_all" in str(caught.value)
    assert "Alembic" in str(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, DBAPIError)
    assert (None, True) == (cause.params, cause.hide_parameters)
    assert "access-1" not in f"{cause} {cause.args} {cause.orig!r}"
    assert ([(1, "kept")] if how in ("connection", "session") else []) == await rows(
        engine, "SELECT id, text FROM notes"
    )


async def test_each_table_of_the_librarys_own_is_named(engine: AsyncEngine) -> None:
    """An outbox, a ledger and a table of grants that were forgotten are named as the table of links is."""
    metadata, mapping = plain_links()
    ledger, outbox = transfer_ledger(metadata), link_outbox(metadata)
    await create_only(engine, mapping.table)
    with pytest.raises(ConfigurationError, match="accountlink_events"):
        await AccountLinker(mapping, outbox=outbox).link(engine, user_id=1, identity=identity())
    linker = AccountLinker(mapping, ledger=ledger, secrets=SECRETS)
    with pytest.raises(ConfigurationError, match="accountlink_transfer_ledger"):
        await linker.link(engine, user_id=1, identity=identity())
    shares = ShareGrants(grants_table(metadata))
    with pytest.raises(ConfigurationError, match="accountlink_grants"):
        await shares.issue(engine, grantor_id=1, expires_in=timedelta(hours=1))
    with pytest.raises(ConfigurationError, match="accountlink_events"):
        await anext(AccountLinker(mapping, outbox=outbox).events(engine))


async def create_only(engine: AsyncEngine, table: sa.Table) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(table.create)


async def test_a_table_that_a_trigger_misses_is_the_applications(database: Database) -> None:
    """A table that the application's own trigger does not find is SQLAlchemy's error, unchanged."""
    engine, tables = database.engine(), make_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    if database.is_postgresql:
        await run_sql(
            engine,
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO nowhere VALUES (1); RETURN NEW; END'",
            "CREATE TRIGGER t BEFORE INSERT ON connections FOR EACH ROW EXECUTE FUNCTION f()",
        )
    else:
        await run_sql(engine, "CREATE TRIGGER t AFTER INSERT ON connections BEGIN INSERT INTO nowhere VALUES (1); END")
    with pytest.raises(DBAPIError, match="nowhere"):
        await tables.linker().link(engine, user_id=1, identity=identity())


async def test_a_translated_schema_is_named(database: Database, kind: str) -> None:
    """Where a tenant's schema has no table yet, the error names it with that schema."""
    # What is compiled for a map without None cannot serve one with it, so this engine shares nothing with other tests.
    engine = database.engine(pool_pre_ping=False)
    metadata, mapping = plain_links()
    await create(engine, metadata)
    schema = "temp" if kind == "sqlite" else "tenant"
    if kind != "sqlite":
        await run_sql(engine, "DROP SCHEMA IF EXISTS tenant CASCADE", "CREATE SCHEMA tenant")
    tenant = engine.execution_options(schema_translate_map={None: schema})
    with pytest.raises(ConfigurationError, match=f"{schema}.{mapping.table.name}"):
        await AccountLinker(mapping).accounts(tenant, user_id=1)
