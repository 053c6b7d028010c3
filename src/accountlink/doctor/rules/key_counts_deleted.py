"""``key-counts-deleted``: a key that dead rows still occupy.

An account that one user has disconnected then cannot be linked by another user, and an INSERT without
accountlink fails with 23505 when a user links an account again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, how_to_drop, title
from accountlink.doctor.findings import Finding, Remedy

RULE: Final = "key-counts-deleted"


def find(case: Case) -> Iterator[Finding]:
    """Find each unconditional index on the key that refuses a row because of a dead one."""
    for judgement in case.judgements:
        index = judgement.index
        if judgement.rule != RULE or not index.valid:
            continue
        yield case.finding(
            RULE,
            about=index,
            remedy=Remedy.DROP,
            message=f"{title(index)} counts dead rows: what was unlinked still occupies ({', '.join(index.columns)}) "
            "and refuses the rows that come after it.",
            fix=f"Create the same key WHERE {case.subject.live_sql}, then {how_to_drop(case, index)}.",
        )
