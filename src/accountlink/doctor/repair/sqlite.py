"""The migration of an SQLite table: one transaction, and a second one where the table itself must be built anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from accountlink.doctor.case import Case
from accountlink.doctor.catalogue.sqlite_ddl import renamed, without_unique
from accountlink.doctor.catalogue.tokens import SQLITE, scan
from accountlink.doctor.repair.keys import IN_THE_WAY, Keys, NewKey
from accountlink.doctor.repair.names import Names
from accountlink.doctor.repair.operations import Step
from accountlink.doctor.repair.settle import Settling, can_lower, live
from accountlink.doctor.schema import Index, Owner, Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What can be written.

    Attributes:
        steps: The steps.
        by_hand: What cannot be taken out of the table's own SQL.
    """

    steps: tuple[Step, ...]
    by_hand: tuple[str, ...] = ()


def migrate(case: Case, keys: Keys) -> Outcome:
    """All steps, in order."""
    migration = _Migration(case, keys)
    steps = tuple(migration.steps())
    return Outcome(steps=steps, by_hand=tuple(migration.by_hand))


@dataclass
class _Migration:
    """Writes the statements for one table."""

    case: Case
    keys: Keys
    by_hand: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = Names(self.case)
        self._settling = Settling(self.case, self._names)
        self._table = self.case.table

    def steps(self) -> Iterator[Step]:
        sql = self._without_keys()
        dropped = [index for index in self.keys.old if index.definition is not None]
        if sql == self._table.sql:  # one transaction for all, in which no order leaves anything unprotected
            yield from self._settled(self._dropped(dropped))
            yield from self._created(self.keys.new)
            yield from self._lowered_dead()
        elif self.keys.in_the_way:
            first = [key for key in self.keys.new if key.first]
            yield from self._anew(sql, dropped, [*self._created(first)])
            yield from self._settled()
            yield from self._created([key for key in self.keys.new if key not in first])
            yield from self._lowered_dead()
        else:
            yield from self._settled()
            yield from self._anew(sql, dropped, [*self._created(self.keys.new), *self._lowered_dead()])

    def _anew(self, sql: str | None, dropped: Sequence[Index], then: Sequence[Step]) -> Iterator[Step]:
        yield Step(
            sql="PRAGMA foreign_keys = OFF",
            why="SQLite cannot drop a key that is written in the table's own SQL: the table is built anew and its rows "
            "are copied, as SQLite's documentation describes it (ALTER TABLE, section 7). With foreign keys on, "
            "dropping the old table would delete what points to it. Inside of a transaction this does nothing.",
            undo=("PRAGMA foreign_keys = ON",),
            alone=True,
            undo_alone=True,
        )
        yield from self._rebuilt(sql, dropped)
        yield from then
        yield Step(sql="PRAGMA foreign_key_check", why="Names no row that it would not have named before.")
        yield Step(
            sql="PRAGMA foreign_keys = ON",
            why="As tune_sqlite has it.",
            undo=("PRAGMA foreign_keys = OFF",),
            alone=True,
            undo_alone=True,
        )

    def _settled(self, before: Iterable[Step] = ()) -> Iterator[Step]:
        """Settle duplicates in the transaction of what comes before."""
        due = bool(self.keys.settled) or can_lower(self.case)
        if due and self._table.referenced_by:
            yield Step(
                sql="PRAGMA foreign_keys = ON",
                why="What points to a row that goes follows its foreign key, whatever this connection is set to.",
                alone=True,
            )
        yield from before
        if due:
            yield from self._settling.steps(self.keys.settled)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _dropped(self, indexes: Sequence[Index]) -> Iterator[Step]:
        for index in indexes:
            yield Step(
                sql=f"DROP INDEX {self._names.qualified(index.name)}",
                why=f"The unique key on ({', '.join(index.columns)}) is not what the policy says. This is its own "
                "name, and without IF EXISTS a wrong one is an error. The right key is made in the same transaction.\n"
                "The downgrade makes it again, and fails where rows use the freedom by then.",
                undo=(index.definition or "",),
            )

    def _created(self, keys: Iterable[NewKey]) -> Iterator[Step]:
        for key in keys:
            yield Step(
                sql=f"CREATE UNIQUE INDEX {self._names.qualified(key.wanted)} ON {self._names.quote(self._table.name)} "
                f"({', '.join(self._parts(key))}){self._condition(key)}",
                why=f"The right key: {key.reason}.",
                undo=(f"DROP INDEX {self._names.qualified(key.wanted)}",),
            )

    def _lowered_dead(self) -> Iterator[Step]:
        condition = live(self.case, self._names)
        if condition is not None and can_lower(self.case):
            yield self._settling.lower(f"({condition}) IS NOT TRUE", " Dead rows too, so that they can be restored.")

    def _parts(self, key: NewKey) -> Iterator[str]:
        for name in key.columns:
            column = self._table.column(name)
            bytewise = "" if column is None or column.exact else " COLLATE BINARY"
            yield f"{self._names.quote(name)}{bytewise}"

    def _condition(self, key: NewKey) -> str:
        condition = live(self.case, self._names) if key.live else None
        return f" WHERE {condition}" if condition else ""

    # -- a new table --------------------------------------------------------------------------------------------------

    def _without_keys(self) -> str | None:
        """The table's own SQL without the keys that have to go."""
        sql = self._table.sql
        for index in self.keys.old:
            if index.definition is None and sql is not None:
                try:
                    sql = self._without(sql, index)
                except ValueError as problem:
                    self.by_hand.append(
                        f"The unique key on ({', '.join(index.columns)}) has to go, and cannot be taken out of the "
                        f"table's SQL here: {problem} Build the table anew without it and copy the rows."
                    )
        return sql

    def _without(self, sql: str, index: Index) -> str:
        if self._table.schema not in (None, "main"):
            raise ValueError("The table is in an attached database.")
        return without_unique(sql, index.columns)

    def _rebuilt(self, sql: str | None, dropped: Sequence[Index]) -> Iterator[Step]:
        indexes = {index: index.definition for index in self._table.indexes if index.owner is Owner.NOTHING}
        kept = [made for index, made in indexes.items() if made and index not in dropped]
        steps = [*self._copied(sql or ""), *kept, *self._table.triggers]
        made_again = [made for made in indexes.values() if made]
        back = (*self._copied(self._table.sql or ""), *made_again, *self._table.triggers)
        gone = "; ".join(f"({', '.join(index.columns)})" for index in self.keys.old)
        why = (
            f"The same table without its unique key on {gone}. Its rows, indexes and triggers follow; nothing is lost."
        )
        if self.keys.in_the_way:
            why += IN_THE_WAY
        why += "\nThe downgrade builds the old table again, and fails where rows use the freedom by then."
        for place, statement in enumerate(steps):
            first = place == 0
            yield Step(sql=statement, why=why if first else "", undo=back if first else ())

    def _copied(self, sql: str) -> list[str]:
        """Put a table made by another statement in the place of this one, with its rows."""
        table, name = self._table, _new_name(self._table)
        old, new = self._names.quote(table.name), self._names.quote(name)
        columns = self._names.listed(column.name for column in table.columns if column.generated is None)
        statements = [renamed(sql, name), f"INSERT INTO {new} ({columns}) SELECT {columns} FROM {old}"]  # noqa: S608  # quoted
        if any(token.code == "AUTOINCREMENT" for token in scan(SQLITE, sql)):
            told = [_text(each) for each in (name, table.name)]
            kept = f"SELECT {told[0]}, seq FROM sqlite_sequence WHERE name = {told[1]}"  # noqa: S608  # literals
            statements.append(f"DELETE FROM sqlite_sequence WHERE name = {told[0]}")  # noqa: S608  # a literal
            statements.append(f"INSERT INTO sqlite_sequence (name, seq) {kept}")
        return [
            *statements,
            f"DROP TABLE {old}",
            "PRAGMA legacy_alter_table = ON",  # views and triggers that read the table are left as they are
            f"ALTER TABLE {new} RENAME TO {old}",
            "PRAGMA legacy_alter_table = OFF",
        ]


def _new_name(table: Table) -> str:
    return f"accountlink_new_{table.name}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
