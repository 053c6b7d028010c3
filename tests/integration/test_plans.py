"""Plans: with many rows in the tables, no statement of a call reads more than a handful, whatever PostgreSQL knows.

Each statement is explained, with ANALYZE, in a savepoint of its own before it runs. What counts is how many rows its
plan really read. A table that was never analysed is the hard case: the server guesses there, and a guess can make it
sort everything for one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, EventType, ShareGrants, grants_table, link_outbox
from tests.support.claims import Case
from tests.support.databases import create, run_sql
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables, tokens
from tests.support.shares import HOUR
from tests.support.told import TOLD
from tests.support.vaulted import Vaulted

pytestmark = pytest.mark.parametrize("kind", ["asyncpg"])
KNOWN = pytest.mark.parametrize("known", ["empty", "never analysed", "analysed", "analysed when empty"])
MANY = 20_000
FEW = 400
"""Rows that a plan may read of tables that have many: those of one user, or of one batch."""
TABLES = ["mixin-exclusive", "mixin-per-user-soft", "mixin-email", "exclusive-soft-ledger"]
CASES = [(name, known) for name in TABLES for known in ("never analysed", "analysed")]
CASES += [("mixin-exclusive-soft", known) for known in ("empty", "never analysed", "analysed", "analysed when empty")]
LINKS = """
    INSERT INTO connections ({columns})
    SELECT {values} FROM generate_series(1, {many}) AS n
"""
COLUMNS = {
    "user_id": "100000 + n / 4",
    "provider": "(ARRAY['google', 'github', 'acme'])[1 + n % 3]",
    "account_id": "'filled-' || n",
    "email_key": "'filled-' || n || '@example.com'",
    "deleted_at": "CASE WHEN n % 3 = 0 THEN now() END",
    "version": "1",
    "score": "7",
}
EVENTS = f"""
    INSERT INTO accountlink_events (occurred_at, type, user_id, provider, link_id, data, table_name)
    SELECT now(), CASE n % 2 WHEN 0 THEN 'updated' ELSE 'grant_issued' END, '100001', 'google', n::text,
           '{{"grant_id": "c7d1a4e5-6bd3-4f36-9a54-0a6f86ad3c6c"}}',
           CASE n % 2 WHEN 0 THEN 'connections' ELSE 'accountlink_grants' END
      FROM generate_series(1, {2 * MANY}) AS n
"""  # no value of anybody's
EPOCHS = f"""
    INSERT INTO accountlink_transfer_ledger (table_name, link_id, epoch)
    SELECT 'connections', n::text, 1 FROM generate_series(1, {MANY}) AS n
"""  # as above
GRANTS = f"""
    INSERT INTO accountlink_grants (id, grantor_id, grantee_id, token_hash, expires_at, active, created_at)
    SELECT gen_random_uuid(), 100000 + n / 4, CASE WHEN n % 2 = 0 THEN 200000 + n / 4 END, md5(n::text),
           now() + interval '1 hour', n % 5 > 0, now()
      FROM generate_series(1, {MANY}) AS n
"""  # as above

MANY_PENDING = 100_000
PENDING = f"""
    INSERT INTO accountlink_pending_credentials (table_name, user_id, provider, account_id, access_token, kept_until)
    SELECT 'connections', n::text, 'google', 'filled-' || n, repeat('e', 230),
           timestamptz '2026-01-01 00:00:00Z' + CASE WHEN n <= {{over}} THEN -interval '1 s' ELSE interval '1 d' END
      FROM generate_series(1, {MANY_PENDING}) AS n
"""  # as above


class Plans:
    """Explains whatever an engine is about to run, and keeps what it read."""

    def __init__(self) -> None:
        self.read: list[tuple[float, str, Any]] = []
        self._busy = False

    def before(self, connection: sa.Connection, *executed: Any) -> None:
        """Take SQLAlchemy's word that a statement is about to run."""
        _, statement, parameters, *_ = executed
        word = statement.split(maxsplit=1)[0]
        if self._busy or word not in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            return
        self._busy = True
        try:
            nested = connection.begin_nested()
            explain = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            plan = explain.scalar_one()[0]["Plan"]
            nested.rollback()
        finally:
            self._busy = False
        self.read.append((rows_read(plan), statement, plan))

    def assert_few(self) -> None:
        """No statement read many rows."""
        assert self.read
        slow = [(read, statement, shape(plan)) for read, statement, plan in self.read if read > FEW]
        assert [] == slow


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def rows_read(plan: dict[str, Any]) -> float:
    """The rows that the scans of a plan read, those among them that a filter threw away."""
    total = 0.0
    for node in nodes(plan):
        if "Relation Name" in node and "Scan" in node["Node Type"]:
            left_out = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
            total += (node["Actual Rows"] + left_out) * node["Actual Loops"]
    return total


def shape(plan: dict[str, Any]) -> list[str]:
    """A plan in words, for a failure."""
    return [f"{node['Node Type']} {node.get('Index Name') or node.get('Relation Name', '')}" for node in nodes(plan)]


@contextmanager
def explained(engine: AsyncEngine) -> Iterator[Plans]:
    """Explain what runs on an engine."""
    plans = Plans()
    sa.event.listen(engine.sync_engine, "before_cursor_execute", plans.before)
    yield plans
    sa.event.remove(engine.sync_engine, "before_cursor_execute", plans.before)


async def filled(engine: AsyncEngine, metadata: sa.MetaData, known: str) -> None:
    """Make the tables, with many rows of others in them, and let the server know of them what the case says."""
    await create(engine, metadata)
    if known == "analysed when empty":
        await run_sql(engine, "ANALYZE")
    if known == "empty":
        return
    columns = {name: value for name, value in COLUMNS.items() if name in metadata.tables["connections"].columns}
    links = LINKS.format(columns=", ".join(columns), values=", ".join(columns.values()), many=MANY)
    await run_sql(engine, links)
    if "accountlink_events" in metadata.tables:
        await run_sql(engine, EVENTS)
    if "accountlink_transfer_ledger" in metadata.tables:
        await run_sql(engine, EPOCHS)
    if "accountlink_grants" in metadata.tables:
        await run_sql(engine, GRANTS)
    if known == "analysed":
        await run_sql(engine, "ANALYZE")


@pytest.mark.parametrize(("table", "known"), CASES)
async def test_the_statements_of_links_follow_indexes(engine: AsyncEngine, kind: str, table: str, known: str) -> None:
    """Link in each arm, unlink, restore, transfer, and every reading; with a ledger and an outbox beside the table."""
    links = TOLD[table](kind)
    await filled(engine, links.metadata, known)
    case = Case(links, engine)
    with explained(engine) as plans:
        for _ in range(2):
            await all_of(case, engine)
    plans.assert_few()


async def all_of(case: Case, engine: AsyncEngine) -> None:
    """Every call of a linker, in one transaction, which is rolled back."""
    linker, user = case.linker, case.user
    async with engine.connect() as bind:
        first: Any = await linker.link(bind, user_id=user(1), identity=identity(), credentials=tokens("new"))
        link_id = first.account.id
        await linker.link(bind, user_id=user(1), identity=identity())
        second: Any = await linker.link(bind, user_id=user(2), identity=identity())
        await linker.accounts(bind, user_id=user(1))
        await linker.accounts(bind, user_id=user(1), provider="acme")
        await linker.account(bind, user_id=user(1), link_id=link_id)
        owner = user(1)
        if hasattr(second, "transfer_token"):
            await linker.find_owner(bind, provider="acme", account_id="sub-1")
            await linker.transfer(bind, second.transfer_token, user_id=user(2))
            owner = user(2)
        await linker.unlink(bind, user_id=owner, link_id=link_id)
        await linker.link(bind, user_id=owner, identity=identity())


@KNOWN
async def test_the_statements_of_grants_follow_indexes(engine: AsyncEngine, known: str) -> None:
    """Issue, redeem, revoke and every reading of grants, about links and with an outbox."""
    tables = make_tables(EXCLUSIVE_SOFT)
    grants = grants_table(tables.metadata, link_id=tables.Connection.id)
    outbox = link_outbox(tables.metadata)
    linker: AccountLinker[Any, Any] = tables.linker(outbox=outbox)
    shares = ShareGrants(grants, accounts=linker, outbox=outbox)
    await filled(engine, tables.metadata, known)
    with explained(engine) as plans:
        async with engine.connect() as bind:
            link: Any = await linker.link(bind, user_id=1, identity=identity())
            for uses in (1, 3):
                issued = await shares.issue(bind, grantor_id=1, link_id=link.account.id, expires_in=HOUR, max_uses=uses)
                await shares.redeem(bind, issued.token, grantee_id=2)
                await shares.redeem(bind, issued.token, grantee_id=2)
                await shares.active(bind, grantor_id=1)
                await shares.active(bind, grantee_id=2)
                await shares.active(bind, link_id=link.account.id)
                await shares.revoke(bind, grantor_id=1, token=issued.token)
                await shares.revoke(bind, grantor_id=1, grant_id=issued.id)
        async with aclosing(shares.batches(engine, size=100)) as batches:
            if known != "empty":
                batch = await anext(batches)
                assert {EventType.GRANT_ISSUED} == {event.type for event in batch.events}
    plans.assert_few()


@pytest.fixture
async def case(engine: AsyncEngine, kind: str, known: str) -> Case:
    """A table with an outbox, filled."""
    links = TOLD["mixin-exclusive-soft"](kind)
    await filled(engine, links.metadata, known)
    return Case(links, engine)


@KNOWN
async def test_a_claim_reads_what_it_takes(case: Case, engine: AsyncEngine, known: str) -> None:
    """One event, and a batch, are read from the index in its order, and no more than was asked for."""
    await case.link(1)
    with explained(engine) as plans:
        async with aclosing(case.linker.events(engine)) as deliveries:
            await (await anext(deliveries)).acknowledge()
        async with aclosing(case.linker.batches(engine, size=100)) as batches:
            if known != "empty":
                await (await anext(batches)).acknowledge()
    assert [] == [(read, shape(plan)) for read, _, plan in plans.read if read > 101]
    if known != "empty":
        assert [] == [shape(plan) for *_, plan in plans.read if any("Sort" in node for node in shape(plan))]


@pytest.mark.parametrize(
    ("known", "over"),
    [
        ("empty", 0),
        ("never analysed", 0),
        ("never analysed", 50),
        ("never analysed", MANY_PENDING),
        ("analysed", 0),
        ("analysed", MANY_PENDING),
        ("analysed when empty", MANY_PENDING),
    ],
)
async def test_a_table_of_kept_tokens_is_never_read_as_a_whole(engine: AsyncEngine, known: str, over: int) -> None:
    """A link reads the row of its claimant, and a hundred of those whose time is over, by their indexes.

    A link that meets no conflict has the parts that keep tokens in its statement, and reads nothing by them.
    """
    vaulted = Vaulted()
    await filled(engine, vaulted.tables.metadata, known)
    if known != "empty":
        await run_sql(engine, PENDING.format(over=over))
    if known == "analysed":
        await run_sql(engine, "ANALYZE accountlink_pending_credentials")
    linker, given = vaulted.linker, tokens(expires_at=None)
    async with engine.connect() as bind:
        with explained(engine) as no_conflict:
            link: Any = await linker.link(bind, user_id=1, identity=identity(), credentials=given)
            await linker.link(bind, user_id=1, identity=identity(), credentials=given)
            named = {"user_id": 1, "link_id": link.account.id}
            await linker.stored_credentials(bind, **named)
            await linker.stored_credentials(bind, user_id=1, provider="acme")
            await linker.replace_credentials(bind, **named, tokens=given, presented="refresh-1")
        with explained(engine) as conflict:
            await linker.link(bind, user_id=2, identity=identity(), credentials=given)
            claim: Any = await linker.link(bind, user_id=2, identity=identity(), credentials=given)
            await linker.transfer(bind, claim.transfer_token, user_id=2)
    no_conflict.assert_few()
    conflict.assert_few()
    assert [] == [of_pending(plan) for *_, plan in no_conflict.read if rows_of(PENDING_TABLE, plan)]
    if known != "empty":
        assert {"Index", "Tid"} == {node.split()[0] for *_, plan in conflict.read for node in of_pending(plan)}
        assert min(over, 100) == max(rows_of(PENDING_TABLE, plan, index="kept_until") for *_, plan in conflict.read)


PENDING_TABLE = "accountlink_pending_credentials"


def scans(table: str, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The scans of one table."""
    return [node for node in nodes(plan) if node.get("Relation Name") == table and "Scan" in node["Node Type"]]


def of_pending(plan: dict[str, Any]) -> list[str]:
    """The scans of pending credentials in words."""
    return [f"{node['Node Type']} {node.get('Index Name', '')}" for node in scans(PENDING_TABLE, plan)]


def rows_of(table: str, plan: dict[str, Any], *, index: str = "") -> float:
    """The rows that the scans of one table read, those by one index if it is given."""
    return sum(rows_read(node) for node in scans(table, plan) if index in node.get("Index Name", ""))
