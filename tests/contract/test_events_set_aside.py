"""Events that cannot be read: each is set aside with one warning, and consumers get the other events."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, LinkedAccountMixin, link_outbox
from tests.contract.test_grant_events import outboxed
from tests.support.claims import Case
from tests.support.databases import create, rows, run_sql
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity
from tests.support.shares import SHARED
from tests.support.told import told

ASIDE = "SELECT id FROM accountlink_events WHERE set_aside ORDER BY id"
LEFT = "SELECT id FROM accountlink_events ORDER BY id"
BROKEN = {
    "user of another type": ("user_id = 'secret-alice'", "user_id"),
    "no user": ("user_id = NULL", "user_id"),
    "other user of another type": ("other_user_id = '1.5'", "other_user_id"),
    "number with an underscore": ("user_id = '1_0'", "user_id"),
    "link of another type": ("link_id = '8f0fcd1a-secret'", "link_id"),
    "no provider": ("provider = NULL", "provider"),
    "data of another kind": ("data = '[]'", "data"),
}
OF_ONE_DATABASE = {
    "sqlite": {
        "data that are no JSON": ("data = '{secret'", "data"),
        "no moment": ("occurred_at = 'secret'", "occurred_at"),
    },
    "asyncpg": {"an endless moment": ("occurred_at = 'infinity'", "occurred_at")},
    "psycopg": {
        "an endless moment": ("occurred_at = 'infinity'", "occurred_at"),
        "a moment too late for Python": ("occurred_at = '20000-01-01'", "occurred_at"),
    },
}


@pytest.fixture
async def case(engine: AsyncEngine) -> Case:
    """A table with an outbox, and three events in it."""
    made = await told(engine)
    for n in range(3):
        await made.link(1, f"sub-{n}")
    return made


async def by_one(consumer: Any, engine: AsyncEngine) -> list[int]:
    """Consume one by one; return the numbers."""
    done = []
    async for delivery in consumer.events(engine):
        await delivery.acknowledge()
        done.append(delivery.event.id)
    return done


async def by_two(consumer: Any, engine: AsyncEngine) -> list[int]:
    """Consume in batches of two; return the numbers."""
    done = []
    async for batch in consumer.batches(engine, size=2):
        await batch.acknowledge()
        done += [event.id for event in batch.events]
    return done


@pytest.mark.parametrize("consume", [by_one, by_two])
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_an_event_that_cannot_be_read_stops_nobody(
    case: Case, broken: str, consume: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The other events are delivered; the broken one stays in the outbox, with one warning that has no value."""
    await stops_nobody(case, BROKEN[broken], consume, caplog)


async def test_whatever_a_database_lets_into_its_columns_stops_nobody(
    case: Case, engine: AsyncEngine, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault that only one database can store, or only one driver fails to read."""
    for broken in OF_ONE_DATABASE[kind].values():
        await run_sql(engine, "DELETE FROM accountlink_events")
        caplog.clear()
        for n in range(3):
            await case.link(1, f"sub-{n}")
        await stops_nobody(case, broken, by_one, caplog)


async def stops_nobody(case: Case, how: tuple[str, str], consume: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine, (change, part) = case.engine, how
    first, broken, last = (number for (number,) in await rows(engine, LEFT))
    await run_sql(engine, f"UPDATE accountlink_events SET {change} WHERE id = {broken}")
    with caplog.at_level(logging.WARNING, logger="accountlink.outbox"):
        assert [first, last] == await consume(case.linker, engine)
        assert [] == await consume(case.linker, engine)
    (record,) = caplog.records
    assert f"Event {broken} of connections cannot be read ({part}: " in record.getMessage()
    assert "secret" not in record.getMessage()
    assert [(broken,)] == await rows(engine, ASIDE) == await rows(engine, LEFT)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_an_event_that_was_set_aside_is_brought_back(case: Case, engine: AsyncEngine) -> None:
    """A repaired event whose mark is cleared is delivered with its old number."""
    await run_sql(engine, "UPDATE accountlink_events SET user_id = 'alice' WHERE id = 2")
    assert [1, 3] == await by_one(case.linker, engine)
    await run_sql(engine, "UPDATE accountlink_events SET user_id = '1' WHERE id = 2")
    assert [] == await by_one(case.linker, engine)
    await run_sql(engine, "UPDATE accountlink_events SET set_aside = false WHERE id = 2")
    assert [2] == await by_one(case.linker, engine)
    assert [] == await rows(engine, LEFT)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_it_is_set_aside_whatever_becomes_of_the_others(case: Case, engine: AsyncEngine) -> None:
    """A consumer that acknowledges nothing still sets the event aside, and keeps no lock on it."""
    await run_sql(engine, "UPDATE accountlink_events SET user_id = 'alice' WHERE id = 2")
    async for batch in case.linker.batches(engine):
        assert [1, 3] == [event.id for event in batch.events]
        assert [(2,)] == await rows(engine, ASIDE)
    assert [1, 3] == await by_one(case.linker, engine)
    assert [(None, None)] == await rows(engine, "SELECT claimed_by, claimed_until FROM accountlink_events")


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_nothing_but_broken_events_is_an_empty_outbox(case: Case, engine: AsyncEngine) -> None:
    """A batch of broken events only is not delivered, and the round continues after it."""
    await run_sql(engine, "UPDATE accountlink_events SET user_id = 'alice' WHERE id < 3")
    assert [3] == await by_two(case.linker, engine)
    assert [(1,), (2,)] == await rows(engine, ASIDE)


class Refused(Exception):
    """Raised by an application's own type."""


class Picky(sa.types.TypeDecorator[int]):
    """An application's own type, which refuses a value with an error of its own."""

    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        if value == 13:
            raise Refused(value)
        return value


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_an_application_s_type_may_raise_what_it_likes(engine: AsyncEngine) -> None:
    """A type of the application's own that refuses a value refuses one event, and no more."""

    class Base(DeclarativeBase):
        pass

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = EXCLUSIVE_SOFT
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(Picky)

    linker: AccountLinker[int, int] = AccountLinker(Connection, secrets=SECRETS, outbox=link_outbox(Base.metadata))
    await create(engine, Base.metadata)
    for user in (1, 2, 3):
        await linker.link(engine, user_id=user, identity=identity(f"sub-{user}"))
    await run_sql(engine, "UPDATE accountlink_events SET user_id = '13' WHERE id = 2")
    assert [1, 3] == await by_two(linker, engine)
    assert [(2,)] == await rows(engine, ASIDE)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_events_of_grants_are_set_aside_too(engine: AsyncEngine) -> None:
    """A grant's id stands in the event's data: without one, and with one of another type, it cannot be read."""
    case = await outboxed(SHARED["own"](), engine)
    for _ in range(4):
        await case.issue(1)
    await run_sql(
        engine,
        "UPDATE accountlink_events SET data = '{}' WHERE id = 1",
        """UPDATE accountlink_events SET data = '{"grant_id": "no UUID"}' WHERE id = 2""",
        """UPDATE accountlink_events SET data = '{"grant_id": 7}' WHERE id = 3""",
    )
    assert [4] == await by_two(case.shares, engine)
    assert [(1,), (2,), (3,)] == await rows(engine, ASIDE)
