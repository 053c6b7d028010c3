"""Support tests of code that asks for a user's tokens: a refresher without a network, and a link that is due."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink.linker import AccountLinker
from accountlink.values.credentials import TokenSet
from accountlink.values.identity import ProviderIdentity
from accountlink.values.outcomes import Linked, LinkId, UserId
from accountlink.values.secrecy import revealed
from accountlink.vault.refresher import GrantEnded, RenewalFailed


class FakeRefresher:
    """Renew tokens without a provider: each refresh token works once, and a second use ends its grant.

    Args:
        lifetime: How long new access tokens last.

    Attributes:
        presented: The refresh tokens that were presented, in order.

    Example:
        >>> refresher = FakeRefresher()
        >>> refresher.fail_next(GrantEnded("invalid_grant"))
    """

    def __init__(self, *, lifetime: timedelta = timedelta(hours=1)) -> None:
        self.presented: list[str] = []
        self._lifetime = lifetime
        self._failures: deque[RenewalFailed] = deque()

    def fail_next(self, failure: RenewalFailed) -> None:
        """Let the next renewal fail.

        Args:
            failure: ``GrantEnded``, ``ClientRefused`` or ``ProviderUnavailable``.
        """
        self._failures.append(failure)

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        """Say whether there is a refresh token."""
        return tokens.refresh_token is not None

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        """Return new tokens, or fail as planned.

        Raises:
            RenewalFailed: As planned.
            GrantEnded: The refresh token was used before.
        """
        presented = revealed(tokens.refresh_token) or ""
        is_spent = presented in self.presented
        self.presented.append(presented)
        if self._failures:
            raise self._failures.popleft()
        if is_spent or not presented:
            raise GrantEnded("invalid_grant")
        number = len(self.presented)
        return TokenSet(
            access_token=f"renewed-access-token-{number}",
            refresh_token=f"renewed-refresh-token-{number}",
            expires_at=datetime.now(UTC) + self._lifetime,
        )


async def link_with_expired_token(
    linker: AccountLinker[UserId, LinkId],
    bind: AsyncEngine | AsyncConnection | AsyncSession,
    *,
    user_id: UserId,
    provider: str = "acme",
    account_id: str = "248289761001",
    **tokens: Any,
) -> LinkId:
    """Link an account whose access token has just expired, and whose refresh token was not used yet.

    Args:
        linker: The linker, with a vault.
        bind: As for :meth:`AccountLinker.link`.
        user_id: The user's id.
        provider: The provider's slug.
        account_id: The account.
        tokens: Further fields of the :class:`TokenSet`.

    Returns:
        The link's id.

    Raises:
        AssertionError: The account is another user's.
        AccountLinkError: As for :meth:`AccountLinker.link`.
    """
    identity = ProviderIdentity(provider=provider, account_id=account_id, email=f"{account_id}@example.com")
    given: dict[str, Any] = {
        "access_token": "expired-access-token",
        "refresh_token": f"refresh-token-of-{account_id}",
        "expires_at": datetime.now(UTC) - timedelta(seconds=1),
    }
    outcome = await linker.link(bind, user_id=user_id, identity=identity, credentials=TokenSet(**(given | tokens)))
    assert isinstance(outcome, Linked), "the account is another user's"  # noqa: S101  # said to a test
    return outcome.account.id
