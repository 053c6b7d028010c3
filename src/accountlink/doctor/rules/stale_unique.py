"""``stale-unique``: a unique constraint or index that forbids what the policy allows.

It is usually the key of an earlier policy, which a migration meant to drop by another name: ``DROP … IF EXISTS`` of a
name that is not there succeeds and does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, how_to_drop, title
from accountlink.doctor.findings import Finding, Remedy, Severity
from accountlink.doctor.judge.uniqueness import Judgement

RULE: Final = "stale-unique"


def find(case: Case) -> Iterator[Finding]:
    """Find each index that refuses two live rows of which the policy allows both."""
    for judgement in case.judgements:
        if not judgement.index.valid:
            continue
        if judgement.rule == RULE:
            yield _finding(case, judgement)
        elif judgement.refuses is None and judgement.undecided and not case.meant_for_open_need(judgement):
            yield _undecided(case, judgement)


def _finding(case: Case, judgement: Judgement) -> Finding:
    index = judgement.index
    return case.finding(
        RULE,
        about=index,
        remedy=Remedy.DROP,
        message=f"{title(index)} allows one row per ({', '.join(index.columns)}), and the policy allows several: "
        "the second is refused with blocked_by_constraint.",
        fix=f"Once the right key stands, {how_to_drop(case, index)}.",
    )


def _undecided(case: Case, judgement: Judgement) -> Finding:
    index = judgement.index
    return case.finding(
        RULE,
        severity=Severity.WARNING,
        about=index,
        message=f"{title(index)} may forbid what the policy allows. Its key or its condition has an expression whose "
        "meaning could not be decided.",
        fix="Compare it with the policy by hand; drop it if two links that should both exist collide in it.",
    )
