"""PostgreSQL's catalogue, in two queries that any role may ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from accountlink.doctor.catalogue import tokens
from accountlink.doctor.catalogue.postgresql_queries import FIND, READ
from accountlink.doctor.schema import (
    Catalogue,
    Column,
    ForeignKey,
    Index,
    IndexPart,
    Kind,
    Owner,
    Partitioning,
    Relation,
    RowPolicy,
    RowSecurity,
    Table,
)

_KINDS: Final = {
    "text": Kind.TEXT,
    "varchar": Kind.TEXT,
    "name": Kind.TEXT,
    "bpchar": Kind.PADDED,
    "int2": Kind.INTEGER,
    "int4": Kind.INTEGER,
    "int8": Kind.INTEGER,
    "bool": Kind.BOOLEAN,
    "timestamp": Kind.MOMENT,
    "timestamptz": Kind.MOMENT,
    "uuid": Kind.UUID,
}
_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_NAME_LENGTH: Final = 63
"""The length in bytes to which PostgreSQL's type ``name`` cuts a text, without a warning."""
_OWNERS: Final = {"p": Owner.PRIMARY, "u": Owner.UNIQUE, "x": Owner.EXCLUSION}
_COMMANDS: Final = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}
_ON_DELETE: Final = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
_RELATIONS: Final = {
    "p": Relation.PARTITIONED,
    "v": Relation.VIEW,
    "m": Relation.VIEW,
    "f": Relation.FOREIGN,
}
_SERIAL: Final = re.compile(r"(?:pg_catalog\.)?nextval\(")


def read(connection: sa.Connection, table: str, *, schema: str | None, names: Sequence[str]) -> Catalogue:
    """Read what the catalogue says of one table."""
    asked = {"table": table, "schema": schema, "names": json.dumps(list(names))}
    found = connection.execute(FIND, asked).one()
    taken = frozenset(_loads(found.taken))
    if found.oid is None:
        return Catalogue(dialect="postgresql", version=found.version, role=found.role, table=None, taken=taken)
    told = connection.execute(READ, {"oid": found.oid}).one()
    checks = tuple(_loads(told.checks))
    checked = _never_null(checks)
    return Catalogue(
        dialect="postgresql",
        version=found.version,
        role=found.role,
        may=frozenset(_loads(found.may)),
        taken=taken,
        table=Table(
            schema=found.schema,
            name=found.name,
            relation=_relation(found.kind, found.partition),
            columns=tuple(_column(row, checked) for row in _loads(told.columns)),
            indexes=tuple(map(_index, _loads(told.indexes))),
            row_security=RowSecurity(
                enabled=found.row_security,
                active=found.row_security_active,
                policies=tuple(map(_policy, _loads(told.policies))),
            ),
            partitioning=_partitioning(_loads(found.partition_key), inherited=found.inherited),
            referenced_by=tuple(map(_foreign_key, _loads(told.referenced_by))),
            checks=checks,
            rewritten=found.rewritten,
        ),
    )


def _loads(text: str | None) -> Any:  # of which shape, each query says
    # The application may have given its engine a JSON decoder of its own, so JSON comes as text.
    return [] if text is None else json.loads(text)


def _relation(kind: str, partition: bool) -> Relation:  # noqa: FBT001  (two fields of one row)
    return _RELATIONS.get(kind, Relation.PARTITION if partition else Relation.TABLE)


def _never_null(conditions: Iterable[str]) -> frozenset[str]:
    """Return the names of the columns that conditions, each true for every row, say ``IS NOT NULL`` of."""
    scanned = (tokens.scan(tokens.POSTGRESQL, condition) for condition in conditions)
    return frozenset().union(*map(tokens.never_null, scanned))


def _column(row: dict[str, Any], checked: frozenset[str]) -> Column:
    base, filled = row["base"], row["filled"]
    kind = Kind.TEXT if row["citext"] else Kind.OTHER
    if row["enum"]:
        kind = Kind.ENUM
    elif row["builtin"]:
        kind = _KINDS.get(base, Kind.OTHER)
    required = row["not_null"] or row["name"] in checked or "VALUE" in _never_null(row["domain_checks"] or ())
    return Column(
        name=row["name"],
        type=row["type"],
        kind=kind,
        length=_length(base, row["modifier"]) if kind in (Kind.TEXT, Kind.PADDED) else None,
        bits=_BITS[base] if kind is Kind.INTEGER else None,
        nullable=not required,
        exact=row["exact"],
        collation=row["collation"],
        any_length=row["any_length"],
        default=None if row["generated"] else filled,
        generated=filled if row["generated"] else None,
        labels=tuple(row["labels"] or ()),
        identity=row["identity"] or (filled is not None and _SERIAL.match(filled) is not None),
    )


def _length(base: str, modifier: int) -> int | None:
    if base == "name":
        return _NAME_LENGTH
    return modifier - 4 if modifier > 4 else None  # the modifier counts a header of four bytes


def _index(row: dict[str, Any]) -> Index:
    return Index(
        name=row["name"],
        parts=tuple(
            IndexPart(
                sql=part["sql"] or part["column"],
                column=part["column"],
                exact=part["exact"],
                type=part["type"],
                order=part["order"],
            )
            for part in row["parts"]
        ),
        unique=row["unique"],
        where=row["where"],
        valid=row["valid"],
        deferrable=row["deferrable"],
        nulls_distinct=row["nulls_distinct"],
        owner=_OWNERS.get(row["owner"], Owner.NOTHING),
        constraint=row["constraint"],
        definition=_definition(row),
        replica_identity=row["replica_identity"],
    )


def _definition(row: dict[str, Any]) -> str | None:
    """Return the statement that makes an index again.

    For a partitioned table the server writes ``ON ONLY``. That would leave the partitions out, so it is removed.
    """
    definition: str | None = row["definition"]
    if definition is None or not row["spans"]:
        return definition
    return definition.replace(f" INDEX {row['quoted']} ON ONLY ", f" INDEX {row['quoted']} ON ", 1)


def _policy(row: dict[str, Any]) -> RowPolicy:
    return RowPolicy(
        name=row["name"], permissive=row["permissive"], command=_COMMANDS[row["command"]], using=row["using"]
    )


def _partitioning(key: list[str | None], *, inherited: bool) -> Partitioning | None:
    if not key and not inherited:
        return None
    columns = tuple(column for column in key if column is not None)
    return Partitioning(columns=columns, expressions=len(columns) < len(key), inherited=inherited)


def _foreign_key(row: dict[str, Any]) -> ForeignKey:
    return ForeignKey(
        name=row["name"],
        schema=row["schema"],
        table=row["table"],
        columns=tuple(row["columns"]),
        targets=tuple(row["targets"]),
        index=row["index"],
        on_delete=_ON_DELETE[row["on_delete"]],
    )
