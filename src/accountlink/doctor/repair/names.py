"""Names in emitted SQL: quoted as SQLAlchemy quotes them, and new ones that nothing else has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import count
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from accountlink.doctor.case import Case
from accountlink.doctor.judge.subject import Subject
from accountlink.doctor.schema import Column, Kind, Relation

_NAME_LENGTH: Final = 63
"""The length of the longest name: PostgreSQL cuts longer ones (NAMEDATALEN - 1), and two cut names can meet."""
_ATTEMPTS: Final = 9
_NAMED: Final = "named"
"""The style of parameters that does not make the preparer double percent signs."""
_DIALECTS: Final[dict[str, Callable[..., sa.Dialect]]] = {"postgresql": postgresql.dialect, "sqlite": sqlite.dialect}


def dialect_of(name: str) -> sa.Dialect:
    """Return the dialect that writes emitted SQL.

    Args:
        name: ``postgresql`` or ``sqlite``.
    """
    return _DIALECTS[name](paramstyle=_NAMED)


class Names:
    """Write the names of one table and of the objects that belong to it.

    The schema is written where the mapping or the connection names one, and where the table is in another one than
    ``public``. Elsewhere names stay as the application writes them, since its search path found the table so.
    """

    def __init__(self, case: Case) -> None:
        self._roles = case.subject.roles
        self._dialect = dialect_of(case.catalogue.dialect)
        self._preparer = self._dialect.identifier_preparer
        self._home = case.table.schema
        given = case.subject.schema is not None or self._home not in (None, "public")
        self._schema = self._home if given else None
        self.table: Final = self.qualified(case.table.name)

    def quote(self, name: str) -> str:
        """Write a name, in quotation marks where it needs them."""
        return self._preparer.quote(name)

    def qualified(self, name: str) -> str:
        """Write the name of something in the table's own schema."""
        return self.quote(name) if self._schema is None else f"{self.quote(self._schema)}.{self.quote(name)}"

    def elsewhere(self, schema: str | None, name: str) -> str:
        """Write the name of another table, which may be in another schema."""
        if schema is None or schema == self._home:
            return self.qualified(name)
        return f"{self.quote(schema)}.{self.quote(name)}"

    def listed(self, columns: Iterable[str]) -> str:
        """Write several columns."""
        return ", ".join(map(self.quote, columns))

    def live(self, alias: str = "") -> str | None:
        """Write the condition of a live row, or return ``None`` where all rows are."""
        prefix = f"{alias}." if alias else ""
        marks = [f"{prefix}{self.quote(self._roles['deleted_at'])} IS NULL"] if "deleted_at" in self._roles else []
        marks += [f"{prefix}{self.quote(self._roles['active'])}"] if "active" in self._roles else []
        return " AND ".join(marks) or None

    def value(self, value: sa.ColumnElement[Any], column: Column) -> str | None:
        """Write a value for a column, or return ``None`` where its type cannot be written in SQL."""
        try:
            sql = str(value.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True}))
        except sa.exc.CompileError:
            return None
        return f"CAST({sql} AS {column.type})" if column.kind is Kind.OTHER else sql  # an empty array has no type


def literal(text: str) -> str:
    """Write a text that is no name."""
    return "'" + text.replace("'", "''") + "'"


class FreeNames:
    """Give out names that nothing in the table's schema has, as far as was asked."""

    def __init__(self, case: Case, *, gone: Iterable[str] = ()) -> None:
        table = case.table
        taken = {table.name, *case.catalogue.taken, *(index.name for index in table.indexes)}
        taken |= {index.constraint for index in table.indexes if index.constraint is not None}
        self._taken = {name.lower() for name in taken} - {name.lower() for name in gone}

    def is_free(self, name: str) -> bool:
        """Return whether a name can still be given; names that differ in case alone count as one, as SQLite has it."""
        return name.lower() not in self._taken

    def take(self, name: str) -> str:
        """Give out a name."""
        self._taken.add(name.lower())
        return name

    def derive(self, prefix: str, table: str, columns: Sequence[str]) -> str:
        """Give out the first free name that says what it is for."""
        wanted = (_numbered(prefix, table, columns, number) for number in count(1))
        return self.take(next(name for name in wanted if self.is_free(name)))


def derived(prefix: str, table: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names that something new on these columns may get, in the order in which they are tried."""
    return tuple(_numbered(prefix, table, columns, number) for number in range(1, _ATTEMPTS + 1))


def _numbered(prefix: str, table: str, columns: Sequence[str], number: int) -> str:
    return _fitting("_".join((prefix, table, *columns)), "" if number == 1 else f"_{number}")


def candidates(subject: Subject) -> frozenset[str]:
    """Return all names that a migration for this table may want, so that the catalogue can say which are taken."""
    wanted = {declared.name for declared in subject.declared}
    for columns in {need.columns for need in subject.needs} | {declared.columns for declared in subject.declared}:
        wanted |= {*derived("uq", subject.table, columns)}
    for need in subject.needs:
        wanted |= {name for column in need.columns for name in derived("ck", subject.table, (column, "not_null"))}
    return frozenset(wanted)


def _fitting(name: str, suffix: str) -> str:
    if len((name + suffix).encode()) <= _NAME_LENGTH:
        return name + suffix
    digest = sha256(name.encode()).hexdigest()[:8]
    room = _NAME_LENGTH - len(f"_{digest}{suffix}")
    return f"{name.encode()[:room].decode(errors='ignore')}_{digest}{suffix}"


def is_writable(case: Case) -> bool:
    """Return whether all names can stand in a line of SQL, and in a comment beside it."""
    table = case.table
    names = [table.schema or "", table.name, *(column.name for column in table.columns)]
    names += [name for index in table.indexes for name in (index.name, index.constraint or "")]
    names += [name for key in table.referenced_by for name in (key.schema or "", key.table, *key.columns)]
    names += [policy.name for policy in table.row_security.policies]
    return all(name.isprintable() for name in names)


def is_ordinary(case: Case) -> bool:
    """Return whether it is a table that has rows and indexes of its own."""
    return case.table.relation not in (Relation.VIEW, Relation.FOREIGN)
