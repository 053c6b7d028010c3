"""What the words of an index's expression tell before any database is asked."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink.doctor.judge.wording import Wording, parts_of
from accountlink.doctor.schema import Column, Kind, Table

PG: Final = "postgresql"
LITE: Final = "sqlite"
TABLE: Final = Table(
    schema=None,
    name="links",
    columns=(
        Column(name="account_id", type="text", kind=Kind.TEXT),
        Column(name="is_active", type="boolean", kind=Kind.BOOLEAN),
        Column(name="deleted_at", type="timestamp with time zone", kind=Kind.MOMENT),
        Column(name="n", type="integer", kind=Kind.INTEGER),
        Column(name="loose", type="citext", kind=Kind.TEXT, exact=False),
        Column(name="extra", type="jsonb", kind=Kind.OTHER),
        Column(name="vendor", type='"Provider Kind"', kind=Kind.ENUM),
        Column(name="Odd Name", type="text", kind=Kind.TEXT),
        Column(name="folded", type="text", kind=Kind.TEXT, generated="lower(account_id)"),
        Column(name="digest", type="text", kind=Kind.TEXT, generated="md5(account_id)"),
    ),
)

PLAIN: Final = [
    (PG, "(deleted_at IS NULL)"),
    (PG, "((deleted_at IS NULL) AND (is_active = true) AND ((account_id)::text <> 'local'::text))"),
    (PG, "((account_id)::text = ANY ((ARRAY['google'::character varying, 'x'::character varying])::text[]))"),
    (PG, "(account_id = ANY ('{google,x}'::text[]))"),
    (PG, "lower(btrim((account_id)::text))"),
    (PG, "((account_id || ':'::text) || n)"),
    (PG, "COALESCE(deleted_at, 'infinity'::timestamp with time zone)"),
    (PG, "(n > '-1'::integer)"),
    (PG, "(deleted_at <> '2020-01-01 00:00:00+00'::timestamp with time zone)"),
    (PG, "((n >= 1) AND (n <= 3))"),
    (PG, "(vendor <> 'google'::\"Provider Kind\")"),
    (PG, "(extra IS NOT NULL)"),
    (PG, "(loose IS NOT NULL)"),
    (PG, "CASE WHEN (deleted_at IS NULL) THEN account_id ELSE NULL::character varying END"),
    (PG, '("Odd Name" = \'x\'::text)'),
    (PG, "(folded = 'x'::text)"),
    (PG, "(account_id COLLATE \"C\")"),
    (LITE, "[account_id] == 'x' -- a comment"),
    (LITE, '`account_id` IS "no column"'),
    (LITE, "ifnull(deleted_at, 0)"),
    (LITE, "n BETWEEN 0 AND 1"),
    (LITE, "n = -1"),
]  # fmt: skip
NOT_PLAIN: Final = [
    (PG, "foo(account_id)"),
    (PG, "length(account_id) < 999"),
    (PG, "(account_id < 'm'::text)"),
    (PG, "(account_id ~~ 'x%'::text)"),
    (PG, "(deleted_at > '2020-01-01 00:00:00+00'::timestamp with time zone)"),
    (PG, "(loose = 'x'::citext)"),
    (PG, "(extra = '{}'::jsonb)"),
    (PG, "((account_id)::integer > 5)"),
    (PG, "((account_id)::character varying(3) = 'abc'::text)"),
    (PG, r"(account_id = E'a\\b'::text)"),
    (PG, "(account_id COLLATE nocase)"),
    (PG, "((n + 1) = 2)"),
    (PG, "(n - 1)"),
    (PG, "(- n)"),
    (PG, "((n % 2) = 0)"),
    (PG, "(digest = 'x'::text)"),
    (PG, "(deleted_at < CURRENT_TIMESTAMP)"),
    (LITE, "rowid > 5"),
    (LITE, "account_id = x'00'"),
    (LITE, "account_id COLLATE NOCASE = 'X'"),
    (LITE, "account_id BETWEEN 'a' AND 'b'"),
    (LITE, "n IN (SELECT id FROM other)"),
    (LITE, "n = 1.5"),
]


@pytest.mark.parametrize(("dialect", "sql"), PLAIN)
def test_what_model_rows_exhaust(dialect: str, sql: str) -> None:
    """Comparisons, logic and functions of a short list: rows at the values that are mentioned show all of it."""
    assert Wording(sql, TABLE, dialect).plain


@pytest.mark.parametrize(("dialect", "sql"), NOT_PLAIN)
def test_what_model_rows_do_not_exhaust(dialect: str, sql: str) -> None:
    """An order of texts, a pattern, arithmetic, other functions: with another row it may come to something else."""
    assert not Wording(sql, TABLE, dialect).plain


COLUMNS: Final = {
    "foo(account_id, (n))": {"account_id", "n"},
    "(SELECT max(n) FROM other)": {"n"},
    "links.account_id = 'n'": {"account_id"},
    "public.links.account_id": {"account_id"},
    "lower((account_id)::vendor) || n(1)": {"account_id"},
    "other.foo(n) OVER (PARTITION BY account_id)": {"n", "account_id"},
    "\"Odd Name\" = 'Odd Name'": {"Odd Name"},
    "folded": {"folded", "account_id"},
    "now()": set(),
    "the_n, nn": set(),
    "n = 'open": {"n"},
    "": set(),
}


@pytest.mark.parametrize("sql", COLUMNS)
def test_columns_are_those_that_are_read(sql: str) -> None:
    """Names of types, functions and tables do not count, and those behind a generated column do."""
    assert COLUMNS[sql] == Wording(sql, TABLE, PG).columns


def test_names_are_spelled_as_the_database_compares_them() -> None:
    """SQLite ignores the case of names, also of quoted ones; PostgreSQL does not ignore that of quoted ones."""
    assert {"account_id"} == Wording('"ACCOUNT_ID"', TABLE, LITE).columns
    assert set() == Wording('"ACCOUNT_ID"', TABLE, PG).columns


def test_values_that_are_mentioned() -> None:
    """Texts and whole numbers, those in a text and in a list among them, each once."""
    told = Wording("n IN (1, 2) OR account_id = 'it''s' OR account_id = ANY ('{a,b}') OR n > '-7'", TABLE, PG)
    assert (1, 2, "it's", "a", "b", "-7", -7) == told.mentions


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("'on'::text", "on"),
        ("('on')", "on"),
        ("7", "7"),
        ("'-1'::integer", "-1"),
        ("true", "true"),
        ("now()", None),
        ("NULL::text", None),
        ("'a' || 'b'", None),
        ("nextval('s'::regclass)", None),
    ],
)
def test_a_default_that_is_one_literal(sql: str, expected: str | None) -> None:
    """Only a literal is the same for every new row, as far as words tell."""
    assert expected == Wording(sql, TABLE, PG).literal


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("((a IS NULL) AND (b = 1))", ["a IS NULL", "b = 1"]),
        ("a AND (b AND (c))", ["a", "b", "c"]),
        ("a AND b OR c", ["a AND b OR c"]),
        ("a BETWEEN 1 AND 2", ["a BETWEEN 1 AND 2"]),
        ("NOT (a AND b)", ["NOT (a AND b)"]),
        ("a = ' AND ' AND b", ["a = ' AND '", "b"]),
    ],
)
def test_conditions_that_must_all_hold(sql: str, expected: list[str]) -> None:
    """What ``AND`` joins is taken apart, and nothing else is."""
    assert expected == parts_of(sql, PG)


VOCABULARY: Final = """
    n account_id deleted_at NULL TRUE false AND OR NOT IS IN BETWEEN CASE WHEN THEN ELSE END CAST AS COLLATE ARRAY ANY
    coalesce lower text ( ) [ ] , . : :: = <> < - + || ~ 'x' '' "n" "C" 1 1.5 -- /* */ $1 ; ? E'\\' x'00'
"""


@pytest.mark.parametrize("dialect", [PG, LITE])
@given(text=st.text() | st.lists(st.sampled_from(VOCABULARY.split()), max_size=25).map(" ".join))
def test_no_words_make_it_fail(dialect: str, text: str) -> None:
    """Any text at all reads columns of the table alone, and is plain or not."""
    words = Wording(text, TABLE, dialect)
    assert words.columns <= {column.name for column in TABLE.columns}
    assert isinstance(words.plain, bool)
    assert isinstance(words.mentions, tuple)
