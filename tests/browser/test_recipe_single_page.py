"""The recipe of a single-page application: its scripts run in a browser, against its API on another origin."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx2
import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as Served

from tests.support.pages import DOCS, blocks_of, parsed
from tests.support.serving import serve
from tests.unit.test_docs_run import run

pytestmark = pytest.mark.asyncio(loop_scope="session")
BLOCKS: Final = blocks_of(DOCS / "recipes" / "single-page-application.md")
API: Final = next(block for block in BLOCKS if block.language == "python")
CONNECT, FINISH = (block.source for block in BLOCKS if block.language == "javascript")
ENDS: Final = "finish('google').then(([status, told]) => { document.title = `${status} ${told.change ?? told.code}`; })"


class Application:
    """The pages of the application: the scripts of the recipe, and one button."""

    def __init__(self) -> None:
        self.api = ""
        self.routes = [Served("/settings/accounts", self.begins), Served("/connected/google", self.ends)]

    async def begins(self, request: Request) -> Response:
        return self.page(request, CONNECT, "<title>Begin</title><button onclick=\"connect('google')\">Connect</button>")

    async def ends(self, request: Request) -> Response:
        return self.page(request, f"{FINISH}\n{ENDS}", "<title>Wait</title>")

    def page(self, request: Request, script: str, body: str) -> Response:
        token = request.cookies["who"]  # the page's own; it never goes to the API
        script = script.replace("https://api.example", self.api)
        return HTMLResponse(f'<!doctype html>{body}<script>const token = "{token}\'s token";\n{script}</script>')


async def user_of(browser: Browser, spa: str, name: str, google: Any) -> tuple[BrowserContext, Page]:
    """Open a browser of a user, in which Google's address leads to the stand-in."""

    async def answer(route: Route) -> None:
        async with httpx2.AsyncClient(transport=google.network) as client:
            told = await client.get(route.request.url)
        back = f'<meta http-equiv="refresh" content="0;url={told.headers["location"].replace("&", "&amp;")}">'
        await route.fulfill(status=200, content_type="text/html", body=back)  # a redirect would not be intercepted

    context = await browser.new_context()
    await context.add_cookies([{"name": "who", "value": name, "url": spa}])
    await context.route("https://accounts.google.com/**", answer)
    return context, await context.new_page()


async def test_the_pages_of_the_recipe_connect_an_account(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each script does its part, across two origins; Ada's page does not end what another user began."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("recipe_single_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pages, given = Application(), vars(module)
    async with serve(lambda _: Starlette(routes=pages.routes)) as spa:
        for source in (API.what, API.source):
            await run(parsed(source.replace("https://spa.example", spa), "recipe"), module)
        try:
            async with serve(lambda _: given["api"]) as pages.api:
                _, page = await user_of(chromium, spa, "ada", given["idp"])
                await page.goto(f"{spa}/settings/accounts")
                await page.get_by_role("button").click()
                await expect(page).to_have_title("200 created")
                assert f"{spa}/connected/google" == page.url  # the code has left the address bar

                answers: list[str] = []
                thieves, page = await user_of(chromium, spa, "bob", given["idp"])
                await thieves.route(f"{spa}/connected/**", lambda route: _stop(route, answers))
                await page.goto(f"{spa}/settings/accounts")
                await page.get_by_role("button").click()
                await expect(page).to_have_title("Stopped")
                _, page = await user_of(chromium, spa, "ada", given["idp"])
                await page.goto(answers[0])
                await expect(page).to_have_title("403 flow_not_started_here")
        finally:
            await given["application"].session.close()
            await given["engine"].dispose()


async def _stop(route: Route, answers: list[str]) -> None:
    """Keep an answer of the provider from the page that it was for."""
    answers.append(route.request.url)
    await route.fulfill(status=200, content_type="text/html", body="<title>Stopped</title>")
