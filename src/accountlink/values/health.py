"""Say whether the tokens of a link still work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class HealthState(Enum):
    """Name the state of a link's grant by a word that is the same in every version, because a table stores it."""

    OK = "ok"
    """The last renewal worked, or none was needed yet."""
    FAILING = "failing"
    """The last renewal failed, and another one may work."""
    NEEDS_CONSENT = "needs_consent"
    """The provider has ended the grant, or nothing brings a valid token: the user must link again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Describe the state of a link's grant.

    Attributes:
        state: The state.
        provider_code: The provider's OAuth error code for it, or ``"lost_in_refresh"`` if the grant ended because the
            answer to a renewal was lost; ``None`` where there is none.
        since: When the state began, aware: when the access token expired, if nothing renews it. ``None`` for any other
            link whose tokens were never renewed.
        retry_at: When the next attempt is made at the earliest, aware; ``None`` for "any time".
    """

    state: HealthState
    provider_code: str | None = None
    since: datetime | None = None
    retry_at: datetime | None = None
