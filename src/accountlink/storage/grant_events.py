"""The events of grants: which part of a statement tells what, and how it is read."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.core.events import GRANT_EVENTS, EventType, GrantEvent
from accountlink.core.grants import Grant
from accountlink.core.secrecy import Parameters, concealed_id
from accountlink.storage.column_types import read_moment
from accountlink.storage.deliveries import Reading
from accountlink.storage.grants import GrantMapping
from accountlink.storage.outbox import Outbox, event_id, word

_GRANT_ID: Final = "grant_id"
"""Under this word an event's data name the grant, by its id as text."""


class GrantEvents(Outbox):
    """The outbox of one table of grants. The parts that it is given have the columns of a row, by their roles."""

    def __init__(self, table: sa.Table, mapping: GrantMapping, *, moment: sa.ColumnElement[Any] | None = None) -> None:
        super().__init__(table, mapping.table, moment=moment)
        self._mapping = mapping

    def of_rows(self, rows: sa.CTE, kind: EventType, *only: sa.ColumnElement[bool]) -> sa.CTE:
        """What was done to grants (PostgreSQL).

        Args:
            rows: The grants, as they are now.
            kind: What was done.
            only: Which of the rows count.
        """
        role, other_role = _who(kind)
        grant_id = sa.cast(rows.c.id, sa.Text)
        return self.written(
            rows,
            kind=word(kind),
            user_id=rows.c[role],
            other_user_id=rows.c[other_role],
            link_id=rows.c.get("link_id"),
            data=sa.func.json_build_object(_word_of_data(), grant_id, type_=sa.JSON),
            only=only,
        )

    def of_one(self, kind: EventType) -> sa.Insert:
        """The same for one grant, by a statement of its own (SQLite)."""
        c = self._mapping.columns
        role, other_role = _who(kind)
        grant_id = event_id(_GRANT_ID, c["id"].type)
        return self.one(
            kind,
            user=c[role].type,
            other=c[other_role].type,
            link=_link_type(self._mapping),
            data=sa.func.json_object(_word_of_data(), grant_id, type_=sa.JSON),
        )


def told(kind: EventType, grant: Grant, parameters: Parameters) -> Parameters:
    """The parameters of an event's own statement.

    Args:
        kind: What was done.
        grant: The grant, as it is now.
        parameters: Those of the call.
    """
    role, other_role = _who(kind)
    return Parameters(
        al_event_at=parameters["al_event_at"],
        al_call_id=parameters["al_call_id"],
        al_event_user_id=concealed_id(getattr(grant, role)),
        al_event_other_user_id=concealed_id(getattr(grant, other_role)),
        al_event_provider=None,
        al_event_link_id=grant.link_id,
        al_event_grant_id=grant.id,
    )


def grant_events(mapping: GrantMapping, outbox: sa.Table) -> Reading[GrantEvent]:
    """How the events of a table of grants are read."""
    c, columns = outbox.c, mapping.columns
    redeemed = c.type == word(EventType.GRANT_REDEEMED)
    # Grantor and grantee may be of different types, and which of them is whose user depends on what happened.
    grantor = sa.case((redeemed, c.other_user_id), else_=c.user_id)
    grantee = sa.case((redeemed, c.user_id), else_=c.other_user_id)
    row = (
        c.id,
        c.occurred_at,
        c.type,
        sa.cast(grantor, columns["grantor_id"].type).label("grantor_id"),
        sa.cast(grantee, columns["grantee_id"].type).label("grantee_id"),
        sa.cast(c.link_id, _link_type(mapping)).label("link_id"),
        sa.cast(c.data[_GRANT_ID].as_string(), columns["id"].type).label(_GRANT_ID),
        c.data,
    )
    return Reading(outbox=outbox, source=mapping.table, types=GRANT_EVENTS, row=row, read=_grant_event)


def _grant_event(row: sa.Row[Any]) -> GrantEvent:
    number, moment, word_of_kind, grantor_id, grantee_id, link_id, grant_id, data = tuple[Any, ...](row)
    occurred_at = read_moment(moment)
    assert occurred_at is not None  # noqa: S101  # the column takes no null
    kind = EventType(word_of_kind)
    users = {"grantor_id": grantor_id, "grantee_id": grantee_id}
    role, other_role = _who(kind)
    return GrantEvent(
        id=number,
        occurred_at=occurred_at,
        type=kind,
        user_id=users[role],
        other_user_id=users[other_role],
        link_id=link_id,
        grant_id=grant_id,
        data=data,
    )


def _who(kind: EventType) -> tuple[str, str]:
    """Which of a grant's two users did it, and which is the other one."""
    return ("grantee_id", "grantor_id") if kind is EventType.GRANT_REDEEMED else ("grantor_id", "grantee_id")


def _link_type(mapping: GrantMapping) -> sa.types.TypeEngine[Any]:
    column = mapping.columns.get("link_id")
    return sa.Text() if column is None else column.type


def _word_of_data() -> sa.ColumnClause[str]:
    return sa.literal_column(f"'{_GRANT_ID}'", sa.Text)
