"""``narrow-column``: a column too short for what providers send.

A value that does not fit fails the callback with a data error (22001, 22003), for some users and not for others. An
envelope of the vault is longer than the token in it: a column that every token fits may fit no envelope.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy, Severity
from accountlink.doctor.schema import Column

RULE: Final = "narrow-column"


def find(case: Case) -> Iterator[Finding]:
    """Find each column that is shorter than what it has to hold."""
    for name, least in sorted(case.subject.lengths.items()):
        column = case.table.column(name)
        if column is not None and column.length is not None and column.length < least:
            sealed = name in case.subject.sealed
            held = " An envelope of the vault may have as many." if sealed else ""
            severity = Severity.ERROR if sealed else Severity.WARNING
            yield _finding(case, column, f"takes fewer than {least} characters.{held}", "text", severity)
    for name, least in sorted(case.subject.bits.items()):
        column = case.table.column(name)
        if column is not None and column.bits is not None and column.bits < least:
            yield _finding(case, column, f"takes fewer than the {least} bits mapped.", "bigint", Severity.WARNING)


def _finding(case: Case, column: Column, what: str, wanted: str, severity: Severity) -> Finding:
    return case.finding(
        RULE,
        severity=severity,
        about=column,
        remedy=Remedy.LONGER,
        message=f"{column.name} ({column.type}) {what} A longer value fails the callback of whoever has one.",
        fix=f"Make {column.name} {wanted}.",
    )
