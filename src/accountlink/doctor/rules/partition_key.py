"""``partition-key``: a partitioned table whose key cannot span its partitions.

A unique index of a partitioned table must contain the whole partition key, so that one on less cannot exist; unique
indexes on single partitions do not see each other.

Source: PostgreSQL documentation, section 5.12.2.3, "Limitations"; section 5.11.1, "Caveats" (inheritance).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding
from accountlink.doctor.judge.subject import Need

RULE: Final = "partition-key"


def find(case: Case) -> Iterator[Finding]:
    """Find each need that no index can span."""
    partitioning = case.table.partitioning
    if partitioning is None:
        return
    if partitioning.inherited:
        key = case.subject.needs[0]
        yield _finding(case, key, "has children by inheritance, which no unique index of it spans", "the children")
    for need in case.subject.needs:
        if need.key and case.split(need):
            by = ", ".join(partitioning.columns) or "an expression"
            yield _finding(case, need, f"is partitioned by {by}, which ({', '.join(need.columns)}) does not hold", by)


def _finding(case: Case, need: Need, why: str, by: str) -> Finding:
    return case.finding(
        RULE,
        about=need,
        message=f"The table {why}: nothing can enforce that {need.reason}.",
        fix=f"Partition by columns of ({', '.join(need.columns)}), keep links in a table that is not split by {by}, or "
        "hold the key in a table of its own.",
    )
