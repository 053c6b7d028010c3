"""The outbox: each change writes one event in its transaction; a call without effect writes none."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import (
    AccountLinkError,
    AccountMismatch,
    AccountNotFound,
    AlreadyOwner,
    ConfigurationError,
    EventType,
    LastAccount,
    LinkBlocked,
    Linked,
    LinkEvent,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Removal,
    TokenRejected,
    Transferred,
    link_outbox,
)
from accountlink.linking.statements import Shape, Statements
from tests.support.binds import BINDS, bound
from tests.support.claims import CLAIMED, Case
from tests.support.claims import Statements as Counted
from tests.support.databases import Database, create, rows, run_sql
from tests.support.effort import Effort
from tests.support.mapped import TABLES
from tests.support.models import (
    EMAIL_SOFT,
    EXCLUSIVE,
    PER_USER,
    SECRETS,
    USER_TYPES,
    identity,
    make_tables,
    tokens,
)
from tests.support.told import RAW, TOLD, Outboxed, read, told, types

pytestmark = pytest.mark.each_driver

HOWS = pytest.mark.parametrize("how", BINDS)
POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])


@pytest.fixture
async def case(engine: AsyncEngine, kind: str, table: str) -> Case:
    """The table of that name, made in the database, with a linker."""
    links = TOLD[table](kind)
    await links.create(engine)
    return Case(links, engine)


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
async def test_what_happens_to_a_link_is_told_once(case: Case, engine: AsyncEngine) -> None:
    """Linked, updated, unlinked and, where rows stay, restored: one event each, with ids as their columns have them."""
    link = case.linker.link
    mine: dict[str, Any] = {"user_id": case.user(1), "identity": identity()}
    first = await link(engine, **mine, credentials=tokens())
    case.clock.move(seconds=5)
    await link(engine, **mine)
    assert isinstance(first, Linked)
    link_id = first.account.id
    await case.linker.unlink(engine, user_id=case.user(1), link_id=link_id)
    expected = [EventType.LINKED, EventType.UPDATED, EventType.UNLINKED]
    if case.soft:
        await link(engine, **mine)
        expected.append(EventType.RESTORED)
    stored = await rows(engine, RAW)
    events = await read(case)
    assert expected == [event.type for event in events]
    assert {(case.user(1), None, "acme", link_id)} == {
        (event.user_id, event.other_user_id, event.provider, event.link_id) for event in events
    }
    python = {role: case.links.mapping.columns[role].type.python_type for role in ("user_id", "id")}
    assert [] == [event for event in events if not isinstance(event.user_id, python["user_id"])]
    assert [] == [event for event in events if not isinstance(event.link_id, python["id"])]
    start = case.clock.now - timedelta(seconds=5)
    assert [start, case.clock.now] == [event.occurred_at for event in events[:2]]
    assert [{}] * len(events) == [event.data for event in events]
    assert {"acme"} == {provider for *_, provider, _ in stored}
    assert {str} == {type(value) for row in stored for value in row if value is not None}


@HOWS
@pytest.mark.parametrize("table", CLAIMED)
async def test_who_and_who_else_is_told(case: Case, engine: AsyncEngine, how: str) -> None:
    """A02: a conflict has claimant and owner, a transfer new and former owner, in any transaction."""
    async with bound(engine, how) as bind:
        first = await case.linker.link(bind, user_id=case.user(1), identity=identity(), credentials=tokens())
    assert isinstance(first, Linked)
    async with bound(engine, how) as bind:
        conflict = await case.linker.link(bind, user_id=case.user(2), identity=identity())
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    async with bound(engine, how) as bind:
        outcome = await case.transfer(conflict.transfer_token, 2, bind)
    assert isinstance(outcome, Transferred)
    link_id = first.account.id
    expected = [
        (EventType.LINKED, case.user(1), None, link_id),
        (EventType.CONFLICT, case.user(2), case.user(1), link_id),
        (EventType.TRANSFERRED, case.user(2), case.user(1), link_id),
    ]
    found = [(event.type, event.user_id, event.other_user_id, event.link_id) for event in await read(case)]
    assert expected == found


@HOWS
async def test_every_bind_tells_a_removal_and_a_return(engine: AsyncEngine, how: str) -> None:
    """An unlink tells its reason, and the restore after it that it is one; with the first reason, and in order."""
    case = await told(engine)
    link_id = await case.link(1)
    async with bound(engine, how) as bind:
        for reason in ("asked to", "again"):
            await case.linker.unlink(bind, user_id=1, link_id=link_id, reason=reason)
    async with bound(engine, how) as bind:
        await case.linker.link(bind, user_id=1, identity=identity())
    events = await read(case)
    assert [("linked", {}), ("unlinked", {"reason": "asked to"}), ("restored", {})] == [
        (event.type.value, event.data) for event in events
    ]


@pytest.mark.parametrize("user_type", USER_TYPES, ids=lambda kind: kind.__name__)
async def test_ids_come_back_as_they_went(engine: AsyncEngine, user_type: type) -> None:
    """User ids of each type are text in the outbox, and come back in the type of their column."""
    tables = make_tables(EXCLUSIVE, user_type=user_type)
    linker = tables.linker(outbox=link_outbox(tables.metadata))
    await create(engine, tables.metadata)
    owner, claimant = USER_TYPES[user_type]
    for user in (owner, claimant):
        await linker.link(engine, user_id=user, identity=identity())
    events = [delivery.event async for delivery in linker.events(engine)]
    seen = [(event.user_id, event.other_user_id) for event in events]
    assert [(owner, None), (claimant, owner)] == seen


async def test_no_event_holds_an_address_or_a_token(engine: AsyncEngine) -> None:
    """A28: whatever a call brings of e-mail addresses and tokens, no column of the outbox has any of it."""
    case = await told(engine)
    brought = tokens("canary-access", "canary-refresh")
    who = identity("sub-1", email="canary@example.com", display_name="canary", claims={"x": "canary"})
    for _ in range(2):
        await case.linker.link(engine, user_id=1, identity=who, credentials=brought)
    conflict = await case.linker.link(engine, user_id=2, identity=who, credentials=brought)
    assert isinstance(conflict, OwnershipConflict)
    token = str(conflict.transfer_token)
    moved = await case.transfer(token, 2, credentials=brought)
    await case.linker.unlink(engine, user_id=2, link_id=moved.account.id)
    everything = repr(await rows(engine, "SELECT * FROM accountlink_events"))
    assert 5 == everything.count("acme")
    assert [] == [word for word in ("canary", "sub-1", token) if word in everything]


async def test_an_event_shows_no_user(engine: AsyncEngine) -> None:
    """A25: the `repr` of an event, and of its delivery, shows no user."""
    case = await told(engine)
    for user in (7_777_777, 8_888_888):
        await case.linker.link(engine, user_id=user, identity=identity())
    shown = [repr(delivery) async for delivery in case.linker.events(engine)]
    assert 2 == len(shown)
    assert [] == [text for text in shown if "7777777" in text or "8888888" in text]


@HOWS
async def test_a_log_of_parameters_shows_no_other_user(
    engine: AsyncEngine, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A25, A28: with SQLAlchemy's echo on, telling a conflict or a transfer shows no owner's id in the log."""
    case = await told(engine)
    await case.link(7_777_777)
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        async with bound(engine, how) as bind:
            conflict = await case.linker.link(bind, user_id=2, identity=identity())
            assert isinstance(conflict, OwnershipConflict)
            await case.transfer(str(conflict.transfer_token), 2, bind)
    assert "accountlink_events" in caplog.text
    assert "7777777" not in caplog.text


# -- what is not told -------------------------------------------------------------------------------------------------


@HOWS
async def test_what_changes_nothing_is_not_told(engine: AsyncEngine, how: str) -> None:
    """An unlink of a dead link, an `AlreadyOwner` and every refusal leave the outbox as it was."""

    async def no_password(connection: AsyncConnection, user_id: Any) -> bool:
        return False

    policy = LinkPolicy(ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons={"fraud"})
    case = await told(engine, policy)
    link_id = await case.link(1)
    other_id = await case.link(1, "sub-2")
    token = await case.claim(2)
    assert isinstance(await case.transfer(token, 2), Transferred)
    await case.linker.unlink(engine, user_id=1, link_id=other_id, reason="fraud")
    before = await rows(engine, RAW)
    linker = case.linker
    guarded = case.links.linker(guard_last=no_password)
    async with bound(engine, how) as bind:
        await linker.unlink(bind, user_id=1, link_id=other_id)
        assert isinstance(await case.transfer(token, 2, bind), AlreadyOwner)
        refused: list[tuple[type[AccountLinkError], Any]] = [
            (LinkBlocked, linker.link(bind, user_id=1, identity=identity("sub-2"))),
            (AccountMismatch, linker.link(bind, user_id=2, identity=identity("sub-3"), expect=link_id)),
            (AccountNotFound, linker.link(bind, user_id=1, identity=identity(), expect=999)),
            (AccountNotFound, linker.unlink(bind, user_id=1, link_id=link_id)),
            (TokenRejected, case.transfer(token, 3, bind)),
            (TokenRejected, case.transfer("forged", 2, bind)),
        ]
        if how != "autocommit":
            refused.append((LastAccount, guarded.unlink(bind, user_id=2, link_id=link_id)))
        for kind, call in refused:
            with pytest.raises(kind):
                await call
    assert before == await rows(engine, RAW)


@HOWS
async def test_a_superseded_token_is_not_told(engine: AsyncEngine, how: str) -> None:
    """A04: a refused transfer is no event."""
    case = await told(engine)
    link_id = await case.link(1)
    token = await case.claim(2)
    await case.linker.unlink(engine, user_id=1, link_id=link_id)
    before = await types(engine)
    async with bound(engine, how) as bind:
        with pytest.raises(TokenRejected):
            await case.transfer(token, 2, bind)
    assert before == await types(engine)


async def test_a_mismatch_of_addresses_is_not_told(engine: AsyncEngine) -> None:
    """Under an e-mail key, another account id at the same address is refused, and leaves no event."""
    case = await told(engine, EMAIL_SOFT)
    await case.link(1)
    with pytest.raises(AccountMismatch):
        await case.linker.link(engine, user_id=1, identity=identity("sub-9", email="sub-1@example.com"))
    assert ["linked"] == await types(engine)


@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_rollback_takes_the_events_back(engine: AsyncEngine, how: str) -> None:
    """A rolled-back transaction leaves no event of whatever kind, as it leaves no change."""
    case = await told(engine)
    link_id = await case.link(1)
    token = await case.claim(2)
    before = await rows(engine, RAW)
    async with engine.connect() as connection:
        bind: Any = connection if how == "connection" else AsyncSession(connection)
        link = case.linker.link
        for user, account in ((1, "sub-1"), (1, "sub-2"), (3, "sub-1")):
            await link(bind, user_id=user, identity=identity(account))
        await case.transfer(token, 2, bind)
        await case.linker.unlink(bind, user_id=2, link_id=link_id)
        await link(bind, user_id=2, identity=identity())
        assert 8 == len(list(await bind.execute(sa.text(RAW))))
        await bind.rollback()
        await bind.close()
    assert before == await rows(engine, RAW)


@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_savepoint_takes_its_events_back(engine: AsyncEngine, how: str) -> None:
    """A rollback of the caller's savepoint removes its events; events outside it are committed."""
    case = await told(engine)
    async with engine.connect() as connection:
        bind: Any = connection if how == "connection" else AsyncSession(connection)
        await case.linker.link(bind, user_id=1, identity=identity("kept"))
        inner = await bind.begin_nested()
        await case.linker.link(bind, user_id=1, identity=identity("gone"))
        await inner.rollback()
        await bind.commit()
        await bind.close()
    assert [("kept",)] == await rows(engine, "SELECT account_id FROM connections")
    assert ["linked"] == await types(engine)


@HOWS
async def test_a_refused_write_leaves_no_event(engine: AsyncEngine, how: str) -> None:
    """A violation takes the event of its own call back, and leaves those of the same transaction before it."""
    case = await told(engine, PER_USER)
    await run_sql(engine, "CREATE UNIQUE INDEX one_per_provider ON connections (user_id, provider)")
    async with bound(engine, how) as bind:
        await case.linker.link(bind, user_id=1, identity=identity("sub-1"))
        with pytest.raises(AccountLinkError):
            await case.linker.link(bind, user_id=1, identity=identity("sub-2"))
    assert ["linked"] == await types(engine)


# -- with its change --------------------------------------------------------------------------------------------------


async def test_an_outbox_that_refuses_takes_the_change_back(engine: AsyncEngine) -> None:
    """No change without its event: where the outbox cannot be written, the link is not written either."""
    case = await told(engine)
    link_id = await case.link(1)
    token = await case.claim(2)
    before = await case.stored()
    async with engine.begin() as connection:
        await connection.run_sync(case.links.metadata.tables["accountlink_events"].drop)
    calls = [
        case.linker.link(engine, user_id=1, identity=identity(), credentials=tokens("after")),
        case.linker.link(engine, user_id=2, identity=identity("sub-2")),
        case.linker.unlink(engine, user_id=1, link_id=link_id),
        case.transfer(token, 2),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="accountlink_events"):
            await call
    assert before == await case.stored()


@POSTGRESQL
@HOWS
async def test_the_owners_row_does_not_move_when_a_conflict_is_told(engine: AsyncEngine, how: str) -> None:
    """A25: telling a conflict writes the outbox, and nothing of the owner's: same version of the row, no lock on it."""
    case = await told(engine)
    await case.link(1)
    version = "SELECT CAST(ctid AS text), CAST(xmin AS text), CAST(xmax AS text) FROM connections"
    before = await rows(engine, version)
    async with bound(engine, how) as bind:
        assert isinstance(await case.linker.link(bind, user_id=2, identity=identity()), OwnershipConflict)
    assert before == await rows(engine, version)
    assert ["linked", "conflict"] == await types(engine)


@POSTGRESQL
@HOWS
async def test_a_conflict_behind_a_violation_is_told(engine: AsyncEngine, how: str) -> None:
    """A restore that loses to a concurrent link meets a violation, and writes one conflict."""
    case = await told(engine)
    link_id = await case.link(1)
    await case.linker.unlink(engine, user_id=1, link_id=link_id)
    async with AsyncSession(engine) as rival:
        await case.linker.link(rival, user_id=2, identity=identity())

        async def loser() -> Any:
            async with bound(engine, how) as bind:
                return await case.linker.link(bind, user_id=1, identity=identity())

        waiter = asyncio.create_task(loser())
        await waiting(engine)
        await rival.commit()
        outcome = await waiter
    assert isinstance(outcome, OwnershipConflict)
    theirs = (await case.linker.accounts(engine, user_id=2))[0].id
    assert [
        ("linked", "1", None, str(link_id)),
        ("unlinked", "1", None, str(link_id)),
        ("linked", "2", None, str(theirs)),
        ("conflict", "1", "2", str(theirs)),
    ] == [(kind, user, other, link) for kind, user, other, _, link in await rows(engine, RAW)]


@POSTGRESQL
async def test_a_link_that_only_its_last_resort_writes_is_told(engine: AsyncEngine) -> None:
    """After three races without an answer an insert by itself finds out why; where that succeeds, it tells the link."""
    case = await told(engine)
    store = case.linker._store
    call = store.calls.link(
        user_id=1, identity=identity(), credentials=None, expect=None, values=None, update_values=None
    )
    async with engine.begin() as connection:
        for _ in range(2):
            await connection.run_sync(partial(store.probe, call=call))
    assert [("linked", "1", None, "acme", "1")] == await rows(engine, RAW)


async def waiting(engine: AsyncEngine) -> None:
    """Wait until a backend waits for a lock."""
    for _ in range(500):
        if (await rows(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


@pytest.mark.parametrize("table", ["mixin-exclusive", "exclusive-soft-ledger"])
async def test_in_a_race_there_are_as_many_events_as_answers(case: Case, engine: AsyncEngine, effort: Effort) -> None:
    """Four users link one account sixteen times each and unlink it: each answer that changed or met an owner, once."""
    answers: Counter[str] = Counter()

    async def link(user: int, account: str) -> None:
        outcome = await case.linker.link(engine, user_id=case.user(user), identity=identity(account))
        if isinstance(outcome, OwnershipConflict):
            answers["conflict"] += 1
            return
        answers[{"created": "linked"}.get(outcome.change.value, outcome.change.value)] += 1

    async def unlink(user: int, account: str) -> None:
        for linked in await case.linker.accounts(engine, user_id=case.user(user)):
            if linked.account_id == account:
                try:
                    await case.linker.unlink(engine, user_id=case.user(user), link_id=linked.id)
                except AccountNotFound:
                    continue

    for round_ in effort.rounds(2, full=6):
        account = f"sub-{round_}"
        calls = [link(user, account) for user in (1, 2, 3, 4) * 8]
        calls[8:8] = [unlink(user, account) for user in (1, 2, 3, 4)]
        await asyncio.gather(*calls)
    found = Counter(await types(engine))
    removed = found.pop("unlinked", 0)
    assert answers == found
    live = len(await rows(engine, "SELECT 1 FROM connections" + (" WHERE deleted_at IS NULL" if case.soft else "")))
    assert found["linked"] + found["restored"] - removed == live


@pytest.mark.parametrize("table", ["mixin-exclusive-soft", "exclusive-soft-ledger"])
async def test_a_hundred_redemptions_are_one_event(case: Case, engine: AsyncEngine) -> None:
    """A18: concurrent redemptions of one token write one transferred event."""
    await case.link(1)
    token = await case.claim(2)
    await asyncio.gather(*(case.ended(token, 2) for _ in range(40)))
    assert ["linked", "conflict", "transferred"] == await types(engine)


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [None, "audit"])
async def test_alembic_sees_the_table_and_nothing_to_change_in_it(database: Database, schema: str | None) -> None:
    """The table that `create_all` makes is the one that autogenerate compares with, types and defaults included."""
    if schema is not None and not database.is_postgresql:
        return  # which has no schemas
    metadata = sa.MetaData()
    outbox = link_outbox(metadata, name="events", schema=schema)
    engine = database.engine()
    if schema is not None:
        await run_sql(engine, f"DROP SCHEMA IF EXISTS {schema} CASCADE", f"CREATE SCHEMA {schema}")
    await create(engine, metadata)

    def differences(connection: sa.Connection) -> Any:
        options = {
            "compare_type": True,
            "compare_server_default": database.is_postgresql,  # Alembic misses every Identity where there are none
            "include_schemas": schema is not None,
            "include_name": lambda name, kind, _: kind != "schema" or name == schema,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with engine.connect() as connection:
        assert [] == await connection.run_sync(differences)
    assert outbox is link_outbox(metadata, name="events", schema=schema)


@pytest.mark.parametrize("schema", [None, "audit"])
async def test_an_outbox_has_the_name_and_the_schema_that_it_is_given(database: Database, schema: str | None) -> None:
    """Events go to the table of that name and schema, and come from it."""
    tables, engine = make_tables(EXCLUSIVE), database.engine()
    schema = schema if database.is_postgresql else None
    if schema is not None:
        await run_sql(engine, f"DROP SCHEMA IF EXISTS {schema} CASCADE", f"CREATE SCHEMA {schema}")
    linker = tables.linker(outbox=link_outbox(tables.metadata, name="happened", schema=schema))
    await create(engine, tables.metadata)
    await linker.link(engine, user_id=1, identity=identity())
    named = "happened" if schema is None else f"{schema}.happened"
    assert [("linked",)] == await rows(engine, f"SELECT type FROM {named}")
    assert [EventType.LINKED] == [delivery.event.type async for delivery in linker.events(engine)]


async def test_one_outbox_serves_several_tables(engine: AsyncEngine) -> None:
    """Each linker reads only the events of its own table."""
    first, second = TOLD["core-table"]("any"), TOLD["cloud"]("any")
    outbox = first.outbox
    assert outbox.name == second.outbox.name
    await first.create(engine)
    await second.create(engine)
    cases = [Case(links, engine) for links in (first, second)]
    for n, case in enumerate(cases):
        await case.link(n + 1)
    assert 2 == len(await types(engine))
    for n, case in enumerate(cases):
        assert [case.user(n + 1)] == [event.user_id for event in await read(case)]


async def test_types_of_a_newer_version_are_left_to_it(engine: AsyncEngine) -> None:
    """While a deployment is under way, an older worker leaves the events that it does not know."""
    case = await told(engine)
    for account in ("sub-1", "sub-2"):
        await case.link(1, account)
    await run_sql(engine, "UPDATE accountlink_events SET type = 'brand_new' WHERE link_id = '1'")
    assert [2] == [event.link_id for event in await read(case)]
    assert ["brand_new"] == await types(engine)


@POSTGRESQL
async def test_a_role_that_may_only_insert_tells_what_it_does(engine: AsyncEngine, database: Database) -> None:
    """Whoever links needs no more of the outbox than to write into it: no sequence, no reading."""
    case = await told(engine)
    await run_sql(
        engine,
        "DROP ROLE IF EXISTS writer",
        "CREATE ROLE writer",
        "GRANT ALL ON connections, connections_id_seq TO writer",
        "GRANT INSERT ON accountlink_events TO writer",
    )
    args = {"asyncpg": {"server_settings": {"role": "writer"}}, "psycopg": {"options": "-c role=writer"}}
    writer = Case(case.links, database.engine(connect_args=args[database.kind]))
    link_id = await writer.link(1)
    await writer.link(1)
    await writer.transfer(await writer.claim(2), 2)
    await writer.linker.unlink(writer.engine, user_id=2, link_id=link_id, reason="why")
    await writer.engine.dispose()
    expected = ["linked", "updated", "conflict", "transferred", "unlinked"]
    assert expected == [event.type.value for event in await read(case)]
    await run_sql(engine, "DROP OWNED BY writer", "DROP ROLE writer")


@SQLITE
async def test_an_event_never_gets_the_number_of_another(engine: AsyncEngine) -> None:
    """SQLite may reuse the ids of deleted rows, but not in the outbox: a consumer that stores ids would skip events."""
    case = await told(engine)
    numbers = []
    for n in range(3):
        await case.link(1, f"sub-{n}")
        numbers += [event.id for event in await read(case)]
    assert [1, 2, 3] == numbers


def test_the_index_is_named_by_the_metadatas_convention() -> None:
    """Whoever has a convention for names has it here; without one the index is named as SQLAlchemy names them."""
    plain = link_outbox(sa.MetaData())
    conventional = link_outbox(sa.MetaData(naming_convention={"ix": "index_of_%(table_name)s"}))
    assert ["ix_accountlink_events_table_name"] == [index.name for index in plain.indexes]
    assert ["index_of_accountlink_events"] == [index.name for index in conventional.indexes]


def test_the_words_are_stable() -> None:
    """The outbox and readers by SQL know the types by these words."""
    assert [
        "linked", "updated", "restored", "unlinked", "conflict", "transferred",
        "consent_needed", "grant_issued", "grant_redeemed", "grant_revoked",
    ] == [kind.value for kind in EventType]  # fmt: skip


def test_the_columns_are_the_contracts() -> None:
    """The contract's columns come first, in its order; ids are text, whatever they are in the application."""
    outbox = link_outbox(sa.MetaData())
    named = ("id", "occurred_at", "type", "user_id", "other_user_id", "provider", "link_id", "data")
    assert named == tuple(outbox.columns.keys())[:8]
    assert {sa.Text} == {type(outbox.c[name].type) for name in ("type", *named[3:7])}
    assert LinkEvent.__match_args__ == ()
    assert sorted(named) == sorted(LinkEvent.__dataclass_fields__)


@pytest.mark.parametrize(
    "outbox", ["accountlink_events", sa.Table("links", sa.MetaData(), sa.Column("id", sa.Integer)), object()], ids=type
)
def test_what_is_no_outbox_is_refused(outbox: Any) -> None:
    """An outbox is the table that `link_outbox` makes; anything else is a configuration error that says so."""
    with pytest.raises(ConfigurationError, match="link_outbox"):
        make_tables(EXCLUSIVE).linker(outbox=outbox)


def test_a_name_that_is_taken_is_refused() -> None:
    """A table of the application's that has the name already is not taken for an outbox."""
    metadata = sa.MetaData()
    sa.Table("accountlink_events", metadata, sa.Column("id", sa.Integer))
    with pytest.raises(ConfigurationError, match="no other table"):
        link_outbox(metadata)


# -- without one ------------------------------------------------------------------------------------------------------


async def test_without_an_outbox_nothing_is_sent_for_it(engine: AsyncEngine, database: Database) -> None:
    """A linker without an outbox sends as many statements as ever, and none of them is about events."""
    links = TOLD["exclusive-soft-ledger"](database.kind)
    await links.create(engine)
    counts = []
    for options in ({"outbox": None}, {}):
        case = Case(links, engine, options=options)
        await case.link(1, repr(options))  # builds what is built once
        counted = Counted(engine)
        link_id = await case.link(1)
        token = await case.claim(2)
        await case.transfer(token, 2)
        await case.linker.unlink(engine, user_id=case.user(2), link_id=link_id)
        sa.event.remove(engine.sync_engine, "before_cursor_execute", counted._note)
        counts.append(len(counted.seen))
        events = [statement for statement in counted.seen if "accountlink_events" in statement]
        assert bool(events) is (not options)
        await run_sql(engine, "DELETE FROM connections")
    plain, with_outbox = counts
    assert plain + (0 if database.is_postgresql else 4) == with_outbox


def test_a_statement_without_an_outbox_has_no_part_for_it() -> None:
    """The arms of a link answer directly, as they did before there was an outbox."""
    statements = Statements(TABLES["mixin-exclusive-soft"]("any").mapping)
    assert isinstance(statements.arms(Shape()), sa.CompoundSelect)
    assert isinstance(statements.probe_and_tell(Shape()), sa.Insert)
    assert isinstance(Statements(TABLES["core-table"]("any").mapping).delete_and_raise(bounded=False), sa.Delete)


async def test_events_need_an_outbox(engine: AsyncEngine) -> None:
    """A call for events without an outbox raises, and says what to pass."""
    linker = make_tables(EXCLUSIVE).linker()
    with pytest.raises(ConfigurationError, match=r"outbox=link_outbox\(Base\.metadata\)"):
        linker.events(engine)


async def test_events_need_an_engine(engine: AsyncEngine) -> None:
    """Each delivery has its own transaction: a session or connection is refused before any SQL."""
    tables = make_tables(EXCLUSIVE)
    linker = tables.linker(outbox=link_outbox(tables.metadata))
    async with AsyncSession(engine) as session, engine.connect() as connection:
        for bind in (session, connection, "engine"):
            with pytest.raises(ConfigurationError, match="AsyncEngine"):
                linker.events(bind)  # type: ignore[arg-type]  # that is the point
    for wrong in ({"poll": 5}, {"lease": None}, {"lease": 5.0}):
        with pytest.raises(ConfigurationError, match="timedelta"):
            linker.events(engine, **wrong)


def test_outboxed_tables_are_what_they_say(kind: str) -> None:
    """Each table of these tests has its outbox on its own metadata."""
    for make in TOLD.values():
        links = make(kind)
        assert isinstance(links, Outboxed)
        assert links.metadata.tables["accountlink_events"] is links.linker(secrets=SECRETS)._store.outbox
