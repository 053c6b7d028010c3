"""Deliveries: at least once, to one consumer at a time, oldest first; a consumer that stops keeps nothing."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import StaticPool

from accountlink import DeliveryExpired, Linked, StoreBusy, tune_sqlite
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.binds import BINDS, bound
from tests.support.claims import Case
from tests.support.databases import Database, rows
from tests.support.models import identity
from tests.support.told import read, told
from tests.support.wire import WireProxy

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
SOON = timedelta(milliseconds=20)
IDS = "SELECT id FROM accountlink_events ORDER BY id"


@pytest.fixture
async def case(engine: AsyncEngine) -> Case:
    """A table with an outbox."""
    return await told(engine)


@pytest.fixture
async def watched(database: Database) -> AsyncIterator[Case]:
    """A table with an outbox, on an engine that only the test uses, so that leftovers of a call are seen."""
    direct = database.engine()
    made = await told(direct)
    await direct.dispose()
    engine = watched_engine(database)
    yield Case(made.links, engine)
    await engine.dispose()


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


async def filled(case: Case, number: int) -> None:
    """Let something happen so many times."""
    for n in range(number):
        await case.link(1, f"sub-{n}")


async def numbers(case: Case) -> list[int]:
    """Return the numbers that a new consumer gets; its events stay as they are."""
    return [delivery.event.id async for delivery in case.linker.events(case.engine)]


async def first(case: Case, **options: Any) -> tuple[Any, Any]:
    """The oldest event in hand, and the loop that it is in."""
    events = case.linker.events(case.engine, **options)
    return events, await anext(events)


# -- what is delivered ------------------------------------------------------------------------------------------------


async def test_events_come_oldest_first_and_are_gone_once_acknowledged(case: Case, engine: AsyncEngine) -> None:
    """All that is there, in order, then the end; a second loop finds nothing."""
    await filled(case, 4)
    assert [1, 2, 3, 4] == [event.id for event in await read(case)]
    assert [] == await read(case)
    assert [] == await rows(engine, IDS)


async def test_an_acknowledged_event_is_gone_at_once(case: Case, engine: AsyncEngine) -> None:
    """After `acknowledge` returns, the event is deleted, whatever happens to the loop."""
    await filled(case, 3)
    async with aclosing(case.linker.events(engine)) as deliveries:
        async for delivery in deliveries:
            await delivery.acknowledge()
            assert 3 - delivery.event.id == len(await rows(engine, IDS))
            assert delivery.acknowledged
            await delivery.acknowledge()


async def test_what_is_not_acknowledged_is_passed_over_and_comes_again(case: Case) -> None:
    """A round delivers each event once; an event without acknowledgement comes in the next call, in its place."""
    await filled(case, 4)
    seen = []
    async for delivery in case.linker.events(case.engine):
        seen.append(delivery.event.id)
        if delivery.event.id != 2:
            await delivery.acknowledge()
    assert [1, 2, 3, 4] == seen
    assert [2] == [event.id for event in await read(case)]


async def test_what_is_passed_over_comes_again_in_the_next_round(case: Case) -> None:
    """With `poll` the loop waits when a round has ended, and begins anew with what was passed over."""
    await filled(case, 3)
    seen = []
    async with aclosing(case.linker.events(case.engine, poll=SOON)) as deliveries:
        async for delivery in deliveries:
            seen.append(delivery.event.id)
            if delivery.event.id != 1 or seen.count(1) == 3:
                await delivery.acknowledge()
            if delivery.acknowledged and delivery.event.id == 1:
                break
    assert [1, 2, 3, 1, 1] == seen
    assert [] == await read(case)


async def test_a_waiting_loop_finds_what_comes_later(case: Case, engine: AsyncEngine) -> None:
    """With `poll` the loop does not end, and while it waits it holds no connection."""

    async def consume() -> int:
        async with aclosing(case.linker.events(engine, poll=SOON)) as deliveries:
            async for delivery in deliveries:
                await delivery.acknowledge()
                return int(delivery.event.id)
        raise AssertionError("a loop that polls does not end")

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    assert not consumer.done()
    await filled(case, 1)
    assert 1 == await asyncio.wait_for(consumer, 5)


@POSTGRESQL
async def test_an_event_that_becomes_visible_late_is_not_missed(case: Case, engine: AsyncEngine) -> None:
    """An event with a smaller id that commits later is delivered after its commit."""
    seen: list[int] = []
    async with AsyncSession(engine) as late, aclosing(case.linker.events(engine, poll=SOON)) as deliveries:
        assert isinstance(await case.linker.link(late, user_id=1, identity=identity("late")), Linked)
        await case.link(1, "early")
        async for delivery in deliveries:
            seen.append(delivery.event.id)
            await delivery.acknowledge()
            if len(seen) == 2:
                break
            await late.commit()
    assert [2, 1] == seen


# -- one consumer at a time -------------------------------------------------------------------------------------------


async def test_an_event_in_hand_is_nobody_elses(case: Case, engine: AsyncEngine) -> None:
    """While one consumer works, other consumers get the other events without waiting."""
    await filled(case, 3)
    events, mine = await first(case)
    assert 1 == mine.event.id
    assert [2, 3] == await asyncio.wait_for(numbers(case), 5)
    await mine.acknowledge()
    await events.aclose()
    assert [2, 3] == await numbers(case)


async def test_consumers_share_the_events_among_them(case: Case, engine: AsyncEngine) -> None:
    """Of eight concurrent loops one has an event at a time; no event is lost, and none is done twice."""
    await filled(case, 40)
    in_hand: set[int] = set()
    done: Counter[int] = Counter()

    async def consume() -> None:
        async for delivery in case.linker.events(engine):
            number = delivery.event.id
            assert number not in in_hand
            in_hand.add(number)
            await asyncio.sleep(0.002)
            in_hand.remove(number)
            await delivery.acknowledge()
            done[number] += 1

    await asyncio.gather(*(consume() for _ in range(8)))
    assert dict.fromkeys(range(1, 41), 1) == done
    assert [] == await rows(engine, IDS)


async def test_a_delivery_that_was_left_cannot_be_acknowledged(case: Case, engine: AsyncEngine) -> None:
    """A loop that asks for the next event, or ends, releases the current one: acknowledge raises; it comes again."""
    await filled(case, 2)
    events, left = await first(case)
    second = await anext(events)
    with pytest.raises(DeliveryExpired) as caught:
        await left.acknowledge()
    assert "delivery_expired" == caught.value.code
    assert not left.acknowledged
    await events.aclose()
    with pytest.raises(DeliveryExpired):
        await second.acknowledge()
    assert [1, 2] == await numbers(case)


@SQLITE
async def test_a_lease_ends_by_itself(case: Case, engine: AsyncEngine) -> None:
    """F03: a consumer that is too slow, or dead, keeps an event for as long as the lease, and cannot have it after."""
    await filled(case, 1)
    lease = timedelta(seconds=30)
    slow, earlier = await first(case, lease=lease)
    case.clock.move(seconds=29)
    assert [] == await numbers(case)
    case.clock.move(seconds=1)
    other, later = await first(case, lease=lease)
    assert earlier.event == later.event
    with pytest.raises(DeliveryExpired):
        await earlier.acknowledge()
    await slow.aclose()
    assert [] == await numbers(case), "the end of the slow loop does not release the event of the other one"
    await later.acknowledge()
    await other.aclose()
    assert [] == await rows(engine, IDS)


@SQLITE
async def test_a_lease_that_nobody_took_over_is_still_good(case: Case, engine: AsyncEngine) -> None:
    """A slow consumer can acknowledge its event if no other consumer has got it."""
    await filled(case, 1)
    events, mine = await first(case)
    case.clock.move(hours=1)
    await mine.acknowledge()
    await events.aclose()
    assert [] == await rows(engine, IDS)


@SQLITE
async def test_nobody_waits_for_a_consumer(database: Database) -> None:
    """F28: SQLite has one write lock, and no consumer holds it during its work: other calls can link meanwhile."""
    impatient = tune_sqlite(create_async_engine(database.url), busy_timeout=0)
    case = await told(impatient)
    await filled(case, 2)
    events, mine = await first(case)
    await case.link(1, "meanwhile")
    await mine.acknowledge()
    await events.aclose()
    assert [2, 3] == await numbers(case)
    await impatient.dispose()


@POSTGRESQL
async def test_nobody_waits_for_a_consumer_of_an_event(case: Case, engine: AsyncEngine) -> None:
    """A link whose events are in hand is written, unlinked and transferred as if they were not."""
    link_id = await case.link(1)
    events, mine = await first(case)
    await case.link(1)
    token = await case.claim(2)
    await asyncio.wait_for(case.transfer(token, 2), 5)
    await asyncio.wait_for(case.linker.unlink(engine, user_id=2, link_id=link_id), 5)
    await mine.acknowledge()
    await events.aclose()
    assert [2, 3, 4, 5] == await numbers(case)


# -- whoever stops ----------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Raised by a consumer's own code."""


@pytest.mark.parametrize("closing", [True, False], ids=["aclosing", "bare"])
@pytest.mark.parametrize("end", ["break", "raise", "cancel"])
async def test_whoever_leaves_the_loop_lets_go(watched: Case, watch: Watch, end: str, closing: bool) -> None:
    """F11: a loop that is left keeps no event, connection or transaction; its event is delivered again."""
    case, engine = watched, watched.engine
    await filled(case, 2)
    in_hand = asyncio.Event()

    async def consume(deliveries: Any) -> None:
        async for delivery in deliveries:
            assert 1 == delivery.event.id
            in_hand.set()
            if end == "break":
                break
            if end == "raise":
                raise Broken
            await asyncio.sleep(30)

    async def run() -> None:
        if not closing:
            await consume(case.linker.events(engine))
            return
        async with aclosing(case.linker.events(engine)) as deliveries:
            await consume(deliveries)

    consumer = asyncio.create_task(run())
    await in_hand.wait()
    if end == "cancel":
        consumer.cancel()
    await asyncio.wait({consumer})
    expected = {"break": None, "raise": Broken, "cancel": asyncio.CancelledError}[end]
    if expected is None:
        await consumer
    else:
        with pytest.raises(expected):
            await consumer
    del consumer
    if closing:
        assert 0 == checked_out(engine)
    gc.collect()
    assert [] == await soon(partial(watch.rows, "SELECT id FROM accountlink_events WHERE claimed_by IS NOT NULL"))
    assert [] == await soon(partial(watch.left_behind, engine))
    assert 0 == await soon(partial(asyncio.to_thread, checked_out, engine))
    assert [1, 2] == await numbers(case)


async def test_a_loop_that_is_never_begun_costs_nothing(watched: Case) -> None:
    """Asking for events asks the database for nothing; only asking for the first one does."""
    events = watched.linker.events(watched.engine)
    assert 0 == watched.engine.pool.checkedin() + checked_out(watched.engine)  # type: ignore[attr-defined]  # every pool of these tests has it
    await events.aclose()


@POSTGRESQL
async def test_a_consumer_has_one_connection_and_only_during_its_work(case: Case, database: Database) -> None:
    """In hand: one connection in a transaction. Between two events and while waiting: none."""
    await filled(case, 1)
    engine = database.engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    events = case.linker.events(engine, poll=timedelta(seconds=30))
    delivery = await anext(events)
    assert 1 == checked_out(engine)
    with pytest.raises(StoreBusy):
        await anext(case.linker.events(engine))
    await delivery.acknowledge()
    assert 0 == checked_out(engine)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.1)
    assert 0 == checked_out(engine)
    waiting.cancel()
    await asyncio.wait({waiting})
    await events.aclose()


# -- engines ----------------------------------------------------------------------------------------------------------


@POSTGRESQL
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
async def test_any_isolation_of_the_engine_serves(case: Case, database: Database, level: str) -> None:
    """An engine in AUTOCOMMIT keeps an event in hand, and one that keeps snapshots does not fail on what others did."""
    await filled(case, 30)
    engine = database.engine(isolation_level=level, pool_size=4)
    events, mine = await first(Case(case.links, engine))
    assert 1 == mine.event.id
    done: Counter[int] = Counter()

    async def consume() -> None:
        async for delivery in case.linker.events(engine):
            await delivery.acknowledge()
            done[delivery.event.id] += 1

    await asyncio.gather(*(consume() for _ in range(4)))
    assert dict.fromkeys(range(2, 31), 1) == done
    await mine.acknowledge()
    await events.aclose()
    assert [] == await rows(engine, IDS)


@SQLITE
@pytest.mark.parametrize("how", BINDS)
async def test_a_database_in_memory_serves(kind: str, how: str) -> None:
    """With one connection for all, producers and consumers take turns."""
    engine = tune_sqlite(create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool))
    case = await told(engine)
    async with bound(engine, how) as bind:
        await case.linker.link(bind, user_id=1, identity=identity())
    events, mine = await first(case)
    await asyncio.gather(filled(case, 3), numbers(case))
    await mine.acknowledge()
    await events.aclose()
    assert [2, 3, 4] == await numbers(case)
    await engine.dispose()


@SQLITE
async def test_an_untuned_engine_serves(database: Database) -> None:
    """An SQLite engine as SQLAlchemy makes it commits claims and acknowledgements, too."""
    case = await told(database.untuned())
    await filled(case, 3)
    assert [1, 2, 3] == await numbers(case)
    assert [1, 2, 3] == [event.id for event in await read(case)]
    assert [] == await read(Case(case.links, database.engine()))


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def wire(database: Database) -> AsyncIterator[WireProxy]:
    """A counting proxy in front of the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


@POSTGRESQL
async def test_a_call_takes_the_round_trips_that_it_took_without_an_outbox(database: Database, wire: WireProxy) -> None:
    """The statement that writes also writes the event: one round trip for link and unlink, two for transfer."""
    case = await told(database.engine())
    engine = database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)
    trips: dict[str, list[int]] = {}

    async def count(name: str, call: Any) -> Any:
        wire.reset()
        outcome = await call
        trips.setdefault(name, []).append(wire.trips)
        return outcome

    link = partial(case.linker.link, engine)
    for n in range(8):
        who = identity(f"sub-{n}")
        created = await count("created", link(user_id=1, identity=who))
        await count("updated", link(user_id=1, identity=who))
        conflict = await count("conflict", link(user_id=2, identity=who))
        await count("transferred", case.transfer(conflict.transfer_token, 2, engine))
        gone = case.linker.unlink(engine, user_id=2, link_id=created.account.id, reason="why")
        await count("unlinked", gone)
        await count("restored", link(user_id=2, identity=who))
    expected = {"created": 1, "updated": 1, "conflict": 1, "transferred": 2, "unlinked": 1, "restored": 1}
    assert expected == {name: counted[-1] for name, counted in trips.items()}, trips


@POSTGRESQL
async def test_a_delivery_takes_four_round_trips(database: Database, wire: WireProxy) -> None:
    """BEGIN, the locking SELECT, the DELETE and COMMIT, and nothing else."""
    case = await told(database.engine())
    await filled(case, 10)
    engine = database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)
    counted, trips = [[""]], 0
    async for delivery in case.linker.events(engine):
        await delivery.acknowledge()
        counted.append([statement.split()[0].rstrip(";") for statement in wire.statements])
        trips = wire.trips
        wire.reset()
    assert ["BEGIN", "SELECT", "DELETE", "COMMIT"] == counted[-1]
    assert 4 == trips
