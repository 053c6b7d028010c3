"""Reads what a database's catalogue says of one table."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from accountlink.doctor.catalogue import postgresql, sqlite
from accountlink.doctor.schema import Catalogue
from accountlink.errors import ConfigurationError

__all__ = ["read_catalogue"]


def read_catalogue(
    connection: sa.Connection, table: str, *, schema: str | None, names: Sequence[str] = ()
) -> Catalogue:
    """Read what the catalogue says of one table; nothing is written and no row of the table is read.

    Args:
        connection: An open connection; its transaction, if there is one, is left as it is.
        table: The table's name, unquoted.
        schema: Its schema, or an attached database of SQLite; ``None`` is what the search path finds, and SQLite's
            main database.
        names: Names that something new might get: which of them are taken is told in :attr:`Catalogue.taken`.

    Returns:
        The table as the database has it, or without one where there is none of that name.

    Raises:
        ConfigurationError: It is neither PostgreSQL nor SQLite.
    """
    match connection.dialect.name:
        case "postgresql":
            return postgresql.read(connection, table, schema=schema, names=names)
        case "sqlite":
            return sqlite.read(connection, table, schema=schema, names=names)
        case other:
            raise ConfigurationError(f"accountlink reads the catalogues of PostgreSQL and SQLite, not of {other!r}.")
