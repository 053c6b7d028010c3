"""The doctor's rule ``unsafe-pooling``: what stands between an engine and its database, F09."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import ConfigurationError, StoreBusy, StoreUnavailable, tune_sqlite
from accountlink.database.pooler import pooler_options
from accountlink.doctor import passage
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.pooling import check_pooling
from tests.faults.watch import soon
from tests.support.databases import EMPTIES
from tests.support.pgbouncer import Pooler, run_pgbouncer
from tests.support.postgres import PostgresServer

DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
OFF = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
SERVER = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    f" AND application_name <> '{EMPTIES}'"
)


def unique() -> str:
    return f"named_{uuid4().hex}"


@asynccontextmanager
async def opened(url: str | sa.URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def checked(url: str | sa.URL, **options: Any) -> Finding | None:
    async with opened(url, **options) as engine:
        return await check_pooling(engine)


async def asked(at: Pooler | PostgresServer, query: str) -> Any:
    """Ask without leaving anything."""
    client = await asyncpg.connect(
        host=at.host, port=at.port, user=at.user, database="postgres", statement_cache_size=0
    )
    try:
        return await client.fetchval(query)
    finally:
        await client.close()


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[Pooler]:
    with run_pgbouncer(postgres) as running:
        yield running


# -- PostgreSQL: what is found -----------------------------------------------------------------------------------------


@DRIVERS
async def test_defaults_behind_a_transaction_pooler_are_found(pooler: Pooler, driver: str) -> None:
    """F09: behind PgBouncer in transaction mode the doctor says that default settings are unsafe, and what to do."""
    found = await checked(pooler.url(driver=driver))
    assert found is not None
    assert ("unsafe-pooling", Severity.ERROR) == (found.rule, found.severity)
    assert ("", None, ()) == (found.table, found.object, found.columns)
    assert "another client's statement" in found.message
    assert "pooler_options" in found.fix


@DRIVERS
async def test_the_recipe_is_clean_behind_it(pooler: Pooler, driver: str) -> None:
    """F09: with ``pooler_options`` there is nothing to find."""
    url = pooler.url(driver=driver)
    assert await checked(url, **pooler_options(url)) is None


@DRIVERS
@pytest.mark.parametrize(
    "settings", [{"default_pool_size": 1}, {"server_round_robin": 1}], ids=["one server", "in turn"]
)
async def test_it_is_found_however_servers_are_handed_out(
    postgres: PostgresServer, driver: str, settings: dict[str, Any]
) -> None:
    """F09: one server for all, or each server in its turn: both are seen."""
    with run_pgbouncer(postgres, **settings) as pooler:
        found = await checked(pooler.url(driver=driver))
    assert found is not None
    assert Severity.ERROR is found.severity


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "REPEATABLE READ"},
        {"poolclass": sa.NullPool},
        {"connect_args": {"prepared_statement_cache_size": 0}},
        {"connect_args": {"prepared_statement_name_func": unique}},
        {"connect_args": OFF | {"prepared_statement_name_func": unique}},
    ],
    ids=["autocommit", "repeatable read", "no pool", "one cache off", "names", "caches off, names"],
)
async def test_half_measures_are_found(pooler: Pooler, options: dict[str, Any]) -> None:
    """F09: any named statement is found: unique names fail in AUTOCOMMIT, and pile up on the servers."""
    found = await checked(pooler.url(), **options)
    assert found is not None
    assert Severity.ERROR is found.severity


@DRIVERS
async def test_an_engine_whose_only_connection_is_taken_is_checked(pooler: Pooler, driver: str) -> None:
    """F09: a pool of one connection is neither waited for nor needed."""
    async with opened(pooler.url(driver=driver), pool_size=1, max_overflow=0) as engine, engine.connect() as taken:
        began = time.monotonic()
        found = await check_pooling(engine)
        assert (True, 1) == (await taken.scalar(sa.text("SELECT true")), engine.pool.checkedout())  # type: ignore[attr-defined]
    assert found is not None
    assert Severity.ERROR is found.severity
    assert 3 > time.monotonic() - began


async def test_a_name_that_is_taken_is_evidence(postgres: PostgresServer) -> None:
    """F09: an error about an existing prepared statement is a finding, not a failure of the check."""
    with run_pgbouncer(postgres, default_pool_size=1) as pooler:
        client = await asyncpg.connect(host=pooler.host, port=pooler.port, user=pooler.user, database="postgres")
        await client.execute("PREPARE taken AS SELECT 1")
        found = await checked(pooler.url(), connect_args=OFF | {"prepared_statement_name_func": lambda: "taken"})
        await client.close()
    assert found is not None
    assert Severity.ERROR is found.severity


@DRIVERS
@pytest.mark.parametrize(
    "settings",
    [{"max_client_conn": 1}, {"mode": "session", "default_pool_size": 1}],
    ids=["one client", "one session"],
)
async def test_too_few_connections_are_a_warning(
    postgres: PostgresServer, driver: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09: where a second connection cannot be had, the doctor says what it could not see, and soon."""
    monkeypatch.delenv("PGSSLMODE")  # while it is asked for TLS, the pooler sees that the client before has gone
    with run_pgbouncer(postgres, **settings) as pooler:
        began = time.monotonic()
        found = await checked(pooler.url(driver=driver))
        assert 5 > time.monotonic() - began
        assert await checked(pooler.url(driver=driver), **pooler_options(pooler.url(driver=driver))) is None
    assert found is not None
    assert Severity.WARNING is found.severity
    assert "could be had to see" in found.message


# -- PostgreSQL: what is clean -----------------------------------------------------------------------------------------


@DRIVERS
@pytest.mark.parametrize("options", [{}, {"pool_size": 1, "max_overflow": 0}], ids=["default", "one connection"])
async def test_a_direct_connection_is_clean(postgres: PostgresServer, driver: str, options: dict[str, Any]) -> None:
    """Without a pooler prepared statements are safe."""
    assert await checked(postgres.url(driver=driver), **options) is None


@DRIVERS
@pytest.mark.parametrize("size", [2, 4])
async def test_a_session_pooler_is_clean(postgres: PostgresServer, driver: str, size: int) -> None:
    """A pooler that leaves each client its own server connection is safe, also with fewer than the check asks for."""
    with run_pgbouncer(postgres, mode="session", default_pool_size=size) as pooler:
        assert await checked(pooler.url(driver=driver)) is None


def renamed(kind: bytes, body: bytes, own: bytes) -> bytes:
    """A client's message with a name of the pooler's own for the statement that it names, if it names one."""
    if kind == b"P" and body[:1] != b"\0":
        return own + body
    if kind in b"DC" and body[:1] == b"S" and body[1:2] != b"\0":
        return b"S" + own + body[1:]
    portal, _, rest = body.partition(b"\0")
    return portal + b"\0" + own + rest if kind == b"B" and rest[:1] != b"\0" else body


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, own: bytes) -> None:
    code = 0
    while code != 3 << 16:  # requests for encryption come before the start
        head = await reader.readexactly(8)
        length, code = struct.unpack("!ii", head)
        writer.write(head + await reader.readexactly(length - 8))
    while kind := await reader.read(1):
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        body = renamed(kind, await reader.readexactly(length - 4), own)
        writer.write(kind + struct.pack("!i", len(body) + 4) + body)


async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)


@asynccontextmanager
async def renaming(pooler: Pooler) -> AsyncIterator[int]:
    """Stand in for PgBouncer 1.21 and newer: give statements names of its own, before a transaction pooler.

    Source: PgBouncer's documentation, "max_prepared_statements". It also prepares a statement again where a server has
    not met it, which this one does not: it suffices to ask for a name, not to work.
    """
    clients = itertools.count()
    served: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, down = await asyncio.open_connection(pooler.host, pooler.port)
        own = b"POOLER_%d_" % next(clients)
        ways = {asyncio.ensure_future(forward(reader, down, own)), asyncio.ensure_future(back(upstream, writer))}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for stream in (down, writer):
            stream.close()
        await asyncio.gather(*ways, return_exceptions=True)
        for stream in (down, writer):
            with contextlib.suppress(OSError):
                await stream.wait_closed()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.ensure_future(carry(reader, writer)))

    server = await asyncio.start_server(serve, pooler.host, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        if served:
            await asyncio.wait(served, timeout=5)


@DRIVERS
async def test_a_pooler_that_keeps_names_apart_is_clean(pooler: Pooler, driver: str) -> None:
    """Where a statement has another name on the server than its client gave it, the pooler looks after it."""
    async with renaming(pooler) as port:
        url = sa.make_url(pooler.url(driver=driver)).set(port=port)
        assert await checked(url) is None


# -- PostgreSQL: what the check itself does ----------------------------------------------------------------------------


@DRIVERS
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "pooled"])
async def test_nothing_is_left_behind(postgres: PostgresServer, driver: str, direct: bool) -> None:
    """No connection stays open, no transaction, no statement of the check; the engine's pool is as it was."""
    await soon(lambda: asked(postgres, SERVER))
    with run_pgbouncer(postgres, default_pool_size=1) as pooler:
        at = postgres if direct else pooler
        async with opened(at.url(driver=driver)) as engine:
            await check_pooling(engine)
            pool: Any = engine.pool
            assert 0 == pool.checkedin() + pool.checkedout()
        own = "statement ~ 'pg_prepared_statements|pg_backend_pid|DEALLOCATE' OR name ~ 'accountlink'"
        assert 0 == await asked(pooler, f"SELECT count(*) FROM pg_prepared_statements WHERE {own}")
        assert 0 == await soon(lambda: asked(postgres, f"{SERVER} AND state <> 'idle'"))
    assert 0 == await soon(lambda: asked(postgres, SERVER))


@DRIVERS
async def test_an_unreachable_database_is_unavailable(driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a server at the port the error is accountlink's own, without the URL or the password."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(StoreUnavailable) as raised:
        await checked(f"postgresql+{driver}://someone:do-not-tell@127.0.0.1:{port}/db")
    assert "do-not-tell" not in f"{raised.value!s}{raised.value.__cause__!s}{raised.value.__context__!s}{caplog.text}"
    assert (None, None) == (raised.value.__cause__, raised.value.__context__)


@DRIVERS
async def test_a_silent_database_is_busy(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server accepts the connection and sends nothing, the check ends at its time limit."""
    monkeypatch.setattr(passage, "PATIENCE", 0.5)
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    began = time.monotonic()
    try:
        with pytest.raises(StoreBusy):
            await checked(f"postgresql+{driver}://someone@127.0.0.1:{server.sockets[0].getsockname()[1]}/db")
    finally:
        for writer in writers:
            writer.close()
        server.close()
    assert 2 > time.monotonic() - began


@DRIVERS
async def test_a_cancelled_check_ends_at_once(
    postgres: PostgresServer, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled while it waits for a connection that it cannot have, it ends, closes all, and logs no noise."""
    before = await asked(postgres, SERVER)
    with run_pgbouncer(postgres, mode="session", default_pool_size=1) as pooler, caplog.at_level(logging.WARNING):
        async with opened(pooler.url(driver=driver)) as engine:
            checking = asyncio.ensure_future(check_pooling(engine))
            await asyncio.sleep(0.4)  # the first connection is made, the second waits for a server for 1 s
            began = time.monotonic()
            checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await checking
            assert checking.cancelled()
            assert 0.5 > time.monotonic() - began
        assert "postgres" == await asyncio.wait_for(asked(pooler, "SELECT current_database()::text"), 2)
    assert [] == [record.getMessage() for record in caplog.records]
    await asyncio.sleep(0.1)
    assert before == await asked(postgres, SERVER)


@pytest.mark.parametrize("times", [2, 99])
async def test_a_set_up_that_stumbles_is_tried_again(pooler: Pooler, times: int) -> None:
    """F09: a set-up that stumbles may have been given another client's rows; if it always stumbles, it says why."""
    async with opened(pooler.url()) as engine:
        left = itertools.count(times, -1)

        def stumble(_: object, __: object) -> None:
            if next(left) > 0:
                raise KeyError("kind")

        sa.event.listen(engine.sync_engine, "connect", stumble)
        if times == 2:
            found = await check_pooling(engine)
            assert found is not None
            assert Severity.ERROR is found.severity
        else:
            with pytest.raises(KeyError, match="kind"):
                await check_pooling(engine)


# -- SQLite ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "sqlite+aiosqlite://" if request.param == "memory" else f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


def begins(engine: AsyncEngine, statement: str, *, past_sqlalchemy: bool = False) -> AsyncEngine:
    """Listeners of the application's own, as SQLAlchemy's documentation shows them."""

    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    def on_begin(connection: sa.Connection) -> None:
        if past_sqlalchemy:
            connection.connection.cursor().execute(statement)
        else:
            connection.exec_driver_sql(statement)

    sa.event.listen(engine.sync_engine, "connect", on_connect)
    sa.event.listen(engine.sync_engine, "begin", on_begin)
    return engine


async def test_an_untuned_engine_is_found(sqlite_url: str) -> None:
    """An engine as SQLAlchemy makes it begins nothing, and the remedy is named."""
    async with opened(sqlite_url) as engine:
        found = await check_pooling(engine)
    assert found is not None
    assert ("unsafe-pooling", Severity.ERROR, "", None, ()) == (
        found.rule, found.severity, found.table, found.object, found.columns,
    )  # fmt: skip
    assert "tune_sqlite(engine)" in found.fix


async def test_a_tuned_engine_is_clean(sqlite_url: str) -> None:
    """After ``tune_sqlite`` there is nothing to find, and no transaction or listener stays."""
    async with opened(sqlite_url) as engine:
        tune_sqlite(engine)
        assert await check_pooling(engine) is None
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE t (a)")
        assert await check_pooling(engine) is None


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "begin exclusive transaction"])
async def test_own_listeners_count(sqlite_url: str, statement: str) -> None:
    """Listeners of the application's own that take the write lock count as tuned."""
    async with opened(sqlite_url) as engine:
        assert await check_pooling(begins(engine, statement)) is None


@pytest.mark.parametrize("statement", ["BEGIN", "BEGIN DEFERRED", "BEGIN TRANSACTION"])
async def test_a_deferred_begin_is_found(sqlite_url: str, statement: str) -> None:
    """A transaction that begins without the write lock loses it to another after it has read."""
    async with opened(sqlite_url) as engine:
        found = await check_pooling(begins(engine, statement))
    assert found is not None
    assert Severity.ERROR is found.severity
    assert "without the write lock" in found.message


async def test_a_begin_that_cannot_be_seen_is_a_warning(sqlite_url: str) -> None:
    """A transaction that was begun on the driver's own cursor may be tuned or not, and the doctor says so."""
    async with opened(sqlite_url) as engine:
        found = await check_pooling(begins(engine, "BEGIN IMMEDIATE", past_sqlalchemy=True))
    assert found is not None
    assert Severity.WARNING is found.severity


async def test_no_busy_timeout_is_found(sqlite_url: str) -> None:
    """A writer that does not wait for another is found."""
    async with opened(sqlite_url) as engine:
        found = await check_pooling(tune_sqlite(engine, busy_timeout=0))
    assert found is not None
    assert Severity.ERROR is found.severity
    assert "busy_timeout is 0" in found.message


async def test_a_locked_database_is_busy(tmp_path: Path) -> None:
    """Where another writer holds the lock for longer than the busy timeout, the check says so."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    async with opened(url) as holder, opened(url) as engine:
        tune_sqlite(holder)
        tune_sqlite(engine, busy_timeout=100)
        async with holder.begin():
            with pytest.raises(StoreBusy):
                await check_pooling(engine)
        assert await check_pooling(engine) is None


async def test_another_database_is_refused() -> None:
    """A database that accountlink does not support is a mistake of the caller's."""
    engine: Any = SimpleNamespace(dialect=SimpleNamespace(name="mysql"))
    with pytest.raises(ConfigurationError, match="mysql"):
        await check_pooling(engine)
