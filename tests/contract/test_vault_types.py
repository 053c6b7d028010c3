"""Tokens in tables of other shapes: types of the application's own, and columns that are not there."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    CredentialVault,
    OwnershipConflict,
    Plaintext,
    TokenSet,
    pending_credentials,
)
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity, tokens
from tests.support.vaulted import KEY

pytestmark = pytest.mark.each_driver


class Scrambled(sa.types.TypeDecorator[str]):
    """Write a text in another way each time, as a type that encrypts does."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else f"{secrets.token_hex(4)}|{value[::-1]}"

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value).partition("|")[2][::-1]


class ScrambledBytes(Scrambled):
    impl = sa.LargeBinary  # type: ignore[assignment]  # SQLAlchemy takes any type here
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else str(super().process_bind_param(value, dialect)).encode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else super().process_result_value(bytes(value).decode(), dialect)


ROLES = {
    "access_token": sa.Text(),
    "refresh_token": sa.Text(),
    "scopes": sa.Text(),
    "expires_at": sa.DateTime(timezone=True),
}


def links(**types: Any) -> tuple[sa.Table, AccountLinker[Any, Any]]:
    """A table of links whose columns for credentials have these types, ``None`` for no column, and its linker."""
    metadata = sa.MetaData()
    table = sa.Table(
        "connections",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("provider", "account_id")),
        *(sa.Column(name, kind) for name, kind in (ROLES | types).items() if kind is not None),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    roles: dict[str, Any] = {column.name: column for column in table.columns}
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=EXCLUSIVE_SOFT, **roles)
    vault = CredentialVault(keys=[KEY], plaintext=Plaintext.READ)
    return table, AccountLinker(mapping, secrets=SECRETS, vault=vault, pending=pending_credentials(metadata))


async def handed_over(engine: AsyncEngine, linker: AccountLinker[Any, Any], brought: TokenSet) -> TokenSet:
    """Return the stored tokens after a link, a conflict with tokens and its transfer."""
    await linker.link(engine, user_id=1, identity=identity(), credentials=TokenSet(access_token="former"))
    conflict = await linker.link(engine, user_id=2, identity=identity(), credentials=brought)
    assert isinstance(conflict, OwnershipConflict)
    await linker.transfer(engine, str(conflict.transfer_token), user_id=2)
    return await linker.stored_credentials(engine, user_id=2, provider="acme")


@pytest.mark.parametrize("scrambled", [Scrambled(), ScrambledBytes()], ids=["text", "bytes"])
async def test_a_type_that_writes_one_text_in_two_ways(engine: AsyncEngine, scrambled: Any) -> None:
    """What the database has decides whether a row still has the tokens that were read, and not what a type makes."""
    table, linker = links(access_token=scrambled, refresh_token=scrambled)
    await create(engine, table.metadata)
    assert tokens() == await handed_over(engine, linker, tokens())
    for expected in (True, False):
        assert expected is await linker.replace_credentials(
            engine, user_id=2, provider="acme", tokens=tokens("access-2", "refresh-2"), presented="refresh-1"
        )
    assert tokens("access-2", "refresh-2") == await linker.stored_credentials(engine, user_id=2, provider="acme")
