"""Hold the identity that the provider vouched for in one callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accountlink.errors import InvalidIdentity
from accountlink.values.email import check_email
from accountlink.values.text import check_identifier, check_provider


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderIdentity:
    """Hold the identity that a provider vouched for. Its fields are checked when it is made.

    Its ``repr`` shows neither e-mail address nor name nor claims.

    Attributes:
        provider: Our lower-case slug for the configured provider, or one tenant of it (``"google"``, ``"entra-acme"``).
        account_id: The provider's stable, never reassigned id (OIDC ``sub``; Entra's ``oid.tid``; GitHub's numeric id).
            A whole number becomes its decimal text. Compared byte by byte: ``abc`` and ``ABC`` are two accounts.
        email: The address as the provider wrote it; an attribute, never proof of ownership. Empty text counts as none.
        email_verified: The provider's own boolean, or ``None`` if it sent none. The text ``"false"`` is refused.
        issuer: The issuer that vouched, where the protocol has one.
        display_name: A name to show.
        claims: The provider's other claims; accountlink never stores them.

    Raises:
        InvalidIdentity: From the constructor, naming the field; see :mod:`accountlink.values.text` for what is refused.

    Source: OpenID Connect Core 1.0, sections 2 and 5.7.
    """

    provider: str
    account_id: str
    email: str | None = field(default=None, repr=False)
    email_verified: bool | None = None
    issuer: str | None = None
    display_name: str | None = field(default=None, repr=False)
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check each field, so that no invalid value reaches any SQL."""
        object.__setattr__(self, "provider", check_provider(self.provider))
        object.__setattr__(self, "account_id", check_identifier(self.account_id, field="account_id"))
        object.__setattr__(self, "email", check_email(self.email))
        if not isinstance(self.claims, Mapping):
            raise InvalidIdentity(field="claims", problem=f"is {type(self.claims).__name__}, not a mapping")
        object.__setattr__(self, "claims", dict(self.claims))
        if self.email_verified is not None and not isinstance(self.email_verified, bool):
            raise InvalidIdentity(
                field="email_verified",
                problem=f"is {type(self.email_verified).__name__}, not a boolean",
                remedy="Compare the claim with True yourself where a provider sends text.",
            )
        for name in ("issuer", "display_name"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidIdentity(field=name, problem=f"is {type(value).__name__}, not text")
