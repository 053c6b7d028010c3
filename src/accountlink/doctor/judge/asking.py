"""Judge all unique indexes of a table by asking its database."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import sqlalchemy as sa

from accountlink.doctor.judge import postgresql, sqlite
from accountlink.doctor.judge.subject import Subject
from accountlink.doctor.judge.trial import Answers, Ask, Trial
from accountlink.doctor.judge.uniqueness import Judge, Judgement, Verdict
from accountlink.doctor.schema import Index, Table


def judge(connection: sa.Connection, subject: Subject, table: Table) -> tuple[Judgement, ...]:
    """Judge the unique indexes of a table that has all of the subject's columns.

    Args:
        connection: A connection to the database that has the table. No row of the table is read and nothing is written.
            The transaction stays usable.
        subject: What the table's rows must and may be.
        table: The table.
    """
    dialect = connection.dialect.name
    ask = postgresql.ask if dialect == "postgresql" else sqlite.ask
    return judge_by(partial(ask, connection), subject, table, dialect=dialect)


def judge_by(ask: Ask, subject: Subject, table: Table, *, dialect: str) -> tuple[Judgement, ...]:
    """Judge the unique indexes of a table by the answers that ``ask`` returns."""
    trials = [
        Trial(subject=subject, table=table, index=index, dialect=dialect) for index in table.indexes if index.unique
    ]
    return tuple(_judged(trial, answers) for trial, answers in zip(trials, ask(trials), strict=True))


def always_met(
    connection: sa.Connection, subject: Subject, table: Table, conditions: Collection[str]
) -> frozenset[str]:
    """Return the conditions that model rows prove to hold for every row of the table."""
    trials = [
        Trial(
            subject=subject,
            table=table,
            index=Index(name="", parts=(), unique=False, where=where),
            dialect=connection.dialect.name,
        )
        for where in conditions
    ]
    trials = [trial for trial in trials if all(bit.plain for bit in trial.bits)]
    return frozenset(
        str(trial.index.where)
        for trial, answers in zip(trials, postgresql.ask(connection, trials), strict=True)
        if answers is not None and not Judge(trial, answers).is_conditional()
    )


def _judged(trial: Trial, answers: Answers | None) -> Judgement:
    if answers is not None:
        return Judge(trial, answers).judgement()
    return Judgement(
        index=trial.index,
        enforces=dict.fromkeys(trial.subject.needs, Verdict.UNDECIDED),
        causes={},
        refuses=None,
        undecided=True,
        conditional=trial.index.where is not None,
        counts_dead=True,
        reads=trial.reads,
    )
