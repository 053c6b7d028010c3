"""The operations on the unique keys of an SQLite table, which may have to be built anew without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from accountlink.doctor.case import Case
from accountlink.doctor.catalogue.sqlite_ddl import renamed, without_unique
from accountlink.doctor.catalogue.tokens import SQLITE, scan
from accountlink.doctor.repair.keys import IN_THE_WAY, Keys, NewKey
from accountlink.doctor.repair.names import Names, literal
from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Index, Owner, Table


class KeyWriter:
    """Write the statements that make and drop the unique keys of one table."""

    def __init__(self, case: Case, names: Names, keys: Keys) -> None:
        self._table = case.table
        self._keys = keys
        self._names = names
        self._own_sql, self.by_hand = _without_keys(case.table, keys)
        self._dropped = [index for index in keys.old if index.definition is not None]

    @property
    def anew(self) -> bool:
        """The answer to whether the table itself must be built anew, since a key that goes stands in its own SQL."""
        return self._own_sql != self._table.sql

    def dropped(self) -> Iterator[Step]:
        """Drop indexes that go."""
        for index in self._dropped:
            yield Step(
                sql=f"DROP INDEX {self._names.qualified(index.name)}",
                why=f"The unique key on ({', '.join(index.columns)}) is not what the policy says. This is its own "
                "name, and without IF EXISTS a wrong one is an error. The right key is made in the same transaction.\n"
                "The downgrade makes it again, and fails where rows use the freedom by then.",
                undo=(index.definition or "",),
                names=(index.name,),
            )

    def created(self, keys: Iterable[NewKey]) -> Iterator[Step]:
        """Make keys."""
        for key in keys:
            where = f" WHERE {key.where}" if key.where else ""
            yield Step(
                sql=f"CREATE UNIQUE INDEX {self._names.qualified(key.wanted)} ON {self._names.quote(self._table.name)} "
                f"({', '.join(self._parts(key))}){where}",
                why=f"The right key: {key.reason}.",
                undo=(f"DROP INDEX {self._names.qualified(key.wanted)}",),
                names=(key.wanted,),
            )

    def _parts(self, key: NewKey) -> Iterator[str]:
        for name in key.columns:
            column = self._table.column(name)
            bytewise = "" if column is None or column.exact else " COLLATE BINARY"
            yield f"{self._names.quote(name)}{bytewise}"

    def following(self) -> Iterator[Step]:
        """Let what points to a row that goes follow its foreign key."""
        if self._table.referenced_by:
            yield Step(
                sql="PRAGMA foreign_keys = ON",
                why="What points to a row that goes follows its foreign key, whatever this connection is set to.",
                alone=True,
            )

    # -- a new table --------------------------------------------------------------------------------------------------

    def rebuilt(self, then: Iterable[Step]) -> Iterator[Step]:
        """Build the table anew without the keys that go, and do something more in the same transaction."""
        yield Step(
            sql="PRAGMA foreign_keys = OFF",
            why="SQLite cannot drop a key that is written in the table's own SQL: the table is built anew and its rows "
            "are copied, as SQLite's documentation describes it (ALTER TABLE, section 7). With foreign keys on, "
            "dropping the old table would delete what points to it. Inside of a transaction this does nothing.",
            undo=("PRAGMA foreign_keys = ON",),
            alone=True,
        )
        yield from self._copy()
        yield from then
        yield Step(sql="PRAGMA foreign_key_check", why="Names no row that it would not have named before.")
        yield Step(
            sql="PRAGMA foreign_keys = ON",
            why="As tune_sqlite has it.",
            undo=("PRAGMA foreign_keys = OFF",),
            alone=True,
        )

    def _copy(self) -> Iterator[Step]:
        indexes = {index: index.definition for index in self._table.indexes if index.owner is Owner.NOTHING}
        kept = [made for index, made in indexes.items() if made and index not in self._dropped]
        statements = [*self._copied(self._own_sql or ""), *kept, *self._table.triggers]
        made_again = [made for made in indexes.values() if made]
        back = (*self._copied(self._table.sql or ""), *made_again, *self._table.triggers)
        gone = "; ".join(f"({', '.join(index.columns)})" for index in self._keys.old)
        why = (
            f"The same table without its unique key on {gone}. Its rows, indexes and triggers follow; nothing is lost."
        )
        if self._keys.in_the_way:
            why += IN_THE_WAY
        why += "\nThe downgrade builds the old table again, and fails where rows use the freedom by then."
        first, *rest = statements
        yield Step(sql=first, why=why, undo=back, names=tuple(index.name for index in indexes))
        yield from (Step(sql=statement, why="") for statement in rest)

    def _copied(self, sql: str) -> list[str]:
        """Put a table made by another statement in the place of this one, with its rows."""
        table, name = self._table, _new_name(self._table)
        old, new = self._names.quote(table.name), self._names.quote(name)
        columns = self._names.listed(column.name for column in table.columns if column.generated is None)
        statements = [renamed(sql, name), f"INSERT INTO {new} ({columns}) SELECT {columns} FROM {old}"]  # noqa: S608  # quoted
        if any(token.code == "AUTOINCREMENT" for token in scan(SQLITE, sql)):
            told = [literal(each) for each in (name, table.name)]
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


def _without_keys(table: Table, keys: Keys) -> tuple[str | None, tuple[str, ...]]:
    """Return the table's own SQL without the keys that have to go, and what could not be taken out of it."""
    sql, by_hand = table.sql, []
    for index in keys.old:
        if index.definition is None and sql is not None:
            try:
                sql = _without(table, sql, index)
            except ValueError as problem:
                by_hand.append(
                    f"The unique key on ({', '.join(index.columns)}) has to go, and cannot be taken out of the "
                    f"table's SQL here: {problem} Build the table anew without it and copy the rows."
                )
    return sql, tuple(by_hand)


def _without(table: Table, sql: str, index: Index) -> str:
    if table.schema not in (None, "main"):
        raise ValueError("The table is in an attached database.")
    return without_unique(sql, index.columns)
