"""Looks behind a column's type: what the database knows of it, and what the application's own types make of values."""

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
    """A type as each database has it, in layers: from what takes Python's value to what the database knows.

    A type that refuses a database altogether is not asked about it.
    """
    found: list[tuple[sa.Dialect, list[Type]]] = []
    for dialect in (POSTGRESQL, SQLITE):
        try:
            found.append((dialect, layers_of(kind, dialect)))
        except Exception:  # noqa: BLE001, S112  # an application's own code, which may say so in any way
            continue
    return found


def layers_of(kind: Type, dialect: sa.Dialect) -> list[Type]:
    """Return the layers of a type on one database; the last is what the database knows."""
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
    """Whether a layer makes something else of a value, and does not only name the type behind it."""
    return _overrides(layer, "process_bind_param", "process_result_value", "bind_processor", "result_processor")


def writes_values(layer: Type) -> bool:
    """Whether a layer makes something else of a value that is written, whatever it does to one that is read."""
    return _overrides(layer, "process_bind_param", "bind_processor")


def works_on_values(kind: Type) -> bool:
    """Whether a type of the application's own makes something else of a value on its way."""
    return any(layer_works(layer) for _, layers in resolved(kind) for layer in layers)


def plain_types(kind: Type) -> list[Type]:
    """Return what each database knows of a column's type, PostgreSQL first, without what Python makes of it."""
    return [layers[-1] for _, layers in resolved(kind)] or [kind]


def plain_type(kind: Type) -> Type:
    """Return what PostgreSQL knows of a column's type, without what Python makes of it."""
    return plain_types(kind)[0]


def python_type(kind: Type) -> type[Any] | None:
    """Return what a type says that it is in Python: SQLAlchemy 2.1 says any object where 2.0 does not know."""
    try:
        python: type[Any] = kind.python_type
    except NotImplementedError:
        return None
    return None if python is object else python


def is_padded(kind: Type) -> bool:
    """Whether a column of this type may fill up a text with blanks."""
    return any(isinstance(plain, PADDED) for plain in plain_types(kind))


def stored(value: Any, layers: list[Type], dialect: sa.Dialect) -> Any:
    """What the type that the database knows is given."""
    for layer in layers:
        if _overrides(layer, "bind_processor"):
            process = layer.bind_processor(dialect)
            return process(value) if process else value
        if isinstance(layer, sa.types.TypeDecorator) and _overrides(layer, "process_bind_param"):
            value = layer.process_bind_param(value, dialect)
    return value


def loaded(value: Any, layers: list[Type], dialect: sa.Dialect) -> Any:
    """What Python is given of it."""
    if dialect is SQLITE and isinstance(value, datetime):
        value = value.replace(tzinfo=None)  # SQLite's own type drops the zone
    for layer in reversed(layers):
        if _overrides(layer, "result_processor"):
            process = layer.result_processor(dialect, None)
            value = process(value) if process else value
        elif isinstance(layer, sa.types.TypeDecorator) and _overrides(layer, "process_result_value"):
            value = layer.process_result_value(value, dialect)
    return value
