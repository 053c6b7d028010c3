"""What an index's condition or key comes to for a row: a reader of the SQL expressions that stand in indexes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from accountlink.doctor.judge.sql.nodes import Row, unknown
from accountlink.doctor.judge.sql.reader import Reader
from accountlink.doctor.judge.sql.tokens import Sort, Unreadable, lowered, tokenize
from accountlink.doctor.judge.sql.values import UNKNOWN, Opaque, Unknown, Value, equal, truth

__all__ = ["UNKNOWN", "Expression", "Opaque", "Unknown", "Value", "equal", "literals", "parse"]

_WHOLE: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Expression:
    """An expression of SQL over the columns of one table.

    Attributes:
        sql: Its text.
        columns: The columns of the table that it reads, as far as that can be told; rather too many than too few.
        exact: Whether two different texts that it comes to always count as different keys.
    """

    sql: str
    columns: frozenset[str]
    exact: bool = True
    _value: Callable[[Row], Value] = field(default=lambda _row: UNKNOWN, repr=False, compare=False)

    def evaluate(self, row: Row) -> Value:
        """Say what it comes to for a row.

        Args:
            row: Values by column; one that is missing, or ``UNKNOWN``, could be anything. A moment is an ``Opaque``, a
                ``char(n)`` stands without the blanks that fill it up, and an array is ``UNKNOWN``.

        Returns:
            The value that the database would give, whatever stands where the row is unknown, or ``UNKNOWN``. SQLite's
            1 and 0 may come as ``True`` and ``False``.
        """
        return self._value(row)

    def holds(self, row: Row) -> bool | Unknown:
        """Say whether a row meets it as a condition; ``NULL`` does not."""
        met = truth(self.evaluate(row))
        return met if isinstance(met, Unknown) else met is True


def parse(
    sql: str,
    *,
    columns: Collection[str],
    dialect: str,
    inexact: Collection[str] = (),
    enums: Collection[str] = (),
) -> Expression:
    """Read an expression as the database writes it; this never raises.

    What it cannot read, or does not know, comes to ``UNKNOWN``: if it stands in brackets of its own, that part alone.
    In PostgreSQL's own writing (``pg_get_expr``) every literal states its type; a bare one counts as text.

    Args:
        sql: The expression, without ``WHERE``.
        columns: The columns of the table.
        dialect: ``postgresql`` or ``sqlite``.
        inexact: Those of the columns where two different texts may compare as equal: ``citext``, or a collation that
            ignores case.
        enums: Enumeration types, written as in the expression.

    Source: PostgreSQL 15, section 4.1.6 (precedence); sqlite.org/lang_expr.html.
    """
    try:
        reader = Reader(sql, columns=columns, dialect=dialect, inexact=inexact, enums=enums)
    except Unreadable:
        return Expression(sql=sql, columns=frozenset(name for name in columns if _mentions(sql, name)), exact=False)
    node = reader.all_of_it(reader.expression) or unknown()
    return Expression(sql=sql, columns=frozenset(reader.read), exact=node.exact, _value=node.value)


def literals(sql: str, *, dialect: str) -> list[str | int]:
    """Return the texts and whole numbers that an expression mentions, each once; none of one that cannot be read."""
    try:
        tokens = tokenize(sql, dialect=dialect)
    except Unreadable:
        return []
    texts: list[str | int] = [token.text for token in tokens if token.sort is Sort.TEXT]
    numbers: list[str | int] = [int(t.text) for t in tokens if t.sort is Sort.NUMBER and _WHOLE.fullmatch(t.text)]
    return list(dict.fromkeys(texts + numbers))


def _mentions(sql: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(lowered(name))}(?!\w)", lowered(sql)) is not None
