"""Write out the fixed values that the application's columns have as ``default`` or ``onupdate``.

Inside a statement of several parts SQLAlchemy leaves out the fixed values of an inner update. It also gives the values
of two parts for one column the same parameter name.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


def fixed_defaults(table: sa.Table) -> dict[sa.Column[Any], sa.ColumnElement[Any]]:
    """Return the values of a new row in columns whose ``default`` is a fixed value."""
    return {column: literal for column in table.columns if (literal := _fixed(column, column.default)) is not None}


def fixed_updates(table: sa.Table) -> dict[sa.Column[Any], sa.ColumnElement[Any]]:
    """Return the values of an updated row in columns whose ``onupdate`` is a fixed value."""
    return {column: literal for column in table.columns if (literal := _fixed(column, column.onupdate)) is not None}


def _fixed(column: sa.Column[Any], given: Any) -> sa.ColumnElement[Any] | None:  # of a class that is not public
    return sa.literal(given.arg, column.type) if given is not None and given.is_scalar else None
