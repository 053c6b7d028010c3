"""PostgreSQL's own ways to refuse, hide, wait and change under a link: each a typed answer, in bounded time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    BlockedByConstraint,
    Change,
    Linked,
    OwnerLookupFailed,
    OwnerNotFound,
    OwnershipConflict,
    RetryTransaction,
    StoreBusy,
)
from tests.support.binds import bound
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER, identity, shared_tables, tokens


@pytest.fixture(params=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


LEVELS = ("REPEATABLE READ", "SERIALIZABLE")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", [1, 2], ids=["same user", "another user"])
async def test_a_lost_race_in_an_old_snapshot_is_retry_transaction(database: Database, level: str, user: int) -> None:
    """F04: inside the caller's transaction nothing can succeed any more; run again, it has the right outcome."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    strict = engine.execution_options(isolation_level=level)
    async with AsyncSession(strict) as session:
        await session.execute(sa.text("SELECT count(*) FROM connections"))
        await linker.link(engine, user_id=1, identity=identity())
        with pytest.raises(RetryTransaction) as caught:
            await linker.link(session, user_id=user, identity=identity())
        assert caught.value.sqlstate in ("40001", "23505")
        await session.rollback()
        outcome = await linker.link(session, user_id=user, identity=identity())
        await session.commit()
    assert isinstance(outcome, Linked if user == 1 else OwnershipConflict)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_lost_restore_in_an_old_snapshot_is_retry_transaction(database: Database, level: str) -> None:
    """F04, F17: a restore whose account another user has taken since the snapshot: run the transaction again."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(first, Linked)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    async with AsyncSession(engine.execution_options(isolation_level=level)) as session:
        await session.execute(sa.text("SELECT count(*) FROM connections"))
        await linker.link(engine, user_id=2, identity=identity())
        with pytest.raises(RetryTransaction):
            await linker.link(session, user_id=1, identity=identity())
        await session.rollback()
        assert isinstance(await linker.link(session, user_id=1, identity=identity()), OwnershipConflict)


@pytest.mark.parametrize("level", LEVELS)
async def test_an_engine_at_a_strict_level_has_the_right_outcomes(database: Database, level: str) -> None:
    """F04, F05: with an engine accountlink retries by itself: one owner, and one created row per user."""
    engine = database.engine(pool_size=24, max_overflow=0)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, f"ALTER ROLE CURRENT_USER SET default_transaction_isolation = '{level.lower()}'")
    try:
        await engine.dispose()
        assert [(level.lower(),)] == await rows(engine, "SHOW transaction_isolation")
        linker = tables.linker()
        for round_ in range(10):
            same = await asyncio.gather(
                *(linker.link(engine, user_id=1, identity=identity(f"same-{round_}")) for _ in range(24))
            )
            assert 1 == sum(isinstance(o, Linked) and o.change is Change.CREATED for o in same), same
            assert all(isinstance(o, Linked) for o in same)
            many = await asyncio.gather(
                *(linker.link(engine, user_id=user, identity=identity(f"many-{round_}")) for user in range(24))
            )
            assert 1 == sum(isinstance(o, Linked) for o in many)
    finally:
        await run_sql(engine, "ALTER ROLE CURRENT_USER RESET default_transaction_isolation")


ROW_SECURITY = (
    "CREATE ROLE tenant LOGIN",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON connections TO tenant",
    "GRANT USAGE ON SEQUENCE connections_id_seq TO tenant",
    "ALTER TABLE connections ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON connections USING (user_id = CAST(current_setting('app.user_id') AS bigint))",
)


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_an_owner_hidden_by_row_level_security(database: Database, how: str) -> None:
    """F18: the owner's row cannot be seen: a typed answer at once, which names row-level security."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity())
    await run_sql(engine, *ROW_SECURITY)
    try:
        settings = "-c app.user_id=2"
        args = {"server_settings": {"app.user_id": "2"}} if database.kind == "asyncpg" else {"options": settings}
        tenant = database.engine(url=make_url(database.url).set(username="tenant"), connect_args=args)
        async with asyncio.timeout(5):
            if how == "engine":
                with pytest.raises(OwnerNotFound) as caught:
                    await linker.link(tenant, user_id=2, identity=identity())
            else:
                async with AsyncSession(tenant) as session:
                    with pytest.raises(OwnerNotFound) as caught:
                        await linker.link(session, user_id=2, identity=identity())
                    assert 1 == await session.scalar(sa.text("SELECT 1"))
        assert ("uq_connections_link", True) == (caught.value.constraint, caught.value.row_security)
        assert "row-level security" in str(caught.value).lower()
        fine = await linker.link(tenant, user_id=2, identity=identity("own"))
        assert isinstance(fine, Linked)
        await tenant.dispose()
    finally:
        await run_sql(engine, "DROP OWNED BY tenant", "DROP ROLE tenant")


def fail_with(function: str, body: str) -> list[str]:
    return [
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER {function} BEFORE INSERT ON connections FOR EACH ROW EXECUTE FUNCTION {function}()",
    ]


VANISHING = "RAISE unique_violation USING CONSTRAINT = 'uq_connections_link', SCHEMA = 'public', TABLE = 'connections';"


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_an_owner_who_is_always_gone_when_looked_for(database: Database, how: str) -> None:
    """F17: refused each time by a row that is gone each time: bounded retries, then database_inconsistency."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    await run_sql(engine, *fail_with("vanish", VANISHING))
    async with asyncio.timeout(5):
        if how == "engine":
            with pytest.raises(OwnerNotFound) as caught:
                await tables.linker().link(engine, user_id=2, identity=identity())
        else:
            async with AsyncSession(engine) as session:
                session.add(tables.Note(text="kept"))
                with pytest.raises(OwnerNotFound) as caught:
                    await tables.linker().link(session, user_id=2, identity=identity())
                await session.commit()
            assert [("kept",)] == await rows(engine, "SELECT text FROM notes")
    assert ("database_inconsistency", "uq_connections_link", False) == (
        caught.value.code,
        caught.value.constraint,
        caught.value.row_security,
    )


async def test_an_owner_who_is_gone_once_is_retried(database: Database) -> None:
    """F17: the row that refused the write is gone when it is looked for: written again, and created."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    once = "IF nextval('tries') <= 2 THEN " + VANISHING + " END IF; RETURN NEW;"
    await run_sql(engine, "CREATE SEQUENCE tries", *fail_with("vanish", once))
    outcome = await tables.linker().link(engine, user_id=2, identity=identity())
    assert isinstance(outcome, Linked)
    assert Change.CREATED is outcome.change


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_look_up_that_fails(database: Database, how: str) -> None:
    """The look-up of the owner fails: database_query_failed with the server's code; the caller's work lives."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await run_sql(engine, "CREATE UNIQUE INDEX stale ON connections (user_id, provider)")
    await linker.link(engine, user_id=1, identity=identity("sub-1"))

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> tuple[str, Any]:
        if "pg_index" in statement:
            return "SELECT 1 / 0", ()
        return statement, _[0]

    sa.event.listen(engine.sync_engine, "before_cursor_execute", fail, retval=True)
    if how == "engine":
        with pytest.raises(OwnerLookupFailed) as caught:
            await linker.link(engine, user_id=1, identity=identity("sub-2"))
    else:
        async with AsyncSession(engine) as session:
            session.add(tables.Note(text="kept"))
            with pytest.raises(OwnerLookupFailed) as caught:
                await linker.link(session, user_id=1, identity=identity("sub-2"))
            await session.commit()
        assert [("kept",)] == await rows(engine, "SELECT text FROM notes")
    assert ("database_query_failed", "22012", "acme") == (
        caught.value.code,
        caught.value.sqlstate,
        caught.value.provider,
    )


def patient(database: Database, **settings: str) -> AsyncEngine:
    if database.kind == "asyncpg":
        return database.engine(connect_args={"server_settings": settings})
    return database.engine(connect_args={"options": " ".join(f"-c {k}={v}" for k, v in settings.items())})


@pytest.mark.parametrize("how", ["engine", "session"])
@pytest.mark.parametrize(("setting", "state"), [("lock_timeout", "55P03"), ("statement_timeout", "57014")])
async def test_a_rival_who_does_not_finish(database: Database, setting: str, state: str, how: str) -> None:
    """F06, F07: waiting for a rival ends with the server's own limit, as StoreBusy; the caller's work lives."""
    engine = patient(database, **{setting: "100ms"})
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    async with AsyncSession(database.engine()) as rival:
        await linker.link(rival, user_id=1, identity=identity())
        async with asyncio.timeout(5):
            if how == "engine":
                with pytest.raises(StoreBusy) as caught:
                    await linker.link(engine, user_id=2, identity=identity())
            else:
                async with AsyncSession(engine) as session:
                    session.add(tables.Note(text="kept"))
                    with pytest.raises(StoreBusy) as caught:
                        await linker.link(session, user_id=2, identity=identity())
                    await session.commit()
                assert [("kept",)] == await rows(engine, "SELECT text FROM notes")
        await rival.rollback()
    assert state == caught.value.sqlstate


async def test_a_migration_that_locks_the_table(database: Database) -> None:
    """F06: the server waits for a table before the call's own limit is set, so only the connection's limit ends it."""
    tables = shared_tables(EXCLUSIVE)
    await create(database.engine(), tables.metadata)
    unlimited = tables.linker(lock_timeout=None)
    async with database.engine().begin() as migration:
        await migration.exec_driver_sql("LOCK TABLE connections IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(5):
            with pytest.raises(StoreBusy) as caught:
                await unlimited.link(patient(database, lock_timeout="100ms"), user_id=1, identity=identity())
        assert "55P03" == caught.value.sqlstate
        limited = tables.linker(lock_timeout=timedelta(milliseconds=100))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(limited.link(database.engine(), user_id=1, identity=identity()), 1)


async def test_an_owner_whose_row_is_locked_does_not_hold_a_conflict_up(database: Database) -> None:
    """A conflict is read, not waited for: the owner's locked row answers at once."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity())
    async with engine.begin() as holder:
        await holder.exec_driver_sql("SELECT * FROM connections FOR UPDATE")
        async with asyncio.timeout(5):
            assert isinstance(await linker.link(engine, user_id=2, identity=identity()), OwnershipConflict)


async def test_a_deadlock_is_settled(database: Database) -> None:
    """F05: two callers link two accounts in opposite orders: one gets RetryTransaction, the other succeeds."""
    engine = patient(database, deadlock_timeout="50ms")
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    async with AsyncSession(engine) as one, AsyncSession(engine) as two:
        await linker.link(one, user_id=1, identity=identity("a"))
        await linker.link(two, user_id=2, identity=identity("b"))

        async def finish(session: AsyncSession, user: int, account: str) -> object:
            try:
                outcome = await linker.link(session, user_id=user, identity=identity(account))
            except RetryTransaction as error:
                await session.rollback()
                return error
            await session.commit()
            return outcome

        async with asyncio.timeout(10):
            results = await asyncio.gather(finish(one, 1, "b"), finish(two, 2, "a"))
    kinds = sorted(type(result).__name__ for result in results)
    assert kinds in (["Linked", "RetryTransaction"], ["OwnershipConflict", "RetryTransaction"]), results
    assert "40P01" in {getattr(result, "sqlstate", None) for result in results}


async def test_a_schema_change_under_a_prepared_statement(database: Database) -> None:
    """F08: a column's type changes under the cached plan: an engine tries again, a caller's transaction goes on."""
    engine = database.engine(pool_size=1, max_overflow=0)
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    for _ in range(8):
        await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    other = database.engine()
    await run_sql(other, "ALTER TABLE connections ALTER COLUMN scopes TYPE varchar(5000)")
    assert isinstance(await linker.link(engine, user_id=1, identity=identity(), credentials=tokens()), Linked)
    async with AsyncSession(engine) as session:
        for _ in range(8):
            await linker.link(session, user_id=1, identity=identity(), credentials=tokens())
        await session.commit()
    await run_sql(other, "ALTER TABLE connections ALTER COLUMN scopes TYPE text")
    async with AsyncSession(engine) as session:
        session.add(tables.Note(text="kept"))
        assert isinstance(await linker.link(session, user_id=1, identity=identity(), credentials=tokens()), Linked)
        await session.commit()
    assert [("kept",)] == await rows(engine, "SELECT text FROM notes")


async def test_indexes_replaced_under_running_links(database: Database) -> None:
    """F08: the key is dropped and built again while links run: no error surfaces, no duplicate is left."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    stop = asyncio.Event()

    async def links(user: int) -> int:
        done = 0
        while not stop.is_set():
            outcome = await linker.link(engine, user_id=user, identity=identity(f"sub-{done % 50}"))
            assert isinstance(outcome, (Linked, OwnershipConflict))
            done += 1
        return done

    workers = [asyncio.create_task(links(user)) for user in (1, 2, 3)]
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        for n in range(3):
            await connection.exec_driver_sql(
                f"CREATE UNIQUE INDEX CONCURRENTLY swap_{n} ON connections (provider, account_id)"
            )
            await connection.exec_driver_sql("REINDEX INDEX CONCURRENTLY uq_connections_link")
            await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY swap_{n}")
    stop.set()
    assert all(done > 0 for done in await asyncio.gather(*workers))
    assert [] == await rows(engine, "SELECT account_id FROM connections GROUP BY account_id HAVING count(*) > 1")


async def test_a_deferrable_constraint_is_named(database: Database) -> None:
    """A deferrable unique constraint cannot guard an upsert: blocked, with the doctor's rule for it."""
    engine = database.engine()
    tables = shared_tables(PER_USER)
    await create(engine, tables.metadata)
    await run_sql(engine, "ALTER TABLE connections ADD CONSTRAINT later UNIQUE (user_id, score) DEFERRABLE")
    with pytest.raises(BlockedByConstraint) as caught:
        await tables.linker().link(engine, user_id=1, identity=identity())
    assert ("later", "deferrable-key") == (caught.value.constraint, caught.value.rule)


async def test_a_partition_is_part_of_the_table(database: Database) -> None:
    """23505 on a partitioned table names the partition's index; it is recognised as the table's own."""
    engine = database.engine()
    tables = shared_tables(PER_USER)
    create_table = (
        "CREATE TABLE connections (id bigint GENERATED ALWAYS AS IDENTITY, user_id bigint NOT NULL, label text, "
        "score bigint, provider varchar(255) NOT NULL, account_id varchar(255) NOT NULL, email text, "
        "access_token text, refresh_token text, expires_at timestamptz, scopes text, created_at timestamptz, "
        "updated_at timestamptz, version bigint, UNIQUE (user_id, provider)) PARTITION BY HASH (user_id)"
    )
    parts = [
        f"CREATE TABLE connections_{n} PARTITION OF connections FOR VALUES WITH (MODULUS 2, REMAINDER {n})"
        for n in (0, 1)
    ]
    await run_sql(engine, create_table, *parts)
    linker: AccountLinker[Any, Any] = tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity("sub-1"))
    again = await linker.link(engine, user_id=1, identity=identity("sub-1"))
    assert isinstance(first, Linked)
    assert isinstance(again, Linked)
    assert (Change.CREATED, Change.UPDATED) == (first.change, again.change)
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=1, identity=identity("sub-2"))
    assert ("user_id", "provider") == caught.value.columns


@pytest.mark.parametrize("call", ["link", "unlink", "guarded unlink"])
async def test_waiting_is_bounded_where_the_server_sets_no_bound(database: Database, call: str) -> None:
    """F06: in a transaction of its own accountlink bounds its waiting itself, and leaves no setting behind."""
    engine = database.engine(pool_size=1, max_overflow=0)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)

    async def guard(connection: Any, user_id: int) -> bool:
        return True

    linker = tables.linker(
        lock_timeout=timedelta(milliseconds=100), guard_last=guard if call == "guarded unlink" else None
    )
    mine = await linker.link(engine, user_id=1, identity=identity("mine"))
    assert isinstance(mine, Linked)
    async with database.engine().begin() as rival:
        await rival.exec_driver_sql("SELECT * FROM connections FOR UPDATE")
        again = linker.link(engine, user_id=1, identity=identity("mine"), credentials=tokens())
        gone = linker.unlink(engine, user_id=1, link_id=mine.account.id)
        chosen, other = (again, gone) if call == "link" else (gone, again)
        other.close()
        async with asyncio.timeout(5):
            with pytest.raises(StoreBusy) as caught:
                await chosen
        await rival.rollback()
    assert "55P03" == caught.value.sqlstate
    assert [("0",)] == await rows(engine, "SHOW lock_timeout")


@pytest.mark.parametrize("how", ["connection", "session"])
async def test_waiting_is_bounded_on_a_connection_in_autocommit(database: Database, how: str) -> None:
    """F06: there each statement is a transaction of its own, whichever bind the connection comes from."""
    engine = database.engine(pool_size=1, max_overflow=0)
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(lock_timeout=timedelta(milliseconds=100))
    mine = await linker.link(engine, user_id=1, identity=identity("mine"))
    assert isinstance(mine, Linked)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with (
        database.engine().begin() as rival,
        AsyncSession(autocommit) if how == "session" else autocommit.connect() as bind,
    ):
        await rival.exec_driver_sql("SELECT * FROM connections FOR UPDATE")
        for call in (
            linker.link(bind, user_id=1, identity=identity("mine"), credentials=tokens()),
            linker.unlink(bind, user_id=1, link_id=mine.account.id),
        ):
            async with asyncio.timeout(5):
                with pytest.raises(StoreBusy) as caught:
                    await call
            assert "55P03" == caught.value.sqlstate
        assert "0" == (await bind.execute(sa.text("SHOW lock_timeout"))).scalar_one()


@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_callers_transaction_keeps_its_own_bound(database: Database, how: str) -> None:
    """F06: accountlink's limit is not set there, where it would bound the waiting of the caller's statements too."""
    engine = database.engine()
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(lock_timeout=timedelta(milliseconds=100))
    async with bound(engine, how) as bind:
        mine = await linker.link(bind, user_id=1, identity=identity())
        assert isinstance(mine, Linked)
        await linker.unlink(bind, user_id=1, link_id=mine.account.id)
        assert "0" == (await bind.execute(sa.text("SHOW lock_timeout"))).scalar_one()


async def test_a_bound_that_the_server_sets_is_kept(database: Database) -> None:
    """F06: a lock_timeout of the server, role or connection is the application's choice and stays in force."""
    engine = patient(database, lock_timeout="50ms")
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker(lock_timeout=timedelta(hours=1))
    await linker.link(engine, user_id=1, identity=identity())
    async with database.engine().begin() as rival:
        await rival.exec_driver_sql("SELECT * FROM connections FOR UPDATE")
        async with asyncio.timeout(5):
            with pytest.raises(StoreBusy):
                await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
