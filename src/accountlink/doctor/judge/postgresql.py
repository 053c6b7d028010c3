"""Ask PostgreSQL what an index makes of model rows: one query for all indexes of a table.

The rows are handed to it, no row of the table is read, and nothing is written. For an index on ``(provider,
lower(account_id)) WHERE deleted_at IS NULL`` it is::

    SELECT 0 AS trial, CAST(pg_catalog.json_agg(answer) AS pg_catalog.text) AS answers
      FROM (SELECT pg_catalog.json_build_array("al place", true, (deleted_at IS NULL) IS TRUE,
                       CASE WHEN ("provider") IS NOT NULL THEN pg_catalog.dense_rank() OVER (
                           ORDER BY CAST(("provider") AS text) COLLATE "default" USING OPERATOR(pg_catalog.<)) END,
                       ...) AS answer
              FROM (SELECT "al place", "provider", "account_id", "deleted_at"
                      FROM pg_catalog.json_to_recordset(CAST(:rows0 AS pg_catalog.json)) AS "links" (
                           "al place" pg_catalog.int8, "provider" text, "account_id" text,
                           "deleted_at" timestamp with time zone)) AS "links") AS answer
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.judge.trial import Answers, Bit, Trial, read_row
from accountlink.doctor.schema import Column, Kind

_NUMBERS: Final = ("numeric", "double precision", "real")


class _Question(NamedTuple):
    """Hold a trial, and the bits of it that are asked about."""

    trial: Trial
    bits: tuple[int, ...]


def ask(connection: sa.Connection, trials: Sequence[Trial]) -> list[Answers | None]:
    """Ask about some indexes of one table. What the server refuses leaves the transaction as it was.

    An expression may fail for a model row, or call a function that the role may not: then each index is asked about
    by itself, and in the end without what may fail.

    Raises:
        sqlalchemy.exc.DBAPIError: The connection was lost.
    """
    together = _ask(connection, [_Question(trial, _all(trial)) for trial in trials])
    if together is not None:
        return [*together]
    return [_ask_alone(connection, trial) for trial in trials]


def _ask_alone(connection: sa.Connection, trial: Trial) -> Answers | None:
    surely = tuple(number for number in _all(trial) if trial.bits[number].plain)
    for bits in (_all(trial), surely):
        if (found := _ask(connection, [_Question(trial, bits)])) is not None:
            return found[0]
    return None


def _all(trial: Trial) -> tuple[int, ...]:
    """Return the numbers of the bits that can be asked about: each condition, and each part with a known order."""
    return tuple(n for n, bit in enumerate(trial.bits) if bit.part is None or bit.part.order)


def _ask(connection: sa.Connection, questions: Sequence[_Question]) -> list[Answers] | None:
    if not questions:
        return []
    statement = sa.text("\nUNION ALL\n".join(_select(n, question) for n, question in enumerate(questions)))
    rows = {f"rows{n}": _rows(question.trial) for n, question in enumerate(questions)}
    statement = statement.bindparams(*(sa.bindparam(name, type_=sa.String()) for name in rows))
    try:
        with _undone(connection):
            found = connection.execute(statement, rows).all()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return None
    answers = {number: json.loads(text) for number, text in found}
    return [_read(question, answers[n]) for n, question in enumerate(questions)]


@contextmanager
def _undone(connection: sa.Connection) -> Iterator[None]:
    """Guard the transaction by a savepoint, where there is one."""
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        yield
        return
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def _rows(trial: Trial) -> str:
    names = ["al place", *(column.name for column in trial.columns)]
    return json.dumps([dict(zip(names, (place, *given), strict=True)) for place, given in enumerate(trial.rows)])


def _read(question: _Question, found: Sequence[Sequence[Any]]) -> Answers:  # values by the question
    """Return the server's answers by row."""
    trial, bits = question
    seen = {
        trial.rows[place]: read_row(trial, trial.rows[place], told, bits=bits, allowed=allowed)
        for place, allowed, *told in found
    }
    return Answers(seen=seen, known=frozenset(bits))


def _select(number: int, question: _Question) -> str:
    trial = question.trial
    table = quoted(trial.table.name)
    allowed = " AND ".join(["true", *(f"({check.sql}) IS NOT FALSE" for check in trial.checks)])
    asked = [quoted("al place"), allowed, *(quoted(column.name) for column in trial.generated)]
    asked += [_bit(trial.bits[bit]) for bit in question.bits]
    given = [f"{quoted(column.name)} {_type(column)}" for column in trial.columns]
    names = [quoted("al place"), *(quoted(column.name) for column in trial.columns)]
    names += [f"{_computed(column)} AS {quoted(column.name)}" for column in trial.generated]
    head = f"""
        SELECT {number} AS trial, CAST(pg_catalog.json_agg(answer) AS pg_catalog.text) AS answers
          FROM (SELECT pg_catalog.json_build_array({", ".join(asked)}) AS answer
                  FROM (SELECT {", ".join(names)}
                          FROM pg_catalog.json_to_recordset(CAST("""  # noqa: S608  (quoted names, and the server's own words)
    tail = f""" AS pg_catalog.json)) AS {table} (
                               {quoted("al place")} pg_catalog.int8, {", ".join(given)})) AS {table}) AS answer"""
    return f"{_no_parameter(head)}:rows{number}{_no_parameter(tail)}"


def _no_parameter(sql: str) -> str:
    """Keep SQLAlchemy from taking a colon of the table's own for a parameter."""
    return sql.replace(":", "\\:")


def _bit(bit: Bit) -> str:
    sql = bit.words.sql
    if bit.part is None:
        return f"({sql}) IS TRUE"
    if bit.column is not None and _stands_in(bit.column):
        order = f"({sql})"
    elif not bit.part.exact:  # some texts that differ are one to it: those in another case stand for whichever they are
        order = f'pg_catalog.lower(CAST(({sql}) AS pg_catalog.text)) COLLATE pg_catalog."C"'
    elif bit.part.type is None:
        order = f"({sql}){bit.part.order}"
    else:
        order = f"CAST(({sql}) AS {bit.part.type}){bit.part.order}"
    return f"CASE WHEN ({sql}) IS NOT NULL THEN pg_catalog.dense_rank() OVER (ORDER BY {order}) END"


def _computed(column: Column) -> str:
    bare, _, collation = column.any_length.partition(" COLLATE ")
    value = f"CAST(({column.generated}) AS {bare})"
    return f"{value} COLLATE {collation}" if collation else value


def _type(column: Column) -> str:
    return "pg_catalog.text" if _stands_in(column) else column.any_length


def _stands_in(column: Column) -> bool:
    """Say whether model rows hold texts in place of the column's own values, since none of its type are known."""
    return column.kind is Kind.OTHER and column.any_length not in _NUMBERS and column.generated is None
