"""Applications that have the routes of a flow, by both frameworks, and the browsers of their users."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx2
from fastapi import FastAPI, Request
from starlette.applications import Starlette

from accountlink.web import Impersonated, LinkFlow
from accountlink.web.fastapi import link_router
from accountlink.web.starlette import link_routes
from tests.support.flows import APP, Stage

FRAMEWORKS: Final = ("fastapi", "starlette")
SESSION: Final = "session"
"""The application's own cookie, which says who is signed in."""
API: Final = {"accept": "application/json"}
HTML: Final = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SAME_ORIGIN: Final = {"sec-fetch-site": "same-origin", "origin": APP}


def signed_in(request: Request) -> Any:
    """Return the user of a bearer token or a session cookie; "as-1" is an administrator who acts for user 1."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    name = token if scheme == "Bearer" else request.cookies.get(SESSION, "")
    acting = name.startswith("as-")
    user = name.removeprefix("as-")
    if not user.isdecimal():
        return None
    return Impersonated(user_id=int(user)) if acting else int(user)


def named(request: Request) -> str:
    """Return a name of the user, with markup in it."""
    return f"<b>User</b> {request.cookies.get(SESSION)}"


def application(framework: str, flow: LinkFlow[Any, Any], **options: Any) -> Any:
    """Make an application with the routes of a flow under ``/accounts``."""
    options = {"current_user": signed_in} | options
    if framework == "starlette":
        return Starlette(routes=link_routes(flow, prefix="/accounts", **options))
    app = FastAPI()
    app.include_router(link_router(flow, **options), prefix="/accounts")
    return app


def browser_of(app: Any, user: str | None = "1", *, base: str = APP, **headers: str) -> httpx2.AsyncClient:
    """Open a browser, or an API client, in which a user is signed in."""
    cookies = {} if user is None else {SESSION: user}
    transport = httpx2.ASGITransport(app=app)
    return httpx2.AsyncClient(transport=transport, base_url=base, cookies=cookies, headers=HTML | SAME_ORIGIN | headers)


def api_client(app: Any, user: str | None = "1", **headers: str) -> httpx2.AsyncClient:
    """Open an API client in which a user is signed in by a cookie."""
    return browser_of(app, user, **API | headers)


def query_of(url: str) -> dict[str, str]:
    """Return the parameters of an address."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


async def leave(client: httpx2.AsyncClient, slug: str = "acme", **fields: str) -> str:
    """Begin a flow, and return the provider's address."""
    answer = await client.post(f"/accounts/connect/{slug}", data=fields)
    if answer.headers.get("location"):
        return str(answer.headers["location"])
    return str(answer.json()["url"])


async def come_back(
    stage: Stage, client: httpx2.AsyncClient, url: str, slug: str = "acme", **more: str
) -> httpx2.Response:
    """Agree at the provider, and follow its redirect to the callback."""
    parameters = await stage.consent(url)
    return await client.get(f"/accounts/callback/{slug}", params=parameters | more)


async def connected(stage: Stage, client: httpx2.AsyncClient, slug: str = "acme", **fields: str) -> httpx2.Response:
    """Go through a whole flow."""
    return await come_back(stage, client, await leave(client, slug, **fields), slug)
