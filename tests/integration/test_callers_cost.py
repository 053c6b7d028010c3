"""The cost of a call in a caller's transaction: three round trips, one task, one greenlet, whatever came before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet  # type: ignore[import-untyped]  # SQLAlchemy depends on it; it has no types of its own
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import LastAccount, Linked, Unlinked
from tests.support.binds import BINDS, bound
from tests.support.databases import Database, create
from tests.support.models import EXCLUSIVE_SOFT, Tables, identity, shared_tables, tokens
from tests.support.wire import WireProxy

WARM = 8
"""psycopg prepares what it has seen more than five times."""


@pytest.fixture
async def wire(database: Database) -> AsyncIterator[WireProxy]:
    """A counting proxy in front of the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


@contextmanager
def compiled(engine: AsyncEngine) -> Iterator[list[str]]:
    """The statements that are compiled, rather than found in the cache."""
    found: list[str] = []

    def listen(_: object, __: object, statement: str, ___: object, context: Any, ____: object) -> None:
        if context is not None and context.compiled is not None and context.cache_hit.name != "CACHE_HIT":
            found.append(statement)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", listen)
    yield found
    sa.event.remove(engine.sync_engine, "before_cursor_execute", listen)


async def staged(engine: AsyncEngine) -> Tables:
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    return tables


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=False)
async def test_each_call_of_a_transaction_takes_three_round_trips(database: Database, wire: WireProxy) -> None:
    """The savepoint of each has one name: nothing is prepared anew for the second call, nor for the hundredth."""
    engine = database.engine(url=sa.make_url(database.url).set(port=wire.port))
    linker = (await staged(engine)).linker()
    trips: list[int] = []
    async with AsyncSession(engine) as session:
        for n in range(WARM + 4):
            wire.reset()
            await linker.link(session, user_id=1, identity=identity(f"sub-{n}"), credentials=tokens())
            trips.append(wire.trips)
        await session.commit()
    assert [3, 3, 3, 3] == trips[WARM:]


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
@pytest.mark.parametrize("guarded", [False, True])
async def test_no_call_compiles_its_savepoint(engine: AsyncEngine, guarded: bool) -> None:
    """With a guard or without one, SAVEPOINT and RELEASE cost no compilation."""

    async def another_way(_: AsyncConnection, user_id: object) -> bool:
        return user_id == 1

    linker = (await staged(engine)).linker(guard_last=another_way if guarded else None)

    async def story(session: AsyncSession, account: str) -> None:
        made = await linker.link(session, user_id=1, identity=identity(account))
        assert isinstance(made, Linked)
        assert isinstance(await linker.unlink(session, user_id=1, link_id=made.account.id), Unlinked)
        await linker.accounts(session, user_id=1)

    async with AsyncSession(engine) as session:
        await story(session, "sub-1")
        with compiled(engine) as found:
            await story(session, "sub-3")
        await session.commit()
    assert [] == [statement for statement in found if "SAVEPOINT" in statement]


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
async def test_a_refusing_guard_undoes_the_savepoint(engine: AsyncEngine) -> None:
    """The work of a conversation before it failed is undone, and the caller's transaction continues."""
    tables = await staged(engine)

    async def spoiling(connection: AsyncConnection, _: object) -> bool:
        await connection.execute(sa.insert(tables.Note).values(text="undone"))
        return False

    linker = tables.linker(guard_last=spoiling)
    async with AsyncSession(engine) as session:
        session.add(tables.Note(text="kept"))
        made = await linker.link(session, user_id=1, identity=identity())
        assert isinstance(made, Linked)
        with pytest.raises(LastAccount):
            await linker.unlink(session, user_id=1, link_id=made.account.id)
        assert ["kept"] == list(await session.scalars(sa.select(tables.Note.text)))
        await session.commit()


@contextmanager
def started() -> Iterator[tuple[list[object], set[object]]]:
    """The tasks that are started meanwhile, and the greenlets that anything runs on."""
    loop, main = asyncio.get_running_loop(), greenlet.getcurrent()
    tasks, greenlets = list[object](), set[object]()

    def task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(made := asyncio.Task(coroutine, loop=loop, **options))
        return made

    loop.set_task_factory(task)
    greenlet.settrace(lambda _, switch: greenlets.add(switch[1]))
    yield tasks, greenlets
    greenlet.settrace(None)
    loop.set_task_factory(None)
    greenlets.discard(main)


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
async def test_a_call_takes_one_task_and_one_greenlet(engine: AsyncEngine, how: str) -> None:
    """One of each for reaching the connection and for the work, and none for objects that a session does not hold."""
    linker = (await staged(engine)).linker()
    async with bound(engine, how) as bind:
        made = await linker.link(bind, user_id=1, identity=identity())
        assert isinstance(made, Linked)
        calls: list[Coroutine[Any, Any, object]] = [
            linker.link(bind, user_id=1, identity=identity(), credentials=tokens()),
            linker.link(bind, user_id=2, identity=identity()),
            linker.accounts(bind, user_id=1),
            linker.unlink(bind, user_id=1, link_id=made.account.id),
        ]
        for call in calls:
            with started() as (tasks, greenlets):
                await call
            assert (1, 1) == (len(tasks), len(greenlets)), call
