"""``duplicates``: live rows that already break the key, so that the right index cannot be built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted
from accountlink.doctor.findings import Finding, Remedy
from accountlink.doctor.judge.subject import Need

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
                f"{need.reason}: {counted(found.rows, 'row')} too many.{_meanwhile(case, need)}",
                fix=_fix(case, need),
            )


def _is_of_links(case: Case, need: Need) -> bool:
    return "user_id" in case.subject.roles and case.subject.roles["id"] not in need.columns


def _meanwhile(case: Case, need: Need) -> str:
    return " Links update the newest of each group." if _is_of_links(case, need) else ""


def _fix(case: Case, need: Need) -> str:
    if _is_of_links(case, need):
        return "Keep the newest row of each group, with the newest refresh token that its user has there."
    if need.live:
        return "Keep the newest row of each group, and end the others."
    return "Decide which row of each group is right, and change or delete the others."
