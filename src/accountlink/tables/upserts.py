"""Build ``INSERT … ON CONFLICT`` so that it is compiled once on every supported SQLAlchemy.

SQLAlchemy 2.1 keeps it in its cache of compiled statements. SQLAlchemy 2.0 gives the clause no cache key, and whatever
statement contains it is compiled anew at every call, which costs several times what the database needs. On 2.0 the
classes below add the key: it names everything that the clause is written from, as 2.1's own does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import dml
from sqlalchemy.sql.visitors import InternalTraversal

_HAS_KEY: Final = bool(postgresql.Insert.inherit_cache)
"""Says whether SQLAlchemy itself gives the clause a key."""
_TARGET: Final = [
    ("constraint_target", InternalTraversal.dp_string),
    ("inferred_target_elements", InternalTraversal.dp_multi_list),
    ("inferred_target_whereclause", InternalTraversal.dp_clauseelement),
]
_UPDATE: Final = [
    ("update_values_to_set", InternalTraversal.dp_dml_ordered_values),
    ("update_whereclause", InternalTraversal.dp_clauseelement),
]


def insert_or_nothing(table: sa.Table) -> postgresql.Insert:
    """Build an INSERT that skips the rows which any unique index refuses."""
    if _HAS_KEY:
        return postgresql.insert(table).on_conflict_do_nothing()
    return _Insert(table, _DoNothing())


def insert_or_update(
    table: sa.Table,
    *,
    key: Sequence[str],
    values: Mapping[str, sa.ColumnElement[Any]],
    where: sa.ColumnElement[bool] | None = None,
) -> postgresql.Insert:
    """Build an INSERT that updates a row which is there already; SQLite's compiler writes it as PostgreSQL's does.

    Args:
        table: The table.
        key: The columns of the unique index that may refuse the row.
        values: What to set then: expressions, since a plain value would become a part of the key.
        where: Only where the row that is there meets this.
    """
    if _HAS_KEY:
        made = postgresql.insert(table)
        return made.on_conflict_do_update(index_elements=list(key), set_=dict(values), where=where)
    return _Insert(table, _DoUpdate(index_elements=list(key), set_=dict(values), where=where))


class _DoNothing(dml.OnConflictDoNothing):
    _traverse_internals = _TARGET


class _DoUpdate(dml.OnConflictDoUpdate):
    _traverse_internals = _TARGET + _UPDATE


class _Insert(postgresql.Insert):
    inherit_cache = True  # what it is written from is the same; SQLAlchemy 2.0 says no for the clause's sake

    def __init__(self, table: sa.Table, clause: dml.OnConflictClause) -> None:
        super().__init__(table)
        self._post_values_clause = clause
