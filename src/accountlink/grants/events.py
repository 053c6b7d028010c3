"""Write and read the events of grants."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.grants.call import GrantCall
from accountlink.grants.mapping import GrantMapping
from accountlink.outbox.reading import Found, Reading, details, moment, optional, part
from accountlink.outbox.table import Outbox, event_id
from accountlink.tables.fragments import word
from accountlink.tables.id_text import id_text, reader
from accountlink.tables.naming import Names
from accountlink.values.events import GRANT_EVENTS, EventType, GrantEvent
from accountlink.values.grants import Grant
from accountlink.values.secrecy import Parameters, concealed_id

_GRANT_ID: Final = "grant_id"
"""The key of the grant's id, as text, in the data of an event."""


class GrantEvents(Outbox):
    """Build the parts of statements that write the events of one table of grants.

    Each source of events has the columns of a row, by their roles.
    """

    def __init__(
        self,
        table: sa.Table,
        mapping: GrantMapping,
        names: Names,
        *,
        moment: sa.ColumnElement[Any] | None = None,
    ) -> None:
        super().__init__(table, names, moment=moment)
        self._mapping = mapping

    def of_rows(self, rows: sa.CTE, kind: EventType, *only: sa.ColumnElement[bool]) -> sa.CTE:
        """Write the events of a change to grants (PostgreSQL).

        Args:
            rows: The grants, as they are now.
            kind: The type of the events.
            only: Conditions on the rows that get an event.
        """
        role, other_role = _who(kind)
        grant_id = id_text(rows.c.id)
        return self.written(
            rows,
            kind=word(kind.value),
            user_id=rows.c[role],
            other_user_id=rows.c[other_role],
            link_id=rows.c.get("link_id"),
            data=sa.func.json_build_object(word(_GRANT_ID), grant_id, type_=sa.JSON),
            only=only,
        )

    def of_one(self, kind: EventType) -> sa.Insert:
        """Write the event of one grant, by a separate statement (SQLite)."""
        c = self._mapping.columns
        role, other_role = _who(kind)
        grant_id = event_id(_GRANT_ID, c["id"].type)
        return self.one(
            kind,
            user=c[role].type,
            other=c[other_role].type,
            link=_link_type(self._mapping),
            data=sa.func.json_object(word(_GRANT_ID), grant_id, type_=sa.JSON),
        )


def event_parameters(kind: EventType, grant: Grant, call: GrantCall) -> Parameters:
    """Return the parameters of the statement that writes one event.

    Args:
        kind: The type of the event.
        grant: The grant, as it is now.
        call: The call.
    """
    role, other_role = _who(kind)
    return Parameters(
        {} if call.occasion is None else call.occasion.parameters(),
        al_event_user_id=concealed_id(getattr(grant, role)),
        al_event_other_user_id=concealed_id(getattr(grant, other_role)),
        al_event_provider=None,
        al_event_link_id=grant.link_id,
        al_event_grant_id=grant.id,
    )


def grant_events(mapping: GrantMapping, outbox: sa.Table, dialect: sa.Dialect) -> Reading[GrantEvent]:
    """Return the object that reads the events of a table of grants."""
    users = {role: reader(mapping.columns[role].type, dialect) for role in ("grantor_id", "grantee_id")}
    grant, link = reader(mapping.columns["id"].type, dialect), reader(_link_type(mapping), dialect)

    def read(found: Found) -> GrantEvent:
        kind, data = EventType(found.type), part("data", details, found.data)
        role, other_role = _who(kind)  # grantor and grantee may be of different types
        return GrantEvent(
            id=found.id,
            occurred_at=part("occurred_at", moment, found.occurred_at),
            type=kind,
            user_id=part("user_id", users[role], found.user_id),
            other_user_id=optional("other_user_id", users[other_role], found.other_user_id),
            link_id=optional("link_id", link, found.link_id),
            grant_id=part("data", grant, data.get(_GRANT_ID)),
            data=data,
        )

    return Reading(outbox=outbox, source=mapping.table, dialect=dialect, types=GRANT_EVENTS, read=read)


def _who(kind: EventType) -> tuple[str, str]:
    """Return the role of the user who caused an event, and the role of the other user."""
    return ("grantee_id", "grantor_id") if kind is EventType.GRANT_REDEEMED else ("grantor_id", "grantee_id")


def _link_type(mapping: GrantMapping) -> sa.types.TypeEngine[Any]:
    column = mapping.columns.get("link_id")
    return sa.Text() if column is None else column.type
