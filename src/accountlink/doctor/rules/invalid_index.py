"""``invalid-index``: left behind by a failed ``CREATE UNIQUE INDEX CONCURRENTLY``.

It may refuse rows and promises nothing, and a second attempt with ``IF NOT EXISTS`` finds its name taken and does
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, title
from accountlink.doctor.findings import Finding, Remedy

RULE: Final = "invalid-index"


def find(case: Case) -> Iterator[Finding]:
    """Find each unique index that is not valid."""
    for index in case.table.indexes:
        if index.unique and not index.valid:
            yield case.finding(
                RULE,
                about=index,
                remedy=Remedy.CLEAR,
                message=f"{title(index)} is invalid: its building failed, or goes on at this moment. It enforces "
                "nothing that can be relied on, and may refuse rows all the same.",
                fix=f"If nobody is building it now, drop {index.name} and build it again.",
            )
