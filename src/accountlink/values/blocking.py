"""Find the doctor's rule that reports a unique index which refused a write.

The doctor judges an index by every pair of rows that is possible. A call judges it by one row that was refused, and by
the rows that may have caused the refusal. Two facts decide: the columns that the index compares, and whether it counts
a dead row.
"""

from __future__ import annotations

from collections.abc import Collection

from accountlink.values.facts import EXPRESSION, UniqueIndex


def rule_of_links(index: UniqueIndex, *, key: Collection[str], identifier: str | None, dead: bool) -> str | None:
    """Return the doctor's rule for an index that forbids links which the policy allows, or ``None`` if it forbids none.

    Args:
        index: The index that refused a row.
        key: The columns that the policy wants to be unique together.
        identifier: The column of the account id, if it is in the key: two ids that differ in one byte are two accounts.
        dead: Whether the index counts a dead row that was seen.
    """
    if not set(key) <= _compared(index):
        return "stale-unique"  # two rows that differ in the key may be equal in what it compares
    if not set(key) <= set(index.columns) or identifier in index.loose:
        return "key-compares-differently"
    if not dead:
        return None
    return "key-counts-deleted" if index.where is None else "wrong-predicate"


def rule_of_grants(
    index: UniqueIndex, *, row_id: str, token: str, pair: Collection[str] | None, mark: str
) -> str | None:
    """Return the doctor's rule for an index that forbids grants which are allowed, or ``None`` if it forbids none.

    Args:
        index: The index that refused a row.
        row_id: The column of the grants' ids.
        token: The column that grants are found by.
        pair: The columns of grantor and grantee, if a pair has one active grant at most.
        mark: The column that says which grants are active.
    """
    if row_id in index.columns:
        return None
    if token in _compared(index):
        return None if token in index.columns and token not in index.loose else "key-compares-differently"
    if pair is not None and set(pair) <= set(index.columns) and index.where is not None and mark in index.reads:
        return None
    return "stale-unique"


def _compared(index: UniqueIndex) -> set[str]:
    """Return the columns that the index compares, as plain columns or within an expression."""
    return {*index.columns, *(index.reads if EXPRESSION in index.columns else ())}
