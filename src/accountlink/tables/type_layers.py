"""Look behind a column's type: at the database's own type, and at the application's types above it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect

Type = sa.types.TypeEngine[Any]
POSTGRESQL: Final[sa.Dialect] = PGDialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
"""No driver's: psycopg's has one type for all texts, and knows no ``CHAR``."""
SQLITE: Final[sa.Dialect] = sqlite.dialect()
PADDED: Final = (sa.CHAR, sa.NCHAR)
"""Types that fill up a text with blanks."""


def resolved(kind: Type) -> list[tuple[sa.Dialect, list[Type]]]:
    """Return a type's layers for each database, from the one that takes Python's value to the database's own.

    The list has no entry for a database that the type refuses altogether.
    """
    found: list[tuple[sa.Dialect, list[Type]]] = []
    for dialect in (POSTGRESQL, SQLITE):
        try:
            found.append((dialect, layers_of(kind, dialect)))
        except Exception:  # noqa: BLE001, S112  # an application's own code, which may say so in any way
            continue
    return found


def layers_of(kind: Type, dialect: sa.Dialect) -> list[Type]:
    """Return the layers of a type on one database; the last is the database's own type."""
    layers: list[Type] = [kind.dialect_impl(dialect)]
    while isinstance(layer := layers[-1], (sa.types.TypeDecorator, postgresql.DOMAIN)):
        inner = layer.data_type if isinstance(layer, postgresql.DOMAIN) else layer.load_dialect_impl(dialect)
        layers.append(inner.dialect_impl(dialect))
    return layers


def _overrides(layer: Type, *methods: str) -> bool:
    decorator = sa.types.TypeDecorator
    return isinstance(layer, decorator) and any(
        getattr(type(layer), method) is not getattr(decorator, method) for method in methods
    )


def layer_works(layer: Type) -> bool:
    """Say whether a layer converts values, and does not only name the type behind it."""
    return _overrides(layer, "process_bind_param", "process_result_value", "bind_processor", "result_processor")


def writes_values(layer: Type) -> bool:
    """Say whether a layer converts values that are written, whatever it does to values that are read."""
    return _overrides(layer, "process_bind_param", "bind_processor")


def works_on_values(kind: Type) -> bool:
    """Say whether a type of the application's own converts values on their way."""
    return any(layer_works(layer) for _, layers in resolved(kind) for layer in layers)


def plain_types(kind: Type) -> list[Type]:
    """Return each database's own type behind a column's type, PostgreSQL's first."""
    return [layers[-1] for _, layers in resolved(kind)] or [kind]


def plain_type(kind: Type) -> Type:
    """Return PostgreSQL's own type behind a column's type."""
    return plain_types(kind)[0]


def python_type(kind: Type) -> type[Any] | None:
    """Return the Python type that a type declares, or ``None`` if it declares none.

    SQLAlchemy 2.1 declares ``object`` where 2.0 declares nothing.
    """
    try:
        python: type[Any] = kind.python_type
    except NotImplementedError:
        return None
    return None if python is object else python


def is_padded(kind: Type) -> bool:
    """Say whether a column of this type may pad a text with blanks."""
    return any(isinstance(plain, PADDED) for plain in plain_types(kind))


def stored(value: Any, layers: list[Type], dialect: sa.Dialect) -> Any:
    """Return the value that the database's own type is given for a value of the application."""
    for layer in layers:
        if _overrides(layer, "bind_processor"):
            process = layer.bind_processor(dialect)
            return process(value) if process else value
        if isinstance(layer, sa.types.TypeDecorator) and _overrides(layer, "process_bind_param"):
            value = layer.process_bind_param(value, dialect)
    return value


def loaded(value: Any, layers: list[Type], dialect: sa.Dialect) -> Any:
    """Return the value that Python gets for a value that the database returned."""
    if dialect is SQLITE and isinstance(value, datetime):
        value = value.replace(tzinfo=None)  # SQLite's own type drops the zone
    for layer in reversed(layers):
        if _overrides(layer, "result_processor"):
            process = layer.result_processor(dialect, None)
            value = process(value) if process else value
        elif isinstance(layer, sa.types.TypeDecorator) and _overrides(layer, "process_result_value"):
            value = layer.process_result_value(value, dialect)
    return value
