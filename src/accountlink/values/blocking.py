"""Names the doctor's rule behind a unique index that refused a write, by facts that the look-up of an obstacle has.

The doctor judges an index by every pair of rows that there could be. Here one row was refused, and the rows that could
be in its way have been looked at: which columns the index compares, and whether it counts a dead row, is enough.
"""

from __future__ import annotations

from collections.abc import Collection

from accountlink.values.facts import EXPRESSION, UniqueIndex


def rule_of_links(index: UniqueIndex, *, key: Collection[str], identifier: str | None, dead: bool) -> str | None:
    """Name the rule by which an index on a table of links blocks what the policy allows; ``None``: it blocks nothing.

    Args:
        index: The index that refused a row.
        key: The columns that the policy wants to be unique together.
        identifier: The column of the key of which every difference counts, if there is one: the account id's. How the
            application tells its own users apart is its own affair.
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
    """Name the rule by which an index on a table of grants blocks what is allowed; ``None``: it blocks nothing.

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
    """The columns that its key compares, as they are or within an expression."""
    return {*index.columns, *(index.reads if EXPRESSION in index.columns else ())}
