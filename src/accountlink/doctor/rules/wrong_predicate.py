"""``wrong-predicate``: a partial index whose WHERE is not the mapping's "live".

``alembic check`` does not compare conditions, so nothing else tells. Conditions are compared by what they do to rows:
``is_active``, ``is_active = true`` and ``(is_active) IS TRUE`` are one condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, title
from accountlink.doctor.findings import Finding, Remedy, Severity
from accountlink.doctor.judge.uniqueness import Cause, Judgement, Verdict

RULE: Final = "wrong-predicate"


def find(case: Case) -> Iterator[Finding]:
    """Find each partial index on the key that leaves live rows out, or dead rows in."""
    for judgement in case.judgements:
        if not judgement.index.valid:
            continue
        needs = [need for need in case.subject.needs if not case.protected(need)]
        if any(judgement.causes.get(need) is Cause.CONDITION for need in needs):
            yield _finding(case, judgement, "leaves out live rows, which it therefore does not keep apart")
        elif judgement.rule == RULE:
            yield _finding(case, judgement, "counts dead rows, which still occupy the key")
        elif any(
            judgement.enforces[need] is Verdict.UNDECIDED and set(need.columns) <= judgement.reads for need in needs
        ):
            yield _undecided(case, judgement)


def _finding(case: Case, judgement: Judgement, what: str) -> Finding:
    index = judgement.index
    return case.finding(
        RULE,
        about=index,
        remedy=Remedy.DROP,
        message=f"{title(index)} WHERE {index.where} {what}. {_live(case)}",
        fix=f"Create the key {_condition(case)}, then drop {index.name}.",
    )


def _undecided(case: Case, judgement: Judgement) -> Finding:
    index = judgement.index
    where = "" if index.where is None else f" WHERE {index.where}"
    return case.finding(
        RULE,
        severity=Severity.WARNING,
        about=index,
        message=f"It could not be decided whether {title(index, lower=True)}{where} covers every live row. "
        f"{_live(case)}",
        fix=f"Compare it by hand, or create the key {_condition(case)}, which can be compared.",
    )


def _live(case: Case) -> str:
    live = case.subject.live_sql
    return f"Live is: {live}." if live else "Every row is live: unlinking deletes."


def _condition(case: Case) -> str:
    live = case.subject.live_sql
    return f"WHERE {live}" if live else "without a condition"
