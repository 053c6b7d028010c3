"""``tune_sqlite`` whenever it is called, and however often: it holds from then on, or it says why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import ConfigurationError, tune_sqlite
from accountlink.database.sqlite import in_transaction
from accountlink.doctor.pooling import check_pooling
from tests.support.databases import rows

TUNED = {"busy_timeout": 5000, "journal_mode": "wal", "synchronous": 1, "foreign_keys": 1}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on a file, as SQLAlchemy makes it."""
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'tuned.db'}")
    yield made
    await made.dispose()


async def settings(engine: AsyncEngine) -> dict[str, Any]:
    async with engine.connect() as connection:
        found = {name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in TUNED}
        assert await connection.run_sync(in_transaction)
        return found


async def writes_and_rolls_back(engine: AsyncEngine) -> None:
    """A committed row stays, and a rollback undoes an earlier savepoint."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (a)")
        await connection.exec_driver_sql("DELETE FROM t")
        await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    async with engine.connect() as connection:
        async with connection.begin_nested():
            await connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        await connection.rollback()
    assert [(1,)] == await rows(engine, "SELECT a FROM t")
    assert None is await check_pooling(engine)


async def test_twice_is_once(engine: AsyncEngine) -> None:
    """A second call breaks nothing, before the first transaction and after it."""
    for _ in range(2):
        assert engine is tune_sqlite(tune_sqlite(engine))
        assert TUNED == await settings(engine)
        await writes_and_rolls_back(engine)


async def test_connections_that_were_pooled_before_are_tuned(engine: AsyncEngine) -> None:
    """Connections opened before the call begin for real after it, with all settings."""
    async with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            await connection.exec_driver_sql("SELECT 1")
    assert 2 == engine.pool.checkedin()  # type: ignore[attr-defined]  # the pool of a file counts
    tune_sqlite(engine)
    assert TUNED == await settings(engine)
    await writes_and_rolls_back(engine)


async def test_an_open_transaction_stays_as_it_is(engine: AsyncEngine) -> None:
    """A transaction under way at the call commits as it would have; the next one on its connection is tuned."""
    async with engine.connect() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (a)")
        await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        tune_sqlite(engine)
        await connection.commit()
        assert "wal" == (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
        await connection.rollback()
    await writes_and_rolls_back(engine)


async def test_the_last_busy_timeout_counts(engine: AsyncEngine) -> None:
    """Another busy timeout reaches connections that were tuned for the first."""
    for busy_timeout in (100, 7000, 0):
        tune_sqlite(engine, busy_timeout=busy_timeout)
        assert TUNED | {"busy_timeout": busy_timeout} == await settings(engine)


async def test_it_outlives_the_pool(engine: AsyncEngine) -> None:
    """After ``dispose()`` new connections are tuned, without another call."""
    tune_sqlite(engine)
    await engine.dispose()
    assert TUNED == await settings(engine)
    tune_sqlite(engine)
    await writes_and_rolls_back(engine)


@pytest.mark.parametrize("names", [("engine",), ("twin",), ("engine", "twin"), ("twin", "engine", "other")])
async def test_twins_are_tuned_together(engine: AsyncEngine, names: tuple[str, ...]) -> None:
    """Engines by ``execution_options()`` share a pool, and are tuned with each other, in any order."""
    twins = {"engine": engine, "twin": engine.execution_options(a=1)}
    twins["other"] = twins["twin"].execution_options(b=2)
    for name in names:
        tune_sqlite(twins[name])
    for twin in twins.values():
        assert TUNED == await settings(twin)
        await writes_and_rolls_back(twin)


async def test_another_engine_on_the_pool_works_as_before(engine: AsyncEngine) -> None:
    """An engine that was given the pool of a tuned one still commits and rolls back as a whole."""
    other = create_async_engine(engine.url, pool=engine.sync_engine.pool)
    tune_sqlite(engine)
    await writes_and_rolls_back(engine)
    async with other.begin() as connection:
        await connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    async with other.connect() as connection:
        await connection.exec_driver_sql("INSERT INTO t VALUES (3)")
        await connection.rollback()
    assert [(1,), (2,)] == await rows(engine, "SELECT a FROM t ORDER BY a")
    tune_sqlite(other, busy_timeout=9)
    assert TUNED | {"busy_timeout": 9} == await settings(other)
    assert TUNED == await settings(engine)


@pytest.mark.parametrize("options", [{}, {"poolclass": sa.StaticPool}, {"poolclass": sa.NullPool}])
async def test_a_database_in_memory(options: dict[str, Any]) -> None:
    """One connection for all is tuned once; it has no write-ahead log."""
    engine = create_async_engine("sqlite+aiosqlite://", **options)
    await rows(engine, "SELECT 1")
    tune_sqlite(tune_sqlite(engine))
    assert TUNED | {"journal_mode": "memory"} == await settings(engine)
    if options.get("poolclass") is not sa.NullPool:
        await writes_and_rolls_back(engine)
    await engine.dispose()


async def test_each_connection_is_tuned_once(engine: AsyncEngine) -> None:
    """A transaction on a tuned connection costs one statement more than it has: BEGIN IMMEDIATE."""
    tune_sqlite(tune_sqlite(engine))
    said: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda _c, _k, statement, *_: said.append(statement))
    for _ in range(3):
        await rows(engine, "SELECT 1")
    assert ["BEGIN IMMEDIATE", "SELECT 1"] * 2 == said[-4:]
    assert 4 == sum(statement.startswith("PRAGMA") for statement in said)


async def test_a_connection_that_could_not_begin_begins_the_next_time(engine: AsyncEngine) -> None:
    """After a busy database the connection's next transaction is one: a rollback undoes it, and a commit keeps it."""
    await writes_and_rolls_back(tune_sqlite(engine, busy_timeout=10))
    async with engine.connect() as holder, engine.connect() as connection:
        await holder.exec_driver_sql("SELECT 1")
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            await connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        await holder.rollback()
        for end in (connection.rollback, connection.commit):
            await connection.exec_driver_sql("INSERT INTO t VALUES (3)")
            assert connection.in_transaction()
            await end()
    assert [(1,), (3,)] == await rows(engine, "SELECT a FROM t ORDER BY a")


async def test_autocommit_stays(engine: AsyncEngine) -> None:
    """A connection in AUTOCOMMIT is tuned and commits each statement by itself, and the pool gets it back as it was."""
    tune_sqlite(engine)
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.exec_driver_sql("CREATE TABLE t (a)")
        await alone.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert [(1,)] == await rows(engine, "SELECT a FROM t")
    await writes_and_rolls_back(engine)


async def test_who_else_begins_is_told(engine: AsyncEngine) -> None:
    """A listener of the application's own that begins first is refused at the first transaction, with the remedy."""
    sa.event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN") and None)
    tune_sqlite(engine)
    with pytest.raises(ConfigurationError, match="listener of the application's own") as raised:
        await rows(engine, "SELECT 1")
    assert "configuration_error" == raised.value.code


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.5, "5000", None, True])
async def test_a_busy_timeout_that_is_none_is_refused(engine: AsyncEngine, wrong: Any) -> None:
    """Milliseconds are whole and SQLite's own; what is refused changes nothing."""
    with pytest.raises(ConfigurationError, match="busy_timeout="):
        tune_sqlite(engine, busy_timeout=wrong)
    assert "delete" == (await rows(engine, "PRAGMA journal_mode"))[0][0]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (sa.create_engine("sqlite://"), "not Engine"),
        (create_async_engine("postgresql+asyncpg://h/d"), "not one of postgresql"),
        ("sqlite+aiosqlite://", "not str"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_engine_of_sqlite_is_refused(wrong: Any, told: str) -> None:
    """The message says what came, and what to pass."""
    with pytest.raises(ConfigurationError, match=told):
        tune_sqlite(wrong)
