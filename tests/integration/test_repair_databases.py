"""The emitted migrations on real databases: they run, they repair, and they change nothing else."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountMapping, LinkPolicy
from accountlink.doctor.examine import examine
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.revision import alembic_revision
from accountlink.doctor.repair.script import sql_script
from tests.support.databases import Database, create, rows, run_sql
from tests.support.effort import Effort
from tests.support.emitted import downgrade, look, run_script, run_statements, statements
from tests.support.models import EMAIL, EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER_SOFT
from tests.support.schemas import Variation

BOTH: Final = pytest.mark.parametrize("kind", ["asyncpg", "sqlite"])
POSTGRESQL: Final = pytest.mark.parametrize("kind", ["asyncpg"])
SQLITE: Final = pytest.mark.parametrize("kind", ["sqlite"])
WHEN: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)

SQUAWK_EXCLUDES: Final = {
    "prefer-robust-stmts": "it wants IF EXISTS and IF NOT EXISTS, under which a wrong name succeeds and does nothing; "
    "after a failure the doctor writes the rest anew",
    "ban-drop-constraint": "dropping the wrong constraint is the repair; the right key stands before",
    "changing-column-type": "varchar to text writes no row again; what else it costs, the step says",
    "renaming-object": "no query names an index; the model's own name keeps alembic check content",
}
"""The rules of squawk that emitted SQL breaks on purpose."""


class Row(NamedTuple):
    """A row of the table."""

    id: int
    user_id: int
    provider: str
    account_id: str | None
    email: str | None
    access_token: str | None
    refresh_token: str | None
    updated_at: Any
    deleted_at: Any
    reason: str | None
    version: int


def links(policy: LinkPolicy, *, soft: bool) -> AccountMapping[Any, Any]:
    """A table of links without any key, and how it is mapped."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=policy is EMAIL),
        sa.Column("email", sa.Text, nullable=policy is not EMAIL),
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("updated_at", sa.DateTime(timezone=True)),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    sa.Table(
        "events",
        table.metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("link_id", sa.ForeignKey("links.id", ondelete="SET NULL"), index=True),
    )
    marks: dict[str, Any] = {} if soft else {"deleted_at": None}
    return AccountMapping(table, policy=policy, **marks)


FILL: Final = """
    INSERT INTO links
    SELECT i, {user}, 'google', {account}, {email}, 'at-' || CAST(i AS text),
           CASE (i / 3) % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'rt-' || CAST(i AS text) END,
           CASE WHEN i % 11 = 0 THEN NULL ELSE {moment} END,
           CASE WHEN i % 7 = 0 THEN {moment} END, NULL, i % 3
      FROM {numbers}
"""
NUMBERS: Final = {
    "postgresql": "generate_series(1, {count}) AS s (i)",
    "sqlite": "(WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {count}) SELECT i FROM s)",
}
MOMENT: Final = {
    "postgresql": "timestamptz '2026-01-01 00:00:00Z' + (i * 7919 % 1009) * interval '1 minute'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', '2026-01-01', '+' || (i * 7919 % 1009) || ' minutes')",
}


async def fill(engine: AsyncEngine, count: int, *, user: str, account: str, email: str) -> None:
    """Make many rows by one statement."""
    dialect = engine.dialect.name
    parts = {"user": user, "account": account, "email": email, "moment": MOMENT[dialect]}
    filled = FILL.format(numbers=NUMBERS[dialect].format(count=count), **parts)
    await run_sql(engine, filled, "INSERT INTO events SELECT id, id FROM links")


async def read(engine: AsyncEngine) -> dict[int, Row]:
    return {row[0]: Row(*row) for row in await rows(engine, "SELECT * FROM links ORDER BY id")}


async def pointing(engine: AsyncEngine) -> dict[int, int | None]:
    return {row[0]: row[1] for row in await rows(engine, "SELECT id, link_id FROM events")}


def settled(
    before: dict[int, Row], key: Callable[[Row], tuple[object, ...]], *, soft: bool
) -> tuple[dict[int, int], dict[int, str]]:
    """Compute the expected result in Python: the losers of each keeper, and the tokens that keepers get."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in before.values():
        if not soft or row.deleted_at is None:
            groups[key(row)].append(row)
    losers: dict[int, int] = {}
    tokens: dict[int, str] = {}
    for group in groups.values():
        first, *rest = sorted(group, key=lambda row: (str(row.updated_at or ""), row.id), reverse=True)
        losers.update((row.id, first.id) for row in rest)
        mine = [row.refresh_token for row in rest if row.refresh_token and may_give(row, first)]
        if not first.refresh_token and mine:
            tokens[first.id] = mine[0]
    return losers, tokens


def may_give(loser: Row, keeper: Row) -> bool:
    """Whether a token may go from one row to the other."""
    return loser.user_id == keeper.user_id and loser.account_id in (None, keeper.account_id)


# A twentieth of the table's size are accounts in three rows each, of which one may be dead and one another user's; all
# other rows are alone.
SHARED: Final = "CASE WHEN i <= {many} THEN 'dup-' || CAST(i % {groups} AS text) ELSE 'acc-' || CAST(i AS text) END"
OWNER: Final = "CASE WHEN (i / 3) % 10 = 3 THEN i ELSE i % {groups} END"
SIZES: Final = {"postgresql": (20_000, 100_000), "sqlite": (10_000, 10_000)}
"""How many rows the table has in the default run, and in the stress run."""


async def damaged(engine: AsyncEngine, effort: Effort, *, email: str = "NULL", account: str = SHARED) -> None:
    """Fill the table so that a twentieth of its size are groups of duplicates."""
    count = SIZES[engine.dialect.name][effort.full]
    sizes = {"many": count // 20 * 3, "groups": count // 20}
    await fill(
        engine,
        count,
        user=OWNER.format(**sizes),
        account=account.format(**sizes),
        email=email.format(**sizes),
    )


async def repair(engine: AsyncEngine, mapping: AccountMapping[Any, Any]) -> Repair:
    """Run what the doctor emits, and see that it finds nothing any more."""
    report = await look(engine, mapping)
    assert {"duplicates", "missing-key"} <= {finding.rule for finding in report.findings}
    await run_script(engine, sql_script(report.repair))
    again = await look(engine, mapping)
    assert () == again.findings
    assert () == again.repair.steps
    return report.repair


@BOTH
async def test_of_several_owners_the_newest_stays_and_the_others_are_marked_dead(
    engine: AsyncEngine, effort: Effort
) -> None:
    """Settling touches duplicates alone, keeps refresh tokens of the same user, and never hands one to another."""
    mapping = links(EXCLUSIVE_SOFT, soft=True)
    await create(engine, mapping.table.metadata)
    await damaged(engine, effort)
    before = await read(engine)
    losers, tokens = settled(before, lambda row: (row.provider, row.account_id), soft=True)
    assert len(before) // 20 == len({*losers.values()})
    assert len(tokens) > 100

    done = await repair(engine, mapping)

    after = await read(engine)
    assert before.keys() == after.keys()
    untouched = before.keys() - losers.keys() - tokens.keys()
    assert {key: before[key] for key in untouched} == {key: after[key] for key in untouched}
    assert {key: before[key]._replace(refresh_token=token) for key, token in tokens.items()} == {
        key: after[key] for key in tokens
    }
    for key in losers:
        old, new = before[key], after[key]
        gone = old._replace(access_token=None, refresh_token=None, reason="duplicate", version=old.version + 1)
        assert gone == new._replace(deleted_at=None, updated_at=old.updated_at)
        assert new.deleted_at is not None
        assert new.deleted_at == new.updated_at
    mine = {key: keeper for key, keeper in losers.items() if before[key].user_id == before[keeper].user_id}
    assert {key: mine.get(key, key) for key in before} == await pointing(engine)
    assert any("USERS LOSE A LINK HERE" in step.why for step in done.steps)


@BOTH
async def test_of_several_owners_the_newest_stays_and_the_others_are_deleted(
    engine: AsyncEngine, effort: Effort
) -> None:
    """Under Removal.DELETE the others go; what points to them follows the keeper where both are one user's."""
    mapping = links(EXCLUSIVE, soft=False)
    await create(engine, mapping.table.metadata)
    await damaged(engine, effort)
    before = await read(engine)
    losers, tokens = settled(before, lambda row: (row.provider, row.account_id), soft=False)

    done = await repair(engine, mapping)

    expected = {key: row for key, row in before.items() if key not in losers}
    expected |= {key: before[key]._replace(refresh_token=token) for key, token in tokens.items()}
    assert expected == await read(engine)
    followed: dict[int, int | None] = {key: key for key in expected}
    for key, keeper in losers.items():
        followed[key] = keeper if before[key].user_id == before[keeper].user_id else None
    assert followed == await pointing(engine)
    assert any("events (ON DELETE SET NULL)" in step.why for step in done.steps)


@BOTH
async def test_addresses_are_lowered_and_tokens_of_another_account_stay_where_they_are(
    engine: AsyncEngine, effort: Effort
) -> None:
    """Under an e-mail key spellings meet, odd addresses are left alone, and tokens pass between like accounts only."""
    mapping = links(EMAIL, soft=False)
    await create(engine, mapping.table.metadata)
    spelled = (
        "CASE WHEN i <= {many} THEN CASE i % 3 WHEN 0 THEN 'dup-' WHEN 1 THEN 'Dup-' ELSE 'DUP-' END"
        " || CAST(i % {groups} AS text) || '@example.org' ELSE 'Someone-' || CAST(i AS text) || '@example.org' END"
    )
    account = "CASE i % 3 WHEN 0 THEN NULL ELSE 'account-' || CAST((i / 9) % 2 AS text) END"
    await damaged(engine, effort, email=spelled, account=account)
    before = await read(engine)
    losers, tokens = settled(before, lambda row: (row.user_id, row.provider, str(row.email).lower()), soft=False)
    foreign = {key for key in losers if before[key].account_id not in (None, before[losers[key]].account_id)}
    assert len(tokens) > 20
    assert len(foreign) > 100

    await repair(engine, mapping)

    expected = {key: row for key, row in before.items() if key not in losers}
    expected |= {key: before[key]._replace(refresh_token=token) for key, token in tokens.items()}
    lowered = {key: row._replace(email=str(row.email).lower()) for key, row in expected.items()}
    assert lowered == await read(engine)


@BOTH
async def test_an_odd_address_is_left_to_people(engine: AsyncEngine) -> None:
    """An address that lower() does not normalise is not written, and the migration says what to do."""
    mapping = links(EMAIL, soft=False)
    await create(engine, mapping.table.metadata)
    await fill(engine, 2, user="i", account="NULL", email="CASE i WHEN 1 THEN 'Straße@Example.ORG' ELSE 'A@b.c' END")
    report = await look(engine, mapping)
    await run_script(engine, sql_script(report.repair))
    assert ["Straße@Example.ORG", "a@b.c"] == [row.email for row in (await read(engine)).values()]
    assert ["normalize_email" in text and "docs/email-keys.md" in text for text in report.repair.by_hand] == [True]


@BOTH
async def test_ids_that_repeat_are_left_to_people(engine: AsyncEngine) -> None:
    """No row is settled by a key that says nothing of which one is right, and no index is tried that must fail."""
    mapping = links(EXCLUSIVE, soft=False)
    columns = ", ".join(f"{c.name} {c.type.compile(engine.dialect)}" for c in mapping.table.columns)
    await run_sql(engine, f"CREATE TABLE links ({columns}, UNIQUE (provider, account_id))")
    await run_sql(engine, "INSERT INTO links (id, user_id, provider, account_id, version) VALUES (1, 1, 'p', 'a', 1)")
    await run_sql(engine, "INSERT INTO links (id, user_id, provider, account_id, version) VALUES (1, 2, 'p', 'b', 1)")
    report = await look(engine, mapping)
    assert [] == [step.sql for step in report.repair.steps if "INDEX" in step.sql]
    assert any("1 values of (id) are in several rows" in text for text in report.repair.by_hand)
    await run_script(engine, sql_script(report.repair))
    assert [(2,)] == await rows(engine, "SELECT count(*) FROM links")


NO_ID_KEY: Final = {"id": "bigint NOT NULL"}
LINKED: Final = "INSERT INTO links (id, user_id, provider, account_id) VALUES {}"
ALL_LINKS: Final = "SELECT id, user_id, provider, account_id FROM links ORDER BY 1, 2, 4"


@BOTH
@pytest.mark.parametrize("shape", ["exclusive", "exclusive-soft"])
async def test_no_link_goes_because_another_has_its_id(engine: AsyncEngine, shape: str) -> None:
    """Where nothing makes ids unique, none is settled by: user 7's link shares one with a duplicate."""
    linked = LINKED.format("(1, 1, 'g', 'a'), (2, 1, 'g', 'a'), (1, 7, 'g', 'c')")
    variation = Variation(name="", shape=shape, columns=NO_ID_KEY, keys=(linked,))
    await run_sql(engine, *variation.statements(engine.dialect.name))
    before = await rows(engine, "SELECT * FROM links ORDER BY user_id, id")
    report = await look(engine, variation.mapping())
    await run_script(engine, sql_script(report.repair))
    assert before == await rows(engine, "SELECT * FROM links ORDER BY user_id, id")


@BOTH
async def test_duplicates_are_settled_once_their_ids_are_unique(engine: AsyncEngine) -> None:
    """The first migration makes the key of the id, the second settles by it."""
    linked = LINKED.format("(1, 1, 'g', 'a'), (2, 1, 'g', 'a'), (3, 7, 'g', 'c')")
    variation = Variation(name="", shape="exclusive", columns=NO_ID_KEY, keys=(linked,))
    await run_sql(engine, *variation.statements(engine.dialect.name))
    for left in (3, 2):
        await run_script(engine, sql_script((await look(engine, variation.mapping())).repair))
        assert [(left,)] == await rows(engine, "SELECT count(*) FROM links")
    assert () == (await look(engine, variation.mapping())).findings


@BOTH
async def test_links_of_several_tenants_are_not_settled(engine: AsyncEngine) -> None:
    """An index that keeps them apart says that they may be no duplicates, whatever the policy knows."""
    variation = Variation(
        name="",
        shape="exclusive",
        columns={"tenant_id": "bigint NOT NULL DEFAULT 1"},
        keys=(
            "CREATE UNIQUE INDEX k ON links (tenant_id, provider, account_id)",
            LINKED.format("(1, 1, 'g', 'a')"),
            "INSERT INTO links (id, user_id, provider, account_id, tenant_id) VALUES (2, 2, 'g', 'a', 2)",
        ),
    )
    await run_sql(engine, *variation.statements(engine.dialect.name))
    report = await look(engine, variation.mapping())
    assert () == report.repair.steps
    assert 1 == sum("apart by tenant_id" in text for text in report.repair.by_hand)


@BOTH
async def test_of_ids_that_do_not_rise_none_is_the_newest(engine: AsyncEngine) -> None:
    """Without a mapped time the newest of several rows is not known."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.Text, primary_key=True, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
    )
    await create(engine, table.metadata)
    await run_sql(engine, LINKED.format("('z', 1, 'g', 'a'), ('b', 1, 'g', 'a')"))
    report = await look(engine, AccountMapping(table, policy=EXCLUSIVE))
    assert () == report.repair.steps
    assert 1 == sum("Map created_at or updated_at" in text for text in report.repair.by_hand)


@BOTH
async def test_credentials_that_take_no_null_are_wiped_as_unlink_does_it(engine: AsyncEngine) -> None:
    """The rows that stay keep theirs."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("access_token", sa.Text, nullable=False),
        sa.Column("refresh_token", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text, sa.CheckConstraint("reason IN ('user', 'admin')")),
    )
    await create(engine, table.metadata)
    for row in range(1, 4):
        await run_sql(
            engine,
            "INSERT INTO links (id, user_id, provider, account_id, access_token, refresh_token, expires_at)"
            f" VALUES ({row}, 1, 'g', 'a', 'at-{row}', 'rt-{row}', '2027-01-01 00:00:00.000000')",
        )
    await run_script(engine, sql_script((await look(engine, AccountMapping(table, policy=EXCLUSIVE_SOFT))).repair))
    async with engine.connect() as connection:
        found = (await connection.execute(sa.select(table).order_by(table.c.id))).all()
    assert [("", ""), ("", ""), ("at-3", "rt-3")] == [(row.access_token, row.refresh_token) for row in found]
    assert [1970, 1970, 2027] == [row.expires_at.year for row in found]
    assert [(True, None), (True, None), (False, None)] == [(row.deleted_at is not None, row.reason) for row in found]


@POSTGRESQL
async def test_an_array_of_scopes_that_takes_no_null_is_emptied(engine: AsyncEngine) -> None:
    """What unlink writes into a column is what the migration writes, whatever the column's type is."""
    scopes: sa.Column[Any] = sa.Column("scopes", ARRAY(sa.Text), nullable=False)
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        scopes,
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
    )
    await create(engine, table.metadata)
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    same = {"user_id": 1, "provider": "g", "account_id": "a", "scopes": ["read"], "expires_at": moment}
    async with engine.begin() as connection:
        await connection.execute(table.insert(), [{"id": 1} | same, {"id": 2} | same])
    script = statements(sql_script((await look(engine, AccountMapping(table, policy=EXCLUSIVE_SOFT))).repair))
    await run_statements(engine, ["SET TimeZone = 'Asia/Tokyo'", *script])
    async with engine.connect() as connection:
        found = (await connection.execute(sa.select(scopes, table.c.expires_at).order_by(table.c.id))).all()
    assert [([], datetime(1970, 1, 1, tzinfo=UTC)), (["read"], moment)] == [tuple(row) for row in found]


@POSTGRESQL
async def test_rows_that_the_doctor_cannot_see_are_settled(engine: AsyncEngine) -> None:
    """Under row-level security the doctor counts nothing; the table's owner can still run the steps."""
    linked = LINKED.format("(1, 1, 'acme', 'a'), (2, 2, 'acme', 'a')")
    security = ("ALTER TABLE links ENABLE ROW LEVEL SECURITY", "CREATE POLICY mine ON links USING (user_id = 1)")
    variation = Variation(name="", shape="exclusive", keys=(linked, *security))
    await run_sql(engine, *variation.statements("postgresql"))
    await run_sql(engine, "DROP ROLE IF EXISTS ordinary", "CREATE ROLE ordinary", "GRANT ALL ON links TO ordinary")

    def blind(connection: sa.Connection) -> Repair:
        connection.exec_driver_sql("SET LOCAL ROLE ordinary")
        return examine(connection, variation.mapping()).repair

    try:
        async with engine.connect() as connection:
            repair = await connection.run_sync(blind)
        await run_script(engine, sql_script(repair))
    finally:
        await run_sql(engine, "DROP OWNED BY ordinary", "DROP ROLE ordinary")
    assert [(2, 2, "acme", "a")] == await rows(engine, ALL_LINKS)
    assert () == (await look(engine, variation.mapping())).findings


# -- errors that are passed over --------------------------------------------------------------------------------------


async def run_on(engine: AsyncEngine, wanted: list[str]) -> list[str]:
    """Run statements as a client that passes errors over; return what failed."""
    failed = []
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        for statement in wanted:
            try:
                await driver.execute(statement)
            except Exception:  # noqa: BLE001  # whatever it is
                failed.append(statement)
        await connection.invalidate()
    return failed


STALE: Final = Variation(
    name="",
    shape="exclusive-soft",
    keys=("CREATE UNIQUE INDEX bare ON links (user_id, provider)",),
    constraints=("CONSTRAINT stale UNIQUE (provider, user_id)",),
)


@POSTGRESQL
async def test_no_key_goes_in_a_client_that_passes_errors_over(engine: AsyncEngine) -> None:
    """Duplicates come in before the new key is built: all that would take protection away fails after that."""
    await run_sql(engine, *STALE.statements("postgresql"))
    script = statements(sql_script((await look(engine, STALE.mapping())).repair))
    await run_sql(engine, LINKED.format("(1, 1, 'acme', 'a'), (2, 2, 'acme', 'a')"))
    failed = await run_on(engine, script)
    assert ["CREATE UNIQUE", "DROP INDEX", "ALTER TABLE"] == [" ".join(each.split()[:2]) for each in failed]
    names = "SELECT relname FROM pg_class WHERE relname IN ('bare', 'stale') ORDER BY 1"
    assert [("bare",), ("stale",)] == await rows(engine, names)

    second = sql_script((await look(engine, STALE.mapping())).repair)
    assert [] == await run_on(engine, statements(second))
    assert () == (await look(engine, STALE.mapping())).findings

    await run_sql(engine, LINKED.format("(3, 1, 'acme', 'b'), (4, 1, 'acme', 'c')"))
    failed = await run_on(engine, statements(downgrade(second)))
    assert ["ALTER TABLE", "CREATE UNIQUE", "DROP INDEX"] == [" ".join(each.split()[:2]) for each in failed]
    right = (
        "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid = to_regclass('uq_links_provider_account_id')"
    )
    assert [(1,)] == await rows(engine, right)


@SQLITE
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the program sqlite3")
async def test_the_program_of_sqlite_stops_at_the_first_error(database: Database, engine: AsyncEngine) -> None:
    """Even without -bail the script changes nothing after an error: no index, and no new table."""
    for made, mapping in ((STALE.statements("sqlite"), STALE.mapping()), (OWN_KEY, own_key())):
        gone = ("events", "log", "links", "uq_links_provider_account_id")
        await run_sql(engine, *(f"DROP TABLE IF EXISTS {name}" for name in gone), *made)
        script = sql_script((await look(engine, mapping)).repair)
        await run_sql(engine, "CREATE TABLE uq_links_provider_account_id (takes_the_name integer)")
        before = await schema(engine)
        await engine.dispose()
        path = str(sa.make_url(database.url).database)
        ended = await asyncio.to_thread(
            subprocess.run, ["sqlite3", path], input=script, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1
        assert "there is already a table named uq_links_provider_account_id" in ended.stderr
        assert before == await schema(engine)


# -- every statement --------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    "id bigint GENERATED BY DEFAULT AS IDENTITY CONSTRAINT links_pkey PRIMARY KEY, user_id bigint NOT NULL, "
    "provider text, account_id varchar(50) NOT NULL, refresh_token varchar(20), updated_at timestamp, "
    "deleted_at timestamptz, version bigint"
)
BROKEN: Final = (
    "CREATE SCHEMA app",
    'CREATE COLLATION app.ignoring FROM "C"',  # a server built without ICU cannot make one that ignores case
    "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'ignoring'",
    f"CREATE TABLE app.links ({COLUMNS}, note text COLLATE app.ignoring)",
    "ALTER TABLE app.links ADD CONSTRAINT uq_links UNIQUE (provider, account_id)",
    "ALTER TABLE app.links ADD CONSTRAINT later UNIQUE (user_id, note) DEFERRABLE",
    'CREATE UNIQUE INDEX "Stale ""one"": 100%" ON app.links (user_id, provider) WHERE version > 5',
    "INSERT INTO app.links (user_id, provider, account_id) VALUES (1, 'google', 'a'), (2, 'google', 'b')",
)


def broken() -> AccountMapping[Any, Any]:
    """The mapping of a table in which nearly everything is wrong; its model declares the right key by a taken name."""
    moment = sa.DateTime(timezone=True)
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("refresh_token", sa.Text),
        sa.Column("updated_at", sa.DateTime),
        sa.Column("deleted_at", moment),
        sa.Column("version", sa.BigInteger),
        schema="app",
    )
    live = table.c.deleted_at.is_(None)
    sa.Index("uq_links", "user_id", "provider", "account_id", unique=True, postgresql_where=live, _table=table)
    return AccountMapping(table, policy=PER_USER_SOFT)


@pytest.fixture
async def broken_schema(engine: AsyncEngine) -> AsyncIterator[None]:
    """The table in which nearly everything is wrong; the schema goes with the test."""
    await run_sql(engine, *BROKEN)
    yield
    await run_sql(engine, "DROP SCHEMA app CASCADE")


async def shape(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """Return the catalogue's indexes, constraints and columns, with the validity of indexes."""
    return await rows(
        engine,
        """
        SELECT c.relname, pg_get_indexdef(c.oid), CAST(i.indisvalid AS text) FROM pg_index i
          JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass('app.links')
        UNION ALL SELECT conname, pg_get_constraintdef(oid), '' FROM pg_constraint
         WHERE conrelid = to_regclass('app.links') AND contype <> 'n'
        UNION ALL SELECT attname, format_type(atttypid, atttypmod), CAST(attnotnull AS text) FROM pg_attribute
         WHERE attrelid = to_regclass('app.links') AND attnum > 0 ORDER BY 1, 2
        """,
    )


RIGHT_INDEX: Final = (
    "CREATE UNIQUE INDEX uq_links ON app.links USING btree (user_id, provider, account_id) WHERE (deleted_at IS NULL)"
)


@POSTGRESQL
@pytest.mark.usefixtures("broken_schema")
async def test_the_script_repairs_everything_and_its_downgrade_takes_it_back(engine: AsyncEngine) -> None:
    """Statement by statement up and down again, the table is what it was; up again, it is right."""
    mapping = broken()
    before, kept = await shape(engine), await rows(engine, "SELECT * FROM app.links")
    report = await look(engine, mapping)
    script = sql_script(report.repair)
    assert () == report.repair.by_hand

    await run_script(engine, script)
    assert () == (await look(engine, mapping)).findings
    assert ("uq_links", RIGHT_INDEX, "true") in await shape(engine)
    assert ("later", "UNIQUE (user_id, note)", "") in await shape(engine)

    await run_script(engine, downgrade(script))
    assert before == await shape(engine)
    assert kept == await rows(engine, "SELECT * FROM app.links")


@POSTGRESQL
@pytest.mark.usefixtures("broken_schema")
async def test_stopped_anywhere_the_next_look_writes_the_rest(engine: AsyncEngine) -> None:
    """After each statement in turn a new look emits what is left, no protection is lost, and the end is the same."""
    mapping = broken()
    whole = statements(sql_script((await look(engine, mapping)).repair))
    for end in range(1, len(whole)):
        await run_sql(engine, "DROP SCHEMA app CASCADE", *BROKEN)
        await run_statements(engine, whole[:end])
        assert any(_serves(row) for row in await shape(engine)), whole[:end]
        await run_script(engine, sql_script((await look(engine, mapping)).repair))
        assert () == (await look(engine, mapping)).findings, whole[:end]
        assert [(2,)] == await rows(engine, "SELECT count(*) FROM app.links")
        made = [row for row in await shape(engine) if str(row[1]).startswith("CREATE UNIQUE INDEX")]
        assert 3 == len(made), whole[:end]  # what was built for a swap is used by the next
        checks = [row for row in await shape(engine) if str(row[1]).startswith("CHECK")]
        validated = next(place for place, each in enumerate(whole) if "VALIDATE CONSTRAINT" in each)
        assert [] == checks or validated < end <= whole.index("COMMIT", validated)  # which is NOT NULL, too


def _serves(row: tuple[Any, ...]) -> bool:
    """Whether it is a valid index that keeps accounts apart: the old one is stronger than need be."""
    right = "(user_id, provider, account_id) WHERE (deleted_at IS NULL)"
    return row[2] == "true" and str(row[1]).endswith((right, "btree (provider, account_id)"))


@POSTGRESQL
@pytest.mark.parametrize("kind_of_key", ["UNIQUE NULLS NOT DISTINCT (id, email) INCLUDE (access_token)"])
async def test_a_constraint_that_is_made_again_has_all_that_it_had(engine: AsyncEngine, kind_of_key: str) -> None:
    """Columns that are only included stay, and what NULL counts as; also when the first attempt stops half-way."""
    added = f"ALTER TABLE links ADD CONSTRAINT later {kind_of_key} DEFERRABLE"
    variation = Variation(name="", shape="exclusive", keys=("CREATE UNIQUE INDEX k ON links {key}", added))
    defined = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'later'"
    for first in (0, 1):
        await run_sql(engine, "DROP TABLE IF EXISTS links", *variation.statements("postgresql"))
        for _ in range(first):
            script = statements(sql_script((await look(engine, variation.mapping())).repair))
            built = next(place for place, each in enumerate(script) if each.startswith("CREATE UNIQUE INDEX"))
            await run_statements(engine, script[: built + 1])
        await run_script(engine, sql_script((await look(engine, variation.mapping())).repair))
        assert () == (await look(engine, variation.mapping())).findings
        assert [(kind_of_key,)] == await rows(engine, defined)
        assert [(3,)] == await rows(engine, "SELECT count(*) FROM pg_index WHERE indrelid = to_regclass('links')")


@POSTGRESQL
async def test_a_view_keeps_a_column_and_no_key(engine: AsyncEngine) -> None:
    """The statement that it refuses is the last one."""
    variation = Variation(
        name="",
        shape="per-user",
        columns={"account_id": "varchar(9) NOT NULL", "email": "varchar(9)"},
        keys=(
            "CREATE UNIQUE INDEX stale ON links (user_id, provider)",
            "CREATE VIEW accounts AS SELECT account_id, email FROM links",
        ),
    )
    await run_sql(engine, *variation.statements("postgresql"))
    with pytest.raises(Exception, match="cannot alter type of a column used by a view"):
        await run_script(engine, sql_script((await look(engine, variation.mapping())).repair))
    left = (await look(engine, variation.mapping())).findings
    assert {"narrow-column"} == {finding.rule for finding in left}


@POSTGRESQL
async def test_a_key_that_waits_for_its_partitions_is_not_dropped(engine: AsyncEngine) -> None:
    """It was made ON ONLY the table; attaching the missing part is the repair, and the migration says so."""
    variation = Variation(
        name="",
        shape="exclusive",
        columns={"id": "bigint NOT NULL"},
        suffix=" PARTITION BY LIST (provider)",
        keys=(
            "CREATE TABLE links_acme PARTITION OF links FOR VALUES IN ('acme')",
            "CREATE UNIQUE INDEX k ON ONLY links {key}",
        ),
    )
    await run_sql(engine, *variation.statements("postgresql"))
    report = await look(engine, variation.mapping())
    assert "invalid-index" in {finding.rule for finding in report.findings}
    assert () == report.repair.steps
    assert 1 == sum("ALTER INDEX … ATTACH PARTITION" in text for text in report.repair.by_hand)
    await run_sql(
        engine,
        "CREATE UNIQUE INDEX k_acme ON links_acme (provider, account_id)",
        "ALTER INDEX k ATTACH PARTITION k_acme",
    )
    assert "invalid-index" not in {finding.rule for finding in (await look(engine, variation.mapping())).findings}


@POSTGRESQL
async def test_a_failed_build_is_cleared_away_first(engine: AsyncEngine) -> None:
    """Duplicates that come in between leave an invalid index; the next migration drops it and settles them."""
    mapping = links(EXCLUSIVE, soft=False)
    await create(engine, mapping.table.metadata)
    first = await look(engine, mapping)
    await fill(engine, 2, user="i", account="'same'", email="NULL")
    with pytest.raises(Exception, match="could not create unique index"):
        await run_script(engine, sql_script(first.repair))
    second = await look(engine, mapping)
    assert {"invalid-index", "duplicates"} <= {finding.rule for finding in second.findings}
    await run_script(engine, sql_script(second.repair))
    assert () == (await look(engine, mapping)).findings


@POSTGRESQL
@pytest.mark.usefixtures("broken_schema")
async def test_emitted_sql_passes_squawk(engine: AsyncEngine, tmp_path: Path) -> None:
    """Nothing is objected to but by rules excluded by name, each with its reason, and none of those is idle."""
    everything = sql_script((await look(engine, broken())).repair)
    await create(engine, links(EXCLUSIVE_SOFT, soft=True).table.metadata)
    await fill(engine, 20, user="i", account="'same'", email="NULL")
    settling = sql_script((await look(engine, links(EXCLUSIVE_SOFT, soft=True))).repair)
    assert "LOCK TABLE" in settling
    excluded = f"--exclude={','.join(SQUAWK_EXCLUDES)}"
    passed = squawk(tmp_path, everything, settling, options=[excluded])
    assert (0, "") == (passed.returncode, passed.stderr), passed.stdout
    plain = squawk(tmp_path, everything, settling, options=["--reporter=gcc"])
    assert set() == {rule for rule in SQUAWK_EXCLUDES if f" {rule} " not in plain.stdout}


def squawk(folder: Path, *scripts: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the linter on scripts; without its program the test fails."""
    files = [folder / f"{number}.sql" for number in range(len(scripts))]
    for file, script in zip(files, scripts, strict=True):
        file.write_text(script)
    program = Path(sysconfig.get_path("scripts")) / "squawk"
    return subprocess.run([program, "--pg-version=15.0", *options, *files], capture_output=True, text=True, check=False)


# -- Alembic ----------------------------------------------------------------------------------------------------------


ENV: Final = """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine

def run(connection):
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()

asyncio.run(main())
"""


async def migrate(folder: Path, database: Database, repair: Repair) -> Config:
    """Upgrade by the emitted revision, with the asynchronous env.py of Alembic's documentation."""
    config = Config(attributes={"configure_logger": False})
    config.set_main_option("script_location", str(folder))
    config.set_main_option("sqlalchemy.url", database.url)
    revision = alembic_revision(repair, revision="a1b2", down_revision=None, created=WHEN)
    await asyncio.to_thread(_write, folder, revision)
    await asyncio.to_thread(command.upgrade, config, "head")
    return config


def _write(folder: Path, revision: str) -> None:
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    (folder / "versions" / "a1b2_repair.py").write_text(revision)


@POSTGRESQL
@pytest.mark.usefixtures("broken_schema")
async def test_an_alembic_revision_upgrades_and_downgrades_on_asyncpg(
    database: Database, engine: AsyncEngine, tmp_path: Path
) -> None:
    """The revision repairs as the script does, and takes it back; names keep their colons and percent signs."""
    mapping = broken()
    before = await shape(engine)
    report = await look(engine, mapping)
    assert any('"Stale ""one"": 100%"' in step.sql for step in report.repair.steps)
    config = await migrate(tmp_path / "alembic", database, report.repair)
    assert () == (await look(engine, mapping)).findings
    await asyncio.to_thread(command.downgrade, config, "base")
    assert before == await shape(engine)


@POSTGRESQL
async def test_an_alembic_revision_settles_in_one_transaction(
    database: Database, engine: AsyncEngine, tmp_path: Path
) -> None:
    """The temporary list of duplicates lives as long as Alembic's transaction, and the key is built after it."""
    mapping = links(EXCLUSIVE_SOFT, soft=True)
    await create(engine, mapping.table.metadata)
    await fill(engine, 30, user="i", account="'same'", email="NULL")
    await migrate(tmp_path / "alembic", database, (await look(engine, mapping)).repair)
    assert () == (await look(engine, mapping)).findings
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM links WHERE deleted_at IS NULL")


# -- SQLite -----------------------------------------------------------------------------------------------------------

OWN_KEY: Final = (
    """CREATE TABLE links (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id bigint NOT NULL, provider text NOT NULL,
         account_id text NOT NULL, "no: 100%" text DEFAULT 'a;
         b', refresh_token text, updated_at datetime, deleted_at datetime, -- the mark
         version bigint, CONSTRAINT old UNIQUE (provider, account_id))""",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, link_id integer REFERENCES links (id) ON DELETE CASCADE)",
    "CREATE VIEW live AS SELECT * FROM links WHERE deleted_at IS NULL",
    "CREATE TABLE log (id integer)",
    "CREATE TRIGGER logged AFTER UPDATE ON links BEGIN INSERT INTO log VALUES (new.id); END",
    "CREATE INDEX by_user ON links (user_id)",
    "INSERT INTO links (id, user_id, provider, account_id) VALUES (1, 1, 'p', 'a'), (2, 2, 'p', 'b')",
    "INSERT INTO links (id, user_id, provider, account_id) VALUES (90, 1, 'p', 'c')",
    "DELETE FROM links WHERE id = 90",
    "INSERT INTO events VALUES (1, 1), (2, 2)",
)


def own_key() -> AccountMapping[Any, Any]:
    metadata = sa.MetaData()
    names = ("provider", "account_id", "refresh_token")
    table = sa.Table(
        "links",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=name == "refresh_token") for name in names),
        sa.Column("updated_at", sa.DateTime),
        sa.Column("deleted_at", sa.DateTime),
        sa.Column("version", sa.BigInteger),
    )
    return AccountMapping(table, policy=EXCLUSIVE_SOFT)


async def schema(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    query = """
        SELECT type, name, replace(sql, '"links"', 'links') FROM sqlite_master
         WHERE tbl_name <> 'alembic_version' ORDER BY 1, 2
    """
    return await rows(engine, query)


@SQLITE
@pytest.mark.parametrize("way", ["script", "alembic"])
async def test_a_key_in_the_tables_own_sql_goes_with_the_table_built_anew(
    database: Database, engine: AsyncEngine, tmp_path: Path, way: str
) -> None:
    """Rows, indexes, triggers, views, what points there and the next id stay; and it all comes back."""
    mapping = own_key()
    await run_sql(engine, *OWN_KEY)
    before, kept = await schema(engine), await rows(engine, "SELECT * FROM links")
    report = await look(engine, mapping)
    assert ["key-counts-deleted"] == [finding.rule for finding in report.findings]
    script = sql_script(report.repair)

    config = None
    if way == "script":
        await run_script(engine, script)
    else:
        config = await migrate(tmp_path / "alembic", database, report.repair)
    assert () == (await look(engine, mapping)).findings
    assert kept == await rows(engine, "SELECT * FROM links") == await rows(engine, "SELECT * FROM live")
    assert [(1, 1), (2, 2)] == await rows(engine, "SELECT * FROM events")
    await run_sql(engine, "UPDATE links SET version = 1 WHERE id = 2")
    assert [(2,)] == await rows(engine, "SELECT id FROM log")
    await run_sql(engine, "INSERT INTO links (user_id, provider, account_id) VALUES (3, 'p', 'd')")
    assert [(91,)] == await rows(engine, "SELECT max(id) FROM links")
    assert {"by_user", "logged", "live"} <= {row[1] for row in await schema(engine)}

    await engine.dispose()
    if config is None:
        await run_script(engine, downgrade(script))
    else:
        await asyncio.to_thread(command.downgrade, config, "base")
    assert before == await schema(engine)
    assert [(3,)] == await rows(engine, "SELECT count(*) FROM links")


@SQLITE
async def test_a_revision_that_fails_in_sqlite_changes_nothing(
    database: Database, engine: AsyncEngine, tmp_path: Path
) -> None:
    """Alembic has no transaction of its own for SQLite; the revision's own is rolled back."""
    await run_sql(engine, *OWN_KEY)
    repair = (await look(engine, own_key())).repair
    before = await schema(engine)
    again = [step for step in repair.steps if step.sql.startswith("CREATE UNIQUE INDEX")]
    steps = (*repair.steps[: repair.steps.index(again[0])], *again, *again)
    await engine.dispose()
    with pytest.raises(sa.exc.OperationalError, match="already exists"):
        await migrate(tmp_path / "alembic", database, replace(repair, steps=steps))
    assert before == await schema(engine)
