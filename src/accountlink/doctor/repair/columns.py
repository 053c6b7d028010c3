"""Repairs single columns of a PostgreSQL table: too short, compared wrongly, or open to ``NULL``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding
from accountlink.doctor.repair.keys import Keys
from accountlink.doctor.repair.names import FreeNames, Names, derived
from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Column, Kind, Relation

_TEXTS: Final = (Kind.TEXT, Kind.PADDED)
_BYTEWISE: Final = "C"
_DEPENDING: Final = (
    "It fails, and changes nothing, where a view, a rule, a trigger, a policy or a generated column reads the column, "
    "or where the table inherits it: take that away, run it again, and make that again. Statements that the "
    "application's connections have prepared fail once after it (asyncpg: InvalidCachedStatementError): restart it, or "
    "let it try again."
)


def before_keys(case: Case, names: Names, findings: Sequence[Finding], keys: Keys) -> Iterator[Step]:
    """Let columns compare byte by byte whose new key could not be built otherwise."""
    for column in _inexact(case, findings):
        if _is_in_new_key(column, keys):
            yield _compared_bytewise(names, column, "The key that comes next needs it.")


def after_keys(case: Case, names: Names, findings: Sequence[Finding], keys: Keys) -> Iterator[Step]:
    """Make text of the other columns that are too short or do not compare byte by byte, each in one statement.

    They come last: what keeps a column as it is must not keep a key from being repaired.
    """
    inexact = _inexact(case, findings)
    narrow = {finding.object for finding in findings if finding.rule == "narrow-column"}
    for column in case.table.columns:
        if column in inexact:
            if not _is_in_new_key(column, keys):
                yield _compared_bytewise(names, column, "Its keys stand, and are among them.")
        elif column.name in narrow and way_around(case, column) is None:
            yield _longer(names, column)


def _inexact(case: Case, findings: Sequence[Finding]) -> list[Column]:
    """Columns of identifiers that are changed since they do not compare byte by byte; addresses have a form instead."""
    found = {finding.object for finding in findings if finding.rule == "key-compares-differently"}
    found &= case.subject.identifiers
    return [
        column
        for column in case.table.columns
        if column.name in found and compares_wrongly(column) and way_around(case, column) is None
    ]


def _is_in_new_key(column: Column, keys: Keys) -> bool:
    return any(column.name in key.columns for key in keys.new)


def way_around(case: Case, column: Column) -> str | None:
    """Say what to do about a column whose type no migration changes; ``None`` where one does."""
    split = case.table.partitioning
    if case.table.relation is Relation.PARTITION:
        return "The table is a partition, whose columns change with its parent's alone."
    if split is not None and split.inherited:
        return "The table has children by inheritance, whose rows no key of it spans."
    if split is not None and (split.expressions or column.name in split.columns):
        return "The table is partitioned by it, which cannot change: it takes a new table, to which the rows move."
    if case.catalogue.dialect == "sqlite" or column.kind not in _TEXTS or column.generated is not None:
        return new_type(case, column)
    return None


def new_type(case: Case, column: Column) -> str:
    """Say how a column gets another type where that would write the table again."""
    if case.catalogue.dialect == "sqlite":
        return "SQLite changes no column in place: build the table anew, as its documentation describes it."
    return (
        f"Changing the type in place would write the whole table again while all access to it waits. Without that: "
        f"add a second column of the right type, let a trigger keep it equal to {column.name}, fill it in batches, "
        "build its indexes concurrently, then let the two change names in one short transaction."
    )


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


def _compared_bytewise(names: Names, column: Column, indexes: str) -> Step:
    if column.kind is Kind.PADDED:
        return _unpadded(names, column, _BYTEWISE)
    return Step(
        sql=_altered(names, column, "text", _BYTEWISE),
        why=f"{column.name} compares byte by byte. ALL ACCESS TO THE TABLE WAITS (ACCESS EXCLUSIVE) while its indexes "
        f"on this column are built again; the rows are not written again. {indexes} {_DEPENDING} "
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
        first = derived("ck", case.table.name, (column.name, "not_null"))[0]
        begun = first in case.catalogue.taken  # by a migration that stopped half-way
        made = first if begun else free.derive("ck", case.table.name, (column.name, "not_null"))
        name, check = names.quote(column.name), names.quote(made)
        add = Step(
            sql=f"ALTER TABLE {names.table} ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID",
            why=f"From here on {column.name} takes no NULL. All access to the table waits for a moment "
            "(ACCESS EXCLUSIVE).",
            alone=True,
        )
        if not begun:
            yield add
        yield Step(
            sql=f"ALTER TABLE {names.table} VALIDATE CONSTRAINT {check}",
            why=("The constraint is there, by its name, since a migration stopped half-way. " if begun else "")
            + "Reads the whole table; neither readers nor writers wait (SHARE UPDATE EXCLUSIVE). Fails where a row has "
            "NULL.",
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
