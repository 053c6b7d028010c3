"""A grant's token is compared byte by byte, whatever the column's own comparison is; no token is empty."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AlreadyGranted,
    ConfigurationError,
    Granted,
    GrantMapping,
    GrantRejected,
    ShareGrants,
)
from tests.support.databases import Database, create, rows
from tests.support.loose import LowerCase, loose_type

HOUR = timedelta(hours=1)
LOOSE = [("sqlite", "nocase"), ("asyncpg", "icu"), ("asyncpg", "citext")]
each_kind = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])


class Stripped(sa.types.TypeDecorator[str]):
    """An application's type that takes white space away."""

    impl = sa.String(255)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return value if value is None else value.strip()


def shares_of(kind: sa.types.TypeEngine[Any]) -> tuple[sa.Table, ShareGrants]:
    """A table that holds tokens in plain text."""
    table = sa.Table(
        "shares",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("grantor_id", sa.Integer, nullable=False),
        sa.Column("grantee_id", sa.Integer),
        sa.Column("token", kind),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
    )
    return table, ShareGrants(GrantMapping(table))


async def blank(engine: AsyncEngine, table: sa.Table, token: str) -> None:
    """Give every row this token, as an application blanks what is not to be used again."""
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).values(token=token))


@each_kind
@pytest.mark.parametrize("column", [sa.Text(), sa.CHAR(64)], ids=["text", "char"])
@pytest.mark.parametrize("blanked", ["", " ", "   "], ids=["empty", "blank", "blanks"])
async def test_a_blanked_token_is_nobodys(database: Database, column: sa.types.TypeEngine[Any], blanked: str) -> None:
    """Where an application blanked its tokens, an empty one neither redeems nor revokes."""
    engine = database.engine()
    table, shares = shares_of(column)
    await create(engine, table.metadata)
    await shares.issue(engine, grantor_id=1, expires_in=HOUR)
    await blank(engine, table, blanked)
    for token in ("", " ", "   ", blanked.ljust(64), "\t", "\u2003"):
        with pytest.raises(GrantRejected):
            await shares.redeem(engine, token, grantee_id=2)
        with pytest.raises(GrantRejected):
            await shares.revoke(engine, grantor_id=1, token=token)
    assert [(None, True)] == [
        (row[0], bool(row[1])) for row in await rows(engine, "SELECT grantee_id, active FROM shares")
    ]


@each_kind
async def test_blanks_behind_a_token_are_another_token(database: Database) -> None:
    """``CHAR(64)`` takes blanks at the end for nothing; a token is accepted without them only."""
    engine = database.engine()
    table, shares = shares_of(sa.CHAR(64))
    await create(engine, table.metadata)
    issued = await shares.issue(engine, grantor_id=1, expires_in=HOUR)
    for wrong in (issued.token + " ", issued.token.ljust(64), " " + issued.token):
        with pytest.raises(GrantRejected):
            await shares.redeem(engine, wrong, grantee_id=2)
        with pytest.raises(GrantRejected):
            await shares.revoke(engine, grantor_id=1, token=wrong)
    assert isinstance(await shares.redeem(engine, issued.token, grantee_id=2), Granted)
    with pytest.raises(GrantRejected):
        await shares.redeem(engine, issued.token + " ", grantee_id=2)
    assert isinstance(await shares.redeem(engine, issued.token, grantee_id=2), AlreadyGranted)


@pytest.mark.parametrize(("kind", "loose"), LOOSE, ids=["nocase", "icu", "citext"])
async def test_a_token_in_another_case_is_another_token(database: Database, loose: str) -> None:
    """A column without case accepts the token as it was issued, and no other spelling of it."""
    engine = database.engine()
    table, shares = shares_of(await loose_type(engine, loose))
    await create(engine, table.metadata)
    issued = await shares.issue(engine, grantor_id=1, expires_in=HOUR)
    with pytest.raises(GrantRejected):
        await shares.redeem(engine, issued.token.swapcase(), grantee_id=2)
    with pytest.raises(GrantRejected):
        await shares.revoke(engine, grantor_id=1, token=issued.token.swapcase())
    assert isinstance(await shares.redeem(engine, issued.token, grantee_id=2), Granted)
    with pytest.raises(GrantRejected):
        await shares.redeem(engine, issued.token.swapcase(), grantee_id=2)
    assert isinstance(await shares.redeem(engine, issued.token, grantee_id=2), AlreadyGranted)
    await shares.revoke(engine, grantor_id=1, token=issued.token)


@each_kind
async def test_a_type_that_takes_white_space_away(database: Database) -> None:
    """A token is refused if the column's own type would change its text."""
    engine = database.engine()
    table, shares = shares_of(Stripped())
    await create(engine, table.metadata)
    issued = await shares.issue(engine, grantor_id=1, expires_in=HOUR)
    with pytest.raises(GrantRejected):
        await shares.redeem(engine, f" {issued.token}\n", grantee_id=2)
    assert isinstance(await shares.redeem(engine, issued.token, grantee_id=2), Granted)


@each_kind
async def test_a_type_that_changes_the_case_of_a_token(database: Database) -> None:
    """A token that would be stored in another case is not issued; one from before is redeemed as it is stored."""
    engine = database.engine()
    table, shares = shares_of(LowerCase())
    await create(engine, table.metadata)
    with pytest.raises(ConfigurationError, match="'token' of 'shares' has a type that changes the text"):
        await shares.issue(engine, grantor_id=1, expires_in=HOUR)
    assert [] == await rows(engine, "SELECT * FROM shares")
    plain, before = shares_of(sa.String(255))
    await before.issue(engine, grantor_id=1, expires_in=HOUR)
    await blank(engine, plain, "old-token")
    with pytest.raises(GrantRejected):
        await shares.redeem(engine, "OLD-token", grantee_id=2)
    assert isinstance(await shares.redeem(engine, "old-token", grantee_id=2), Granted)
