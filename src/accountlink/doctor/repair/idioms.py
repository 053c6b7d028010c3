"""What the two databases say differently in the same statement."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Column, Kind

_WITHOUT_ZONE: Final = "without time zone"
_PRECISION: Final = re.compile(r"\(([0-5])\)")
"""What a moment is rounded to; six digits, as where nothing is said, are microseconds."""


class Idiom(Protocol):
    """How one database says it."""

    false: str
    """The boolean."""

    def hold(self, tables: Sequence[str]) -> tuple[Step, ...]:
        """Keep writers away from tables until the transaction ends."""
        ...

    def temporary(self, name: str, query: str) -> str:
        """Make a table of a query's rows for this transaction."""
        ...

    def clear(self, name: str) -> tuple[Step, ...]:
        """Take that table away."""
        ...

    def newest(self, column: str) -> str:
        """Order by a column, the highest first and rows without a value last."""
        ...

    def bytewise(self, sql: str, column: Column) -> str:
        """A column as it compares byte by byte, whatever its own collation is."""
        ...

    def capitals(self, sql: str) -> str:
        """Whether a text is printable ASCII and has a capital letter: ``lower()`` brings it into normal form."""
        ...

    def lowered(self, sql: str) -> str:
        """A text of printable ASCII in small letters."""
        ...

    def now(self, column: Column) -> str:
        """This moment as a column holds it, a little earlier for each row ``d`` of the list, so that none are equal."""
        ...


class PostgreSQL:
    """PostgreSQL's way."""

    false = "false"

    def hold(self, tables: Sequence[str]) -> tuple[Step, ...]:
        """Lock the tables, all in one order."""
        why = (
            "Writers of this table wait from here to the end of the transaction; readers do not. It lasts as long as "
            "sorting the table's live rows by their key once: some seconds for each million."
        )
        if len(tables) > 1:
            why += "\nThe tables that point to it wait too, so that none takes hold of a row that is about to go."
        return (Step(sql=f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE", why=why),)

    def temporary(self, name: str, query: str) -> str:
        """A temporary table that goes with the transaction."""
        return f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS\n{query}"

    def clear(self, name: str) -> tuple[Step, ...]:
        """Nothing: COMMIT drops it."""
        del name
        return ()

    def newest(self, column: str) -> str:
        """PostgreSQL puts NULL first in descending order unless told otherwise."""
        return f"{column} DESC NULLS LAST"

    def bytewise(self, sql: str, column: Column) -> str:
        """Text under the collation C."""
        if column.exact and column.kind is not Kind.PADDED:
            return sql
        return f'CAST({sql} AS text) COLLATE "C"'

    def capitals(self, sql: str) -> str:
        """Two regular expressions under the collation C, where ranges are those of ASCII."""
        text = f'CAST({sql} AS text) COLLATE "C"'
        return f"{text} ~ '[A-Z]' AND {text} !~ '[^!-~]'"

    def lowered(self, sql: str) -> str:
        """Under the collation C, where no locale has a say."""
        return f'lower(CAST({sql} AS text) COLLATE "C")'

    def now(self, column: Column) -> str:
        """With a zone, in UTC without one, or in whole seconds, of which rows of one key get different ones."""
        if column.kind is Kind.INTEGER:
            return "CAST(floor(extract(epoch FROM now())) AS bigint) - d.place"
        now = "now() AT TIME ZONE 'UTC'" if _WITHOUT_ZONE in column.type else "now()"
        coarse = _PRECISION.search(column.type)
        if coarse is None:
            return f"{now} - d.number * interval '1 microseconds'"
        return f"{now} - d.place * interval '{10 ** (6 - int(coarse[1]))} microseconds'"


class SQLite:
    """SQLite's way."""

    false = "0"

    def hold(self, tables: Sequence[str]) -> tuple[Step, ...]:
        """Nothing: BEGIN IMMEDIATE keeps all other writers away."""
        del tables
        return ()

    def temporary(self, name: str, query: str) -> str:
        """A temporary table of this connection."""
        return f"CREATE TEMPORARY TABLE {name} AS\n{query}"

    def clear(self, name: str) -> tuple[Step, ...]:
        """It would stay for as long as the connection."""
        return (Step(sql=f"DROP TABLE temp.{name}", why="The list has served."),)

    def newest(self, column: str) -> str:
        """SQLite puts NULL last in descending order."""
        return f"{column} DESC"

    def bytewise(self, sql: str, column: Column) -> str:
        """Under the collation BINARY."""
        return sql if column.exact else f"{sql} COLLATE BINARY"

    def capitals(self, sql: str) -> str:
        """GLOB compares byte by byte."""
        return f"{sql} GLOB '*[A-Z]*' AND {sql} NOT GLOB '*[^!-~]*'"

    def lowered(self, sql: str) -> str:
        """SQLite's own lower() knows ASCII alone."""
        return f"lower({sql})"

    def now(self, column: Column) -> str:
        """As SQLAlchemy stores a DateTime, or in whole seconds, of which rows of one key get different ones."""
        if column.kind is Kind.INTEGER:
            return "CAST(strftime('%s', 'now') AS INTEGER) - d.place"
        now = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000 - d.number"  # microseconds
        return f"datetime(({now}) / 1000000, 'unixepoch') || printf('.%06d', ({now}) % 1000000)"


IDIOMS: Final[dict[str, Idiom]] = {"postgresql": PostgreSQL(), "sqlite": SQLite()}
