"""SQLite has one writer at a time: its locks, its stale snapshots, and files that are not what they should be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from accountlink import (
    AccountLinker,
    Change,
    ConfigurationError,
    Linked,
    OwnershipConflict,
    RetryTransaction,
    StoreBusy,
    StoreUnavailable,
    tune_sqlite,
)
from tests.faults.watch import soon, workers
from tests.support.databases import Database, create, rows
from tests.support.models import EXCLUSIVE_SOFT, Tables, identity, shared_tables, tokens

WRITERS = 60
BUSY_TIMEOUT = 200
"""Milliseconds."""
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@pytest.fixture
def kind() -> str:
    return "sqlite"


def path_of(database: Database) -> str:
    return str(make_url(database.url).database)


async def tables_of(engine: AsyncEngine) -> Tables:
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    return tables


@asynccontextmanager
async def held_by_another_process(path: str) -> AsyncIterator[None]:
    """Another process has the database to itself."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert b"held\n" == await holder.stdout.readline()
        yield
    finally:
        holder.stdin.close()
        await holder.wait()


@pytest.mark.parametrize("how", ["engine", "session"])
@pytest.mark.parametrize("account", ["one account", "an account each"])
async def test_sixty_writers_all_succeed(database: Database, how: str, account: str) -> None:
    """F28: sixty tasks that read and then link, on a tuned engine, each get the right answer, and none is busy."""
    engine = database.engine()
    tables = await tables_of(engine)
    linker: AccountLinker[Any, Any] = tables.linker()

    async def read_then_write(n: int) -> object:
        mine = identity("shared" if account == "one account" else f"sub-{n}")
        if how == "engine":
            await linker.accounts(engine, user_id=n)
            return await linker.link(engine, user_id=n, identity=mine, credentials=tokens())
        async with AsyncSession(engine) as session:
            await session.execute(sa.select(sa.func.count()).select_from(tables.Connection))
            outcome = await linker.link(session, user_id=n, identity=mine, credentials=tokens())
            await session.commit()
            return outcome

    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*map(read_then_write, range(WRITERS)), return_exceptions=True)
    linked = WRITERS if account == "an account each" else 1
    kinds = [type(outcome) for outcome in outcomes]
    assert (linked, WRITERS - linked) == (kinds.count(Linked), kinds.count(OwnershipConflict)), set(kinds)
    assert [(linked,)] == await rows(engine, "SELECT count(*) FROM connections WHERE access_token = 'access-1'")


async def test_a_database_that_another_process_holds_is_busy(database: Database) -> None:
    """F28: another process has the database to itself: StoreBusy after the busy timeout, and the call works later."""
    tables = await tables_of(database.engine())
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = tune_sqlite(database.untuned(), busy_timeout=BUSY_TIMEOUT)
    first = await linker.link(engine, user_id=1, identity=identity("there"))
    assert isinstance(first, Linked)
    async with held_by_another_process(path_of(database)):
        for call in (
            lambda: linker.link(engine, user_id=1, identity=identity()),
            lambda: linker.unlink(engine, user_id=1, link_id=first.account.id),
        ):
            begun = time.monotonic()
            with pytest.raises(StoreBusy):
                await call()
            assert BUSY_TIMEOUT / 1000 <= time.monotonic() - begun < 10
    assert isinstance(await linker.link(engine, user_id=1, identity=identity()), Linked)


@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "untuned"])
@pytest.mark.parametrize("bind", ["session", "connection"])
async def test_a_callers_transaction_outlives_a_busy_database(database: Database, bind: str, tuned: bool) -> None:
    """F28: StoreBusy in the caller's transaction, which goes on when the other process is done, without a rollback."""
    tables = await tables_of(database.engine())
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = create_async_engine(database.url, connect_args={"timeout": BUSY_TIMEOUT / 1000})
    if tuned:
        tune_sqlite(engine, busy_timeout=BUSY_TIMEOUT)
    async with AsyncSession(engine) as session, engine.connect() as connection:
        caller: Any = session if bind == "session" else connection
        async with held_by_another_process(path_of(database)):
            with pytest.raises(StoreBusy):
                await linker.link(caller, user_id=1, identity=identity())
        await caller.execute(sa.insert(tables.Note).values(text="kept"))
        assert isinstance(await linker.link(caller, user_id=1, identity=identity()), Linked)
        await caller.commit()
    assert [("kept",)] == await rows(engine, "SELECT text FROM notes")
    assert [(1,)] == await rows(engine, "SELECT user_id FROM connections")
    await engine.dispose()


async def test_a_stale_snapshot_is_retry_transaction(database: Database) -> None:
    """F28: a deferred transaction read before another wrote (SQLITE_BUSY_SNAPSHOT): run it again, and it succeeds."""
    tuned = database.engine()
    tables = await tables_of(tuned)
    linker: AccountLinker[Any, Any] = tables.linker()
    async with database.untuned().connect() as connection:
        for expected in (RetryTransaction, Linked):
            await connection.exec_driver_sql("BEGIN DEFERRED")
            await connection.execute(sa.text("SELECT count(*) FROM connections"))
            if expected is RetryTransaction:
                await linker.link(tuned, user_id=2, identity=identity("another"))
                with pytest.raises(RetryTransaction):
                    await linker.link(connection, user_id=1, identity=identity())
                await connection.rollback()
            else:
                outcome = await linker.link(connection, user_id=1, identity=identity())
                assert isinstance(outcome, Linked)
                assert Change.CREATED is outcome.change
                await connection.commit()
    assert [(1,), (2,)] == await rows(tuned, "SELECT user_id FROM connections ORDER BY user_id")


CANARIES = ("canary-access", "canary-refresh", "canary-mail@example.com", "canary-label")


def missing(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path.parent / 'no-such-folder' / 'x.db'}"


def emptied(path: Path) -> str:
    path.unlink()
    return f"sqlite+aiosqlite:///{path}"


def readonly(path: Path) -> str:
    return f"sqlite+aiosqlite:///file:{path}?mode=ro&uri=true"


def garbled(path: Path) -> str:
    path.write_bytes(b"this is no database" * 500)
    return f"sqlite+aiosqlite:///{path}"


def full(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.mark.parametrize("how", ["engine", "session", "autocommit"])
@pytest.mark.parametrize("spoil", [missing, emptied, readonly, garbled, full])
async def test_a_spoilt_file_is_an_error_without_values(
    database: Database, tmp_path: Path, spoil: Any, how: str
) -> None:
    """F28, A28: no file, no table, no right to write, no database, no room: a plain error that carries no value."""
    tables = await tables_of(database.engine())
    linker: AccountLinker[Any, Any] = tables.linker()
    await database.dispose()
    engine = create_async_engine(spoil(Path(path_of(database))))
    pages = 0
    if spoil is full:
        pages = (await rows(engine, "PRAGMA page_count"))[0][0]
        await engine.dispose()
        sa.event.listen(
            engine.sync_engine, "connect", lambda driver, _: driver.execute(f"PRAGMA max_page_count = {pages}")
        )
    values: Any = {tables.Connection.label: "canary-label" * (20_000 if spoil is full else 1)}
    async with AsyncSession(engine) as session:
        bind: Any = session if how == "session" else engine
        if how == "autocommit":
            bind = engine.execution_options(isolation_level="AUTOCOMMIT")
        expected = ConfigurationError if spoil is emptied else (sa.exc.DatabaseError, StoreUnavailable)
        with pytest.raises(expected) as caught:
            await linker.link(
                bind,
                user_id=1,
                identity=identity(email="canary-mail@example.com"),
                credentials=tokens("canary-access", "canary-refresh"),
                values=values,
            )
        await session.rollback()
    error: BaseException | None = caught.value
    if isinstance(error, sa.exc.StatementError):
        assert error.params is None
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
    while error is not None:
        shown += repr(error) + repr(vars(error))
        error = error.__cause__ or error.__context__
    assert [] == [canary for canary in CANARIES if canary in shown]
    await engine.dispose()
    assert [] == await soon(workers)


async def test_a_full_disk_in_a_callers_transaction_loses_nothing_in_silence(database: Database) -> None:
    """F28: on a full disk the call raises, and the caller's commit keeps all of the caller's work or fails."""
    tuned = database.engine()
    tables = await tables_of(tuned)
    linker: AccountLinker[Any, Any] = tables.linker()
    pages = (await rows(tuned, "PRAGMA page_count"))[0][0]
    engine = database.engine()
    sa.event.listen(
        engine.sync_engine, "connect", lambda driver, _: driver.execute(f"PRAGMA max_page_count = {pages + 1}")
    )
    async with AsyncSession(engine) as session:
        session.add(tables.Note(text="kept"))
        await session.flush()
        with pytest.raises(sa.exc.OperationalError):
            await linker.link(session, user_id=1, identity=identity(), values={tables.Connection.label: "x" * 100_000})
        try:
            await session.commit()
            kept = [("kept",)]
        except sa.exc.SQLAlchemyError:
            await session.rollback()
            kept = []
    assert kept == await rows(tuned, "SELECT text FROM notes")
    assert [] == await rows(tuned, "SELECT user_id FROM connections")
