"""Write ids as text for the library's own tables, in one form for each id.

The text is what ``str(id)`` gives. A column of characters that holds UUIDs, as SQLite's does, has their 32 digits; the
text has the hyphens as well.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from accountlink.tables.type_layers import PADDED, layers_of, plain_type

_SAMPLE: Final = UUID(int=0x0123456789ABCDEF0123456789ABCDEF)
_GROUPS: Final = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
"""Where the groups of a UUID's digits begin, and how long they are."""
_NUMERIC_OID: Final = 1700
"""PostgreSQL drivers' name to SQLAlchemy for an exact number."""


class id_text(sa.sql.functions.FunctionElement[str]):  # noqa: N801  # SQLAlchemy names the elements of SQL like this
    """Write an id as text in SQL, in a form that depends on the type of its column.

    Args:
        clauses: The id: a column, or a parameter with its column's type.
    """

    type = sa.Text()
    inherit_cache = True
    name = "id_text"


@compiles(id_text)
def _any(element: id_text, compiler: SQLCompiler, **options: Any) -> str:
    """Write an id in PostgreSQL's form: a text of 32 digits gets its hyphens, and any other text stays as it is."""
    given, plain = _plainly(element, compiler, options)
    if not _uuids_in_text(given.type, compiler.dialect):
        return f"rtrim({plain})" if _pads(given.type) else plain
    groups = "".join(f"(.{{{length}}})" for _, length in _GROUPS)
    return f"lower(regexp_replace({plain}, '^{groups}$', '\\1-\\2-\\3-\\4-\\5'))"


@compiles(id_text, "sqlite")
def _sqlite(element: id_text, compiler: SQLCompiler, **options: Any) -> str:
    given, plain = _plainly(element, compiler, options)
    if isinstance(_plain(given.type, compiler.dialect), sa.Numeric):
        return _sqlite_number(given, plain, compiler, options)
    if not _uuids_in_text(given.type, compiler.dialect):
        return plain
    joined = " || '-' || ".join(
        f"substr({compiler.process(given, **options)}, {start}, {length})" for start, length in _GROUPS
    )
    whole = compiler.process(given, **options)
    return f"lower(CASE length({whole}) WHEN 32 THEN {joined} ELSE {plain} END)"


def _sqlite_number(given: sa.ColumnElement[Any], plain: str, compiler: SQLCompiler, options: dict[str, Any]) -> str:
    """Write a whole number without a point: SQLAlchemy sends it as a float, and a column of numbers stores an integer.

    What is no whole number, or is larger than SQLite's integers, is a float in both, and has one text already.
    """
    number, whole = compiler.process(given, **options), compiler.process(sa.cast(given, sa.BigInteger), **options)
    return f"CASE {number} WHEN {whole} THEN CAST({whole} AS TEXT) ELSE {plain} END"


def _plainly(element: id_text, compiler: SQLCompiler, options: dict[str, Any]) -> tuple[sa.ColumnElement[Any], str]:
    (given,) = element.clauses
    return given, compiler.process(sa.cast(given, sa.Text), **options)


def _uuids_in_text(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> bool:
    """Say whether a column holds UUIDs as characters on a database."""
    stored = _plain(kind, dialect)
    if isinstance(stored, sa.Uuid):
        return not _is_native(stored, dialect)
    if not isinstance(kind, sa.types.TypeDecorator) or not isinstance(stored, sa.String):
        return False
    try:  # an application's type: it makes a UUID of a text in either form, or it does not
        made = [_converted(kind, dialect, text) for text in (_SAMPLE.hex, str(_SAMPLE))]
    except Exception:  # noqa: BLE001  # its own code may raise anything, and then takes no such text
        return False
    return made == [_SAMPLE, _SAMPLE]


def _plain(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
    """Return the type that a database has for a column's type."""
    return layers_of(kind, dialect)[-1]


def _is_native(stored: sa.Uuid[Any], dialect: sa.Dialect) -> bool:
    return bool(dialect.supports_native_uuid and stored.native_uuid)


def _converted(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect, value: object) -> Any:
    process = kind.dialect_impl(dialect).result_processor(dialect, _coltype(kind, dialect))
    return value if process is None else process(value)


def _coltype(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> object:
    return _NUMERIC_OID if isinstance(_plain(kind, dialect), sa.Numeric) else None


def reader(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Callable[[str], Any]:
    """Return a function that reads an id from text, through the driver's form and the column's own type.

    Args:
        kind: The column's type.
        dialect: The database's.

    Returns:
        A function that raises whatever the type raises where the text is no such id.
    """
    process = kind.dialect_impl(dialect).result_processor(dialect, _coltype(kind, dialect))
    drivers = _drivers(kind, dialect)
    return drivers if process is None else lambda text: process(drivers(text))


def is_readable(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> bool:
    """Say whether :func:`reader` reads each id of a column from its text: not bytes, moments, or other types.

    Args:
        kind: The column's type.
        dialect: The database's.
    """
    stored = _plain(kind, dialect)
    return isinstance(stored, (sa.Uuid, sa.Integer, sa.Numeric, sa.String)) and not isinstance(stored, sa.Float)


def _drivers(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Callable[[str], Any]:
    """Return the function that converts a text to the value that the driver returns for a column."""
    stored = _plain(kind, dialect)
    if isinstance(stored, sa.Uuid):
        return UUID if _is_native(stored, dialect) else lambda text: UUID(text).hex
    if isinstance(stored, sa.Integer):
        return _whole
    if isinstance(stored, sa.Numeric):
        return Decimal if dialect.name == "postgresql" else float
    if isinstance(stored, sa.String) and stored.length is not None and dialect.name == "postgresql" and _pads(kind):
        width = stored.length
        return lambda text: text.ljust(width)
    return str


def _pads(kind: sa.types.TypeEngine[Any]) -> bool:
    """Say whether PostgreSQL pads a shorter text in this column with blanks, which its value as text does not have."""
    return isinstance(plain_type(kind), PADDED)


def _whole(text: str) -> int:
    number = int(text)
    if str(number) != text:
        raise ValueError("a whole number is written with digits alone")
    return number
