"""From what was found to the migration that repairs it."""

from __future__ import annotations

from collections.abc import Sequence

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding
from accountlink.doctor.repair import by_hand, postgresql, sqlite
from accountlink.doctor.repair.decision import Decision
from accountlink.doctor.repair.names import is_ordinary, is_writable
from accountlink.doctor.repair.operations import Repair


def plan(case: Case, findings: Sequence[Finding]) -> Repair:
    """Plan the migration that repairs what was found.

    The steps are in an order in which no protection is lost, after whichever of them it is stopped: the right key
    stands before a wrong one goes.

    Args:
        case: The table, judged.
        findings: What the rules found in it.

    Returns:
        The migration; without steps where there is nothing to repair, or nothing that a migration could decide.
    """
    dialect, table = case.catalogue.dialect, case.name
    if not findings:
        return Repair(dialect=dialect, table=table)
    if not is_ordinary(case) or not is_writable(case):
        why = "It is no ordinary table" if not is_ordinary(case) else "A name in it has characters that cannot be shown"
        return Repair(dialect=dialect, table=table, by_hand=(f"{why}, so no migration is written.", *_told(findings)))
    if any(_is_never_live(case, finding) for finding in findings):
        return Repair(dialect=dialect, table=table, by_hand=_told(findings))
    keys = Decision(case, findings).keys()
    texts = tuple(by_hand.left(case, findings, keys))
    if dialect == "sqlite":
        outcome = sqlite.migrate(case, keys)
        return Repair(dialect=dialect, table=table, steps=outcome.steps, by_hand=(*texts, *outcome.by_hand))
    return Repair(dialect=dialect, table=table, steps=postgresql.steps(case, findings, keys), by_hand=texts)


def _told(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(f"{finding.rule}: {finding.message} {finding.fix}" for finding in findings)


def _is_never_live(case: Case, finding: Finding) -> bool:
    """Whether it says that every row is dead from its beginning: no key could be made that does anything."""
    mark = case.subject.roles.get("deleted_at")
    return finding.rule == "key-enforces-nothing" and (finding.object, finding.columns) == (mark, (mark,))
