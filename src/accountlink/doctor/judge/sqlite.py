"""Ask SQLite what an index makes of model rows, in a private database in memory.

The table's own statement runs there, without its triggers, and each row by itself passes through the table, so that the
table's keys refuse none. The application's database is not touched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final

import sqlalchemy as sa

from accountlink.doctor.catalogue.sqlite_ddl import fold
from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.judge.pairs import two_of
from accountlink.doctor.judge.subject import Value
from accountlink.doctor.judge.trial import Answers, Bit, Trial, read_row
from accountlink.doctor.schema import Column

_OWN: Final = """
    SELECT 'function', name FROM pragma_function_list UNION SELECT 'collation', name FROM pragma_collation_list
"""
"""The functions and collations of a connection, those among them that the application has made."""
_ROWIDS: Final = ("rowid", "oid", "_rowid_")


def ask(connection: sa.Connection, trials: Sequence[Trial]) -> list[Answers | None]:
    """Ask about some indexes of one table; only the names of functions and collations are asked of the connection."""
    return ask_privately(trials, [(kind, name) for kind, name in connection.exec_driver_sql(_OWN)])


def ask_privately(trials: Sequence[Trial], names: Iterable[tuple[str, str]] = ()) -> list[Answers | None]:
    """Ask a database in memory.

    Args:
        trials: What to ask; all about one table, which has the statement that made it.
        names: ``function`` or ``collation``, and a name, of what the table may use. What SQLite itself does not have
            is there by name alone: what needs it stays unknown.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        foreign = set(names) - {(str(kind), str(name)) for kind, name in database.execute(_OWN)}
        for kind, name in foreign:
            if kind == "function":
                database.create_function(name, -1, _refuse, deterministic=True)
            else:
                database.create_collation(name, _refuse_to_compare)
        asked = _Private(database, frozenset(fold(name) for kind, name in foreign if kind == "collation"))
        return [asked.answers(trial) for trial in trials]


def _refuse(*_: object) -> None:
    raise ValueError


def _refuse_to_compare(_one: str, _other: str) -> int:
    return 0  # never used for a verdict: indexes that need the collation stay undecided


class _Private:
    """Hold the database in memory.

    Args:
        database: A connection to it.
        foreign: The collations that it has by name alone.
    """

    def __init__(self, database: sqlite3.Connection, foreign: frozenset[str]) -> None:
        self._database = database
        self._foreign = foreign

    def answers(self, trial: Trial) -> Answers | None:
        """Ask about one index: about all of it, or without what fails."""
        every = tuple(number for number, bit in enumerate(trial.bits) if not self._is_foreign(bit))
        surely = tuple(number for number in every if trial.bits[number].plain)
        for bits in (every, surely):
            try:
                return self._answers(trial, bits)
            except sqlite3.Error:
                pass
            finally:
                self._database.execute("DROP TABLE IF EXISTS temp.[al answers]")
                self._database.execute(f"DROP TABLE IF EXISTS main.{quoted(trial.table.name)}")
        return None

    def _is_foreign(self, bit: Bit) -> bool:
        """Say whether the bit needs something that only the application's connection has."""
        words, table = bit.words, bit.words.table
        if bit.column is not None:
            return False
        read = [column for name in words.columns if (column := table.column(name)) is not None]
        rowid = any(words.names(name) and table.column(name) is None for name in _ROWIDS)
        return rowid or any(
            words.names(name) or any(fold(column.collation or "") == name for column in read) for name in self._foreign
        )

    def _answers(self, trial: Trial, bits: tuple[int, ...]) -> Answers:
        database, table = self._database, f"main.{quoted(trial.table.name)}"
        database.execute(str(trial.table.sql))
        database.execute("PRAGMA ignore_check_constraints = ON")
        names = [f"v{n}" for n in range(len(trial.generated))] + [f"b{n}" for n in bits]
        database.execute(f"CREATE TEMP TABLE [al answers] ({', '.join(['place', *names])})")
        columns, fill = trial.columns, _fillers(trial)
        listed = ", ".join(quoted(column.name) for column in (*columns, *fill))
        places = ", ".join("?" * (len(columns) + len(fill)))
        values = [quoted(column.name) for column in trial.generated]
        values += [_value(trial.bits[bit]) for bit in bits]
        # Names and expressions of the table's own, in a database in memory that has nothing else.
        insert = f"INSERT INTO {table} ({listed}) VALUES ({places})"  # noqa: S608  (above)
        note = f"INSERT INTO temp.[al answers] SELECT {', '.join(['?', *values])} FROM {table}"  # noqa: S608  (above)
        for place, given in enumerate(trial.rows):
            stored = [_stored(column, value) for column, value in zip(columns, given, strict=True)]
            try:
                database.execute(insert, [*stored, *(_stored(column, two_of(column)[0]) for column in fill)])
            except sqlite3.IntegrityError:
                continue  # a generated column takes no NULL: there is no such row
            database.execute(note, [place])
            database.execute(f"DELETE FROM {table}")  # noqa: S608  (above)
        return self._read(trial, bits)

    def _read(self, trial: Trial, bits: tuple[int, ...]) -> Answers:
        """Read what came of the rows, the values of keys as places in their order."""
        asked = ["place", *(f"v{n}" for n in range(len(trial.generated)))]
        asked += [_place(f"b{n}", trial.bits[n], self._foreign) for n in bits]
        found = self._database.execute(f"SELECT {', '.join(asked)} FROM temp.[al answers]")  # noqa: S608  (above)
        seen = {trial.rows[place]: read_row(trial, trial.rows[place], told, bits=bits) for place, *told in found}
        lumped = {n for n in bits if (part := trial.bits[n].part) and _collation(part.order) in self._foreign}
        return Answers(seen=seen, known=frozenset(bits), lumped=frozenset(lumped))


def _fillers(trial: Trial) -> list[Column]:
    """Give the columns that no index reads; a generated column may need them."""
    asked = {column.name for column in trial.columns}
    return [
        column
        for column in trial.table.columns
        if column.name not in asked and not column.identity and column.generated is None
    ]


def _value(bit: Bit) -> str:
    return f"({bit.words.sql}\n) IS TRUE" if bit.part is None else f"({bit.words.sql}\n)"


def _place(name: str, bit: Bit, foreign: frozenset[str]) -> str:
    """Return the SQL for the place of a key's value among the others.

    A collation that this connection does not have is left out, so that values are compared byte by byte.
    """
    if bit.part is None:
        return name
    order = "" if _collation(bit.part.order) in foreign else bit.part.order
    return f"CASE WHEN {name} IS NOT NULL THEN dense_rank() OVER (ORDER BY {name}{order}) END"


def _collation(order: str) -> str:
    return fold(order.removeprefix(" COLLATE ").removeprefix('"').removesuffix('"').replace('""', '"'))


def _stored(column: Column, value: Value) -> Value | bytes:
    """Return a value as the column takes it, also in a STRICT table."""
    return str(value).encode() if value is not None and "BLOB" in column.type.upper() else value
