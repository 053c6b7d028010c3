"""Reads events from an outbox: the statements, and what makes an event of a row.

Everything of a row is read as text and converted here, one event at a time: a conversion in SQL, or by the driver, that
fails at one row would fail for all of them, and for every consumer that comes after.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from accountlink.outbox.table import word
from accountlink.tables.naming import Names
from accountlink.tables.rows import stored_name
from accountlink.values.events import EventType
from accountlink.values.secrecy import Parameters

Event = TypeVar("Event")
T = TypeVar("T")
logger: Final = logging.getLogger("accountlink.outbox")
_select: Final[Callable[..., sa.Select[Any]]] = cast("Any", sa.select)
"""Columns are chosen at run time: their types are not known here."""
_LAST: Final = sa.literal_column(str(2**63 - 1), sa.BigInteger)
_ISO: Final = sa.literal_column("""'YYYYMMDD"T"HH24MISS.US"Z"'""", sa.Text)
_FOUND: Final = ("id", "occurred_at", "type", "user_id", "other_user_id", "provider", "link_id", "data")


class Found(NamedTuple):
    """An event's row, as text except for its number."""

    id: int
    occurred_at: str
    type: str
    user_id: str | None
    other_user_id: str | None
    provider: str | None
    link_id: str | None
    data: str


class Unreadable(Exception):
    """One event's row is not what this version, or the application's model, takes for an event."""

    def __init__(self, part: str, error: str) -> None:
        super().__init__()
        self.part = part
        self.error = error


def part(name: str, read: Callable[[str], T], text: str | None) -> T:
    """Read a part of a row that no event is without."""
    if text is None:
        raise Unreadable(name, "missing")
    try:
        return read(text)
    except Exception as error:  # noqa: BLE001  # an application's own type reads it, and may raise any
        raise Unreadable(name, type(error).__name__) from None


def optional(name: str, read: Callable[[str], T], text: str | None) -> T | None:
    """Read a part that may be missing."""
    return None if text is None else part(name, read, text)


def moment(text: str) -> datetime:
    """Read when it happened; what names no zone is UTC."""
    when = datetime.fromisoformat(text)
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def details(text: str) -> Mapping[str, Any]:
    """Read what there is beside, which is nothing for most events."""
    if text == "{}":
        return {}
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError
    return data


class Taken(NamedTuple, Generic[Event]):
    """Events that were taken, and their numbers, both in order."""

    numbers: Sequence[int]
    events: Sequence[Event]


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[Event]):
    """The statements that read the events of one table from an outbox.

    Attributes:
        outbox: The outbox.
        source: The table whose events are read.
        dialect: The database that is read from.
        types: The types that are known here; a newer version's events are left to it.
        read: Makes an event of a row, or raises :class:`Unreadable`.
    """

    outbox: sa.Table
    source: sa.Table
    dialect: sa.Dialect
    types: Sequence[EventType]
    read: Callable[[Found], Event]

    def taken(self, connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> tuple[Taken[Event], list[int]]:
        """Make events of rows, in order.

        Args:
            connection: What they were read on, which may have the tables in a schema of its own.
            rows: The rows.

        Returns:
            What could be read, and the numbers of the events that could not. Each of these is logged.
        """
        numbers: list[int] = []
        events: list[Event] = []
        unreadable: list[int] = []
        for row in sorted(Found._make(row) for row in rows):
            try:
                events.append(self.read(row))
            except Unreadable as why:
                unreadable.append(row.id)
                logger.warning(
                    "Event %d of %s cannot be read (%s: %s) and is set aside: it stays in %s, and no consumer gets it.",
                    *(row.id, stored_name(connection, self.source), why.part, why.error),
                    stored_name(connection, self.outbox),
                )
            else:
                numbers.append(row.id)
        return Taken(numbers, events), unreadable

    def named(self, connection: sa.Connection, **bound: Any) -> Parameters:
        """The parameters of a statement on a connection, with the name under which the outbox knows the table."""
        return Parameters(bound, al_source=stored_name(connection, self.source))

    # -- statements ---------------------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> Names:
        return Names(self.outbox)

    def _row(self) -> list[sa.ColumnElement[Any]]:
        c = self.outbox.c
        when: sa.ColumnElement[Any] = sa.type_coerce(c.occurred_at, sa.Text)
        if self.dialect.name == "postgresql":
            when = sa.func.to_char(sa.func.timezone(sa.literal_column("'UTC'"), c.occurred_at), _ISO, type_=sa.Text)
        as_text = {"occurred_at": when, "data": sa.cast(c.data, sa.Text)}
        return [as_text.get(name, c[name]).label(name) for name in _FOUND]

    def _oldest(self, table: sa.FromClause, *chosen: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """The oldest events of the table, as one range of the outbox's index, read in its order."""
        c = table.c
        key = (c.table_name, c.set_aside, c.id)
        begin = (sa.bindparam("al_source", type_=sa.Text), sa.false(), sa.bindparam("al_after", type_=c.id.type))
        known = c.type.in_([word(kind) for kind in self.types])
        size = sa.bindparam("al_size", type_=sa.Integer)
        if self.dialect.name != "postgresql":
            same = [column == value for column, value in zip(key[:-1], begin, strict=False)]
            return _select(*chosen).where(*same, key[-1] > begin[-1], known).order_by(c.id).limit(size)
        # PostgreSQL knows nothing of a table that was never analysed, and takes each `=` for one row of 200: it would
        # rather sort a few rows than follow the index, and sorts everything. It takes a comparison of whole keys for a
        # third of the rows, a CASE for half of them, and a limit that it cannot see for a tenth of what there is: so it
        # follows the index, whatever it knows.
        after, last = sa.tuple_(*key) > sa.tuple_(*begin), sa.tuple_(*key) <= sa.tuple_(*begin[:-1], _LAST)
        mine = _select(*chosen).where(after, last, sa.case((known, sa.true()), else_=sa.false()))
        return mine.order_by(*key).limit(_select(size).scalar_subquery())

    # SQL: SELECT events.id AS id,
    #             to_char(timezone('UTC', events.occurred_at), 'YYYYMMDD"T"HH24MISS.US"Z"') AS occurred_at, events.*,
    #             CAST(events.data AS TEXT) AS data FROM events
    #      WHERE (events.table_name, events.set_aside, events.id) > (:source, false, :after)
    #        AND (events.table_name, events.set_aside, events.id) <= (:source, false, 9223372036854775807)
    #        AND CASE WHEN (events.type IN ('linked', 'updated', 'restored', 'unlinked', 'conflict', 'transferred'))
    #            THEN true ELSE false END
    #      ORDER BY events.table_name, events.set_aside, events.id LIMIT (SELECT :size) FOR UPDATE SKIP LOCKED
    @cached_property
    def locked(self) -> sa.Select[Any]:
        """The oldest events that no other consumer holds, locked (PostgreSQL)."""
        return self._oldest(self.outbox, *self._row()).with_for_update(skip_locked=True)

    @cached_property
    def claimed(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """The oldest events that no other consumer holds, or that one has held for too long, claimed (SQLite)."""
        free, c = self.outbox.alias(self._names("free")), self.outbox.c
        now = sa.bindparam("al_now", type_=c.claimed_until.type)
        oldest = self._oldest(free, free.c.id).where(
            sa.or_(free.c.claimed_until.is_(None), free.c.claimed_until <= now)
        )
        claim = sa.update(self.outbox).where(c.id.in_(oldest.scalar_subquery()))
        return claim.values(claimed_by=self._claim(), claimed_until=sa.bindparam("al_until")).returning(*self._row())

    @cached_property
    def delete_locked(self) -> sa.Delete:
        """Delete events (PostgreSQL)."""
        numbers = sa.bindparam("al_numbers", type_=postgresql.ARRAY(sa.BigInteger))
        return sa.delete(self.outbox).where(self.outbox.c.id == sa.any_(numbers))

    @cached_property
    def delete_claimed(self) -> sa.Delete:
        """Delete the events of a claim, if it still has all of them (SQLite)."""
        mine = self.outbox.alias(self._names("mine"))
        number = _select(sa.func.count()).select_from(mine).where(*self._is_claimed(mine)).scalar_subquery()
        claimed = sa.bindparam("al_size", type_=sa.Integer)
        return sa.delete(self.outbox).where(*self._is_claimed(self.outbox), number == claimed)

    @cached_property
    def give_up(self) -> sa.Update:
        """Let whatever was claimed go (SQLite)."""
        return sa.update(self.outbox).where(*self._is_claimed(self.outbox)).values(_UNCLAIMED)

    @cached_property
    def set_aside(self) -> sa.Update:
        """Keep events from all consumers."""
        numbers = sa.bindparam("al_numbers", expanding=True, type_=self.outbox.c.id.type)
        away = sa.update(self.outbox).where(self.outbox.c.id.in_(numbers))
        return away.values(_UNCLAIMED | {"set_aside": sa.true()})

    def _is_claimed(self, table: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        """By this claim; where it can be only, so that no other row is looked at."""
        c = table.c
        first, last = (sa.bindparam(f"al_{name}", type_=c.id.type) for name in ("first", "last"))
        return [c.id.between(first, last), c.claimed_by == self._claim()]

    def _claim(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_claim", type_=self.outbox.c.claimed_by.type)


_UNCLAIMED: Final[dict[str, Any]] = {"claimed_by": sa.null(), "claimed_until": sa.null()}
