"""A backend that lets its users connect provider accounts: what an application writes, and little more.

The one thing to replace is ``sign_in``, which stands in for however your own users sign in.
"""

from collections.abc import Sequence

import httpx2
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from accountlink import AccountLinker
from accountlink.cli.demo.models import flows
from accountlink.providers import Provider
from accountlink.web import LinkFlow
from accountlink.web.starlette import link_routes

ACCOUNTS = "/accounts"
SETTINGS = "/settings/accounts"


def signed_in(request: Request) -> int | None:
    """Return the signed-in user, whom the session's cookie names."""
    return request.session.get("user_id")


async def sign_in(request: Request) -> Response:
    """Sign a user in. Replace it: a real one asks for proof."""
    request.session.clear()
    request.session["user_id"] = request.path_params["user_id"]
    return RedirectResponse(SETTINGS, status_code=303)


def create_app(
    *,
    engine: AsyncEngine,
    linker: AccountLinker[int, int],
    providers: Sequence[Provider],
    origin: str,
    secret: str,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Starlette:
    """Return the ASGI app.

    Args:
        engine: The application's engine.
        linker: Where links live.
        providers: The providers, with this application's clients.
        origin: Where browsers reach this backend, from configuration; never from a request's Host header.
        secret: At least 32 bytes, from a secret store.
        transport: Replaces the network; only the demo, with a provider of its own, needs it.
    """
    flow = LinkFlow(
        linker,
        engine,
        providers=providers,
        callback_url=f"{origin}{ACCOUNTS}/callback",
        page=f"{origin}{SETTINGS}",
        states=flows,
        secrets=[secret],
        transport=transport,
    )

    async def settings(request: Request) -> Response:
        """Show the signed-in user's accounts; a real backend has a page here."""
        user_id = signed_in(request)
        if user_id is None:
            return Response("Sign in first.", status_code=401)
        accounts = await linker.accounts(engine, user_id=user_id)
        shown = [{"id": account.id, "provider": account.provider, "email": account.email} for account in accounts]
        return JSONResponse(shown, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})

    return Starlette(
        routes=[
            Route("/sign-in/{user_id:int}", sign_in, methods=["POST"]),
            Route(SETTINGS, settings),
            *link_routes(flow, current_user=signed_in, prefix=ACCOUNTS),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=secret,
                session_cookie="__Host-session",  # this host alone can set it
                https_only=True,
                same_site="lax",
            )
        ],
    )
