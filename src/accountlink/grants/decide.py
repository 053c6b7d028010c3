"""Decide which error follows a unique violation of a grant, by facts alone."""

from __future__ import annotations

from typing import Any

from accountlink.errors import BlockedByConstraint, RetryTransaction, StoreBusy
from accountlink.values.facts import Failure, Obstacle, Trouble


def after_violation(
    failure: Failure, obstacle: Obstacle[Any, Any], *, again: bool, owned: bool
) -> BaseException | None:
    """Return the error for a unique violation of a grant, or ``None`` to run the statement again.

    Args:
        failure: The violation.
        obstacle: The index that refused the write. ``is_key`` says that only a race can violate it.
        again: Whether the statement may be run once more.
        owned: Whether the transaction is accountlink's own.

    Returns:
        ``None`` to run the statement again, or the error to raise.
    """
    if not obstacle.ours:
        return failure.error
    index = obstacle.index
    if failure.trouble is Trouble.UNIQUE and (index is None or obstacle.is_key):
        if obstacle.snapshot and not owned:
            return RetryTransaction(sqlstate=failure.sqlstate)
        if again:
            return None
        if index is None:
            return StoreBusy(sqlstate=failure.sqlstate)
    return BlockedByConstraint(
        constraint=failure.constraint if index is None else index.name,
        columns=failure.columns if index is None else index.columns,
        rule="deferrable-key" if failure.trouble is Trouble.DEFERRABLE else obstacle.rule or "stale-unique",
    )
