"""Batches: many events in one consumer's hands at once, acknowledged together or not at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import Batch, ConfigurationError, DeliveryExpired, LinkEvent
from accountlink.outbox.consuming import MOST
from tests.contract.test_grant_events import outboxed
from tests.support.claims import Case
from tests.support.databases import Database, rows
from tests.support.models import identity
from tests.support.shares import SHARED
from tests.support.told import told
from tests.support.wire import WireProxy

BOTH = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
SOON = timedelta(milliseconds=20)
IDS = "SELECT id FROM accountlink_events ORDER BY id"


@pytest.fixture
async def case(engine: AsyncEngine) -> Case:
    """A table with an outbox."""
    return await told(engine)


async def filled(case: Case, number: int) -> None:
    """Let something happen so many times."""
    for n in range(number):
        await case.link(1, f"sub-{n}")


def numbers(batch: Batch[LinkEvent[Any, Any]]) -> list[int]:
    """The numbers of a batch's events."""
    return [event.id for event in batch.events]


async def left(engine: AsyncEngine) -> list[int]:
    """The numbers of what the outbox holds."""
    return [number for (number,) in await rows(engine, IDS)]


async def first(case: Case, **options: Any) -> tuple[Any, Any]:
    """The oldest batch in hand, and the loop that it is in."""
    batches = case.linker.batches(case.engine, **options)
    return batches, await anext(batches)


async def test_batches_come_oldest_first_and_are_gone_once_acknowledged(case: Case, engine: AsyncEngine) -> None:
    """As many as asked for at a time, in order, the rest at the end; and each batch is gone at once."""
    await filled(case, 5)
    seen = []
    async for batch in case.linker.batches(engine, size=2):
        seen.append(numbers(batch))
        await batch.acknowledge()
        await batch.acknowledge()
        assert batch.acknowledged
        assert list(range(seen[-1][-1] + 1, 6)) == await left(engine)
    assert [[1, 2], [3, 4], [5]] == seen


@BOTH
async def test_what_is_not_acknowledged_comes_again_as_a_whole(case: Case, engine: AsyncEngine) -> None:
    """A batch that is passed over comes again in the next round, with what else there is by then."""
    await filled(case, 3)
    seen = []
    async with aclosing(case.linker.batches(engine, size=2, poll=SOON)) as batches:
        async for batch in batches:
            seen.append(numbers(batch))
            if len(seen) > 1:
                await batch.acknowledge()
            if len(seen) == 3:
                break
    assert [[1, 2], [3], [1, 2]] == seen
    assert [] == await left(engine)


@BOTH
async def test_a_batch_in_hand_is_nobody_elses(case: Case, engine: AsyncEngine) -> None:
    """Others are given the rest, one by one or in batches, and do not wait."""
    await filled(case, 5)
    batches, mine = await first(case, size=3)
    others = [delivery.event.id async for delivery in case.linker.events(engine)]
    theirs = [numbers(batch) async for batch in case.linker.batches(engine)]
    assert ([1, 2, 3], [4, 5], [[4, 5]]) == (numbers(mine), others, theirs)
    await mine.acknowledge()
    await batches.aclose()
    assert [4, 5] == await left(engine)


@BOTH
async def test_consumers_share_the_batches_among_them(case: Case, engine: AsyncEngine) -> None:
    """Four loops of batches and two of single events: each event is in one pair of hands, and done once."""
    await filled(case, 40)
    in_hand: set[int] = set()
    done: Counter[int] = Counter()

    async def consume(deliveries: Any) -> None:
        async for delivery in deliveries:
            mine = numbers(delivery) if isinstance(delivery, Batch) else [delivery.event.id]
            assert not in_hand & set(mine)
            in_hand.update(mine)
            await asyncio.sleep(0.002)
            in_hand.difference_update(mine)
            await delivery.acknowledge()
            done.update(mine)

    batches = (consume(case.linker.batches(engine, size=3)) for _ in range(4))
    await asyncio.gather(*batches, *(consume(case.linker.events(engine)) for _ in range(2)))
    assert dict.fromkeys(range(1, 41), 1) == done
    assert [] == await left(engine)


@BOTH
async def test_a_batch_that_was_left_cannot_be_acknowledged(case: Case, engine: AsyncEngine) -> None:
    """Whoever goes on has let go of the whole batch."""
    await filled(case, 4)
    batches, mine = await first(case, size=2)
    await anext(batches)
    with pytest.raises(DeliveryExpired):
        await mine.acknowledge()
    assert not mine.acknowledged
    await batches.aclose()
    assert [1, 2, 3, 4] == await left(engine)
    assert [] == await rows(engine, "SELECT id FROM accountlink_events WHERE claimed_by IS NOT NULL")


@SQLITE
async def test_a_lease_that_another_took_over_in_part_is_lost_as_a_whole(case: Case, engine: AsyncEngine) -> None:
    """F03: the lease has ended and another has one of the events: none of them is acknowledged, all come again."""
    await filled(case, 3)
    lease = timedelta(seconds=30)
    slow, mine = await first(case, size=3, lease=lease)
    case.clock.move(seconds=31)
    other, theirs = await first(case, size=1, lease=lease)
    assert ([1, 2, 3], [1]) == (numbers(mine), numbers(theirs))
    for _ in range(2):
        with pytest.raises(DeliveryExpired):
            await mine.acknowledge()
    assert [1, 2, 3] == await left(engine)
    await slow.aclose()
    assert [(1,)] == await rows(engine, "SELECT id FROM accountlink_events WHERE claimed_by IS NOT NULL")
    await theirs.acknowledge()
    await other.aclose()
    assert [2, 3] == await left(engine)


@SQLITE
async def test_a_lease_that_nobody_took_over_is_still_good(case: Case, engine: AsyncEngine) -> None:
    """A slow consumer none of whose events another has taken acknowledges all of them."""
    await filled(case, 3)
    batches, mine = await first(case)
    case.clock.move(hours=1)
    await mine.acknowledge()
    await batches.aclose()
    assert [] == await left(engine)


@pytest.mark.parametrize("end", ["raise", "cancel"])
@BOTH
async def test_whoever_leaves_a_batch_lets_go_of_all_of_it(case: Case, engine: AsyncEngine, end: str) -> None:
    """F11: an error, or a cancellation, in the middle of a batch: nothing is held, and everything comes again."""
    await filled(case, 3)
    in_hand = asyncio.Event()

    async def consume() -> None:
        async with aclosing(case.linker.batches(engine)) as batches:
            async for batch in batches:
                assert [1, 2, 3] == numbers(batch)
                in_hand.set()
                if end == "raise":
                    raise LookupError
                await asyncio.sleep(30)

    consumer = asyncio.create_task(consume())
    await in_hand.wait()
    consumer.cancel() if end == "cancel" else None
    await asyncio.wait({consumer})
    with pytest.raises(asyncio.CancelledError if end == "cancel" else LookupError):
        await consumer
    assert [[1, 2, 3]] == [numbers(batch) async for batch in case.linker.batches(engine)]


@BOTH
async def test_batches_of_grants(engine: AsyncEngine) -> None:
    """Events of grants come in batches, too."""
    case = await outboxed(SHARED["own"](), engine)
    for _ in range(3):
        await case.issue(1)
    seen = []
    async for batch in case.shares.batches(engine, size=2):
        seen.append([event.id for event in batch.events])
        await batch.acknowledge()
    assert [[1, 2], [3]] == seen


@SQLITE
async def test_a_batch_shows_no_user(case: Case, engine: AsyncEngine) -> None:
    """A25: the `repr` of a batch tells how many events it has, and of whom nothing."""
    await case.link(7_777_777)
    shown = [repr(batch) async for batch in case.linker.batches(engine)]
    assert ["Batch(1 events, acknowledged=False)"] == shown


@SQLITE
@pytest.mark.parametrize("size", [0, -1, True, 1.5, "10", MOST + 1, None])
async def test_a_size_is_a_number_that_a_consumer_can_hold(case: Case, engine: AsyncEngine, size: Any) -> None:
    """Anything else is refused before anything is asked of the database."""
    with pytest.raises(ConfigurationError, match="size="):
        case.linker.batches(engine, size=size)


@SQLITE
async def test_batches_need_an_outbox(engine: AsyncEngine) -> None:
    """A call for batches without an outbox raises, and says what to pass."""
    case = await told(engine, outbox=None)
    with pytest.raises(ConfigurationError, match=r"batches\(\) needs AccountLinker\(outbox="):
        case.linker.batches(engine)


# -- what it costs ----------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_a_batch_takes_four_round_trips(database: Database) -> None:
    """BEGIN, the locking SELECT, the DELETE and COMMIT, however many events there are."""
    case = await told(database.engine())
    await filled(case, 30)
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as wire:
        engine = database.engine(url=make_url(database.url).set(port=wire.port), pool_size=1, max_overflow=0)
        counted, trips = [[""]], 0
        async for batch in case.linker.batches(engine, size=10):
            assert 10 == len(batch.events)
            await batch.acknowledge()
            counted.append([statement.split()[0].rstrip(";") for statement in wire.statements])
            trips = wire.trips
            wire.reset()
    assert ["BEGIN", "SELECT", "DELETE", "COMMIT"] == counted[-1]
    assert 4 == trips


@SQLITE
async def test_a_batch_takes_two_statements(case: Case, engine: AsyncEngine) -> None:
    """The claim and the deletion, however many events there are; and neither reads the rest of the outbox."""
    await filled(case, 30)
    seen: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *told: seen.append(told[2]))
    batches, batch = await first(case, size=10)
    await batch.acknowledge()
    await batches.aclose()
    statements = [statement for statement in seen if not statement.startswith(("BEGIN", "COMMIT", "PRAGMA"))]
    assert ["UPDATE", "DELETE"] == [statement.split()[0] for statement in statements]
    async with engine.connect() as connection:
        for statement in statements:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (0,) * statement.count("?"))
            steps = [row[-1] for row in plan]
            assert "SEARCH" in repr(steps)
            assert not [
                step for step in steps if step.startswith(("SCAN accountlink", "SCAN free")) or "TEMP B-TREE" in step
            ], steps


# -- in which order ---------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_changes_of_a_link_come_in_the_order_of_their_commits(case: Case, engine: AsyncEngine) -> None:
    """A change waits for the one before it to commit, and takes its number after that; one consumer sees them so."""
    link_id = await case.link(1)
    async with AsyncSession(engine) as session:
        await case.linker.unlink(session, user_id=1, link_id=link_id)
        waiter = asyncio.create_task(case.linker.link(engine, user_id=1, identity=identity()))
        await case.link(3, "another")
        await asyncio.sleep(0.05)
        assert ["linked", "linked"] == [d.event.type.value async for d in case.linker.events(engine)]
        await session.commit()
    await waiter
    changes = [
        (event.type.value, event.id)
        async for batch in case.linker.batches(engine)
        for event in batch.events
        if event.link_id == link_id
    ]
    assert ["linked", "unlinked", "restored"] == [word for word, _ in changes]
    assert sorted(number for _, number in changes) == [number for _, number in changes]


@POSTGRESQL
async def test_a_conflict_may_come_after_what_ended_it(case: Case, engine: AsyncEngine) -> None:
    """A conflict locks no link: its event has its place among the link's by its number, not by its commit."""
    link_id = await case.link(1)
    async with AsyncSession(engine) as session:
        await case.linker.link(session, user_id=2, identity=identity())
        await case.linker.unlink(engine, user_id=1, link_id=link_id)
        before = [event.type.value for event in await all_of(case)]
        await session.commit()
    after = [event.type.value for event in await all_of(case)]
    assert (["linked", "unlinked"], ["conflict"]) == (before, after)


async def all_of(case: Case) -> list[LinkEvent[Any, Any]]:
    """Read and acknowledge what there is."""
    events: list[LinkEvent[Any, Any]] = []
    async for batch in case.linker.batches(case.engine):
        events += batch.events
        await batch.acknowledge()
    return events


@POSTGRESQL
async def test_two_consumers_may_have_two_events_of_one_link(case: Case, engine: AsyncEngine) -> None:
    """The page says so: who shares the events among several workers has no order within a link."""
    link_id = await case.link(1)
    await case.linker.unlink(engine, user_id=1, link_id=link_id)
    batches, mine = await first(case, size=1)
    others, theirs = await first(case, size=1)
    assert (["linked"], ["unlinked"]) == tuple([e.type.value for e in batch.events] for batch in (mine, theirs))
    await batches.aclose()
    await others.aclose()
