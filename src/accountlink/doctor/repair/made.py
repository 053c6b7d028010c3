"""Makes a table of the library's own that is missing, as ``create_all`` would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from accountlink.doctor.repair.names import dialect_of
from accountlink.doctor.repair.operations import Repair, Step


def made(table: sa.Table, *, schema: str | None, dialect: str) -> Repair:
    """Return the migration that makes a table with its keys and indexes.

    Args:
        table: The table, as the application declares it.
        schema: The schema in which the connection expects it.
        dialect: ``postgresql`` or ``sqlite``.
    """
    target: Any = schema  # None takes the table out of its schema, which SQLAlchemy's annotation does not know
    there = table.to_metadata(sa.MetaData(naming_convention=table.metadata.naming_convention), schema=target)
    name = there.fullname
    if not name.isprintable():
        return Repair(dialect=dialect, table=name, by_hand=("Its name has characters that cannot be shown.",))
    return Repair(dialect=dialect, table=name, steps=tuple(_steps(there, dialect)))


def _steps(table: sa.Table, dialect: str) -> Iterator[Step]:
    writer = dialect_of(dialect)
    preparer = writer.identifier_preparer
    yield Step(
        sql=_tidy(CreateTable(table).compile(dialect=writer)),
        why="Makes a table of the library's own, which is empty. Nobody waits. The downgrade drops it with its rows.",
        undo=(f"DROP TABLE {preparer.format_table(table)}",),
    )
    for index in sorted(table.indexes, key=lambda each: str(each.name)):
        columns = ", ".join(column.name for column in index.columns)
        yield Step(sql=_tidy(CreateIndex(index).compile(dialect=writer)), why=f"Its index on {columns}.")


def _tidy(statement: sa.Compiled) -> str:
    """Return a statement without tabs and without blanks at the ends of lines."""
    return "\n".join(line.replace("\t", "    ").rstrip() for line in str(statement).strip().splitlines())
