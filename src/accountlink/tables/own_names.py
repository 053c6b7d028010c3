"""Check the names of the library's own tables, so that every database makes them under these names."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.schema import conv

from accountlink.errors import ConfigurationError
from accountlink.values.text import storable

LONGEST: Final = 63
"""Bytes of a name in PostgreSQL, which cuts off the rest (NAMEDATALEN)."""


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
