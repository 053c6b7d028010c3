"""The rules, one to a file: each looks at a case and says what it finds. Pure, and independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding
from accountlink.doctor.rules import (
    deferrable_key,
    duplicates,
    hidden_owner,
    invalid_index,
    key_compares_differently,
    key_counts_deleted,
    key_enforces_nothing,
    missing_key,
    narrow_column,
    partition_key,
    stale_unique,
    wrong_predicate,
)

RULES: Final[tuple[Callable[[Case], Iterable[Finding]], ...]] = (
    missing_key.find,
    stale_unique.find,
    key_counts_deleted.find,
    key_enforces_nothing.find,
    wrong_predicate.find,
    invalid_index.find,
    deferrable_key.find,
    key_compares_differently.find,
    duplicates.find,
    narrow_column.find,
    hidden_owner.find,
    partition_key.find,
)
"""In the order of the documentation. ``unsafe-pooling`` is not about a table: see :mod:`accountlink.doctor.pooling`."""


def judge_by_all(case: Case) -> tuple[Finding, ...]:
    """Apply every rule; where no row can ever be live, nothing else can be judged."""
    if (never := key_enforces_nothing.never_live(case)) is not None:
        return (never,)
    return tuple(finding for rule in RULES for finding in rule(case))
