"""Grants and the outbox: each issue, redemption and revocation writes one event; a call without effect writes none."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountNotFound,
    BlockedByConstraint,
    ConfigurationError,
    EventType,
    GrantEvent,
    GrantRejected,
    ShareGrants,
    grants_table,
    link_outbox,
)
from accountlink.grants.statements import GrantStatements
from tests.contract.test_grants import one_transaction, refusals
from tests.support.binds import BINDS, bound
from tests.support.claims import Statements
from tests.support.databases import Database, rows, run_sql
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity, make_tables
from tests.support.shares import HOUR, OWN, SHARED, Shared, Sharing
from tests.support.told import RAW

HOWS = pytest.mark.parametrize("how", BINDS)
EACH = pytest.mark.parametrize("case", SHARED, indirect=True)
OWNED = pytest.mark.parametrize("case", OWN, indirect=True)
ONE_OF_EACH = pytest.mark.parametrize("case", ["own", "patients"], indirect=True)
ISSUED, REDEEMED, REVOKED = EventType.GRANT_ISSUED, EventType.GRANT_REDEEMED, EventType.GRANT_REVOKED


async def outboxed(shared: Shared, engine: AsyncEngine, **options: Any) -> Sharing:
    """A table of grants with an outbox beside it, made in the database."""
    return await Sharing.made(shared, engine, options={"outbox": link_outbox(shared.metadata)}, **options)


@pytest.fixture
async def case(engine: AsyncEngine, request: pytest.FixtureRequest) -> Sharing:
    """Each table of grants in turn, with an outbox."""
    return await outboxed(SHARED[request.param](), engine)


async def read(case: Sharing, **options: Any) -> list[GrantEvent]:
    """Read and acknowledge all that there is."""
    events = []
    async for delivery in case.shares.events(case.engine, **options):
        events.append(delivery.event)
        await delivery.acknowledge()
    return events


async def types(case: Sharing) -> list[str]:
    """Return the outbox's events by type, read without the library."""
    return [kind.removeprefix("grant_") for kind, *_ in await rows(case.engine, RAW)]


# -- what is told -----------------------------------------------------------------------------------------------------


@EACH
@HOWS
async def test_what_happens_to_a_grant_is_told_once(case: Sharing, how: str) -> None:
    """Issue, redemption and revocation write one event each, in any transaction, with ids in their columns' types."""
    if one_transaction(case, how):
        return
    assert case.clock is not None
    start = case.clock.now
    async with bound(case.engine, how) as bind:
        issued = await case.issue(1, bind)
        case.clock.move(seconds=5)
        await case.redeem(issued.token, 2, bind)
    async with bound(case.engine, how) as bind:
        case.clock.move(seconds=5)
        await case.revoke(1, bind, grant_id=issued.id)
    stored = await rows(case.engine, RAW)
    events = await read(case)
    one, two = case.user(1), case.user(2)
    assert [(ISSUED, one, None), (REDEEMED, two, one), (REVOKED, one, two)] == [
        (event.type, event.user_id, event.other_user_id) for event in events
    ]
    assert [start + timedelta(seconds=seconds) for seconds in (0, 5, 10)] == [event.occurred_at for event in events]
    assert {(issued.id, None)} == {(event.grant_id, event.link_id) for event in events}
    python = {role: case.shares.mapping.columns[role].type.python_type for role in ("grantor_id", "id")}
    assert [] == [event for event in events if not isinstance(event.user_id, python["grantor_id"])]
    assert [] == [event for event in events if not isinstance(event.grant_id, python["id"])]
    assert [["grant_id"]] * 3 == [list(event.data) for event in events]
    assert {str} == {type(event.data["grant_id"]) for event in events}
    assert {(None, None)} == {(provider, link_id) for *_, provider, link_id in stored}
    assert [] == await types(case)


@EACH
async def test_a_grant_that_nobody_redeemed_has_no_other_user(case: Sharing) -> None:
    """A grant that was revoked before its redemption has an event with the grantor only."""
    issued = await case.issue()
    await case.revoke(token=issued.token)
    assert [(ISSUED, None, issued.id), (REVOKED, None, issued.id)] == [
        (event.type, event.other_user_id, event.grant_id) for event in await read(case)
    ]


@OWNED
async def test_each_use_of_a_token_is_a_grant_of_its_own(case: Sharing) -> None:
    """F25: each use has an event with its own id; when the token is revoked, so has the end of each use."""
    issued = await case.issue(max_uses=3)
    one, other = [(await case.redeem(issued.token, number)).grant.id for number in (2, 3)]
    await case.revoke(grant_id=one)
    await case.revoke(token=issued.token)
    events = [(event.type, event.other_user_id, event.grant_id) for event in await read(case)]
    first = case.user(1)
    assert [(ISSUED, None, issued.id), (REDEEMED, first, one), (REDEEMED, first, other)] == events[:3]
    assert (REVOKED, case.user(2), one) == events[3]
    last = [(REVOKED, None, issued.id), (REVOKED, case.user(3), other)]
    assert 2 == len(events[4:]) == len([event for event in events[4:] if event in last])


async def test_the_linked_account_is_told(engine: AsyncEngine) -> None:
    """The link that a grant is about is named, in its own type, in each event of it."""
    case = await outboxed(SHARED["own"](), engine)
    link_id = await case.link()
    issued = await case.issue(link_id=link_id)
    await case.redeem(issued.token)
    await case.revoke(grant_id=issued.id)
    assert [link_id] * 3 == [event.link_id for event in await read(case)]


async def test_links_and_grants_share_an_outbox(engine: AsyncEngine) -> None:
    """Each reader gets its own table's events; the end of an account has an event of the link, not of its grants."""
    tables = make_tables(EXCLUSIVE_SOFT)
    outbox = link_outbox(tables.metadata)
    linker = tables.linker(outbox=outbox, secrets=SECRETS)
    table = grants_table(tables.metadata, link_id=tables.Connection.id)
    case = await outboxed(Shared(tables.metadata, table, linker), engine)
    removed, moved = await case.link(1, "removed"), await case.link(1, "moved")
    for link_id in (removed, moved):
        await case.redeem((await case.issue(link_id=link_id)).token)
    await linker.unlink(engine, user_id=1, link_id=removed)
    conflict: Any = await linker.link(engine, user_id=2, identity=identity("moved"))
    await linker.transfer(engine, conflict.transfer_token, user_id=2)
    assert [] == await case.active(grantor_id=1)
    assert [ISSUED, REDEEMED] * 2 == [event.type for event in await read(case)]
    assert ["linked", "linked", "unlinked", "conflict", "transferred"] == [
        delivery.event.type.value async for delivery in linker.events(engine)
    ]


@EACH
async def test_no_event_holds_a_token_or_its_hash(case: Sharing) -> None:
    """A28: whatever the table of grants holds of a token, the outbox has nothing of it; an event shows no user."""
    issued = await case.issue(7_777_777)
    await case.redeem(issued.token, 8_888_888)
    await case.revoke(7_777_777, token=issued.token)
    everything = repr(await rows(case.engine, "SELECT * FROM accountlink_events"))
    token = case.shares.mapping.columns[case.shares.mapping.token_role]
    async with case.engine.connect() as connection:
        held = (await connection.execute(sa.select(token))).scalar_one()
    assert [] == [text for text in (issued.token, held) if text in everything]
    shown = [repr(delivery) async for delivery in case.shares.events(case.engine)]
    assert 3 == len(shown)
    assert [] == [text for text in shown for number in (7_777_777, 8_888_888) if str(case.user(number)) in text]


async def test_the_clock_that_ends_grants_dates_their_events(
    engine: AsyncEngine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20: without a clock it is PostgreSQL's own, however wrong the server's is; SQLite has no other."""
    wrong = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("accountlink.grants.store.present", lambda: wrong)
    case = await outboxed(SHARED["own"](), engine, clock=None)
    issued = await case.issue()
    await case.redeem(issued.token)
    now = datetime.now(UTC) if database.is_postgresql else wrong
    moments = [event.occurred_at for event in await read(case)]
    assert 2 == len(moments)
    assert [] == [moment for moment in moments if abs(moment - now) > timedelta(minutes=1)]


# -- what is not told -------------------------------------------------------------------------------------------------


@EACH
@HOWS
async def test_what_changes_nothing_is_not_told(case: Sharing, how: str) -> None:
    """A25, A26: a retry, a second revoke and every refusal leave the outbox as it was, in one count of statements."""
    if one_transaction(case, how):
        return
    held, ended = await case.issue(), await case.issue()
    await case.redeem(held.token, 9)
    await case.revoke(grant_id=ended.id)
    refused = await refusals(case)
    before = await rows(case.engine, RAW)
    async with bound(case.engine, how) as bind:
        assert "already_granted" == await case.ended(case.redeem(held.token, 9, bind))
        assert "revoked" == await case.ended(case.revoke(1, bind, token=ended.token))
        assert "grant_rejected" == await case.ended(case.revoke(2, bind, grant_id=held.id))
    counts = set()
    for token, user in refused.values():
        async with bound(case.engine, how) as bind:
            if how != "engine":
                await bind.execute(sa.text("SELECT 1"))
            statements = Statements(case.engine)
            with pytest.raises(GrantRejected):
                await case.redeem(token, user, bind)
            counts.add(len(statements.seen))
    assert 1 == len(counts)
    assert before == await rows(case.engine, RAW)


async def test_an_issue_that_is_refused_is_not_told(engine: AsyncEngine) -> None:
    """A31: a link of another user's is not shared, and not told of."""
    case = await outboxed(SHARED["own"](), engine)
    theirs = await case.link(2)
    with pytest.raises(AccountNotFound):
        await case.issue(1, link_id=theirs)
    assert [] == await types(case)


@pytest.mark.parametrize("case", ["own-pairs", "patients-pairs"], indirect=True)
async def test_what_ends_by_itself_is_not_told(case: Sharing) -> None:
    """The earlier grant of a pair, and a grant that `expire` marks, have no event of a revocation."""
    assert case.clock is not None
    for _ in range(2):
        await case.redeem((await case.issue()).token)
    case.clock.move(hours=2)
    assert 1 == await case.shares.expire(case.engine)
    assert ["issued", "redeemed"] * 2 == await types(case)


@ONE_OF_EACH
@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_rollback_takes_the_events_back(case: Sharing, how: str) -> None:
    """A rolled-back transaction leaves no event of whatever kind, as it leaves no change."""
    kept = await case.issue()
    before = await rows(case.engine, RAW)
    async with case.engine.connect() as connection:
        bind: Any = connection if how == "connection" else AsyncSession(connection)
        await case.redeem(kept.token, 2, bind)
        await case.revoke(1, bind, grant_id=kept.id)
        await case.issue(1, bind)
        assert 4 == len(list(await bind.execute(sa.text(RAW))))
        await bind.rollback()
        await bind.close()
    assert before == await rows(case.engine, RAW)


@HOWS
async def test_a_refused_write_leaves_no_event(engine: AsyncEngine, how: str) -> None:
    """A violation takes the event of its own call back, and leaves those of the same transaction before it."""
    case = await outboxed(SHARED["patients"](), engine)
    await run_sql(engine, "CREATE UNIQUE INDEX once_ever ON patient_doctor_connections (patient_id, doctor_id)")
    async with bound(engine, how) as bind:
        one, two = [await case.issue(1, bind) for _ in range(2)]
        await case.redeem(one.token, 2, bind)
        with pytest.raises(BlockedByConstraint):
            await case.redeem(two.token, 2, bind)
    assert ["issued", "issued", "redeemed"] == await types(case)


# -- with its change --------------------------------------------------------------------------------------------------


@ONE_OF_EACH
async def test_an_outbox_that_refuses_takes_the_change_back(case: Sharing) -> None:
    """No change without its event: where the outbox cannot be written, the grant is not written either."""
    issued = await case.issue()
    before = await case.stored()
    async with case.engine.begin() as connection:
        await connection.run_sync(case.shared.metadata.tables["accountlink_events"].drop)
    for call in (case.issue(), case.redeem(issued.token), case.revoke(grant_id=issued.id)):
        with pytest.raises(ConfigurationError, match="accountlink_events"):
            await call
    assert before == await case.stored()


@EACH
async def test_in_a_race_there_are_as_many_events_as_grants(case: Sharing) -> None:
    """A18: forty users and calls of one token at once are one redeemed grant, and one end of it."""
    issued = await case.issue()
    await asyncio.gather(*(case.ended(case.redeem(issued.token, 2 + n % 4)) for n in range(40)))
    await asyncio.gather(*(case.revoke(grant_id=issued.id) for _ in range(20)))
    assert ["issued", "redeemed", "revoked"] == await types(case)


async def test_one_call_and_its_retries_have_one_number(engine: AsyncEngine) -> None:
    """Each event carries the number of its call, by which whoever reads the table knows what one call told."""
    case = await outboxed(SHARED["own"](), engine)
    issued = await case.issue(max_uses=2)
    for number in (2, 3):
        await case.redeem(issued.token, number)
    await case.revoke(grant_id=issued.id)
    calls = await rows(case.engine, "SELECT count(*) FROM accountlink_events GROUP BY call_id")
    assert [(1,), (1,), (1,), (3,)] == sorted(calls)


@pytest.mark.parametrize("case", ["counted"], indirect=True)
async def test_the_applications_columns_get_their_values(case: Sharing) -> None:
    """Python-side defaults and onupdate functions run as part of a statement with an event, too."""
    issued = await case.issue()
    await case.redeem(issued.token)
    assert [("the application's", 7)] == await rows(case.engine, "SELECT uses, touched FROM shares")


# -- what it costs, and without one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
async def test_an_event_costs_no_statement(engine: AsyncEngine, database: Database, name: str) -> None:
    """On PostgreSQL a call sends as many statements with an outbox as without; on SQLite one more for what it tells."""
    shared = SHARED[name]()
    seen: list[list[list[str]]] = []
    for options in ({}, {"outbox": link_outbox(shared.metadata)}):
        case = await Sharing.made(shared, engine, options=options)
        sent: list[list[str]] = []
        issued: Any = None
        for step in ("issue", "redeem", "redeem", "revoke", "revoke"):
            statements = Statements(engine)
            match step:
                case "issue":
                    issued = await case.issue()
                case "redeem":
                    await case.redeem(issued.token)
                case _:
                    await case.revoke(grant_id=issued.id)
            sa.event.remove(engine.sync_engine, "before_cursor_execute", statements._note)
            sent.append(statements.seen)
        seen.append(sent)
    plain, with_outbox = seen
    assert "accountlink_events" not in repr(plain)
    more = [0] * 5 if database.is_postgresql else [1, 1, 0, 1, 0]
    assert [len(step) + n for step, n in zip(plain, more, strict=True)] == [len(step) for step in with_outbox]


def test_a_statement_without_an_outbox_has_no_part_for_it() -> None:
    """The statements answer directly, as they did before there was an outbox."""
    statements = GrantStatements(SHARED["own-pairs"]().mapping, None, database_clock=True, pairs=True)
    assert isinstance(statements.issue_and_tell(linked=False, limited=False), sa.Insert)
    assert isinstance(statements.redeem(limited=True), sa.CompoundSelect)
    assert isinstance(statements.revoke("id", limited=True), sa.CompoundSelect)


async def test_events_need_an_outbox_and_an_engine(engine: AsyncEngine) -> None:
    """A call for events without an outbox, or with something else than an engine, raises and says what to pass."""
    metadata = sa.MetaData()
    table = grants_table(metadata)
    with pytest.raises(ConfigurationError, match=r"ShareGrants\(outbox=link_outbox\(Base\.metadata\)\)"):
        ShareGrants(table).events(engine)
    shares = ShareGrants(table, outbox=link_outbox(metadata))
    async with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="AsyncEngine"):
            shares.events(connection)  # type: ignore[arg-type]  # that is the point
    for wrong in ({"poll": 5}, {"lease": None}):
        with pytest.raises(ConfigurationError, match="timedelta"):
            shares.events(engine, **wrong)
    for no_outbox in ("accountlink_events", table):
        with pytest.raises(ConfigurationError, match="link_outbox"):
            ShareGrants(table, outbox=no_outbox)  # type: ignore[arg-type]  # that is the point


async def test_what_is_passed_over_comes_again(engine: AsyncEngine) -> None:
    """At least once: unacknowledged, an event is delivered in the next round, under its number."""
    case = await outboxed(SHARED["own"](), engine)
    await case.issue()
    [seen] = [delivery.event async for delivery in case.shares.events(engine)]
    assert [seen] == await read(case, lease=HOUR)
