"""A backend that lets its users connect provider accounts: what an application writes, and little more.

The one thing to replace is ``sign_in``, which stands in for however your own users sign in.
"""

from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Lifespan

from accountlink import AccountLinker
from accountlink.cli.demo.models import User, flows
from accountlink.providers import Provider
from accountlink.web import LinkFlow
from accountlink.web.starlette import link_routes

ACCOUNTS = "/accounts"
CALLBACK = f"{ACCOUNTS}/callback"
SETTINGS = "/settings/accounts"
PAGE = Path(__file__).parent / "page"
Endpoint = Callable[[Request], Awaitable[Response]]
DIALOG = files("accountlink.web").joinpath("dialog/conflict-dialog.html")


def signed_in(request: Request) -> int | None:
    """Return the signed-in user, whom the session's cookie names."""
    return request.session.get("user_id")


def own_forms_only(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that refuses the forms of other sites: they could sign a visitor in as somebody else."""

    async def checked(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return Response("This form is on another site.", status_code=403)
        return await endpoint(request)

    return checked


async def home(_: Request) -> Response:
    """Lead to the one page that there is."""
    return RedirectResponse(SETTINGS, status_code=303)


def page_headers(providers: Sequence[Provider]) -> dict[str, str]:
    """Return the headers of the page: it runs and shows what comes from here, and sends forms here and to providers.

    Browsers hold ``form-action`` against the redirect to the provider, too, which follows the form "connect".
    """
    addresses = sorted({"{0.scheme}://{0.netloc}".format(urlsplit(provider.issuer or "")) for provider in providers})
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        f"form-action 'self' {' '.join(addresses)}; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


def create_app(
    *,
    engine: AsyncEngine,
    linker: AccountLinker[int, int],
    providers: Sequence[Provider],
    origin: str,
    secret: str,
    transport: httpx2.AsyncBaseTransport | None = None,
    more: Sequence[BaseRoute] = (),
    lifespan: Lifespan[Starlette] | None = None,
) -> Starlette:
    """Return the ASGI app.

    Args:
        engine: The application's engine.
        linker: Where links live.
        providers: The providers, with this application's clients.
        origin: Where browsers reach this backend, from configuration; never from a request's Host header.
        secret: At least 32 bytes, from a secret store.
        transport: Replaces the network; only the demo, with a provider of its own, needs it.
        more: Further routes of the application.
        lifespan: What runs as long as the application does.
    """
    flow = LinkFlow(
        linker,
        engine,
        providers=providers,
        callback_url=f"{origin}{CALLBACK}",
        page=f"{origin}{SETTINGS}",
        states=flows,
        secrets=[secret],
        transport=transport,
    )
    html = (PAGE / "index.html").read_text("utf-8").replace("CONFLICT_DIALOG", DIALOG.read_text("utf-8"))
    headers = page_headers(providers)

    async def settings(_: Request) -> Response:
        """Show the page. It is one for all users: its script asks the routes for what the user has."""
        return HTMLResponse(html, headers=headers)

    async def sign_in(request: Request) -> Response:
        """Sign a user in. Replace it: a real one asks for proof."""
        async with engine.connect() as connection:
            known = set(await connection.scalars(select(User.id)))
        if request.path_params["user_id"] not in known:
            return Response("There is no such user.", status_code=404)
        request.session.clear()
        request.session["user_id"] = request.path_params["user_id"]
        return RedirectResponse(SETTINGS, status_code=303)

    async def sign_out(request: Request) -> Response:
        """Sign the user out."""
        request.session.clear()
        return RedirectResponse(SETTINGS, status_code=303)

    is_https = origin.startswith("https:")
    return Starlette(
        routes=[
            Route("/", home),
            Route("/sign-in/{user_id:int}", own_forms_only(sign_in), methods=["POST"]),
            Route("/sign-out", own_forms_only(sign_out), methods=["POST"]),
            Route(SETTINGS, settings),
            *link_routes(flow, current_user=signed_in, prefix=ACCOUNTS),
            Mount("/static/accountlink", StaticFiles(packages=[("accountlink.web", "dialog")])),
            Mount("/static", StaticFiles(directory=PAGE / "static")),
            *more,
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=secret,
                # Under its prefix this host alone can set the cookie; browsers take the prefix on https only.
                # Cookies know no port: on localhost its name keeps it apart from those of other applications.
                session_cookie="__Host-session" if is_https else "accountlink-demo-session",
                https_only=is_https,
                same_site="lax",
            )
        ],
        lifespan=lifespan,
    )
