"""Records of flows: used once, by whom they are for, and never many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import ConfigurationError, Linked
from accountlink.web import MemoryFlowStates, flow_states
from accountlink.web.states import AT_MOST, Absence, FlowRecord, Kind, TableFlowStates
from tests.support.databases import create
from tests.support.effort import Effort
from tests.support.flows import stage_on

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
SOON = NOW + timedelta(minutes=10)
MakeStates = Callable[[sa.MetaData], Any]
KEPT: dict[str, MakeStates] = {
    "table": lambda metadata: TableFlowStates(flow_states(metadata)),
    "memory": lambda _: MemoryFlowStates(),
}


def record(name: str = "d1", **fields: Any) -> FlowRecord:
    given: dict[str, Any] = {
        "kind": Kind.FLOW,
        "user_id": "i1",
        "browser": "b1",
        "provider": "acme",
        "key": "k1",
        "expect": "i7",
        "return_to": "https://app.example/x",
        "scopes": ("email", "openid"),
        "expires_at": SOON,
    }
    return FlowRecord(digest=name, **given | fields)


@pytest.fixture(params=KEPT)
async def states(engine: AsyncEngine, request: pytest.FixtureRequest) -> Any:
    metadata = sa.MetaData()
    made = KEPT[request.param](metadata)
    await create(engine, metadata)
    return made


async def use(states: Any, engine: AsyncEngine, name: str = "d1", **fields: Any) -> FlowRecord | Absence:
    asked: dict[str, Any] = {"kind": Kind.FLOW, "user_id": "i1", "browser": "b1", "now": NOW}
    result: FlowRecord | Absence = await states.consume(engine, digest=name, **asked | fields)
    return result


async def test_a_record_is_used_once_by_whom_it_is_for(states: Any, engine: AsyncEngine) -> None:
    """A09, A10: another user, another browser, another kind see nothing and burn nothing; then it is used."""
    await states.add(engine, record(), now=NOW)
    for other in ({"user_id": "s1"}, {"browser": "b2"}, {"browser": None}, {"name": "d2"}):
        assert Absence.UNKNOWN is await use(states, engine, **other)
    for kind in (Kind.TICKET, Kind.SIGN_IN):
        assert Absence.UNKNOWN is await use(states, engine, kind=kind)
    assert record() == await use(states, engine)
    assert Absence.USED is await use(states, engine)
    assert Absence.UNKNOWN is await use(states, engine, user_id="i2")


async def test_a_record_without_a_browser_is_for_its_user_alone(states: Any, engine: AsyncEngine) -> None:
    """Whatever cookie comes along, the user decides."""
    for name in ("d1", "d2"):
        await states.add(engine, record(name, browser=None, expect=None, return_to=None, scopes=()), now=NOW)
    assert Absence.UNKNOWN is await use(states, engine, user_id="i2")
    assert isinstance(await use(states, engine, browser=None), FlowRecord)
    assert isinstance(await use(states, engine, "d2"), FlowRecord)


async def test_a_record_ends(states: Any, engine: AsyncEngine) -> None:
    """A22: expiry is compared when the record is used."""
    await states.add(engine, record(), now=NOW)
    assert Absence.EXPIRED is await use(states, engine, now=SOON)
    assert isinstance(await use(states, engine, now=SOON - timedelta(microseconds=1)), FlowRecord)


async def test_looking_changes_nothing(states: Any, engine: AsyncEngine) -> None:
    """A23: a link preview may open a ticket as often as it likes."""
    ticket = record(kind=Kind.TICKET, browser=None)
    await states.add(engine, ticket, now=NOW)
    asked = {"digest": "d1", "kind": Kind.TICKET, "user_id": "i1", "now": NOW}
    for _ in range(3):
        assert ticket == await states.look(engine, **asked)
    assert Absence.UNKNOWN is await states.look(engine, **asked | {"user_id": "i2"})
    assert Absence.EXPIRED is await states.look(engine, **asked | {"now": SOON})
    assert isinstance(await use(states, engine, kind=Kind.TICKET, browser=None), FlowRecord)
    assert Absence.USED is await states.look(engine, **asked)


async def test_one_of_many_uses_at_once_wins(states: Any, engine: AsyncEngine) -> None:
    """F25: single use is one statement."""
    await states.add(engine, record(), now=NOW)
    ends = await asyncio.gather(*(use(states, engine) for _ in range(12)))
    assert (1, 11) == (sum(isinstance(end, FlowRecord) for end in ends), ends.count(Absence.USED))


async def test_the_user_who_starts_too_often_loses_the_oldest(states: Any, engine: AsyncEngine) -> None:
    """A40: a user has 200 records at most; nobody else loses one."""
    await states.add(engine, record("other", user_id="i2", browser="b1"), now=NOW)
    for number in range(AT_MOST + 5):
        await states.add(engine, record(f"d{number}", expires_at=SOON + timedelta(seconds=number)), now=NOW)
    assert Absence.UNKNOWN is await use(states, engine, "d4")
    assert isinstance(await use(states, engine, "d5"), FlowRecord)
    assert isinstance(await use(states, engine, "other", user_id="i2"), FlowRecord)


async def test_expired_records_go_with_the_next_start(states: Any, engine: AsyncEngine) -> None:
    """No clean-up job is needed."""
    for number in range(5):
        await states.add(engine, record(f"d{number}", user_id=f"i{number}"), now=NOW)
    await states.add(engine, record("last", expires_at=SOON + timedelta(minutes=10)), now=SOON)
    for number in range(5):
        assert Absence.UNKNOWN is await use(states, engine, f"d{number}", user_id=f"i{number}", now=SOON)
    assert isinstance(await use(states, engine, "last", now=SOON), FlowRecord)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_ten_thousand_starts_leave_few_records(engine: AsyncEngine, effort: Effort) -> None:
    """A40: however often a user starts, the table keeps 200 records; ten thousand starts in the stress run."""
    stage = await stage_on(engine, states=flow_states)
    for _ in range(10_000 if effort.full else AT_MOST + 20):
        await stage.start(1)
    async with engine.connect() as connection:
        kept = await connection.scalar(sa.select(sa.func.count()).select_from(flow_states(stage.metadata)))
    assert AT_MOST == kept
    assert isinstance((await stage.connect(1)).outcome, Linked)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    "wrong", [{"metadata": None}, {"name": ""}, {"name": "x" * 64}, {"name": "a\0b"}, {"schema": ""}], ids=str
)
def test_a_table_that_cannot_be_made_is_refused(kind: str, wrong: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigurationError):
        flow_states(**{"metadata": sa.MetaData()} | wrong)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_table_is_made_once(kind: str) -> None:
    """Called again it is the same table; a table of another kind with this name is refused."""
    metadata = sa.MetaData()
    assert flow_states(metadata) is flow_states(metadata)
    sa.Table("other", metadata, sa.Column("id", sa.Integer))
    with pytest.raises(ConfigurationError):
        flow_states(metadata, name="other")


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_missing_table_is_named(engine: AsyncEngine) -> None:
    """A start on a database without the table says which table to make."""
    states = TableFlowStates(flow_states(sa.MetaData()))
    with pytest.raises(ConfigurationError, match="accountlink_flow_states"):
        await states.add(engine, record(), now=NOW)
    with pytest.raises(ConfigurationError, match="accountlink_flow_states"):
        await states.consume(engine, digest="d", kind=Kind.FLOW, user_id="i1", browser=None, now=NOW)


def test_a_record_shows_no_user(kind: str) -> None:
    """A28: neither the user nor the browser's digest is in a repr."""
    assert "i99" not in repr(replace(record(), user_id="i99"))
