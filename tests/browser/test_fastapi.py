"""The FastAPI application of the README in a browser: its whole story, and what users do in a hurry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Route, expect
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from accountlink import providers
from accountlink.testing.fake_provider import FakeProvider
from accountlink.web import LinkFlow, MemoryFlowStates
from accountlink.web.fastapi import link_router
from tests.support.forty_lines import ENVIRONMENT, loaded
from tests.support.serving import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")
MORE: Final = ("blue", "green", "apple")
"""Providers beside Google, whose routes are under ``/more``. Apple's answer is posted."""
SETTINGS: Final = "Connected accounts"
"""The title of the application's page."""
PROVIDER: Final = "A provider"
"""The title of a provider's page."""
SOMEBODY_ELSE: Final = "Another user has connected this account."
USED: Final = "This answer was used already. Look at the list below."
TRY_AGAIN: Final = "Please press the button again."
PRESS_TWICE: Final = "form => { form.submit(); form.submit(); }"
LEAVE: Final = """slug => {
  const form = document.createElement("form");
  form.method = "post";
  form.action = `/more/connect/${slug}`;
  document.body.append(form);
  form.submit();
}"""


class World:
    """One server that is the application as ``localhost``, and every provider as ``127.0.0.1``.

    A provider asks before it answers: it shows the buttons "Continue" and "Cancel".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.providers: dict[str, FakeProvider] = {}
        self.statuses: list[tuple[str, int]] = []
        self._answering, self._quiet = 0, asyncio.Event()

    def build(self, url: str) -> World:
        """Make the application at its own address, and the providers."""
        self.url = url
        address = url.replace("localhost", "127.0.0.1")
        for slug, prefix in {"google": "accounts", **dict.fromkeys(MORE, "more")}.items():
            redirect_uri = f"{url}/{prefix}/callback/{slug}"
            self.providers[slug] = FakeProvider(issuer=f"{address}/{slug}", redirect_uris=[redirect_uri])
        self._loading = loaded(self.folder, site=url, google=self.providers["google"])
        main = self._loading.__enter__()
        from examples.fastapi import stand_in

        more = [
            providers.oidc(slug, issuer=fake.issuer, client_id=fake.client_id, client_secret=fake.client_secret)
            for slug, fake in self.providers.items()
            if slug in MORE
        ]
        flow: LinkFlow[int, int] = LinkFlow(
            main.flow.linker,
            main.engine,
            providers=more,
            callback_url=f"{url}/more/callback",
            page=f"{url}/settings",
            states=MemoryFlowStates(),
            secrets=[ENVIRONMENT["FLOW_SECRET"]],
        )
        router = link_router(flow, current_user=main.current_user_id, name="more")
        stand_in.app.include_router(router, prefix="/more")
        self.app = stand_in.app
        return self

    def close(self) -> None:
        """Forget the application."""
        self._loading.__exit__(None, None, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of a browser, or of the application itself to a provider."""
        slug = scope.get("path", "").split("/")[1:2]
        provider = self.providers.get(slug[0]) if slug else None
        if provider is None:
            await self._answer(scope, receive, send)
        elif scope["path"].endswith("/authorize"):
            await (await self._question(provider, scope))(scope, receive, send)
        else:
            await provider(scope, receive, send)

    async def quiet(self) -> None:
        """Wait until the application has answered everything, also to a browser that has gone on meanwhile."""
        async with asyncio.timeout(10):
            await self._quiet.wait()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # it lasts as long as the server
            await self.app(scope, receive, send)
            return
        self._answering += 1
        self._quiet.clear()
        try:
            await self.app(scope, receive, self._noting(scope, send))
        finally:
            self._answering -= 1
            if not self._answering:
                self._quiet.set()

    def _noting(self, scope: Scope, send: Send) -> Send:
        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append((scope["path"], message["status"]))
            await send(message)

        return noting

    async def _question(self, provider: FakeProvider, scope: Scope) -> HTMLResponse:
        """Return the page that asks, with what the provider would answer at once."""
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=provider)) as client:
            answer = await client.get(f"{provider.issuer}/authorize?{scope['query_string'].decode()}")
        target, _, query = answer.headers["location"].partition("?")
        said = dict(parse_qsl(query))
        refused = {"error": "access_denied", "state": said["state"], "iss": said["iss"]}
        method = "post" if provider is self.providers["apple"] else "get"
        forms = "".join(
            f'<form method="{method}" action="{target}">'
            + "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())
            + f"<button>{button}</button></form>"
            for button, fields in (("Continue", said), ("Cancel", refused))
        )
        return HTMLResponse(f"<title>{PROVIDER}</title>{forms}")

    def account(self, subject: str) -> None:
        """Let this account, and no other, be signed in at every provider."""
        for provider in self.providers.values():
            provider.add_account(subject, email=f"{subject}@example.org")
            provider.sign_in_as(subject)


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The application and its providers; no request to the application may end in a fault of the server."""
    world = World(tmp_path_factory.mktemp("forty"))
    async with serve(world.build):
        yield world
    world.close()
    assert [] == [(path, status) for path, status in world.statuses if status >= 500]
    assert world.statuses


class User:
    """A user of the application, in a browser with cookies of their own."""

    def __init__(self, world: World, context: BrowserContext, tab: Page, number: int) -> None:
        self.world, self.context, self.tab, self.number = world, context, tab, number

    async def press(self, button: str, tab: Page | None = None) -> None:
        """Press a button, in the first tab or in another."""
        await (tab or self.tab).get_by_role("button", name=button, exact=True).click()

    async def sets_out(self, tab: Page | None = None) -> None:
        """Begin to connect an account of Google, until its page is there."""
        await self.press("Connect Google", tab)
        await expect(tab or self.tab).to_have_title(PROVIDER)

    async def connect(self) -> None:
        """Connect the account that is signed in at Google."""
        await self.sets_out()
        await self.press("Continue")

    async def becomes(self, number: int, tab: Page | None = None) -> None:
        """Sign in as this user, until the page says so."""
        await self.press(f"Be user {number}", tab)
        await expect((tab or self.tab).get_by_text(f"You are user {number}.")).to_be_visible()

    async def goes_back(self, *, to: str) -> None:
        """Press Back, and see the page with this title. The page that they leave must be there already."""
        await self.tab.go_back()
        await expect(self.tab).to_have_title(to)

    async def sees(self, notice: str, *, accounts: list[str], tab: Page | None = None) -> None:
        """Check that the page says this, and lists these accounts."""
        tab = tab or self.tab
        await expect(tab.get_by_role("status")).to_have_text(notice)
        await expect(tab.get_by_role("listitem")).to_have_text([re.compile(f"^{each}") for each in accounts])
        assert tab.url == f"{self.world.url}/settings"

    async def new_tab(self) -> Page:
        """Open the page once more."""
        tab = await self.context.new_page()
        await tab.goto(f"{self.world.url}/settings")
        return tab


async def arrives(world: World, chromium: Browser, number: int) -> User:
    """Open a browser in which a user signs in. The page has buttons for two; others post the same form."""
    context = await chromium.new_context()
    context.set_default_timeout(10_000)
    tab = await context.new_page()
    await tab.goto(f"{world.url}/settings")
    await expect(tab.get_by_text("Nobody is signed in.")).to_be_visible()
    user = User(world, context, tab, number)
    await tab.get_by_role("button", name="Be user 1").evaluate(
        "(button, number) => { button.formAction = `/sign-in/${number}`; }", number
    )
    await user.press("Be user 1")
    await expect(tab.get_by_text(f"You are user {number}.")).to_be_visible()
    return user


async def test_the_story_of_two_users(world: World, chromium: Browser) -> None:
    """One connects; the other meets the conflict, and takes the account over with the token of the fragment."""
    world.account("whole-story")
    ada = await arrives(world, chromium, 1)
    await ada.connect()
    await ada.sees("Connected.", accounts=["google"])

    ben, addresses = await arrives(world, chromium, 2), []
    ben.tab.on("framenavigated", lambda frame: addresses.append(frame.url))
    await ben.connect()
    await ben.sees(SOMEBODY_ELSE, accounts=[])
    [conflict] = [url for url in addresses if "#transfer_token=" in url]
    assert f"{world.url}/settings?error=ownership_conflict" == conflict.partition("#")[0]
    await ben.press("Move it to me")
    await ben.sees("Connected.", accounts=["google"])

    await ada.tab.reload()
    await ada.sees("", accounts=[])
    await ben.press("Disconnect google")
    await ben.sees("Disconnected.", accounts=[])

    cookies = {each["name"]: each for each in await ben.context.cookies(world.url)}
    assert {"accountlink", "session"} == set(cookies)
    for each in cookies.values():
        assert (each["httpOnly"], each["secure"], each["sameSite"]) == (True, False, "Lax")


async def test_a_double_click(world: World, chromium: Browser) -> None:
    """Two presses of each button make one link at most, and what the user reads is true."""
    world.account("double-click")
    user = await arrives(world, chromium, 11)
    await user.tab.locator("form[action='/accounts/connect/google']").evaluate(PRESS_TWICE)
    await user.tab.get_by_role("button", name="Continue").dblclick()
    await expect(user.tab.get_by_role("status")).not_to_be_empty()
    read = await user.tab.get_by_role("status").inner_text()
    assert read in {"Connected.", USED, TRY_AGAIN}  # the last one if the browser kept the cookie of the other press
    if read == TRY_AGAIN:
        await user.connect()
    await world.quiet()
    await user.tab.reload()
    await user.sees("", accounts=["google"])


async def test_reload_and_back(world: World, chromium: Browser) -> None:
    """A callback that is opened again says that it was used, and the way back to the provider as well."""
    world.account("reload-and-back")
    user, opened = await arrives(world, chromium, 12), []
    user.tab.on("request", lambda request: opened.append(request.url))
    await user.sets_out()
    await user.goes_back(to=SETTINGS)
    await user.connect()
    await user.sees("Connected.", accounts=["google"])

    [callback] = [url for url in opened if "/callback/google?" in url]
    await user.tab.goto(callback)
    await user.sees(USED, accounts=["google"])
    await user.goes_back(to=SETTINGS)
    await user.goes_back(to=PROVIDER)
    await user.press("Continue")
    await user.sees(USED, accounts=["google"])


async def test_two_tabs(world: World, chromium: Browser) -> None:
    """Two tabs connect one account at the same time: both succeed, and there is one link."""
    world.account("two-tabs")
    user = await arrives(world, chromium, 13)
    second = await user.new_tab()
    for tab in (user.tab, second):
        await user.sets_out(tab)
    for tab in (user.tab, second):
        await user.press("Continue", tab)
        await user.sees("Connected.", accounts=["google"], tab=tab)


async def test_an_account_that_needs_reconnect(world: World, chromium: Browser) -> None:
    """The page says so, and its button repairs this very link: another account of the provider is refused.

    The application's linker does not renew tokens, so the test puts the health into the answer of its route.
    """
    world.account("needs-reconnect")
    user = await arrives(world, chromium, 16)
    await user.connect()
    await user.sees("Connected.", accounts=["google"])
    health, posted = "needs_consent", []

    async def with_health(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, json=[each | {"health": health} for each in await answer.json()])

    await user.tab.route(f"{world.url}/accounts", with_health)
    user.tab.on("request", lambda request: posted.append(request.post_data) if "/connect/" in request.url else None)
    await user.tab.reload()
    await user.sees("", accounts=["google needs reconnect"])
    world.account("another-one")
    await user.press("Reconnect google")
    await user.press("Continue")
    await user.sees(
        "You signed in with another account than the one to reconnect.", accounts=["google needs reconnect"]
    )

    world.providers["google"].sign_in_as("needs-reconnect")
    await user.press("Reconnect google")
    health = "ok"
    await user.press("Continue")
    await user.sees("Connected.", accounts=["google(?! needs)"])
    assert [True, True] == [re.fullmatch(r"expect=\d+", each or "") is not None for each in posted]
    await expect(user.tab.get_by_role("button", name="Reconnect google")).to_have_count(0)


async def test_three_providers_in_flight(world: World, chromium: Browser) -> None:
    """Three flows of one session end in another order than they began; the posted answer of one arrives as well."""
    world.account("three-providers")
    user = await arrives(world, chromium, 14)
    tabs = {slug: await user.new_tab() for slug in MORE}
    for slug, tab in tabs.items():
        await tab.evaluate(LEAVE, slug)
        await expect(tab).to_have_title(PROVIDER)
    for count, (slug, tab) in enumerate(reversed(tabs.items()), start=1):
        await user.press("Continue", tab)
        await user.sees("Connected.", accounts=sorted([*tabs][-count:], key=[*reversed(tabs)].index), tab=tab)
        assert 1 == world.providers[slug].calls["/token"]
    posted = [status for path, status in world.statuses if path == "/more/callback/apple"]
    assert [303, 303] == posted[-2:], "the POST, which came without cookies, and the GET that it became"


async def test_what_goes_wrong(world: World, chromium: Browser) -> None:
    """Declined, without cookies, and as another user: a clear message, no link, and nothing asked of the provider."""
    world.account("goes-wrong")
    user = await arrives(world, chromium, 15)
    await user.sets_out()
    await user.press("Cancel")
    await user.sees("You did not agree. Nothing was connected.", accounts=[])

    asked = world.providers["google"].calls["/token"]
    for cookie in ("accountlink", "session"):
        await user.sets_out()
        await user.context.clear_cookies(name=cookie)
        await user.press("Continue")
        await user.sees(TRY_AGAIN, accounts=[])
    await user.becomes(1)
    second = await user.new_tab()
    await user.sets_out()
    await user.becomes(2, second)
    await user.press("Continue")
    await user.sees(TRY_AGAIN, accounts=[])
    await expect(user.tab.get_by_text("You are user 2.")).to_be_visible()
    assert asked == world.providers["google"].calls["/token"]
