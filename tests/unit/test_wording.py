"""What the words of an index's expression tell before any database is asked."""

from __future__ import annotations

import time
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


LARGE: Final = {
    "brackets": "(" * 500 + "n" + ")" * 500,
    "NOT": "NOT " * 5000 + "n",
    "minus": "- " * 5000 + "n",
    "conditions side by side": " AND ".join(["n = 1"] * 3000),
    "comparisons of brackets": " AND ".join(["((n)) >= ((1))"] * 1000),
    "texts": "account_id" + " || 'x'" * 5000,
    "casts": "n" + "::text" * 5000,
    "CASE": "CASE WHEN " * 3000 + "n",
    "calls": "coalesce(" * 1000 + "n" + ")" * 1000,
    "quotes": "'" * 20_001,
    "comments": "/*" * 10_000,
    "tests for NULL": "n" + " IS NULL" * 5000,
    "a list": "n NOT IN (" + ", ".join(map(str, range(3000))) + ")",
}


@pytest.mark.parametrize("dialect", [PG, LITE])
@pytest.mark.parametrize("case", LARGE)
def test_an_expression_of_any_length_and_depth_is_read(case: str, dialect: str) -> None:
    """However long or deep an expression is, reading it ends soon and never fails."""
    start = time.process_time()
    words = Wording(LARGE[case], TABLE, dialect)
    assert words.columns <= {"n", "account_id"}
    assert {type(value) for value in words.mentions} <= {int, str}
    assert {bool} == {type(words.plain), type(words.constant)}
    assert parts_of(LARGE[case], dialect) or case in ("quotes", "comments")
    assert 2 > time.process_time() - start


def test_generated_columns_that_read_each_other_are_read_once() -> None:
    """SQLite lets generated columns read each other: a long chain of them costs no more than its length."""
    chain = [Column(name="g0", type="text", kind=Kind.TEXT)]
    for place in range(1, 60):
        two = f"g{place - 1} || g{max(0, place - 2)}"
        chain.append(Column(name=f"g{place}", type="text", kind=Kind.TEXT, generated=two))
    words = Wording("g59", Table(schema=None, name="links", columns=tuple(chain)), LITE)
    assert words.plain
    assert frozenset(f"g{place}" for place in range(60)) == words.columns


CONSTANTS: Final = {"7": True, "(- 7)": True, "(2 * '-7'::integer)": True, "abs(7)": False, "(n + 1)": False}


@pytest.mark.parametrize("sql", CONSTANTS)
def test_literals_and_operators_are_constant(sql: str) -> None:
    """A function may do anything, and a column differs by row; all else has one value."""
    assert CONSTANTS[sql] is Wording(sql, TABLE, PG).constant
