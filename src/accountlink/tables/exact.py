"""Compare identifiers byte by byte, where a column, its collation or its type treats different texts as equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa

from accountlink.errors import ConfigurationError
from accountlink.tables.rows import text_of
from accountlink.tables.targets import TableMapping
from accountlink.tables.type_layers import layer_works, resolved

REFUSED: Final = (TypeError, ValueError, AttributeError, LookupError)
"""Errors of the Python code of a column's type at a value that is not of its kind."""


_BYTES: Final = sa.Text(collation="C").with_variant(sa.Text(collation="BINARY"), "sqlite")
"""Text that is compared byte by byte, by the name that each database has for this collation."""


def exactly(column: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Compare a column with a text byte by byte, whatever the column's type and collation treat as equal.

    A statement uses it beside the column's own comparison, which finds the rows by an index. This comparison only
    narrows them down. Its cast to text makes ``citext`` compare bytes, and removes the padding of ``CHAR(n)``.

    A parameter whose type names a collation is sent with it, and PostgreSQL refuses to compare two collations.
    """
    text = sa.Text if getattr(value.type, "collation", None) is None else _BYTES
    return sa.cast(column, _BYTES) == sa.cast(value, text)


class Spelling:
    """Run the Python code of a column's type over a text, as a write and a later read would.

    Args:
        mapping: The table.
        role: The column's role.

    Raises:
        ConfigurationError: The type changes a written text by SQL, so that Python cannot know the stored text.
    """

    def __init__(self, mapping: TableMapping, role: str) -> None:
        column = mapping.columns[role]
        known = resolved(column.type)
        self._code: Final = [
            (layers[0].bind_processor(dialect), layers[0].result_processor(dialect, None))
            for dialect, layers in known
            if any(layer_works(layer) for layer in layers)
        ]
        outermost = [layers[0] for _, layers in known]
        if any(kind.bind_expression(sa.bindparam("any", type_=kind)) is not None for kind in outermost):
            raise ConfigurationError(
                f"{column.name!r} of {mapping.name!r} has a type with a bind_expression, by which the database may "
                f"store another text than the one that is given, and {role!r} is compared byte by byte. Change the "
                "text in the type's process_bind_param instead, or map a column of plain text."
            )

    @property
    def has_code(self) -> bool:
        """Say whether the column's type has Python code that may change a text."""
        return bool(self._code)

    def keeps(self, value: Any) -> bool:  # a text, or a member of an enumeration
        """Say whether a value is read back as it was written; a value that the type refuses is not."""
        try:
            return self.comes_back(value)
        except REFUSED:
            return False

    def comes_back(self, value: Any) -> bool:  # a text, or a member of an enumeration
        """Say whether a value is read back as it was written.

        Raises:
            Exception: The type refuses the value; this is the type's own error.
        """
        return all(text_of(value) == text_of(_through(read, _through(write, value))) for write, read in self._code)


def _through(code: Callable[[Any], Any] | None, value: Any) -> Any:  # whatever the type makes of it
    return value if code is None else code(value)
