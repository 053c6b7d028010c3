"""Write the parts of statements that differ between PostgreSQL and SQLite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Column, Kind

_WITHOUT_ZONE: Final = "without time zone"
_PRECISION: Final = re.compile(r"\(([0-5])\)")
"""The digits that a moment is rounded to; a type that states none has six, which are microseconds."""


class PostgreSQL:
    """Write the SQL of PostgreSQL."""

    false = "false"

    def hold(self, tables: Sequence[str]) -> tuple[Step, ...]:
        """Keep writers away from tables until the transaction ends: lock them, all in one order."""
        why = (
            "Writers of this table wait from here to the end of the transaction; readers do not. It lasts as long as "
            "sorting the table's live rows by their key once: some seconds for each million."
        )
        if len(tables) > 1:
            why += "\nThe tables that point to it wait too, so that none takes hold of a row that is about to go."
        return (Step(sql=f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE", why=why),)

    def temporary(self, name: str, query: str) -> str:
        """Make a table of a query's rows, which goes with the transaction."""
        return f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS\n{query}"

    def clear(self, name: str) -> tuple[Step, ...]:
        """Do nothing: COMMIT drops the temporary table."""
        del name
        return ()

    def newest(self, column: str) -> str:
        """Order by a column, the highest first: PostgreSQL puts NULL before that unless told otherwise."""
        return f"{column} DESC NULLS LAST"

    def bytewise(self, sql: str, column: Column) -> str:
        """Compare a column byte by byte, whatever its own collation is: as text under the collation C."""
        if column.exact and column.kind is not Kind.PADDED:
            return sql
        return f'CAST({sql} AS text) COLLATE "C"'

    def capitals(self, sql: str) -> str:
        """Test for printable ASCII with a capital letter, under the collation C, where ranges are those of ASCII."""
        text = f'CAST({sql} AS text) COLLATE "C"'
        return f"{text} ~ '[A-Z]' AND {text} !~ '[^!-~]'"

    def lowered(self, sql: str) -> str:
        """Write ASCII in small letters, under the collation C, where no locale has a say."""
        return f'lower(CAST({sql} AS text) COLLATE "C")'

    def now(self, column: Column) -> str:
        """Write this moment as a column holds it, a little earlier for each row ``d`` of the list: none are equal."""
        if column.kind is Kind.INTEGER:
            return "CAST(floor(extract(epoch FROM now())) AS bigint) - d.place"
        now = "now() AT TIME ZONE 'UTC'" if _WITHOUT_ZONE in column.type else "now()"
        coarse = _PRECISION.search(column.type)
        if coarse is None:
            return f"{now} - d.number * interval '1 microseconds'"
        return f"{now} - d.place * interval '{10 ** (6 - int(coarse[1]))} microseconds'"


class SQLite:
    """Write the SQL of SQLite."""

    false = "0"

    def hold(self, tables: Sequence[str]) -> tuple[Step, ...]:
        """Do nothing: BEGIN IMMEDIATE keeps all other writers away."""
        del tables
        return ()

    def temporary(self, name: str, query: str) -> str:
        """Make a table of a query's rows, which goes with the connection."""
        return f"CREATE TEMPORARY TABLE {name} AS\n{query}"

    def clear(self, name: str) -> tuple[Step, ...]:
        """Drop the temporary table, which would stay for as long as the connection."""
        return (Step(sql=f"DROP TABLE temp.{name}", why="The list has served."),)

    def newest(self, column: str) -> str:
        """Order by a column, the highest first: SQLite puts NULL last."""
        return f"{column} DESC"

    def bytewise(self, sql: str, column: Column) -> str:
        """Compare a column byte by byte, whatever its own collation is."""
        return sql if column.exact else f"{sql} COLLATE BINARY"

    def capitals(self, sql: str) -> str:
        """Test for printable ASCII with a capital letter: GLOB compares byte by byte."""
        return f"{sql} GLOB '*[A-Z]*' AND {sql} NOT GLOB '*[^!-~]*'"

    def lowered(self, sql: str) -> str:
        """Write ASCII in small letters: SQLite's own lower() knows nothing else."""
        return f"lower({sql})"

    def now(self, column: Column) -> str:
        """Write this moment as SQLAlchemy stores it, a little earlier for each row ``d`` of the list."""
        if column.kind is Kind.INTEGER:
            return "CAST(strftime('%s', 'now') AS INTEGER) - d.place"
        now = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000 - d.number"  # microseconds
        return f"datetime(({now}) / 1000000, 'unixepoch') || printf('.%06d', ({now}) % 1000000)"


Idiom = PostgreSQL | SQLite
IDIOMS: Final[dict[str, Idiom]] = {"postgresql": PostgreSQL(), "sqlite": SQLite()}
