"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How sure, and how bad."""

    ERROR = "error"
    """Links are refused, lost, doubled or shown to the wrong user."""
    WARNING = "warning"
    """It may come to that, or it could not be decided; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a table, or with the way to it.

    Attributes:
        rule: The rule's stable name, such as ``stale-unique``; its page is ``docs/doctor/<rule>.md``.
        severity: How sure, and how bad.
        table: The table, with its schema where that is not the default one.
        object: The true name of the constraint, index, policy or column that it is about; ``None`` where something is
            missing.
        columns: The columns that it is about, in the index's order; an expression as the database writes it.
        message: What is wrong, and what comes of it. Never a value of a row.
        fix: What to do.
    """

    rule: str
    severity: Severity
    table: str
    object: str | None
    columns: tuple[str, ...]
    message: str
    fix: str
