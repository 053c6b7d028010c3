"""Expressions of indexes against the databases themselves: a definite answer is the database's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.judge.expressions import UNKNOWN, Opaque, Value, parse
from tests.support.databases import Database, run_sql

COLUMNS: Final = ("a", "b", "c", "d")
MOMENTS: Final = {"t1": datetime(2024, 5, 1, tzinfo=UTC), "t2": datetime(2025, 6, 2, 3, 4, 5, tzinfo=UTC)}
TEXTS: Final = (None, "", "x", "X", "Xy", "x ", " y", "I", "\u00e9", "it's", "7")
ROWS: Final[list[dict[str, Value]]] = [
    {"a": a, "b": b, "c": c, "d": d}
    for a in TEXTS
    for b in (None, True, False)
    for c in (None, -1, 0, 1, 7)
    for d in (None, Opaque("t1"), Opaque("t2"))
]
CHUNK: Final = 100

DIALECT: Final = {"asyncpg": "postgresql", "sqlite": "sqlite"}
TABLE: Final = {
    "asyncpg": "CREATE TABLE t (n integer, a text, b boolean, c integer, d timestamptz)",
    "sqlite": "CREATE TABLE t (n INTEGER, a TEXT, b BOOLEAN, c INTEGER, d DATETIME)",
}
SPELLING: Final = """
    CREATE FUNCTION spelling(expression text, condition boolean) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE spelt text;
    BEGIN
        IF condition THEN
            EXECUTE 'CREATE INDEX i ON t (n) WHERE ' || expression;
        ELSE
            EXECUTE 'CREATE INDEX i ON t ((' || expression || '))';
        END IF;
        SELECT pg_get_expr(coalesce(indpred, indexprs), indrelid) INTO spelt
          FROM pg_index WHERE indexrelid = 'i'::regclass;
        DROP INDEX i;
        RETURN spelt;
    EXCEPTION WHEN syntax_error OR undefined_object OR undefined_function OR datatype_mismatch OR cannot_coerce
                 OR indeterminate_datatype THEN
        RETURN NULL;  -- left out brackets can make an expression that has no meaning
    END $$
"""


@pytest.fixture(params=["sqlite", "asyncpg"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each database once; the driver makes no difference here."""
    return str(request.param)


class Maker:
    """Makes random expressions of a dialect; brackets are left out now and then, so that precedence counts."""

    def __init__(self, seed: int, *, postgresql: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311  # repeatable, not secret
        self.postgresql = postgresql

    def pick(self, *makers: Callable[[], str]) -> str:
        made = self.random.choice(makers)()
        return f"({made})" if self.random.random() < 0.7 else made

    def one(self, *words: str) -> str:
        return self.random.choice(words)

    def condition(self, depth: int) -> str:
        if depth <= 0:
            return self.one("b", "b", "d IS NULL", "a IS NOT NULL", "c = 1", "b = TRUE", "TRUE", "FALSE", "c > 0")
        below = depth - 1
        return self.pick(
            lambda: f"{self.condition(below)} AND {self.condition(below)}",
            lambda: f"{self.condition(below)} OR {self.condition(below)} OR {self.condition(below)}",
            lambda: f"NOT {self.condition(below)}",
            lambda: f"{self.condition(below)} {self.one('IS TRUE', 'IS NOT TRUE', 'IS FALSE', 'IS NOT FALSE')}",
            lambda: f"{self.anything(below)} {self.one('IS NULL', 'IS NOT NULL', 'ISNULL', 'NOTNULL')}",
            lambda: f"COALESCE({self.condition(below)}, {self.condition(below)})",
            lambda: self.comparison(below),
            lambda: self.comparison(below),
            lambda: self.case(self.condition, below),
            lambda: self.special_condition(below),
        )

    def comparison(self, depth: int) -> str:
        kind = self.random.choice([self.text, self.text, self.number, self.moment])
        operator = self.one("=", "=", "<>", "!=", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM")
        negated = self.one("", "NOT ")
        values = [kind(depth) for _ in range(4)]
        return self.one(
            f"{values[0]} {operator} {values[1]}",
            f"{values[0]} {operator} {values[1]}",
            f"{values[0]} {negated}IN ({', '.join(values[1:])})",
            f"{values[0]} {negated}BETWEEN {values[1]} AND {values[2]}",
        )

    def special_condition(self, depth: int) -> str:
        text, other, number = self.text(depth), self.text(depth), self.number(depth)
        if self.postgresql:
            return self.one(
                f"{text} = ANY (ARRAY[{other}, 'x'])",
                f"{text} <> ALL (ARRAY[{other}, NULL])",
                f"{text} = ANY ('{{x,y}}'::text[])",
                f"{number} <= ALL (ARRAY[{number}, 1])",
                f"{text} LIKE 'x%'",
                f"{text} COLLATE \"C\" < 'y'",
                f"{text}::char(3) = 'x'",
                f"{text}::bpchar = {other}::bpchar",
                f"{self.condition(depth)} IS UNKNOWN",
                f"{number}::boolean",
                f"{text}::varchar(1) = 'x'",
                f"starts_with({text}, 'x')",
                f"(ARRAY[{text}])[1] = 'x'",
            )
        return self.one(
            f"{text} IS {other}",
            f"{number} IS NOT {self.condition(depth)}",
            f"{number} IS (TRUE)",
            f"{number} == {self.condition(depth)}",
            f"{text} = {number}",
            f"{text} IN ()",
            f"{text} NOT NULL",
            f"{text} NOT LIKE 'x%'",
            f'{text} = "no column"',
            f"{text} COLLATE NOCASE = 'X'",
            f"{number} AND {self.condition(depth)}",
            f"{text} OR {number}",
            f"NOT {number}",
            "[b] = `c`",
            f"CAST({text} AS BOOLEAN) = {number}",
            f"IIF({number}, {self.condition(depth)}, {number})",
        )

    def text(self, depth: int) -> str:
        if depth <= 0:
            return self.one("a", "a", "t.a", '"a"', "'x'", "'Xy'", "''", "'it''s'", "'7'", "NULL")
        below = depth - 1
        typed = ("::text", "::varchar", "::varchar(2)") if self.postgresql else ("", " COLLATE BINARY")
        return self.pick(
            lambda: self.text(0),
            lambda: f"{self.text(below)} || {self.text(below)}",
            lambda: f"{self.one('lower', 'UPPER', 'trim', 'ltrim', 'rtrim')}(({self.text(below)}))",
            lambda: f"COALESCE({self.text(below)}, {self.text(below)})",
            lambda: f"NULLIF(({self.text(below)}), {self.text(below)})",
            lambda: self.case(self.text, below),
            lambda: f"({self.text(below)}){self.one(*typed)}",
            lambda: f"CAST({self.one(self.text(below), self.number(below))} AS text)",
            lambda: f"substr({self.text(below)}, {self.number(0)})",
        )

    def number(self, depth: int) -> str:
        if depth <= 0:
            return self.one("c", "c", "0", "1", "7", "-1", "- c", "c + 1", "CAST('7' AS integer)", "CAST(b AS integer)")
        below = depth - 1
        return self.pick(
            lambda: self.number(0),
            lambda: f"COALESCE({self.number(below)}, {self.number(below)})",
            lambda: f"NULLIF({self.number(below)}, {self.number(below)})",
            lambda: self.case(self.number, below),
            lambda: f"CAST({self.number(below)} AS {self.one('bigint', 'numeric', 'integer')})",
            lambda: f"- ({self.number(below)})",
            lambda: f"length({self.text(below)})",
        )

    def moment(self, depth: int) -> str:
        literals = ["'2000-01-01'", "'2030-01-01 00:00:00'"]
        if self.postgresql:
            literals = ["'epoch'::timestamptz", "'infinity'::timestamptz", "TIMESTAMP WITH TIME ZONE '2000-01-01 UTC'"]
        if depth <= 0:
            return self.one("d", "d", "d", *literals)
        below = depth - 1
        return self.pick(
            lambda: self.moment(0),
            lambda: f"COALESCE({self.moment(below)}, {self.moment(below)})",
            lambda: f"NULLIF({self.moment(below)}, {self.moment(below)})",
            lambda: self.case(self.moment, below),
        )

    def case(self, kind: Callable[[int], str], depth: int) -> str:
        otherwise = self.one("", f"ELSE {kind(depth)} ")
        if self.random.random() < 0.3:
            subject = self.random.choice([self.text, self.number])
            when = f"WHEN {subject(depth)} THEN {kind(depth)} WHEN {subject(depth)} THEN {kind(depth)}"
            return f"CASE {subject(depth)} {when} {otherwise}END"
        when = f"WHEN {self.condition(depth)} THEN {kind(depth)} WHEN {self.condition(depth)} THEN {kind(depth)}"
        return f"CASE {when} {otherwise}END"

    def anything(self, depth: int) -> str:
        return self.random.choice([self.condition, self.text, self.number, self.moment])(depth)


def stored(value: Value, kind: str) -> object:
    if not isinstance(value, Opaque):
        return value
    moment = MOMENTS[value.name]
    return moment if kind == "asyncpg" else moment.strftime("%Y-%m-%d %H:%M:%S")


async def fill(engine: AsyncEngine, rows: Sequence[dict[str, Value]], kind: str) -> None:
    await run_sql(engine, TABLE[kind])
    places = "$1, $2, $3, $4, $5" if kind == "asyncpg" else "?, ?, ?, ?, ?"
    parameters = [(n, *(stored(row[name], kind) for name in COLUMNS)) for n, row in enumerate(rows)]
    async with engine.begin() as connection:
        await connection.exec_driver_sql(f"INSERT INTO t VALUES ({places})", parameters)


async def spelt(engine: AsyncEngine, expressions: Sequence[str], kind: str, *, conditions: bool) -> dict[str, str]:
    """The expressions as an index of the database has them; those that have no meaning are left out."""
    if kind == "sqlite":
        return {expression: expression for expression in expressions}
    query = "SELECT e, spelling(e, $2) FROM unnest(CAST($1 AS text[])) AS given(e)"
    async with engine.begin() as connection:
        found: Any = await connection.exec_driver_sql(query, (list(expressions), conditions))
        return {given: spelling for given, spelling in found if spelling is not None}


async def answers(engine: AsyncEngine, expressions: list[str]) -> list[list[Any]]:
    """What the database makes of each expression for each row."""
    columns: list[list[Any]] = []
    async with engine.connect() as connection:
        for start in range(0, len(expressions), CHUNK):
            chosen = ", ".join(f"({expression})" for expression in expressions[start : start + CHUNK])
            found = [
                tuple(row)[1:] for row in await connection.exec_driver_sql(f"SELECT n, {chosen} FROM t ORDER BY n")
            ]
            columns.extend(list(column) for column in zip(*found, strict=True))
    return columns


def agrees(value: Value, actual: object, kind: str) -> bool:
    """Whether a definite value is the database's."""
    if isinstance(value, Opaque):
        moments = {name: stored(Opaque(name), kind) for name in MOMENTS}
        return actual is not None and (
            actual not in moments.values() if value.literal else actual == moments[value.name]
        )
    if isinstance(value, int):
        return isinstance(actual, (int, Decimal)) and actual == value
    return type(actual) is type(value) and actual == value


def masked(row: dict[str, Value], choice: random.Random) -> dict[str, Value]:
    """The row with some values unknown, in both ways of saying so."""
    return {name: UNKNOWN if choice.random() < 0.3 else value for name, value in row.items() if choice.random() > 0.2}


@pytest.mark.parametrize("conditions", [True, False], ids=["conditions", "keys"])
async def test_a_definite_answer_is_the_databases(database: Database, kind: str, conditions: bool) -> None:
    """Whatever is unknown of a row, a definite value is the one that the database gives for the true row."""
    engine = database.engine()
    maker = Maker(20 + conditions, postgresql=kind == "asyncpg")
    rows = maker.random.sample(ROWS, 30)
    await fill(engine, rows, kind)
    if kind == "asyncpg":
        await run_sql(engine, SPELLING)
    make = maker.condition if conditions else maker.anything
    made = await spelt(engine, [make(1 + n % 3) for n in range(300)], kind, conditions=conditions)
    assert 200 <= len(made)
    definite = 0
    for (given, spelling), actual in zip(made.items(), await answers(engine, list(made)), strict=True):
        expressions = [parse(sql, columns=COLUMNS, dialect=DIALECT[kind]) for sql in (given, spelling)]
        for row, true in zip(rows, actual, strict=True):
            definite += expressions[1].evaluate(row) is not UNKNOWN
            for known in (row, masked(row, maker.random), masked(row, maker.random)):
                for expression in expressions:
                    told = expression.evaluate(known)
                    assert told is UNKNOWN or agrees(told, true, kind), (expression, known, told, true)
    assert 0.6 <= definite / (len(rows) * len(made))


COMMON: Final = {
    "live": ("d IS NULL", "b"),
    "not null": ("d IS NOT NULL",),
    "flag": ("b = true", "b IS TRUE", "b IS NOT FALSE", "NOT b", "COALESCE(b, false)", "b = false", "(b) IS NOT TRUE"),
    "both": ("b AND d IS NULL", "d IS NULL AND a IS NOT NULL", "d IS NULL OR NOT b"),
    "provider": ("a = 'x'", "a <> 'x'", "a IN ('x', 'y')", "a NOT IN ('x', 'y')", "a IS DISTINCT FROM 'x'"),
    "number": ("c = 1", "c > 0", "c <> -1", "c IN (0, 1)", "c BETWEEN 0 AND 1"),
    "case": ("CASE WHEN d IS NULL THEN b ELSE false END", "CASE a WHEN 'x' THEN b END"),
    "made of NULL": ("COALESCE(a, '') = ''", "NULLIF(a, '') IS NULL"),
}


@pytest.mark.parametrize("form", COMMON)
async def test_the_common_conditions_are_definite(database: Database, kind: str, form: str) -> None:
    """The conditions that people write in indexes are told for every row, and as the database tells them."""
    engine = database.engine()
    rows = random.Random(7).sample(ROWS, 60)  # noqa: S311  # repeatable, not secret
    await fill(engine, rows, kind)
    if kind == "asyncpg":
        await run_sql(engine, SPELLING)
    made = await spelt(engine, COMMON[form], kind, conditions=True)
    assert list(COMMON[form]) == list(made)
    for sql, actual in zip(made.values(), await answers(engine, list(made)), strict=True):
        expression = parse(sql, columns=COLUMNS, dialect=DIALECT[kind])
        told = [expression.evaluate(row) for row in rows]
        assert actual == told, sql


EVERYWHERE: Final = (
    "lower(a)",
    "COALESCE(a, '')",
    "a || ':' || c",
    "CASE WHEN d IS NULL THEN a END",
    "CASE WHEN b THEN 1 END",
    "NULLIF(b, false)",
    "d IS NULL",
    "COALESCE(c, 0)",
    "COALESCE(b, false)",
    "CAST(c AS text)",
)
KEYS: Final = {
    "sqlite": (*EVERYWHERE, "COALESCE(d, '')", "ifnull(d, 0)", "iif(d IS NULL, 1, NULL)"),
    "asyncpg": (
        *EVERYWHERE,
        "COALESCE(d, 'infinity'::timestamptz)",
        "COALESCE(d, 'epoch'::timestamptz)",
        "COALESCE(d, TIMESTAMP WITH TIME ZONE '2000-01-01 UTC')",
    ),
}


def equalities(values: Sequence[object]) -> list[list[bool]]:
    return [[one == other for other in values] for one in values]


async def test_the_common_keys_are_definite(database: Database, kind: str) -> None:
    """Two rows have definite and equal keys just where the database makes equal keys of them."""
    engine = database.engine()
    plain = [row for row in ROWS if row["a"] in (None, "", "x", "X", "Xy")]
    rows = random.Random(8).sample(plain, 60)  # noqa: S311  # repeatable, not secret
    await fill(engine, rows, kind)
    if kind == "asyncpg":
        await run_sql(engine, SPELLING)
    made = await spelt(engine, KEYS[kind], kind, conditions=False)
    assert list(KEYS[kind]) == list(made)
    for sql, actual in zip(made.values(), await answers(engine, list(made)), strict=True):
        expression = parse(sql, columns=COLUMNS, dialect=DIALECT[kind])
        told = [expression.evaluate(row) for row in rows]
        assert UNKNOWN not in told, sql
        assert equalities(actual) == equalities(told), sql
