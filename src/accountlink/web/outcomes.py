"""Define what a flow takes and returns: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Generic

from accountlink.providers.provider import Provider
from accountlink.values.credentials import TokenSet
from accountlink.values.identity import ProviderIdentity
from accountlink.values.outcomes import Linked, LinkId, OwnershipConflict, UserId, sealed


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Impersonated(Generic[UserId]):
    """Say that somebody acts for a user. Such a person may look, and neither connects nor disconnects anything.

    Attributes:
        user_id: The user for whom they act.
    """

    user_id: UserId


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Report that a flow has begun.

    Attributes:
        url: The address at the provider; send the browser there.
        browser: The value of the browser's cookie; set it. ``None`` for a flow that is not bound to a browser.
    """

    url: str = field(repr=False)
    browser: str | None = field(repr=False)


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Generic[UserId, LinkId]):
    """Report how a flow ended.

    Attributes:
        outcome: The linker's outcome.
        return_to: The return target that the flow began with, as a complete URL.
        redirect_url: Where to send the browser: the return target, or the page, with the outcome in it.
    """

    outcome: Linked[UserId, LinkId] | OwnershipConflict
    return_to: str | None
    redirect_url: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProvenIdentity:
    """Report whose account at the provider a visitor has proved to control. Nothing is linked, nobody is signed in.

    Attributes:
        identity: The identity that the provider vouched for.
        tokens: The tokens that came with it.
        return_to: The return target that the sign-in began with, as a complete URL.
        redirect_url: Where to send the browser: the return target, or the page.
    """

    identity: ProviderIdentity
    tokens: TokenSet
    return_to: str | None
    redirect_url: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """Hold a start for a user who has no browser at hand.

    Attributes:
        url: The address to give to the user. It holds no personal data.
        expires_at: When it ends, aware.
    """

    url: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketOffer:
    """Say what a ticket is for, to the user who opens it.

    Attributes:
        provider: The provider whose account will be connected.
        scopes: The scopes that will be asked for.
        reconnects: Whether the ticket renews one given link.
    """

    provider: Provider
    scopes: tuple[str, ...]
    reconnects: bool


class Unbound(Enum):
    """Say that a flow is not bound to a browser's cookie."""

    BEARER = "bearer"
    """The user proves themselves by a bearer token at both ends of the flow; no cookie is involved."""


class Tokens(Enum):
    """Say what becomes of the tokens that a provider issued."""

    STORED = "stored"
    """They are stored with the link."""
    DISCARDED = "discarded"
    """They are forgotten: the application only wants to know whose account it is."""
