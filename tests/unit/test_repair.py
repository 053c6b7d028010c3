"""What is planned for a table, and how it is written down: no database is asked here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import asyncpg, psycopg

from accountlink.doctor.case import Case, Duplicates, Rows
from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.judge.asking import judge_by
from accountlink.doctor.judge.sqlite import ask_privately
from accountlink.doctor.judge.subject import Declared, Need, Subject
from accountlink.doctor.judge.uniqueness import Judgement
from accountlink.doctor.repair.names import candidates
from accountlink.doctor.repair.operations import Repair, Step
from accountlink.doctor.repair.plan import plan
from accountlink.doctor.repair.revision import alembic_revision, downgrade_lines, upgrade_lines
from accountlink.doctor.repair.script import sql_script
from accountlink.doctor.rules import judge_by_all
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
from accountlink.linking.statements import empty_in
from tests.support.emitted import downgrade, statements

WHEN: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
OWNER_NEED: Final = Need(columns=("provider", "account_id"), live=True, reason="a provider account has one live owner")
ID_NEED: Final = Need(columns=("id",), live=False, reason="a link's id names one row", key=False)
ROLES: Final = {
    name: name
    for name in ("id", "user_id", "provider", "account_id", "email", "refresh_token", "updated_at", "deleted_at")
}
SUBJECT: Final = Subject(
    schema=None,
    table="links",
    needs=(OWNER_NEED, ID_NEED),
    roles=ROLES,
    identifiers=frozenset({"account_id"}),
    lengths={"account_id": 255},
    exclusive=True,
    soft=True,
    newest_by=("updated_at",),
    empty={"refresh_token": sa.literal("")},
)
PRIMARY: Final = Index(
    name="links_pkey",
    parts=(IndexPart(sql="id", column="id"),),
    unique=True,
    owner=Owner.PRIMARY,
    constraint="links_pkey",
    definition="PRIMARY KEY (id)",
)
RIGHT: Final = "CREATE UNIQUE INDEX CONCURRENTLY {} ON links (provider, account_id) WHERE deleted_at IS NULL"
NOBODY_LOOKED: Final = Rows()
GUARD: Final = "SELECT pg_catalog.set_config('default_transaction_read_only', 'on', false)"
DERIVED: Final = "uq_links_provider_account_id"


def text(name: str, **fields: Any) -> Column:
    told: dict[str, Any] = {"name": name, "type": "text", "kind": Kind.TEXT, "nullable": False}
    return Column(**(told | fields))


def number(name: str, **fields: Any) -> Column:
    told: dict[str, Any] = {"name": name, "type": "bigint", "kind": Kind.INTEGER, "bits": 64, "nullable": False}
    return Column(**(told | fields))


def moment(name: str, **fields: Any) -> Column:
    told: dict[str, Any] = {"name": name, "type": "timestamp with time zone", "kind": Kind.MOMENT}
    return Column(**(told | fields))


COLUMNS: Final = (
    number("id", identity=True),
    number("user_id"),
    text("provider"),
    text("account_id"),
    text("email", nullable=True),
    text("refresh_token", nullable=True),
    moment("updated_at"),
    moment("deleted_at"),
)


def index(name: str, *columns: str, **fields: Any) -> Index:
    where = f" WHERE {fields['where']}" if fields.get("where") else ""
    made = f"CREATE UNIQUE INDEX {name} ON public.links USING btree ({', '.join(columns)}){where}"
    parts = tuple(IndexPart(sql=column, column=column) for column in columns)
    told: dict[str, Any] = {"name": name, "parts": parts, "unique": True, "definition": made}
    return Index(**(told | fields))


def constraint(name: str, *columns: str, **fields: Any) -> Index:
    made = f"UNIQUE ({', '.join(columns)})"
    return index(name, *columns, **({"owner": Owner.UNIQUE, "constraint": name, "definition": made} | fields))


def case(
    *indexes: Index,
    subject: Subject = SUBJECT,
    columns: tuple[Column, ...] = COLUMNS,
    rows: Rows = NOBODY_LOOKED,
    taken: frozenset[str] = frozenset(),
    dialect: str = "postgresql",
    **table: Any,
) -> Case:
    """A case about a table of links; its primary key is there already."""
    fields: dict[str, Any] = {"schema": None if dialect == "sqlite" else "public", "name": "links"}
    made = Table(**(fields | {"columns": columns, "indexes": (PRIMARY, *indexes)} | table))
    return Case(
        subject=subject,
        catalogue=Catalogue(dialect=dialect, version=150018, role="web", table=made, taken=taken),
        table=made,
        judgements=judged(subject, made),
        rows=rows,
    )


def judged(subject: Subject, table: Table) -> tuple[Judgement, ...]:
    """Judge the table by one of its columns in a private SQLite: the conditions here mean the same there."""
    made = f"CREATE TABLE {quoted(table.name)} ({', '.join(column.name for column in table.columns)})"
    return judge_by(ask_privately, subject, replace(table, sql=table.sql or made), dialect="sqlite")


def planned(looked: Case) -> Repair:
    return plan(looked, judge_by_all(looked))


def sql(repair: Repair) -> list[str]:
    """The statements, without the one that stops the script where a new key is not there."""
    return [step.sql for step in repair.steps if not step.sql.startswith(GUARD)]


def duplicates(need: Need = OWNER_NEED) -> Rows:
    return Rows(duplicates={need: Duplicates(groups=3, rows=4)})


# -- which keys come and go --------------------------------------------------------------------------------------------


def test_a_right_table_has_nothing_to_repair() -> None:
    """Without findings there is no step, and the script says so."""
    repair = planned(case(index("anything", "provider", "account_id", where="deleted_at IS NULL")))
    assert ((), ()) == (repair.steps, repair.by_hand)
    assert "-- Nothing to repair." in sql_script(repair)
    assert [] == statements(sql_script(repair))


def test_a_missing_key_is_built_concurrently_among_live_rows() -> None:
    """One statement, which runs by itself and whose downgrade does too."""
    (step,) = planned(case()).steps
    assert RIGHT.format(DERIVED) == step.sql
    assert step.alone
    assert (f"DROP INDEX CONCURRENTLY {DERIVED}",) == step.undo


def test_the_right_key_stands_before_the_wrong_one_goes() -> None:
    """A stale key that is all the protection there is gets its successor first."""
    stale = constraint("s", "account_id")
    assert [RIGHT.format(DERIVED), "ALTER TABLE links DROP CONSTRAINT s"] == sql(planned(case(stale)))


def test_nothing_goes_in_a_session_in_which_the_new_key_could_not_be_built() -> None:
    """A client that passes errors over meets a statement after which the session may write nothing more."""
    stale = constraint("a \"stale\" 'one'", "account_id")
    step = planned(case(stale, schema="app")).steps[1]
    told = (
        f"{GUARD}\n"
        " WHERE (SELECT count(*) FROM pg_catalog.pg_index\n"
        "         WHERE indisvalid AND indrelid = pg_catalog.to_regclass('app.links')\n"
        "           AND indexrelid IN (pg_catalog.to_regclass('{}'))) < 1"
    )
    assert told.format(f"app.{DERIVED}") == step.sql
    assert (told.format('app."a ""stale"" \'\'one\'\'"'),) == step.undo
    assert step.alone
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    assert [] == [step.sql for step in planned(case(right, stale)).steps if step.sql.startswith(GUARD)]


def test_what_goes_is_dropped_by_its_kind_and_can_come_back() -> None:
    """A bare index goes concurrently, a constraint with its table; each downgrade makes the same one again."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    first, second = planned(case(right, constraint("c", "user_id", "provider"), index("Bare", "user_id"))).steps
    assert 'DROP INDEX CONCURRENTLY "Bare"' == first.sql
    assert ("CREATE UNIQUE INDEX CONCURRENTLY Bare ON public.links USING btree (user_id)",) == first.undo
    assert "ALTER TABLE links DROP CONSTRAINT c" == second.sql
    assert ("ALTER TABLE links ADD CONSTRAINT c UNIQUE (user_id, provider)",) == second.undo


def test_an_index_with_two_findings_is_dropped_once() -> None:
    """Nothing is emitted twice."""
    looked = case(index("k", "provider", "account_id"))
    (finding,) = judge_by_all(looked)
    repair = plan(looked, [finding, replace(finding, rule="wrong-predicate")])
    assert 1 == sql(repair).count("DROP INDEX CONCURRENTLY k")


def test_the_declared_name_is_taken_when_the_wrong_key_has_left_it() -> None:
    """The new key is built under another name, and gets the model's own in the end."""
    declared = Declared(name="uq_links", columns=("account_id", "provider"), live=True, constraint=False)
    subject = replace(SUBJECT, declared=(declared,))
    repair = planned(case(constraint("uq_links", "provider", "account_id"), subject=subject))
    made = "uq_links_account_id_provider"
    assert [
        f"CREATE UNIQUE INDEX CONCURRENTLY {made} ON links (account_id, provider) WHERE deleted_at IS NULL",
        "ALTER TABLE links DROP CONSTRAINT uq_links",
        f"ALTER INDEX {made} RENAME TO uq_links",
    ] == sql(repair)
    assert (f"ALTER INDEX uq_links RENAME TO {made}",) == repair.steps[-1].undo


def test_a_declared_constraint_becomes_one() -> None:
    """A full key that the model declares as a constraint is one in the end, and goes as one in the downgrade."""
    need = replace(OWNER_NEED, live=False)
    roles = {role: name for role, name in ROLES.items() if role != "deleted_at"}
    declared = Declared(name="one_owner", columns=need.columns, live=False, constraint=True)
    subject = replace(SUBJECT, needs=(need,), roles=roles, soft=False, declared=(declared,))
    repair = planned(case(subject=subject))
    assert [
        "CREATE UNIQUE INDEX CONCURRENTLY one_owner ON links (provider, account_id)",
        "ALTER TABLE links ADD CONSTRAINT one_owner UNIQUE USING INDEX one_owner",
    ] == sql(repair)
    assert "ALTER TABLE links DROP CONSTRAINT one_owner" in downgrade(sql_script(repair))


def test_a_taken_name_is_not_taken_again() -> None:
    """Names that something else has are passed by, and those that a failed build leaves are free."""
    taken = frozenset({DERIVED})
    assert [RIGHT.format(f"{DERIVED}_2")] == sql(planned(case(taken=taken)))
    invalid = index(DERIVED, "provider", "account_id", where="deleted_at IS NULL", valid=False)
    assert [f"DROP INDEX CONCURRENTLY {DERIVED}", RIGHT.format(DERIVED)] == sql(planned(case(invalid, taken=taken)))


def test_no_index_of_the_table_lends_its_name() -> None:
    """However many of the names that may be wanted are there: ten failed builds of another table's, say."""
    taken = frozenset({DERIVED, *(f"{DERIVED}_{number}" for number in range(2, 10))})
    assert [RIGHT.format(f"{DERIVED}_10")] == sql(planned(case(taken=taken)))


def test_names_fit_postgresql_and_all_that_may_be_wanted_are_known_before() -> None:
    """No name is longer than 63 bytes, cut ones stay apart, and the reader of the catalogue can ask for each."""
    long = "ü" * 40
    subject = replace(SUBJECT, table=long)
    names = candidates(subject)
    assert {len(name.encode()) <= 63 for name in names} == {True}
    assert len(names) == len(candidates(replace(subject, table=long + "x")) | names) // 2
    assert DERIVED in candidates(SUBJECT)
    assert "ck_links_provider_not_null" in candidates(SUBJECT)
    declared = Declared(name="d", columns=("account_id", "provider"), live=True, constraint=False)
    assert {"d", "uq_links_account_id_provider"} <= candidates(replace(SUBJECT, declared=(declared,)))


def test_a_deferrable_constraint_gives_its_name_to_one_that_is_checked_at_once() -> None:
    """The application's own uniqueness stays: the new index stands before the one statement that changes them."""
    later = constraint("later", "user_id", deferrable=True, definition="UNIQUE (user_id) DEFERRABLE")
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    subject = replace(SUBJECT, needs=(OWNER_NEED, ID_NEED, Need(columns=("user_id",), live=False, reason="r")))
    repair = planned(case(right, later, subject=subject))
    assert [
        "CREATE UNIQUE INDEX CONCURRENTLY uq_links_user_id ON links (user_id)",
        "ALTER TABLE links DROP CONSTRAINT later, ADD CONSTRAINT later UNIQUE USING INDEX uq_links_user_id",
    ] == sql(repair)
    assert ["ALTER TABLE links DROP CONSTRAINT later, ADD CONSTRAINT later UNIQUE (user_id) DEFERRABLE"] == [
        undo for step in repair.steps for undo in step.undo
    ]


@pytest.mark.parametrize(
    ("definition", "fields", "made"),
    [
        (
            'UNIQUE NULLS NOT DISTINCT (user_id) INCLUDE (provider, "a (b") DEFERRABLE',
            {"nulls_distinct": False},
            '(user_id) INCLUDE (provider, "a (b") NULLS NOT DISTINCT',
        ),
        ("UNIQUE (user_id) INCLUDE (provider) DEFERRABLE INITIALLY DEFERRED", {}, "(user_id) INCLUDE (provider)"),
        (
            "PRIMARY KEY (user_id) INCLUDE (provider) DEFERRABLE",
            {"owner": Owner.PRIMARY},
            "(user_id) INCLUDE (provider)",
        ),
    ],
)
def test_what_takes_the_place_of_a_constraint_has_all_that_it_has(
    definition: str, fields: dict[str, Any], made: str
) -> None:
    """Columns that are only included stay, and so does what NULL counts as."""
    later = constraint("later", "user_id", deferrable=True, definition=definition, **fields)
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    subject = replace(SUBJECT, needs=(OWNER_NEED, ID_NEED, Need(columns=("user_id",), live=False, reason="r")))
    first, _ = sql(planned(case(right, later, subject=subject)))
    assert f"CREATE UNIQUE INDEX CONCURRENTLY uq_links_user_id ON links {made}" == first


@pytest.mark.parametrize(
    ("helper", "reused"),
    [
        ({}, True),
        ({"valid": False}, False),
        ({"where": "user_id > 5"}, False),
        ({"nulls_distinct": False}, False),
        ({"definition": "CREATE UNIQUE INDEX h ON public.links USING btree (user_id) INCLUDE (email)"}, False),
        ({"name": "mine"}, False),
    ],
)
def test_a_swap_that_stopped_half_way_is_finished(helper: dict[str, Any], reused: bool) -> None:
    """The index that a migration has built already takes the constraint's place, if it is the very same one."""
    later = constraint("later", "user_id", deferrable=True, definition="UNIQUE (user_id) DEFERRABLE")
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    made = replace(index("uq_links_user_id", "user_id"), **helper)
    subject = replace(SUBJECT, needs=(OWNER_NEED, ID_NEED, Need(columns=("user_id",), live=False, reason="r")))
    repair = planned(case(right, later, made, subject=subject))
    assert reused is not any(each.startswith("CREATE UNIQUE INDEX") for each in sql(repair))
    assert 1 == sum("USING INDEX uq_links_user_id" in each for each in sql(repair))


@pytest.mark.parametrize(
    ("fields", "table", "told"),
    [
        (
            {},
            {
                "referenced_by": (
                    ForeignKey(
                        name="fk", schema="public", table="t", columns=("a",), targets=("user_id",), index="stale"
                    ),
                )
            },
            "fk of t stands on it",
        ),
        ({"replica_identity": True}, {}, "logical replication identifies rows by it"),
    ],
)
def test_what_something_depends_on_is_not_dropped(fields: dict[str, Any], table: dict[str, Any], told: str) -> None:
    """The migration leaves it, and says what to move first."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    repair = planned(case(right, index("stale", "user_id", **fields), **table))
    assert [] == sql(repair)
    assert [True] == [told in remark for remark in repair.by_hand]


def test_a_primary_key_goes_with_a_warning() -> None:
    """Dropping it is the repair where nothing depends on it, and the step says what else ends with it."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    pair = constraint("pair", "user_id", "provider", owner=Owner.PRIMARY, definition="PRIMARY KEY (user_id, provider)")
    looked = case(right, index("i", "id"), pair)
    (step,) = planned(looked).steps
    assert "ALTER TABLE links DROP CONSTRAINT pair" == step.sql
    assert "THE TABLE HAS NO PRIMARY KEY AFTER THIS" in step.why


def test_what_could_not_be_decided_is_never_dropped() -> None:
    """A warning goes to people, and no index is made beside the one in question."""
    open_key = index("k", "provider", "account_id", where="some_function(user_id)")
    repair = planned(case(open_key))
    assert [] == sql(repair)
    assert [True] == ["wrong-predicate" in remark for remark in repair.by_hand]


def test_the_last_protection_stays_where_no_successor_can_be_made() -> None:
    """A wrong key that is all there is stays when partitions keep the right one from being built."""
    table: dict[str, Any] = {"relation": Relation.PARTITIONED, "partitioning": Partitioning(columns=("user_id",))}
    repair = planned(case(constraint("c", "account_id"), **table))
    assert [] == sql(repair)
    assert any("it is all that protects (provider, account_id)" in remark for remark in repair.by_hand)


def test_a_partitioned_table_gets_its_key_under_a_lock_and_the_step_says_so() -> None:
    """PostgreSQL builds no index of a partitioned table concurrently."""
    table: dict[str, Any] = {"relation": Relation.PARTITIONED, "partitioning": Partitioning(columns=("provider",))}
    (step,) = planned(case(**table)).steps
    assert f"CREATE UNIQUE INDEX {DERIVED} ON links (provider, account_id) WHERE deleted_at IS NULL" == step.sql
    assert "ALL WRITERS WAIT" in step.why


@pytest.mark.parametrize("where", ["deleted_at IS NULL", None])
def test_an_invalid_index_of_a_partitioned_table_is_left_to_people(where: str | None) -> None:
    """It may only wait for the last of its partitions; where it is the key, no second one is built beside it."""
    table: dict[str, Any] = {"relation": Relation.PARTITIONED, "partitioning": Partitioning(columns=("provider",))}
    repair = planned(case(index("half", "provider", "account_id", valid=False, where=where), **table))
    assert [] == sql(repair)
    assert [True] == ["ATTACH PARTITION" in remark for remark in repair.by_hand]


@pytest.mark.parametrize(
    ("schema", "home", "written"),
    [
        (None, "public", "links"),
        ("public", "public", "public.links"),
        (None, "tenant one", '"tenant one".links'),
        ("app", "app", "app.links"),
    ],
)
def test_names_are_qualified_where_the_search_path_could_miss_them(schema: str | None, home: str, written: str) -> None:
    """The mapping's schema, or another one than public, stands before the table and before what is dropped."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    looked = case(right, index("bare", "user_id"), constraint("c", "provider"), schema=home)
    repair = planned(replace(looked, subject=replace(SUBJECT, schema=schema)))
    assert [
        f"DROP INDEX CONCURRENTLY {written.replace('links', 'bare')}",
        f"ALTER TABLE {written} DROP CONSTRAINT c",
    ] == sql(repair)


def test_a_view_and_names_that_cannot_be_shown_get_no_migration() -> None:
    """A line break in a name could leave a comment; nothing is emitted then."""
    for table in ({"relation": Relation.VIEW}, {"name": "links\nDROP TABLE users"}):
        repair = planned(case(**table))
        assert [] == sql(repair)
        assert 2 == len(repair.by_hand)
        assert [] == statements(sql_script(repair))


# -- columns -----------------------------------------------------------------------------------------------------------


def changed(name: str, column: Column) -> tuple[Column, ...]:
    return tuple(column if each.name == name else each for each in COLUMNS)


@pytest.mark.parametrize(
    ("column", "up", "down"),
    [
        (
            text("account_id", type="character varying(50)", length=50, collation="C"),
            'TYPE text COLLATE "C"',
            'TYPE character varying(50) COLLATE "C"',
        ),
        (text("account_id", type="citext", exact=False), 'TYPE text COLLATE "C"', "TYPE citext"),
        (
            text("account_id", collation='no "case"', exact=False),
            'TYPE text COLLATE "C"',
            'TYPE text COLLATE "no ""case"""',
        ),
        (
            text("account_id", type="character(300)", kind=Kind.PADDED, length=300),
            'TYPE text COLLATE "C" USING rtrim(account_id)',
            "TYPE character(300)",
        ),
    ],
)
def test_a_column_that_is_short_or_compares_wrongly_becomes_text(column: Column, up: str, down: str) -> None:
    """One statement, whatever was wrong with it, which keeps the collation, and which can be taken back."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    (step,) = planned(case(right, columns=changed("account_id", column))).steps
    assert f"ALTER TABLE links ALTER COLUMN account_id {up}" == step.sql
    assert (f"ALTER TABLE links ALTER COLUMN account_id {down}",) == step.undo
    assert "ACCESS EXCLUSIVE" in step.why


IGNORING: Final = text("account_id", type="citext", exact=False)


def test_columns_change_last_unless_their_new_key_needs_it() -> None:
    """What keeps a column as it is, such as a view, must not keep the keys from being repaired."""
    narrow = text("provider", type="character varying(9)", length=9)
    subject = replace(SUBJECT, lengths={"account_id": 255, "provider": 64})
    short = (number("id", identity=True), number("user_id"), narrow, *COLUMNS[3:])
    repair = planned(case(constraint("s", "user_id"), subject=subject, columns=short))
    changes = [place for place, each in enumerate(sql(repair)) if "ALTER COLUMN" in each]
    assert [len(sql(repair)) - 1] == changes
    assert "a view, a rule, a trigger, a policy or a generated column" in repair.steps[-1].why

    inexact = changed("account_id", IGNORING)
    new = planned(case(columns=inexact))
    assert ["ALTER TABLE", "CREATE UNIQUE"] == [" ".join(each.split()[:2]) for each in sql(new)]
    old = planned(
        case(
            index("k", "provider", "account_id", where="deleted_at IS NULL"),
            constraint("s", "user_id"),
            columns=inexact,
        )
    )
    assert ["DROP CONSTRAINT", "ALTER COLUMN"] == [" ".join(each.split()[3:5]) for each in sql(old)]
    assert "Its keys stand, and are among them" in old.steps[-1].why


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            {"relation": Relation.PARTITIONED, "partitioning": Partitioning(columns=("account_id",))},
            "The table is partitioned by it",
        ),
        (
            {"relation": Relation.PARTITIONED, "partitioning": Partitioning(columns=(), expressions=True)},
            "The table is partitioned by it",
        ),
        ({"relation": Relation.PARTITION}, "The table is a partition"),
        ({"partitioning": Partitioning(inherited=True)}, "The table has children by inheritance"),
    ],
)
@pytest.mark.parametrize("column", [IGNORING, text("account_id", type="character varying(9)", length=9)])
def test_a_column_that_partitions_depend_on_is_left_to_people(table: dict[str, Any], told: str, column: Column) -> None:
    """No statement is emitted that must fail."""
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    repair = planned(case(right, columns=changed("account_id", column), **table))
    assert [] == [each for each in sql(repair) if "ALTER COLUMN" in each]
    assert any(told in remark for remark in repair.by_hand)


def test_a_column_of_addresses_keeps_its_type() -> None:
    """Addresses are converted to one form, so their column's comparison need not change."""
    need = Need(columns=("user_id", "provider", "email"), live=True, reason="a user has an address once")
    subject = replace(SUBJECT, needs=(need, ID_NEED), normal="email", exclusive=False)
    columns = changed("email", text("email", type="citext", exact=False))
    right = index("k", *need.columns, where="deleted_at IS NULL")
    repair = planned(case(right, subject=subject, columns=columns, rows=Rows(plain=2)))
    assert any("SET email = lower" in each for each in sql(repair))
    assert [] == [each for each in sql(repair) if each.startswith("ALTER")]


def test_a_column_of_numbers_is_left_to_people() -> None:
    """A change of an integer's type would rewrite the table under a lock, so a comment shows another way."""
    subject = replace(SUBJECT, bits={"user_id": 64})
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    narrow = number("user_id", type="integer", bits=32)
    repair = planned(case(right, subject=subject, columns=changed("user_id", narrow)))
    assert [] == sql(repair)
    assert [True] == ["add a second column" in remark for remark in repair.by_hand]


def test_null_is_shut_out_without_a_lock_that_readers_feel() -> None:
    """The rows are read by VALIDATE alone, and an index that is right but for NULL stays."""
    nullable = changed("account_id", text("account_id", nullable=True))
    repair = planned(case(index("k", "provider", "account_id", where="deleted_at IS NULL"), columns=nullable))
    assert [
        (
            "ALTER TABLE links ADD CONSTRAINT ck_links_account_id_not_null CHECK (account_id IS NOT NULL) NOT VALID",
            True,
        ),
        ("ALTER TABLE links VALIDATE CONSTRAINT ck_links_account_id_not_null", True),
        ("ALTER TABLE links ALTER COLUMN account_id SET NOT NULL", False),
        ("ALTER TABLE links DROP CONSTRAINT ck_links_account_id_not_null", False),
    ] == [(step.sql, step.alone) for step in repair.steps]


def test_a_check_that_a_stopped_migration_made_is_finished() -> None:
    """It is not made a second time; the keys come before it."""
    nullable = changed("account_id", text("account_id", nullable=True))
    taken = frozenset({"ck_links_account_id_not_null"})
    repair = planned(case(columns=nullable, taken=taken))
    assert [
        RIGHT.format(DERIVED),
        "ALTER TABLE links VALIDATE CONSTRAINT ck_links_account_id_not_null",
        "ALTER TABLE links ALTER COLUMN account_id SET NOT NULL",
        "ALTER TABLE links DROP CONSTRAINT ck_links_account_id_not_null",
    ] == sql(repair)
    assert "since a migration stopped half-way" in repair.steps[1].why


def test_rows_with_null_are_left_to_people() -> None:
    """No statement is emitted that would fail on them."""
    nullable = changed("account_id", text("account_id", nullable=True))
    rows = Rows(nulls={"account_id": 7})
    repair = planned(
        case(index("k", "provider", "account_id", where="deleted_at IS NULL"), columns=nullable, rows=rows)
    )
    assert [] == sql(repair)
    assert [True] == ["7 rows have NULL in account_id" in remark for remark in repair.by_hand]


def test_a_mark_in_the_key_is_never_made_not_null() -> None:
    """A nullable deleted_at belongs into the condition."""
    repair = planned(case(index("k", "provider", "account_id", "deleted_at")))
    assert [RIGHT.format(DERIVED), "DROP INDEX CONCURRENTLY k"] == sql(repair)


# -- duplicates --------------------------------------------------------------------------------------------------------


def test_duplicates_are_settled_in_one_transaction_before_the_key() -> None:
    """Writers are kept away first, and nothing but the key's own statement runs by itself."""
    repair = planned(case(rows=duplicates()))
    assert "LOCK TABLE links IN SHARE ROW EXCLUSIVE MODE" == sql(repair)[0]
    assert RIGHT.format(DERIVED) == sql(repair)[-1]
    assert {False} == {step.alone for step in repair.steps[:-1]}
    assert {()} == {step.undo for step in repair.steps[:-1]}
    script = statements(sql_script(repair))
    assert ["BEGIN", "LOCK TABLE links IN SHARE ROW EXCLUSIVE MODE"] == script[2:4]


DELETING: Final = replace(
    SUBJECT,
    needs=(replace(OWNER_NEED, live=False), ID_NEED),
    roles={role: name for role, name in ROLES.items() if role != "deleted_at"},
    soft=False,
)


@pytest.mark.parametrize("subject", [SUBJECT, DELETING], ids=["soft", "delete"])
@pytest.mark.parametrize("ids", [(), (constraint("pk", "id", deferrable=True),)], ids=["no key", "deferrable"])
def test_nothing_is_settled_by_an_id_that_may_repeat(subject: Subject, ids: tuple[Index, ...]) -> None:
    """A statement that goes by the id of one row could meet another user's: the key of the id comes first."""
    rows = Rows(duplicates={subject.needs[0]: Duplicates(groups=3, rows=4)})
    looked = case(subject=subject, rows=rows)
    table = replace(looked.table, indexes=ids)
    repair = planned(
        replace(
            looked,
            table=table,
            judgements=judged(subject, table),
        )
    )
    assert [] == [each for each in sql(repair) if each.startswith(("LOCK", "UPDATE", "DELETE"))]
    assert [] == [each for each in sql(repair) if "account_id" in each]
    assert 1 == sum("They could only be told apart by id" in remark for remark in repair.by_hand)


def test_rows_that_the_application_keeps_apart_are_not_settled() -> None:
    """A column that the policy does not know may mean that these are no duplicates at all."""
    columns = (*COLUMNS, number("tenant_id"))
    apart = index("k", "tenant_id", "provider", "account_id", where="deleted_at IS NULL")
    repair = planned(case(apart, columns=columns, rows=duplicates()))
    assert [] == sql(repair)
    assert 1 == sum("keeps such rows apart by tenant_id" in remark for remark in repair.by_hand)
    assert [RIGHT.format(DERIVED)] == sql(planned(case(apart, columns=columns)))
    for other, held in (
        (replace(apart, valid=False), columns),
        (index("k", "user_id", "provider", "account_id"), columns),
        (index("k", "computed", "user_id", "provider"), (*COLUMNS, text("computed", generated="lower(account_id)"))),
    ):
        assert "LOCK TABLE" in " ".join(sql(planned(case(other, columns=held, rows=duplicates()))))


@pytest.mark.parametrize(
    ("row_id", "newest_by", "settled"),
    [
        (text("id"), (), False),
        (number("id"), (), False),
        (number("id", identity=True), (), True),
        (text("id"), ("updated_at",), True),
    ],
)
def test_the_newest_must_be_known(row_id: Column, newest_by: tuple[str, ...], settled: bool) -> None:
    """Without a moment only an id that the database numbers says which row came last."""
    subject = replace(SUBJECT, newest_by=newest_by)
    repair = planned(case(subject=subject, columns=changed("id", row_id), rows=duplicates()))
    assert settled is any(each.startswith("LOCK") for each in sql(repair))
    assert settled is not any("Map created_at or updated_at" in remark for remark in repair.by_hand)


def test_addresses_that_would_meet_others_stay_where_these_are_not_settled() -> None:
    """Lowering them would make the duplicates that no migration may settle."""
    need = Need(columns=("user_id", "provider", "email"), live=True, reason="a user has an address once")
    subject = replace(SUBJECT, needs=(need, ID_NEED), normal="email", exclusive=False, newest_by=())
    rows = Rows(plain=2, odd=1, duplicates={need: Duplicates(groups=1, rows=1)})
    columns = (text("id"), *changed("email", text("email"))[1:])
    repair = planned(
        case(index("k", *need.columns, where="deleted_at IS NULL"), subject=subject, columns=columns, rows=rows)
    )
    assert [] == sql(repair)
    assert 1 == sum("2 addresses in email stay as they are" in remark for remark in repair.by_hand)
    assert 1 == sum("1 addresses in email need more than lower()" in remark for remark in repair.by_hand)


def test_rows_that_could_not_be_counted_are_settled_before_their_key() -> None:
    """Row-level security hides them from the doctor; where there are no duplicates, the steps do nothing."""
    security = RowSecurity(enabled=True, active=True)
    repair = planned(case(row_security=security))
    assert "LOCK TABLE" in sql(repair)[0]
    assert RIGHT.format(DERIVED) == sql(repair)[-1]
    assert any("Run it as the owner of the table" in step.why for step in repair.steps)
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    assert [] == sql(planned(case(right, row_security=security)))


def test_addresses_of_dead_rows_are_lowered_last() -> None:
    """A key that counts dead rows has gone by then, so that none of them can be in the way."""
    need = Need(columns=("user_id", "provider", "email"), live=True, reason="a user has an address once")
    subject = replace(SUBJECT, needs=(need, ID_NEED), normal="email", exclusive=False)
    columns = changed("email", text("email"))
    repair = planned(case(index("k", *need.columns), subject=subject, columns=columns, rows=Rows(plain=2)))
    lowering = [place for place, statement in enumerate(sql(repair)) if "SET email = lower" in statement]
    assert [len(sql(repair)) - 1] == lowering[1:]
    made = [place for place, statement in enumerate(sql(repair)) if statement.startswith("CREATE UNIQUE INDEX")]
    assert made[0] < sql(repair).index("DROP INDEX CONCURRENTLY k") < lowering[0]
    assert "AND deleted_at IS NULL" in sql(repair)[lowering[0]]
    assert "AND (deleted_at IS NULL) IS NOT TRUE" in sql(repair)[lowering[1]]


@pytest.mark.parametrize(
    ("column", "written"),
    [
        (moment("deleted_at"), "deleted_at = now() - d.number * interval '1 microseconds',"),
        (
            moment("deleted_at", type="timestamp(3) without time zone"),
            "deleted_at = now() AT TIME ZONE 'UTC' - d.place * interval '1000 microseconds',",
        ),
        (
            number("deleted_at", nullable=True),
            "deleted_at = CAST(floor(extract(epoch FROM now())) AS bigint) - d.place,",
        ),
    ],
)
def test_the_moment_of_death_has_the_form_of_its_column(column: Column, written: str) -> None:
    """With a zone, in UTC without one, or in whole seconds; the rows of one key get different ones."""
    repair = planned(case(columns=changed("deleted_at", column), rows=duplicates()))
    assert 1 == sum(written in statement for statement in sql(repair))


def test_a_reason_that_would_block_is_not_given() -> None:
    """A duplicate that is marked dead can be restored."""
    roles = ROLES | {"reason": "why"}
    columns = (*COLUMNS, text("why", nullable=True))
    free = replace(SUBJECT, roles=roles)
    assert 1 == sum(
        "why = 'duplicate'" in each for each in sql(planned(case(subject=free, columns=columns, rows=duplicates())))
    )
    blocked = replace(free, blocked_reasons=frozenset({"duplicate"}))
    assert "'duplicate'" not in " ".join(sql(planned(case(subject=blocked, columns=columns, rows=duplicates()))))


@pytest.mark.parametrize(
    ("column", "checks"),
    [
        (text("why"), ()),
        (text("why", nullable=True, type="a_domain"), ()),
        (text("why", nullable=True, type="character varying(8)", length=8), ()),
        (text("why", nullable=True), ("(why = ANY (ARRAY['user'::text, 'admin'::text]))",)),
    ],
)
def test_a_reason_that_the_column_may_refuse_is_not_given(column: Column, checks: tuple[str, ...]) -> None:
    """The row is still marked dead."""
    subject = replace(SUBJECT, roles=ROLES | {"reason": "why"})
    repair = planned(case(subject=subject, columns=(*COLUMNS, column), rows=duplicates(), checks=checks))
    assert "'duplicate'" not in " ".join(sql(repair))
    assert any("Where a CHECK or a trigger of the table refuses that" in step.why for step in repair.steps)


def test_a_credential_that_takes_no_null_is_wiped_as_unlink_does_it() -> None:
    """An empty text, or the beginning of time, stands for nothing."""
    ends = sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False)
    empty = {**SUBJECT.empty, "expires_at": empty_in("expires_at", ends)}
    subject = replace(SUBJECT, roles=ROLES | {"expires_at": "expires_at"}, empty=empty)
    columns = (*changed("refresh_token", text("refresh_token")), moment("expires_at", nullable=False))
    told = " ".join(sql(planned(case(subject=subject, columns=columns, rows=duplicates()))))
    assert "refresh_token = ''," in told
    assert "expires_at = '1970-01-01 00:00:00+00:00'\n" in told


def test_a_mark_that_every_row_has_gets_no_migration() -> None:
    """A key for live rows would keep nothing apart, so that none is made."""
    repair = planned(case(columns=changed("deleted_at", moment("deleted_at", nullable=False))))
    assert [] == sql(repair)
    assert [True] == ["dead from its beginning" in remark for remark in repair.by_hand]


def test_row_security_cannot_hide_duplicates_in_silence() -> None:
    """Where rows may be hidden, the transaction fails instead of settling what it sees."""
    repair = planned(case(rows=duplicates(), row_security=RowSecurity(enabled=True)))
    assert "SET LOCAL row_security = off" == sql(repair)[1]


def test_hidden_owners_are_a_decision_about_security() -> None:
    """The policy that would show them is written beside the finding, and never run."""
    policy = RowPolicy(name="own", permissive=True, command="ALL", using="(user_id = 1)")
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    security = RowSecurity(enabled=True, active=True, policies=(policy,))
    repair = planned(case(right, row_security=security))
    assert [] == sql(repair)
    assert ["CREATE POLICY accountlink_sees_owners ON links FOR SELECT TO web USING (true);" in repair.by_hand[0]] == [
        True
    ]
    assert [] == statements(sql_script(repair))


def test_an_unknown_rule_is_told_and_not_lost() -> None:
    """Whatever no migration repairs stands in the script, in the finding's own words."""
    finding = Finding(
        rule="unsafe-pooling", severity=Severity.ERROR, table="links", object=None, columns=(), message="M.", fix="F."
    )
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    assert ("unsafe-pooling: M. F.",) == plan(case(right), [finding]).by_hand


# -- SQLite ------------------------------------------------------------------------------------------------------------


def test_sqlite_repairs_in_one_transaction() -> None:
    """The wrong index goes and the right one comes, under the declared name, all or nothing."""
    declared = Declared(name="k", columns=("provider", "account_id"), live=True, constraint=False)
    wrong = index("k", "provider", "account_id")
    repair = planned(case(wrong, subject=replace(SUBJECT, declared=(declared,)), dialect="sqlite"))
    assert [
        "BEGIN IMMEDIATE",
        "DROP INDEX k",
        "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE deleted_at IS NULL",
        "COMMIT",
    ] == statements(sql_script(repair))


def test_sqlite_stops_at_the_first_error() -> None:
    """The script makes the program stop at an error, up and down: otherwise it would continue and commit."""
    script = sql_script(planned(case(index("k", "provider", "account_id"), dialect="sqlite")))
    assert ".bail on" == script.splitlines()[0]
    assert ".bail on" == downgrade(script).splitlines()[0]
    assert ".bail" not in sql_script(planned(case(index("k", "provider", "account_id"))))
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    assert ".bail" not in sql_script(planned(case(right, dialect="sqlite")))


def test_sqlite_leaves_not_null_to_people() -> None:
    """It changes no column in place."""
    nullable = changed("account_id", text("account_id", nullable=True))
    right = index("k", "provider", "account_id", where="deleted_at IS NULL")
    repair = planned(case(right, columns=nullable, dialect="sqlite"))
    assert [] == sql(repair)
    assert [True] == ["build the table anew" in remark for remark in repair.by_hand]


# -- written down ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_if_exists_is_never_written(dialect: str) -> None:
    """A wrong name must fail: it could silently do nothing."""
    wrong = (index("bad", "provider", valid=False), constraint("s", "user_id"), index("k", "provider", "account_id"))
    repair = planned(case(*wrong, rows=duplicates(), dialect=dialect))
    told = " ".join([*sql(repair), *(undo for step in repair.steps for undo in step.undo)])
    assert len(repair.steps) > 4
    assert "EXISTS" not in told


def test_no_comment_can_be_left() -> None:
    """Whatever stands in a remark or a statement of the downgrade, it stays a comment."""
    step = Step(sql="SELECT 1", why="a\nDROP TABLE b;\rDROP TABLE c;", undo=("CREATE TABLE t (\n  a -- b\n)",))
    repair = Repair(dialect="sqlite", table="t\nDROP TABLE d", steps=(step,), by_hand=("e\nDROP TABLE f;",))
    assert ["BEGIN IMMEDIATE", "SELECT 1", "COMMIT"] == statements(sql_script(repair))
    assert ["BEGIN IMMEDIATE", "CREATE TABLE t (\n  a -- b\n)", "COMMIT"] == statements(downgrade(sql_script(repair)))
    assert ["SELECT 1"] == executed(repair, "upgrade")


def test_a_comment_at_the_end_does_not_swallow_the_semicolon() -> None:
    """A statement of the database's own may end in a comment."""
    repair = Repair(dialect="sqlite", table="t", steps=(Step(sql="CREATE INDEX i ON t (a) -- b", why=""),))
    assert "CREATE INDEX i ON t (a) -- b\n;" in sql_script(repair)


def test_waiting_politely_is_not_bounded_and_all_other_waiting_is() -> None:
    """A time-out would leave an invalid index; a statement that others queue behind gives up early."""
    repair = planned(case(constraint("s", "user_id"), rows=duplicates()))
    script = statements(sql_script(repair))
    bound: list[str] = [each for each in script if "TIMEOUT" in each.upper()]
    assert [
        "SET statement_timeout = 0",
        "SET lock_timeout = '5s'",
        "SET lock_timeout = 0",
        "SET lock_timeout = '5s'",
        "RESET lock_timeout",
        "RESET statement_timeout",
    ] == bound
    assert script.index("SET lock_timeout = 0") + 1 == script.index(RIGHT.format(DERIVED))


DIALECTS: Final[tuple[sa.Dialect, ...]] = (asyncpg.dialect(), psycopg.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy's


class Context:
    """Stands for Alembic's own."""

    @staticmethod
    def autocommit_block() -> AbstractContextManager[None]:
        return nullcontext()


def executed(repair: Repair, function: str) -> list[str]:
    """What a function of the emitted revision gives to ``op.execute``, as the database gets it, time-outs aside."""
    module = alembic_revision(repair, revision="a1", down_revision="b'\"2", created=WHEN)
    told: list[str] = []

    class Op:
        @staticmethod
        def execute(statement: str | sa.DDL) -> None:
            clause = sa.text(statement) if isinstance(statement, str) else statement
            compiled = [str(clause.compile(dialect=dialect)) for dialect in DIALECTS]
            assert compiled[0] == compiled[1].replace("%%", "%")  # psycopg undoes it
            told.append(compiled[0])

        @staticmethod
        def get_context() -> type[Context]:
            return Context

    scope: dict[str, Any] = {}
    exec(compile(module.replace("from alembic import op", ""), "revision.py", "exec"), scope)  # noqa: S102  # tested
    scope["op"] = Op
    assert ("a1", "b'\"2", None, None) == tuple(
        scope[name] for name in ("revision", "down_revision", "branch_labels", "depends_on")
    )
    scope[function]()
    around = ("SET ", "RESET ", "BEGIN", "COMMIT", GUARD)
    return [
        "\n".join(map(str.strip, each.strip().splitlines())) for each in told if not each.strip().startswith(around)
    ]


@given(st.text(alphabet=st.sampled_from("ab:'\"\\%{} \n\t\u2028é;-"), min_size=1).filter(str.strip))
def test_a_statement_reaches_the_database_as_it_is(awkward: str) -> None:
    """No colon, quotation mark, backslash or percent sign means anything on the way through Python and SQLAlchemy."""
    quoted = '"' + awkward.replace('"', '""') + '"'
    statement = f"ALTER TABLE {quoted} ADD CONSTRAINT x CHECK ({quoted}::text <> ':a')"
    repair = Repair(dialect="postgresql", table="t", steps=(Step(sql=statement, why="", undo=(statement,)),))
    module = alembic_revision(repair, revision="a1", down_revision=None, created=WHEN)
    scope: dict[str, Any] = {}
    exec(compile(module.replace("from alembic import op", ""), "revision.py", "exec"), scope)  # noqa: S102  # tested
    told: list[Any] = []
    scope["op"] = type("Op", (), {"execute": staticmethod(told.append)})
    for function in ("upgrade", "downgrade"):
        told.clear()
        scope[function]()
        clause = sa.text(told[2]) if isinstance(told[2], str) else told[2]
        assert statement == str(clause.compile(dialect=DIALECTS[0]))


def test_a_revision_is_a_whole_module() -> None:
    """Its functions run what the steps say, in order, and take it back in the opposite one."""
    repair = planned(case(constraint("s", "user_id"), rows=duplicates()))
    assert [" ".join(each.split()) for each in sql(repair)] == [
        " ".join(e.split()) for e in executed(repair, "upgrade")
    ]
    assert ["ALTER TABLE links ADD CONSTRAINT s UNIQUE (user_id)", f"DROP INDEX CONCURRENTLY {DERIVED}"] == executed(
        repair, "downgrade"
    )


def test_nothing_to_run_is_a_revision_all_the_same() -> None:
    """What is to be done by hand stands in it, and its functions do nothing."""
    repair = Repair(dialect="postgresql", table="t", by_hand=("Look.",))
    assert ([], []) == (upgrade_lines(repair), downgrade_lines(repair))
    module = alembic_revision(repair, revision="a1", down_revision=None, created=WHEN)
    assert "# 1. Look." in module
    scope: dict[str, Any] = {}
    exec(compile(module, "revision.py", "exec"), scope)  # noqa: S102  # tested
    assert (None, None) == (scope["upgrade"](), scope["downgrade"]())
