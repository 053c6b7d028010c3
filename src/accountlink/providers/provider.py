"""Describe an OAuth provider: where its endpoints are, and where the stable id of an account comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from accountlink.errors import ConfigurationError
from accountlink.providers.addresses import check_address
from accountlink.providers.client import OAuthClient
from accountlink.values.identity import ProviderIdentity
from accountlink.values.text import check_provider

_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""A scope token, by RFC 6749, section 3.3."""

_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ADDRESSES: Final = (
    "issuer", "metadata_url", "authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint",
)  # fmt: skip
_LISTS: Final = ("clients", "scopes", "tenants", "optional_requests", "algorithms", "extra")
"""The fields of a provider that hold several values."""


class Userinfo(Enum):
    """Say when a flow asks the userinfo endpoint of OpenID Connect."""

    WHEN_MISSING = "when_missing"
    """If a scope asks for claims that the ID token lacks."""
    NEVER = "never"
    """The ID token has all that a preset reads, or there is no such endpoint."""


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
        userinfo: When the userinfo endpoint is asked.
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
        for name in _LISTS:
            object.__setattr__(self, name, _several(getattr(self, name), field=name))
        slug: object = self.slug
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            raise ConfigurationError("A provider's slug is part of its redirect URI: use a-z, 0-9, '.', '_' and '-'.")
        check_provider(slug)
        if not self.clients:
            raise ConfigurationError(f"Provider {self.slug!r} has no client. Pass client_id=... and client_secret=...")
        for name in _ADDRESSES:
            check_address(getattr(self, name), field=name)
        for address in self.requests.values():
            check_address(address, field="requests")
        if self.metadata_url is None and (self.authorization_endpoint is None or self.token_endpoint is None):
            raise ConfigurationError(f"Provider {self.slug!r} has neither metadata_url=... nor its endpoints.")
        if self.id_token and self.issuer is None:
            raise ConfigurationError(f"Provider {self.slug!r} has an ID token and so needs issuer=...")
        if not self.algorithms or not ALGORITHMS.issuperset(self.algorithms):
            raise ConfigurationError(f"algorithms=... takes some of {', '.join(sorted(ALGORITHMS))}.")
        scopes: Iterable[object] = self.scopes
        if not all(isinstance(scope, str) and _SCOPE.fullmatch(scope) for scope in scopes):
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
        trusted = self.email_trust is EmailTrust.VERIFIED_FLAG
        return ProviderIdentity(
            provider=self.slug,
            account_id=read.account_id,  # type: ignore[arg-type]  # a whole number becomes its decimal text
            email=read.email,
            email_verified=read.email_verified if read.email is not None and trusted else None,
            issuer=evidence.claims.get("iss", self.issuer),
            display_name=read.display_name,
            claims=evidence.claims or evidence.documents,
        )


def text_or_none(value: object) -> str | None:
    """Return a claim that is text and not empty, or ``None``."""
    return value if isinstance(value, str) and value else None


def boolean_or_none(value: object) -> bool | None:
    """Return the boolean of a claim that is a boolean, else ``None``: the text ``"false"`` is not a boolean."""
    return value if isinstance(value, bool) else None


def document_of(evidence: Evidence, name: str) -> Mapping[str, Any]:
    """Return an answer that is a JSON object; an empty one where there is none, or another kind of answer."""
    document = evidence.documents.get(name)
    return document if isinstance(document, Mapping) else {}


def joined_id(account: object, container: object) -> str:
    """Return the id of an account that is unique only within a container (a tenant, a workspace): both, with a dot.

    Raises:
        EvidenceMissing: One of them is missing, is not text, or holds a dot, so that two pairs could look alike.
    """
    for part in (account, container):
        if not isinstance(part, str) or not part or "." in part:
            raise EvidenceMissing
    return f"{account}.{container}"


def scopes_with(*needed: str, scopes: Collection[str]) -> tuple[str, ...]:
    """Return the scopes that an application asks for, after those without which there is no stable id.

    Raises:
        ConfigurationError: ``scopes`` is one text.
    """
    return tuple(dict.fromkeys((*needed, *_several(scopes, field="scopes"))))


def _several(values: object, *, field: str) -> tuple[Any, ...]:
    """Return the values of a field that holds several: nothing that the caller changes later changes them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigurationError(f"{field}=... is a list of texts, and not one text.")
    return tuple(values)
