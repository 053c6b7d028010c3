"""Read events from an outbox: build the statements, and convert rows to events.

Each column is read as text, and converted here one event at a time. If SQL or the driver converted it, one bad row
would fail the whole statement, again and again, for every consumer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Generic, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from accountlink.tables.fragments import select, word
from accountlink.tables.naming import Names
from accountlink.tables.rows import stored_name
from accountlink.values.events import EventType
from accountlink.values.secrecy import Parameters

Event = TypeVar("Event")
T = TypeVar("T")
logger: Final = logging.getLogger("accountlink.outbox")
_LAST: Final = sa.literal_column(str(2**63 - 1), sa.BigInteger)
_ISO: Final = sa.literal_column("""'YYYYMMDD"T"HH24MISS.US"Z"'""", sa.Text)
_FOUND: Final = ("id", "occurred_at", "type", "user_id", "other_user_id", "provider", "link_id", "data")


class Found(NamedTuple):
    """Hold an event's row as text, except for its number."""

    id: int
    occurred_at: str
    type: str
    user_id: str | None
    other_user_id: str | None
    provider: str | None
    link_id: str | None
    data: str


class Unreadable(Exception):
    """Report a row that this version, or the application's model, cannot read as an event."""

    def __init__(self, part: str, error: str) -> None:
        super().__init__()
        self.part = part
        self.error = error


def part(name: str, read: Callable[[str], T], text: str | None) -> T:
    """Read a part of a row that every event has."""
    if text is None:
        raise Unreadable(name, "missing")
    try:
        return read(text)
    except Exception as error:  # noqa: BLE001  # an application's own type reads it, and may raise any
        raise Unreadable(name, type(error).__name__) from None


def optional(name: str, read: Callable[[str], T], text: str | None) -> T | None:
    """Read a part of a row that may be missing."""
    return None if text is None else part(name, read, text)


def moment(text: str) -> datetime:
    """Read the moment of an event; a text without a time zone is in UTC."""
    when = datetime.fromisoformat(text)
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def details(text: str) -> Mapping[str, Any]:
    """Read the further facts of an event, which most events do not have."""
    if text == "{}":
        return {}
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError
    return data


class Taken(NamedTuple, Generic[Event]):
    """Hold the events that were taken, and their numbers, both in order."""

    numbers: Sequence[int]
    events: Sequence[Event]


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[Event]):
    """Build the statements that read the events of one table from an outbox, and convert their rows.

    Attributes:
        outbox: The outbox.
        source: The table whose events are read.
        dialect: The database that is read from.
        types: The types that this version knows; events of other types are left to newer versions.
        read: Converts a row to an event, or raises :class:`Unreadable`.
    """

    outbox: sa.Table
    source: sa.Table
    dialect: sa.Dialect
    types: Sequence[EventType]
    read: Callable[[Found], Event]

    def taken(self, connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> tuple[Taken[Event], list[int]]:
        """Convert rows to events, in order.

        Args:
            connection: The connection that read them, which may find the tables in another schema.
            rows: The rows.

        Returns:
            The events that could be read, and the numbers of those that could not. Each of the latter is logged.
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
        """Return the parameters of a statement, with the name under which the outbox stores the table."""
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
        """Build the query for the oldest events of the table, as one range of the outbox's index, in its order."""
        c = table.c
        key = (c.table_name, c.set_aside, c.id)
        begin = (sa.bindparam("al_source", type_=sa.Text), sa.false(), sa.bindparam("al_after", type_=c.id.type))
        known = c.type.in_([word(kind.value) for kind in self.types])
        size = sa.bindparam("al_size", type_=sa.Integer)
        if self.dialect.name != "postgresql":
            same = [column == value for column, value in zip(key[:-1], begin, strict=False)]
            return select(*chosen).where(*same, key[-1] > begin[-1], known).order_by(c.id).limit(size)
        # For a table that was never analysed PostgreSQL estimates one row in 200 for each `=`. With so few rows it
        # would choose a sort instead of the index, and then sort everything. It estimates a third of the rows for a
        # comparison of whole keys, half for a CASE, and a tenth for a limit from a subquery. With these estimates it
        # follows the index, whether the table was analysed or not.
        after, last = sa.tuple_(*key) > sa.tuple_(*begin), sa.tuple_(*key) <= sa.tuple_(*begin[:-1], _LAST)
        mine = select(*chosen).where(after, last, sa.case((known, sa.true()), else_=sa.false()))
        return mine.order_by(*key).limit(select(size).scalar_subquery())

    # SQL: SELECT events.id AS id,
    #             to_char(timezone('UTC', events.occurred_at), 'YYYYMMDD"T"HH24MISS.US"Z"') AS occurred_at, events.*,
    #             CAST(events.data AS TEXT) AS data FROM events
    #      WHERE (events.table_name, events.set_aside, events.id) > (:source, false, :after)
    #        AND (events.table_name, events.set_aside, events.id) <= (:source, false, 9223372036854775807)
    #        AND CASE WHEN (events.type IN ('linked', 'updated', 'restored', 'unlinked', 'conflict', 'transferred',
    #                       'consent_needed'))
    #            THEN true ELSE false END
    #      ORDER BY events.table_name, events.set_aside, events.id LIMIT (SELECT :size) FOR UPDATE SKIP LOCKED
    @cached_property
    def locked(self) -> sa.Select[Any]:
        """The query that locks the oldest events which no other consumer holds (PostgreSQL)."""
        return self._oldest(self.outbox, *self._row()).with_for_update(skip_locked=True)

    @cached_property
    def claimed(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """The UPDATE that claims the oldest events which no other consumer holds, or whose claim has ended (SQLite)."""
        free, c = self.outbox.alias(self._names("free")), self.outbox.c
        now = sa.bindparam("al_now", type_=c.claimed_until.type)
        oldest = self._oldest(free, free.c.id).where(
            sa.or_(free.c.claimed_until.is_(None), free.c.claimed_until <= now)
        )
        claim = sa.update(self.outbox).where(c.id.in_(oldest.scalar_subquery()))
        return claim.values(claimed_by=self._claim(), claimed_until=sa.bindparam("al_until")).returning(*self._row())

    @cached_property
    def delete_locked(self) -> sa.Delete:
        """The DELETE of locked events (PostgreSQL)."""
        numbers = sa.bindparam("al_numbers", type_=postgresql.ARRAY(sa.BigInteger))
        return sa.delete(self.outbox).where(self.outbox.c.id == sa.any_(numbers))

    @cached_property
    def delete_claimed(self) -> sa.Delete:
        """The DELETE of the events of a claim, if all of them are still claimed (SQLite)."""
        mine = self.outbox.alias(self._names("mine"))
        number = select(sa.func.count()).select_from(mine).where(*self._is_claimed(mine)).scalar_subquery()
        claimed = sa.bindparam("al_size", type_=sa.Integer)
        return sa.delete(self.outbox).where(*self._is_claimed(self.outbox), number == claimed)

    @cached_property
    def give_up(self) -> sa.Update:
        """The UPDATE that ends a claim (SQLite)."""
        return sa.update(self.outbox).where(*self._is_claimed(self.outbox)).values(_UNCLAIMED)

    @cached_property
    def set_aside(self) -> sa.Update:
        """The UPDATE that hides unreadable events from all consumers."""
        numbers = sa.bindparam("al_numbers", expanding=True, type_=self.outbox.c.id.type)
        away = sa.update(self.outbox).where(self.outbox.c.id.in_(numbers))
        return away.values(_UNCLAIMED | {"set_aside": sa.true()})

    def _is_claimed(self, table: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        """Build the conditions for the rows of a claim, in the range of numbers that the claim can have."""
        c = table.c
        first, last = (sa.bindparam(f"al_{name}", type_=c.id.type) for name in ("first", "last"))
        return [c.id.between(first, last), c.claimed_by == self._claim()]

    def _claim(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_claim", type_=self.outbox.c.claimed_by.type)


_UNCLAIMED: Final[dict[str, Any]] = {"claimed_by": sa.null(), "claimed_until": sa.null()}
