"""The page of a ticket, and a provider that answers by a cross-site POST, in Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
import pytest_asyncio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from playwright.async_api import Browser, BrowserContext, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.providers import oidc
from accountlink.testing.fake_provider import FakeProvider
from accountlink.web import LinkFlow, MemoryFlowStates
from accountlink.web.fastapi import link_router
from tests.support.flows import FLOW_SECRETS
from tests.support.models import EXCLUSIVE, SECRETS, make_tables
from tests.support.serving import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")
TABLES = make_tables(EXCLUSIVE)
BUTTON = (
    "<!doctype html><title>Settings</title>"
    '<form method="post" action="/accounts/connect/acme"><button>Go</button></form>'
)


def current_user(request: Request) -> int | None:
    user = request.cookies.get("user")
    return None if user is None else int(user)


@dataclass(kw_only=True)
class Place:
    """An application, the provider beside it, and the provider's page that posts an answer."""

    url: str
    flow: LinkFlow[Any, Any]
    posting: dict[str, str]
    """The answer that the provider's page posts to the callback, on another site."""
    elsewhere: str


@pytest_asyncio.fixture(loop_scope="session")
async def place(engine: AsyncEngine) -> AsyncIterator[Place]:
    async with engine.begin() as connection:
        await connection.run_sync(TABLES.metadata.create_all)
    providers: list[FakeProvider] = []
    flows: list[LinkFlow[Any, Any]] = []
    posting: dict[str, str] = {}

    def provider_at(url: str) -> FakeProvider:
        providers.append(FakeProvider(issuer=url))
        return providers[0]

    def application_at(url: str) -> FastAPI:
        provider = providers[0]
        provider.add_client("app", client_secret="s" * 32, redirect_uris=[f"{url}/accounts/callback/acme"])
        provider.add_account("ada", email="ada@example.org")
        provider.sign_in_as("ada")
        flow = LinkFlow(
            TABLES.linker(secrets=SECRETS),
            engine,
            providers=[oidc("acme", issuer=provider.issuer, client_id="app", client_secret="s" * 32)],
            callback_url=f"{url}/accounts/callback",
            page=f"{url}/settings",
            states=MemoryFlowStates(),
            secrets=FLOW_SECRETS,
        )
        flows.append(flow)
        app = FastAPI()
        app.include_router(link_router(flow, current_user=current_user), prefix="/accounts")
        app.add_api_route("/settings", lambda: HTMLResponse(BUTTON), response_model=None)

        def posts() -> HTMLResponse:
            fields = "".join(f'<input type="hidden" name="{k}" value="{escape(v)}">' for k, v in posting.items())
            action = f"{url}/accounts/callback/acme"
            return HTMLResponse(
                f'<title>Other</title><form method="post" action="{action}">{fields}<button>Back</button>'
            )

        app.add_api_route("/posts", posts, response_model=None)
        return app

    async with serve(provider_at), serve(application_at) as url:
        yield Place(url=url, flow=flows[0], posting=posting, elsewhere=url.replace("localhost", "127.0.0.1"))


async def signed_in(chromium: Browser, site: str) -> tuple[BrowserContext, Page]:
    context = await chromium.new_context(base_url=site)
    await context.add_cookies([{"name": "user", "value": "1", "url": site, "sameSite": "Lax"}])
    return context, await context.new_page()


async def test_a_ticket_leads_to_the_provider_and_back(chromium: Browser, place: Place) -> None:
    """The page's strict policy lets its form through the provider's redirects; the browser sends ``Origin: null``."""
    ticket = (await place.flow.ticket(user_id=1, provider="acme")).url
    _, page = await signed_in(chromium, place.url)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    await page.goto(ticket)
    await expect(page.get_by_role("heading")).to_have_text("Connect your acme account")
    async with page.expect_request(ticket) as posted:
        await page.get_by_role("button").click()
    headers = await (await posted.value).all_headers()
    await page.wait_for_url("**/settings?*")
    assert f"{place.url}/settings?connection=success" == page.url
    assert ("POST", "null") == ((await posted.value).method, headers.get("origin"))
    assert [] == [each for each in problems if "Content Security Policy" in each]


async def test_a_cross_site_post_is_bounced_with_the_cookies(chromium: Browser, place: Place) -> None:
    """Lax cookies do not come with the POST of another site, and come with the GET that it is bounced to."""
    context, page = await signed_in(chromium, place.url)
    started = await place.flow.start(user_id=1, provider="acme", browser=None)
    assert started.browser is not None
    await context.add_cookies([
        {"name": "accountlink", "value": started.browser, "url": place.url, "httpOnly": True, "sameSite": "Lax"}
    ])  # fmt: skip
    async with httpx2.AsyncClient() as client:
        answer = await client.get(started.url)
    place.posting.update(parse_qsl(urlsplit(answer.headers["location"]).query))
    await page.goto(f"{place.elsewhere}/posts")
    async with page.expect_request(lambda request: request.method == "POST") as posted:
        await page.get_by_role("button", name="Back").click()
    headers = await (await posted.value).all_headers()
    await page.wait_for_url("**/settings?*")
    assert f"{place.url}/settings?connection=success" == page.url
    assert ("cross-site", None) == (headers["sec-fetch-site"], headers.get("cookie"))


async def test_a_cross_site_post_begins_nothing(chromium: Browser, place: Place) -> None:
    """A page of another site that posts to "connect" is refused by the browser's own word."""
    _, page = await signed_in(chromium, place.url)
    await page.goto(f"{place.elsewhere}/settings")
    await page.evaluate(f"document.forms[0].action = {place.url + '/accounts/connect/acme'!r}")
    async with page.expect_response("**/accounts/connect/acme") as refused:
        await page.get_by_role("button", name="Go").click()
    assert 403 == (await refused.value).status
