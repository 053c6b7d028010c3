"""Describe your application's registration at a provider, and the provider's treatment of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Final

from accountlink.errors import ConfigurationError
from accountlink.providers.addresses import check_address
from accountlink.values.secrecy import Secret
from accountlink.values.text import encodable

_METHODS: Final = ("client_secret_basic", "client_secret_post", "private_key_jwt", "none")
ClientSecret = str | Callable[[], str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshBehaviour:
    """Say how a provider treats refresh tokens. ``None`` means that the provider does not say.

    Attributes:
        rotates: Whether each refresh gives a new refresh token.
        grace: How long the former refresh token still works after that; zero for a token of single use. Treat ``None``
            as zero.
        idle_limit: How long a refresh token lives that is not used.
        hard_limit: How long a grant lives, however often it is used.
        per_user_limit: How many grants of one user and one client live at once; one more ends the oldest.
    """

    rotates: bool | None = None
    grace: timedelta | None = None
    idle_limit: timedelta | None = None
    hard_limit: timedelta | None = None
    per_user_limit: int | None = None


class Revocation(Enum):
    """Name the way in which a provider revokes a token."""

    UNSUPPORTED = "unsupported"
    """The provider has no endpoint for it."""
    RFC7009 = "rfc7009"
    """The revocation endpoint of RFC 7009."""
    OWN = "own"
    """An endpoint in a form of the provider's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OAuthClient:
    """Describe one registration of your application at a provider.

    Attributes:
        client_id: The client id that the provider gave.
        client_secret: The secret, or a function that makes one for each request (Apple); ``None`` for a public client.
        name: Tells several clients at one provider apart. The grant of one client cannot be refreshed by another.
        auth_method: The way of RFC 6749, section 2.3, in which the client authenticates at the token endpoint:
            ``"client_secret_basic"`` (which form-encodes the id and the secret), ``"client_secret_post"``,
            ``"private_key_jwt"`` (RFC 7523; ``client_secret`` is the private key in PEM: of RSA, P-256 or Ed25519) or
            ``"none"``.
        behaviour: The provider's treatment of this client's refresh tokens.
        revocation: The provider's way of revoking this client's tokens.
        token_endpoint: The address that refresh tokens go to. Not needed beside a :class:`Provider`, which has it.
        metadata_url: The address of the discovery document that names it.
    """

    client_id: str
    client_secret: ClientSecret = field(default=None, repr=False)
    name: str = "default"
    auth_method: str = "client_secret_basic"
    behaviour: RefreshBehaviour = RefreshBehaviour()
    revocation: Revocation = Revocation.UNSUPPORTED
    token_endpoint: str | None = None
    metadata_url: str | None = None

    def __post_init__(self) -> None:
        """Check the client, and hide its secret."""
        given: object = self.client_id
        if not isinstance(given, str) or not given.strip():
            raise ConfigurationError("client_id=... is the text that the provider gave your application.")
        if self.auth_method not in _METHODS:
            raise ConfigurationError(f"auth_method=... is one of {', '.join(map(repr, _METHODS))}.")
        for address in ("token_endpoint", "metadata_url"):
            check_address(getattr(self, address), field=address)
        if (self.client_secret is None) != (self.auth_method == "none"):
            raise ConfigurationError(
                "A client has a client_secret=..., or it is a public one with auth_method='none'. Pass one of the two."
            )
        given_secret: object = self.client_secret
        if isinstance(self.client_secret, str):
            if not self.client_secret.strip():
                raise ConfigurationError("client_secret=... is empty. Pass the secret that the provider gave.")
            object.__setattr__(self, "client_secret", Secret(self.client_secret).reveal)
        elif self.client_secret is not None and not callable(self.client_secret):
            raise ConfigurationError("client_secret=... is text, or a function without arguments that returns text.")

        if isinstance(given_secret, str) and self.auth_method == "private_key_jwt":
            from accountlink.providers.authentication import signing_key  # noqa: PLC0415  # which needs an extra

            signing_key(given_secret)

    def secret(self) -> str | None:
        """Return the client's secret as text, made anew where a function makes it; ``None`` for a public client.

        Raises:
            ConfigurationError: The function returns no text, or an empty one.
            Exception: Whatever the function raises.
        """
        if not callable(self.client_secret):
            return None
        made: object = self.client_secret()
        if isinstance(made, str) and made.strip() and encodable(made):
            return made
        kind = "a text that is empty or cannot be sent" if isinstance(made, str) else type(made).__name__
        if isinstance(made, Coroutine):
            made.close()
        del made  # leave no secret in this frame, which a traceback with locals would show
        raise ConfigurationError(
            f"The function client_secret=... of the client {self.name!r} returned {kind}. It takes no arguments, and "
            "returns the secret as text, not empty."
        )
