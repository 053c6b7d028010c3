"""Tokens are sealed for a user's id as the row has it, however the call wrote the id."""

from __future__ import annotations

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
    CredentialVault,
    Key,
    LinkBlocked,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Plaintext,
    Removal,
    TokenSet,
    Transferred,
    link_outbox,
    pending_credentials,
    transfer_ledger,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import create
from tests.support.loose import loose_type
from tests.support.models import EMAIL_SOFT, EXCLUSIVE_SOFT, PER_USER_SOFT, SECRETS, identity, tokens
from tests.support.vaulted import KEY

HOWS = pytest.mark.parametrize("how", BINDS)
ANY_CASE = sa.Text().with_variant(postgresql.CITEXT(), "postgresql").with_variant(sa.Text(collation="NOCASE"), "sqlite")


class LowerCase(sa.types.TypeDecorator[str]):
    """Store ids in lower case, as many applications do with names."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.lower()


class Prefixed(sa.types.TypeDecorator[str]):
    """Show numbers as texts with a prefix, and take them with leading zeros too."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else int(value.removeprefix("usr_"))

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else f"usr_{value}"


class UserNumber:
    """An id of a class of the application's own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"user {self.number}"


class Numbered(sa.types.TypeDecorator[UserNumber]):
    impl = sa.BigInteger
    cache_ok = True

    @property
    def python_type(self) -> type[UserNumber]:
        return UserNumber

    def process_bind_param(self, value: UserNumber | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else value.number

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> UserNumber | None:
        return None if value is None else UserNumber(value)


def links(user_id: Any) -> tuple[sa.Table, AccountLinker[Any, Any]]:
    """A table of links whose users' ids have a type, and a linker with a vault."""
    metadata = sa.MetaData()
    table = sa.Table(
        "connections",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", user_id, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("provider", "account_id", "access_token", "refresh_token", "scopes")),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("expires_at", "deleted_at")),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Index("uq_connections", "provider", "account_id", unique=True),
    )
    roles: dict[str, Any] = {column.name: column for column in table.columns}
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=EXCLUSIVE_SOFT, **roles)
    vault = CredentialVault(keys=[KEY], plaintext=Plaintext.READ)
    return table, AccountLinker(mapping, secrets=SECRETS, vault=vault, pending=pending_credentials(metadata))


async def made(engine: AsyncEngine, table: sa.Table) -> None:
    if engine.dialect.name == "postgresql":
        await loose_type(engine, "citext")  # makes the type, also where the server has no such extension
    await create(engine, table.metadata)


@HOWS
@pytest.mark.parametrize(
    ("user_id", "spellings", "other"),
    [
        pytest.param(LowerCase(), ("Ann", "ANN"), "Bob", id="written in lower case"),
        pytest.param(Prefixed(), ("usr_07", "usr_7"), "usr_8", id="prefixed numbers"),
        pytest.param(Numbered(), (UserNumber(7), UserNumber(7)), UserNumber(8), id="a class of its own"),
        pytest.param(ANY_CASE, ("Ann", "ANN"), "Bob", id="compared without letter case"),
        pytest.param(sa.CHAR(20), ("ann", "ann"), "bob", id="padded"),
    ],
)
async def test_one_user_by_several_spellings(
    engine: AsyncEngine, how: str, user_id: Any, spellings: Any, other: Any
) -> None:
    """For each spelling of a call, tokens are sealed for the row's own, and a kept refresh token stays readable."""
    table, linker = links(user_id)
    first, again = spellings
    await made(engine, table)
    async with bound(engine, how) as bind:
        outcome = await linker.link(bind, user_id=first, identity=identity(), credentials=tokens())
        assert isinstance(outcome, Linked)
        brought = TokenSet(access_token="access-2")
        outcome = await linker.link(bind, user_id=again, identity=identity(), credentials=brought)
        assert isinstance(outcome, Linked)
        assert Change.UPDATED is outcome.change
    for spelling in (first, again):
        stored = await linker.stored_credentials(engine, user_id=spelling, provider="acme")
        assert stored.refresh_token is not None
        assert ("access-2", "refresh-1") == (stored.access_token.reveal(), stored.refresh_token.reveal())
    async with bound(engine, how) as bind:
        await linker.unlink(bind, user_id=first, link_id=outcome.account.id)
        restored = await linker.link(bind, user_id=again, identity=identity(), credentials=tokens("access-3"))
        assert isinstance(restored, Linked)
        assert Change.RESTORED is restored.change
        conflict = await linker.link(bind, user_id=other, identity=identity(), credentials=tokens("access-4"))
        assert isinstance(conflict, OwnershipConflict)
        moved = await linker.transfer(bind, str(conflict.transfer_token), user_id=other)
        assert isinstance(moved, Transferred)
        assert moved.has_credentials
    assert tokens("access-4") == await linker.stored_credentials(engine, user_id=other, provider="acme")


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])  # SQLite's RETURNING shows the row before its triggers
async def test_an_id_that_the_table_changes_unannounced_is_said(engine: AsyncEngine) -> None:
    """Tokens that nobody could read again are not stored in silence."""
    table, linker = links(sa.Text())
    await made(engine, table)
    async with engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE connections ALTER COLUMN user_id TYPE char(20)"))
    async with engine.begin() as connection:
        with pytest.raises(ConfigurationError, match="user's id"):
            await linker.link(connection, user_id="ann", identity=identity(), credentials=tokens())
        assert [] == list(await connection.execute(sa.select(table)))


async def test_a_provider_that_the_column_pads(engine: AsyncEngine) -> None:
    """A CHAR(n) that is mapped as text gives its texts back with blanks, which no identifier ends in."""
    table, linker = links(sa.Text())
    await made(engine, table)
    if engine.dialect.name == "postgresql":
        async with engine.begin() as connection:
            for name in ("provider", "account_id"):
                await connection.execute(sa.text(f"ALTER TABLE connections ALTER COLUMN {name} TYPE char(20)"))
    await linker.link(engine, user_id="ann", identity=identity(), credentials=tokens())
    assert tokens() == await linker.stored_credentials(engine, user_id="ann", provider="acme")


async def test_a_row_without_an_account_id(engine: AsyncEngine) -> None:
    """Plain text of a row from before the column is read, and nothing is sealed for an account that nobody knows."""
    table, linker = links(sa.Text())
    await made(engine, table)
    async with engine.begin() as connection:
        await connection.execute(
            sa.insert(table).values(user_id="ann", provider="acme", access_token="access-1", version=1)
        )
    stored = await linker.stored_credentials(engine, user_id="ann", provider="acme")
    assert "access-1" == stored.access_token.reveal()
    with pytest.raises(ConfigurationError, match="account id"):
        await linker.replace_credentials(
            engine, user_id="ann", provider="acme", tokens=TokenSet(access_token="access-2"), presented="access-1"
        )


BLOCKED = LinkPolicy(
    key=Key.ACCOUNT_ID,
    ownership=Ownership.EXCLUSIVE,
    removal=Removal.SOFT,
    blocked_reasons=frozenset({"banned"}),
)


@HOWS
@pytest.mark.parametrize(
    "policy",
    [EXCLUSIVE_SOFT, PER_USER_SOFT, EMAIL_SOFT, BLOCKED],
    ids=["exclusive", "per user", "email", "blocked"],
)
async def test_another_spelling_under_each_policy(engine: AsyncEngine, how: str, policy: LinkPolicy) -> None:
    """The user has one row, the outbox one event for each change, and a link that is named is found."""
    metadata = sa.MetaData()
    texts = ("provider", "account_id", "email", "email_key", "access_token", "refresh_token", "reason")
    table = sa.Table(
        "connections",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", ANY_CASE, nullable=False),
        *(sa.Column(name, sa.Text) for name in texts),
        sa.Column("scopes", sa.JSON),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("expires_at", "deleted_at")),
    )
    roles: dict[str, Any] = {column.name: column for column in table.columns}
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=policy, **roles)
    exclusive = policy.ownership is Ownership.EXCLUSIVE
    more: Any = {"secrets": SECRETS, "ledger": transfer_ledger(metadata)} if exclusive else {}
    outbox = link_outbox(metadata)
    linker = AccountLinker(mapping, vault=CredentialVault(keys=[KEY]), outbox=outbox, **more)
    await made(engine, table)
    async with bound(engine, how) as bind:
        first = await linker.link(bind, user_id="Ann", identity=identity(), credentials=tokens("access-0"))
        assert isinstance(first, Linked)
        for expect in (None, first.account.id):
            again = await linker.link(bind, user_id="ANN", identity=identity(), credentials=tokens(), expect=expect)
            assert isinstance(again, Linked)
            assert (Change.UPDATED, first.account.id) == (again.change, again.account.id)
            assert frozenset({"read", "write"}) == again.account.scopes
        assert tokens() == await linker.stored_credentials(bind, user_id="aNN", provider="acme")
        await linker.unlink(bind, user_id="ann", link_id=first.account.id, reason="banned")
        if policy is BLOCKED:
            with pytest.raises(LinkBlocked):
                await linker.link(bind, user_id="ANN", identity=identity(), credentials=tokens())
    async with engine.connect() as connection:
        events = await connection.execute(sa.select(outbox.c.type).order_by(outbox.c.id))
        assert ["linked", "updated", "updated", "unlinked"] == list(events.scalars())
