"""``hidden-owner``: row-level security can hide the owner from the role that links.

The database then refuses the write because of a row that the look-up cannot see, and a conflict cannot be told
(``database_inconsistency``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy
from accountlink.doctor.schema import RowPolicy

RULE: Final = "hidden-owner"


def find(case: Case) -> Iterator[Finding]:
    """Row-level security that applies to this role, unless its policies show every row."""
    security = case.table.row_security
    if not case.subject.exclusive or not security.active:
        return
    reading = [policy for policy in security.policies if policy.command in ("ALL", "SELECT")]
    shows = any(policy.permissive and _always(case, policy) for policy in reading)
    takes = [policy for policy in reading if not policy.permissive and not _always(case, policy)]
    if shows and not takes:
        return
    culprits = takes or [policy for policy in reading if policy.permissive]
    yield case.finding(
        RULE,
        about=culprits[0] if culprits else None,
        remedy=Remedy.POLICY,
        message=f"Row-level security can hide another user's row from the role {case.catalogue.role}: the owner of an "
        "account cannot be looked up, and a conflict is not told. For the same reason no row was counted here.",
        fix=f"Give {case.catalogue.role} a permissive policy FOR SELECT USING (true) on this table, or link as a role "
        "that may see every row.",
    )


def _always(case: Case, policy: RowPolicy) -> bool:
    return policy.using is None or policy.using in case.always
