"""A backend that lets its users connect provider accounts: what an application writes, and little more.

The one thing to replace is ``sign_in``, which stands in for however your own users sign in.
"""

import logging
from datetime import UTC, datetime
from typing import Any, assert_never
from urllib.parse import parse_qs

import httpx2
from authlib.integrations.starlette_client import (  # type: ignore[import-untyped]  # Authlib ships no types
    OAuth,
    OAuthError,
)
from joserfc.errors import JoseError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AlreadyOwner,
    Linked,
    OwnershipConflict,
    ProviderIdentity,
    TokenSet,
    Transferred,
    Unlinked,
)

logger = logging.getLogger(__name__)

PROVIDER = "demo"
PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


class NotProven(Exception):
    """The provider did not vouch for a person, or not in an answer to the question that was asked."""


class Backend:
    """Serve the routes around connected accounts.

    Args:
        engine: The application's engine.
        linker: Where links live.
        oauth_client: The provider, as registered with Authlib.
        issuer: The provider's issuer, from configuration.
        origin: Where this backend is reached, from configuration; never from a request's Host header.
    """

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        linker: AccountLinker[int, int],
        oauth_client: Any,  # Authlib ships no types
        issuer: str,
        origin: str,
    ) -> None:
        self._engine = engine
        self._linker = linker
        self._oauth_client = oauth_client
        self._issuer = issuer
        self._callback_url = f"{origin}/callback"
        self._settings_url = f"{origin}/settings/accounts"

    async def sign_in(self, request: Request) -> Response:
        """Sign a user in to *this* backend. Replace it: a real one asks for proof."""
        request.session.clear()  # nothing begun by whoever sat here before may be finished by this user
        request.session["user_id"] = request.path_params["user_id"]
        return _redirect(self._settings_url)

    async def connect(self, request: Request) -> Response:
        """Send the signed-in user to the provider. A POST: no other site's link or image starts it."""
        user_id = request.session.get("user_id")
        if user_id is None:
            return Response("Sign in first.", status_code=401)
        request.session["connecting"] = user_id
        response: Response = await self._oauth_client.authorize_redirect(request, self._callback_url)
        return response

    async def callback(self, request: Request) -> Response:
        """Link the account that the provider vouches for to the user who asked for it."""
        user_id = request.session.get("user_id")
        if user_id is None or request.session.get("connecting") != user_id:
            return self._failed("not_started_here")  # somebody else began this flow
        try:
            identity, tokens = await self._proven(request)
            outcome = await self._linker.link(self._engine, user_id=user_id, identity=identity, credentials=tokens)
        except NotProven:
            return self._failed("not_proven")
        except AccountLinkError as error:
            logger.warning("linking for user %s failed: %s", user_id, error.code)
            return self._failed(error.code)
        del request.session["connecting"]

        match outcome:
            case Linked(account=account, change=change):
                logger.info("user %s: link %s %s", user_id, account.id, change.value)
                request.session["notice"] = change.value
            case OwnershipConflict():
                logger.info("user %s: the account is linked to user %s", user_id, outcome.owner_id)
            case _:
                assert_never(outcome)
        return _redirect(outcome.redirect_url(self._settings_url))

    async def disconnect(self, request: Request) -> Response:
        """Unlink one of the signed-in user's accounts; another user's is not found."""
        user_id = request.session.get("user_id")
        if user_id is None:
            return Response("Sign in first.", status_code=401)
        try:
            outcome = await self._linker.unlink(self._engine, user_id=user_id, link_id=request.path_params["link_id"])
        except AccountLinkError as error:
            return self._failed(error.code)
        match outcome:
            case Unlinked(account=account):
                logger.info("user %s: link %s disconnected", user_id, account.id)
                request.session["notice"] = outcome.code
            case _:
                assert_never(outcome)
        return _redirect(self._settings_url)

    async def take_over(self, request: Request) -> Response:
        """Give the signed-in user the account of a conflict, once they have confirmed that they want it.

        The page's script sends the token from the address's fragment in the body. A POST: no preview of a link, and no
        other site (the session's cookie is SameSite), moves anything.
        """
        user_id = request.session.get("user_id")
        if user_id is None:
            return Response("Sign in first.", status_code=401)
        sent = parse_qs((await request.body()).decode("ascii", "replace"))
        [token, *_] = sent.get("transfer_token", [""])
        try:
            outcome = await self._linker.transfer(self._engine, token, user_id=user_id)
        except AccountLinkError as error:
            return self._failed(error.code)
        match outcome:
            case Transferred(account=account, previous_owner_id=former):
                logger.info("user %s: link %s taken over from user %s", user_id, account.id, former)
            case AlreadyOwner(account=account):
                logger.info("user %s: link %s is theirs already", user_id, account.id)
            case _:
                assert_never(outcome)
        request.session["notice"] = outcome.code
        return _redirect(outcome.redirect_url(self._settings_url))

    async def settings(self, request: Request) -> Response:
        """Show the signed-in user's accounts; a real backend has a page here."""
        user_id = request.session.get("user_id")
        if user_id is None:
            return Response("Sign in first.", status_code=401)
        accounts = await self._linker.accounts(self._engine, user_id=user_id)
        return JSONResponse(
            {
                "notice": request.session.pop("notice", None),
                "accounts": [{"id": a.id, "provider": a.provider, "email": a.email} for a in accounts],
            },
            headers=PRIVATE,
        )

    async def _proven(self, request: Request) -> tuple[ProviderIdentity, TokenSet]:
        """Return the identity that the provider vouches for, and the tokens that came with it.

        Raises:
            NotProven: The user declined, the answer came from another issuer (RFC 9207), state, nonce or
                PKCE did not fit, or the ID token is not a valid one for this application. The
                provider's text about it is dropped: every visitor can put text into this URL.
        """
        if request.query_params.get("iss") != self._issuer:
            raise NotProven
        claims_options = {
            "iss": {"essential": True, "value": self._issuer},
            # Authlib alone lets another audience pass when the token's azp names this client.
            "aud": {"essential": True, "value": self._oauth_client.client_id},
        }
        try:
            token = await self._oauth_client.authorize_access_token(request, claims_options=claims_options)
        except (OAuthError, JoseError, httpx2.HTTPError) as refusal:
            logger.info("the provider's answer was refused: %s", type(refusal).__name__)
            raise NotProven from None
        claims = token.get("userinfo")
        if claims is None:
            raise NotProven
        identity = ProviderIdentity(
            provider=PROVIDER,
            account_id=claims["sub"],
            email=claims.get("email"),
            email_verified=claims.get("email_verified"),
            issuer=claims["iss"],
            display_name=claims.get("name"),
        )
        return identity, TokenSet.from_response(token, received_at=datetime.now(UTC))

    def _failed(self, code: str) -> Response:
        return _redirect(f"{self._settings_url}?error={code}")


def _redirect(url: str) -> Response:
    return RedirectResponse(url, status_code=303, headers=PRIVATE)


def create_app(backend: Backend, *, session_secret: str) -> Starlette:
    """Return the ASGI app: the routes, behind a signed session cookie that this host alone can set."""
    return Starlette(
        routes=[
            Route("/sign-in/{user_id:int}", backend.sign_in, methods=["POST"]),
            Route("/connect", backend.connect, methods=["POST"]),
            Route("/callback", backend.callback),
            Route("/disconnect/{link_id:int}", backend.disconnect, methods=["POST"]),
            Route("/take-over", backend.take_over, methods=["POST"]),
            Route("/settings/accounts", backend.settings),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=session_secret,
                session_cookie="__Host-session",
                https_only=True,
                same_site="lax",
            )
        ],
    )


def register_provider(
    *, issuer: str, client_id: str, client_secret: str, transport: httpx2.AsyncBaseTransport | None = None
) -> Any:  # Authlib ships no types
    """Register the provider with Authlib; only the demo, with a provider of its own, needs ``transport``."""
    return OAuth().register(
        PROVIDER,
        client_id=client_id,
        client_secret=client_secret,
        server_metadata_url=f"{issuer}/.well-known/openid-configuration",
        client_kwargs={
            "scope": "openid email profile offline_access",
            "code_challenge_method": "S256",  # without it Authlib sends no PKCE at all
            "transport": transport,
        },
    )
