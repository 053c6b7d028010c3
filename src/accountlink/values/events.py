"""Define the events of links and grants, as a consumer reads them from the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, Generic

from accountlink.values.outcomes import LinkId, UserId


class EventType(Enum):
    """Name an event by a word that is the same in every version, because the outbox stores it."""

    LINKED = "linked"
    """A new link."""
    UPDATED = "updated"
    """A live link was linked again: it was written."""
    RESTORED = "restored"
    """The user's dead link is live again, under its old id."""
    UNLINKED = "unlinked"
    """A live link was removed; ``data`` has the reason, if one was given."""
    CONFLICT = "conflict"
    """A user proved control of an account that is another user's. The link did not change."""
    TRANSFERRED = "transferred"
    """A link went to another user, with its id."""
    CONSENT_NEEDED = "consent_needed"
    """The provider has ended the grant behind a link: the user must link again. ``data`` has the ``provider_code``."""
    GRANT_ISSUED = "grant_issued"
    """A token was issued that gives access to its redeemer."""
    GRANT_REDEEMED = "grant_redeemed"
    """A grant was redeemed by the user who has access from then on."""
    GRANT_REVOKED = "grant_revoked"
    """A grant was ended by the user who had given it."""


LINK_EVENTS: Final = (
    EventType.LINKED,
    EventType.UPDATED,
    EventType.RESTORED,
    EventType.UNLINKED,
    EventType.CONFLICT,
    EventType.TRANSFERRED,
    EventType.CONSENT_NEEDED,
)
"""Types of the events of a link."""
GRANT_EVENTS: Final = (EventType.GRANT_ISSUED, EventType.GRANT_REDEEMED, EventType.GRANT_REVOKED)
"""Types of the events of a sharing grant."""


@dataclass(frozen=True, kw_only=True)
class LinkEvent(Generic[UserId, LinkId]):
    """Describe one event of one link, without any e-mail address or token.

    Keep an event on the server: in a conflict it names the owner, who must stay unknown to the claimant.

    Attributes:
        id: The event's own number. One event keeps it however often it is delivered, and no other gets it.
        occurred_at: The moment of the event, by the linker's clock, aware.
        type: The type of the event.
        user_id: The owner of the link after the event, so the new owner after a transfer. In a conflict it is the
            claimant. A ``repr`` does not show it.
        other_user_id: The former owner after a transfer, the owner in a conflict, otherwise ``None``. A ``repr`` does
            not show it.
        provider: The provider's slug.
        link_id: The link's id; in a conflict the owner's link. The row itself may be gone by now.
        data: Further facts, as a JSON object: ``{"reason": ...}`` for an unlink with a reason.
    """

    id: int
    occurred_at: datetime
    type: EventType
    user_id: UserId = field(repr=False)
    other_user_id: UserId | None = field(default=None, repr=False)
    provider: str
    link_id: LinkId
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GrantEvent:
    """Describe one event of one sharing grant, without any token or hash of a token.

    Attributes:
        id: The event's own number. One event keeps it however often it is delivered, and no other gets it.
        occurred_at: The moment of the event, aware, by the clock that decides when grants end.
        type: The type of the event.
        user_id: The user who caused the event: the grantor who issued or revoked the grant, or the grantee who redeemed
            it. A ``repr`` does not show it.
        other_user_id: The other user of the pair: of a redeemed grant the grantor, of a revoked one the grantee, and
            ``None`` as long as nobody has redeemed it. A ``repr`` does not show it.
        link_id: The id of the linked account that the grant is about, or ``None`` if it is about none.
        grant_id: The grant's id. With a token for several users, the issued grant and each user's grant have their own.
        data: Further facts, as a JSON object: ``{"grant_id": ...}``, as text.
    """

    id: int
    occurred_at: datetime
    type: EventType
    user_id: Any = field(repr=False)
    other_user_id: Any = field(default=None, repr=False)
    link_id: Any = None
    grant_id: Any
    data: Mapping[str, Any] = field(default_factory=dict)
