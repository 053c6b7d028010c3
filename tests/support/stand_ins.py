"""Stand-ins for providers that need the network: the fake provider, at their addresses and with their habits.

A preset is used as it is. Each habit is a fact of the provider's documentation; ``documented.py`` has the pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from accountlink.testing.fake_provider import FakeProvider
from tests.support.flows import Hosts

CLIENT_ID: Final = "the client id"
CLIENT_SECRET: Final = "the client secret"
_ENTRA: Final = "https://login.microsoftonline.com"


class SignsWithRsa(FakeProvider):
    """A fake provider whose ID tokens have RSA signatures, which is all that these providers have."""

    def __init__(self, *, metadata: Mapping[str, Any], **given: Any) -> None:
        told = {
            "id_token_signing_alg_values_supported": ["RS256"],
            "authorization_response_iss_parameter_supported": False,
        }
        super().__init__(client_id=CLIENT_ID, client_secret=CLIENT_SECRET, metadata=told | dict(metadata), **given)
        self._key = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/jwks"):
            self.forge_next("jwks", lambda _: {"keys": [self._key.as_dict(private=False)]})
        if scope["path"].endswith("/token"):
            self.forge_next_id_token(
                lambda claims: jwt.encode({"alg": "RS256", "kid": "rsa"}, self.claims(claims), self._key)
            )
        await super().__call__(scope, receive, send)

    def claims(self, claims: dict[str, Any]) -> dict[str, Any]:
        """Return the claims as this provider writes them."""
        return claims


class Google(SignsWithRsa):
    """Google: a refresh token comes with ``access_type=offline``, at the first consent or with ``prompt=consent``."""

    def __init__(self, redirect_uris: Iterable[str]) -> None:
        super().__init__(issuer="https://accounts.google.com", redirect_uris=redirect_uris, metadata={})
        self._agreed = False
        self._refresh_tokens = 0
        self.unticked: set[str] = set()
        """The scopes that the user does not tick on the consent screen."""
        self._asked: set[str] = set()

    @property
    def network(self) -> Hosts:
        return Hosts({"accounts.google.com": self})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = dict(parse_qsl(scope["query_string"].decode()))
        if scope["path"] == "/authorize":
            self._asked = set(query["scope"].split())
            offline = query.get("access_type") == "offline"
            consented = not self._agreed or query.get("prompt") == "consent"
            self._agreed = True
            self.forge_next("token", lambda answer: self._answer(answer, refresh=offline and consented))
        await super().__call__(scope, receive, send)

    def _answer(self, answer: dict[str, Any], *, refresh: bool) -> dict[str, Any]:
        told = answer | {"scope": " ".join(sorted(self._asked - self.unticked))}
        if refresh:
            self._refresh_tokens += 1
            told["refresh_token"] = f"refresh-{self._refresh_tokens}"
        return told


class Entra(SignsWithRsa):
    """Entra for work accounts of several tenants: each token names the issuer of the account's own tenant."""

    def __init__(self, redirect_uris: Iterable[str], *, authority: str = "organizations") -> None:
        issuer = "{tenantid}" if authority == "organizations" else authority
        super().__init__(
            issuer=f"{_ENTRA}/{authority}/v2.0",
            redirect_uris=redirect_uris,
            metadata={"issuer": f"{_ENTRA}/{issuer}/v2.0"},
        )

    def add_member(self, oid: str, tid: str, *, email: str) -> str:
        """Add a user of a tenant, with the address that the tenant's administrator wrote, and return the subject."""
        subject = f"{oid}-{tid}"
        self.add_account(subject, email=email, email_verified=None, claims={"oid": oid, "tid": tid, "ver": "2.0"})
        return subject

    @property
    def network(self) -> Hosts:
        return Hosts({"login.microsoftonline.com": self})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/authorize"):
            self.forge_next("authorize", lambda answer: {name: answer[name] for name in answer if name != "iss"})
        await super().__call__(scope, receive, send)

    def claims(self, claims: dict[str, Any]) -> dict[str, Any]:
        return claims | {"iss": f"{_ENTRA}/{claims['tid']}/v2.0"}


class GitHub(FakeProvider):
    """A GitHub App whose user tokens expire, and the part of GitHub's API that says who the user is."""

    def __init__(self, redirect_uris: Iterable[str]) -> None:
        super().__init__(
            issuer="https://github.com/login/oauth",
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            redirect_uris=redirect_uris,
        )
        self.add_account("1")
        self.sign_in_as("1")
        self.user: dict[str, Any] = {}
        self.emails: list[dict[str, Any]] | None = None
        self.token: dict[str, Any] = {}

    @property
    def network(self) -> Hosts:
        api = Starlette(routes=[Route("/user", self._user), Route("/user/emails", self._emails)])
        return Hosts({"github.com": self, "api.github.com": api})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/access_token"):
            scope = {**scope, "path": "/login/oauth/token"}
            self.forge_next("token", lambda _: self.token)
        await super().__call__(scope, receive, send)

    async def _user(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.token['access_token']}"
        return JSONResponse(self.user)

    async def _emails(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.token['access_token']}"
        if self.emails is None:  # the app lacks the permission
            return JSONResponse({"message": "Resource not accessible by integration"}, status_code=403)
        return JSONResponse(self.emails)


async def agree(network: Hosts, url: str) -> dict[str, str]:
    """Agree at the provider, and return the parameters with which it sends the browser back."""
    async with httpx2.AsyncClient(transport=network) as browser:
        answer = await browser.get(url)
    assert answer.status_code == 302, answer.text
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))
