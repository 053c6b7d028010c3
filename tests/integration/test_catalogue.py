"""The doctor's reading of a table in real databases, field by field."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import ConfigurationError
from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.schema import (
    Catalogue,
    Column,
    ForeignKey,
    Index,
    IndexPart,
    Kind,
    Owner,
    Partitioning,
    Relation,
    RowPolicy,
    RowSecurity,
    Table,
)
from tests.support.databases import Database, collation_without_case, rows, run_sql

pytestmark = pytest.mark.each_driver

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
ODD = 'Odd.name "of" a: table'
ODD_SQL = '"Odd.name ""of"" a: table"'


async def read(engine: AsyncEngine, table: str, *, schema: str | None = None, names: Sequence[str] = ()) -> Catalogue:
    async with engine.connect() as connection:
        return await connection.run_sync(read_catalogue, table, schema=schema, names=names)


async def read_table(engine: AsyncEngine, table: str = "t", *, schema: str | None = None) -> Table:
    found = (await read(engine, table, schema=schema)).table
    assert found is not None
    return found


async def read_index(engine: AsyncEngine, name: str, table: str = "t") -> Index:
    (found,) = [index for index in (await read_table(engine, table)).indexes if index.name == name]
    return found


def part(column: str, *, exact: bool = True) -> IndexPart:
    return IndexPart(sql=column, column=column, exact=exact)


async def major(engine: AsyncEngine) -> int:
    return (await read(engine, "none")).version // 10_000


@asynccontextmanager
async def a_role(database: Database, name: str, *grants: str) -> AsyncIterator[AsyncEngine]:
    """An engine of an ordinary role, which is gone afterwards with all that it owns."""
    engine = database.engine()
    await run_sql(engine, f"CREATE ROLE {name} LOGIN", *grants)
    try:
        yield database.engine(url=make_url(database.url).set(username=name))
    finally:
        await run_sql(engine, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


@asynccontextmanager
async def a_schema(engine: AsyncEngine, quoted: str) -> AsyncIterator[None]:
    """A second schema, which is gone afterwards."""
    await run_sql(engine, f"CREATE SCHEMA {quoted}")
    try:
        yield
    finally:
        await run_sql(engine, f"DROP SCHEMA {quoted} CASCADE")


# -- both -----------------------------------------------------------------------------------------------------------


async def test_a_table_that_is_not_there(database: Database, engine: AsyncEngine) -> None:
    """Without the table there is still the server's version, who asks, and which names are taken."""
    await run_sql(engine, "CREATE TABLE other (a integer)", "CREATE INDEX ix_other ON other (a)")
    found = await read(engine, "none", names=["ix_other", "other", "free", ODD])
    assert found.table is None
    assert {"ix_other", "other"} == found.taken
    assert {"SELECT", "INSERT", "UPDATE", "DELETE"} == found.may
    if database.is_postgresql:
        number = await rows(engine, "SHOW server_version_num")
        assert ("postgresql", int(number[0][0]), "postgres") == (found.dialect, found.version, found.role)
    else:
        ((text,),) = await rows(engine, "SELECT sqlite_version()")
        major_, minor, patch = map(int, text.split("."))
        assert ("sqlite", major_ * 1_000_000 + minor * 1_000 + patch, None) == (
            found.dialect, found.version, found.role,
        )  # fmt: skip
    nowhere = await read(engine, "other", schema="no such schema", names=["other"])
    assert nowhere.table is None
    assert set() == nowhere.taken
    assert (await read(engine, "ix_other")).table is None


async def test_odd_names(database: Database, engine: AsyncEngine) -> None:
    """Names are taken as they are: quotes, dots, colons, spaces and upper case mean nothing."""
    await run_sql(
        engine,
        f'CREATE TABLE {ODD_SQL} ("a ""b"" (, c" integer, "Case" integer)',
        f'CREATE UNIQUE INDEX "ix ON ONLY ""(" ON {ODD_SQL} ("Case", "a ""b"" (, c")',
    )
    found = await read_table(engine, ODD)
    assert ODD == found.name
    assert ("public" if database.is_postgresql else None) == found.schema
    assert ('a "b" (, c', "Case") == tuple(column.name for column in found.columns)
    (index,) = found.indexes
    assert ('ix ON ONLY "(', ("Case", 'a "b" (, c')) == (index.name, index.columns)
    assert index.definition is not None
    await run_sql(engine, 'DROP INDEX "ix ON ONLY ""("', index.definition)
    assert index == (await read_table(engine, ODD)).indexes[0]


async def test_a_view_is_told_from_a_table(engine: AsyncEngine) -> None:
    """A view has columns and no index."""
    await run_sql(engine, "CREATE TABLE t (a integer)", "CREATE VIEW v AS SELECT a FROM t")
    found = await read_table(engine, "v")
    assert (Relation.VIEW, ("a",), ()) == (found.relation, tuple(c.name for c in found.columns), found.indexes)
    assert Relation.TABLE is (await read_table(engine, "t")).relation


def test_another_database_is_refused() -> None:
    """Only two catalogues can be read."""
    connection: Any = type("Connection", (), {"dialect": mysql.dialect()})
    with pytest.raises(ConfigurationError, match="'mysql'"):
        read_catalogue(connection, "t", schema=None)


# -- PostgreSQL -----------------------------------------------------------------------------------------------------


@POSTGRESQL
async def test_columns(engine: AsyncEngine) -> None:
    """Each column with its type, what that holds, and what fills it."""
    await run_sql(
        engine,
        "CREATE TYPE mood AS ENUM ('ok')",
        """CREATE TABLE t (
            id serial, big bigint GENERATED ALWAYS AS IDENTITY, small smallint DEFAULT 7, plain text NOT NULL,
            short varchar(50) COLLATE "C", long varchar, padded char(8), named name, yes boolean, at timestamp,
            atz timestamptz DEFAULT now(), uid uuid, feeling mood DEFAULT 'ok', data jsonb, texts text[],
            gone text, low text GENERATED ALWAYS AS (lower(plain)) STORED)""",
        "ALTER TABLE t DROP COLUMN gone",
    )
    text = {"kind": Kind.TEXT}
    expected: list[dict[str, Any]] = [
        {"name": "id", "type": "integer", "kind": Kind.INTEGER, "bits": 32, "nullable": False, "identity": True,
         "default": "nextval('t_id_seq'::regclass)"},
        {"name": "big", "type": "bigint", "kind": Kind.INTEGER, "bits": 64, "nullable": False, "identity": True},
        {"name": "small", "type": "smallint", "kind": Kind.INTEGER, "bits": 16, "default": "7"},
        {"name": "plain", "type": "text", "nullable": False} | text,
        {"name": "short", "type": "character varying(50)", "length": 50, "collation": "C"} | text,
        {"name": "long", "type": "character varying"} | text,
        {"name": "padded", "type": "character(8)", "kind": Kind.PADDED, "length": 8},
        {"name": "named", "type": "name", "length": 63} | text,
        {"name": "yes", "type": "boolean", "kind": Kind.BOOLEAN},
        {"name": "at", "type": "timestamp without time zone", "kind": Kind.MOMENT},
        {"name": "atz", "type": "timestamp with time zone", "kind": Kind.MOMENT, "default": "now()"},
        {"name": "uid", "type": "uuid", "kind": Kind.UUID},
        {"name": "feeling", "type": "mood", "kind": Kind.ENUM, "default": "'ok'::mood", "labels": ("ok",)},
        {"name": "data", "type": "jsonb", "kind": Kind.OTHER},
        {"name": "texts", "type": "text[]", "kind": Kind.OTHER},
        {"name": "low", "type": "text", "generated": "lower(plain)"} | text,
    ]  # fmt: skip
    found = await read_table(engine)
    assert [Column(**fields) for fields in expected] == list(found.columns)


@POSTGRESQL
async def test_domains(engine: AsyncEngine) -> None:
    """A domain is what it stands on: its base type and length, its collation, what it requires and what fills it."""
    await collation_without_case(engine)
    await run_sql(
        engine,
        "CREATE DOMAIN short AS varchar(20) DEFAULT 'x'",
        "CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 10)",
        "CREATE DOMAIN required AS bigint NOT NULL",
        "CREATE DOMAIN also_required AS required",
        "CREATE DOMAIN checked AS text CHECK (VALUE <> '' AND VALUE IS NOT NULL)",
        "CREATE DOMAIN old AS text",
        "ALTER DOMAIN old ADD CHECK (VALUE IS NOT NULL) NOT VALID",
        "CREATE DOMAIN folded AS text COLLATE nocase",
        "CREATE TABLE t (a shorter, b also_required, c checked, d old, e folded, f shorter DEFAULT 'y')",
    )
    expected: list[dict[str, Any]] = [
        {"name": "a", "type": "shorter", "kind": Kind.TEXT, "length": 20, "default": "'x'::character varying"},
        {"name": "b", "type": "also_required", "kind": Kind.INTEGER, "bits": 64, "nullable": False},
        {"name": "c", "type": "checked", "kind": Kind.TEXT, "nullable": False},
        {"name": "d", "type": "old", "kind": Kind.TEXT},
        {"name": "e", "type": "folded", "kind": Kind.TEXT, "exact": False, "collation": "nocase"},
        {"name": "f", "type": "shorter", "kind": Kind.TEXT, "length": 20, "default": "'y'::character varying"},
    ]
    assert [Column(**fields) for fields in expected] == list((await read_table(engine)).columns)


@POSTGRESQL
async def test_a_check_can_forbid_null(engine: AsyncEngine) -> None:
    """A validated CHECK that is false of every null counts as NOT NULL, and nothing less does."""
    await run_sql(
        engine,
        """CREATE TABLE t (a text CHECK (a IS NOT NULL), "B b" text, c text, d text, e text, f text,
                           CHECK ("B b" IS NOT NULL AND (c > 'IS NOT NULL' AND c IS NOT NULL)),
                           CHECK (d IS NOT NULL OR e IS NOT NULL))""",
        "ALTER TABLE t ADD CHECK (f IS NOT NULL) NOT VALID",
    )
    assert {"d", "e", "f"} == {c.name for c in (await read_table(engine)).columns if c.nullable}
    await run_sql(engine, "ALTER TABLE t VALIDATE CONSTRAINT t_f_check")
    assert {"d", "e"} == {c.name for c in (await read_table(engine)).columns if c.nullable}


@POSTGRESQL
async def test_what_postgresql_18_brought(engine: AsyncEngine) -> None:
    """NOT NULL that old rows need not obey, checks that are not enforced, columns that are computed on reading."""
    await run_sql(engine, "CREATE TABLE t (a text, b text, c text)")
    if await major(engine) < 18:
        assert all(column.nullable for column in (await read_table(engine)).columns)
        return
    await run_sql(
        engine,
        "ALTER TABLE t ADD CONSTRAINT a_required NOT NULL a NOT VALID",
        "ALTER TABLE t ADD CHECK (b IS NOT NULL) NOT ENFORCED",
        "ALTER TABLE t ADD COLUMN d text GENERATED ALWAYS AS (upper(c)) VIRTUAL",
        "ALTER TABLE t ADD COLUMN e text NOT NULL",
        "CREATE TABLE p (a int4range, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS))",
    )
    found = await read_table(engine)
    assert ["a", "b", "c", "d"] == [column.name for column in found.columns if column.nullable]
    assert [None, None, None, "upper(c)", None] == [column.generated for column in found.columns]
    await run_sql(engine, "ALTER TABLE t VALIDATE CONSTRAINT a_required")
    assert ["b", "c", "d"] == [column.name for column in (await read_table(engine)).columns if column.nullable]
    key = await read_index(engine, "p_pkey", "p")
    assert (Owner.PRIMARY, True, "PRIMARY KEY (a, b WITHOUT OVERLAPS)") == (key.owner, key.unique, key.definition)


@POSTGRESQL
async def test_columns_and_parts_that_compare_differently(engine: AsyncEngine) -> None:
    """A non-deterministic collation is read where it compares: in the column, and in each part of an index."""
    await collation_without_case(engine)
    await run_sql(
        engine,
        "CREATE TABLE t (a text COLLATE nocase, b text)",
        'CREATE UNIQUE INDEX i ON t (a, b, a COLLATE "C", b COLLATE nocase, lower(a), lower(b) DESC) INCLUDE (b)',
    )
    found = await read_table(engine)
    assert [("nocase", False), (None, True)] == [(column.collation, column.exact) for column in found.columns]
    assert (
        part("a", exact=False),
        part("b"),
        part("a"),
        part("b", exact=False),
        IndexPart(sql="lower(a)", column=None, exact=False),
        IndexPart(sql="lower(b)", column=None),
    ) == found.indexes[0].parts


@POSTGRESQL
async def test_citext_compares_differently(engine: AsyncEngine) -> None:
    """``citext`` is text that compares without case, in a domain too; an index may still compare it as text.

    Where the extension is not installed, a type of its name takes its place.
    """
    available = await rows(engine, "SELECT 1 FROM pg_available_extensions WHERE name = 'citext'")
    stand_in = (
        "CREATE TYPE citext",
        "CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin'",
        "CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'",
        "CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, LIKE = text, CATEGORY = 'S', COLLATABLE = true)",
        "CREATE FUNCTION citext_cmp(citext, citext) RETURNS integer LANGUAGE internal IMMUTABLE STRICT AS 'bttextcmp'",
        "CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT",
        "CREATE OPERATOR CLASS citext_ops DEFAULT FOR TYPE citext USING btree AS FUNCTION 1 citext_cmp(citext, citext)",
    )
    await run_sql(
        engine,
        *(["CREATE EXTENSION citext"] if available else stand_in),
        "CREATE DOMAIN address AS citext",
        "CREATE TABLE t (a citext, b address)",
        "CREATE UNIQUE INDEX i ON t (a, b, a text_ops)",
    )
    found = await read_table(engine)
    assert [(Kind.TEXT, False), (Kind.TEXT, False)] == [(column.kind, column.exact) for column in found.columns]
    assert (part("a", exact=False), part("b", exact=False), part("a")) == found.indexes[0].parts


@POSTGRESQL
async def test_indexes_and_constraints(engine: AsyncEngine) -> None:
    """Each index with its owner, and with the SQL that makes it again."""
    await run_sql(
        engine,
        """CREATE TABLE t (id bigint PRIMARY KEY, a text, b text, deleted_at timestamptz,
                           CONSTRAINT "UQ a" UNIQUE (a, b) INCLUDE (deleted_at),
                           CONSTRAINT later UNIQUE (b) DEFERRABLE INITIALLY DEFERRED,
                           CONSTRAINT same UNIQUE NULLS NOT DISTINCT (b, a),
                           CONSTRAINT equal EXCLUDE USING btree (a WITH =, lower(b) WITH =) WHERE (b <> 'x'),
                           CONSTRAINT deferred EXCLUDE USING btree (a WITH =) DEFERRABLE)""",
        "CREATE UNIQUE INDEX live ON t (a, lower(b)) WHERE deleted_at IS NULL AND b <> 'x'",
        "CREATE INDEX plain ON t USING hash (a)",
        "ALTER TABLE t ALTER b SET NOT NULL, REPLICA IDENTITY USING INDEX t_pkey",
    )
    lower = IndexPart(sql="lower(b)", column=None)
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    unique: dict[str, Any] = {"unique": True, "owner": Owner.UNIQUE}
    excluded: dict[str, Any] = {"unique": True, "owner": Owner.EXCLUSION}
    where = "((deleted_at IS NULL) AND (b <> 'x'::text))"
    expected = [
        Index(name="UQ a", parts=(part("a"), part("b")), **unique, constraint="UQ a",
              definition="UNIQUE (a, b) INCLUDE (deleted_at)"),
        Index(name="deferred", parts=(part("a"),), **excluded, deferrable=True, constraint="deferred",
              definition="EXCLUDE USING btree (a WITH =) DEFERRABLE"),
        Index(name="equal", parts=(part("a"), lower), **excluded, where="(b <> 'x'::text)", constraint="equal",
              definition="EXCLUDE USING btree (a WITH =, lower(b) WITH =) WHERE ((b <> 'x'::text))"),
        Index(name="later", parts=(part("b"),), **unique, deferrable=True, constraint="later",
              definition=f"UNIQUE (b) {deferred}"),
        Index(name="live", parts=(part("a"), lower), unique=True, where=where,
              definition=f"CREATE UNIQUE INDEX live ON public.t USING btree (a, lower(b)) WHERE {where}"),
        Index(name="plain", parts=(part("a"),), unique=False,
              definition="CREATE INDEX plain ON public.t USING hash (a)"),
        Index(name="same", parts=(part("b"), part("a")), **unique, nulls_distinct=False, constraint="same",
              definition="UNIQUE NULLS NOT DISTINCT (b, a)"),
        Index(name="t_pkey", parts=(part("id"),), unique=True, owner=Owner.PRIMARY, constraint="t_pkey",
              definition="PRIMARY KEY (id)", replica_identity=True),
    ]  # fmt: skip
    assert expected == list((await read_table(engine)).indexes)


@POSTGRESQL
async def test_an_exclusion_of_more_than_equality_is_not_unique(engine: AsyncEngine) -> None:
    """Ranges that may not overlap are no key."""
    await run_sql(engine, "CREATE TABLE t (a int4range, CONSTRAINT x EXCLUDE USING gist (a WITH &&))")
    assert (Owner.EXCLUSION, False) == ((await read_index(engine, "x")).owner, (await read_index(engine, "x")).unique)


@POSTGRESQL
async def test_a_failed_concurrent_build_is_invalid(engine: AsyncEngine) -> None:
    """An index of a failed build is read as invalid."""
    await run_sql(engine, "CREATE TABLE t (a text)", "INSERT INTO t VALUES ('x'), ('x')", "CREATE INDEX good ON t (a)")
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with pytest.raises(sa.exc.IntegrityError):
        await run_sql(autocommit, "CREATE UNIQUE INDEX CONCURRENTLY bad ON t (a)")
    found = {index.name: index for index in (await read_table(autocommit)).indexes}
    assert {"bad": False, "good": True} == {name: index.valid for name, index in found.items()}
    assert found["bad"].unique


@POSTGRESQL
async def test_a_partitioned_table(engine: AsyncEngine) -> None:
    """The key that splits it; its indexes, made again for all partitions, and invalid until every partition has one."""
    await run_sql(
        engine,
        "CREATE TABLE t (id bigint, region text, a text, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
        "CREATE TABLE leaf PARTITION OF t FOR VALUES IN ('eu')",
        "CREATE UNIQUE INDEX whole ON t (a, region)",
        "CREATE UNIQUE INDEX part ON ONLY t (region, a)",
        "CREATE TABLE e (a integer, b integer) PARTITION BY RANGE (b, (a + 1))",
    )
    found = await read_table(engine)
    assert (Relation.PARTITIONED, Partitioning(columns=("region",))) == (found.relation, found.partitioning)
    assert {"part": False, "t_pkey": True, "whole": True} == {index.name: index.valid for index in found.indexes}
    assert "CREATE UNIQUE INDEX whole ON public.t USING btree (a, region)" == found.indexes[2].definition
    await run_sql(engine, "DROP INDEX whole", str(found.indexes[2].definition))
    assert found == await read_table(engine)
    leaf = await read_table(engine, "leaf")
    assert (Relation.PARTITION, None) == (leaf.relation, leaf.partitioning)
    assert Partitioning(columns=("b",), expressions=True) == (await read_table(engine, "e")).partitioning


@POSTGRESQL
async def test_a_table_with_children(engine: AsyncEngine) -> None:
    """Children by inheritance are read, because no index of the parent spans them; a child has none itself."""
    await run_sql(engine, "CREATE TABLE t (a text)", "CREATE TABLE child () INHERITS (t)")
    assert Partitioning(inherited=True) == (await read_table(engine)).partitioning
    child = await read_table(engine, "child")
    assert (Relation.TABLE, None) == (child.relation, child.partitioning)


@POSTGRESQL
async def test_other_relations(engine: AsyncEngine) -> None:
    """Materialized views count as views and foreign tables are told; a sequence is no table."""
    await run_sql(
        engine,
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a",
        "CREATE UNIQUE INDEX im ON m (a)",
        "CREATE SEQUENCE s",
        "CREATE FOREIGN DATA WRAPPER nowhere",
        "CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere",
        "CREATE FOREIGN TABLE f (a text) SERVER nowhere",
    )
    try:
        found = await read_table(engine, "m")
        assert (Relation.VIEW, ("im",)) == (found.relation, tuple(index.name for index in found.indexes))
        assert Relation.FOREIGN is (await read_table(engine, "f")).relation
        assert (await read(engine, "s")).table is None
    finally:
        await run_sql(engine, "DROP FOREIGN DATA WRAPPER nowhere CASCADE")


@POSTGRESQL
async def test_foreign_keys_that_point_to_it(engine: AsyncEngine) -> None:
    """Those of other schemas and its own too, with the index that each stands on; the copies of partitions are not."""
    await run_sql(
        engine,
        "CREATE TABLE t (id bigint PRIMARY KEY, a text, b text, parent bigint, UNIQUE (a, b))",
        "ALTER TABLE t ADD CONSTRAINT own FOREIGN KEY (parent) REFERENCES t ON DELETE SET NULL",
        """CREATE TABLE "P" (t_id bigint CONSTRAINT "to t" REFERENCES t ON DELETE CASCADE) PARTITION BY RANGE (t_id)""",
        """CREATE TABLE p1 PARTITION OF "P" FOR VALUES FROM (0) TO (9)""",
        "CREATE TABLE d (x bigint DEFAULT 0 CONSTRAINT d1 REFERENCES t ON DELETE SET DEFAULT,"
        " y bigint CONSTRAINT d2 REFERENCES t ON DELETE RESTRICT)",
    )
    async with a_schema(engine, '"Else"'):
        await run_sql(
            engine,
            'CREATE TABLE "Else".o (x text, y text, CONSTRAINT two FOREIGN KEY (y, x) REFERENCES t (b, a))',
        )
        found = await read_table(engine)
    one: dict[str, Any] = {"schema": "public", "targets": ("id",), "index": "t_pkey"}
    assert [
        ForeignKey(
            name="two", schema="Else", table="o", columns=("y", "x"), targets=("b", "a"), index="t_a_b_key",
            on_delete="NO ACTION",
        ),
        ForeignKey(name="to t", table="P", columns=("t_id",), on_delete="CASCADE", **one),
        ForeignKey(name="d1", table="d", columns=("x",), on_delete="SET DEFAULT", **one),
        ForeignKey(name="d2", table="d", columns=("y",), on_delete="RESTRICT", **one),
        ForeignKey(name="own", table="t", columns=("parent",), on_delete="SET NULL", **one),
    ] == list(found.referenced_by)  # fmt: skip


@POSTGRESQL
async def test_foreign_keys_to_a_partitioned_table(engine: AsyncEngine) -> None:
    """A foreign key to the whole table is read once, and not for its partitions."""
    await run_sql(
        engine,
        "CREATE TABLE t (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE leaf PARTITION OF t FOR VALUES FROM (0) TO (9)",
        "CREATE TABLE r (t_id bigint CONSTRAINT r_t REFERENCES t)",
    )
    assert ["r_t"] == [key.name for key in (await read_table(engine)).referenced_by]
    assert () == (await read_table(engine, "leaf")).referenced_by


POLICIES = (
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY a_all ON t USING (a = 'x') WITH CHECK (a = 'y')",
    "CREATE POLICY b_strict ON t AS RESTRICTIVE FOR SELECT TO reader USING (b IS NULL)",
    "CREATE POLICY c_group ON t FOR INSERT TO readers WITH CHECK (true)",
    "CREATE POLICY d_other ON t FOR UPDATE TO pg_monitor USING (true)",
    "CREATE POLICY e_delete ON t FOR DELETE TO PUBLIC USING (false)",
)


@POSTGRESQL
async def test_row_level_security(database: Database, engine: AsyncEngine) -> None:
    """Policies by the role that asks: its own, those of its groups and everybody's; all for who passes them by."""
    await run_sql(engine, "CREATE TABLE t (a text, b text)")
    assert RowSecurity() == (await read_table(engine)).row_security
    await run_sql(engine, "CREATE ROLE readers")
    grants = ("GRANT readers TO reader", "GRANT SELECT ON t TO reader")
    try:
        async with a_role(database, "reader", *grants, *POLICIES) as reader:
            found = await read(reader, "t")
            assert found.table is not None
            assert "reader" == found.role
            assert {"SELECT"} == found.may
            a_all = RowPolicy(name="a_all", permissive=True, command="ALL", using="(a = 'x'::text)")
            b_strict = RowPolicy(name="b_strict", permissive=False, command="SELECT", using="(b IS NULL)")
            c_group = RowPolicy(name="c_group", permissive=True, command="INSERT", using=None)
            d_other = RowPolicy(name="d_other", permissive=True, command="UPDATE", using="true")
            e_delete = RowPolicy(name="e_delete", permissive=True, command="DELETE", using="false")
            own = (a_all, b_strict, c_group, e_delete)
            every = (a_all, b_strict, c_group, d_other, e_delete)
            assert RowSecurity(enabled=True, active=True, policies=own) == found.table.row_security
            assert RowSecurity(enabled=True, active=False, policies=every) == (await read_table(engine)).row_security
            await run_sql(engine, "ALTER TABLE t OWNER TO reader")
            assert RowSecurity(enabled=True, active=False, policies=every) == (await read_table(reader)).row_security
            await run_sql(engine, "ALTER TABLE t FORCE ROW LEVEL SECURITY")
            assert RowSecurity(enabled=True, active=True, policies=own) == (await read_table(reader)).row_security
            await run_sql(engine, "ALTER ROLE reader BYPASSRLS")
            assert RowSecurity(enabled=True, active=False, policies=every) == (await read_table(reader)).row_security
    finally:
        await run_sql(engine, "DROP ROLE readers")


@POSTGRESQL
async def test_what_the_role_may_do(database: Database, engine: AsyncEngine) -> None:
    """A right counts if it is granted on the table or on all its columns, in a schema that the role may use."""
    await run_sql(engine, "CREATE TABLE t (a text, b text)")
    grants = ("GRANT SELECT (a, b), UPDATE (a) ON t TO clerk", "GRANT INSERT ON t TO PUBLIC")
    async with a_role(database, "clerk", *grants) as clerk, a_schema(engine, "closed"):
        assert {"SELECT", "INSERT"} == (await read(clerk, "t")).may
        await run_sql(engine, "CREATE TABLE closed.t (a text)", "GRANT SELECT ON closed.t TO clerk")
        found = await read(clerk, "t", schema="closed")
        assert found.table is not None
        assert frozenset() == found.may
        async with engine.connect() as connection:
            await connection.execute(sa.text("SET ROLE clerk"))
            assert "clerk" == (await connection.run_sync(read_catalogue, "t", schema=None)).role
            await connection.rollback()


MANY = """
    DO $$ BEGIN
        FOR number IN 1..2000 LOOP
            EXECUTE format('CREATE TABLE other_%s (id bigint PRIMARY KEY, a text)', number);
        END LOOP;
    END $$
"""


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_a_large_catalogue_costs_an_ordinary_role_nothing_more(database: Database, engine: AsyncEngine) -> None:
    """Among 2,000 tables of others, a role without any right reads one table with two queries of one row each."""
    await run_sql(
        engine,
        MANY,
        "CREATE TABLE t (id bigint PRIMARY KEY, a text CHECK (a <> '') UNIQUE, other bigint REFERENCES t)",
        "CREATE UNIQUE INDEX live ON t (a) WHERE a <> 'dead'",
    )
    expected = await read_table(engine)
    async with a_role(database, "stranger", "CREATE SCHEMA AUTHORIZATION stranger") as stranger:
        fetched = []

        def count(_c: object, cursor: Any, *_: object) -> None:
            fetched.append(cursor.rowcount)

        await read(stranger, "t")  # the first connection sets itself up
        sa.event.listen(stranger.sync_engine, "after_cursor_execute", count)
        found = await read(stranger, "t", names=["other_1", "live", "t_a_check", "free"])
    assert 2 == len(fetched)
    assert {1} == set(fetched)
    assert expected == found.table
    assert frozenset() == found.may
    assert {"other_1", "live", "t_a_check"} == found.taken


@POSTGRESQL
async def test_the_search_path_finds_it(database: Database, engine: AsyncEngine) -> None:
    """Without a schema the search path decides, and names are taken in the schema where the table is."""
    async with a_schema(engine, '"A.b ""c"""'):
        await run_sql(
            engine,
            "CREATE TABLE t (a text, CONSTRAINT \"Check\" CHECK (a > ''))",
            'CREATE TABLE "A.b ""c""".t (b text)',
            'CREATE TABLE "A.b ""c""".u (b text)',
        )
        first = await read(engine, "t", names=["t", "u", "Check"])
        second = await read(engine, "t", schema='A.b "c"', names=["t", "u", "Check"])
        assert first.table is not None
        assert second.table is not None
        assert ("public", ["a"]) == (first.table.schema, [column.name for column in first.table.columns])
        assert ('A.b "c"', ["b"]) == (second.table.schema, [column.name for column in second.table.columns])
        assert {"t", "Check"} == first.taken
        assert {"t", "u"} == second.taken
        assert {"u"} == (await read(engine, "none", schema='A.b "c"', names=["u", "Check"])).taken
        async with engine.connect() as connection:
            await connection.execute(sa.text('SET search_path = "A.b ""c""", public'))
            assert second.table == (await connection.run_sync(read_catalogue, "t", schema=None)).table
            await connection.rollback()


@POSTGRESQL
async def test_a_search_path_that_hides_the_catalogue(engine: AsyncEngine) -> None:
    """Tables, functions and types of the application with the catalogue's names do not mislead the doctor."""
    async with a_schema(engine, "shadow"):
        await run_sql(
            engine,
            "CREATE TABLE shadow.t (id bigint PRIMARY KEY, a varchar(9) NOT NULL DEFAULT 'x')",
            *(f"CREATE VIEW shadow.{name} AS SELECT 1 AS oid" for name in ("pg_class", "pg_index", "pg_constraint")),
            "CREATE FUNCTION shadow.json_agg(json) RETURNS json LANGUAGE sql AS $$ SELECT '[]'::json $$",
            "CREATE FUNCTION shadow.pg_get_expr(pg_node_tree, oid) RETURNS text LANGUAGE sql AS $$ SELECT 'no' $$",
            *(f"CREATE DOMAIN shadow.{name} AS integer" for name in ("text", "json", "name", "oid")),
        )
        expected = await read_table(engine, "t", schema="shadow")
        async with engine.connect() as connection:
            await connection.execute(sa.text("SET search_path = shadow, pg_catalog"))
            found = (await connection.run_sync(read_catalogue, "t", schema=None, names=["pg_class"])).table
            await connection.rollback()
    assert expected == found


@POSTGRESQL
async def test_names_too_long_for_the_server(engine: AsyncEngine) -> None:
    """The server cuts names at 63 bytes, and so a longer one is taken if what is left of it is."""
    long = "t" * 70
    await run_sql(engine, f"CREATE TABLE {long} (a text)")
    for schema in (None, "public"):
        found = await read(engine, long, schema=schema, names=[long])
        assert found.table is not None
        assert long[:63] == found.table.name
        assert {long} == found.taken


# -- SQLite ---------------------------------------------------------------------------------------------------------


@SQLITE
async def test_sqlite_columns(engine: AsyncEngine) -> None:
    """Each column with what its declared type means, and what only the statement tells of it."""
    await run_sql(
        engine,
        """CREATE TABLE t (
            Id INTEGER PRIMARY KEY, a VARCHAR(50) NOT NULL DEFAULT 'x', b TEXT COLLATE NoCase,
            c CHAR(32) COLLATE BINARY, d BIGINT CHECK (d IS NOT NULL), e BOOLEAN,
            f DATETIME DEFAULT CURRENT_TIMESTAMP, g TIMESTAMP, h UUID,
            i BLOB, j, "k ""l" AS (lower(a)) STORED, m TEXT GENERATED ALWAYS AS (a || b) VIRTUAL,
            CHECK (c IS NOT NULL OR e IS NOT NULL))""",
        "ALTER TABLE t ADD COLUMN n TEXT COLLATE RTRIM",
    )
    text = {"kind": Kind.TEXT}
    expected: list[dict[str, Any]] = [
        {"name": "Id", "type": "INTEGER", "kind": Kind.INTEGER, "nullable": False, "identity": True},
        {"name": "a", "type": "VARCHAR(50)", "nullable": False, "default": "'x'"} | text,
        {"name": "b", "type": "TEXT", "exact": False, "collation": "NoCase"} | text,
        {"name": "c", "type": "CHAR(32)", "collation": "BINARY"} | text,
        {"name": "d", "type": "BIGINT", "kind": Kind.INTEGER, "nullable": False},
        {"name": "e", "type": "BOOLEAN", "kind": Kind.BOOLEAN},
        {"name": "f", "type": "DATETIME", "kind": Kind.MOMENT, "default": "CURRENT_TIMESTAMP"},
        {"name": "g", "type": "TIMESTAMP", "kind": Kind.MOMENT},
        {"name": "h", "type": "UUID"} | text,
        {"name": "i", "type": "BLOB", "kind": Kind.OTHER},
        {"name": "j", "type": "", "kind": Kind.OTHER},
        {"name": 'k "l', "type": "", "kind": Kind.OTHER, "generated": "lower(a)"},
        {"name": "m", "type": "TEXT", "generated": "a || b"} | text,
        {"name": "n", "type": "TEXT", "exact": False, "collation": "RTRIM"} | text,
    ]
    found = await read_table(engine, "T")
    assert "t" == found.name
    assert [Column(**fields) for fields in expected] == list(found.columns)


@SQLITE
async def test_sqlite_indexes(engine: AsyncEngine) -> None:
    """Each index with its parts as they compare; the rowid counts as one."""
    live = "CREATE UNIQUE INDEX live ON t (a COLLATE RTRIM, lower(b) COLLATE NOCASE DESC, id) WHERE deleted_at IS NULL"
    await run_sql(
        engine,
        """CREATE TABLE t (id INTEGER CONSTRAINT pk PRIMARY KEY, a TEXT, b TEXT COLLATE NOCASE, deleted_at DATETIME,
                           CONSTRAINT "uq b" UNIQUE (b, A), UNIQUE (a))""",
        live,
        "CREATE INDEX plain ON t (b)",
    )
    b = part("b", exact=False)
    lower = IndexPart(sql="lower(b)", column=None, exact=False)
    expected = [
        Index(name="live", parts=(part("a", exact=False), lower, part("id")), unique=True, where="deleted_at IS NULL",
              definition=live),
        Index(name="plain", parts=(b,), unique=False, definition="CREATE INDEX plain ON t (b)"),
        Index(name="rowid", parts=(part("id"),), unique=True, owner=Owner.PRIMARY, constraint="pk"),
        Index(name="sqlite_autoindex_t_1", parts=(b, part("a")), unique=True, owner=Owner.UNIQUE, constraint="uq b"),
        Index(name="sqlite_autoindex_t_2", parts=(part("a"),), unique=True, owner=Owner.UNIQUE),
    ]  # fmt: skip
    assert expected == list((await read_table(engine)).indexes)


@SQLITE
async def test_sqlite_names_a_constraint_by_its_kind(engine: AsyncEngine) -> None:
    """Where a primary key and a UNIQUE are on the same columns, SQLite has one index, and it is the primary key's."""
    await run_sql(engine, "CREATE TABLE t (a TEXT, CONSTRAINT u UNIQUE (a), CONSTRAINT k PRIMARY KEY (a))")
    assert [(Owner.PRIMARY, "k")] == [(index.owner, index.constraint) for index in (await read_table(engine)).indexes]


KEYS = {
    "without rowid": ("a TEXT, b TEXT, CONSTRAINT k PRIMARY KEY (b, a)) WITHOUT ROWID", False, ("b", "a"), set()),
    "text": ("a TEXT PRIMARY KEY, b TEXT", True, ("a",), {"a", "b"}),
    "strict": ("a TEXT PRIMARY KEY, b TEXT) STRICT", True, ("a",), {"b"}),
    "int, not integer": ("a INT PRIMARY KEY, b TEXT", True, ("a",), {"a", "b"}),
    "descending by the column": ("a INTEGER PRIMARY KEY DESC, b TEXT", True, ("a",), {"a", "b"}),
    "integer without rowid": ("a INTEGER PRIMARY KEY, b TEXT NOT NULL) WITHOUT ROWID", False, ("a",), set()),
}


@SQLITE
@pytest.mark.parametrize("case", KEYS)
async def test_sqlite_primary_keys(engine: AsyncEngine, case: str) -> None:
    """A primary key that is not the rowid has an index; it may hold NULL where SQLite's old mistake lets it."""
    body, rowid, columns, nullable = KEYS[case]
    if case == "strict" and sqlite3.sqlite_version_info < (3, 37):
        return  # it is a syntax error there
    await run_sql(engine, f"CREATE TABLE t ({body}" + (")" if body.count("(") == body.count(")") else ""))
    found = await read_table(engine)
    (index,) = found.indexes
    assert (Owner.PRIMARY, columns, True) == (index.owner, index.columns, index.unique)
    assert nullable == {column.name for column in found.columns if column.nullable}
    assert rowid is not found.without_rowid
    assert not any(column.identity for column in found.columns)


@SQLITE
async def test_sqlite_foreign_keys_and_triggers(engine: AsyncEngine) -> None:
    """Foreign keys that point to it, whatever the case of its name; its triggers; the statement that made it."""
    trigger = "CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET a = 'x'; END"
    statement = "CREATE TABLE t (a TEXT, B TEXT, parent TEXT REFERENCES T, PRIMARY KEY (B, a))"
    await run_sql(
        engine,
        statement.replace(" REFERENCES T", ""),
        "DROP TABLE t",
        statement.replace("parent TEXT REFERENCES T", "c TEXT"),
        "CREATE TABLE r (x TEXT REFERENCES t (A) ON DELETE CASCADE, y TEXT, z TEXT, "
        'FOREIGN KEY (y, z) REFERENCES "T" ON DELETE SET NULL)',
        "CREATE TABLE unrelated (x TEXT REFERENCES r)",
        trigger,
        "CREATE TRIGGER other AFTER INSERT ON r BEGIN SELECT 1; END",
    )
    found = await read_table(engine)
    assert statement.replace("parent TEXT REFERENCES T", "c TEXT") == found.sql
    assert (trigger,) == found.triggers
    assert {
        ForeignKey(name=None, schema=None, table="r", columns=("x",), targets=("a",), on_delete="CASCADE"),
        ForeignKey(name=None, schema=None, table="r", columns=("y", "z"), targets=("B", "a"), on_delete="SET NULL"),
    } == set(found.referenced_by)


@SQLITE
async def test_sqlite_attached_database(engine: AsyncEngine) -> None:
    """An attached database is a schema; its tables, names and foreign keys are its own."""
    async with engine.connect() as connection:
        await connection.exec_driver_sql("COMMIT")  # nothing is attached within a transaction
        await connection.exec_driver_sql('ATTACH \':memory:\' AS "au:x """')
        await connection.exec_driver_sql("CREATE TABLE t (a TEXT)")
        await connection.exec_driver_sql('CREATE TABLE "au:x """.t (b INTEGER PRIMARY KEY, c TEXT UNIQUE)')
        await connection.exec_driver_sql('CREATE TABLE "au:x """.r (x REFERENCES t)')
        await connection.exec_driver_sql('CREATE UNIQUE INDEX "au:x """.i ON t (lower(c))')
        main = (await connection.run_sync(read_catalogue, "t", schema=None, names=["I", "r"])).table
        other = await connection.run_sync(read_catalogue, "t", schema='au:x "', names=["I", "r", "free"])
    assert main is not None
    assert other.table is not None
    assert (None, ["a"], (), ()) == (main.schema, [c.name for c in main.columns], main.indexes, main.referenced_by)
    assert ('au:x "', ["b", "c"]) == (other.table.schema, [column.name for column in other.table.columns])
    assert ["i", "rowid", "sqlite_autoindex_t_1"] == [index.name for index in other.table.indexes]
    assert [("b",)] == [key.targets for key in other.table.referenced_by]
    assert {"I", "r"} == other.taken


@SQLITE
async def test_sqlite_virtual_table(engine: AsyncEngine) -> None:
    """A table of another SQLite module is read as foreign, without its hidden columns."""
    await run_sql(engine, "CREATE VIRTUAL TABLE t USING fts5 (a, b)")
    found = await read_table(engine)
    assert (Relation.FOREIGN, ["a", "b"]) == (found.relation, [column.name for column in found.columns])
