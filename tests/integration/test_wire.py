"""The counting proxy counts as a network would, and cuts exactly where the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import psycopg
import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.postgres import PostgresServer
from tests.support.wire import Lose, WireProxy, executes

SELECT = text("SELECT 1 WHERE CAST(:wanted AS boolean)")
DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(scope="module")
def upstream(postgres: PostgresServer) -> URL:
    return make_url(postgres.url(driver="asyncpg", database="postgres"))


@pytest.fixture
async def wire(upstream: URL) -> AsyncIterator[WireProxy]:
    async with WireProxy(upstream.host or "127.0.0.1", upstream.port or 5432) as proxy:
        yield proxy


@asynccontextmanager
async def warm_engine(upstream: URL, wire: WireProxy, driver: str = "asyncpg") -> AsyncIterator[AsyncEngine]:
    """Yield an engine whose one connection has prepared SELECT and set up all that it sets up once."""
    url = upstream.set(drivername=f"postgresql+{driver}", host="127.0.0.1", port=wire.port)
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    try:
        for _ in range(7):  # psycopg prepares what it has seen more than five times
            async with engine.begin() as connection, connection.begin_nested():
                await connection.execute(SELECT, {"wanted": True})
        wire.reset()
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def raw_connection(upstream: URL, wire: WireProxy) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Yield a connection of asyncpg itself, with what it took to connect forgotten."""
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=wire.port,
        user=upstream.username,
        password=upstream.password,
        database=upstream.database,
    )
    wire.reset()
    try:
        yield connection
    finally:
        await connection.close()


@DRIVERS
async def test_warm_autocommit_statement_is_one_trip(upstream: URL, wire: WireProxy, driver: str) -> None:
    """A prepared statement on an AUTOCOMMIT connection costs one wait."""
    async with warm_engine(upstream, wire, driver) as engine:
        own = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with own.connect() as connection:
            await connection.execute(SELECT, {"wanted": True})

        assert wire.trips == 1, "\n".join(map(str, wire.log))


@DRIVERS
async def test_transaction_adds_two_trips(upstream: URL, wire: WireProxy, driver: str) -> None:
    """BEGIN and COMMIT cost a wait each."""
    async with warm_engine(upstream, wire, driver) as engine:
        async with engine.begin() as connection:
            await connection.execute(SELECT, {"wanted": True})

        assert wire.trips == 3, "\n".join(map(str, wire.log))


@DRIVERS
async def test_savepoint_adds_two_trips(upstream: URL, wire: WireProxy, driver: str) -> None:
    """SAVEPOINT and RELEASE cost a wait each, once their names are prepared."""
    async with warm_engine(upstream, wire, driver) as engine:
        async with engine.begin() as connection, connection.begin_nested():
            await connection.execute(SELECT, {"wanted": True})

        assert wire.trips == 5, "\n".join(map(str, wire.log))


@DRIVERS
async def test_statements_are_named_by_their_sql(upstream: URL, wire: WireProxy, driver: str) -> None:
    """An execution by the name of a prepared statement shows the SQL that was prepared."""
    async with warm_engine(upstream, wire, driver) as engine:
        async with engine.begin() as connection:
            await connection.execute(SELECT, {"wanted": True})

        assert [statement.split()[0].rstrip(";") for statement in wire.statements] == [
            "BEGIN",
            "SELECT",
            "COMMIT",
        ]
        assert "Parse" not in {message.kind for trip in wire.log for message in trip.messages}


async def test_first_execution_waits_twice(upstream: URL, wire: WireProxy) -> None:
    """Preparing with Flush is a wait of its own although no ReadyForQuery answers it."""
    async with raw_connection(upstream, wire) as connection:
        await connection.fetchval("SELECT $1::int", 7)

        assert [trip.messages[-1].kind for trip in wire.log] == ["Flush", "Sync"]


async def test_long_answer_is_one_trip(upstream: URL, wire: WireProxy) -> None:
    """An answer of many network packets is waited for once."""
    async with raw_connection(upstream, wire) as connection:
        await connection.execute("SELECT repeat('x', 1000) FROM generate_series(1, 5000)")

        assert wire.trips == 1


async def test_refused_statements_do_not_derail_the_count(upstream: URL, wire: WireProxy) -> None:
    """After an error, at parsing and at execution alike, the next statement still counts once."""
    async with raw_connection(upstream, wire) as connection:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.execute("SELECT 1/0")
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetch("SELECT $1::int FROM missing", 1)
        wire.reset()
        await connection.execute("SELECT 1")

        assert wire.trips == 1


async def test_copy_waits_before_and_after_the_data(upstream: URL, wire: WireProxy) -> None:
    """COPY FROM STDIN costs one wait to begin and one to end, however much is sent between."""
    async with await psycopg.AsyncConnection.connect(
        host="127.0.0.1",
        port=wire.port,
        user=upstream.username,
        password=upstream.password,
        dbname=upstream.database,
        autocommit=True,
    ) as connection:
        await connection.execute("CREATE TEMPORARY TABLE copied (line text)")
        wire.reset()
        async with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
            for _ in range(3):
                await copy.write("line\n" * 20_000)

        assert wire.trips == 2, "\n".join(map(str, wire.log))


async def test_pipelined_statements_are_one_trip(upstream: URL, wire: WireProxy) -> None:
    """Requests sent without waiting for one another share one wait."""
    reader, writer = await _startup(upstream, wire)
    wire.reset()
    query = b"Q" + (13).to_bytes(4) + b"SELECT 1\0"
    writer.write(query * 3)
    for _ in range(3):
        await reader.readuntil(b"Z\0\0\0\5I")
    writer.close()

    assert wire.trips == 1
    assert wire.statements == ["SELECT 1"] * 3


async def test_count_does_not_depend_on_segments(upstream: URL, wire: WireProxy) -> None:
    """A request that arrives byte by byte is still one request."""
    reader, writer = await _startup(upstream, wire)
    wire.reset()
    for byte in b"Q" + (13).to_bytes(4) + b"SELECT 1\0":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    await reader.readuntil(b"Z\0\0\0\5I")
    writer.close()

    assert [str(trip) for trip in wire.log] == ["[1] Query: SELECT 1"]


async def test_cancel_request_is_not_counted(upstream: URL, wire: WireProxy) -> None:
    """A cancel request uses its own connection, and does not wait for other messages."""
    async with raw_connection(upstream, wire) as connection:
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(30)", timeout=0.2)
        await connection.execute("SELECT 1")

        assert wire.statements == ["SELECT pg_sleep(30)", "SELECT 1"]
        assert wire.trips == 2


@pytest.mark.parametrize(
    ("lose", "stored"), [pytest.param(Lose.REQUEST, 0, id="request"), pytest.param(Lose.REPLY, 1, id="reply")]
)
async def test_cut_at_commit(upstream: URL, wire: WireProxy, lose: Lose, stored: int) -> None:
    """A lost COMMIT leaves nothing, a lost reply to it leaves the row, and the client cannot tell which."""
    async with warm_engine(upstream, wire) as engine:
        await _create_table(engine)
        wire.cut_when(executes("COMMIT"), lose=lose)
        with pytest.raises(DBAPIError):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO kept VALUES (1)"))

        assert await _count_rows(engine) == stored


@pytest.mark.parametrize(
    ("passed", "stored"),
    [
        pytest.param(0, 0, id="begin-lost"),
        pytest.param(1, 0, id="begin-unanswered"),
        pytest.param(6, 0, id="commit-lost"),  # begin, prepare, insert: six parts
        pytest.param(7, 1, id="commit-unanswered"),
    ],
)
async def test_cut_after_requests_and_replies(upstream: URL, wire: WireProxy, passed: int, stored: int) -> None:
    """Counting requests and replies finds every place where a connection can be lost."""
    async with warm_engine(upstream, wire) as engine:
        await _create_table(engine)
        wire.cut_after(passed)
        with pytest.raises(DBAPIError):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO kept VALUES (2)"))

        assert await _count_rows(engine) == stored


async def test_fault_that_is_not_reached_changes_nothing(upstream: URL, wire: WireProxy) -> None:
    """A count beyond what the work sends lets the work through, which ends a sweep over all places."""
    async with warm_engine(upstream, wire) as engine:
        await _create_table(engine)
        wire.cut_after(8)
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO kept VALUES (3)"))
        wire.cut_after(1_000)

        assert await _count_rows(engine) == 1


async def test_held_commit_is_not_seen_until_released(upstream: URL, wire: WireProxy) -> None:
    """A held request has not reached the server, and goes on when it is released."""
    async with warm_engine(upstream, wire) as engine, raw_connection(upstream, wire) as other:
        await _create_table(engine)
        hold = wire.hold(executes("COMMIT"))

        async def insert() -> None:
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO kept VALUES (4)"))

        writing = asyncio.create_task(insert())
        await hold.reached.wait()
        assert await other.fetchval("SELECT count(*) FROM kept") == 0

        hold.released.set()
        await writing
        assert await other.fetchval("SELECT count(*) FROM kept") == 1


async def test_no_server_closes_the_connection() -> None:
    """Without a server behind it the proxy refuses as a server that is down would."""
    async with WireProxy("127.0.0.1", 1) as proxy:
        with pytest.raises((ConnectionError, asyncpg.PostgresError)):
            await asyncpg.connect(host="127.0.0.1", port=proxy.port, user="nobody", database="none", timeout=5)


async def _startup(upstream: URL, wire: WireProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by hand; the server trusts local connections."""
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    body = (3 << 16).to_bytes(4) + f"user\0{upstream.username}\0database\0{upstream.database}\0\0".encode()
    writer.write((len(body) + 4).to_bytes(4) + body)
    await reader.readuntil(b"Z\0\0\0\5I")
    return reader, writer


async def _create_table(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS kept"))
        await connection.execute(text("CREATE TABLE kept (id int PRIMARY KEY)"))


async def _count_rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT count(*) FROM kept")) or 0
