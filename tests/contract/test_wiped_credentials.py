"""Nothing of a link's credentials is left where it ends or changes hands, also in columns that take no NULL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from accountlink import (
    AccountLinker,
    AccountMapping,
    Change,
    Linked,
    OwnershipConflict,
    Transferred,
)
from tests.support.databases import Database, create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity, tokens

START = datetime(1970, 1, 1)  # noqa: DTZ001  # as it is compared here, whatever the column makes of zones


class Sealed(sa.types.TypeDecorator[str]):
    """An application's type that stores a text as bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else b"sealed:" + value[::-1].encode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else value.removeprefix(b"sealed:").decode()[::-1]


class Nested(sa.types.TypeDecorator[str]):
    """A type around that type."""

    impl = Sealed
    cache_ok = True


class Words(sa.types.TypeDecorator[str]):
    """A type around text, as SQLModel has one."""

    impl = sa.Text
    cache_ok = True


COLUMNS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "plain": (
        {
            "access_token": sa.Text(),
            "refresh_token": sa.String(255),
            "expires_at": sa.DateTime(timezone=True),
            "scopes": sa.Text(),
        },
        ("", "", START, ""),
    ),
    "lists": (
        {
            "access_token": Sealed(),
            "refresh_token": Nested(),
            "expires_at": sa.DateTime(),
            "scopes": sa.JSON(),
        },
        ("", "", START, []),
    ),
    "numbers": (
        {"access_token": Words(), "refresh_token": Words(), "expires_at": sa.BigInteger(), "scopes": sa.JSON()},
        ("", "", 0, []),
    ),
}


def links_of(columns: dict[str, Any], *, nullable: str | None = None) -> tuple[sa.Table, AccountLinker[Any, Any]]:
    """A table of links whose credentials take no NULL, but for one."""
    table = sa.Table(
        "filled",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        *(sa.Column(role, kind, nullable=role == nullable) for role, kind in columns.items()),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
    )
    live = table.c.deleted_at.is_(None)
    sa.Index("key", table.c.provider, table.c.account_id, unique=True, postgresql_where=live, sqlite_where=live)
    return table, AccountLinker(AccountMapping(table, policy=EXCLUSIVE_SOFT), secrets=SECRETS)


@pytest.mark.parametrize("columns", COLUMNS)
async def test_columns_that_take_no_null_are_emptied(database: Database, columns: str) -> None:
    """Unlinking, restoring and transferring leave no credential where none is brought, scopes and all."""
    engine = database.engine()
    kinds, empty = COLUMNS[columns]
    table, linker = links_of(kinds)
    await create(engine, table.metadata)

    async def held() -> tuple[Any, ...]:
        async with engine.connect() as connection:
            row = (await connection.execute(sa.select(*(table.c[role] for role in kinds)))).one()
        end = row[2].replace(tzinfo=None) if isinstance(row[2], datetime) else row[2]
        return (row[0], row[1], end, row[3])

    linked = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(linked, Linked)
    assert ("access-1", "refresh-1") == (await held())[:2]
    await linker.unlink(engine, user_id=1, link_id=linked.account.id)
    assert empty == await held()

    async with engine.begin() as connection:  # as it was left by an earlier version
        secret: dict[str, Any] = {"access_token": "old", "refresh_token": "old"}
        secret["scopes"] = "old" if empty[3] == "" else ["old"]
        await connection.execute(sa.update(table).values(secret))
    restored = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(restored, Linked)
    assert Change.RESTORED is restored.change
    assert empty == await held()

    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    conflict = await linker.link(engine, user_id=2, identity=identity())
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id=2), Transferred)
    assert empty == await held()


async def test_a_restore_with_some_credentials_keeps_none_of_the_others(database: Database) -> None:
    """A restore that brings an access token alone leaves no refresh token, end or scopes of before."""
    engine = database.engine()
    table, linker = links_of(COLUMNS["plain"][0], nullable="expires_at")
    await create(engine, table.metadata)
    linked = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(linked, Linked)
    async with engine.begin() as connection:  # a row that was marked as dead past the library
        await connection.execute(sa.update(table).values(deleted_at=datetime.now(UTC)))
    bare = tokens("access-2", None, expires_at=None, scopes=frozenset())
    restored = await linker.link(engine, user_id=1, identity=identity(), credentials=bare)
    assert isinstance(restored, Linked)
    assert (Change.RESTORED, frozenset()) == (restored.change, restored.account.scopes)
    async with engine.connect() as connection:
        c = table.c
        row = (await connection.execute(sa.select(c.access_token, c.refresh_token, c.expires_at, c.scopes))).one()
    assert ("access-2", "", None, "") == tuple(row)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("brought", [False, True], ids=["no credentials", "an access token alone"])
async def test_a_new_link_whose_columns_take_no_null(database: Database, columns: str, brought: bool) -> None:
    """A first link stores an empty value for a credential that the callback did not bring."""
    engine = database.engine()
    kinds, empty = COLUMNS[columns]
    table, linker = links_of(kinds)
    await create(engine, table.metadata)
    credentials = tokens(refresh=None, scopes=()) if brought else None
    made = await linker.link(engine, user_id=1, identity=identity(), credentials=credentials)
    assert isinstance(made, Linked)
    assert Change.CREATED is made.change
    async with engine.connect() as connection:
        row = (await connection.execute(sa.select(*(table.c[name] for name in kinds)))).one()
    access, refresh, end, scopes = row
    end = end.replace(tzinfo=None) if isinstance(end, datetime) else end
    assert ("access-1" if brought else empty[0], empty[1], empty[3]) == (access, refresh, scopes)
    assert brought is (end != empty[2])
