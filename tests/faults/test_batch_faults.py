"""Batches after lost or ended connections and cancellations: no event is lost, and each answer is true."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinkError, DeliveryExpired, OutcomeUnknown, StoreUnavailable
from tests.faults.stepping import Moment, Stepped
from tests.faults.test_lost_lines import ENOUGH, Line, through
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.claims import Case
from tests.support.databases import Database, rows, run_sql
from tests.support.told import told
from tests.support.wire import Lose, executes

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
WARM = 7
"""Batches after which each driver has prepared its statements (psycopg prepares at the sixth)."""
IDS = "SELECT id FROM accountlink_events ORDER BY id"
BUSY = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
       AND (state LIKE 'idle in%' OR (state = 'active' AND pid <> pg_backend_pid()))
"""
END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE pid <> pg_backend_pid() AND state = 'idle in transaction' AND datname = current_database()
"""
SIZE = 3
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


async def filled(case: Case, number: int = SIZE) -> None:
    """Let something happen so many times."""
    for n in range(number):
        await case.link(1, f"filled-{n}")


async def ids(case: Case) -> list[int]:
    return [number for (number,) in await rows(case.engine, IDS)]


async def settled(case: Case) -> None:
    """Wait until the server has noticed whose line is cut."""
    assert [] == await soon(partial(rows, case.engine, BUSY))


async def consume_one(case: Case, engine: AsyncEngine) -> list[int] | AccountLinkError:
    """Acknowledge the oldest batch; return its numbers, or the error."""
    try:
        async with aclosing(case.linker.batches(engine, size=SIZE)) as batches:
            async for batch in batches:
                await batch.acknowledge()
                return [event.id for event in batch.events]
    except AccountLinkError as error:
        return error
    return []


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


@POSTGRESQL
async def test_a_line_cut_anywhere_in_a_batch_loses_no_event(database: Database, line: Line) -> None:
    """F02, F03, F12: acknowledged, all are gone; unavailable, all come again; unknown, it is one or the other."""
    case = await told(database.engine())
    engine = through(line, database)
    told_by: set[str] = set()
    for passed in range(-WARM, ENOUGH):
        await filled(case)
        before = await ids(case)
        if passed >= 0:
            line.cut_after(passed)
        outcome = await consume_one(case, engine)
        await settled(case)
        found, where = await ids(case), (passed, outcome)
        match outcome:
            case list():
                assert (before, []) == (outcome, found), where
            case StoreUnavailable():
                assert before == found, where
            case OutcomeUnknown():
                assert found in (before, []), where
            case _:
                raise AssertionError(where)
        told_by.add(getattr(outcome, "code", "done"))
        assert 0 == checked_out(engine), where
        await run_sql(case.engine, "DELETE FROM accountlink_events")
        if passed >= 0 and not line.is_cut:
            line.spare()
            break
    assert {"done", "store_unavailable", "outcome_unknown"} == told_by


@POSTGRESQL
@pytest.mark.parametrize("lose", Lose)
async def test_an_acknowledgement_whose_commit_is_lost_is_unknown(database: Database, line: Line, lose: Lose) -> None:
    """F03: after a lost COMMIT the outcome is unknown; all events are gone if it ran, and come again if not."""
    case = await told(database.engine())
    await filled(case)
    engine = through(line, database)
    line.cut_when(executes("COMMIT"), lose=lose)
    assert isinstance(await consume_one(case, engine), OutcomeUnknown)
    await settled(case)
    assert ([] if lose is Lose.REPLY else [1, 2, 3]) == await ids(case)


@POSTGRESQL
async def test_a_connection_that_ends_in_hand_gives_the_batch_to_another(database: Database) -> None:
    """F03: the server ends the transaction that holds a batch: another has it at once, and the first one is told."""
    case = await told(database.engine())
    await filled(case)
    engine = database.engine()
    batches = case.linker.batches(engine)
    mine = await anext(batches)
    await rows(case.engine, END)
    await settled(case)
    assert [1, 2, 3] == await consume_one(case, case.engine)
    with pytest.raises(StoreUnavailable):
        await mine.acknowledge()
    with pytest.raises(DeliveryExpired):
        await mine.acknowledge()
    await batches.aclose()
    assert 0 == checked_out(engine)


@pytest.fixture
async def watched(database: Database) -> AsyncIterator[Case]:
    """A table with an outbox, on an engine that nothing else works on."""
    await (made := await told(database.engine())).engine.dispose()
    engine = watched_engine(database)
    yield Case(made.links, engine)
    await engine.dispose()


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
@pytest.mark.parametrize("broken", [False, True], ids=["sound", "one-unreadable"])
async def test_a_batch_cancelled_anywhere_loses_no_event_and_leaves_nothing(
    watched: Case, watch: Watch, *, broken: bool
) -> None:
    """F10, F11: cancelled at any suspension: all are gone or all come again; what cannot be read is always kept."""
    case, engine = watched, watched.engine
    for at in range(1, ENOUGH):
        await filled(case)
        first, second, third = await ids(case)
        if broken:
            await run_sql(engine, f"UPDATE accountlink_events SET user_id = 'alice' WHERE id = {second}")  # a number
        sound = [first, third] if broken else [first, second, third]
        kept = [second] if broken else []
        done: list[int] = []
        run = Stepped(_consumer(case, engine, done), at=at, moment=Moment.AT_ONCE)
        await run.ended()
        where = f"suspension {at}"
        assert 0 == checked_out(engine), where
        assert [] == await soon(partial(watch.left_behind, engine)), where
        found = await ids(case)
        assert found in (kept, sorted(sound + kept)), where
        if done:
            assert (sound, kept) == (done, found), where
        assert (sound if found != kept else []) == await consume_one(case, engine), where
        assert kept == await ids(case), where
        await run_sql(engine, "DELETE FROM accountlink_events")
        if not run.struck:
            break
    await engine.dispose()
    gc.collect()


async def _consumer(case: Case, engine: AsyncEngine, done: list[int]) -> None:
    async with aclosing(case.linker.batches(engine, size=SIZE)) as batches:
        async for batch in batches:
            await batch.acknowledge()
            done += [event.id for event in batch.events]
            await asyncio.sleep(0)
