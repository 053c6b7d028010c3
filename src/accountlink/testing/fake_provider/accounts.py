"""Hold the accounts that may sign in at the fake provider, and the applications that may ask."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import unquote_plus


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Describe one person at the provider: ``subject`` never changes, everything else may.

    ``email_verified`` is a boolean at an honest provider. Text such as ``"false"`` and ``None`` (the claim is
    left out) stand for the providers that are not.
    """

    subject: str
    email: str | None = None
    email_verified: bool | str | None = True
    name: str | None = None
    claims: Mapping[str, object] = field(default_factory=dict)

    def released(self, scopes: AbstractSet[str]) -> dict[str, object]:
        """Return the claims about this person that the granted scopes release.

        Source: OpenID Connect Core 1.0, section 5.4.
        """
        claims: dict[str, object] = {"sub": self.subject}
        if "email" in scopes and self.email is not None:
            claims["email"] = self.email
            if self.email_verified is not None:
                claims["email_verified"] = self.email_verified
        if "profile" in scopes and self.name is not None:
            claims["name"] = self.name
        return claims | dict(self.claims)


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Describe one registered application. Its redirect URIs are compared character by character."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uris: set[str] = field(default_factory=set)


class Directory:
    """Hold the accounts, the clients, and the person who is signed in at the provider in the one browser it knows."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.clients: dict[str, Client] = {}
        self.signed_in: str | None = None

    def choose(self, *, login_hint: str | None, silent: bool) -> Account | None:
        """Return the account that answers an authorization request, or ``None`` when none does.

        Args:
            login_hint: A subject or an e-mail. It chooses, as a person would at the provider's own page.
            silent: ``prompt=none``, so that only the person already signed in may answer.
        """
        if login_hint is None:
            return self.accounts.get(self.signed_in) if self.signed_in is not None else None
        hinted = next((a for a in self.accounts.values() if login_hint in {a.subject, a.email}), None)
        if silent and hinted is not None and hinted.subject != self.signed_in:
            return None
        return hinted

    def authenticate(self, client_id: str, client_secret: str) -> Client | None:
        """Return the client whose id and secret these are.

        RFC 6749 section 2.3.1 wants both form-encoded inside a Basic header; many clients, Authlib among
        them, send them as they are. Both spellings are taken.
        """
        for spelt_id, spelt_secret in (
            (client_id, client_secret),
            (unquote_plus(client_id), unquote_plus(client_secret)),
        ):
            client = self.clients.get(spelt_id)
            if client is not None and compare_digest(client.client_secret.encode(), spelt_secret.encode()):
                return client
        return None
