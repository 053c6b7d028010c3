"""The judge on expressions of every form: what it says of an index holds for rows that it never tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.judge.asking import judge
from accountlink.doctor.judge.subject import Need, Subject
from accountlink.doctor.judge.uniqueness import Judgement, Verdict
from tests.support.databases import run_sql

MOMENTS: Final = (datetime(2024, 5, 1, tzinfo=UTC), datetime(2025, 6, 2, 3, 4, 5, tzinfo=UTC))
TEXTS: Final = ("", "x", "X", "Xy", "x ", " y", "I", "\u00e9", "it's", "7")
ROWS: Final[list[dict[str, Any]]] = [
    {"a": a, "b": b, "c": c, "d": d}
    for a in TEXTS
    for b in (None, True, False)
    for c in (-1, 0, 1, 7)
    for d in (None, *MOMENTS)
]
"""Rows as an application may have them, most of which the judge does not try."""
CHUNK: Final = 100
ROLES: Final = {"user_id": "c", "account_id": "a", "deleted_at": "d"}
NEED: Final = Need(columns=("c", "a"), live=True, reason="a user has an account once")
SUBJECT: Final = Subject(schema=None, table="t", needs=(NEED,), roles=ROLES, identifiers=frozenset({"a"}), soft=True)
TABLE: Final = {
    "asyncpg": "CREATE TABLE t (n integer, a text NOT NULL, b boolean, c integer NOT NULL, d timestamptz)",
    "sqlite": "CREATE TABLE t (n INTEGER, a TEXT NOT NULL, b BOOLEAN, c INTEGER NOT NULL, d DATETIME)",
}


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


async def judged(engine: AsyncEngine, indexes: Sequence[str]) -> dict[int, Judgement]:
    """Judge each index that the database can have: left out brackets can make an expression without a meaning."""

    def look(connection: sa.Connection) -> dict[int, Judgement]:
        for number, index in enumerate(indexes):
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql(f"CREATE UNIQUE INDEX x{number} ON t {index}")
            except DBAPIError:
                continue
        table = read_catalogue(connection, "t", schema=None).table
        assert table is not None
        judgements = judge(connection, SUBJECT, table)
        connection.rollback()
        return {int(judgement.index.name[1:]): judgement for judgement in judgements}

    async with engine.connect() as connection:
        return await connection.run_sync(look)


def stored(value: object, kind: str) -> object:
    return value.strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) and kind == "sqlite" else value


async def answers(engine: AsyncEngine, kind: str, expressions: Sequence[str]) -> list[list[Any]]:
    """What the database makes of each expression for each row."""
    columns: list[list[Any]] = []
    places = "$1, $2, $3, $4, $5" if kind == "asyncpg" else "?, ?, ?, ?, ?"
    parameters = [(n, *(stored(value, kind) for value in row.values())) for n, row in enumerate(ROWS)]
    async with engine.begin() as connection:
        await connection.exec_driver_sql(f"INSERT INTO t VALUES ({places})", parameters)
        for start in range(0, len(expressions), CHUNK):
            chosen = ", ".join(f"({expression})" for expression in expressions[start : start + CHUNK])
            found = [
                tuple(row)[1:] for row in await connection.exec_driver_sql(f"SELECT n, {chosen} FROM t ORDER BY n")
            ]
            columns.extend(list(column) for column in zip(*found, strict=True))
    return columns


LIVE: Final = [number for number, row in enumerate(ROWS) if row["d"] is None]
DEAD: Final = [number for number, row in enumerate(ROWS) if row["d"] is not None]


async def test_what_is_said_of_a_condition_holds_for_all_rows(engine: AsyncEngine, kind: str) -> None:
    """An index that is said to keep live rows apart, to leave none out or to hold no dead row does so for every row."""
    await run_sql(engine, TABLE[kind])
    maker = Maker(20, postgresql=kind == "asyncpg")
    made = [*dict.fromkeys(maker.condition(n % 4) for n in range(400))]
    verdicts = await judged(engine, [f"(a, c) WHERE {condition}" for condition in made])
    assert 200 <= len(verdicts)
    told = await answers(engine, kind, [made[number] for number in verdicts])
    for (number, verdict), actual in zip(verdicts.items(), told, strict=True):
        held = [bool(value) for value in actual]
        enforces = verdict.enforces[NEED]
        assert enforces is not Verdict.YES or all(held[n] for n in LIVE), made[number]
        assert enforces is not Verdict.NO or not all(held), made[number]
        assert verdict.conditional or all(held), made[number]
        assert verdict.counts_dead or not any(held[n] for n in DEAD), made[number]
    decided = sum(verdict.enforces[NEED] is not Verdict.UNDECIDED for verdict in verdicts.values())
    assert 0.7 <= decided / len(verdicts)


async def test_what_is_said_of_a_key_holds_for_all_rows(engine: AsyncEngine, kind: str) -> None:
    """A key with an expression in it that is said to keep live rows apart gives none of them ``NULL``."""
    await run_sql(engine, TABLE[kind])
    maker = Maker(21, postgresql=kind == "asyncpg")
    made = [*dict.fromkeys(maker.anything(n % 3) for n in range(300))]
    verdicts = await judged(engine, [f"(a, c, ({key}))" for key in made])
    assert 150 <= len(verdicts)
    told = await answers(engine, kind, [made[number] for number in verdicts])
    for (number, verdict), actual in zip(verdicts.items(), told, strict=True):
        keys: dict[Any, set[Any]] = {}
        for n in LIVE:
            keys.setdefault((ROWS[n]["a"], ROWS[n]["c"]), set()).add(actual[n])
        apart = any(len(values) > 1 or None in values for values in keys.values())
        assert verdict.enforces[NEED] is not Verdict.YES or not apart, made[number]
    decided = sum(verdict.enforces[NEED] is not Verdict.UNDECIDED for verdict in verdicts.values())
    assert 0.7 <= decided / len(verdicts)


COMMON: Final = (
    "d IS NULL", "b", "d IS NOT NULL", "b = true", "b IS TRUE", "b IS NOT FALSE", "NOT b", "COALESCE(b, false)",
    "(b) IS NOT TRUE", "b AND d IS NULL", "d IS NULL AND a IS NOT NULL", "d IS NULL OR NOT b", "a = 'x'", "a <> 'x'",
    "a IN ('x', 'y')", "a NOT IN ('x', 'y')", "a IS DISTINCT FROM 'x'", "c = 1", "c > 0", "c <> -1", "c IN (0, 1)",
    "c BETWEEN 0 AND 1", "CASE WHEN d IS NULL THEN b ELSE false END", "CASE a WHEN 'x' THEN b END",
    "COALESCE(a, '') = ''", "NULLIF(a, '') IS NULL", "lower(a) = 'x'", "a || ':' || c = 'x:1'",
)  # fmt: skip
KEYS: Final = (
    "lower(a)", "COALESCE(a, '')", "a || ':' || c", "CASE WHEN d IS NULL THEN a END", "CASE WHEN b THEN 1 END",
    "NULLIF(b, false)", "d IS NULL", "COALESCE(c, 0)", "COALESCE(b, false)", "CAST(c AS text)",
)  # fmt: skip
OF_A_DATABASE: Final = {
    "sqlite": ("COALESCE(d, '')", "ifnull(d, 0)", "iif(d IS NULL, 1, NULL)"),
    "asyncpg": (
        "COALESCE(d, 'infinity'::timestamptz)",
        "COALESCE(d, 'epoch'::timestamptz)",
        "COALESCE(d, TIMESTAMP WITH TIME ZONE '2000-01-01 UTC')",
    ),
}


async def test_what_people_write_is_decided(engine: AsyncEngine, kind: str) -> None:
    """Nothing stays undecided of an index with one of the common conditions or expressions."""
    await run_sql(engine, TABLE[kind])
    indexes = [f"(a, c) WHERE {condition}" for condition in COMMON]
    indexes += [f"(a, c, ({key}))" for key in (*KEYS, *OF_A_DATABASE[kind])]
    verdicts = await judged(engine, indexes)
    assert set(range(len(indexes))) == set(verdicts)
    assert [] == [
        indexes[number] for number, verdict in verdicts.items() if verdict.enforces[NEED] is Verdict.UNDECIDED
    ]
