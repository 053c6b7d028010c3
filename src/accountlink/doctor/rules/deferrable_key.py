"""``deferrable-key``: a deferrable unique constraint.

PostgreSQL refuses ``ON CONFLICT`` on a table that has one, whichever columns it is on, and a deferred check comes at
COMMIT, when no outcome can be returned any more.

Source: PostgreSQL documentation, INSERT, "ON CONFLICT Clause".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, title
from accountlink.doctor.findings import Finding, Remedy

RULE: Final = "deferrable-key"


def find(case: Case) -> Iterator[Finding]:
    """Find each deferrable constraint that forbids rows."""
    for index in case.table.indexes:
        if index.deferrable:
            yield case.finding(
                RULE,
                about=index,
                remedy=Remedy.AT_ONCE,
                message=f"{title(index)} is deferrable: PostgreSQL cannot use it in ON CONFLICT, so that linking into "
                "this table fails with blocked_by_constraint.",
                fix="Build a unique index on the same columns, then drop the constraint.",
            )
