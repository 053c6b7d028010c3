"""Lines lost, servers gone, calls cancelled: an event is there with its change or not at all, and none is lost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountLinkError,
    AlreadyOwner,
    DeliveryExpired,
    Linked,
    OutcomeUnknown,
    OwnershipConflict,
    StoreBusy,
    StoreUnavailable,
    Transferred,
    Unlinked,
)
from tests.faults.stepping import Moment, Stepped
from tests.faults.test_lost_lines import ENOUGH, Line, result_of, through
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.claims import Case
from tests.support.databases import Database, rows, run_sql
from tests.support.models import identity, tokens
from tests.support.told import told
from tests.support.wire import Lose, executes

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
WARM = 7
"""Calls after which each driver has prepared its statements (psycopg prepares at the sixth)."""
IDS = "SELECT id FROM accountlink_events ORDER BY id"
COMMITS, WRITES = executes("COMMIT"), executes("WITH")
Call = Callable[[Any], Awaitable[object]]
pytestmark = [
    pytest.mark.each_driver,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


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
async def case(database: Database) -> Case:
    """A table with an outbox; the case's own engine does not go through any line."""
    return await told(database.engine())


@pytest.fixture
async def watched(database: Database) -> AsyncIterator[Case]:
    """A table with an outbox, on an engine that only the test uses, so that leftovers of a call are seen."""
    await (made := await told(database.engine())).engine.dispose()
    engine = watched_engine(database)
    yield Case(made.links, engine)
    await engine.dispose()


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """Whatever the event loop has to complain of."""
    loop, heard = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, context: heard.append(f"{context['message']}: {context.get('exception')!r}"))
    yield heard
    loop.set_exception_handler(None)


# -- whoever writes ---------------------------------------------------------------------------------------------------

WRITERS = ("linked", "updated", "restored", "unlinked", "conflict", "transferred")


async def prepared(case: Case, name: str, account: str) -> Call:
    """Prepare a call, delete the events so far, and return the call: after it there is one event of that type."""
    link = partial(case.linker.link, user_id=1, identity=identity(account), credentials=tokens("after"))
    call: Call = link
    link_id = None if name == "linked" else await case.link(2 if name == "conflict" else 1, account)
    if name == "restored":
        await case.linker.unlink(case.engine, user_id=1, link_id=link_id)
    if name == "unlinked":
        call = partial(case.linker.unlink, user_id=1, link_id=link_id, reason="why")
    if name == "transferred":
        token = await case.claim(2, account)
        call = lambda bind: case.transfer(token, 2, bind)  # noqa: E731  # as short as the others
    await run_sql(case.engine, "DELETE FROM accountlink_events")
    return call


async def state(case: Case) -> list[tuple[Any, ...]]:
    """All that is stored of links, the stamps of the calls aside."""
    return await case.links.stored(case.engine, "id", "user_id", "account_id", "access_token", "live", "version")


async def events_of(case: Case) -> list[str]:
    return [kind for (kind,) in await rows(case.engine, "SELECT type FROM accountlink_events ORDER BY id")]


@POSTGRESQL
@pytest.mark.parametrize("name", WRITERS)
async def test_a_line_cut_anywhere_in_a_call_leaves_one_event(
    database: Database, case: Case, line: Line, name: str
) -> None:
    """F02, F03, F12: after the loss of any message the call is retried, and writes its event once."""
    engine = through(line, database)
    for n in range(WARM):
        await (await prepared(case, name, f"warm-{n}"))(engine)
    for passed in range(ENOUGH):
        call = await prepared(case, name, f"sub-{passed}")
        line.cut_after(passed)
        outcome = await result_of(call, engine)
        allowed = (Linked, OwnershipConflict, Unlinked, Transferred, AlreadyOwner)
        assert isinstance(outcome, allowed), (passed, outcome)
        assert [name] == await events_of(case), (passed, outcome)
        if not line.is_cut:
            line.spare()
            assert passed > 0, "nothing was cut"
            break


@POSTGRESQL
@pytest.mark.parametrize("name", WRITERS)
async def test_a_server_that_stays_away_has_both_or_neither(database: Database, case: Case, name: str) -> None:
    """F02, F03: cut anywhere for good: the change and its event are both there, or both are not."""
    assert database.server is not None
    for passed in range(ENOUGH):
        call = await prepared(case, name, f"sub-{passed}")
        before = await state(case)
        async with Line(database.server.host, database.server.port) as lost:
            engine = through(lost, database)
            async with engine.connect():
                lost.for_good = True
                lost.cut_after(passed)
            outcome = await result_of(call, engine)
            cut = lost.is_cut
            await engine.dispose()
        changed = await state(case) != before
        found = await events_of(case)
        where = (passed, outcome, found)
        assert found in ([], [name]), where
        if name != "conflict":
            assert changed is bool(found), where
        if not cut:
            assert [name] == found, where
            break
        assert isinstance(outcome, (StoreUnavailable, OutcomeUnknown)), where
        if isinstance(outcome, StoreUnavailable):
            assert [] == found, where


@POSTGRESQL
@pytest.mark.parametrize("lose", Lose)
@pytest.mark.parametrize("name", WRITERS)
async def test_a_callers_commit_that_is_lost_has_both_or_neither(
    database: Database, case: Case, line: Line, name: str, lose: Lose
) -> None:
    """F02, F03: if the caller's COMMIT or its answer is lost, the change and its event share one fate."""
    engine = through(line, database)
    call = await prepared(case, name, "sub")
    before = await state(case)
    async with AsyncSession(engine) as session:
        await call(session)
        line.cut_when(COMMITS, lose=lose)
        with pytest.raises((sa.exc.DBAPIError, OSError)):
            await session.commit()
    await settled(case)
    found = await events_of(case)
    assert ([name] if lose is Lose.REPLY else []) == found
    if name != "conflict":
        assert (await state(case) != before) is bool(found)


async def settled(case: Case) -> None:
    """Wait until the server has noticed whose line is cut."""
    busy = (
        "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%' OR (state = 'active' AND pid <> pg_backend_pid())"
    )
    assert [] == await soon(partial(rows, case.engine, f"{busy} AND datname = current_database()"))


@POSTGRESQL
async def test_a_lost_reply_to_a_conflict_behind_a_violation_is_told_once(
    database: Database, case: Case, line: Line
) -> None:
    """F03: a conflict with a separate statement for its event writes it once, even if the answer is lost."""
    link_id = await case.link(1)
    await case.linker.unlink(case.engine, user_id=1, link_id=link_id)
    engine = through(line, database)
    others = database.engine()
    async with AsyncSession(others) as rival:
        await case.linker.link(rival, user_id=2, identity=identity())
        waiter = asyncio.create_task(case.linker.link(engine, user_id=1, identity=identity()))
        await waiting(others)
        line.cut_when(executes("INSERT INTO accountlink_events"), lose=Lose.REPLY)
        await rival.commit()
        outcome = await waiter
    assert line.is_cut
    assert isinstance(outcome, OwnershipConflict)
    assert ["linked", "unlinked", "linked", "conflict"] == await events_of(case)


async def waiting(engine: AsyncEngine) -> None:
    """Wait until a backend waits for a lock."""
    for _ in range(500):
        if (await rows(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


@POSTGRESQL
async def test_a_conflict_and_then_a_link_are_two_events(database: Database, case: Case, line: Line) -> None:
    """A conflict's answer is lost, and the owner unlinks before the retry: both events are written."""
    link_id = await case.link(2)
    await case.linker.accounts(engine := through(line, database), user_id=1)
    line.cut_when(WRITES, lose=Lose.REPLY)
    hold = line.hold(lambda message: message.kind == "Startup")
    going = asyncio.create_task(case.linker.link(engine, user_id=1, identity=identity()))
    async with asyncio.timeout(10):
        await hold.reached.wait()
    await case.linker.unlink(case.engine, user_id=2, link_id=link_id)
    hold.released.set()
    assert isinstance(await going, Linked)
    assert ["linked", "conflict", "unlinked", "linked"] == await events_of(case)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_call_cancelled_anywhere_has_both_or_neither(
    watched: Case, watch: Watch, complaints: list[str], name: str, how: str
) -> None:
    """F10: cancelled at any suspension: the change and its event are both there or both not, and nothing is left."""
    case, engine = watched, watched.engine
    for moment in (Moment.AT_ONCE, Moment.TOO_LATE):
        for at in range(1, ENOUGH):
            call = await prepared(case, name, f"{moment.name}-{at}")
            before = await state(case)
            where = f"{name}, {how}, {moment.name} at suspension {at}"
            if how == "session":
                async with AsyncSession(engine) as session:
                    await session.execute(sa.text("SELECT 1"))
                    run = Stepped(_coroutine(call, session), at=at, moment=moment)
                    await run.ended()
                    await session.rollback()
            else:
                run = Stepped(_coroutine(call, engine), at=at, moment=moment)
                await run.ended()
            assert 0 == checked_out(engine), where
            assert [] == await soon(partial(watch.left_behind, engine)), where
            found = await events_of(case)
            assert found in ([], *(() if how == "session" else ([name],))), where
            if name != "conflict":
                assert (await state(case) != before) is bool(found), where
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


async def _coroutine(call: Call, bind: Any) -> object:
    return await call(bind)


# -- whoever reads ----------------------------------------------------------------------------------------------------


async def filled(case: Case, number: int = 1) -> None:
    for n in range(number):
        await case.link(1, f"filled-{n}")


async def consume_one(case: Case, engine: AsyncEngine) -> object:
    """Acknowledge the oldest event; return its number, or the error."""
    try:
        async with aclosing(case.linker.events(engine)) as deliveries:
            async for delivery in deliveries:
                await delivery.acknowledge()
                return delivery.event.id
    except AccountLinkError as error:
        return error
    return None


async def ids(case: Case) -> list[int]:
    return [number for (number,) in await rows(case.engine, IDS)]


@POSTGRESQL
async def test_a_line_cut_anywhere_in_a_delivery_loses_no_event(database: Database, case: Case, line: Line) -> None:
    """F02, F03, F12: acknowledged, the event is gone; unavailable, it comes again; unknown, it is one or the other."""
    engine = through(line, database)
    await filled(case, 60)
    for _ in range(WARM):
        assert isinstance(await consume_one(case, engine), int)
    told_by: set[str] = set()
    for passed in range(ENOUGH):
        oldest, *rest = before = await ids(case)
        line.cut_after(passed)
        outcome = await consume_one(case, engine)
        await settled(case)
        found = await ids(case)
        where = (passed, outcome)
        match outcome:
            case int():
                assert (oldest, rest) == (outcome, found), where
            case StoreUnavailable():
                assert before == found, where
            case OutcomeUnknown():
                assert found in (before, rest), where
            case _:
                raise AssertionError(where)
        told_by.add(getattr(outcome, "code", "done"))
        assert 0 == checked_out(engine), where
        if not line.is_cut:
            line.spare()
            assert isinstance(outcome, int)
            assert passed > 6, "four trips were to be cut"
            break
    assert {"done", "store_unavailable", "outcome_unknown"} == told_by


@POSTGRESQL
@pytest.mark.parametrize("lose", Lose)
async def test_an_acknowledgement_whose_commit_is_lost_is_unknown(
    database: Database, case: Case, line: Line, lose: Lose
) -> None:
    """F03: after a lost COMMIT the outcome is unknown; the event is gone if it ran, and comes again if not."""
    await filled(case)
    engine = through(line, database)
    line.cut_when(COMMITS, lose=lose)
    assert isinstance(await consume_one(case, engine), OutcomeUnknown)
    await settled(case)
    assert ([] if lose is Lose.REPLY else [1]) == await ids(case)


@POSTGRESQL
async def test_a_connection_that_ends_in_hand_gives_the_event_to_another(database: Database, case: Case) -> None:
    """F03: the server ends a consumer's transaction: another gets the event immediately, and the first one an error."""
    await filled(case)
    engine = database.engine()
    events = case.linker.events(engine)
    mine = await anext(events)
    await terminated(case)
    theirs = case.linker.events(case.engine)
    other = await anext(theirs)
    assert mine.event == other.event
    with pytest.raises(StoreUnavailable):
        await mine.acknowledge()
    with pytest.raises(DeliveryExpired):
        await mine.acknowledge()
    await events.aclose()
    assert 0 == checked_out(engine)
    await other.acknowledge()
    await theirs.aclose()
    assert [] == await ids(case)


async def terminated(case: Case) -> None:
    """Let the server end whatever transaction holds an event."""
    holding = "pid <> pg_backend_pid() AND state = 'idle in transaction' AND datname = current_database()"
    await rows(case.engine, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {holding}")
    await settled(case)


@POSTGRESQL
@pytest.mark.parametrize("end", ["server", "line", "unanswered"])
@pytest.mark.parametrize("leave", ["close", "go on"])
async def test_whoever_lets_go_over_a_dead_line_hears_nothing_of_it(
    database: Database, case: Case, line: Line, end: str, leave: str
) -> None:
    """F12: the connection that held an event is dead when it is let go: it is free anyway, and the pool is whole."""
    await filled(case, 2)
    engine = through(line, database)
    events = case.linker.events(engine)
    await anext(events)
    if end == "server":
        await terminated(case)
    elif end == "line":
        line.sever()
    else:
        line.cut_when(executes("ROLLBACK"), lose=Lose.REPLY)
    await asyncio.sleep(0.05)
    if leave == "go on":
        assert 2 == (await anext(events)).event.id
    await events.aclose()
    assert 0 == checked_out(engine)
    await settled(case)
    assert [1, 2] == [await consume_one(case, engine) for _ in range(2)]


@POSTGRESQL
async def test_a_loop_outlives_a_connection_that_went_stale(database: Database, case: Case, line: Line) -> None:
    """F12: a connection that was lost while the loop waited is replaced, and the consumer sees no error."""
    engine = through(line, database)
    await filled(case, 2)
    async with aclosing(case.linker.events(engine)) as deliveries:
        numbers = []
        async for delivery in deliveries:
            numbers.append(delivery.event.id)
            await delivery.acknowledge()
            line.sever()
            await asyncio.sleep(0.05)
    assert [1, 2] == numbers


@POSTGRESQL
async def test_a_migration_of_the_outbox_does_not_end_the_loop(database: Database, case: Case) -> None:
    """A table that is altered under prepared statements is read by new ones, and each connection is given back."""
    await filled(case, 12)
    engine = database.engine(pool_size=1, max_overflow=0, pool_timeout=1)
    numbers = []
    async with aclosing(case.linker.events(engine)) as deliveries:
        async for delivery in deliveries:
            numbers.append(delivery.event.id)
            await delivery.acknowledge()
            if delivery.event.id == 9:
                await run_sql(case.engine, "ALTER TABLE accountlink_events ALTER COLUMN provider TYPE varchar(99)")
    assert list(range(1, 13)) == numbers
    assert 0 == checked_out(engine)


@POSTGRESQL
async def test_a_server_that_is_gone_ends_the_loop(database: Database, case: Case, line: Line) -> None:
    """F02: no server: asking for the next event is unavailable, in words that tell no parameter, and leaves nothing."""
    engine = through(line, database)
    await filled(case)
    line.for_good = True
    line.cut_after(0)
    outcome = await consume_one(case, engine)
    assert isinstance(outcome, StoreUnavailable)
    assert outcome.__cause__ is None
    assert 0 == checked_out(engine)
    assert [1] == await ids(case)


async def test_a_busy_database_is_busy(database: Database, kind: str) -> None:
    """F06, F28: a writer who does not end, or a table that is locked: StoreBusy, and the event is still there."""
    case = await told(database.engine())
    await filled(case)
    async with case.engine.connect() as holder:
        if kind == "sqlite":
            engine = watched_engine(database, connect_args={})
            await holder.exec_driver_sql("DELETE FROM connections")
        else:
            setting = {"lock_timeout": "150ms"}
            args: dict[str, Any] = (
                {"server_settings": setting} if kind == "asyncpg" else {"options": "-c lock_timeout=150"}
            )
            engine = database.engine(connect_args=args)
            await holder.exec_driver_sql("LOCK TABLE accountlink_events IN ACCESS EXCLUSIVE MODE")
        assert isinstance(await consume_one(case, engine), StoreBusy)
        assert 0 == checked_out(engine)
        await holder.rollback()
    assert 1 == await consume_one(case, engine)


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("acknowledged", [True, False], ids=["acknowledged", "passed-over"])
async def test_a_delivery_cancelled_anywhere_loses_no_event_and_leaves_nothing(
    watched: Case, watch: Watch, complaints: list[str], moment: Moment, acknowledged: bool
) -> None:
    """F10, F11: cancelled at any suspension, once or at each: the event is gone or comes again, and no hold is left."""
    case, engine = watched, watched.engine
    for at in range(1, ENOUGH):
        await filled(case)
        oldest = (await ids(case))[0]
        done: list[int] = []
        run = Stepped(_consumer(case, engine, done if acknowledged else None), at=at, moment=moment)
        await run.ended()
        where = f"{moment.name} at suspension {at}"
        assert not run.swallowed, where
        assert 0 == checked_out(engine), where
        assert [] == await soon(partial(watch.left_behind, engine)), where
        assert [] == await soon(partial(watch.rows, "SELECT id FROM accountlink_events WHERE claimed_by IS NOT NULL"))
        found = await ids(case)
        assert [oldest] == found or ([] == found and acknowledged), where
        if done:
            assert [] == found, where
        assert (oldest if found else None) == await consume_one(case, engine), where
        if not run.struck:
            break
    await engine.dispose()
    gc.collect()
    assert [] == complaints


async def _consumer(case: Case, engine: AsyncEngine, done: list[int] | None) -> None:
    async with aclosing(case.linker.events(engine)) as deliveries:
        async for delivery in deliveries:
            if done is not None:
                await delivery.acknowledge()
                done.append(delivery.event.id)


@POSTGRESQL
async def test_a_consumer_cancelled_twice_gives_the_connection_back_whole(database: Database) -> None:
    """F11: after two cancellations of a consumer the transaction is rolled back, and the pool keeps the connection."""
    case = await told(database.engine())
    await filled(case)
    engine = database.engine(pool_size=1, max_overflow=0)
    thrown_away: list[object] = []
    for name in ("invalidate", "close"):
        sa.event.listen(engine.sync_engine, name, lambda *what: thrown_away.append(what))
    in_hand = asyncio.Event()

    async def consume() -> None:
        async with aclosing(case.linker.events(engine)) as deliveries:
            async for _ in deliveries:
                in_hand.set()
                await asyncio.sleep(30)

    consumer = asyncio.create_task(consume())
    await in_hand.wait()
    consumer.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
        consumer.cancel()
    await asyncio.wait({consumer})
    assert consumer.cancelled()
    assert (0, []) == (checked_out(engine), thrown_away)
    assert 1 == await consume_one(case, engine)
