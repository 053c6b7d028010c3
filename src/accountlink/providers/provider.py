"""Describe an OAuth provider: where its endpoints are, and where the stable id of an account comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

from accountlink.errors import ConfigurationError
from accountlink.values.identity import ProviderIdentity
from accountlink.values.secrecy import Secret
from accountlink.values.text import check_provider

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""A scope token, by RFC 6749, section 3.3."""

ClientSecret = str | Callable[[], str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshBehaviour:
    """Say how a provider treats refresh tokens. ``None`` means that the provider does not say.

    Attributes:
        rotates: Whether each refresh gives a new refresh token.
        grace: How long the former refresh token still works after that; zero for a token of single use.
        idle_limit: How long a refresh token lives that is not used.
        hard_limit: How long a grant lives, however often it is used.
        per_user_limit: How many grants of one user and one client live at once; one more ends the oldest.
    """

    rotates: bool | None = None
    grace: timedelta = timedelta(0)
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


class Userinfo(Enum):
    """Say when a flow asks the userinfo endpoint of OpenID Connect."""

    WHEN_MISSING = "when_missing"
    """If a scope asks for claims that the ID token lacks."""
    NEVER = "never"
    """The ID token has all that the provider tells."""


ALGORITHMS: Final = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
})  # fmt: skip
"""Signature algorithms with a public key, so that no public key can forge (RFC 8725, section 3.1)."""


class EmailTrust(Enum):
    """Say whether a provider's flag of a verified e-mail address can be believed."""

    UNTRUSTED = "untrusted"
    """The flag is dropped: accountlink reports ``None``."""
    VERIFIED_FLAG = "verified_flag"
    """The provider itself has sent a message to each address that it flags; its boolean is passed on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OAuthClient:
    """Describe one registration of your application at a provider.

    Attributes:
        client_id: The client id that the provider gave.
        client_secret: The secret, or a function that makes one for each request (Apple); ``None`` for a public client.
        name: Tells several clients at one provider apart. The grant of one client cannot be refreshed by another.
        auth_method: The way of RFC 6749, section 2.3, in which the client authenticates at the token endpoint:
            ``"client_secret_basic"``, ``"client_secret_post"`` or ``"none"``.
        behaviour: The provider's treatment of this client's refresh tokens.
        revocation: The provider's way of revoking this client's tokens.
    """

    client_id: str
    client_secret: ClientSecret = field(default=None, repr=False)
    name: str = "default"
    auth_method: str = "client_secret_basic"
    behaviour: RefreshBehaviour = RefreshBehaviour()
    revocation: Revocation = Revocation.UNSUPPORTED

    def __post_init__(self) -> None:
        """Check the client, and hide its secret."""
        given: object = self.client_id
        if not isinstance(given, str) or not given.strip():
            raise ConfigurationError("client_id=... is the text that the provider gave your application.")
        if self.auth_method not in {"client_secret_basic", "client_secret_post", "none"}:
            raise ConfigurationError("auth_method=... is 'client_secret_basic', 'client_secret_post' or 'none'.")
        if (self.client_secret is None) != (self.auth_method == "none"):
            raise ConfigurationError(
                "A client has a client_secret=..., or it is a public one with auth_method='none'. Pass one of the two."
            )
        if isinstance(self.client_secret, str):
            if not self.client_secret.strip():
                raise ConfigurationError("client_secret=... is empty. Pass the secret that the provider gave.")
            object.__setattr__(self, "client_secret", Secret(self.client_secret).reveal)
        elif self.client_secret is not None and not callable(self.client_secret):
            raise ConfigurationError("client_secret=... is text, or a function without arguments that returns text.")

    def secret(self) -> str | None:
        """Return the client's secret as text, made anew where a function makes it; ``None`` for a public client."""
        return self.client_secret() if callable(self.client_secret) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Hold the provider's own words about an account, after every check of the flow.

    Attributes:
        claims: The claims of the validated ID token; empty for a provider without one.
        documents: The provider's answers to requests with the access token, by the name of the request.
    """

    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    documents: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """Hold the parts of an identity that a preset reads from the evidence.

    Attributes:
        account_id: The stable, never reassigned id of the account.
        email: The e-mail address, if the provider told one.
        email_verified: The provider's own boolean; ``None`` where it sends none, or something else.
        display_name: A name to show.
    """

    account_id: str | int = field(repr=False)
    email: str | None = field(default=None, repr=False)
    email_verified: bool | None = None
    display_name: str | None = field(default=None, repr=False)


Describe = Callable[[Evidence], Described]


class EvidenceMissing(Exception):
    """Raised by a preset when the evidence lacks what identifies an account, or holds it in another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """Describe one configured provider. A preset makes it; the flow reads it.

    Attributes:
        slug: Our lower-case name of the provider, also the last part of its redirect URI (``"google"``).
        name: The name to show to people (``"Google"``).
        clients: Your registrations at the provider. A flow uses the first.
        describe: Reads the stable id, the e-mail address and the name from the evidence. It raises
            ``EvidenceMissing`` where the id is missing.
        email_trust: Whether the provider's flag of a verified e-mail address can be believed. The file of each preset
            says why.
        scopes: The scopes that each flow asks for.
        issuer: The issuer, exactly as the provider writes it; the text ``{tenantid}`` in it stands for the ``tid``
            claim. ``None`` for a provider that has none.
        tenants: The tenants whose accounts are accepted, by the ``tid`` claim; empty where the issuer has no tenants.
        metadata_url: The address of the discovery document. ``None`` where the endpoints are given.
        authorization_endpoint: The address that the browser is sent to.
        token_endpoint: The address that the code goes to.
        jwks_uri: The address of the provider's signing keys.
        userinfo_endpoint: The address of OpenID Connect's userinfo; the document is called ``"userinfo"``.
        userinfo: When that is asked.
        requests: Further requests with the access token, address by document name.
        optional_requests: The names of requests whose refusal (status 403 or 404) counts as no document.
        request_headers: Headers of every request with the access token.
        algorithms: The accepted signature algorithms of an ID token.
        id_token: Whether the token response must hold an ID token.
        authorize_parameters: Parameters of every authorization request.
        consent_parameters: Parameters that make the provider show its consent screen again.
        form_post: Whether the provider answers by a cross-site POST (``response_mode=form_post``).
        iss_parameter: Whether the provider promises the ``iss`` parameter of RFC 9207. With discovery the document
            says so too.
        extra: The members of a token response that are kept beside the tokens.
    """

    slug: str
    name: str
    clients: Sequence[OAuthClient]
    describe: Describe = field(repr=False)
    email_trust: EmailTrust = EmailTrust.UNTRUSTED
    scopes: Collection[str] = ()
    issuer: str | None = None
    tenants: Collection[str] = ()
    metadata_url: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    jwks_uri: str | None = None
    userinfo_endpoint: str | None = None
    userinfo: Userinfo = Userinfo.WHEN_MISSING
    requests: Mapping[str, str] = field(default_factory=dict)
    optional_requests: Collection[str] = ()
    request_headers: Mapping[str, str] = field(default_factory=dict)
    algorithms: Collection[str] = ("RS256",)
    id_token: bool = True
    authorize_parameters: Mapping[str, str] = field(default_factory=dict)
    consent_parameters: Mapping[str, str] = field(default_factory=dict)
    form_post: bool = False
    iss_parameter: bool = False
    extra: Collection[str] = ()

    def __post_init__(self) -> None:
        """Check the description, so that no flow begins with a provider that cannot end it."""
        check_provider(self.slug)
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.slug):
            raise ConfigurationError("A provider's slug is part of its redirect URI: use a-z, 0-9, '.', '_' and '-'.")
        if not self.clients:
            raise ConfigurationError(f"Provider {self.slug!r} has no client. Pass client_id=... and client_secret=...")
        for name in ("metadata_url", "authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
            check_address(getattr(self, name), field=name)
        for address in self.requests.values():
            check_address(address, field="requests")
        if self.metadata_url is None and (self.authorization_endpoint is None or self.token_endpoint is None):
            raise ConfigurationError(f"Provider {self.slug!r} has neither metadata_url=... nor its endpoints.")
        if self.id_token and self.issuer is None:
            raise ConfigurationError(f"Provider {self.slug!r} has an ID token and so needs issuer=...")
        if not self.algorithms or not ALGORITHMS.issuperset(self.algorithms):
            raise ConfigurationError(f"algorithms=... takes some of {', '.join(sorted(ALGORITHMS))}.")
        if not all(_SCOPE.fullmatch(scope) for scope in self.scopes):
            raise ConfigurationError("scopes=... takes scope tokens: text without white space or quotation marks.")

    @property
    def client(self) -> OAuthClient:
        """The client that a flow uses."""
        return self.clients[0]

    def identity(self, evidence: Evidence) -> ProviderIdentity:
        """Return the identity that the evidence proves.

        Raises:
            EvidenceMissing: The evidence lacks the stable id.
            InvalidIdentity: The id, or another field, is one that no provider gives.
        """
        read = self.describe(evidence)
        return ProviderIdentity(
            provider=self.slug,
            account_id=read.account_id,  # type: ignore[arg-type]  # a whole number becomes its decimal text
            email=read.email,
            email_verified=read.email_verified if self.email_trust is EmailTrust.VERIFIED_FLAG else None,
            issuer=evidence.claims.get("iss", self.issuer),
            display_name=read.display_name,
            claims=evidence.claims or evidence.documents,
        )


def check_address(address: object, *, field: str) -> None:
    """Refuse an address of a provider that is neither https nor on this machine.

    Raises:
        ConfigurationError: The address is another one. It names the field, and not the address.

    Source: RFC 6749, section 3.1.2.1; RFC 8252, section 8.3 (loopback).
    """
    if address is None:
        return
    parts = urlsplit(address) if isinstance(address, str) else None
    secure = parts is not None and parts.scheme == "https" and bool(parts.hostname)
    if parts is None or not (secure or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise ConfigurationError(f"{field}=... must be an https address (or http on this machine, for tests).")


def text_or_none(value: object) -> str | None:
    """Return a claim that is text and not empty, or ``None``."""
    return value if isinstance(value, str) and value else None


def boolean_or_none(value: object) -> bool | None:
    """Return the boolean of a claim that is a boolean, else ``None``: the text ``"false"`` is not a boolean."""
    return value if isinstance(value, bool) else None
