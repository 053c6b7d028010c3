"""Applications that have the routes of a flow, by both frameworks, and the browsers of their users."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx2
from fastapi import FastAPI, Request
from starlette.applications import Starlette

from accountlink.web import Impersonated, LinkFlow
from accountlink.web.fastapi import link_router
from accountlink.web.openapi import described
from accountlink.web.routes import ROUTES
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


def signed_in_by_cookie(request: Request) -> int | None:
    """Return the user of a session cookie, and look at nothing else."""
    user = request.cookies.get(SESSION, "")
    return int(user) if user.isdecimal() else None


def named(request: Request) -> str:
    """Return a name of the user, with markup in it."""
    return f"<b>User</b> {request.cookies.get(SESSION)}"


async def signed_in_later(request: Request) -> Any:
    """Return the user as a coroutine does that asks a database."""
    return signed_in(request)


async def named_later(request: Request) -> str:
    """Return the user's name as such a coroutine does."""
    return named(request)


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
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app),
        base_url=base,
        cookies=cookies,
        headers=HTML | SAME_ORIGIN | headers,
        event_hooks={"response": [is_described]},
    )


async def is_described(answer: httpx2.Response) -> None:
    """Fail for an answer that OpenAPI does not describe: its status, its media type, its members, or its code."""
    path = answer.request.url.path.removeprefix("/accounts")
    routes = [each for each in ROUTES if re.fullmatch(re.sub(r"{\w+}", "[^/]+", each.path) + "/?", path)]
    route = next((each for each in routes if each.method == answer.request.method), None)
    if route is None or answer.status_code in {405, 418}:  # a framework's, or the application's own
        return
    described_answer = described(route, [])["responses"][answer.status_code]
    if "content" not in described_answer:
        assert ("location" in answer.headers, b"") == (True, await answer.aread())
        return
    media = answer.headers["content-type"].partition(";")[0]
    schema = described_answer["content"][media]["schema"]
    if media != "text/html":
        _conforms(json.loads(await answer.aread()), schema)


def _conforms(value: Any, schema: Mapping[str, Any]) -> None:
    if schema.get("type") == "array":
        for each in value:
            _conforms(each, schema["items"])
        return
    assert set(schema["required"]) <= set(value) <= set(schema["properties"])
    for name, each in schema["properties"].items():
        assert name not in value or value[name] in each.get("enum", [value[name]])


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
