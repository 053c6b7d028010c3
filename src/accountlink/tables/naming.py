"""Name the parts and the parameters of statements."""

from __future__ import annotations

import sqlalchemy as sa

from accountlink.errors import ConfigurationError

PREFIX = "al_"
"""The first characters in the names of all parts and parameters of a statement."""


class Names:
    """Name parts of statements and aliases, so that no name is that of a table.

    Inside a statement the name of a part or an alias hides a table of the same name. So a name avoids the names of all
    tables of the same metadata. It avoids those that the statement does not read too, because a column's default may
    read them.

    Args:
        tables: The tables that the statements read and write.
    """

    def __init__(self, *tables: sa.Table | None) -> None:
        self._tables = [table for table in tables if table is not None]

    def __call__(self, word: str) -> str:
        """Return a name for a part, which begins with the given word."""
        declared = (table for each in self._tables for table in (each, *each.metadata.tables.values()))
        taken = {table.name.lower() for table in declared}  # SQLite knows no upper and lower case in names
        name = PREFIX + word
        while name in taken:
            name += "_"
        return name


def check_keys(table: sa.Table) -> None:
    """Refuse a column that SQLAlchemy would fill with one of accountlink's own parameters.

    Raises:
        ConfigurationError: A column's key begins as the names of the parameters do.
    """
    for column in table.columns:
        if column.key.startswith(PREFIX):
            raise ConfigurationError(
                f"The key of column {column.name!r} of {table.fullname!r} begins with {PREFIX!r}, as accountlink's "
                "own parameters do. The name can stay; give the column another key: "
                f'mapped_column("{column.name}", key="..."), or Column("{column.name}", key="...").'
            )
