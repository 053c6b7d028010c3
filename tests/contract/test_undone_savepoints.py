"""A session's object has the old values again after the rollback of the savepoint that wrote its row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.ext.mutable import MutableList
from sqlalchemy.orm import DeclarativeBase, InstanceState, Mapped, composite, mapped_column

from accountlink import (
    AccountLinker,
    Granted,
    GrantMapping,
    Linked,
    LinkedAccountMixin,
    LinkPolicy,
    OwnershipConflict,
    ShareGrants,
)
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, SECRETS, identity, tokens

pytestmark = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=False)


@dataclass(frozen=True)
class Place:
    """Where an account stands in the application's list."""

    page: int | None
    line: int | None


@dataclass(frozen=True)
class Stage:
    """Models with a counter of the ORM's own, a list that notices its changes, and two columns that are one value."""

    metadata: sa.MetaData
    Link: type[Any]
    Grant: type[Any]
    linker: AccountLinker[Any, Any]
    shares: ShareGrants

    @classmethod
    async def set(cls, engine: AsyncEngine, policy: LinkPolicy = EXCLUSIVE_SOFT) -> Stage:
        class Base(DeclarativeBase):
            pass

        class Link(LinkedAccountMixin, Base):
            __tablename__ = "links"
            __link_policy__ = policy
            id: Mapped[int] = mapped_column(primary_key=True)
            user_id: Mapped[int]
            scopes: Mapped[Any] = mapped_column(MutableList.as_mutable(sa.JSON()), nullable=True)
            version = mapped_column(sa.Integer, nullable=False)
            label: Mapped[str | None]
            page: Mapped[int | None]
            line: Mapped[int | None]
            place: Mapped[Place] = composite("page", "line")
            __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # SQLAlchemy's name

        class Grant(Base):
            __tablename__ = "grants"
            id: Mapped[int] = mapped_column(primary_key=True)
            grantor_id: Mapped[int]
            grantee_id: Mapped[int | None]
            token: Mapped[str] = mapped_column(unique=True)
            expires_at: Mapped[int]
            active: Mapped[bool]

        linker = AccountLinker(Link, secrets=SECRETS)
        stage = cls(Base.metadata, Link, Grant, linker, ShareGrants(GrantMapping(Grant)))
        await create(engine, Base.metadata)
        made = await linker.link(engine, user_id=1, identity=identity(email="old@example.com"), credentials=tokens())
        assert isinstance(made, Linked)
        assert 1 == made.account.id
        return stage

    # Each of these writes the row that is held.

    async def link(self, session: AsyncSession) -> None:
        await self.linker.link(
            session, user_id=1, identity=identity(email="new@example.com"), credentials=tokens(scopes={"all"})
        )

    async def unlink(self, session: AsyncSession) -> None:
        await self.linker.unlink(session, user_id=1, link_id=1)

    async def restore(self, session: AsyncSession) -> None:
        await self.unlink(session)
        await self.link(session)

    async def transfer(self, session: AsyncSession) -> None:
        conflict = await self.linker.link(session, user_id=2, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        await self.linker.transfer(session, str(conflict.transfer_token), user_id=2)


Write = Callable[[Stage, AsyncSession], Awaitable[None]]
WRITES = pytest.mark.parametrize(
    "write", [Stage.link, Stage.unlink, Stage.restore, Stage.transfer], ids=lambda write: write.__name__
)
STORED = "SELECT user_id, email, label, version, deleted_at IS NULL FROM links"


def stale(held: object) -> set[str]:
    """The attributes that an object would show without asking the database again."""
    return set(cast("InstanceState[Any]", sa.inspect(held)).dict) - {"_sa_instance_state"}


@WRITES
async def test_a_rolled_back_savepoint_expires_what_was_written_in_it(engine: AsyncEngine, write: Write) -> None:
    """An object shows the new values within the savepoint, and none of them once that is rolled back."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        held = await session.get_one(stage.Link, 1)
        before = {key: getattr(held, key) for key in ("user_id", "email", "deleted_at", "version", "access_token")}
        nested = await session.begin_nested()
        await write(stage, session)
        assert before != {key: getattr(held, key) for key in before}
        await nested.rollback()
        assert not stale(held)
        await session.refresh(held)
        assert before == {key: getattr(held, key) for key in before}


@WRITES
async def test_a_later_flush_loses_nothing_and_finds_the_row(engine: AsyncEngine, write: Write) -> None:
    """A caller's write after the rollback is stored, even if the undone write had the same value."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        held = await session.get_one(stage.Link, 1)
        nested = await session.begin_nested()
        await write(stage, session)
        await nested.rollback()
        held.email, held.label = "new@example.com", "kept"
        await session.commit()
    assert [(1, "new@example.com", "kept", 2, True)] == await rows(engine, STORED)


@pytest.mark.parametrize("ends", ["inner", "outer", "outer after inner", "nothing"])
async def test_the_savepoint_that_ends_it_may_be_any_around_it(engine: AsyncEngine, ends: str) -> None:
    """Written in an inner savepoint: what counts is whether that, or one around it, is rolled back."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        held = await session.get_one(stage.Link, 1)
        outer = await session.begin_nested()
        inner = await session.begin_nested()
        await stage.link(session)
        await (inner.rollback() if ends == "inner" else inner.commit() if ends != "outer" else outer.rollback())
        if ends in ("outer after inner", "nothing"):
            assert "new@example.com" == held.email
            await (outer.rollback() if ends == "outer after inner" else outer.commit())
        if ends == "nothing":
            assert "new@example.com" == held.email
        else:
            assert not stale(held)
            await session.refresh(held)
            assert "old@example.com" == held.email
        await session.commit()


async def test_an_object_that_was_loaded_after_the_write_is_expired_too(engine: AsyncEngine) -> None:
    """It was not held when the row was written, and shows the undone values all the same."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        nested = await session.begin_nested()
        await stage.link(session)
        held = await session.get_one(stage.Link, 1)
        assert "new@example.com" == held.email
        await nested.rollback()
        assert not stale(held)


async def test_a_row_that_was_made_in_the_savepoint_is_gone_with_it(engine: AsyncEngine) -> None:
    """Its object does not go on showing a row that there is not."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        nested = await session.begin_nested()
        made = await stage.linker.link(session, user_id=1, identity=identity("sub-2"))
        assert isinstance(made, Linked)
        held = await session.get_one(stage.Link, made.account.id)
        await nested.rollback()
        assert not stale(held)
        assert 1 == len((await session.scalars(sa.select(stage.Link))).all())


async def test_the_callers_own_changes_are_undone_with_the_savepoint(engine: AsyncEngine) -> None:
    """Pending changes are flushed before the write, and end as the ORM ends them."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        held = await session.get_one(stage.Link, 1)
        nested = await session.begin_nested()
        held.label = "mine"
        await stage.link(session)
        assert ("mine", "new@example.com") == (held.label, held.email)
        held.label = "later"
        await nested.rollback()
        assert not stale(held)
        held.label = "last"
        await session.commit()
    assert [(1, "old@example.com", "last", 2, True)] == await rows(engine, STORED)


async def test_an_object_of_a_deleted_row_comes_back_with_the_savepoint(engine: AsyncEngine) -> None:
    """Under Removal.DELETE the object leaves the session with its row, and comes back with it."""
    stage = await Stage.set(engine, EXCLUSIVE)
    async with AsyncSession(engine) as session:
        held = await session.get_one(stage.Link, 1)
        nested = await session.begin_nested()
        await stage.link(session)
        await stage.unlink(session)
        assert held not in session
        await nested.rollback()
        assert held in session
        await session.refresh(held)
        assert "old@example.com" == held.email


async def test_a_rollback_fixture_undoes_a_session_that_works_in_savepoints(engine: AsyncEngine) -> None:
    """A test's session in ``join_transaction_mode="create_savepoint"`` sees the old values after its own rollback."""
    stage = await Stage.set(engine)
    async with engine.connect() as connection:
        outer = await connection.begin()
        session = AsyncSession(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        async with session:
            held = await session.get_one(stage.Link, 1)
            await session.commit()
            nested = await session.begin_nested()
            await stage.link(session)
            await nested.rollback()
            assert not stale(held)
            await stage.link(session)
            await session.rollback()
            await session.refresh(held)
            assert "old@example.com" == held.email
            await stage.link(session)
            await session.commit()
            await session.refresh(held)
            assert "new@example.com" == held.email
        await outer.rollback()
    assert [(1, "old@example.com", None, 1, True)] == await rows(engine, STORED)


async def test_grants_are_expired_as_links_are(engine: AsyncEngine) -> None:
    """A rollback of a savepoint undoes what redeem and revoke wrote in it."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        issued = await stage.shares.issue(session, grantor_id=1, expires_in=timedelta(hours=1))
        await session.commit()
        held = await session.get_one(stage.Grant, issued.id)
        nested = await session.begin_nested()
        undone = await stage.shares.issue(session, grantor_id=1, expires_in=timedelta(hours=1))
        never = await session.get_one(stage.Grant, undone.id)
        await nested.rollback()
        assert not stale(never)
        nested = await session.begin_nested()
        assert isinstance(await stage.shares.redeem(session, issued.token, grantee_id=2), Granted)
        assert 2 == held.grantee_id
        await nested.rollback()
        assert not stale(held)
        await session.refresh(held)
        assert held.grantee_id is None
        nested = await session.begin_nested()
        await stage.shares.revoke(session, grantor_id=1, grant_id=issued.id)
        assert not held.active
        await nested.rollback()
        assert not stale(held)
        held.active = False
        await session.commit()
    assert [False] == [bool(active) for (active,) in await rows(engine, "SELECT active FROM grants")]


async def test_new_values_come_as_the_models_attributes_take_them(engine: AsyncEngine) -> None:
    """A list still notices its changes, and a composite value is made anew of its columns."""
    stage = await Stage.set(engine)
    async with AsyncSession(engine) as session:
        held = await session.get_one(stage.Link, 1)
        assert Place(None, None) == held.place
        outcome = await stage.linker.link(
            session,
            user_id=1,
            identity=identity(email="new@example.com"),
            credentials=tokens(scopes={"all"}),
            update_values={stage.Link.page: 3, stage.Link.line: 4},
        )
        assert isinstance(outcome, Linked)
        assert Place(3, 4) == held.place
        assert isinstance(held.scopes, MutableList)
        held.scopes.append("more")
        await session.commit()
    assert 1 == len(await rows(engine, "SELECT 1 FROM links WHERE CAST(scopes AS text) LIKE '%more%'"))
