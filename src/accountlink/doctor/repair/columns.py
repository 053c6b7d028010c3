"""Repairs single columns of a PostgreSQL table: too short, compared wrongly, or open to ``NULL``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.findings import Finding, Remedy, with_remedy
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


@dataclass(frozen=True)
class ColumnWriter:
    """Write the statements that repair the columns of one table."""

    case: Case
    names: Names
    findings: Sequence[Finding]
    keys: Keys

    def needed_by_new_keys(self) -> Iterator[Step]:
        """Let columns compare byte by byte whose new key could not be built otherwise."""
        for column in self._to_change(Remedy.BYTEWISE):
            if self._is_in_new_key(column):
                yield self._compared_bytewise(column, "The key that comes next needs it.")

    def others(self) -> Iterator[Step]:
        """Make text of the other columns that are too short or do not compare byte by byte, each in one statement.

        They come last: what keeps a column as it is must not keep a key from being repaired.
        """
        inexact, narrow = self._to_change(Remedy.BYTEWISE), self._to_change(Remedy.LONGER)
        for column in self.case.table.columns:
            if column in inexact:
                if not self._is_in_new_key(column):
                    yield self._compared_bytewise(column, "Its keys stand, and are among them.")
            elif column in narrow:
                yield self._longer(column)

    def _to_change(self, remedy: Remedy) -> list[Column]:
        found = with_remedy(self.findings, remedy)
        return [each for each in self.case.table.columns if each in found and way_around(self.case, each) is None]

    def _is_in_new_key(self, column: Column) -> bool:
        return any(column.name in key.columns for key in self.keys.new)

    def _longer(self, column: Column) -> Step:
        return self._text(
            column,
            column.collation,
            f"{column.name} takes texts of any length. All access to the table waits for a moment (ACCESS EXCLUSIVE); "
            f"neither the rows nor the indexes are written again. {_DEPENDING} The downgrade reads all rows under that "
            "lock, and fails where one is longer.",
        )

    def _compared_bytewise(self, column: Column, indexes: str) -> Step:
        return self._text(
            column,
            _BYTEWISE,
            f"{column.name} compares byte by byte. ALL ACCESS TO THE TABLE WAITS (ACCESS EXCLUSIVE) while its indexes "
            f"on this column are built again; the rows are not written again. {indexes} {_DEPENDING} The downgrade "
            "does the same, and fails where rows differ in spelling alone.",
        )

    def _text(self, column: Column, collation: str | None, why: str) -> Step:
        """Make text of a column. Padded text loses its blanks, so that rows are written again, whatever it is for."""
        sql = self._altered(column, "text", collation)
        if column.kind is Kind.PADDED:
            sql += f" USING rtrim({self.names.quote(column.name)})"
            why = (
                f"{column.name} loses the blanks that fill it up. ALL ACCESS TO THE TABLE WAITS (ACCESS EXCLUSIVE) "
                f"while its rows and indexes are written again: choose a quiet hour. {_DEPENDING}"
            )
        return Step(sql=sql, why=why, undo=(self._altered(column, column.type, column.collation),), alone=True)

    def _altered(self, column: Column, kind: str, collation: str | None) -> str:
        collated = "" if collation is None else f" COLLATE {quoted(collation)}"
        return f"ALTER TABLE {self.names.table} ALTER COLUMN {self.names.quote(column.name)} TYPE {kind}{collated}"

    def required(self) -> Iterator[Step]:
        """Make columns NOT NULL without reading the table under a lock that readers feel."""
        free = FreeNames(self.case)
        for column in self.keys.required:
            first = derived("ck", self.case.table.name, (column.name, "not_null"))[0]
            begun = first in self.case.catalogue.taken  # by a migration that stopped half-way
            made = first if begun else free.derive("ck", self.case.table.name, (column.name, "not_null"))
            name, check = self.names.quote(column.name), self.names.quote(made)
            if not begun:
                yield Step(
                    sql=f"ALTER TABLE {self.names.table} ADD CONSTRAINT {check} CHECK ({name} IS NOT NULL) NOT VALID",
                    why=f"From here on {column.name} takes no NULL. All access to the table waits for a moment "
                    "(ACCESS EXCLUSIVE).",
                    alone=True,
                )
            yield Step(
                sql=f"ALTER TABLE {self.names.table} VALIDATE CONSTRAINT {check}",
                why=("The constraint is there, by its name, since a migration stopped half-way. " if begun else "")
                + "Reads the whole table; neither readers nor writers wait (SHARE UPDATE EXCLUSIVE). Fails where "
                "a row has NULL.",
                alone=True,
            )
            yield Step(
                sql=f"ALTER TABLE {self.names.table} ALTER COLUMN {name} SET NOT NULL",
                why="Believes the constraint, and so reads nothing. All access waits for a moment (ACCESS EXCLUSIVE).",
                undo=(f"ALTER TABLE {self.names.table} ALTER COLUMN {name} DROP NOT NULL",),
            )
            yield Step(
                sql=f"ALTER TABLE {self.names.table} DROP CONSTRAINT {check}",
                why="The constraint has served.",
            )


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
