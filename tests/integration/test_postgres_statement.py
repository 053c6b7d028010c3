"""The cost of a link on PostgreSQL, and the rows it does not change: counted on the wire and in the catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import AccountNotFound, Change, Linked, OwnershipConflict
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER_SOFT, identity, shared_tables, tokens
from tests.support.wire import WireProxy

WARM = 8
"""Enough calls for each driver to have prepared its statements (psycopg prepares at the sixth)."""


@pytest.fixture(params=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


@pytest.fixture
async def wire(database: Database) -> AsyncIterator[WireProxy]:
    """A counting proxy in front of the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


def through(wire: WireProxy, database: Database, **options: Any) -> AsyncEngine:
    url = make_url(database.url).set(port=wire.port)
    return database.engine(url=url, pool_size=1, max_overflow=0, **options)


async def test_an_engine_links_in_one_round_trip(database: Database, wire: WireProxy) -> None:
    """One round trip each for first link, relink, conflict and restore, with nothing around it."""
    engine = through(wire, database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    trips: dict[str, list[int]] = {"created": [], "updated": [], "conflict": [], "restored": []}

    async def count(name: str, user: int, account: str) -> Any:
        wire.reset()
        outcome = await linker.link(engine, user_id=user, identity=identity(account), credentials=tokens())
        trips[name].append(wire.trips)
        assert name == (outcome.change.value if isinstance(outcome, Linked) else "conflict")
        return outcome

    for n in range(WARM):
        created = await count("created", 1, f"sub-{n}")
        await count("updated", 1, f"sub-{n}")
        await count("conflict", 2, f"sub-{n}")
        await linker.unlink(engine, user_id=1, link_id=created.account.id)
        await count("restored", 1, f"sub-{n}")
    assert {"created": 1, "updated": 1, "conflict": 1, "restored": 1} == {k: v[-1] for k, v in trips.items()}, trips


@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_callers_transaction_gets_the_statement_in_one_savepoint(
    database: Database, wire: WireProxy, how: str
) -> None:
    """In a caller's transaction: SAVEPOINT, that one statement, RELEASE, and nothing else."""
    engine = through(wire, database)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("theirs"))
    seen, statements = 0, [""]
    for n in range(WARM):
        for user, account, expected in (
            (2, f"sub-{n}", Linked),
            (2, f"sub-{n}", Linked),
            (2, "theirs", OwnershipConflict),
        ):
            async with engine.connect() as connection:
                bind: Any = connection if how == "connection" else AsyncSession(connection)
                await bind.execute(sa.text("SELECT 1"))
                wire.reset()
                outcome = await linker.link(bind, user_id=user, identity=identity(account), credentials=tokens())
                assert isinstance(outcome, expected)
                seen, statements = wire.trips, wire.statements
                await bind.commit()
                if how == "session":
                    await bind.close()
    assert 3 == seen, statements
    assert ["SAVEPOINT", "WITH", "RELEASE"] == [statement.split()[0].upper() for statement in statements]


async def test_an_ordinary_conflict_writes_no_wal(database: Database) -> None:
    """A conflict that is answered from a read writes 0 bytes of write-ahead log."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    await run_sql(engine, "ALTER TABLE connections SET (autovacuum_enabled = off)")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("CHECKPOINT")
    written = []
    for _ in range(20):
        before = (await rows(engine, "SELECT pg_current_wal_insert_lsn()"))[0][0]
        outcome = await linker.link(engine, user_id=2, identity=identity(), credentials=tokens())
        assert isinstance(outcome, OwnershipConflict)
        bytes_ = await rows(engine, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), CAST(:b AS pg_lsn))", b=before)
        written.append(int(bytes_[0][0]))
    # The server's own background processes write now and then; a conflict itself would show in every round.
    assert [0] * 15 == sorted(written)[:15], written


SPY = (
    "CREATE TABLE fired (note text)",
    """CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN INSERT INTO fired VALUES (TG_OP || ' ' || OLD.user_id); RETURN NEW; END $$""",
    "CREATE TRIGGER spy BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION spy()",
)
VERSION = "SELECT CAST(ctid AS text), CAST(xmin AS text), user_id, updated_at FROM connections WHERE user_id = 1"


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_the_owners_row_does_not_move_in_a_conflict(database: Database, policy: Any) -> None:
    """In a conflict the owner's row keeps its version: same ctid and xmin, and no update trigger fires."""
    engine = database.engine()
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    await run_sql(engine, *SPY)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    before = await rows(engine, VERSION)
    for bind_user in (2, 3):
        outcome = await linker.link(engine, user_id=bind_user, identity=identity(), credentials=tokens("stolen"))
        assert isinstance(outcome, OwnershipConflict)
    async with AsyncSession(engine) as session:
        await linker.link(session, user_id=4, identity=identity(), credentials=tokens("stolen"))
        await session.commit()
    assert before == await rows(engine, VERSION)
    assert [] == await rows(engine, "SELECT * FROM fired")


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_the_owners_row_does_not_move_in_a_lost_race(database: Database, how: str) -> None:
    """A rival who has not committed yet wins: the loser waits, conflicts, and never writes the winner's row."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, *SPY)
    linker = tables.linker()
    async with AsyncSession(engine) as rival, AsyncSession(engine) as session:
        await linker.link(rival, user_id=1, identity=identity(), credentials=tokens())
        bind: Any = engine if how == "engine" else session
        loser = asyncio.create_task(linker.link(bind, user_id=2, identity=identity(), credentials=tokens("stolen")))
        await waiting(engine)
        assert not loser.done()
        await rival.commit()
        before = await rows(engine, VERSION)
        outcome = await loser
        await session.commit()
    assert isinstance(outcome, OwnershipConflict)
    assert 1 == outcome.owner_id
    assert before == await rows(engine, VERSION)
    assert [] == await rows(engine, "SELECT * FROM fired")
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM connections")


async def test_a_rival_who_rolls_back_leaves_the_account(database: Database) -> None:
    """F06: the rival rolls back, and the one who waited has the account."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    async with AsyncSession(engine) as rival:
        await linker.link(rival, user_id=1, identity=identity())
        waiter = asyncio.create_task(linker.link(engine, user_id=2, identity=identity()))
        await waiting(engine)
        await rival.rollback()
        outcome = await waiter
    assert isinstance(outcome, Linked)
    assert Change.CREATED is outcome.change


async def waiting(engine: AsyncEngine) -> None:
    """Wait until a backend waits for a lock."""
    for _ in range(500):
        if (await rows(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


async def test_relinks_and_conflicts_burn_no_ids(database: Database) -> None:
    """F26: a thousand relinks and conflicts leave the id sequence where it was."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity())
    for user in [1, 2] * 500:
        await linker.link(engine, user_id=user, identity=identity())
    assert [(1,)] == await rows(engine, "SELECT last_value FROM connections_id_seq")


async def test_a_partial_and_a_full_index_on_the_same_columns(database: Database) -> None:
    """A live row under a full and a partial index is updated; a dead one is never "updated" while it stays dead."""
    engine = database.engine()
    tables = shared_tables(PER_USER_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX full_key ON connections (user_id, provider, account_id)")
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens("a1"))
    assert isinstance(first, Linked)
    second = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens("a2"))
    assert isinstance(second, Linked)
    assert Change.UPDATED is second.change
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    third = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens("a3"))
    assert isinstance(third, Linked)
    assert (Change.RESTORED, first.account.id) == (third.change, third.account.id)
    assert [("a3", None)] == await rows(engine, "SELECT access_token, deleted_at FROM connections")


@pytest.mark.parametrize("how", ["engine", "session"])
@pytest.mark.parametrize("call", ["link", "unlink"])
async def test_a_row_that_changes_hands_while_its_user_waits_is_not_written(
    database: Database, call: str, how: str
) -> None:
    """A row that goes to another user while a relink or an unlink waits for it is the new owner's: it does not move."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, *SPY)
    linker = tables.linker()
    mine = await linker.link(engine, user_id=2, identity=identity(), credentials=tokens("before"))
    assert isinstance(mine, Linked)
    async with engine.connect() as rival, AsyncSession(engine) as session:
        await rival.exec_driver_sql("UPDATE connections SET user_id = 1, access_token = 'theirs'")
        bind: Any = engine if how == "engine" else session
        if call == "link":
            coming: Any = linker.link(bind, user_id=2, identity=identity(), credentials=tokens("mine"))
        else:
            coming = linker.unlink(bind, user_id=2, link_id=mine.account.id)
        waiter = asyncio.create_task(coming)
        await waiting(engine)
        await rival.commit()
        before = await rows(engine, VERSION)
        if call == "link":
            outcome = await waiter
            assert isinstance(outcome, OwnershipConflict)
            assert 1 == outcome.owner_id
        else:
            with pytest.raises(AccountNotFound):
                await waiter
        await session.commit()
    assert before == await rows(engine, VERSION)
    assert [("theirs", None)] == await rows(engine, "SELECT access_token, deleted_at FROM connections")
    assert [("UPDATE 2",)] == await rows(engine, "SELECT note FROM fired"), "the rival's own update alone"


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_row_that_is_removed_while_a_relink_waits_is_restored(database: Database, how: str) -> None:
    """F17: a relink that waited for an unlink reports a restore with the same id."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    mine = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(mine, Linked)
    async with AsyncSession(engine) as rival, AsyncSession(engine) as session:
        await linker.unlink(rival, user_id=1, link_id=mine.account.id)
        bind: Any = engine if how == "engine" else session
        waiter = asyncio.create_task(
            linker.link(bind, user_id=1, identity=identity(), credentials=tokens("again", None))
        )
        await waiting(engine)
        await rival.commit()
        outcome = await waiter
        await session.commit()
    assert isinstance(outcome, Linked)
    assert (Change.RESTORED, mine.account.id) == (outcome.change, outcome.account.id)
    stored = "SELECT access_token, refresh_token, deleted_at FROM connections"
    assert [("again", None, None)] == await rows(engine, stored)
