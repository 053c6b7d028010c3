"""SQLite's catalogue: its pragmas as tables, and what only the statements that made things tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from accountlink.doctor.catalogue.sqlite_ddl import IndexDDL, TableDDL, fold, read_index, read_table
from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.schema import Catalogue, Column, ForeignKey, Index, IndexPart, Kind, Owner, Relation, Table

_ROWID: Final = "rowid"
_OWNERS: Final = {"c": Owner.NOTHING, "u": Owner.UNIQUE, "pk": Owner.PRIMARY}
_IS_EXPRESSION: Final = -2
_HIDDEN: Final = 1
_GENERATED: Final = (2, 3)  # virtual, stored
_KINDS: Final = (
    (re.compile(r"DATETIME|TIMESTAMP"), Kind.MOMENT),
    (re.compile(r"BOOL"), Kind.BOOLEAN),
    (re.compile(r"INT"), Kind.INTEGER),
    (re.compile(r"CHAR|CLOB|TEXT|UUID"), Kind.TEXT),
)
"""The kind of a declared type, by the first pattern that fits it.

First come names that SQLite does not know, then its own rules ("Datatypes", 3.1).
"""

_FIND: Final = """
    SELECT type, name, sql FROM {schema}.sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE
"""
_TAKEN: Final = "SELECT name FROM {schema}.sqlite_master"
_STATEMENTS: Final = """
    SELECT type, name, sql FROM {schema}.sqlite_master
     WHERE tbl_name = ? COLLATE NOCASE ORDER BY name
"""
_COLUMNS: Final = """
    SELECT name, type, "notnull" AS required, dflt_value AS filled, pk, hidden
      FROM pragma_table_xinfo(?, ?) ORDER BY cid
"""
_INDEXES: Final = """
    SELECT i.name, i."unique" AS is_unique, i.origin, i.partial, p.cid, p.name AS column, p.coll
      FROM pragma_index_list(?, ?) AS i JOIN pragma_index_xinfo(i.name, ?) AS p
     WHERE p."key" ORDER BY i.name, p.seqno
"""
_REFERENCED_BY: Final = """
    SELECT t.name, f.id, f."from" AS source, f."to" AS target, f.on_delete
      FROM {schema}.sqlite_master AS t JOIN pragma_foreign_key_list(t.name, ?) AS f
     WHERE t.type = 'table' AND f."table" = ? COLLATE NOCASE ORDER BY t.name, f.id, f.seq
"""


def read(connection: sa.Connection, table: str, *, schema: str | None, names: Sequence[str]) -> Catalogue:
    """Read what the catalogue says of one table."""
    return _Reader(connection, schema).read(table, names)


class _Reader:
    """Read one database of a connection."""

    def __init__(self, connection: sa.Connection, schema: str | None) -> None:
        self._connection = connection
        self._given = schema
        self._schema = "main" if schema is None else schema

    def read(self, table: str, names: Iterable[str]) -> Catalogue:
        version = [int(number) for number in self._rows("SELECT sqlite_version()")[0][0].split(".")]
        known = self._schema_exists()
        found = self._rows(_FIND, table) if known else []
        there = {fold(row.name) for row in self._rows(_TAKEN)} if known else set()
        return Catalogue(
            dialect="sqlite",
            version=version[0] * 1_000_000 + version[1] * 1_000 + version[2],
            table=self._table(found[0]) if found else None,
            taken=frozenset(name for name in names if fold(name) in there),
        )

    def _rows(self, query: str, *parameters: str) -> Sequence[Any]:  # rows by the names in each query
        # As the driver takes it: sa.text would read a colon in the schema's name as a parameter.
        return self._connection.exec_driver_sql(query.replace("{schema}", quoted(self._schema)), parameters).all()

    def _schema_exists(self) -> bool:
        return any(fold(row.name) == fold(self._schema) for row in self._rows("SELECT name FROM pragma_database_list"))

    def _table(self, found: Any) -> Table:  # a row
        relation, ddl = _parsed(found.type, found.sql)
        statements = self._rows(_STATEMENTS, found.name)
        columns = self._rows(_COLUMNS, found.name, self._schema)
        parts = self._rows(_INDEXES, found.name, self._schema, self._schema)
        alias = _rowid_alias(columns, parts) if relation is Relation.TABLE else None
        created = {row.name: row.sql for row in statements if row.type == "index"}
        indexes = _indexes(parts, created, ddl)
        if alias is not None:
            key = (IndexPart(sql=alias, column=alias),)
            name = next((key.name for key in ddl.keys if key.primary), None)
            indexes.append(Index(name=_ROWID, parts=key, unique=True, owner=Owner.PRIMARY, constraint=name))
        primary = [row.name for row in sorted(columns, key=lambda row: int(row.pk)) if row.pk]
        return Table(
            schema=self._given,
            name=found.name,
            relation=relation,
            columns=tuple(_column(row, ddl, alias) for row in columns if row.hidden != _HIDDEN),
            indexes=tuple(sorted(indexes, key=lambda index: index.name)),
            referenced_by=self._referenced_by(found.name, [row.name for row in columns], primary),
            sql=found.sql,
            triggers=tuple(row.sql for row in statements if row.type == "trigger"),
            rewritten=any(row.type == "trigger" for row in statements),
            without_rowid=ddl.without_rowid,
        )

    def _referenced_by(self, table: str, columns: Sequence[str], primary: Sequence[str]) -> tuple[ForeignKey, ...]:
        spelled = {fold(column): column for column in columns}
        keys = []
        rows = self._rows(_REFERENCED_BY, self._schema, table)
        for (name, _), grouped in groupby(rows, key=lambda row: (row.name, row.id)):
            links = list(grouped)
            # Without a list of columns it points to the primary key.
            named = [spelled.get(fold(row.target), row.target) for row in links if row.target is not None]
            keys.append(
                ForeignKey(
                    name=None,
                    schema=self._given,
                    table=name,
                    columns=tuple(row.source for row in links),
                    targets=tuple(named or primary),
                    on_delete=links[0].on_delete,
                )
            )
        return tuple(keys)


def _parsed(kind: str, sql: str) -> tuple[Relation, TableDDL]:
    if kind == "view":
        return Relation.VIEW, TableDDL()
    if sql.upper().startswith("CREATE VIRTUAL"):  # SQLite writes the statement's beginning itself
        return Relation.FOREIGN, TableDDL()
    return Relation.TABLE, read_table(sql)


def _rowid_alias(columns: Sequence[Any], parts: Sequence[Any]) -> str | None:
    """Return the column that is the rowid: the one ``INTEGER PRIMARY KEY`` for which there is no index.

    In a table without rowids there is one, and for ``INTEGER PRIMARY KEY DESC``, by an old mistake that SQLite keeps.
    """
    primary = [row for row in columns if row.pk]
    indexed = any(row.origin == "pk" for row in parts)
    if indexed or len(primary) != 1 or fold(primary[0].type) != "integer":
        return None
    return str(primary[0].name)


def _column(row: Any, ddl: TableDDL, alias: str | None) -> Column:  # a row
    name = fold(row.name)
    # Primary keys of tables without rowids, too, have "notnull"; others may hold nulls, by another old mistake.
    required = bool(row.required) or row.name == alias or name in ddl.required
    collation = ddl.collations.get(name)
    return Column(
        name=row.name,
        type=row.type,
        kind=next((kind for pattern, kind in _KINDS if pattern.search(row.type.upper())), Kind.OTHER),
        nullable=not required,
        exact=_exact(collation),
        collation=collation,
        default=row.filled,
        generated=ddl.generated.get(name) if row.hidden in _GENERATED else None,
        identity=row.name == alias,
    )


def _exact(collation: str | None) -> bool:
    """Say whether a collation is known to compare only equal texts as equal.

    Of a collation that the application defines, this is not known.
    """
    return collation is None or fold(collation) == "binary"


def _indexes(parts: Sequence[Any], created: dict[str, str], ddl: TableDDL) -> list[Index]:
    indexes = []
    for name, grouped in groupby(parts, key=lambda row: row.name):
        rows = list(grouped)
        definition = created.get(name)
        told = IndexDDL(parts=(), where=None) if definition is None else read_index(definition)
        owner = _OWNERS[rows[0].origin]
        key = tuple(_part(row, place, told) for place, row in enumerate(rows))
        indexes.append(
            Index(
                name=name,
                parts=key,
                unique=bool(rows[0].is_unique),
                where=told.where,
                owner=owner,
                constraint=None if owner is Owner.NOTHING else _constraint(key, owner, ddl),
                definition=definition,
            )
        )
    return indexes


def _part(row: Any, place: int, told: IndexDDL) -> IndexPart:  # a row
    if row.cid == _IS_EXPRESSION:
        return IndexPart(sql=told.parts[place], column=None, exact=_exact(row.coll), order=_order(row.coll))
    return IndexPart(sql=row.column, column=row.column, exact=_exact(row.coll), order=_order(row.coll))


def _order(collation: str) -> str:
    return f" COLLATE {quoted(collation)}"


def _constraint(parts: Sequence[IndexPart], owner: Owner, ddl: TableDDL) -> str | None:
    """Return the name of the constraint that an automatic index belongs to, where the statement gives it one."""
    columns = [fold(part.sql) for part in parts]
    names = (
        key.name
        for key in ddl.keys
        if key.primary is (owner is Owner.PRIMARY) and columns == [fold(name) for name in key.columns]
    )
    return next(names, None)
