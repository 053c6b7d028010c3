"""Tokens in tables of other shapes: types of the application's own, and columns that are not there."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    ConfigurationError,
    CredentialVault,
    NeedsConsent,
    OwnershipConflict,
    Plaintext,
    TokenSet,
    pending_credentials,
)
from accountlink.vault.rotation import backfill
from tests.support.databases import Database, create
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


async def test_a_backfill_shows_no_token_of_a_type_of_its_own(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A28: SQLAlchemy's echo of rows has what the column's type makes of it, which may be plain text."""
    caplog.set_level(logging.DEBUG)
    engine = database.engine(echo="debug")
    table, linker = links(access_token=Scrambled(), refresh_token=None)
    await create(engine, table.metadata)
    row = {"user_id": 1, "provider": "acme", "account_id": "sub-1", "access_token": "access-1", "version": 1}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(table).values(**row))
    caplog.clear()
    steps = [progress async for progress in backfill(engine, linker)]
    assert 1 == steps[-1].sealed
    assert "access_token" in caplog.text
    assert "access-1" not in caplog.text


@pytest.fixture(params=["America/New_York", "Asia/Tokyo"])
def abroad(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process stand in another time zone than UTC."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("abroad")
@pytest.mark.parametrize("moment", [sa.DateTime(timezone=True), sa.DateTime(), sa.BigInteger()], ids=repr)
async def test_the_zone_of_a_process_moves_no_expiry(engine: AsyncEngine, moment: Any) -> None:
    """SQLite gives moments back without their zone; kept tokens expire when the provider said so."""
    table, linker = links(expires_at=moment)
    await create(engine, table.metadata)
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    brought = tokens(expires_at=soon)
    assert brought == await handed_over(engine, linker, brought)
    ready = await linker.credentials(engine, user_id=2, provider="acme", require={"read"})
    assert soon == ready.expires_at


@pytest.mark.parametrize("moment", [sa.DateTime(timezone=True), sa.DateTime(), sa.BigInteger()], ids=repr)
@pytest.mark.parametrize(
    "at", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)], ids=["first", "last"]
)
async def test_the_first_and_the_last_moment(engine: AsyncEngine, at: datetime, moment: Any) -> None:
    """An application may say "never" by the last moment that Python knows."""
    table, linker = links(expires_at=moment)
    await create(engine, table.metadata)
    stored = await handed_over(engine, linker, tokens(expires_at=at, refresh_expires_at=at))
    whole = at.replace(microsecond=0)
    assert stored.expires_at is not None
    assert (whole, whole) == (stored.expires_at.replace(microsecond=0), stored.refresh_expires_at)


async def test_a_table_without_scopes_cannot_require_any(engine: AsyncEngine) -> None:
    """To ask the user for consent again would help nobody."""
    table, linker = links(scopes=None)
    await create(engine, table.metadata)
    brought = TokenSet(access_token="access-1")
    await linker.link(engine, user_id=1, identity=identity(), credentials=brought)
    assert brought == await linker.credentials(engine, user_id=1, provider="acme")
    with pytest.raises(ConfigurationError, match="'scopes'"):
        await linker.credentials(engine, user_id=1, provider="acme", require={"read"})


@pytest.mark.parametrize("stored", [["read write"], ["read,write"], ["read", "write", None, 7], "read write"], ids=repr)
async def test_scopes_as_an_older_application_wrote_them(engine: AsyncEngine, stored: Any) -> None:
    """A list may contain the token response's one text; it makes no token unreadable."""
    table, linker = links(scopes=sa.JSON())
    await create(engine, table.metadata)
    row = {"user_id": 1, "provider": "acme", "account_id": "sub-1", "access_token": "access-1", "version": 1}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(table).values(**row, scopes=stored))
    ready = await linker.credentials(engine, user_id=1, provider="acme", require={"read", "write"})
    assert {"read", "write"} == ready.scopes


async def test_a_refused_token_is_not_called_expired(engine: AsyncEngine) -> None:
    """The API refused a token that would have lasted; who reads the error has to know."""
    table, linker = links()
    await create(engine, table.metadata)
    row = {"user_id": 1, "provider": "acme", "account_id": "sub-1", "access_token": "access-1", "version": 1}
    lasting = datetime.now(UTC) + timedelta(hours=1)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(table).values(**row, expires_at=lasting))
    with pytest.raises(NeedsConsent) as raised:
        await linker.credentials(engine, user_id=1, provider="acme", rejected="access-1")
    assert raised.value.since is None
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).values(refresh_token="refresh-1"))
    with pytest.raises(ConfigurationError, match="was refused"):
        await linker.credentials(engine, user_id=1, provider="acme", rejected="access-1")


async def test_a_refresh_token_that_stays_has_the_client_that_used_it(engine: AsyncEngine) -> None:
    """The client of tokens that bring no refresh token is not dropped: only that client can refresh them again."""
    table, linker = links()
    await create(engine, table.metadata)
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    brought = TokenSet(access_token="access-2", client="web")
    assert await linker.replace_credentials(engine, user_id=1, provider="acme", tokens=brought, presented="refresh-1")
    stored = await linker.stored_credentials(engine, user_id=1, provider="acme")
    assert tokens().refresh_token == stored.refresh_token
    assert ("access-2", "web") == (stored.access_token.reveal(), stored.client)
