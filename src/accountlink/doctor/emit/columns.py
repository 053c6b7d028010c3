"""Repairs single columns of a PostgreSQL table: too short, compared wrongly, or open to ``NULL``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from accountlink.core.schema import Column, Kind
from accountlink.doctor.case import Case
from accountlink.doctor.emit.names import FreeNames, Names
from accountlink.doctor.findings import Finding
from accountlink.doctor.repair import Step

_TEXTS: Final = (Kind.TEXT, Kind.PADDED)
_BYTEWISE: Final = "C"
_DEPENDING: Final = (
    "It fails, and changes nothing, where a view or a generated column reads the column. Statements that the "
    "application's connections have prepared fail once after it (asyncpg: InvalidCachedStatementError): restart it, or "
    "let it try again."
)


def to_text(case: Case, names: Names, findings: Sequence[Finding]) -> Iterator[Step]:
    """Make text of columns that are too short or do not compare byte by byte, each in one statement."""
    narrow = {finding.object for finding in findings if finding.rule == "narrow-column"}
    inexact = {finding.object for finding in findings if finding.rule == "key-compares-differently"}
    for column in case.table.columns:
        if not is_text(column):
            continue
        if column.name in inexact and compares_wrongly(column):
            yield _compared_bytewise(names, column)
        elif column.name in narrow:
            yield _longer(names, column)


def is_text(column: Column) -> bool:
    """Whether a column holds text that a migration may change."""
    return column.kind in _TEXTS and column.generated is None


def compares_wrongly(column: Column) -> bool:
    """Whether texts that differ count as equal in a column."""
    return not column.exact or column.kind is Kind.PADDED


def _longer(names: Names, column: Column) -> Step:
    if column.kind is Kind.PADDED:
        return _unpadded(names, column, column.collation)
    return Step(
        sql=_altered(names, column, "text", column.collation),
        why=f"{column.name} takes texts of any length. All access to the table waits for a moment (ACCESS EXCLUSIVE); "
        f"neither the rows nor the indexes are written again. {_DEPENDING} "
        "The downgrade reads all rows under that lock, and fails where one is longer.",
        undo=(_altered(names, column, column.type, column.collation),),
        alone=True,
        undo_alone=True,
    )


def _compared_bytewise(names: Names, column: Column) -> Step:
    if column.kind is Kind.PADDED:
        return _unpadded(names, column, _BYTEWISE)
    return Step(
        sql=_altered(names, column, "text", _BYTEWISE),
        why=f"{column.name} compares byte by byte. ALL ACCESS TO THE TABLE WAITS (ACCESS EXCLUSIVE) while its indexes "
        f"on this column are built again; the rows are not written again. {_DEPENDING} "
        "The downgrade does the same, and fails where rows differ in spelling alone.",
        undo=(_altered(names, column, column.type, column.collation),),
        alone=True,
        undo_alone=True,
    )


def _unpadded(names: Names, column: Column, collation: str | None) -> Step:
    return Step(
        sql=f"{_altered(names, column, 'text', collation)} USING rtrim({names.quote(column.name)})",
        why=f"{column.name} loses the blanks that fill it up. ALL ACCESS TO THE TABLE WAITS (ACCESS EXCLUSIVE) while "
        f"its rows and indexes are written again: choose a quiet hour. {_DEPENDING}",
        undo=(_altered(names, column, column.type, column.collation),),
        alone=True,
        undo_alone=True,
    )


def _altered(names: Names, column: Column, kind: str, collation: str | None) -> str:
    collated = "" if collation is None else f' COLLATE "{collation.replace(chr(34), chr(34) * 2)}"'
    return f"ALTER TABLE {names.table} ALTER COLUMN {names.quote(column.name)} TYPE {kind}{collated}"


def required(case: Case, names: Names, free: FreeNames, columns: Sequence[Column]) -> Iterator[Step]:
    """Make columns NOT NULL without reading the table under a lock that readers feel."""
    for column in columns:
        name, check = (
            names.quote(column.name),
            names.quote(free.derive("ck", case.table.name, (column.name, "not_null"))),
        )
        yield Step(
            sql=f"ALTER TABLE {names.table} ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID",
            why=f"From here on {column.name} takes no NULL. All access to the table waits for a moment "
            "(ACCESS EXCLUSIVE).",
            alone=True,
        )
        yield Step(
            sql=f"ALTER TABLE {names.table} VALIDATE CONSTRAINT {check}",
            why="Reads the whole table; neither readers nor writers wait (SHARE UPDATE EXCLUSIVE). Fails where a row "
            "has NULL.",
            alone=True,
        )
        yield Step(
            sql=f"ALTER TABLE {names.table} ALTER COLUMN {name} SET NOT NULL",
            why="Believes the constraint, and so reads nothing. All access waits for a moment (ACCESS EXCLUSIVE).",
            undo=(f"ALTER TABLE {names.table} ALTER COLUMN {name} DROP NOT NULL",),
        )
        yield Step(
            sql=f"ALTER TABLE {names.table} DROP CONSTRAINT {check}",
            why="The constraint has served.",
        )
