"""``missing-key``: nothing enforces what must be unique.

Without an index two callbacks at the same instant both insert: no check before the write can see the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy
from accountlink.doctor.judge.subject import Need

RULE: Final = "missing-key"


def find(case: Case) -> Iterator[Finding]:
    """Find each need that no index meets, where no other rule can say what keeps an index from it."""
    for need in case.subject.needs:
        if case.protected(need) or case.explained(need) or case.split(need):
            continue
        condition = " among live rows" if need.live else ""
        yield case.finding(
            RULE,
            about=need,
            remedy=Remedy.KEY,
            message=f"No unique index on ({', '.join(need.columns)}){condition} enforces that {need.reason}: "
            f"{need.without}.{_nearly(case, need)}",
            fix=f"Create a unique index on ({', '.join(need.columns)})"
            + (f" WHERE {case.subject.live_sql}." if need.live and case.subject.live_sql else "."),
        )


def _nearly(case: Case, need: Need) -> str:
    """Name an index that would be it but for further columns."""
    for judgement in case.judgements:
        extra = sorted(judgement.reads - set(need.columns))
        if set(need.columns) <= judgement.reads and extra:
            told = f" {judgement.index.name} lets rows through that differ in {', '.join(extra)}."
            if not set(extra) <= set(case.subject.roles.values()):
                told += (
                    " If that keeps tenants apart, the policy does not know it: make it part of the provider's slug, "
                    "or give each tenant a table."
                )
            return told
    return ""
