"""Read a column so that no log of rows, and no traceback with locals, shows what it contains."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from accountlink.values.secrecy import ConcealedText


class _Concealing(sa.types.TypeDecorator[Any]):
    """Read what the type of a column reads, and mask a text in every ``repr``.

    Args:
        kind: The type of the column.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: sa.types.TypeEngine[Any]) -> None:
        super().__init__()
        self.kind = kind

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Return the type of the column, whose own code reads the value first."""
        return self.kind

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return what the type of the column reads in its stead, masked too: a type may open a text by SQL."""
        opened = super().column_expression(column)
        return column if opened is None else sa.type_coerce(opened, self)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return a text masked, and any other value as it is."""
        return ConcealedText(value) if isinstance(value, str) else value


def concealed(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Return a column for a query, so that its text is masked from the moment when SQLAlchemy has read it.

    SQLAlchemy logs the rows of an engine with ``echo="debug"``. A column for tokens has plain text where a backfill has
    not been yet, or where somebody wrote it by hand.

    Args:
        column: The column.
    """
    return sa.type_coerce(column, _Concealing(column.type))
