"""Tables as they come: reflected, versioned, generated, defaulted; served, or refused with a remedy."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from accountlink import (
    AccountLinker,
    AccountMapping,
    BlockedByConstraint,
    Change,
    ConfigurationError,
    Linked,
    OwnershipConflict,
    tune_sqlite,
)
from tests.support.databases import create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER, Clock, identity, shared_tables, tokens

pytestmark = pytest.mark.each_driver

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


async def linked(linker: AccountLinker[Any, Any], bind: Any, **call: Any) -> Linked[Any, Any]:
    outcome = await linker.link(bind, **call)
    assert isinstance(outcome, Linked), outcome
    return outcome


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_a_reflected_table(engine: AsyncEngine, policy: Any) -> None:
    """A table that is read from the database, with nothing declared, is mapped by its column names."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    await run_sql(engine, "ALTER TABLE connections ALTER COLUMN score SET DEFAULT 1") if (
        engine.dialect.name == "postgresql"
    ) else None
    metadata = sa.MetaData()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.reflect)
    table = metadata.tables["connections"]
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=policy))
    score = {table.c.score: 3}
    first = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens(), values=score)
    again = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens("access-2"))
    assert (Change.CREATED, Change.UPDATED) == (first.change, again.change)
    assert isinstance(await linker.link(engine, user_id=2, identity=identity(), values=score), OwnershipConflict)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    assert [] == list(await linker.accounts(engine, user_id=1))


def versioned(generator: Any = None) -> Any:
    class Base(DeclarativeBase):
        pass

    class Link(Base):
        __tablename__ = "links"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        user_id: Mapped[int]
        provider: Mapped[str]
        account_id: Mapped[str]
        access_token: Mapped[str | None]
        note: Mapped[str | None]
        counter: Mapped[int] = mapped_column(nullable=False)
        __mapper_args__ = {"version_id_col": counter} | (
            {} if generator is None else {"version_id_generator": generator}
        )

    return Link


async def test_an_orm_version_counter_rises_with_each_link(engine: AsyncEngine) -> None:
    """A link beside the ORM raises its version_id_col, so that a stale object elsewhere is noticed."""
    model = versioned()
    await create(engine, model.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(model, policy=PER_USER))
    only_access = tokens(refresh=None, scopes=(), expires_at=None)
    first = await linked(linker, engine, user_id=1, identity=identity(email=None), credentials=only_access)
    async with AsyncSession(engine) as stale:
        held = await stale.get(model, first.account.id)
        await stale.commit()  # the row is not held while somebody else writes it
        await stale.refresh(held)
        await stale.commit()
        await linked(linker, engine, user_id=1, identity=identity(email=None), credentials=only_access)
        stale.expunge(held)
    assert [(2,)] == await rows(engine, "SELECT counter FROM links")
    async with AsyncSession(engine) as session:
        late = model(id=first.account.id, user_id=1, provider="acme", account_id="sub-1", counter=1)
        sa.orm.make_transient_to_detached(late)
        session.add(late)
        late.note = "too late"
        with pytest.raises(StaleDataError):
            await session.commit()


async def test_a_version_that_a_statement_cannot_make_is_refused() -> None:
    """A version_id_col with a generator of its own cannot be raised by a statement: refused with the remedy."""
    with pytest.raises(ConfigurationError, match="version_id_generator=False"):
        AccountMapping(versioned(lambda version: (version or 0) + 10), policy=PER_USER)


def defaulted() -> Any:
    class Base(DeclarativeBase):
        pass

    class Link(Base):
        __tablename__ = "links"
        id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
        user_id: Mapped[int]
        provider: Mapped[str]
        account_id: Mapped[str]
        deleted_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
        made: Mapped[str] = mapped_column(default=lambda: "made")
        touched: Mapped[str] = mapped_column(default="never", onupdate=lambda: "touched")
        twofold: Mapped[int] = mapped_column(default=lambda: 1, onupdate=lambda: 2)
        fixed: Mapped[int] = mapped_column(default=7, onupdate=8)
        by_sql: Mapped[int] = mapped_column(default=sa.select(sa.literal(3)).scalar_subquery())
        by_server: Mapped[str] = mapped_column(server_default="server")
        computed: Mapped[int] = mapped_column(sa.Computed("user_id + 1", persisted=True))

    return Link


async def test_column_defaults_of_every_kind(engine: AsyncEngine) -> None:
    """Python, SQL and server defaults fill a new row; functions and values of onupdate fire on each later write."""
    model = defaulted()
    await create(engine, model.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(model, policy=EXCLUSIVE_SOFT), clock=Clock())
    columns = "SELECT made, touched, twofold, fixed, by_sql, by_server, computed FROM links"
    one = await linked(linker, engine, user_id=1, identity=identity(email=None))
    two = await linked(linker, engine, user_id=1, identity=identity("sub-2", email=None))
    assert one.account.id != two.account.id
    assert [("made", "never", 1, 7, 3, "server", 2)] * 2 == await rows(engine, columns)
    await linked(linker, engine, user_id=1, identity=identity(email=None))
    one_row = columns + " WHERE account_id = 'sub-1'"
    assert [("made", "touched", 2, 8, 3, "server", 2)] == await rows(engine, one_row)
    await run_sql(engine, "UPDATE links SET touched = 'reset', twofold = 0, fixed = 0")
    await linker.unlink(engine, user_id=1, link_id=one.account.id)
    assert [("made", "touched", 2, 8, 3, "server", 2)] == await rows(engine, one_row)
    await run_sql(engine, "UPDATE links SET touched = 'reset', twofold = 0, fixed = 0")
    restored = await linked(linker, engine, user_id=1, identity=identity(email=None))
    assert Change.RESTORED is restored.change
    assert [("made", "touched", 2, 8, 3, "server", 2)] == await rows(engine, one_row)


async def test_a_default_that_needs_a_context_is_refused(engine: AsyncEngine) -> None:
    """A default function that reads the statement's context is refused by name before any SQL, on every database."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("copy", sa.Text, default=lambda context: context.get_current_parameters()["provider"]),
    )
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE))
    with pytest.raises(ConfigurationError, match=r"links\.copy"):
        await linker.link(engine, user_id=1, identity=identity(email=None))


async def test_a_table_of_bare_keys(engine: AsyncEngine) -> None:
    """A table with only the key's columns can be linked again."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.UniqueConstraint("provider", "account_id"),
    )
    await create(engine, table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE))
    for expected in (Change.CREATED, Change.UPDATED, Change.UPDATED):
        assert expected is (await linked(linker, engine, user_id=1, identity=identity(email=None))).change
    assert isinstance(await linker.link(engine, user_id=2, identity=identity(email=None)), OwnershipConflict)


async def test_a_token_column_that_takes_no_null(engine: AsyncEngine) -> None:
    """A32: where a token column takes no NULL, a restore without credentials leaves an empty text, no old token."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("access_token", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean),
    )
    await create(engine, table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE_SOFT))
    only_access = tokens(refresh=None, scopes=(), expires_at=None)
    first = await linked(linker, engine, user_id=1, identity=identity(email=None), credentials=only_access)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    restored = await linked(linker, engine, user_id=1, identity=identity(email=None))
    assert Change.RESTORED is restored.change
    assert [("",)] == await rows(engine, "SELECT access_token FROM links")


async def test_a_provider_that_the_enumeration_lacks(engine: AsyncEngine) -> None:
    """An enumerated provider column takes its members by slug, and another provider is refused before any SQL."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Enum("GOOGLE", "MICROSOFT", name="providers"), nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
    )
    await create(engine, table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE))
    outcome = await linked(linker, engine, user_id=1, identity=identity(provider="google", email=None))
    assert "google" == outcome.account.provider
    assert [("GOOGLE",)] == await rows(engine, "SELECT CAST(provider AS text) FROM links")
    assert 1 == len(await linker.accounts(engine, user_id=1, provider="google"))
    with pytest.raises(ConfigurationError, match="google, microsoft"):
        await linker.link(engine, user_id=1, identity=identity(provider="github", email=None))


async def test_a_schema_that_is_translated(engine: AsyncEngine) -> None:
    """schema_translate_map moves the table, and a violation there is still recognised as the table's own."""
    if engine.dialect.name == "sqlite":
        await run_sql(engine, "ATTACH DATABASE ':memory:' AS nowhere")  # SQLite has schemas, but one file has one
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.UniqueConstraint("user_id", "provider", name="stale"),
        schema="tenant",
    )
    moved = engine.execution_options(
        schema_translate_map={"tenant": None if engine.dialect.name == "sqlite" else "public"}
    )
    await create(moved, table.metadata)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=PER_USER))
    await linked(linker, moved, user_id=1, identity=identity("a", email=None))
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(moved, user_id=1, identity=identity("b", email=None))
    assert ("user_id", "provider") == caught.value.columns


async def test_moments_in_every_kind_of_column(engine: AsyncEngine) -> None:
    """Aware, naive and integer columns all hold the same moment, and give it back aware."""
    ends = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)
    kinds: list[Any] = [sa.DateTime(timezone=True), sa.DateTime(), sa.BigInteger()]
    for n, kind in enumerate(kinds):
        table = sa.Table(
            f"links_{n}",
            sa.MetaData(),
            sa.Column("id", BIG, primary_key=True),
            sa.Column("user_id", sa.Integer, nullable=False),
            sa.Column("provider", sa.Text, nullable=False),
            sa.Column("account_id", sa.Text, nullable=False),
            sa.Column("access_token", sa.Text),
            sa.Column("expires_at", kind),
            sa.Column("created_at", kind),
        )
        await create(engine, table.metadata)
        linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE), clock=lambda: ends)
        given = tokens(refresh=None, scopes=(), expires_at=ends)
        outcome = await linked(linker, engine, user_id=1, identity=identity(email=None), credentials=given)
        assert ends == outcome.account.created_at
        async with engine.connect() as connection:
            stored = (await connection.execute(sa.select(table.c.expires_at))).scalar_one()
        assert stored in (ends, ends.replace(tzinfo=None), int(ends.timestamp()))


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "untuned"])
async def test_a_database_in_memory_takes_parallel_calls_in_turn(kind: str, tuned: bool) -> None:
    """A database in memory has one connection for all; parallel links and unlinks of its engine take turns."""
    engine = create_async_engine("sqlite+aiosqlite://")
    if tuned:
        tune_sqlite(engine)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)

    async def guard(connection: Any, user_id: int) -> bool:
        return True

    linker = tables.linker(guard_last=guard)
    outcomes = await asyncio.gather(*(linker.link(engine, user_id=1, identity=identity()) for _ in range(32)))
    changes = [outcome.change for outcome in outcomes if isinstance(outcome, Linked)]
    assert (1, 31) == (changes.count(Change.CREATED), changes.count(Change.UPDATED))
    link_id = outcomes[0].account.id  # type: ignore[union-attr]  # all are Linked
    await asyncio.gather(*(linker.unlink(engine, user_id=1, link_id=link_id) for _ in range(8)))
    assert [] == list(await linker.accounts(engine, user_id=1))
    await engine.dispose()


async def test_a_linker_serves_several_event_loops(engine: AsyncEngine) -> None:
    """A linker holds no connection and no loop: one made at import time serves an engine of any loop."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linked(linker, engine, user_id=1, identity=identity())
    url = engine.url.render_as_string(hide_password=False)

    def elsewhere() -> object:
        async def link() -> object:
            other = create_async_engine(url)
            try:
                return await linker.link(other, user_id=1, identity=identity())
            finally:
                await other.dispose()

        return asyncio.run(link())

    outcome = await asyncio.to_thread(elsewhere)
    assert isinstance(outcome, Linked)
    assert Change.UPDATED is outcome.change
