"""A transfer with a lost connection, a cancellation or a locked row: done or not done, with a true answer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import AlreadyOwner, OutcomeUnknown, StoreBusy, StoreUnavailable, TokenSuperseded, Transferred
from tests.faults.stepping import Moment, Stepped
from tests.faults.test_lost_lines import ENOUGH, Line, result_of, through
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.claims import CLAIMED, Case
from tests.support.databases import Database
from tests.support.models import tokens
from tests.support.wire import Lose, Message, executes

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
KINDS_OF_TABLE = ("mixin-exclusive-soft", "exclusive-soft-ledger")
"""With a version, and with a ledger."""
WARM = 7
OWNED = "SELECT user_id, access_token FROM connections WHERE account_id = '{}'"
BEFORE, AFTER = [(1, "former-access")], [(2, "after")]
pytestmark = [
    pytest.mark.each_driver,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


def moves(message: Message) -> bool:
    """Whether a message runs the statement that decides."""
    return message.runs is not None and "UPDATE connections SET user_id" in message.runs


@pytest.fixture(params=KINDS_OF_TABLE)
def table(request: pytest.FixtureRequest) -> str:
    """The tables, by name."""
    return str(request.param)


@pytest.fixture
async def watched(database: Database, table: str) -> AsyncIterator[Case]:
    """A table and an engine that nothing else works on, so that what a call leaves behind is seen."""
    await (made := await case_of(database, table)).engine.dispose()
    engine = watched_engine(database)
    yield Case(made.links, engine)
    await engine.dispose()


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """Whatever the event loop has to complain of."""
    loop, heard = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, context: heard.append(f"{context['message']}: {context.get('exception')!r}"))
    yield heard
    loop.set_exception_handler(None)


async def has_password(connection: AsyncConnection, user_id: int) -> bool:
    await connection.execute(sa.text("SELECT 2"))
    return True


async def case_of(database: Database, table: str, **options: Any) -> Case:
    """A table, made; the case's own engine does not go through any line."""
    links = CLAIMED[table](database.kind)
    engine = database.engine()
    await links.create(engine)
    return Case(links, engine, options=options)


async def prepared(case: Case, account: str) -> Callable[[Any], Any]:
    """A link of user 1's, and the call by which user 2 gets it."""
    await case.link(1, account)
    token = await case.claim(2, account)
    return lambda bind: case.transfer(token, 2, bind, credentials=tokens("after"))


GUARDED = pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])


@POSTGRESQL
@GUARDED
async def test_a_line_cut_anywhere_in_a_transfer_is_replaced(
    database: Database, watch: Watch, line: Line, table: str, guarded: bool
) -> None:
    """F02, F03, F12: whichever message of a transfer is lost, a new line gives the truth, and the link has moved."""
    case = await case_of(database, table, guard_last=has_password if guarded else None)
    engine = through(line, database)
    for n in range(WARM):
        await (await prepared(case, f"warm-{n}"))(engine)
    for passed in range(ENOUGH):
        account = f"sub-{passed}"
        call = await prepared(case, account)
        line.cut_after(passed)
        outcome = await result_of(call, engine)
        assert isinstance(outcome, (Transferred, AlreadyOwner)), (passed, outcome)
        assert AFTER == await watch.rows(OWNED.format(account)), passed
        if not line.is_cut:
            line.spare()
            assert isinstance(outcome, Transferred)
            assert passed > 1, "nothing was cut"
            break


@POSTGRESQL
@GUARDED
async def test_a_server_that_stays_away_is_told_truthfully(
    database: Database, watch: Watch, table: str, guarded: bool
) -> None:
    """F02, F03: with no new line: unknown if the link may have moved, unavailable only if it cannot have."""
    case = await case_of(database, table, guard_last=has_password if guarded else None)
    assert database.server is not None
    told: list[str] = []
    for passed in range(ENOUGH):
        account = f"sub-{passed}"
        call = await prepared(case, account)
        async with Line(database.server.host, database.server.port) as lost:
            engine = through(lost, database)
            for n in range(WARM if passed == 0 else 1):
                await (await prepared(case, f"warm-{passed}-{n}"))(engine)
            lost.reset()
            lost.for_good = True
            lost.cut_after(passed)
            outcome = await result_of(call, engine)
            found = await watch.rows(OWNED.format(account))
            sent = any(map(moves, (message for trip in lost.log for message in trip.messages)))
            cut = lost.is_cut
            await engine.dispose()
        where = (passed, outcome, found, sent)
        if not cut:
            assert isinstance(outcome, Transferred), where
            break
        assert isinstance(outcome, (StoreUnavailable, OutcomeUnknown)), where
        told.append(outcome.code)
        assert found in (BEFORE, AFTER), where
        if not sent or isinstance(outcome, StoreUnavailable):
            assert BEFORE == found, where
        if not guarded:
            assert sent is isinstance(outcome, OutcomeUnknown), where
        retried = await call(case.engine)
        assert isinstance(retried, AlreadyOwner if found == AFTER else Transferred), where
        assert AFTER == await watch.rows(OWNED.format(account)), where
    assert ("store_unavailable", "outcome_unknown") == (told[0], told[-1]), told


@POSTGRESQL
@pytest.mark.parametrize("how", ["session", "connection"])
async def test_a_line_cut_in_a_callers_transaction_moves_nothing(
    database: Database, watch: Watch, line: Line, table: str, how: str
) -> None:
    """F02, F12: cut anywhere in a caller's transaction: unavailable, nothing has moved, the token works after it."""
    case = await case_of(database, table)
    engine = through(line, database)
    for passed in range(ENOUGH):
        account = f"sub-{passed}"
        call = await prepared(case, account)
        bind: Any = AsyncSession(engine) if how == "session" else await engine.connect().start()
        await bind.execute(sa.text("SELECT 1"))
        line.cut_after(passed)
        outcome = await result_of(call, bind)
        if not line.is_cut:
            line.spare()
            assert isinstance(outcome, Transferred), (passed, outcome)
            await bind.close()
            break
        assert isinstance(outcome, StoreUnavailable), (passed, outcome)
        await bind.rollback()
        assert BEFORE == await watch.rows(OWNED.format(account)), passed
        assert isinstance(await call(bind), Transferred), passed
        await bind.commit()
        await bind.close()
        assert AFTER == await watch.rows(OWNED.format(account)), passed


@POSTGRESQL
async def test_a_lost_reply_to_a_transfer_is_owned_already(
    database: Database, watch: Watch, line: Line, table: str
) -> None:
    """F03: the transfer was committed and its answer lost: the retry says AlreadyOwner; lost before, Transferred."""
    case = await case_of(database, table)
    engine = through(line, database)
    for lose, kind in ((Lose.REPLY, AlreadyOwner), (Lose.REQUEST, Transferred)):
        call = await prepared(case, lose.name)
        line.cut_when(moves, lose=lose)
        assert isinstance(await call(engine), kind)
        assert line.is_cut
        assert AFTER == await watch.rows(OWNED.format(lose.name))


@POSTGRESQL
async def test_a_lost_reply_after_which_the_link_went_on_is_unknown(
    database: Database, watch: Watch, line: Line, table: str
) -> None:
    """F03: committed, answer lost, and meanwhile the link is another's: not "superseded", as if it had done nothing."""
    case = await case_of(database, table)
    engine = through(line, database)
    call = await prepared(case, "sub")
    reads: list[Message] = []

    def second_read(message: Message) -> bool:
        if message.runs is not None and message.runs.startswith("SELECT connections.id") and message.kind != "Parse":
            reads.append(message)
        return len(reads) == 2

    line.cut_when(moves, lose=Lose.REPLY)
    hold = line.hold(second_read)
    going = asyncio.create_task(result_of(call, engine))
    async with asyncio.timeout(10):
        await hold.reached.wait()
    assert AFTER == await watch.rows(OWNED.format("sub"))
    third = await case.claim(3, "sub")
    assert isinstance(await case.transfer(third, 3), Transferred)
    hold.released.set()
    assert isinstance(await going, OutcomeUnknown)
    with pytest.raises(TokenSuperseded):
        await call(case.engine)


@POSTGRESQL
async def test_an_autocommit_connection_that_loses_its_line(
    database: Database, watch: Watch, line: Line, table: str
) -> None:
    """F02, F03: a caller's AUTOCOMMIT connection is not replaced; the outcome of a transfer on it is unknown."""
    case = await case_of(database, table)
    for lose in Lose:
        engine = through(line, database)
        call = await prepared(case, lose.name)
        async with engine.connect() as connection:
            bind = await connection.execution_options(isolation_level="AUTOCOMMIT")
            line.cut_when(moves, lose=lose)
            with pytest.raises(OutcomeUnknown):
                await call(bind)
        assert (AFTER if lose is Lose.REPLY else BEFORE) == await watch.rows(OWNED.format(lose.name))


@POSTGRESQL
async def test_a_read_that_loses_its_line_has_moved_nothing(
    database: Database, watch: Watch, line: Line, table: str
) -> None:
    """F02: the line is lost for good before the statement that decides was sent: unavailable, not unknown."""
    case = await case_of(database, table)
    engine = through(line, database)
    await case.linker.accounts(engine, user_id=1)
    call = await prepared(case, "sub")
    line.for_good = True
    line.cut_when(executes("SELECT connections.id"), lose=Lose.REPLY)
    with pytest.raises(StoreUnavailable):
        await call(engine)
    assert BEFORE == await watch.rows(OWNED.format("sub"))


# -- locks ------------------------------------------------------------------------------------------------------------


@POSTGRESQL
@GUARDED
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_lock_that_is_not_given_is_busy(
    database: Database, watch: Watch, table: str, guarded: bool, how: str
) -> None:
    """F06: a row that stays locked longer than the limit gives StoreBusy, and nothing is transferred."""
    options: dict[str, Any] = {"lock_timeout": timedelta(milliseconds=150)}
    case = await case_of(database, table, guard_last=has_password if guarded else None, **options)
    call = await prepared(case, "sub")
    async with AsyncSession(case.engine) as holder, AsyncSession(case.engine) as session:
        await holder.execute(sa.text("SELECT 1 FROM connections FOR UPDATE"))
        bind: Any = case.engine
        if how == "session":
            await session.execute(sa.text("SET LOCAL lock_timeout = '150ms'"))
            bind = session
        with pytest.raises(StoreBusy) as caught:
            async with asyncio.timeout(20):
                await call(bind)
        assert "55P03" == caught.value.sqlstate
        assert BEFORE == await watch.rows(OWNED.format("sub"))
        await holder.rollback()
        assert isinstance(await call(bind), Transferred)
        await session.commit()
    assert AFTER == await watch.rows(OWNED.format("sub"))


# -- cancellation -----------------------------------------------------------------------------------------------------


@GUARDED
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_transfer_cancelled_anywhere_is_done_or_not(
    watched: Case, watch: Watch, complaints: list[str], how: str, guarded: bool
) -> None:
    """F10, F11: after a cancellation anywhere one user owns the link, and a retry reports which one."""
    case, engine = watched, watched.engine
    case.linker = case.links.linker(clock=case.clock, guard_last=has_password if guarded else None)
    for moment in (Moment.AT_ONCE, Moment.TOO_LATE, Moment.ALWAYS):
        for at in range(1, ENOUGH):
            account = f"{moment.name}-{at}"
            call = await prepared(case, account)
            where = f"{how}, {moment.name} at suspension {at}"
            async with AsyncExitStack() as stack:
                bind: Any = engine
                if how == "session":
                    bind = await stack.enter_async_context(AsyncSession(engine))
                    await bind.execute(sa.text("SELECT 1"))
                run = Stepped(_coroutine(call, bind), at=at, moment=moment)
                end = await run.ended()
                assert not run.swallowed, (where, end)
                if how == "session":
                    await bind.rollback()
            assert 0 == checked_out(engine), where
            assert [] == await soon(partial(watch.left_behind, engine)), where
            found = await watch.rows(OWNED.format(account))
            assert found in ((BEFORE,) if how == "session" else (BEFORE, AFTER)), where
            retried = await call(engine)
            assert isinstance(retried, AlreadyOwner if found == AFTER else Transferred), where
            assert AFTER == await watch.rows(OWNED.format(account)), where
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


async def _coroutine(call: Callable[[Any], Any], bind: Any) -> object:
    return await call(bind)


@pytest.mark.parametrize("how", ["engine", "session"])
@pytest.mark.parametrize("table", ["mixin-exclusive-soft"])
async def test_a_cancelled_guard_moves_nothing(watched: Case, watch: Watch, complaints: list[str], how: str) -> None:
    """F10, A39: cancelled inside the guard, the owner keeps the link, its lock is gone, and the token still works."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        asked.set()
        await answer.wait()
        return True

    case, engine = watched, watched.engine
    case.linker = case.links.linker(clock=case.clock, guard_last=guard)
    call = await prepared(case, "sub")
    async with AsyncSession(engine) as session:
        bind: AsyncEngine | AsyncSession = engine if how == "engine" else session
        going = asyncio.create_task(_coroutine(call, bind))
        async with asyncio.timeout(10):
            await asked.wait()
        going.cancel()
        await asyncio.wait({going})
        assert going.cancelled()
        await session.rollback()
    assert 0 == checked_out(engine)
    assert [] == await soon(partial(watch.left_behind, engine))
    assert BEFORE == await watch.rows(OWNED.format("sub"))
    answer.set()
    assert isinstance(await call(case.engine), Transferred)
    await engine.dispose()
    del going
    gc.collect()
    assert [] == complaints
