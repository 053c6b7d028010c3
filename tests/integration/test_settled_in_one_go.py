"""Tables with three rows of one key, under each rule that can meet them: one run of what the doctor emits repairs all.

Among the rows are dead ones, and one whose refresh token only an older row has.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountMapping
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.script import sql_script
from tests.support.databases import Database, rows, run_sql
from tests.support.emitted import look, run_revision, run_script, run_statements, script_of
from tests.support.models import EXCLUSIVE_SOFT
from tests.support.schemas import SHAPES, Variation

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
MOMENT: Final = "'2026-01-{day:02d} 00:00:00.000000'"


def broken(name: str, shape: str, rule: str, *keys: str, **fields: Any) -> Variation:
    """A table that holds duplicates, and what the doctor finds in it beside them."""
    return Variation(name=name, shape=shape, rules=frozenset({rule, "duplicates"}), keys=keys, **fields)


USER, OWNER = "user_id, provider, account_id", "provider, account_id"
BROKEN: Final = [
    broken("no key", "per-user", "missing-key"),
    broken("no key", "per-user-soft", "missing-key"),
    broken("no key", "exclusive-flag", "missing-key"),
    broken("a unique refresh token", "per-user", "missing-key", "CREATE UNIQUE INDEX s ON links (refresh_token)"),
    broken("a unique refresh token among live rows", "exclusive-flag", "missing-key",
           "CREATE UNIQUE INDEX s ON links (refresh_token) WHERE is_active"),
    broken("a unique access token that takes no NULL", "exclusive-soft", "stale-unique",
           constraints=("CONSTRAINT s UNIQUE (access_token)",), columns={"access_token": "text NOT NULL"}),
    broken("a key per user that counts dead rows", "exclusive-soft", "key-counts-deleted",
           f"CREATE UNIQUE INDEX f ON links ({USER})"),
    broken("the flag in the key per user", "exclusive-flag", "key-counts-deleted",
           f"CREATE UNIQUE INDEX f ON links ({USER}, is_active)"),
    broken("the flag in the key per user, as a constraint", "exclusive-flag", "key-counts-deleted",
           constraints=(f"CONSTRAINT f UNIQUE ({USER}, is_active)",)),
    broken("the moment of the last change in the key", "exclusive-flag", "key-counts-deleted",
           f"CREATE UNIQUE INDEX f ON links ({OWNER}, updated_at)"),
    broken("deleted_at in the key", "per-user-soft", "key-enforces-nothing",
           f"CREATE UNIQUE INDEX k ON links ({USER}, deleted_at)"),
    broken("deleted_at in the key, as a constraint", "exclusive-soft", "key-enforces-nothing",
           constraints=(f"CONSTRAINT k UNIQUE ({OWNER}, deleted_at)",)),
    broken("deleted_at in the key per user", "exclusive-soft", "missing-key",
           f"CREATE UNIQUE INDEX k ON links ({USER}, deleted_at)"),
    broken("deleted_at in whole seconds in the key", "per-user-soft", "key-enforces-nothing",
           f"CREATE UNIQUE INDEX k ON links ({USER}, deleted_at)", columns={"deleted_at": "bigint"}),
    broken("the opposite condition", "per-user-soft", "wrong-predicate",
           f"CREATE UNIQUE INDEX k ON links ({USER}) WHERE deleted_at IS NOT NULL"),
    broken("the opposite flag", "exclusive-flag", "wrong-predicate",
           f"CREATE UNIQUE INDEX k ON links ({OWNER}) WHERE NOT is_active"),
    broken("a condition on the refresh token", "per-user", "wrong-predicate",
           f"CREATE UNIQUE INDEX k ON links ({USER}) WHERE refresh_token IS NOT NULL"),
    broken("an index that failed", "exclusive-soft", "invalid-index", only=POSTGRESQL),
    broken("a deferrable key per user", "exclusive", "deferrable-key",
           constraints=(f"CONSTRAINT d UNIQUE ({USER}) DEFERRABLE",), only=POSTGRESQL),
    broken("a key per user that ignores case", "exclusive-soft", "key-compares-differently",
           "CREATE UNIQUE INDEX k ON links (user_id, provider, lower(account_id)) WHERE deleted_at IS NULL"),
    broken("addresses out of normal form", "email", "key-compares-differently",
           "CREATE UNIQUE INDEX k ON links (user_id, provider, email)"),
    broken("addresses out of normal form in a key that counts dead rows", "email-soft", "key-compares-differently",
           "CREATE UNIQUE INDEX k ON links (user_id, provider, email)"),
    broken("unique addresses out of normal form", "email-soft", "stale-unique",
           "CREATE UNIQUE INDEX s ON links (email) WHERE deleted_at IS NULL"),
    broken("a short column", "per-user-soft", "narrow-column", columns={"account_id": "varchar(9) NOT NULL"},
           only=POSTGRESQL),
]  # fmt: skip
CASES: Final = [
    pytest.param(kind, variation, id=f"{kind}-{variation}")
    for variation in BROKEN
    for kind, dialect in (("sqlite", SQLITE), ("asyncpg", POSTGRESQL))
    if variation.only in (None, dialect)
]

# user, account, address, day, refresh token, dead
SEED: Final = [
    (1, "a", "ANN@example.org", 2, "rt-1", False),
    (1, "a", "Ann@example.org", 3, "rt-2", False),
    (1, "a", "ann@example.org", 9, None, False),
    (2, "a", "Ann@example.org", 4, "rt-3", False),
    (3, "a", "ANN@example.org", 5, "rt-4", False),
    (1, "a", "ann@example.org", 6, None, False),
    (1, "a", "ann@example.org", 1, None, True),
    (7, "b", "bob@example.org", 5, "rt-5", False),
    (7, "b", "bob@example.org", 4, None, True),
    (8, "c", "eve@example.org", 4, None, False),
]


def seeds(variation: Variation) -> list[str]:
    """One INSERT for each row; what the table does not hold is left out."""
    columns = {**SHAPES[variation.shape].columns, **variation.columns}
    whole = "bigint" in str(columns.get("deleted_at"))
    made = []
    for number, (user, account, address, day, token, dead) in enumerate(SEED, 1):
        if dead and not SHAPES[variation.shape].soft:
            continue
        moment = MOMENT.format(day=day)
        values: dict[str, object] = {
            "id": number,
            "user_id": user,
            "provider": "'google'",
            "account_id": f"'{account}'",
            "email": f"'{address}'",
            "access_token": f"'at-{number}'",
            "refresh_token": f"'{token}'" if token else "NULL",
            "updated_at": moment,
        }
        if dead:
            values |= {"is_active": "false"} if "is_active" in columns else {"deleted_at": day if whole else moment}
        made.append(f"INSERT INTO links ({', '.join(values)}) VALUES ({', '.join(map(str, values.values()))})")
    return made


async def fill(engine: AsyncEngine, variation: Variation) -> None:
    """Make the table, and as many of the rows as it lets in."""
    await run_sql(engine, *variation.statements(engine.dialect.name))
    if variation.suffix:
        await run_sql(engine, "CREATE TABLE part PARTITION OF links FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    for statement in seeds(variation):
        try:
            await run_sql(engine, statement)
        except sa.exc.IntegrityError:
            continue
    if "invalid-index" in variation.rules:
        async with engine.connect() as connection:
            alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(sa.exc.IntegrityError):
                await alone.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY half ON links (provider, account_id)")


class Row:
    """A row, and what it is a duplicate by."""

    def __init__(self, shape: str, row: sa.Row[Any]) -> None:
        found = row._mapping
        self.id, self.user_id, self.token = found["id"], found["user_id"], found["refresh_token"]
        self.dead = not found.get("is_active", True) or found.get("deleted_at") is not None
        self.deleted_at, self.email = found.get("deleted_at"), found["email"]
        self.age = (str(found["updated_at"]), self.id)
        owner = () if shape.startswith("exclusive") else (self.user_id,)
        self.key = (*owner, self.email.lower() if shape.startswith("email") else found["account_id"])


async def read(engine: AsyncEngine, variation: Variation) -> dict[int, Row]:
    async with engine.connect() as connection:
        made = [Row(variation.shape, row) for row in await connection.execute(sa.text("SELECT * FROM links"))]
    return {row.id: row for row in made}


def expected(before: dict[int, Row]) -> dict[int, str | None]:
    """The rows that stay alive, each with its refresh token, worked out in Python."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in before.values():
        if not row.dead:
            groups.setdefault(row.key, []).append(row)
    assert any(len(group) >= 3 for group in groups.values())
    stay = {}
    for group in groups.values():
        newest, *others = sorted(group, key=lambda row: row.age, reverse=True)
        tokens = [row.token for row in (newest, *others) if row.user_id == newest.user_id and row.token]
        stay[newest.id] = tokens[0] if tokens else None
    return stay


async def run(database: Database, engine: AsyncEngine, repair: Repair, way: str) -> None:
    if way == "script":
        await run_script(engine, sql_script(repair))
    else:
        await engine.dispose()
        await run_revision(database.url, repair)


WAYS: Final = pytest.mark.parametrize("way", ["script", "revision"])


@WAYS
@pytest.mark.parametrize(("kind", "variation"), CASES, indirect=["kind"])
async def test_three_rows_of_one_key_are_settled_in_one_go(
    database: Database, engine: AsyncEngine, variation: Variation, way: str
) -> None:
    """The newest lives with the newest token of its user, the dead stay dead, and a second look is clean."""
    await fill(engine, variation)
    before = await read(engine, variation)
    report = await look(engine, variation.mapping())
    assert variation.rules <= {finding.rule for finding in report.findings}
    assert () == report.repair.by_hand

    await run(database, engine, report.repair, way)
    again = await look(engine, variation.mapping())
    assert () == again.findings
    after = await read(engine, variation)
    assert expected(before) == {row.id: row.token for row in after.values() if not row.dead}
    assert {row.id for row in before.values() if row.dead} <= {row.id for row in after.values() if row.dead}
    if SHAPES[variation.shape].soft:
        assert before.keys() == after.keys()
    if "deleted_at" in SHAPES[variation.shape].columns:
        moments = [row.deleted_at for row in after.values() if row.dead and not before[row.id].dead]
        assert len(moments) == len(set(moments))


OCCUPIED: Final = """CREATE TABLE links (id {id}, user_id bigint NOT NULL, provider text NOT NULL,
    account_id text NOT NULL, access_token text NOT NULL UNIQUE, refresh_token text,
    updated_at {moment}, deleted_at {moment},
    active boolean GENERATED ALWAYS AS (deleted_at IS NULL) STORED,
    reason text NOT NULL DEFAULT 'none' CHECK (reason <> ''), version bigint NOT NULL DEFAULT 1,
    CHECK (deleted_at IS NULL OR refresh_token IS NULL), CHECK (deleted_at IS NULL OR deleted_at >= updated_at),
    UNIQUE (user_id, provider, account_id, active))"""
SQLITE_TRIGGER: Final = (
    "CREATE TRIGGER logged AFTER UPDATE ON links WHEN new.deleted_at IS NOT NULL BEGIN"
    " INSERT INTO log VALUES (new.id); END"
)
FUNCTION: Final = (
    "CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NEW; END $$"
)
CALLED: Final = (
    "CREATE TRIGGER logged AFTER UPDATE ON links FOR EACH ROW WHEN (NEW.deleted_at IS NOT NULL)"
    " EXECUTE FUNCTION logged()"
)
TRIGGER: Final = {"sqlite": (SQLITE_TRIGGER,), "postgresql": (FUNCTION, CALLED)}
TYPES: Final = {
    "sqlite": {"id": "INTEGER PRIMARY KEY", "moment": "DATETIME"},
    "postgresql": {"id": "bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "moment": "timestamptz"},
}


def occupied() -> AccountMapping[Any, Any]:
    """The mapping of a table in which much is computed, checked, unique and pointed at."""
    texts = ("provider", "account_id", "access_token", "reason")
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("refresh_token", sa.Text),
        sa.Column("updated_at", sa.DateTime(timezone=True)),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("active", sa.Boolean, sa.Computed("deleted_at IS NULL")),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    return AccountMapping(table, policy=EXCLUSIVE_SOFT, active=table.c.active)


@WAYS
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=True)
async def test_what_else_a_table_has_is_neither_broken_nor_lost(
    database: Database, engine: AsyncEngine, way: str
) -> None:
    """Computed columns, checks, a trigger, unique tokens and what points to a link come through, each row with it."""
    dialect = engine.dialect.name
    links = "INSERT INTO links (user_id, provider, account_id, access_token, refresh_token, updated_at, deleted_at)"
    await run_sql(
        engine,
        OCCUPIED.format(**TYPES[dialect]),
        "CREATE TABLE log (id bigint)",
        *TRIGGER[dialect],
        "CREATE TABLE notes (id bigint, link_id bigint NOT NULL REFERENCES links (id) ON DELETE CASCADE)",
        f"{links} VALUES (1, 'p', 'a', 'at-1', 'rt-1', '2026-01-09 00:00:00.000000', NULL)",
        f"{links} VALUES (2, 'p', 'a', 'at-2', 'rt-2', '2026-01-03 00:00:00.000000', NULL)",
        f"{links} VALUES (3, 'p', 'a', 'at-3', 'rt-3', '2026-01-02 00:00:00.000000', NULL)",
        f"{links} VALUES (2, 'p', 'a', 'at-4', NULL, '2026-01-01 00:00:00.000000', '2026-01-02 00:00:00.000000')",
        "INSERT INTO notes VALUES (1, 1), (2, 2), (3, 3), (4, 4)",
    )
    report = await look(engine, occupied())
    assert {"key-counts-deleted", "stale-unique", "duplicates"} >= {found.rule for found in report.findings} - {
        "missing-key"
    }
    await run(database, engine, report.repair, way)

    assert () == (await look(engine, occupied())).findings
    assert [(1, "rt-1")] == await rows(engine, "SELECT user_id, refresh_token FROM links WHERE deleted_at IS NULL")
    assert [(1, 1), (2, 2), (3, 3), (4, 4)] == await rows(engine, "SELECT * FROM notes ORDER BY id")
    assert [(2,), (3,)] == await rows(engine, "SELECT id FROM log ORDER BY id")
    assert ["none"] * 4 == [reason for (reason,) in await rows(engine, "SELECT reason FROM links")]


STOPPED: Final = [
    pytest.param(kind, variation, id=f"{kind}-{variation}")
    for variation in BROKEN
    if variation.name in ("the flag in the key per user", "deleted_at in the key, as a constraint")
    for kind in ("sqlite", "asyncpg")
]


@pytest.mark.parametrize(("kind", "variation"), STOPPED, indirect=["kind"])
async def test_a_migration_that_drops_a_key_early_may_stop_anywhere(engine: AsyncEngine, variation: Variation) -> None:
    """Stopped after each statement in turn, the next look writes the rest; a right key that stood stands."""
    await fill(engine, variation)
    before = await read(engine, variation)
    target = variation.mapping()
    script = script_of(await look(engine, target))
    for stop in range(1, len(script) + 1):
        await run_sql(engine, "DROP TABLE links")
        await fill(engine, variation)
        await run_statements(engine, script[:stop])
        await run_statements(engine, script_of(await look(engine, target)))
        assert () == (await look(engine, target)).findings, script[:stop]
        after = await read(engine, variation)
        assert expected(before) == {row.id: row.token for row in after.values() if not row.dead}
