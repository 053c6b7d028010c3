"""A migration in the pieces that run together, which both renderers write down in their own way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Final

from accountlink.doctor.repair.operations import Repair, Step

_LOCK_TIMEOUT: Final = "'5s'"
"""The time that a statement waits for a lock while others may queue behind it."""
_PATIENT: Final = re.compile(r"(CREATE (UNIQUE )?|DROP )INDEX CONCURRENTLY |SELECT pg_catalog\.set_config")
"""The statements that wait without making other transactions wait.

A ``lock_timeout`` would only end such a statement half-way, and leave an invalid index.
"""


class Way(Enum):
    """Name the way in which the statements of a batch run."""

    TOGETHER = "in one transaction"
    ALONE = "each by itself, outside of a transaction"
    SESSION = "wherever: they set something for the session"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Describe a statement of a migration, or of its downgrade.

    Attributes:
        sql: The statement, without a semicolon at its end.
        why: What it does and what it locks; empty in a downgrade.
    """

    sql: str
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Hold neighbouring statements that run in one way.

    Attributes:
        statements: The statements, in order.
        way: How they run.
    """

    statements: tuple[Statement, ...]
    way: Way


def upgrade(repair: Repair) -> tuple[Batch, ...]:
    """Return what is run, in order."""
    return _batches(repair.dialect, [(step, Statement(sql=step.sql, why=step.why)) for step in repair.steps])


def downgrade(repair: Repair) -> tuple[Batch, ...]:
    """Return what takes a migration back, in order."""
    undone = [(step, Statement(sql=sql)) for step in reversed(repair.steps) for sql in step.undo if sql.strip()]
    return _batches(repair.dialect, undone)


def _batches(dialect: str, statements: Sequence[tuple[Step, Statement]]) -> tuple[Batch, ...]:
    if not statements:
        return ()
    if dialect == "postgresql":
        return tuple(_bounded(statements))
    return tuple(_grouped(statements))


def _grouped(statements: Iterable[tuple[Step, Statement]]) -> Iterator[Batch]:
    for alone, group in groupby(statements, key=lambda each: each[0].alone):
        way = Way.ALONE if alone else Way.TOGETHER
        yield Batch(statements=tuple(statement for _, statement in group), way=way)


def _bounded(statements: Iterable[tuple[Step, Statement]]) -> Iterator[Batch]:
    """Set, around the batches of PostgreSQL, how long a statement waits for a lock; say why the first time."""
    reasons = {
        True: "What waits without making anybody wait may wait: a time-out would leave an invalid index.",
        False: "Everybody queues behind a statement that waits for such a lock: it gives up early. Run the rest again.",
    }
    unbounded = "How long a statement may take is not bounded: an index takes as long as its table."
    yield _set("SET statement_timeout = 0", unbounded)
    for patient, group in groupby(statements, key=lambda each: _PATIENT.match(each[1].sql) is not None):
        yield _set(f"SET lock_timeout = {0 if patient else _LOCK_TIMEOUT}", reasons.pop(patient, ""))
        yield from _grouped(group)
    yield _set("RESET lock_timeout")
    yield _set("RESET statement_timeout")


def _set(sql: str, why: str = "") -> Batch:
    return Batch(statements=(Statement(sql=sql, why=why),), way=Way.SESSION)
