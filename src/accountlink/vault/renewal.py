"""Decide what a call for valid tokens does, by the facts that one statement has read."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from accountlink.errors import AccountLinkError, NeedsConsent, RefreshRefused, RefreshUnavailable
from accountlink.values.health import HealthState

EARLIEST: Final = timedelta(minutes=15)
"""The longest time before its end at which a token is renewed early."""
EARLY_PART: Final = 5
"""A token is renewed early in the last fifth of its lifetime, at the most."""
OPAQUE_AT_MOST: Final = 5
"""The number of refusals in a row without an OAuth error code that counts as the end of a grant."""
SHORTEST_PAUSE: Final = timedelta(seconds=2)
LONGEST_PAUSE: Final = timedelta(minutes=10)
"""The pauses after failed renewals: doubled each time, from the shortest to the longest."""
OPAQUE_LATER: Final = 6
"""A refusal without a code makes the pause as long as so many more failures would: the fault may be a proxy's."""
LONGEST_WAIT: Final = timedelta(days=1)
"""The longest time for which a provider is not asked because a refresher says so."""
LOST: Final = "lost_in_refresh"
"""The code of a grant that ended because the answer to a renewal was lost."""


class Step(Enum):
    """Name what a call does next."""

    GIVE = "give out the stored token"
    GIVE_AND_RENEW = "give out the stored token, and let it be renewed beside"
    RENEW = "renew the token, or wait for whoever does"


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantState:
    """Hold the state of a grant's renewals, as it was read with the tokens.

    Attributes:
        leased_until: When the lease ends that somebody has, aware; ``None`` if nobody has it.
        retry_at: When the next attempt may be made, aware; ``None`` for "any time".
        state: The health of the grant.
        provider_code: The provider's code for it.
        since: When that state began, aware.
        refused: The code by which the provider refused the application's client; ``None`` if it did not.
        refreshed_at: When the tokens were last renewed, aware.
    """

    leased_until: datetime | None = None
    retry_at: datetime | None = None
    state: HealthState = HealthState.OK
    provider_code: str | None = None
    since: datetime | None = None
    refused: str | None = None
    refreshed_at: datetime | None = None

    def is_leased(self, now: datetime) -> bool:
        """Say whether somebody has the lease.

        Args:
            now: The database's present moment.
        """
        return self.leased_until is not None and self.leased_until > now

    def obstacle(self, now: datetime) -> AccountLinkError | None:
        """Return the error of a grant that nobody may try to renew now, or ``None``.

        Args:
            now: The database's present moment.
        """
        if self.state is HealthState.NEEDS_CONSENT:
            return NeedsConsent(provider_code=self.provider_code, since=self.since)
        if self.retry_at is None or self.retry_at <= now:
            return None
        if self.refused is not None:
            return RefreshRefused(provider_code=self.refused)
        return RefreshUnavailable(retry_at=self.retry_at)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Hold what decides whether a stored access token is given out.

    Attributes:
        now: The database's present moment.
        expires_at: When the token expires; ``None`` if nobody knows.
        issued_at: When it was obtained; ``None`` if nobody knows.
        is_missing: Whether there is no access token.
        is_rejected: Whether the API has refused it, and it is old enough for a new one to help.
        state: The state of the grant's renewals.
    """

    now: datetime
    expires_at: datetime | None
    issued_at: datetime | None = None
    is_missing: bool = False
    is_rejected: bool = False
    state: GrantState = field(default_factory=GrantState)

    @property
    def is_over(self) -> bool:
        """Whether the token can no longer be used."""
        return self.is_missing or self.is_rejected or (self.expires_at is not None and self.expires_at <= self.now)

    def ends_within(self, span: timedelta) -> bool:
        """Say whether the token ends within a span of time."""
        return self.expires_at is not None and self.expires_at - self.now < span


def next_step(facts: Facts, *, min_valid: timedelta, jitter: float) -> Step | AccountLinkError:
    """Decide whether a token is given out, renewed, or neither.

    Args:
        facts: What was read.
        min_valid: How long the caller wants the token to last.
        jitter: A random number from 0 to 1, so that many links do not renew at one moment.

    Returns:
        The step, or the error to raise.
    """
    obstacle = facts.state.obstacle(facts.now)
    if obstacle is not None:
        return obstacle if facts.is_over else Step.GIVE
    if facts.is_over or facts.ends_within(min_valid):
        return Step.RENEW
    if facts.ends_within(early(facts, min_valid=min_valid) * (1 - jitter / 4)) and not facts.state.is_leased(facts.now):
        return Step.GIVE_AND_RENEW
    return Step.GIVE


def early(facts: Facts, *, min_valid: timedelta) -> timedelta:
    """Return how long before its end a token is renewed early.

    Args:
        facts: What was read.
        min_valid: How long the caller wants a token to last; it counts where the token's lifetime is not known.
    """
    if facts.expires_at is None or facts.issued_at is None or facts.expires_at <= facts.issued_at:
        return min_valid
    return min(EARLIEST, (facts.expires_at - facts.issued_at) / EARLY_PART)


def pause_after(failures: int, *, jitter: float) -> timedelta:
    """Return how long to wait after a failed renewal for which the provider named no time.

    Args:
        failures: How many renewals have failed in a row before this one.
        jitter: A random number from 0 to 1, so that many links do not renew at one moment.

    Returns:
        The shortest pause, doubled once for each earlier failure up to the longest; of that three quarters to all,
        by the jitter.
    """
    doubled: int = 2 ** min(max(failures, 0), 9)
    return min(LONGEST_PAUSE, SHORTEST_PAUSE * doubled) * (0.75 + jitter / 4)
