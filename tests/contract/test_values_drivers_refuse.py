"""A value that no driver can send is one error on every database, whichever layer refuses it, and is not shown."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, AccountMapping, ConfigurationError, Linked
from tests.support.binds import BINDS, bound
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE, identity


class Unchanged(sa.types.TypeDecorator[Any]):
    """An application's type, whose values nobody checks before the driver does."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return value


class Secret:
    def __repr__(self) -> str:
        return "secret"


VALUES = {
    "an object for JSON": (sa.JSON(), {"secret": Secret()}),
    "a set for JSON": (sa.JSON(), {"secret"}),
    "an object": (Unchanged(), Secret()),
    "a mapping": (Unchanged(), {"secret": 1}),
}


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize(("type_", "value"), VALUES.values(), ids=VALUES)
async def test_a_value_that_cannot_be_sent(engine: AsyncEngine, type_: Any, value: object, how: str) -> None:
    """The error says whose mistake it is; the caller's transaction goes on, and the next call works."""
    metadata = sa.MetaData()
    names = ("user_id", "provider", "account_id")
    number = sa.Column("id", sa.Integer, primary_key=True)
    table = sa.Table("links", metadata, number, *[sa.Column(name, sa.Text) for name in names], sa.Column("more", type_))
    sa.Index("one_owner", table.c.provider, table.c.account_id, unique=True)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE))
    await create(engine, metadata)
    async with bound(engine, how) as bind:
        with pytest.raises(ConfigurationError, match="cannot send a value of this call") as raised:
            await linker.link(bind, user_id="ann", identity=identity(), values={table.c.more: value})
        assert isinstance(await linker.link(bind, user_id="ann", identity=identity()), Linked)
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    assert [("ann",)] == await rows(engine, "SELECT user_id FROM links")
