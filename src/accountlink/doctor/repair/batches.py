"""A migration in the pieces that run together: one transaction, or statements that each run by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from accountlink.doctor.repair.operations import Step

_LOCK_TIMEOUT: Final = "5s"
"""How long a statement waits for a lock while others may queue behind it."""
_CONCURRENTLY: Final = re.compile(r"(CREATE (UNIQUE )?|DROP )INDEX CONCURRENTLY |SELECT pg_catalog\.set_config")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A statement of a migration, or of its downgrade.

    Attributes:
        sql: The statement, without a semicolon at its end.
        why: What it does and what it locks; empty in a downgrade.
    """

    sql: str
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Neighbouring statements that run in one way.

    Attributes:
        statements: The statements, in order.
        together: Whether they run in one transaction; otherwise each commits by itself.
        patient: Whether they wait for other transactions without making anybody wait. A ``lock_timeout`` would only end
            them half-way, and leave an invalid index.
    """

    statements: tuple[Statement, ...]
    together: bool
    patient: bool


def upgrade(steps: Iterable[Step]) -> tuple[Batch, ...]:
    """What is run, in order."""
    return tuple(_batches((Statement(sql=step.sql, why=step.why), step.alone) for step in steps))


def downgrade(steps: Iterable[Step]) -> tuple[Batch, ...]:
    """What takes it back, in order."""
    undone = ((Statement(sql=sql), step.alone) for step in reversed(tuple(steps)) for sql in step.undo if sql.strip())
    return tuple(_batches(undone))


def _batches(statements: Iterable[tuple[Statement, bool]]) -> Iterator[Batch]:
    told = ((statement, alone, _CONCURRENTLY.match(statement.sql) is not None) for statement, alone in statements)
    for (alone, patient), group in groupby(told, key=lambda each: each[1:]):
        yield Batch(statements=tuple(each[0] for each in group), together=not alone, patient=patient)


def bounded(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Statement | None]]:
    """Say before which batches of PostgreSQL the bound on waiting for locks changes, and why, the first time."""
    reasons = {
        True: "What waits without making anybody wait may wait: a time-out would leave an invalid index.",
        False: "Everybody queues behind a statement that waits for such a lock: it gives up early. Run the rest again.",
    }
    before: bool | None = None
    for batch in batches:
        changes = batch.patient is not before
        before = batch.patient
        wait = "0" if batch.patient else f"'{_LOCK_TIMEOUT}'"
        yield (
            batch,
            Statement(sql=f"SET lock_timeout = {wait}", why=reasons.pop(batch.patient, "")) if changes else None,
        )
