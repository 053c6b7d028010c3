"""``duplicates``: live rows that already break the key, so that the right index cannot be built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted
from accountlink.doctor.findings import Finding, Remedy

RULE: Final = "duplicates"


def find(case: Case) -> Iterator[Finding]:
    """Find each need that rows break."""
    for need, found in case.rows.duplicates.items():
        if found.groups:
            rows = "live rows" if need.live else "rows"
            yield case.finding(
                RULE,
                about=need,
                remedy=Remedy.SETTLE,
                message=f"{counted(found.groups, 'group')} of {rows} with equal ({', '.join(need.columns)}), although "
                f"{need.reason}: {counted(found.rows, 'row')} too many. Links update the newest of each group.",
                fix="Keep the newest row of each group, with the newest refresh token that its user has there.",
            )
