"""The examples' own tables hold many accounts of one user, and tell variants of an address as their key says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, Key, Linked
from examples.calendar import models as calendar
from examples.cloud import models as cloud
from examples.platforms import models as platforms
from tests.support.databases import Database, create, run_sql
from tests.support.models import identity, tokens

MAPPINGS: dict[str, tuple[Any, Any]] = {
    "calendar": (calendar.connections, "user-1"),
    "platforms": (platforms.connections, UUID(int=1)),
    "cloud": (cloud.cloud_accounts, 1),
}
VARIANTS = ("Straße@Example.com", "STRASSE@example.COM", "\uff33trasse@example.com", "stra\u00dfe@EXAMPLE.com")


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """An engine on which each example's table can be made."""
    plain = database.engine()
    if database.is_postgresql:
        await run_sql(plain, "DROP SCHEMA IF EXISTS cmis CASCADE", "CREATE SCHEMA cmis")
    yield platforms.for_its_database(plain)
    if database.is_postgresql:
        await run_sql(plain, "DROP SCHEMA IF EXISTS cmis CASCADE")


@pytest.mark.parametrize(("mapping", "user"), MAPPINGS.values(), ids=MAPPINGS)
async def test_thirty_accounts_of_one_user_at_one_provider(engine: AsyncEngine, mapping: Any, user: Any) -> None:
    """Thirty accounts at one provider are thirty links, each linked again without another row."""
    await create(engine, mapping.table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(mapping)
    for _ in range(2):
        for n in range(30):
            outcome = await linker.link(engine, user_id=user, identity=identity(f"sub-{n}"), credentials=tokens())
            assert isinstance(outcome, Linked)
    assert 30 == len(await linker.accounts(engine, user_id=user, provider="acme"))


@pytest.mark.parametrize(("mapping", "user"), MAPPINGS.values(), ids=MAPPINGS)
async def test_variants_of_an_address(engine: AsyncEngine, mapping: Any, user: Any) -> None:
    """Case and Unicode variants of an address meet under Key.EMAIL, and stay apart under ACCOUNT_ID."""
    await create(engine, mapping.table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(mapping)
    for n, variant in enumerate(VARIANTS):
        account = identity(f"sub-{n}", email=variant)
        assert isinstance(await linker.link(engine, user_id=user, identity=account, credentials=tokens()), Linked)
    expected = 1 if mapping.policy.key is Key.EMAIL else len(VARIANTS)
    assert expected == len(await linker.accounts(engine, user_id=user))
