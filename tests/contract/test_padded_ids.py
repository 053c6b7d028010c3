"""A user's id of ``CHAR(n)`` names the same user with its padding, as the ORM reads it back, and without."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, mapped_column

from accountlink import (
    AccountLinker,
    AlreadyOwner,
    Change,
    CredentialVault,
    Linked,
    LinkedAccountMixin,
    OwnershipConflict,
    ShareGrants,
    Transferred,
    grants_table,
    link_outbox,
    pending_credentials,
)
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, Clock, identity, tokens
from tests.support.vaulted import KEY

SPELLINGS = {"bare": "ann", "padded": "ann       "}
BOB = {"bare": "bob", "padded": "bob       "}


class Member(str, enum.Enum):  # noqa: UP042  # what is tested
    """Users by name, as ``StrEnum`` was written before Python 3.11."""

    ANN = "ann"
    BOB = "bob"


def linker_of(kind: Any, *, vault: bool) -> tuple[AccountLinker[Any, Any], sa.MetaData]:
    class Base(DeclarativeBase): ...

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = EXCLUSIVE_SOFT
        id = mapped_column(sa.Integer, primary_key=True)
        user_id = mapped_column(kind, nullable=False)

    given: dict[str, Any] = {"secrets": SECRETS, "outbox": link_outbox(Base.metadata), "clock": Clock()}
    if vault:
        given |= {"vault": CredentialVault(keys=[KEY]), "pending": pending_credentials(Base.metadata)}
    return AccountLinker(Connection, **given), Base.metadata


def valid() -> Any:
    return tokens(expires_at=datetime.now(UTC) + timedelta(hours=9))


@pytest.mark.parametrize("vault", [True, False], ids=["vault", "no vault"])
@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("then", SPELLINGS)
async def test_every_call_takes_both_spellings(engine: AsyncEngine, first: str, then: str, vault: bool) -> None:
    """A link made with one spelling is written, read, unlinked and transferred with the other."""
    linker, metadata = linker_of(sa.CHAR(10), vault=vault)
    await create(engine, metadata)
    ann, again, bob = SPELLINGS[first], SPELLINGS[then], BOB[then]
    made = await linker.link(engine, user_id=ann, identity=identity(), credentials=valid())
    assert isinstance(made, Linked)
    for spelling in (again, ann, again):
        outcome = await linker.link(engine, user_id=spelling, identity=identity(), credentials=valid())
        assert isinstance(outcome, Linked)
        assert (Change.UPDATED, made.account.id) == (outcome.change, outcome.account.id)
    assert [made.account.id] == [link.id for link in await linker.accounts(engine, user_id=again)]
    if vault:
        given = await linker.credentials(engine, user_id=again, link_id=made.account.id)
        assert "access-1" == given.access_token.reveal()
    conflict = await linker.link(engine, user_id=BOB[first], identity=identity(), credentials=valid())
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    moved = await linker.transfer(engine, conflict.transfer_token, user_id=bob)
    assert isinstance(moved, Transferred)
    assert vault is moved.has_credentials
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id=BOB[first]), AlreadyOwner)
    if vault:
        given = await linker.credentials(engine, user_id=BOB[first], provider="acme")
        assert "access-1" == given.access_token.reveal()
    assert "unlinked" == (await linker.unlink(engine, user_id=bob, link_id=made.account.id)).code
    assert [made.account.id] == [link.id for link in await linker.unlinked(engine, user_id=BOB[first])]
    restored = await linker.link(engine, user_id=bob, identity=identity(), credentials=valid())
    assert isinstance(restored, Linked)
    assert Change.RESTORED is restored.change


@pytest.mark.parametrize("first", SPELLINGS)
async def test_a_grant_takes_both_spellings(engine: AsyncEngine, first: str) -> None:
    """A grant is redeemed, listed and revoked by either spelling of its users' ids."""
    metadata = sa.MetaData()
    sharing: ShareGrants = ShareGrants(grants_table(metadata, user_id=sa.CHAR(10)))
    await create(engine, metadata)
    other = "bare" if first == "padded" else "padded"
    issued = await sharing.issue(engine, grantor_id=SPELLINGS[first], expires_in=timedelta(hours=1))
    await sharing.redeem(engine, issued.token, grantee_id=BOB[first])
    assert 1 == len(await sharing.active(engine, grantor_id=SPELLINGS[other]))
    assert 1 == len(await sharing.active(engine, grantee_id=BOB[other]))
    await sharing.revoke(engine, grantor_id=SPELLINGS[other], token=issued.token)
    assert [] == list(await sharing.active(engine, grantor_id=SPELLINGS[first]))


@pytest.mark.parametrize("column", [sa.Text(), sa.String(10), sa.CHAR(10)], ids=["text", "varchar", "char"])
async def test_a_member_of_an_enumeration_is_its_text(engine: AsyncEngine, column: Any) -> None:
    """A user's id that is a ``str`` and a member of an enumeration names the user by its text, in every call."""
    linker, metadata = linker_of(column, vault=True)
    await create(engine, metadata)
    made = await linker.link(engine, user_id=Member.ANN, identity=identity(), credentials=valid())
    assert isinstance(made, Linked)
    assert "ann" == made.account.user_id.rstrip(" ")
    again = await linker.link(engine, user_id="ann", identity=identity(), credentials=valid())
    assert isinstance(again, Linked)
    assert (Change.UPDATED, made.account.id) == (again.change, again.account.id)
    for ann in ("ann", Member.ANN):
        given = await linker.credentials(engine, user_id=ann, link_id=made.account.id)
        assert "access-1" == given.access_token.reveal()
    conflict = await linker.link(engine, user_id=Member.BOB, identity=identity(), credentials=valid())
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id="bob"), Transferred)
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id=Member.BOB), AlreadyOwner)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_column_that_names_a_collation(engine: AsyncEngine) -> None:
    """Two spellings that a nondeterministic collation treats as equal name one user, with a vault too.

    A PostgreSQL without ICU has no such collation: another than that of the comparison shows the rest there.
    """
    collation, spellings = "POSIX", ["Ann"]
    async with engine.begin() as connection:
        if await connection.scalar(sa.text("SELECT count(*) FROM pg_collation WHERE collname = 'en-x-icu'")):
            collation, spellings = "ci", ["ann", "Ann"]
            await connection.exec_driver_sql(
                "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
    linker, metadata = linker_of(sa.Text(collation=collation), vault=True)
    await create(engine, metadata)
    made = await linker.link(engine, user_id="Ann", identity=identity(), credentials=valid())
    assert isinstance(made, Linked)
    for ann in spellings:
        again = await linker.link(engine, user_id=ann, identity=identity(), credentials=valid())
        assert isinstance(again, Linked)
        assert (Change.UPDATED, "Ann") == (again.change, again.account.user_id)
        given = await linker.credentials(engine, user_id=ann, link_id=made.account.id)
        assert "access-1" == given.access_token.reveal()
