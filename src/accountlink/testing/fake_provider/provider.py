"""FakeProvider: the ASGI app, and what a test tells it."""

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from accountlink.providers.client import RefreshBehaviour
from accountlink.testing.fake_provider.accounts import Account, Client, Directory
from accountlink.testing.fake_provider.endpoints import Endpoints
from accountlink.testing.fake_provider.grants import GrantBook
from accountlink.testing.fake_provider.protocol import ProtocolError
from accountlink.testing.fake_provider.script import (
    Endpoint,
    Failure,
    Forge,
    Forgeable,
    ForgeIdToken,
    Lost,
    Script,
)
from accountlink.testing.fake_provider.signing import Signer

SINGLE_USE = RefreshBehaviour(rotates=True, grace=timedelta(0))
"""The strictest behaviour of a provider: a refresh token works once."""
Handler = Callable[[Request], Awaitable[Response]]


def _now() -> datetime:
    return datetime.now(UTC)


class FakeProvider:
    """Run an OpenID Connect provider in the test's own process, without a network.

    Reach it through ``httpx2.ASGITransport(app=provider)``. Two providers share nothing.

    Args:
        issuer: The issuer, also the address that its endpoints are under; no trailing slash.
        client_id: The first client. More with ``add_client``.
        client_secret: Its secret; a random one by default, readable as ``provider.client_secret``.
        redirect_uris: Its redirect URIs. They are compared character by character.
        metadata: Overrides in the discovery document, for a provider that lies about itself.
        token_lifetime: How long access and ID tokens live.
        clock: Returns the aware current time.
        behaviour: How refresh tokens are treated. By default each works once, and a second use ends the grant.
        secret: Lets a provider that is made anew with this secret redeem the codes and the refresh tokens of the one
            before, as after a restart; without it no other provider can. What was spent or had ended is forgotten.

    Attributes:
        calls: How often each path was asked, such as ``calls["/token"]``; failed requests count too.
        signer: Signs ID tokens: ``signer.rotate()`` for a new key, ``signer.sign(claims, header)`` for a
            forgery with the real key, ``signer.public_jwks()`` for the keys.
    """

    def __init__(
        self,
        *,
        issuer: str = "https://idp.example",
        client_id: str = "demo-client",
        client_secret: str | None = None,
        redirect_uris: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        token_lifetime: timedelta = timedelta(hours=1),
        clock: Callable[[], datetime] = _now,
        behaviour: RefreshBehaviour = SINGLE_USE,
        secret: str | None = None,
    ) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self.client_secret = client_secret if client_secret is not None else secrets.token_urlsafe(24)
        self.calls: Counter[str] = Counter()
        self.signer = Signer()
        self._directory = Directory()
        self._script = Script()
        self._grants = GrantBook(clock=clock, access_token_lifetime=token_lifetime, behaviour=behaviour, secret=secret)
        self._endpoints = Endpoints(
            issuer=issuer,
            metadata=metadata or {},
            directory=self._directory,
            signer=self.signer,
            script=self._script,
            grants=self._grants,
            clock=clock,
            token_lifetime=token_lifetime,
        )
        self._app = self._routes()
        self.add_client(client_id, client_secret=self.client_secret, redirect_uris=redirect_uris)

    def __repr__(self) -> str:
        return f"FakeProvider(issuer={self.issuer!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI."""
        await self._app(scope, receive, send)

    @property
    def server_metadata_url(self) -> str:
        """The URL of the discovery document."""
        return f"{self.issuer}/.well-known/openid-configuration"

    def add_client(self, client_id: str, *, client_secret: str, redirect_uris: Iterable[str]) -> None:
        """Register an application."""
        self._directory.clients[client_id] = Client(
            client_id=client_id, client_secret=client_secret, redirect_uris=set(redirect_uris)
        )

    def add_account(
        self,
        subject: str,
        *,
        email: str | None = None,
        email_verified: bool | str | None = True,
        name: str | None = None,
        claims: Mapping[str, object] | None = None,
    ) -> Account:
        """Add a person.

        Args:
            subject: The provider's lasting id of the account, its ``sub``.
            email: The address, released under the scope ``email``.
            email_verified: Released beside it; ``None`` leaves the claim out, text is released as text.
            name: Released under the scope ``profile``.
            claims: Further claims, always released; they win over the others.

        Raises:
            ValueError: There is such an account already.
        """
        if subject in self._directory.accounts:
            raise ValueError(f"there is an account {subject!r} already; use change_account")
        account = Account(subject=subject, email=email, email_verified=email_verified, name=name, claims=claims or {})
        self._directory.accounts[subject] = account
        return account

    def change_account(self, subject: str, **changes: Any) -> Account:
        """Change fields of an account, such as ``email=``. The subject stays.

        Raises:
            ValueError: There is no such account.
        """
        account = replace(self._known(subject), **changes)
        self._directory.accounts[subject] = account
        return account

    def sign_in_as(self, subject: str | None) -> None:
        """Let this person, or with ``None`` no person, answer every authorization request that has no ``login_hint``.

        Raises:
            ValueError: There is no such account.
        """
        self._directory.signed_in = self._known(subject).subject if subject is not None else None

    def revoke_consent(self, subject: str) -> None:
        """End all grants of a person, as people do in the provider's own settings.

        Raises:
            ValueError: There is no such account.
        """
        self._grants.end_all(self._known(subject).subject)

    def fail_next(
        self,
        endpoint: Endpoint,
        *,
        status: int | None = None,
        error: str | None = None,
        description: str = "planned by the test",
        lost: Lost | None = None,
        retry_after: str | None = None,
        times: int = 1,
    ) -> None:
        """Let the next requests to an endpoint fail.

        Args:
            endpoint: Such as ``"token"``.
            status: Answer with this status.
            error: Answer with this OAuth error; at ``"authorize"`` it comes by redirect.
            description: The error's description, whatever a hostile provider would put there.
            lost: Break the connection instead, before or after the work: the client gets
                ``httpx2.ReadError`` in both cases.
            retry_after: Send this header ``Retry-After`` with the status.
            times: How many requests.

        Raises:
            ValueError: An unknown endpoint, or not exactly one kind of failure.
        """
        failure = Failure(status=status, error=error, description=description, lost=lost, retry_after=retry_after)
        self._script.plan_failure(endpoint, failure, times=times)

    def hold_next(self, endpoint: Endpoint, *, until: Callable[[], Awaitable[object]]) -> None:
        """Hold the next request to an endpoint until this has been awaited, such as ``event.wait``."""
        self._script.plan_wait(endpoint, until)

    def forge_next(self, answer: Forgeable, forge: Forge) -> None:
        """Rewrite the next good answer: ``forge`` gets its parameters or JSON and returns what is sent."""
        self._script.plan_forgery(answer, forge)

    def forge_next_id_token(self, forge: ForgeIdToken) -> None:
        """Rewrite the next ID token: ``forge`` gets the claims and returns claims to sign, or a token."""
        self._script.plan_id_token_forgery(forge)

    def _known(self, subject: str) -> Account:
        account = self._directory.accounts.get(subject)
        if account is None:
            raise ValueError(f"no account {subject!r} at this provider: add_account first")
        return account

    def _routes(self) -> Starlette:
        route, endpoints = self._route, self._endpoints
        return Starlette(
            routes=[
                route("/.well-known/openid-configuration", "configuration", endpoints.configuration, ["GET"]),
                route("/jwks", "jwks", endpoints.jwks, ["GET"]),
                route("/authorize", "authorize", endpoints.authorize, ["GET", "POST"]),
                route("/token", "token", endpoints.token, ["POST"]),
                route("/userinfo", "userinfo", endpoints.userinfo, ["GET", "POST"]),
                route("/revoke", "revoke", endpoints.revoke, ["POST"]),
                route("/introspect", "introspect", endpoints.introspect, ["POST"]),
            ]
        )

    def _route(self, path: str, endpoint: Endpoint, handler: Handler, methods: list[str]) -> Route:
        async def scripted(request: Request) -> Response:
            self.calls[path] += 1
            await self._script.wait(endpoint)
            failure = self._script.next_failure(endpoint)
            try:
                return await _answer(endpoint, request, handler, failure)
            except ProtocolError as refusal:
                return refusal.as_json()

        return Route(urlsplit(self.issuer).path + path, scripted, methods=methods)


async def _answer(endpoint: Endpoint, request: Request, handler: Handler, failure: Failure | None) -> Response:
    """Answer as planned, or else as the endpoint does."""
    if failure is None:
        return await handler(request)
    if failure.lost is not None:
        if failure.lost is Lost.REPLY:
            with suppress(ProtocolError):
                await handler(request)
        raise httpx2.ReadError("connection reset by peer, as planned by the test")
    if failure.error is None:
        headers = None if failure.retry_after is None else {"Retry-After": failure.retry_after}
        return PlainTextResponse("planned by the test", status_code=failure.status or 500, headers=headers)
    planned = ProtocolError(failure.error, failure.description, status=failure.status or 400)
    if endpoint != "authorize":
        raise planned
    request.state.planned_error = planned  # the redirect needs the request's own redirect_uri and state
    return await handler(request)
