"""The doctor on tables that the library makes: nothing is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase

from accountlink import ShareGrants, diagnose, grants_table, link_outbox, transfer_ledger
from tests.support.databases import create
from tests.support.mapped import TABLES
from tests.support.models import POLICIES, USER_TYPES, make_tables


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("user_type", USER_TYPES, ids=lambda kind: kind.__name__)
async def test_the_mixins_tables_are_clean(engine: AsyncEngine, policy: str, user_type: type) -> None:
    """Whatever the policy and the type of users: the keys that the mixin brings are the right ones."""
    tables = make_tables(POLICIES[policy], user_type=user_type)
    link_outbox(tables.metadata)
    transfer_ledger(tables.metadata)
    await create(engine, tables.metadata)
    assert [] == await diagnose(engine, tables.linker())


@pytest.mark.parametrize("one_active", [False, True], ids=["several", "one active"])
async def test_the_table_of_grants_is_clean(engine: AsyncEngine, one_active: bool) -> None:
    """The library's own table of grants keeps what it promises, in the database's own terms."""

    class Base(DeclarativeBase):
        pass

    table = grants_table(Base.metadata, user_id=sa.Uuid(), one_active_per_pair=one_active)
    grants = ShareGrants(table)
    await create(engine, Base.metadata)
    assert [] == await diagnose(engine, grants)


@pytest.mark.parametrize("name", TABLES)
async def test_what_the_examples_are_made_of_is_told_apart(kind: str, engine: AsyncEngine, name: str) -> None:
    """Tables of an application's own: clean, or with the one finding that their full or missing keys deserve."""
    links = TABLES[name](kind)
    schemas = {links.schema} - {None}
    if schemas and kind == "sqlite":
        engine = engine.execution_options(schema_translate_map={links.schema: None})
    elif schemas:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {links.schema}")
    await create(engine, links.metadata)
    expected: dict[str, set[Any]] = {"cloud": {"key-counts-deleted"}}
    found = {finding.rule for finding in await diagnose(engine, links.mapping)}
    assert expected.get(name, set()) == found - {"narrow-column"}
