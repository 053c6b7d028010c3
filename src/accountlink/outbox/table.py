"""Make the outbox's table, and build the parts of statements that write events into it.

An event is committed with its change, or rolled back with it. Each row that a part of a statement returns becomes an
event. A part that changed nothing returns no row, and so writes no event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from accountlink.tables.fragments import select, word
from accountlink.tables.id_text import id_text
from accountlink.tables.naming import Names
from accountlink.tables.own_tables import own_table, with_columns
from accountlink.values.events import EventType

OUTBOX_NAME: Final = "accountlink_events"
_WRITTEN: Final = (
    "occurred_at", "type", "user_id", "other_user_id", "provider", "link_id", "data", "table_name", "call_id",
)  # fmt: skip
_COLUMNS: Final = ("id", *_WRITTEN, "claimed_by", "claimed_until", "set_aside")
_AGAIN: Final = (EventType.LINKED, EventType.RESTORED)
"""Events that a call may have written before its answer was lost, and that its retry reports as an update."""


def link_outbox(metadata: sa.MetaData, *, name: str = OUTBOX_NAME, schema: str | None = None) -> sa.Table:
    """Make the outbox's table on your metadata, so that ``create_all`` and Alembic's autogenerate see it.

    One outbox serves any number of linkers and of tables of grants, each of which reads the events of its own table. It
    holds ids of users, links and grants as text, no e-mail address and no token. What is read and acknowledged is
    deleted.

    Args:
        metadata: The metadata of your tables.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``AccountLinker(outbox=...)`` and ``ShareGrants(outbox=...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, or the name is longer than the 63 bytes that
            PostgreSQL keeps.
    """
    return own_table(
        "link_outbox",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("other_user_id", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("link_id", sa.Text),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("table_name", sa.Text, nullable=False),
        sa.Column("call_id", sa.Uuid),
        sa.Column("claimed_by", sa.Uuid),
        sa.Column("claimed_until", sa.DateTime(timezone=True)),
        sa.Column("set_aside", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Index(None, "table_name", "set_aside", "id"),
        name=name,
        schema=schema,
        check=checked_outbox,
        sqlite_autoincrement=True,  # or SQLite would give an event the id of one that was acknowledged
    )


def checked_outbox(table: object) -> sa.Table:
    """Return a table that is an outbox, or refuse it.

    Raises:
        ConfigurationError: The table is not an outbox.
    """
    return with_columns(table, _COLUMNS, "outbox=... takes the table that link_outbox(Base.metadata) makes")


class Outbox:
    """Build the parts of statements that write the events of one table's rows.

    Parameters bring the values that the statement does not have: ``al_event_at``, the moment; ``al_call_id``, the id of
    the call and its retries; ``al_source``, the name of the table whose rows have the events. For :meth:`one` the
    parameter of a column is named ``al_event_`` and the name of the column.

    Args:
        table: The outbox.
        names: Names the parts.
        moment: The moment, where it does not come in a parameter.
    """

    def __init__(self, table: sa.Table, names: Names, *, moment: sa.ColumnElement[Any] | None = None) -> None:
        self.table: Final = table
        self._names = names
        self._name = sa.bindparam("al_source", type_=sa.Text)
        brought = sa.bindparam("al_event_at", type_=table.c.occurred_at.type)
        self._moment: sa.ColumnElement[Any] = brought if moment is None else moment
        self._call = sa.bindparam("al_call_id", type_=table.c.call_id.type)

    def written(
        self,
        source: sa.FromClause,
        *,
        kind: sa.ColumnElement[str],
        user_id: sa.ColumnElement[Any],
        other_user_id: sa.ColumnElement[Any] | None = None,
        provider: sa.ColumnElement[str] | None = None,
        link_id: sa.ColumnElement[Any] | None = None,
        data: sa.ColumnElement[Any] | None = None,
        only: Iterable[sa.ColumnElement[bool]] = (),
        again: bool = False,
    ) -> sa.CTE:
        """Write an event for each row that another part of the statement returns (PostgreSQL).

        Args:
            source: That part.
            kind: The event's type, as a word of the statement.
            user_id: The user of the event.
            other_user_id: The other user.
            provider: The provider's slug.
            link_id: The link.
            data: JSON; without it an empty object.
            only: Conditions on the rows that get an event.
            again: Whether an attempt whose answer was lost may have written the same event.
        """
        conditions = [*only, *([self._is_new(kind)] if again else [])]
        nothing = sa.cast(sa.null(), sa.Text)
        values = {
            "occurred_at": self._moment,
            "type": kind,
            "user_id": id_text(user_id),
            "other_user_id": nothing if other_user_id is None else id_text(other_user_id),
            "provider": nothing if provider is None else provider,
            "link_id": nothing if link_id is None else id_text(link_id),
            "data": sa.cast(sa.literal_column("'{}'"), sa.JSON) if data is None else data,
            "table_name": self._name,
            "call_id": self._call,
        }
        rows = select(*(values[name].label(name) for name in _WRITTEN)).select_from(source).where(*conditions)
        return sa.insert(self.table).from_select(list(_WRITTEN), rows, include_defaults=False).cte(self._names("event"))

    def one(
        self,
        kind: EventType,
        *,
        user: sa.types.TypeEngine[Any],
        other: sa.types.TypeEngine[Any] | None = None,
        link: sa.types.TypeEngine[Any],
        data: sa.ColumnElement[Any] | None = None,
        again: bool = False,
    ) -> sa.Insert:
        """Write one event by a statement of its own.

        Args:
            kind: The type of the event.
            user: The type of the column that user ids are from.
            other: The type of the column that the other user's id is from, if that is another one.
            link: The type of the column that the link id is from.
            data: JSON; without it a parameter brings it.
            again: Whether an attempt whose answer was lost may have written the same event.
        """
        values = {
            "occurred_at": self._moment,
            "type": word(kind.value),
            "user_id": event_id("user_id", user),
            "other_user_id": event_id("other_user_id", user if other is None else other),
            "provider": sa.bindparam("al_event_provider", type_=sa.Text),
            "link_id": event_id("link_id", link),
            "data": sa.bindparam("al_event_data", type_=self.table.c.data.type) if data is None else data,
            "table_name": self._name,
            "call_id": self._call,
        }
        conditions = [self._is_new(word(kind.value))] if again else []
        rows = select(*(values[name].label(name) for name in _WRITTEN)).where(*conditions)
        return sa.insert(self.table).from_select(list(_WRITTEN), rows, include_defaults=False)

    def _is_new(self, kind: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        """Build the condition that no earlier attempt of this call, whose answer was lost, has written the event."""
        left = self.table.alias(self._names("left_behind"))
        repeats = sa.and_(
            kind == word(EventType.UPDATED.value), left.c.type.in_([word(known.value) for known in _AGAIN])
        )
        found = select(sa.literal_column("1")).where(left.c.call_id == self._call, sa.or_(left.c.type == kind, repeats))
        return ~sa.exists(found)


def event_id(name: str, kind: sa.types.TypeEngine[Any]) -> sa.ColumnElement[str]:
    """Return an id from a parameter as the outbox stores it: as text, whatever the type of its own column."""
    return id_text(sa.bindparam(f"al_event_{name}", type_=kind))
