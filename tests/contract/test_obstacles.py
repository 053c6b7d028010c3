"""An obstacle to a link is reported with its true cause, on each database."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import BlockedByConstraint, Change, Linked, OwnershipConflict
from tests.support.binds import BINDS, bound
from tests.support.databases import create, rows, run_sql
from tests.support.models import (
    EXCLUSIVE,
    EXCLUSIVE_SOFT,
    PER_USER,
    PER_USER_SOFT,
    identity,
    make_tables,
    shared_tables,
    tokens,
)

pytestmark = pytest.mark.each_driver


@pytest.mark.parametrize("how", BINDS)
async def test_a_stale_unique_index_blocks_the_second_account(engine: AsyncEngine, how: str) -> None:
    """Unique on (user_id, provider): the second account is blocked by its true name, neither conflict nor success."""
    tables = shared_tables(PER_USER)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX old_one_per_provider ON connections (user_id, provider)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("sub-1"), credentials=tokens())
    before = await rows(engine, "SELECT * FROM connections")
    async with bound(engine, how) as bind:
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(bind, user_id=1, identity=identity("sub-2"), credentials=tokens())
    assert ("old_one_per_provider", ("user_id", "provider"), "stale-unique") == (
        caught.value.constraint,
        caught.value.columns,
        caught.value.rule,
    )
    assert before == await rows(engine, "SELECT * FROM connections")
    again = await linker.link(engine, user_id=1, identity=identity("sub-1"))
    assert isinstance(again, Linked)
    assert Change.UPDATED is again.change


@pytest.mark.parametrize("how", BINDS)
async def test_relinking_with_an_email_of_another_row_is_blocked(engine: AsyncEngine, how: str) -> None:
    """F14: an own relink that violates another unique index is blocked by name and columns, and nothing is changed."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX one_email ON connections (provider, email)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("sub-1"), credentials=tokens())
    await linker.link(engine, user_id=2, identity=identity("sub-2"), credentials=tokens())
    before = await rows(engine, "SELECT * FROM connections ORDER BY id")
    async with bound(engine, how) as bind:
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(bind, user_id=1, identity=identity("sub-1", email="sub-2@example.com"))
    assert ("one_email", ("provider", "email")) == (caught.value.constraint, caught.value.columns)
    assert before == await rows(engine, "SELECT * FROM connections ORDER BY id")


@pytest.mark.parametrize("how", BINDS)
async def test_a_unique_index_on_an_expression_is_named(engine: AsyncEngine, how: str) -> None:
    """An index on an expression is named too, with its columns as far as they are columns."""
    tables = shared_tables(PER_USER)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX lowered ON connections (provider, lower(account_id))")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("abc"))
    async with bound(engine, how) as bind:
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(bind, user_id=1, identity=identity("ABC"))
    assert ("lowered", ("provider", "(expression)")) == (caught.value.constraint, caught.value.columns)


@pytest.mark.parametrize("how", BINDS)
async def test_another_users_dead_row_under_a_full_index_blocks(engine: AsyncEngine, how: str) -> None:
    """A full index that dead rows occupy is blocked and never adopted; one's own dead row is restored."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX full_key ON connections (provider, account_id)")
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(first, Linked)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    before = await rows(engine, "SELECT * FROM connections")
    async with bound(engine, how) as bind:
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(bind, user_id=2, identity=identity(), credentials=tokens())
    assert ("full_key", ("provider", "account_id"), "key-counts-deleted") == (
        caught.value.constraint,
        caught.value.columns,
        caught.value.rule,
    )
    assert before == await rows(engine, "SELECT * FROM connections")
    back = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(back, Linked)
    assert (Change.RESTORED, first.account.id) == (back.change, back.account.id)


async def test_a_global_index_under_a_per_user_policy_is_stale(engine: AsyncEngine) -> None:
    """PER_USER allows what a global unique index forbids: blocked, and the rule is stale-unique, never a conflict."""
    tables = shared_tables(PER_USER_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX global_key ON connections (provider, account_id)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity())
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=2, identity=identity())
    assert ("global_key", "stale-unique") == (caught.value.constraint, caught.value.rule)


async def test_a_primary_key_that_comes_twice_is_named(engine: AsyncEngine) -> None:
    """A sequence that lags behind imported rows is blocked by the primary key's own name, not told as a conflict."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker, model = tables.linker(), tables.Connection
    async with engine.begin() as connection:
        for n in range(1, 20):
            await connection.execute(sa.insert(model).values(id=n, user_id=n, provider="acme", account_id=f"old-{n}"))
    if engine.dialect.name == "sqlite":  # which takes the next free id by itself
        outcome = await linker.link(engine, user_id=1, identity=identity())
        assert isinstance(outcome, Linked)
        return
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=1, identity=identity())
    assert ("connections_pkey", ("id",)) == (caught.value.constraint, caught.value.columns)


FOREIGN_TABLE = "CREATE TABLE ledger (account_id VARCHAR(255) CONSTRAINT ledger_once UNIQUE)"


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("violation", ["foreign key", "check", "not null", "another table"])
async def test_foreign_violations_propagate_as_they_are(engine: AsyncEngine, violation: str, how: str) -> None:
    """A violation of another table is SQLAlchemy's IntegrityError without parameters; the transaction continues."""
    tables = make_tables(EXCLUSIVE)
    model = tables.Connection
    if violation == "foreign key":
        users = sa.Table("users", tables.metadata, sa.Column("id", model.user_id.type, primary_key=True))
        model.__table__.append_constraint(sa.ForeignKeyConstraint([model.user_id], [users.c.id], name="fk_user"))
    if violation == "check":
        model.__table__.append_constraint(sa.CheckConstraint("score < 100", name="score_small"))
    await create(engine, tables.metadata)
    values: Any = {model.label: "secret-label"}
    if violation == "check":
        values[model.score] = 100
    if violation == "not null":
        values[model.score] = None
    if violation == "another table":
        await run_sql(engine, FOREIGN_TABLE, *_writes_ledger(engine), "INSERT INTO ledger VALUES ('sub-1')")
    async with bound(engine, how) as bind:
        with pytest.raises(sa.exc.IntegrityError) as caught:
            await tables.linker().link(
                bind, user_id=1, identity=identity(), credentials=tokens("secret-token"), values=values
            )
    error = caught.value
    assert error.params is None
    for shown in (str(error), repr(error), str(error.orig), repr(error.orig), repr(vars(error))):
        for secret in ("secret-token", "secret-label", "sub-1@example.com"):
            assert secret not in shown
    if engine.dialect.name == "postgresql":
        states = {"foreign key": "23503", "check": "23514", "not null": "23502", "another table": "23505"}
        assert states[violation] == error.orig.sqlstate  # type: ignore[union-attr]  # the driver's own
    assert [(0,)] == await rows(engine, "SELECT count(*) FROM connections")


def _writes_ledger(engine: AsyncEngine) -> list[str]:
    if engine.dialect.name == "sqlite":
        body = "BEGIN INSERT INTO ledger VALUES (NEW.account_id); END"
        return [f"CREATE TRIGGER note AFTER INSERT ON connections {body}"]
    body = "BEGIN INSERT INTO ledger VALUES (NEW.account_id); RETURN NEW; END"
    return [
        f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
        "CREATE TRIGGER note AFTER INSERT ON connections FOR EACH ROW EXECUTE FUNCTION note()",
    ]


async def test_a_stale_index_does_not_hide_a_conflict(engine: AsyncEngine) -> None:
    """Where the account has another owner, that is the answer, whatever else would block the insert too."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX old ON connections (user_id, provider)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("sub-1"))
    await linker.link(engine, user_id=2, identity=identity("sub-2"))
    outcome = await linker.link(engine, user_id=1, identity=identity("sub-2"))
    assert isinstance(outcome, OwnershipConflict)
