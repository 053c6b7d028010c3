"""What an index's condition or key comes to for a row, as tables of cases."""

from __future__ import annotations

import time
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink.doctor.judge.expressions import UNKNOWN, Expression, Opaque, Value, equal, parse

COLUMNS: Final = ("account_id", "provider", "is_active", "deleted_at", "n", "Odd Name", "user")
PG: Final = "postgresql"
LITE: Final = "sqlite"
BOTH: Final = (PG, LITE)
T1, T2 = Opaque("t1"), Opaque("t2")


def read(sql: str, dialect: str = PG) -> Expression:
    return parse(sql, columns=COLUMNS, dialect=dialect)


def told(sql: str, dialect: str = PG, **row: Value) -> Value:
    return read(sql, dialect).evaluate(row)


FLAGS: Final = {
    "is_active": (True, False, None),
    "(is_active)": (True, False, None),
    "NOT is_active": (False, True, None),
    "is_active = true": (True, False, None),
    "(is_active = 1)": (True, False, None),
    "is_active <> 0": (True, False, None),
    "is_active = FALSE": (False, True, None),
    "is_active IS TRUE": (True, False, False),
    "is_active IS NOT TRUE": (False, True, True),
    "is_active IS FALSE": (False, True, False),
    "is_active IS NOT FALSE": (True, False, True),
    "is_active IS NULL": (False, False, True),
    "is_active IS NOT NULL": (True, True, False),
    "is_active ISNULL": (False, False, True),
    "COALESCE(is_active, false)": (True, False, False),
    "coalesce(is_active, false) = true": (True, False, False),
    "is_active IS DISTINCT FROM true": (False, True, True),
    "is_active IS NOT DISTINCT FROM false": (False, True, False),
    "CASE WHEN is_active THEN 1 ELSE 0 END = 1": (True, False, False),
    "nullif(is_active, false)": (True, None, None),
    "is_active AND NULL": (None, False, None),
    "is_active OR NULL": (True, None, None),
    "NOT is_active IS NULL": (True, True, False),
}


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("sql", FLAGS)
def test_a_flag_is_told_in_every_way_of_asking(sql: str, dialect: str) -> None:
    """A condition on a boolean column is right for true, false and NULL."""
    assert FLAGS[sql] == tuple(told(sql, dialect, is_active=value) for value in (True, False, None))


FOURTH: Final[dict[str, Value]] = {
    "n = 1 AND false": False,
    "false AND n = 1": False,
    "n = 1 OR true": True,
    "n = 1 AND true": UNKNOWN,
    "n = 1 AND NULL": UNKNOWN,
    "n = 1 OR NULL": UNKNOWN,
    "NOT n = 1": UNKNOWN,
    "n IS NULL": UNKNOWN,
    "n IS NOT NULL": UNKNOWN,
    "n IS DISTINCT FROM NULL": UNKNOWN,
    "n = NULL": None,
    "n IN (NULL)": None,
    "n IN (n, 1)": UNKNOWN,
    "1 IN (n, 1)": True,
    "1 NOT IN (n, 1)": False,
    "n BETWEEN 1 AND NULL": UNKNOWN,
    "n BETWEEN NULL AND NULL": None,
    "COALESCE(n, 1)": UNKNOWN,
    "COALESCE(NULL, 1, n)": 1,
    "NULLIF(n, 1)": UNKNOWN,
    "NULLIF(NULL, n)": None,
    "CASE WHEN n = 1 THEN 2 ELSE 2 END": 2,
    "CASE WHEN n = 1 THEN 2 ELSE 3 END": UNKNOWN,
    "CASE WHEN false THEN n WHEN true THEN 5 ELSE n END": 5,
    "random() IS NULL AND 1 = 2": False,
    "n + NULL": None,
    "n LIKE NULL": None,
}


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("sql", FOURTH)
def test_what_is_unknown_decides_nothing(sql: str, dialect: str) -> None:
    """A value is definite only if it is the same whatever stands where the row is unknown."""
    assert (FOURTH[sql], FOURTH[sql]) == (told(sql, dialect), told(sql, dialect, n=UNKNOWN))


SPELLINGS: Final[dict[str, Value]] = {
    "(deleted_at IS NULL)": True,
    "((deleted_at IS NULL) AND (is_active = true) AND ((provider)::text <> 'local'::text))": True,
    "((provider)::text = ANY ((ARRAY['google'::character varying, 'x'::character varying])::text[]))": True,
    "(provider = ANY (ARRAY['apple'::text, 'x'::text]))": False,
    "(provider <> ALL (ARRAY['apple'::text, 'x'::text]))": True,
    "(provider = ANY ('{google,x}'::text[]))": True,
    "(provider = ANY ('{\"google\",x}'::text[]))": UNKNOWN,
    "(provider = ANY (names))": UNKNOWN,
    "lower((account_id)::text)": "ada",
    "lower(btrim((account_id)::text))": "ada",
    "(((provider)::text || ':'::text) || (account_id)::text)": "google:Ada",
    "COALESCE(deleted_at, 'infinity'::timestamp with time zone)": Opaque(
        "'infinity'::timestamp with time zone", literal=True
    ),
    "(n = '-1'::integer)": False,
    "(n > '-1'::integer)": True,
    "n=-1": False,
    "(tags || NULL::text)": UNKNOWN,
    "(((account_id)::text || ' '::text)::bpchar = 'Ada'::bpchar)": True,
    "(n)::text": "1",
    "(account_id COLLATE \"C\")": "Ada",
    "((account_id)::text COLLATE pg_catalog.\"default\" = 'ada'::text)": False,
    "(account_id COLLATE \"und-x-icu\" = 'ada'::text)": UNKNOWN,
    "(account_id COLLATE \"und-x-icu\" = 'Ada'::text)": True,
    "((account_id)::citext = 'ada'::citext)": UNKNOWN,
    "(account_id OPERATOR(public.=) 'Ada'::public.citext)": UNKNOWN,
    "((provider)::character varying(3))": UNKNOWN,
    "((deleted_at)::date IS NULL)": True,
    "EXTRACT(epoch FROM deleted_at)": None,
    "COALESCE(date_part('epoch'::text, deleted_at), (0)::double precision)": UNKNOWN,
    "(deleted_at AT TIME ZONE 'UTC'::text)": None,
    "TRIM(BOTH FROM account_id)": "Ada",
    "CASE WHEN (deleted_at IS NULL) THEN account_id ELSE NULL::character varying END": "Ada",
    "CASE provider WHEN 'google'::text THEN 1 ELSE 2 END": 1,
    "((provider ~~ 'goo%'::text) AND (deleted_at IS NOT NULL))": False,
    "('t'::boolean AND is_active)": True,
    "\"Odd Name\"": "odd",
    "link.provider": "google",
    "public.link.provider": "google",
    '"user" = 5': True,
    "user": UNKNOWN,
    "PROVIDER": "google",
    '"PROVIDER"': UNKNOWN,
    "E'google' = provider": True,
    r"E'goo\147le' = provider": UNKNOWN,
    "DATE '2026-01-31' IS NULL": False,
    "CURRENT_TIMESTAMP > deleted_at": None,
}  # fmt: skip


@pytest.mark.parametrize("sql", SPELLINGS)
def test_postgresqls_own_writing_is_read(sql: str) -> None:
    """An expression as ``pg_get_expr`` gives it comes to what the server makes of it, or cannot be told."""
    row: dict[str, Value] = {"account_id": "Ada", "provider": "google", "is_active": True, "deleted_at": None, "n": 1}
    assert SPELLINGS[sql] == read(sql).evaluate(row | {"Odd Name": "odd", "user": 5})


LITES: Final[dict[str, Value]] = {
    "deleted_at IS NULL -- live rows": True,
    "/* live */ deleted_at is null": True,
    "[provider] == 'google'": True,
    "`provider` IS 'google'": True,
    "Provider IS NOT 'google'": False,
    '"provider" = "google"': True,
    '"PROVIDER" = "apple"': False,
    "deleted_at NOT NULL": False,
    "deleted_at IS is_active": False,
    "n": 1,
    "n IS TRUE": True,
    "2 IS TRUE": True,
    "2 IS (TRUE)": True,
    "2 = TRUE": False,
    "provider": "google",
    "provider AND 1": UNKNOWN,
    "provider = 1": UNKNOWN,
    "provider IN ()": False,
    "provider NOT IN ()": True,
    "provider COLLATE NOCASE = 'GOOGLE'": UNKNOWN,
    "provider COLLATE BINARY = 'GOOGLE'": False,
    "ifnull(deleted_at, 0)": 0,
    "iif(deleted_at IS NULL, account_id, NULL)": "Ada",
    "account_id < 'B'": True,
    "strftime('%s', deleted_at)": None,
    "CAST(n AS VARCHAR(10))": "1",
    "CAST('t' AS BOOLEAN) IS NULL": False,
    "rowid": UNKNOWN,
    '"rowid"': UNKNOWN,
    "n = b AND 0": False,
    "1 < 2 = true": True,
    "0 = 1 < 0": True,
    "2 IS (TRUE COLLATE BINARY)": True,
    "provider COLLATE NOCASE < 'X'": UNKNOWN,
    "CAST(n AS REAL)": UNKNOWN,
    "other || NULL": None,
    "n IN (SELECT id FROM other) AND 0": False,
}


@pytest.mark.parametrize("sql", LITES)
def test_sqlites_own_ways_are_read(sql: str) -> None:
    """An expression as it was typed for SQLite comes to what SQLite makes of it, or cannot be told."""
    row: dict[str, Value] = {"account_id": "Ada", "provider": "google", "is_active": True, "deleted_at": None, "n": 1}
    assert LITES[sql] == read(sql, LITE).evaluate(row)


BINDING: Final = {
    "true OR false AND false": True,
    "NOT false OR true": True,
    "NOT true AND false": False,
    "NOT 1 = 2": True,
    "1 = 2 IS NULL": False,
    "1 BETWEEN 0 AND 2 AND false": False,
    "NOT 1 BETWEEN 0 AND 2": False,
    "'a' || 'b' = 'ab'": True,
    "- 1 = -1": True,
    "NOT NULL IS NULL": False,
    "1 IS NOT NULL = true": True,
    "CASE WHEN true THEN 1 END = 1 AND 2 = 2": True,
}


@pytest.mark.parametrize("sql", BINDING)
def test_operators_bind_as_in_the_database(sql: str) -> None:
    """Without brackets, precedence decides what belongs together."""
    assert (BINDING[sql], BINDING[sql]) == (told(sql), told(sql, LITE))


APART: Final = {
    "foo(account_id, (n))": {"account_id", "n"},
    "(provider @> '{}'::jsonb)": {"provider"},
    "(SELECT max(n) FROM other)": {"n"},
    "(n, provider) = (1, 'x')": {"n", "provider"},
    "ROW(n, provider) IS NULL": {"n", "provider"},
    "now()": set(),
    "other.foo(n) OVER (PARTITION BY provider)": {"n", "provider"},
    "n = ANY (SELECT 1)": {"n"},
    "provider SIMILAR TO account_id": {"provider", "account_id"},
    "n = $1": {"n"},
    "n = 'open": {"n"},
    "(n = 1": {"n"},
    "n ~~~": {"n"},
    "CASE n END": {"n"},
    "coalesce()": set(),
    "the_n, nn": set(),
    "": set(),
}


@pytest.mark.parametrize("sql", APART)
def test_what_cannot_be_read_is_unknown_and_names_its_columns(sql: str) -> None:
    """An expression beyond the reader comes to UNKNOWN, and still tells which columns it reads."""
    expression = read(sql)
    assert APART[sql] == expression.columns
    assert expression.evaluate({"n": 1, "provider": "x", "account_id": "y"}) is UNKNOWN


def test_an_unreadable_part_leaves_the_rest() -> None:
    """What cannot be read costs no more than the brackets it stands in."""
    sql = "((deleted_at IS NULL) AND (provider SIMILAR TO 'x') AND foo(n, ROWS BETWEEN))"
    assert {"deleted_at", "provider", "n"} == read(sql).columns
    assert False is told(sql, deleted_at=T1)
    assert UNKNOWN is told(sql, deleted_at=None)


def test_columns_are_those_that_are_read() -> None:
    """Names of types, functions and tables that are also columns' names do not count."""
    assert {"account_id"} == read("lower((account_id)::provider) || n(1) || user.account_id").columns
    assert {"provider"} == read("PROVIDER = 'account_id'", LITE).columns


MOMENTS: Final[dict[str, tuple[Value, Value, Value]]] = {
    "of two rows": (T1, T2, False),
    "of one row": (T1, T1, True),
    "and a literal": (T1, Opaque("'epoch'::timestamptz", literal=True), False),
    "the same literal": (Opaque("1.5", literal=True), Opaque("1.5", literal=True), True),
    "two literals": (Opaque("1.5", literal=True), Opaque("1.50", literal=True), UNKNOWN),
    "and a text": (T1, "t1", UNKNOWN),
    "and NULL": (T1, None, None),
}


@pytest.mark.parametrize("case", MOMENTS)
def test_moments_are_equal_by_name(case: str) -> None:
    """Moments of rows differ from each other and from every literal; two literals may mean the same moment."""
    one, other, expected = MOMENTS[case]
    assert expected is equal(one, other)
    assert expected is equal(other, one)


def test_live_rows_get_one_constant_for_no_moment() -> None:
    """F12: COALESCE of the moment of deletion gives all live rows one key, and dead rows their own."""
    key = read("COALESCE(deleted_at, 'epoch'::timestamp without time zone)")
    live, again, dead = (key.evaluate({"deleted_at": moment}) for moment in (None, None, T1))
    assert live == again
    assert (T1, False) == (dead, equal(live, dead))


@pytest.mark.parametrize("sql", ["deleted_at > now()", "deleted_at < '2026-01-01'::timestamptz", "deleted_at = 'x'"])
def test_a_moment_is_not_ordered(sql: str) -> None:
    """Whether a row's moment is before another cannot be told, and NULL is NULL."""
    assert (UNKNOWN, None) == (told(sql, deleted_at=T1), told(sql, deleted_at=None))


def test_inexact_columns_may_be_equal_in_other_letters() -> None:
    """Under a collation that ignores case, only the same text is certainly equal, and none certainly different."""
    expression = parse("provider = 'google'", columns=COLUMNS, dialect=PG, inexact={"provider"})
    assert [True, UNKNOWN, None] == [expression.evaluate({"provider": text}) for text in ("google", "GitHub", None)]


def test_an_expression_tells_whether_its_texts_compare_exactly() -> None:
    """A key's texts count as different keys only if nothing on the way to them ignores case."""
    assert [True, True, False, False, False] == [
        parse(sql, columns=COLUMNS, dialect=PG, inexact={"provider"}).exact
        for sql in ("lower(account_id)", "provider = 'x'", "provider", "(account_id)::citext", "foo(account_id)")
    ]


def test_members_of_an_enumeration_are_texts() -> None:
    """A literal of an enumeration is compared as a text only if the type is known to be one."""
    sql = "(provider <> 'google'::\"Provider Kind\")"
    known = parse(sql, columns=COLUMNS, dialect=PG, enums={'"Provider Kind"'})
    assert (True, False) == tuple(known.evaluate({"provider": text}) for text in ("github", "google"))
    assert UNKNOWN is told(sql, provider="github")


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), (None, False), (1, True), (UNKNOWN, UNKNOWN), ("x", UNKNOWN)]
)
def test_a_row_meets_a_condition_only_if_it_is_true(value: Value, expected: Value) -> None:
    """NULL keeps a row out of a partial index as false does."""
    assert expected is read("n").holds({"n": value})


@pytest.mark.parametrize(
    ("sql", "text", "dialect", "expected"),
    [
        ("lower(provider)", "GOOGLE", PG, "google"),
        ("lower(provider)", "ID", PG, UNKNOWN),
        ("lower(provider)", "ID", LITE, "id"),
        ("upper(provider)", "i", PG, UNKNOWN),
        ("lower(provider)", "\u00c9", LITE, UNKNOWN),
        ("provider < 'b'", "a", PG, UNKNOWN),
        ("provider <= 'a'", "a", PG, True),
    ],
)
def test_what_a_language_decides_is_unknown(sql: str, text: str, dialect: str, expected: Value) -> None:
    """Letters and an order that depend on the database's language are not guessed: Turkish has another small I."""
    assert expected == told(sql, dialect, provider=text)


@pytest.mark.parametrize("dialect", ["mysql", ""])
def test_another_dialect_is_unknown(dialect: str) -> None:
    """A language that the reader does not know is not taken for one that it knows."""
    assert told("n = 1", dialect, n=1) is UNKNOWN
    assert {"n"} == read("n = 1", dialect).columns


HUGE: Final = {
    "brackets": "(" * 5000 + "n" + ")" * 5000,
    "open brackets": "(" * 20000,
    "NOT": "NOT " * 5000 + "n",
    "minus": "- " * 5000 + "n",
    "texts": "provider" + " || 'x'" * 5000,
    "casts": "n" + "::text" * 5000,
    "CASE": "CASE WHEN " * 3000 + "n",
    "calls": "coalesce(" * 3000 + "n" + ")" * 3000,
    "quotes": "'" * 20001,
    "comments": "/*" * 10000,
    "tests": "n" + " IS NULL" * 5000,
}


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("case", HUGE)
def test_what_is_too_deep_is_unknown(case: str, dialect: str) -> None:
    """However long or deep an expression is, reading it ends soon and never fails."""
    start = time.perf_counter()
    assert told(HUGE[case], dialect, n=1, provider="x") is UNKNOWN
    assert 2 > time.perf_counter() - start


@pytest.mark.parametrize("dialect", BOTH)
def test_a_long_list_is_no_depth(dialect: str) -> None:
    """Thousands of conditions side by side are all counted."""
    assert True is told(" AND ".join(["n = 1"] * 3000), dialect, n=1)
    assert False is told("n NOT IN (" + ", ".join(map(str, range(3000))) + ")", dialect, n=1)


VOCABULARY: Final = """
    n provider deleted_at user NULL TRUE false AND OR NOT IS IN BETWEEN CASE WHEN THEN ELSE END CAST AS COLLATE ARRAY
    ANY ALL ISNULL DISTINCT FROM LIKE ESCAPE AT TIME ZONE OPERATOR EXTRACT trim BOTH timestamp with date coalesce lower
    text ( ) [ ] , . : :: = <> < - + || ~ 'x' '' "n" "C" 1 1.5 -- /* */ $1 ; ? E'\\' x'00'
"""
WORDS: Final = st.sampled_from(VOCABULARY.split())
ROW: Final[dict[str, Value]] = {"n": 1, "provider": "x", "deleted_at": T1, "user": None}


@pytest.mark.parametrize("dialect", [*BOTH, "other"])
@given(text=st.text(st.characters(exclude_categories=())) | st.lists(WORDS, max_size=25).map(" ".join))
def test_nothing_makes_the_reader_fail(dialect: str, text: str) -> None:
    """Any text at all is an expression that has some value, and reads columns of the table alone."""
    expression = read(text, dialect)
    assert text == expression.sql
    assert expression.columns <= set(COLUMNS)
    assert isinstance(expression.evaluate(ROW), Value)
    assert isinstance(expression.evaluate({}), Value)


@pytest.mark.parametrize("dialect", BOTH)
@given(words=st.lists(WORDS, max_size=12))
def test_what_is_known_of_a_part_of_a_row_holds_for_all_of_it(dialect: str, words: list[str]) -> None:
    """A definite value stays the same when more of the row is known."""
    expression = read(" ".join(words), dialect)
    less = expression.evaluate({"n": 1})
    assert less is UNKNOWN or less == expression.evaluate(ROW)
