"""Small parts that the statements of every folder are built of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import sqlalchemy as sa

select: Final[Callable[..., sa.Select[Any]]] = cast("Any", sa.select)
"""Build a query of columns that the mapping chooses at run time, so that no type checker knows their types."""
ONE: Final = sa.literal_column("1", sa.Integer)
ZERO: Final = sa.literal_column("0", sa.Integer)
"""Numbers that are written out in a statement: each bound value costs the driver time."""


def word(text: str) -> sa.ColumnClause[str]:
    """Return a text that is written out in a statement: a name of accountlink's own, never a value of a call."""
    return sa.literal_column(f"'{text}'", sa.Text)


def named_arm(name: str) -> sa.Label[str]:
    """Return the name of a part of a statement, as the first column of that part's answer."""
    return word(name).label("arm")
