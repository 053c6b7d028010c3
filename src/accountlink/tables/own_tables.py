"""Make the library's own tables, and check their names, so that every database makes them under these names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem, conv

from accountlink.errors import ConfigurationError
from accountlink.tables.targets import known_table
from accountlink.values.text import storable

LONGEST: Final = 63
"""Bytes of a name in PostgreSQL, which cuts off the rest (NAMEDATALEN)."""


def own_table(
    function: str,
    metadata: sa.MetaData,
    *items: SchemaItem,
    name: str,
    schema: str | None,
    check: Callable[[object], sa.Table],
    **options: Any,
) -> sa.Table:
    """Make one of the library's own tables, or return the one that the metadata has by this name, if it passes a check.

    The function is the public one that makes the table; the items are columns and indexes.
    """
    check_own_name(function, metadata, name, schema)
    if (known := known_table(metadata, name, schema)) is not None:
        return check(known)
    return checked_names(function, sa.Table(name, metadata, *items, schema=schema, **options))


def with_columns(table: object, names: Iterable[str], refusal: str) -> sa.Table:
    """Return a table that has all columns of these names, or refuse it by a sentence that says what to pass."""
    if not isinstance(table, sa.Table) or any(name not in table.columns for name in names):
        raise ConfigurationError(f"{refusal}. Give it a name that no other table has.")
    return table


def check_own_name(function: str, metadata: object, name: object, schema: object) -> None:
    """Refuse a text that cannot be the name of a table.

    Args:
        function: The public function that makes the table.
        metadata: Where the table is to be made.
        name: Its name.
        schema: The name of its schema, or ``None``.

    Raises:
        ConfigurationError: No metadata, or a name that is no text, is empty, or is longer than databases keep it.
    """
    if not isinstance(metadata, sa.MetaData):
        raise ConfigurationError(
            f"{function}() takes the MetaData of your tables, such as Base.metadata, not {type(metadata).__name__}."
        )
    for argument, value in (("name", name), ("schema", schema)):
        if value is None and argument == "schema":
            continue
        if not isinstance(value, str) or not value or not storable(value):
            raise ConfigurationError(f"{function}({argument}=...) takes a text that can be a name in the database.")
        if len(value.encode()) > LONGEST:
            raise ConfigurationError(
                f"{function}({argument}=...) takes {LONGEST} bytes at most: PostgreSQL would cut the name off. Give a "
                "shorter one."
            )


def checked_names(function: str, table: sa.Table) -> sa.Table:
    """Return a table whose indexes all have names that fit PostgreSQL's limit in bytes.

    A naming convention of the application's own replaces SQLAlchemy's, and may say nothing about indexes. An index that
    comes out nameless, which no database makes, gets the name that SQLAlchemy would have given it.

    Raises:
        ConfigurationError: An index would lose a part of its name: SQLAlchemy counts characters, PostgreSQL bytes.
    """
    for index in table.indexes:
        if index.name is None:
            index.name = shortened(f"ix_{table.name}_{index.columns[0].name}")
    names = [str(index.name) for index in table.indexes]
    if any(len(name.encode()) > LONGEST and not name.isascii() for name in names):
        table.metadata.remove(table)
        raise ConfigurationError(
            f"{function}(name=...) makes names of indexes that are longer than {LONGEST} bytes. Give a shorter name."
        )
    return table


def shortened(name: str) -> conv:
    """Return a name of an index that SQLAlchemy shortens where it is too long, as it does by a naming convention."""
    return conv(name)
