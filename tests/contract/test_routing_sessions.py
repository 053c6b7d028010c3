"""A session that routes by the kind of statement, or by the model, sends every call to where the links are written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship

from accountlink import (
    AccountLinker,
    AccountMapping,
    Granted,
    Linked,
    LinkedAccountMixin,
    OwnershipConflict,
    ShareGrants,
    Transferred,
    grants_table,
)
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, SECRETS, Tables, identity, make_tables, tokens

pytestmark = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=False)


@dataclass(frozen=True)
class Pair:
    """A database that takes writes, and one that is so far behind that its tables are empty."""

    leader: AsyncEngine
    follower: AsyncEngine

    def session(self) -> AsyncSession:
        """The session of SQLAlchemy's documentation: flushes, updates and deletes to the leader, reads to the other."""
        leader, follower = self.leader.sync_engine, self.follower.sync_engine

        class RoutingSession(Session):
            def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Any:
                if self._flushing or isinstance(clause, (sa.Update, sa.Delete)):
                    return leader
                return follower

        return AsyncSession(sync_session_class=RoutingSession, expire_on_commit=False)

    async def create(self, metadata: sa.MetaData) -> None:
        for engine in (self.leader, self.follower):
            await create(engine, metadata)


@pytest.fixture
async def pair(database: Database, tmp_path: Path) -> Pair:
    """A leader, and a follower to which nothing has come yet."""
    leader = database.engine()
    if database.kind == "sqlite":
        follower = database.engine(url=f"sqlite+aiosqlite:///{tmp_path / 'follower.db'}")
    else:
        await run_sql(leader, "DROP SCHEMA IF EXISTS follower CASCADE", "CREATE SCHEMA follower")
        follower = database.engine(connect_args={"server_settings": {"search_path": "follower"}})
    return Pair(leader, follower)


async def stored(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    return await rows(engine, "SELECT user_id, account_id FROM connections ORDER BY id")


async def test_every_call_goes_to_the_leader(pair: Pair) -> None:
    """Links are written and read where the transaction's own writes are: a follower would know nothing of them."""
    tables = make_tables(EXCLUSIVE_SOFT)
    grants = grants_table(tables.metadata, user_id=sa.Integer())
    await pair.create(tables.metadata)
    linker, shares = tables.linker(), ShareGrants(grants)
    async with pair.session() as session:
        made = await linker.link(session, user_id=1, identity=identity(), credentials=tokens())
        assert isinstance(made, Linked)
        assert [made.account] == list(await linker.accounts(session, user_id=1))
        assert made.account == await linker.account(session, user_id=1, link_id=made.account.id)
        assert made.account == await linker.find_owner(session, provider="acme", account_id="sub-1")
        conflict = await linker.link(session, user_id=2, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        assert isinstance(await linker.transfer(session, str(conflict.transfer_token), user_id=2), Transferred)
        await linker.unlink(session, user_id=2, link_id=made.account.id)
        await linker.link(session, user_id=2, identity=identity())
        issued = await shares.issue(session, grantor_id=1, expires_in=timedelta(hours=1))
        assert isinstance(await shares.redeem(session, issued.token, grantee_id=2), Granted)
        assert 1 == len(await shares.active(session, grantee_id=2))
        await shares.revoke(session, grantor_id=1, token=issued.token)
        assert 0 == await shares.expire(session)
        await session.commit()
    assert [(2, "sub-1")] == await stored(pair.leader)
    assert [] == await stored(pair.follower)


async def test_an_object_that_is_held_is_refreshed_from_the_leader(pair: Pair) -> None:
    """After a link an ORM object shows the written values, even if the session reads from another engine."""
    tables = make_tables(EXCLUSIVE_SOFT)
    await pair.create(tables.metadata)
    linker = tables.linker()
    await linker.link(pair.leader, user_id=1, identity=identity(email="old@example.com"))
    await linker.link(pair.follower, user_id=1, identity=identity(email="old@example.com"))
    async with pair.session() as session:
        held = await session.get_one(tables.Connection, 1)
        await linker.link(session, user_id=1, identity=identity(email="new@example.com"))
        assert "new@example.com" == held.email
        held.label = "mine"
        await linker.unlink(session, user_id=1, link_id=1)
        assert held.deleted_at is not None
        await session.commit()
    assert [("new@example.com", "mine")] == await rows(pair.leader, "SELECT email, label FROM connections")


LOADING = {"when asked for": "select", "with the row": "joined", "by option alone": "raise"}


@pytest.mark.parametrize("lazy", LOADING.values(), ids=LOADING)
@pytest.mark.parametrize("lags", [True, False], ids=["the row is not there yet", "the row has its former user"])
async def test_an_object_of_a_transferred_row_has_its_new_user(pair: Pair, lazy: Any, lags: bool) -> None:
    """Which user that is says the row on the leader, whatever the follower has; the user may be read from there."""

    class Base(DeclarativeBase):
        type_annotation_map = {int: sa.BigInteger().with_variant(sa.Integer, "sqlite")}  # noqa: RUF012  # SQLAlchemy's name

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = EXCLUSIVE_SOFT
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
        user = relationship(User, lazy=lazy)

    await pair.create(Base.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(Connection, secrets=SECRETS)
    for engine in (pair.leader, pair.follower):
        await run_sql(engine, "INSERT INTO users VALUES (1), (2)")
        await linker.link(engine, user_id=1, identity=identity())
    async with pair.session() as session:
        held = (await session.scalars(sa.select(Connection).options(joinedload(Connection.user)))).one()
        assert 1 == held.user.id
        await session.commit()
        if lags:
            await run_sql(pair.follower, "DELETE FROM connections")
        claim = await linker.link(session, user_id=2, identity=identity())
        assert isinstance(claim, OwnershipConflict)
        assert isinstance(await linker.transfer(session, str(claim.transfer_token), user_id=2), Transferred)
        assert 2 == held.user_id
        if lazy == "raise":
            assert "user" in sa.inspect(held).unloaded
        else:
            assert 2 == held.user.id
        await session.commit()


async def test_an_object_of_a_deleted_row_leaves_the_session(pair: Pair) -> None:
    """Under Removal.DELETE nothing is deleted on the follower."""
    tables = make_tables(EXCLUSIVE)
    await pair.create(tables.metadata)
    linker = tables.linker()
    for engine in (pair.leader, pair.follower):
        await linker.link(engine, user_id=1, identity=identity())
    async with pair.session() as session:
        held = await session.get_one(tables.Connection, 1)
        await linker.unlink(session, user_id=1, link_id=1)
        assert held not in session
        await session.commit()
    assert [] == await stored(pair.leader)
    assert [(1, "sub-1")] == await stored(pair.follower)


@asynccontextmanager
async def partitioned(pair: Pair, tables: Tables, how: str) -> AsyncIterator[AsyncSession]:
    """A session in which the model, or its table, has an engine of its own."""
    links, rest = pair.leader.sync_engine, pair.follower.sync_engine

    class VerticalSession(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:
            return links if mapper is not None and issubclass(mapper.class_, tables.Connection) else rest

    sessions = {
        "by model": lambda: AsyncSession(binds={tables.Connection: pair.leader, tables.Note: pair.follower}),
        "by table": lambda: AsyncSession(
            binds={tables.Connection.__table__: pair.leader, tables.Note.__table__: pair.follower}
        ),
        "by get_bind": lambda: AsyncSession(sync_session_class=VerticalSession),
    }
    async with sessions[how]() as session:
        yield session


@pytest.mark.parametrize("how", ["by model", "by table", "by get_bind"])
async def test_a_model_with_an_engine_of_its_own_is_written_there(pair: Pair, how: str) -> None:
    """Sessions that are partitioned by model, or by table, keep links where their model is."""
    tables = make_tables(EXCLUSIVE_SOFT)
    await pair.create(tables.metadata)
    async with partitioned(pair, tables, how) as session:
        session.add(tables.Note(text="elsewhere"))
        await tables.linker().link(session, user_id=1, identity=identity())
        await session.commit()
    assert ([(1, "sub-1")], []) == (await stored(pair.leader), await stored(pair.follower))
    assert [("elsewhere",)] == await rows(pair.follower, "SELECT text FROM notes")


@pytest.mark.parametrize("how", ["by table", "routing"])
async def test_a_core_table_is_written_where_it_belongs(pair: Pair, how: str) -> None:
    """A mapping of a table, which no mapper stands for, is routed by the table and by the kind of statement."""
    tables = make_tables(EXCLUSIVE_SOFT)
    await pair.create(tables.metadata)
    table: Any = tables.Connection.__table__
    linker = AccountLinker(AccountMapping(table, policy=EXCLUSIVE_SOFT), secrets=SECRETS)
    bound = AsyncSession(binds={table: pair.leader}) if how == "by table" else pair.session()
    async with bound as session:
        await linker.link(session, user_id=1, identity=identity())
        await session.commit()
    assert ([(1, "sub-1")], []) == (await stored(pair.leader), await stored(pair.follower))
