"""Say how tokens are renewed: the protocol that a refresher follows, and the ways in which a renewal can fail."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from accountlink.values.credentials import TokenSet


class RenewalFailed(Exception):
    """Serve as the base of the three ways in which a provider can fail to renew tokens. It carries no token."""


class GrantEnded(RenewalFailed):
    """Raised by a refresher when the provider has ended the grant: only the user can give another one.

    Attributes:
        provider_code: The provider's OAuth error code, such as ``"invalid_grant"``.
    """

    def __init__(self, provider_code: str) -> None:
        super().__init__(provider_code)
        self.provider_code = provider_code


class ClientRefused(RenewalFailed):
    """Raised by a refresher when the provider refuses the application's client, whatever the user consented to.

    Attributes:
        provider_code: The provider's OAuth error code, such as ``"invalid_client"``.
    """

    def __init__(self, provider_code: str) -> None:
        super().__init__(provider_code)
        self.provider_code = provider_code


class ProviderUnavailable(RenewalFailed):
    """Raised by a refresher when the provider gave no answer that says how it stands with the grant.

    Attributes:
        retry_at: When the provider wants to be asked again, aware, by this machine's clock; ``None`` if it does not
            say.
        uncertain: Whether the provider may have renewed the tokens, because its answer was lost.
        opaque: Whether the provider refused without an OAuth error code. After five such answers in a row the grant
            counts as ended.
    """

    def __init__(self, retry_at: datetime | None = None, *, uncertain: bool = False, opaque: bool = False) -> None:
        super().__init__("the provider cannot be reached, or gave no clear answer")
        self.retry_at = retry_at
        self.uncertain = uncertain
        self.opaque = opaque


class Refresher(Protocol):
    """Renew the tokens of links. ``OAuthRefresher`` does so by OAuth's refresh tokens."""

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        """Say whether these tokens can be renewed at all, without a request.

        Args:
            provider: The provider's slug.
            tokens: The stored tokens.

        Raises:
            ConfigurationError: The OAuth client that the tokens were issued to is not configured.
        """
        ...

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        """Ask the provider for new tokens, once.

        Args:
            provider: The provider's slug.
            tokens: The stored tokens.
            deadline: The time that the whole call may take; it is cancelled then.

        Returns:
            The new tokens, with ``expires_at`` by this machine's clock. What they leave out stays: the refresh token,
                scopes, members of ``extra``.

        Raises:
            GrantEnded: The provider has ended the grant.
            ClientRefused: The provider refuses the application's client.
            ProviderUnavailable: The provider gave no clear answer.
        """
        ...
