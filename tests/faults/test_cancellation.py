"""A call that is cancelled, wherever it is, leaves nothing behind, and calling again links."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import AccountLinker, AccountNotFound, Linked, LinkPolicy, OwnershipConflict, Unlinked, tune_sqlite
from tests.faults.stepping import Moment, Stepped
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.databases import Database, create, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, Tables, identity, shared_tables, tokens

ENOUGH = 200
"""More suspensions than any call has; a sweep that gets here does not end."""
# aiosqlite drops the connection that it was opening for somebody who was cancelled; Python 3.13 warns of that.
pytestmark = [
    pytest.mark.each_driver,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]
ASYNCPG_CONNECTS = "Future exception was never retrieved: ConnectionError('unexpected connection_lost() call')"
"""Said by asyncpg alone when `asyncpg.connect()` is cancelled while it waits for the server's first answer."""
WHOLE = "SELECT user_id, provider, email, access_token, refresh_token, scopes, version, deleted_at FROM connections"


def whole(account: str) -> tuple[Any, ...]:
    return (1, "acme", f"{account}@example.com", "access-1", "refresh-1", "read write", 1, None)


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """Complaints of the event loop: errors that no code fetched, tasks that no code finished."""
    loop, heard = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, context: heard.append(f"{context['message']}: {context.get('exception')!r}"))
    yield heard
    loop.set_exception_handler(None)


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


async def tables_of(database: Database, policy: LinkPolicy = EXCLUSIVE_SOFT) -> Tables:
    tables, engine = shared_tables(policy), database.engine()
    await create(engine, tables.metadata)
    await engine.dispose()
    return tables


async def opened(stack: AsyncExitStack, engine: AsyncEngine, how: str) -> Any:
    """A bind; a session or connection has begun its transaction already."""
    if how == "engine":
        return engine
    bind: Any = await stack.enter_async_context(AsyncSession(engine) if how == "session" else engine.connect())
    if how == "autocommit":
        return await bind.execution_options(isolation_level="AUTOCOMMIT")
    await bind.execute(sa.text("SELECT 1"))
    return bind


@pytest.mark.parametrize("how", ["engine", "connection", "session", "autocommit"])
async def test_a_link_cancelled_anywhere_is_whole_or_absent(
    database: Database, watch: Watch, complaints: list[str], how: str
) -> None:
    """F10, F11: cancelled at any suspension, once or more: no half row, no leak, and calling again links."""
    tables = await tables_of(database)
    linker, engine = tables.linker(), watched_engine(database)
    for moment in Moment if how in ("engine", "session") else (Moment.TOO_LATE, Moment.ALWAYS):
        for at in range(1, ENOUGH):
            account = f"{moment.name}-{at}"

            def link(bind: Any, account: str = account) -> Coroutine[Any, Any, Any]:
                return linker.link(bind, user_id=1, identity=identity(account), credentials=tokens())

            where = f"{how}, {moment.name} at suspension {at}"
            async with AsyncExitStack() as stack:
                bind = await opened(stack, engine, how)
                run = Stepped(link(bind), at=at, moment=moment)
                end = await run.ended()
                assert not run.swallowed, (where, end)
                if how in ("connection", "session"):
                    await bind.rollback()
                    assert isinstance(await link(bind), Linked), where
                    await bind.rollback()
                elif how == "autocommit" and run.struck:
                    await bind.rollback()
            assert 0 == checked_out(engine), where
            assert [] == await soon(lambda: watch.left_behind(engine)), where
            found = await watch.rows(f"{WHOLE} WHERE account_id = '{account}'")
            assert found in ([], [whole(account)]), where
            if how in ("connection", "session"):
                assert [] == found, where
            assert isinstance(await link(engine), Linked), where
            assert [whole(account)] == await watch.rows(f"{WHOLE} WHERE account_id = '{account}'"), where
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


@pytest.mark.parametrize(
    ("how", "moment"),
    [("engine", Moment.AT_ONCE), ("engine", Moment.ALWAYS), ("session", Moment.TWICE)],
    ids=["engine", "engine, ever", "session, twice"],
)
async def test_a_link_cancelled_while_it_connects_leaves_no_connection(
    database: Database, watch: Watch, complaints: list[str], how: str, moment: Moment
) -> None:
    """F10, F11: cancelled at any suspension of a first connect: no connection, no thread, no half row is left."""
    tables = await tables_of(database)
    linker = tables.linker()
    for at in range(1, ENOUGH):
        engine, account = watched_engine(database), f"cold-{at}"
        async with AsyncSession(engine) as session:
            bind: Any = engine if how == "engine" else session
            run = Stepped(
                linker.link(bind, user_id=1, identity=identity(account), credentials=tokens()), at=at, moment=moment
            )
            end = await run.ended()
            assert not run.swallowed, (at, end)
        assert 0 == checked_out(engine), at
        assert [] == await soon(partial(watch.left_behind, engine)), at
        found = await watch.rows(f"{WHOLE} WHERE account_id = '{account}'")
        assert found in ([], [whole(account)] if how == "engine" else []), at
        assert isinstance(await linker.link(engine, user_id=1, identity=identity(account)), Linked), at
        await engine.dispose()
        if not run.struck:
            break
    gc.collect()
    assert [] == [complaint for complaint in complaints if complaint != ASYNCPG_CONNECTS]


async def test_a_caller_who_commits_after_a_cancelled_link_commits_no_half(
    database: Database, watch: Watch, complaints: list[str]
) -> None:
    """F10: a session whose link was cancelled commits all of its transaction or refuses; after a rollback it works."""
    tables = await tables_of(database)
    linker, engine = tables.linker(), watched_engine(database)
    for at in range(1, ENOUGH):
        account = f"sub-{at}"
        async with AsyncSession(engine) as session:
            session.add(tables.Note(text=account))
            await session.flush()
            run = Stepped(linker.link(session, user_id=1, identity=identity(account), credentials=tokens()), at=at)
            await run.ended()
            try:
                await session.commit()
                kept = [(account,)]
            except SQLAlchemyError:
                kept = []
                await session.rollback()
            assert 1 == await session.scalar(sa.text("SELECT 1"))
        assert kept == await watch.rows(f"SELECT text FROM notes WHERE text = '{account}'"), at
        found = await watch.rows(f"{WHOLE} WHERE account_id = '{account}'")
        assert found in ([], [whole(account)] if kept else []), at
        assert [] == await soon(lambda: watch.left_behind(engine)), at
        if not run.struck:
            assert kept
            break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


STATE = "SELECT id, user_id, account_id, email, access_token, refresh_token, reason, version, deleted_at IS NULL"
Call = Callable[[Any], Awaitable[object]]


async def has_password(connection: AsyncConnection, user_id: int) -> bool:
    await connection.execute(sa.text("SELECT 2"))
    return True


class Calls:
    """Calls that write, or that look behind a violation, on accounts of their own."""

    def __init__(self, tables: Tables) -> None:
        self.linker: AccountLinker[Any, Any] = tables.linker()
        self.guarded: AccountLinker[Any, Any] = tables.linker(guard_last=has_password)

    async def prepared(self, engine: AsyncEngine, name: str, at: int) -> Call:
        """Make what the call needs, and return the call."""
        account = f"{name}-{at}"
        owner = 2 if name == "conflict" else 1
        first = await self.linker.link(engine, user_id=owner, identity=identity(account), credentials=tokens())
        assert isinstance(first, Linked)
        link_id = first.account.id
        if name == "restore":
            await self.linker.unlink(engine, user_id=1, link_id=link_id, reason="gone")
        if name in ("relink", "restore", "conflict"):
            new = tokens("access-2", "refresh-2")
            return lambda bind: self.linker.link(bind, user_id=1, identity=identity(account), credentials=new)
        if name == "blocked":
            return lambda bind: self.linker.link(
                bind, user_id=1, identity=identity(f"{account}-b", email=f"{account}@example.com")
            )
        linker = self.guarded if name == "guarded-unlink" else self.linker
        return lambda bind: linker.unlink(bind, user_id=1, link_id=link_id)


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_every_call_cancelled_anywhere_is_done_or_not(
    database: Database, watch: Watch, complaints: list[str], how: str, policy: LinkPolicy
) -> None:
    """F10: relink, restore, conflict, a blocked link, unlink and guarded unlink: each is done or not, never half."""
    tables = await tables_of(database, policy)
    if policy is EXCLUSIVE:
        setup = database.engine()
        await run_sql(setup, "ALTER TABLE connections ADD COLUMN deleted_at text")
        await run_sql(setup, "ALTER TABLE connections ADD COLUMN reason text")
        await run_sql(setup, "CREATE UNIQUE INDEX one_email ON connections (email)")
        await setup.dispose()
    calls, engine = Calls(tables), watched_engine(database)
    soft, hard = ("relink", "restore", "conflict", "unlink", "guarded-unlink"), ("blocked", "unlink", "guarded-unlink")
    for name in soft if policy is EXCLUSIVE_SOFT else hard:
        for at in range(1, ENOUGH):
            call = await calls.prepared(engine, name, at)
            state = f"{STATE} FROM connections WHERE account_id LIKE '{name}-{at}%'"
            before = await watch.rows(state)
            async with AsyncExitStack() as stack:
                bind = await opened(stack, engine, how)
                run = Stepped(_coroutine(call, bind), at=at)
                end = await run.ended()
                assert not run.swallowed, (name, at, end)
                if how == "session":
                    await bind.rollback()
            assert 0 == checked_out(engine), (name, at)
            assert [] == await soon(lambda: watch.left_behind(engine)), (name, at)
            after = await watch.rows(state)
            with suppress(AccountNotFound):  # done, and the row is gone
                await _coroutine(call, engine)
            assert after in (before, await watch.rows(state)), (name, at)
            if how == "session":
                assert before == after, (name, at)
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


async def _coroutine(call: Call, bind: Any) -> object:
    try:
        return await call(bind)
    except AccountNotFound:
        raise
    except Exception as error:  # noqa: BLE001  # an ending like others
        return error


POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted HAVING count(*) > 0"


async def nobody_waits(watch: Watch) -> bool:
    return not await watch.rows(WAITING)


async def cancelled(task: asyncio.Task[Any], cancel: Callable[..., Awaitable[None]]) -> bool:
    """Cancel a task, wait for its end, and say whether it ended as cancelled."""
    async with asyncio.timeout(10):
        await cancel(task)
        await asyncio.wait({task})
    return task.cancelled()


async def once(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def twice(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()


async def ever(task: asyncio.Task[Any]) -> None:
    """Cancel as cancel scopes with levels do: at each turn of the loop, until the task has ended."""
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


@POSTGRESQL
@pytest.mark.parametrize("cancel", [once, twice, ever])
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_waiter_who_is_cancelled_leaves_the_servers_queue(
    database: Database, watch: Watch, complaints: list[str], how: str, cancel: Callable[..., Awaitable[None]]
) -> None:
    """F06, F10: who gives up waiting for a rival's lock waits no more on the server, and gets nothing afterwards."""
    tables = await tables_of(database)
    linker, engine, others = tables.linker(), watched_engine(database), database.engine()
    async with AsyncSession(others) as rival, AsyncExitStack() as stack:
        assert isinstance(await linker.link(rival, user_id=1, identity=identity()), Linked)
        bind = await opened(stack, engine, how)
        waiter = asyncio.create_task(linker.link(bind, user_id=2, identity=identity()))
        assert not await soon(lambda: nobody_waits(watch)), "nobody waited"
        assert await cancelled(waiter, cancel)
        if how == "session":
            await bind.rollback()
        assert [] == await soon(lambda: watch.rows(WAITING))
        assert [] == await soon(lambda: watch.left_behind(engine))
        await rival.rollback()
        assert [] == await watch.rows("SELECT user_id FROM connections")
        assert isinstance(await linker.link(bind, user_id=2, identity=identity()), Linked)
    await engine.dispose()
    del waiter
    gc.collect()
    assert [] == complaints


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_timeout_ends_the_waiting(database: Database, watch: Watch, complaints: list[str], how: str) -> None:
    """F06, F10: `asyncio.timeout` around a link that waits is a TimeoutError, the rival is not disturbed."""
    tables = await tables_of(database)
    linker, engine, others = tables.linker(), watched_engine(database), database.engine()
    async with AsyncSession(others) as rival, AsyncExitStack() as stack:
        await linker.link(rival, user_id=1, identity=identity())
        bind = await opened(stack, engine, how)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await linker.link(bind, user_id=2, identity=identity())
        if how == "session":
            await bind.rollback()
        assert [] == await soon(lambda: watch.left_behind(engine))
        await rival.commit()
        assert isinstance(await linker.link(bind, user_id=2, identity=identity()), OwnershipConflict)
    assert [(1,)] == await watch.rows("SELECT user_id FROM connections")
    await engine.dispose()
    gc.collect()
    assert [] == complaints


@SQLITE
@pytest.mark.parametrize("cancel", [once, ever])
async def test_a_waiter_for_sqlites_lock_leaves_nothing(
    database: Database, watch: Watch, complaints: list[str], cancel: Callable[..., Awaitable[None]]
) -> None:
    """F10, F28: who is cancelled while another holds the write lock ends within the busy timeout, and holds nothing."""
    tables = await tables_of(database)
    linker, engine = tables.linker(), tune_sqlite(database.untuned(), busy_timeout=300)
    async with database.engine().begin() as holder:
        await holder.execute(sa.text("SELECT 1"))
        waiter = asyncio.create_task(linker.link(engine, user_id=1, identity=identity()))
        await asyncio.sleep(0.1)
        assert await cancelled(waiter, cancel)
    assert 0 == checked_out(engine)
    await engine.dispose()
    await database.dispose()
    assert [] == await soon(lambda: watch.left_behind(engine))
    assert [] == await watch.rows("SELECT user_id FROM connections")
    assert isinstance(await linker.link(engine, user_id=1, identity=identity()), Linked)
    del waiter
    gc.collect()
    assert [] == complaints


async def test_a_waiter_for_the_pool_leaves_it_as_it_was(database: Database, complaints: list[str]) -> None:
    """F11: a call that is cancelled while it waits for the pool takes no connection, and costs the pool none."""
    tables = await tables_of(database)
    linker = tables.linker()
    engine = database.engine(pool_size=1, max_overflow=0)
    async with engine.connect():
        waiters = [asyncio.create_task(linker.link(engine, user_id=1, identity=identity())) for _ in range(3)]
        await asyncio.sleep(0.05)
        for waiter in waiters:
            assert await cancelled(waiter, ever)
        assert 1 == checked_out(engine)
    assert 0 == checked_out(engine)
    assert isinstance(await linker.link(engine, user_id=1, identity=identity()), Linked)
    waiters.clear()
    del waiter
    await engine.dispose()
    gc.collect()
    assert [] == complaints


@pytest.mark.parametrize("cancel", [once, ever])
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_cancelled_guard_unlinks_nothing(
    database: Database, watch: Watch, complaints: list[str], how: str, cancel: Callable[..., Awaitable[None]]
) -> None:
    """F10, A39: cancelled inside the guard, the link lives, its lock is gone, and the session works on."""
    tables = await tables_of(database)
    engine, asked = watched_engine(database), asyncio.Event()

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        await connection.execute(sa.text("SELECT 1"))
        asked.set()
        await asyncio.Event().wait()
        return True

    linker, plain = tables.linker(guard_last=guard), tables.linker()
    first = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(first, Linked)
    link_id = first.account.id
    async with AsyncExitStack() as stack:
        bind = await opened(stack, engine, how)
        unlinking = asyncio.create_task(linker.unlink(bind, user_id=1, link_id=link_id))
        async with asyncio.timeout(10):
            await asked.wait()
        assert await cancelled(unlinking, cancel)
        if how == "session":
            await bind.rollback()
            assert isinstance(await plain.unlink(bind, user_id=1, link_id=link_id), Unlinked)
            await bind.rollback()
    assert 0 == checked_out(engine)
    assert [] == await soon(lambda: watch.left_behind(engine))
    assert [whole("sub-1")] == await watch.rows(WHOLE)
    assert isinstance(await plain.unlink(engine, user_id=1, link_id=link_id), Unlinked)
    await engine.dispose()
    del unlinking
    gc.collect()
    assert [] == complaints
