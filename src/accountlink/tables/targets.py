"""Find the table behind a model, and the columns behind its attributes."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, QueryableAttribute, class_mapper
from sqlalchemy.orm.exc import UnmappedClassError

from accountlink.errors import ConfigurationError

Attribute = QueryableAttribute[Any] | sa.Column[Any]
"""The name of a column: a mapped attribute of a model, or a column of a table."""


class TableMapping(Protocol):
    """Hold the parts of every mapping: a table, its columns by role, and the mapper of its model if it has one."""

    @property
    def table(self) -> sa.Table:
        """The table."""
        ...

    @property
    def name(self) -> str:
        """The table's name, for messages."""
        ...

    @property
    def columns(self) -> dict[str, sa.Column[Any]]:
        """The columns of the table, by role."""
        ...

    @property
    def mapper(self) -> Mapper[Any] | None:
        """The mapper of the table's model."""
        ...


def as_a_write(mapping: TableMapping) -> dict[str, Any]:
    """Return the arguments that make a session's ``get_bind`` choose the engine for writes to this table.

    Reads go to that engine too, not to a follower. They must see what their own transaction wrote, and a follower may
    still have a link that is gone, by which a user could sign in. A caller who wants a follower's answer passes the
    follower's engine.

    Source: SQLAlchemy documentation, "Custom Vertical Partitioning": sessions that route by the kind of statement.
    """
    arguments: dict[str, Any] = {"clause": _update_of(mapping.table)}
    return arguments if mapping.mapper is None else arguments | {"mapper": mapping.mapper}


@lru_cache(maxsize=64)
def _update_of(table: sa.Table) -> sa.Update:
    return sa.update(table)


def mapper_of(target: type[Any] | sa.Table) -> Mapper[Any] | None:
    """Return the mapper of a model, or ``None`` for a table.

    Raises:
        ConfigurationError: The target is neither.
    """
    if isinstance(target, sa.Table):
        return None
    with suppress(UnmappedClassError, sa.exc.ArgumentError):  # whose texts show what was given
        return class_mapper(target, configure=False)
    given: object = target
    named = given.__name__ if isinstance(given, type) else f"What is given, {type(given).__name__},"
    raise ConfigurationError(f"{named} is neither a mapped class nor a Table.")


def table_of(target: type[Any] | sa.Table, mapper: Mapper[Any] | None) -> sa.Table:
    """Return the one table of a model, or the table itself.

    Raises:
        ConfigurationError: The model has several tables, or shares its table with other classes.
    """
    if isinstance(target, sa.Table):
        return target
    if mapper is None or not isinstance(mapper.local_table, sa.Table) or len(mapper.tables) != 1:
        raise ConfigurationError("Links must live in one table: map a model that has a table of its own, or the Table.")
    if mapper.inherits is not None or mapper.polymorphic_on is not None:
        raise ConfigurationError(
            f"{mapper.class_.__name__} shares its table with other classes (polymorphic inheritance), whose rows a "
            "link would have to tell apart. Map a model that has a table of its own."
        )
    return mapper.local_table


def known_table(metadata: sa.MetaData, name: str, schema: str | None) -> sa.Table | None:
    """Return the table that the metadata already has by this name; without a schema, in the metadata's own."""
    wanted = (name, schema or metadata.schema)
    return next((table for table in metadata.tables.values() if (table.name, table.schema) == wanted), None)


def column_of(attribute: object, *, mapper: Mapper[Any] | None, table: sa.Table) -> sa.Column[Any]:
    """Return the column of this table that an attribute or a column names.

    Raises:
        ConfigurationError: It names none of this table's columns.
    """
    column: object = attribute
    if isinstance(attribute, QueryableAttribute):
        # Not attribute.property: that would configure all mappers, and some may not be imported yet.
        owner: Any = attribute.class_
        column = None
        if mapper is not None and owner is mapper.class_:
            column = mapper.columns.get(attribute.key)
        if column is None:  # a synonym, an alias, an attribute of a parent class
            columns: list[Any] = list(getattr(getattr(attribute, "property", None), "columns", ()))
            column = columns[0] if len(columns) == 1 else None
    if not isinstance(column, sa.Column) or column.table is not table:
        named = table.fullname
        raise ConfigurationError(
            f"{_said(attribute)} is not a column of {named!r}. Pass one of its mapped columns"
            f"{_meant(attribute, mapper)}."
        )
    return column


def _said(attribute: object) -> str:
    """Return text for an error about a value: a name is shown, and any other value is not, since it may be secret."""
    if isinstance(attribute, (QueryableAttribute, sa.Column)):
        return str(attribute)
    return f"What is given, {type(attribute).__name__},"


def _meant(attribute: object, mapper: Mapper[Any] | None) -> str:
    """Return a hint for an error: the value to pass instead of a column's name, or of an attribute over a column."""
    if mapper is None:
        return ""
    if isinstance(attribute, str) and attribute in mapper.columns:
        return f": {mapper.class_.__name__}.{attribute}, not its name"
    local = getattr(getattr(attribute, "property", None), "local_columns", ())
    keys = sorted(mapper.get_property_by_column(column).key for column in local if column in mapper.columns.values())
    return f": {', '.join(f'{mapper.class_.__name__}.{key}' for key in keys)}" if keys else ""
