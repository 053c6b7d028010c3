"""Write and read the events of links."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.outbox.reading import Found, Reading, details, moment, optional, part
from accountlink.outbox.table import Outbox
from accountlink.tables.fragments import word
from accountlink.tables.id_text import id_text, reader
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.slugs import slug_in
from accountlink.values.events import LINK_EVENTS, EventType, LinkEvent

_ARMS: Final = {
    "created": EventType.LINKED,
    "updated": EventType.UPDATED,
    "restored": EventType.RESTORED,
    "conflict": EventType.CONFLICT,
}
"""The events of the arms of a link; the other arms are refusals, which are no events."""


class LinkEvents(Outbox):
    """Build the parts of statements that write the events of one table of links.

    Each source of events has the columns of a row, by their roles.
    """

    def of_answer(self, answer: sa.CTE, *, user_id: sa.ColumnElement[Any], again: bool) -> sa.CTE:
        """Write the event of a link, by the arm that answered.

        Args:
            answer: The arms' answer; in a conflict the owner's row.
            user_id: The user who links.
            again: Whether an attempt whose answer was lost may have written the same event.
        """
        arm = answer.c.arm
        names = {name: word(name) for name in _ARMS}
        return self.written(
            answer,
            kind=sa.case(*((arm == names[name], word(kind.value)) for name, kind in _ARMS.items())),
            user_id=user_id,
            other_user_id=sa.case((arm == names["conflict"], id_text(answer.c.user_id))),
            provider=slug_in(answer.c.provider),
            link_id=answer.c.id,
            only=[arm.in_(names.values())],
            again=again,
        )

    def of_row(
        self,
        written: sa.CTE,
        kind: EventType,
        *,
        other_user_id: sa.ColumnElement[Any] | None = None,
        with_data: bool = False,
    ) -> sa.CTE:
        """Write the event of a change to a row.

        Args:
            written: The row, as it is now.
            kind: The type of the event.
            other_user_id: The former owner, after a transfer.
            with_data: Whether ``al_event_data`` brings further facts.
        """
        return self.written(
            written,
            kind=word(kind.value),
            user_id=written.c.user_id,
            other_user_id=other_user_id,
            provider=slug_in(written.c.provider),
            link_id=written.c.id,
            data=sa.bindparam("al_event_data", type_=self.table.c.data.type) if with_data else None,
        )


def link_events(
    mapping: AccountMapping[Any, Any], outbox: sa.Table, dialect: sa.Dialect
) -> Reading[LinkEvent[Any, Any]]:
    """Return the object that reads the events of a table of links."""
    user, link = (reader(mapping.columns[role].type, dialect) for role in ("user_id", "id"))

    def read(found: Found) -> LinkEvent[Any, Any]:
        return LinkEvent(
            id=found.id,
            occurred_at=part("occurred_at", moment, found.occurred_at),
            type=EventType(found.type),
            user_id=part("user_id", user, found.user_id),
            other_user_id=optional("other_user_id", user, found.other_user_id),
            provider=part("provider", str, found.provider),
            link_id=part("link_id", link, found.link_id),
            data=part("data", details, found.data),
        )

    return Reading(outbox=outbox, source=mapping.table, dialect=dialect, types=LINK_EVENTS, read=read)
