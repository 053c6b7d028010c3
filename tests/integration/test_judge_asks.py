"""How the judge asks the database: what that refuses stays undecided, nothing is left behind, and one query serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import diagnose
from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.judge.asking import judge
from accountlink.doctor.judge.uniqueness import Judgement, Verdict
from accountlink.doctor.subjects import subject_of
from tests.support.databases import Database, run_sql
from tests.support.schemas import Variation, mapping_of

RIGHT: Final = "CREATE UNIQUE INDEX k ON links {key}"
EVERY: Final = "(provider, account_id)"
postgresql = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=True)
on_postgresql = pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
on_sqlite = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


async def make(engine: AsyncEngine, *keys: str, shape: str = "exclusive-soft", **fields: Any) -> None:
    variation = Variation(name="judged", shape=shape, keys=(RIGHT, *keys), **fields)
    await run_sql(engine, *variation.statements(engine.dialect.name))


async def judged(engine: AsyncEngine, *before: str, shape: str = "exclusive-soft") -> dict[str, Judgement]:
    """Judge by one connection, which must answer afterwards as before."""

    def look(connection: sa.Connection) -> dict[str, Judgement]:
        for statement in before:
            connection.exec_driver_sql(statement)
        table = read_catalogue(connection, "links", schema=None).table
        assert table is not None
        found = judge(connection, subject_of(mapping_of(shape), schema=None), table)
        assert 0 == connection.exec_driver_sql("SELECT count(*) FROM links").scalar_one()
        return {judgement.index.name: judgement for judgement in found}

    async with engine.connect() as connection:
        return await connection.run_sync(look)


def enforces(judgement: Judgement) -> Verdict:
    """The verdict on the policy's key."""
    return next(verdict for need, verdict in judgement.enforces.items() if need.key)


FAILING: Final = {
    "a condition that fails for some rows": "(provider, account_id) WHERE 10 / (user_id - 2) > 0",
    "a cast that fails": "(provider, account_id) WHERE CAST(account_id AS integer) > 0",
    "a key that fails for some rows": "(provider, account_id, (10 / (user_id - 2)))",
}


class TestWhatTheServerRefuses:
    @postgresql
    @pytest.mark.parametrize("index", FAILING.values(), ids=FAILING)
    async def test_an_expression_that_fails_stays_undecided(self, engine: AsyncEngine, index: str) -> None:
        """It costs its own index the verdict, and neither the transaction nor another index."""
        await make(engine, f"CREATE UNIQUE INDEX x ON links {index}")
        found = await judged(engine)
        assert (Verdict.YES, Verdict.UNDECIDED) == (enforces(found["k"]), enforces(found["x"]))
        assert (None, True) == (found["x"].refuses, found["x"].undecided)

    @postgresql
    async def test_a_connection_that_commits_each_statement(self, database: Database, engine: AsyncEngine) -> None:
        """Without a transaction there is no savepoint, and what fails leaves nothing behind either."""
        await make(engine, f"CREATE UNIQUE INDEX x ON links {FAILING['a cast that fails']}")
        found = await judged(database.engine(isolation_level="AUTOCOMMIT"))
        assert (Verdict.YES, Verdict.UNDECIDED) == (enforces(found["k"]), enforces(found["x"]))

    @on_postgresql
    async def test_a_function_that_the_role_may_not_call(self, engine: AsyncEngine) -> None:
        """What the role may not ask stays undecided."""
        await make(
            engine,
            "CREATE FUNCTION mine(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END'",
            "CREATE UNIQUE INDEX x ON links (provider, account_id) WHERE mine(account_id)",
            "REVOKE EXECUTE ON FUNCTION mine FROM PUBLIC",
        )
        await run_sql(engine, "DROP ROLE IF EXISTS asker", "CREATE ROLE asker", "GRANT SELECT ON links TO asker")
        try:
            found = await judged(engine, "SET LOCAL ROLE asker")
        finally:
            await run_sql(engine, "DROP OWNED BY asker", "DROP ROLE asker")
        assert (Verdict.YES, Verdict.UNDECIDED) == (enforces(found["k"]), enforces(found["x"]))

    @on_postgresql
    async def test_a_function_that_takes_too_long(self, engine: AsyncEngine) -> None:
        """The bound on a statement ends the question, not the look."""
        await make(
            engine,
            "CREATE FUNCTION slow(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(60); RETURN true; END'",
            "CREATE UNIQUE INDEX x ON links (provider, account_id) WHERE slow(account_id)",
        )
        found = await judged(engine, "SET LOCAL statement_timeout = '300ms'")
        assert (Verdict.YES, Verdict.UNDECIDED) == (enforces(found["k"]), enforces(found["x"]))

    @on_postgresql
    async def test_a_function_that_writes_does_not(self, engine: AsyncEngine) -> None:
        """An index's function that claims to be IMMUTABLE and writes is refused in the doctor's transaction."""
        await make(
            engine,
            "CREATE TABLE trace (seen text)",
            "CREATE FUNCTION note(text) RETURNS void LANGUAGE sql AS 'INSERT INTO trace VALUES ($1)'",
            "CREATE FUNCTION sly(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM note($1); RETURN true; END'",
            "CREATE UNIQUE INDEX x ON links (provider, account_id) WHERE sly(account_id)",
        )
        assert ["stale-unique"] == [finding.rule for finding in await diagnose(engine, mapping_of("exclusive-soft"))]
        async with engine.connect() as connection:
            assert 0 == (await connection.exec_driver_sql("SELECT count(*) FROM trace")).scalar_one()


TYPES: Final[dict[str, tuple[dict[str, Any], tuple[str, ...], str]]] = {
    "a domain that takes no NULL and no model value": (
        {"provider": "slug", "note": "slug"},
        ("CREATE DOMAIN slug AS varchar(30) NOT NULL CHECK (VALUE ~ '^[a-z]{{4,}}$')",),
        "(provider, account_id) WHERE deleted_at IS NULL AND provider IS NOT NULL",
    ),
    "a column of one character": (
        {"account_id": "varchar(1) NOT NULL"},
        (),
        "(provider, account_id) WHERE deleted_at IS NULL AND account_id <> 'xyz' OR deleted_at IS NULL",
    ),
    "a column of a type without known values": (
        {"tags": "text[]", "place": "point", "extra": "jsonb NOT NULL"},
        (),
        "(provider, account_id) WHERE deleted_at IS NULL AND extra IS NOT NULL",
    ),
    "a generated column": (
        {"folded": "text GENERATED ALWAYS AS (upper(provider)) STORED NOT NULL"},
        (),
        "(provider, account_id, folded) WHERE deleted_at IS NULL",
    ),
    "a mark of dead rows that is a number": (
        {"deleted_at": "bigint"},
        (),
        "(provider, account_id) WHERE deleted_at IS NULL",
    ),
    "a mark of dead rows that is a day": (
        {"deleted_at": "date"},
        (),
        "(provider, account_id) WHERE deleted_at IS NULL",
    ),
    "a function of another schema": (
        {},
        (
            "DROP SCHEMA IF EXISTS elsewhere CASCADE",
            "CREATE SCHEMA elsewhere",
            "CREATE FUNCTION elsewhere.lower(text) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1'",
        ),
        "(provider, account_id) WHERE deleted_at IS NULL AND (account_id = elsewhere.lower(account_id) OR true)",
    ),
    "names and texts with signs of the drivers": (
        {'"a:b %(x)s %"': "text"},
        (),
        "(provider, account_id) WHERE deleted_at IS NULL AND (\"a:b %(x)s %\" IS DISTINCT FROM ':rows0 %s' OR true)",
    ),
    "a key that compares texts by their bytes": (
        {"account_id": "text NOT NULL"},
        (),
        "(provider, account_id text_pattern_ops) WHERE deleted_at IS NULL",
    ),
}


@on_postgresql
@pytest.mark.parametrize("case", TYPES)
async def test_a_right_key_whatever_its_columns_are(engine: AsyncEngine, case: str) -> None:
    """Domains, lengths, arrays, generated columns and odd names keep no verdict from being reached."""
    columns, before, index = TYPES[case]
    key = f"CREATE UNIQUE INDEX k ON links {index.replace('{', '{{').replace('}', '}}').replace('{{{{', '{{')}"
    variation = Variation(name=case, shape="exclusive-soft", keys=(key,), columns=columns)
    statements = [statement.replace("{{", "{").replace("}}", "}") for statement in before]
    await run_sql(engine, *statements, *variation.statements("postgresql"))
    wanted = Verdict.UNDECIDED if "another schema" in case else Verdict.YES
    assert wanted is enforces((await judged(engine))["k"])


@on_postgresql
async def test_what_an_exclusion_constraint_takes_for_equal(engine: AsyncEngine) -> None:
    """An exclusion constraint that no B-tree stands behind is judged by its operator."""
    await make(engine, constraints=("CONSTRAINT one EXCLUDE USING hash (account_id WITH =)",))
    found = await judged(engine)
    assert ("stale-unique", False) == (found["one"].rule, found["one"].undecided)


async def test_questions_do_not_grow_with_the_indexes(engine: AsyncEngine) -> None:
    """A table with ten unique indexes is asked about in as many statements as one with its key alone."""
    counts = []
    for more in (0, 9):
        keys = [f"CREATE UNIQUE INDEX x{n} ON links (user_id, id, (lower(email))) WHERE id > {n}" for n in range(more)]
        await make(engine, *keys)
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any, seen: list[str] = statements) -> None:
            seen.append(statement)

        sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
        await diagnose(engine, mapping_of("exclusive-soft"))
        sa.event.remove(engine.sync_engine, "before_cursor_execute", note)
        await run_sql(engine, "DROP TABLE links")
        counts.append(len(statements))
    assert counts[0] == counts[1]


class TestWhatSQLiteDoesNotHave:
    @pytest.fixture
    def engine(self, database: Database) -> AsyncEngine:
        """An engine whose connections have functions and a collation of the application's own."""
        made = create_async_engine(database.url)
        database._engines.append(made)

        @sa.event.listens_for(made.sync_engine, "connect")
        def own(connection: Any, _: object) -> None:
            connection.create_function("folded", 1, str.lower, deterministic=True)
            connection.run_async(_collate)

        return made

    @on_sqlite
    async def test_a_function_of_the_application_stays_undecided(self, engine: AsyncEngine) -> None:
        """Its name is known, not what it does: what needs it is undecided, and all else is as ever."""
        await make(
            engine,
            "CREATE UNIQUE INDEX x ON links (provider, account_id) WHERE folded(account_id) <> ''",
            constraints=("CHECK (folded(provider) = provider)",),
        )
        found = await judged(engine)
        assert (Verdict.YES, Verdict.UNDECIDED) == (enforces(found["k"]), enforces(found["x"]))
        assert (None, True) == (found["x"].refuses, found["x"].undecided)

    @on_sqlite
    async def test_a_collation_of_the_application_stays_undecided(self, engine: AsyncEngine) -> None:
        """Equal texts are equal under every collation; which others are too is undecided."""
        await make(
            engine,
            "CREATE UNIQUE INDEX x ON links (provider, account_id COLLATE odd) WHERE deleted_at IS NULL",
            "CREATE UNIQUE INDEX y ON links (provider, account_id) WHERE note = 'a'",
            columns={"note": "text COLLATE odd"},
        )
        found = await judged(engine)
        assert [Verdict.YES, Verdict.YES, Verdict.UNDECIDED] == [enforces(found[name]) for name in "kxy"]
        assert (None, True) == (found["x"].refuses, found["x"].undecided)


async def _collate(connection: Any) -> None:
    """Make a collation on aiosqlite's own thread, which has no method for it."""
    await connection._execute(
        connection._conn.create_collation, "odd", lambda one, other: (one > other) - (one < other)
    )


SQLITE_TABLES: Final[dict[str, dict[str, Any]]] = {
    "STRICT": {
        "columns": {
            **dict.fromkeys(("user_id",), "INTEGER NOT NULL"),
            **dict.fromkeys(("deleted_at", "updated_at"), "TEXT"),
            "secret": "BLOB NOT NULL",
        },
        "suffix": " STRICT",
    },
    "WITHOUT ROWID": {"columns": {"id": "INTEGER NOT NULL PRIMARY KEY"}, "suffix": " WITHOUT ROWID"},
    "a generated column that takes no NULL": {
        "columns": {"size": "integer NOT NULL GENERATED ALWAYS AS (length(email)) STORED"}
    },
    "checks that no model row meets": {"constraints": ("CHECK (length(account_id) > 100)",)},
    "a foreign key": {"constraints": ("FOREIGN KEY (user_id) REFERENCES nowhere (id)",)},
}


@on_sqlite
@pytest.mark.parametrize("case", SQLITE_TABLES)
async def test_a_right_key_in_a_table_of_any_form(engine: AsyncEngine, case: str) -> None:
    """The table's own statement makes it again, and what it demands of rows keeps no verdict from being reached."""
    await make(engine, **SQLITE_TABLES[case])
    assert Verdict.YES is enforces((await judged(engine))["k"])


@on_sqlite
async def test_a_trigger_is_not_run(engine: AsyncEngine) -> None:
    """A trigger that refuses every row keeps the judge from nothing."""
    refusing = "CREATE TRIGGER never BEFORE INSERT ON links BEGIN SELECT RAISE(ABORT, 'never'); END"
    await make(engine, refusing)
    assert Verdict.YES is enforces((await judged(engine))["k"])


CONSTANTS: Final = ("(- 7)", "(7)", "(1 + 1)", "(2 * (- 7))")


@pytest.mark.parametrize("shape", ["exclusive-soft", "per-user-soft"])
@pytest.mark.parametrize("kind", ["asyncpg", "sqlite"], indirect=True)
@pytest.mark.parametrize("part", CONSTANTS)
async def test_a_constant_in_the_key_keeps_no_rows_apart(engine: AsyncEngine, part: str, shape: str) -> None:
    """A key part of literals has one value in every row, so the other parts decide alone."""
    key = "provider, account_id" if shape == "exclusive-soft" else "user_id, provider, account_id"
    await make(engine, f"CREATE UNIQUE INDEX x ON links ({key}, {part}) WHERE deleted_at IS NULL", shape=shape)
    assert Verdict.YES is enforces((await judged(engine, shape=shape))["x"])


LARGE: Final[dict[str, Callable[[int], str]]] = {
    "a text of 20,000 characters": lambda _: f"account_id <> '{'x' * 20_000}'",
    "conditions side by side": lambda n: " AND ".join(["account_id <> 'x'"] * n),
    "alternatives": lambda n: " OR ".join(f"account_id = 'x{place}'" for place in range(n)),
    "concatenations": lambda n: "account_id" + " || 'x'" * n + " <> ''",
    "a list": lambda n: f"account_id IN ({', '.join(repr(f'x{place}') for place in range(n))})",
}
"""Expressions by a number of operands: SQLite takes up to 1,000, PostgreSQL what fits into a row of its catalogue."""


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "sqlite"], indirect=True)
@pytest.mark.parametrize("case", LARGE)
async def test_an_expression_as_large_as_the_database_takes(engine: AsyncEngine, case: str) -> None:
    """A large expression is judged or undecided soon, and costs no other index its verdict."""
    condition = LARGE[case](900 if engine.dialect.name == "sqlite" else 350)
    await make(engine)
    await run_sql(engine, f"CREATE UNIQUE INDEX x ON links (provider, account_id) WHERE {condition}")
    start = time.process_time()
    found = await judged(engine)
    assert 5 > time.process_time() - start
    assert Verdict.YES is enforces(found["k"])
    # No row is excluded by the text that is never empty; each of the other conditions excludes some.
    wanted = {Verdict.YES, Verdict.UNDECIDED} if case == "concatenations" else {Verdict.NO, Verdict.UNDECIDED}
    assert enforces(found["x"]) in wanted
