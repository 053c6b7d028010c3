"""The conflict dialog in a browser, under its strict policy: what users see, and where the token is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from accountlink import Linked, ProviderIdentity, tune_sqlite
from accountlink.providers import oidc
from accountlink.testing.fake_provider import FakeProvider
from accountlink.transfers.signing import MAX_TOKEN
from accountlink.web import LinkFlow, MemoryFlowStates
from accountlink.web.starlette import link_routes
from tests.support.axe import violations
from tests.support.chromium import run_chromium
from tests.support.models import EXCLUSIVE, SECRETS, make_tables
from tests.support.pages import DOCS, blocks_of, text_of
from tests.support.serving import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIALOG: Final = files("accountlink.web") / "dialog"
PAGE: Final = text_of(DOCS / "conflict-dialog.md")
BLOCKS: Final = blocks_of(DOCS / "conflict-dialog.md")
HTML: Final = [block.source for block in BLOCKS if block.language == "html"]
[COLOURS] = (block.source for block in BLOCKS if block.language == "css")
SERVED: Final = next(block for block in BLOCKS if block.language == "python")
INCLUDED: Final = '{% include "conflict-dialog.html" %}'
SCRIPT: Final = '<script src="/static/accountlink/conflict-dialog.js"></script>\n'
CONFLICT: Final = "?error=ownership_conflict"
TOKEN: Final = "x" * 300
"""It has the shape of a token, and nobody signed it."""
ENGLISH: Final = ("/settings", "Another user has connected this account", "Cancel", "Move it to me")
GERMAN: Final = ("/de", "Eine andere Person hat dieses Konto verbunden", "Abbrechen", "Konto übernehmen")
WITH_CACHE: Final = "--disable-back-forward-cache"
"""An option that Playwright gives Chromium, and that no user has."""
WHERE_ELSE: Final = """token => [
  ...navigation.entries().map(entry => entry.url), location.href, document.referrer, document.cookie,
  JSON.stringify([history.state, {...localStorage}, {...sessionStorage}]),
  ...Object.getOwnPropertyNames(window).map(name => { try { return String(window[name]); } catch { return ""; } }),
].filter(text => text.includes(token))"""


def policy_of(origin: str) -> str:
    """Return the policy that the page of the documentation tells, with the provider of the tests in it."""
    return "".join(re.findall(r'^    "(.+)"$', SERVED.source, re.MULTILINE)).replace(
        "https://accounts.google.com", origin
    )


def page_of(markup: str, *, head: str = SCRIPT, back_to: str = "") -> str:
    """Return the page of the documentation with this dialog in it, and a second form."""
    assert SCRIPT in HTML[0]
    form = f'<input type="hidden" name="return_to" value="{back_to}"><button>Connect acme</button>'
    return (
        HTML[0]
        .replace(SCRIPT, head)
        .replace("/connect/google", "/connect/acme")
        .replace("<button>Connect Google</button>", form)
        .replace("</main>", '<p><a href="/elsewhere">Elsewhere</a></p></main>')
        .replace(INCLUDED, markup)
    )


def markup_of(name: str = "conflict-dialog.html") -> str:
    return (DIALOG / name).read_text(encoding="utf-8")


@dataclass
class World:
    """An application on ``localhost`` with the dialog, its provider on ``127.0.0.1``, and what the two were sent.

    Attributes:
        sent: Each request to one of them, with its headers and without its body.
        transfers: How many transfers were posted.
        arrived: Whether a transfer was posted since a test cleared it.
        answering: Whether transfers are answered now.
        pages: The application's pages, by their paths.
    """

    folder: Path
    sent: list[str] = field(default_factory=list)
    transfers: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    pages: dict[str, str] = field(default_factory=dict)
    users: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def build(self, url: str) -> World:
        """Make the application at its own address, and the provider."""
        self.url, self.origin = url, url.replace("localhost", "127.0.0.1")
        self.answering.set()
        tables = make_tables(EXCLUSIVE)
        self.metadata, self.linker = tables.metadata, tables.linker()
        self.engine = tune_sqlite(create_async_engine(f"sqlite+aiosqlite:///{self.folder / 'dialog.db'}"))
        acme = FakeProvider(issuer=f"{self.origin}/acme", redirect_uris=[f"{url}/accounts/callback/acme"])
        self.provider = acme
        flow: LinkFlow[int, int] = LinkFlow(
            self.linker,
            self.engine,
            providers=[oidc("acme", issuer=acme.issuer, client_id=acme.client_id, client_secret=acme.client_secret)],
            callback_url=f"{url}/accounts/callback",
            page=f"{url}/settings",
            states=MemoryFlowStates(),
            secrets=SECRETS,
        )
        self.app = Starlette(
            routes=[
                *link_routes(flow, current_user=lambda request: int(request.cookies["user"]), prefix="/accounts"),
                Mount("/static/accountlink", StaticFiles(packages=[("accountlink.web", "dialog")])),
                Route("/colours.css", lambda _: Response(COLOURS, media_type="text/css")),
                Route("/favicon.ico", lambda _: Response(status_code=204)),
                Route("/elsewhere", lambda _: HTMLResponse("<!doctype html><title>Elsewhere</title>")),
                Route("/{page:path}", self._page),
            ]
        )
        self.pages = {
            "/settings": page_of(markup_of()),
            "/de": page_of(markup_of("conflict-dialog.de.html"), back_to="/de").replace('"en"', '"de"', 1),
        }
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of a browser, or of the application itself to the provider."""
        if scope["type"] == "http":
            query, headers = scope["query_string"].decode(), [b": ".join(each).decode() for each in scope["headers"]]
            self.sent.append("\n".join([f"{scope['method']} {scope['path']}?{query}", *headers]))
            if scope["path"] == "/accounts/transfer":
                self.transfers += 1
                self.arrived.set()
                await self.answering.wait()
        app = self.provider if scope.get("path", "").startswith("/acme/") else self.app
        await app(scope, receive, send)

    async def _page(self, request: Request) -> Response:
        page = self.pages.get(request.url.path)
        if page is None:
            return Response(status_code=404)
        return HTMLResponse(page, headers={"Content-Security-Policy": policy_of(self.origin)})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for the module, with the back/forward cache; each test opens a user of its own in it."""
    async with run_chromium(without=[WITH_CACHE]) as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The application and its provider."""
    world = World(tmp_path_factory.mktemp("dialog"))
    async with serve(world.build):
        async with world.engine.begin() as connection:
            await connection.run_sync(world.metadata.create_all)
        yield world
        await world.engine.dispose()


@dataclass
class User:
    """A user in a browser of their own, whose account at the provider another user has connected.

    Attributes:
        said: What the console has, each line.
    """

    world: World
    context: BrowserContext
    tab: Page
    number: int
    said: list[str]

    @property
    def dialog(self) -> Locator:
        return self.tab.get_by_role("dialog")

    @property
    def token(self) -> Locator:
        """The input of the form, which nobody sees."""
        return self.tab.locator("dialog input")

    async def open(self, address: str) -> None:
        """Open a page by its address, as from a bookmark."""
        await self.tab.goto("about:blank")
        await self.tab.goto(address)

    async def meets_the_conflict(self, language: tuple[str, ...] = ENGLISH) -> str:
        """Connect the account, until the dialog asks; return the token."""
        page, title, _, _ = language
        await self.tab.goto(page)
        await self.tab.get_by_role("button", name="Connect acme").click()
        await expect(self.tab.get_by_role("dialog", name=title)).to_be_visible()
        token = await self.token.input_value()
        assert re.fullmatch(r"[\w.-]{100,}", token)
        return token

    async def has(self) -> list[str | None]:
        """The accounts that the user has."""
        return [each.account_id for each in await self.world.linker.accounts(self.world.engine, user_id=self.number)]

    async def middle_of(self, button: str) -> tuple[float, float]:
        """The point in the middle of a button of the dialog."""
        box = await self.dialog.get_by_role("button", name=button).bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    async def focused(self) -> str:
        """The text of the element that has the focus, or its name."""
        text: str = await self.tab.evaluate("document.activeElement.innerText.trim() || document.activeElement.tagName")
        return text if len(text) < 100 else "BODY"


@pytest_asyncio.fixture(loop_scope="module")
async def user(world: World, browser: Browser) -> AsyncIterator[User]:
    """A user who will meet a conflict."""
    async with arriving(world, browser) as user:
        yield user


@asynccontextmanager
async def arriving(world: World, browser: Browser, **options: Any) -> AsyncIterator[User]:
    """Open a browser for a user whose account another user has connected. Its console must stay empty of errors."""
    owner, number = next(world.users), next(world.users)
    subject = f"subject-of-{number}"
    world.provider.add_account(subject, email=f"{subject}@example.org")
    world.provider.sign_in_as(subject)
    identity = ProviderIdentity(provider="acme", account_id=subject)
    assert isinstance(await world.linker.link(world.engine, user_id=owner, identity=identity), Linked)
    context = await browser.new_context(base_url=world.url, **options)
    context.set_default_timeout(10_000)
    await context.add_cookies([{"name": "user", "value": str(number), "url": world.url, "sameSite": "Lax"}])
    tab, said = await context.new_page(), list[str]()

    def note(message: ConsoleMessage) -> None:
        if message.type != "debug":
            said.append(f"{message.type}: {message.text}")

    tab.on("console", note)
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    yield User(world, context, tab, number, said)
    await context.close()
    assert [] == [line for line in said if not line.startswith("warning: accountlink: ")]


each_language = pytest.mark.parametrize("language", [ENGLISH, GERMAN], ids=["en", "de"])


# -- asked and answered -----------------------------------------------------------------------------------------------


@each_language
async def test_by_mouse(world: World, user: User, language: tuple[str, ...]) -> None:
    """A user who meets a conflict is asked, in the language of the page; one press, and the account is theirs."""
    page, _, cancel, move = language
    await user.meets_the_conflict(language)
    assert f"{world.url}{page}{CONFLICT}" == user.tab.url
    assert cancel == await user.focused()
    await user.dialog.get_by_role("button", name=move).click()
    await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
    await expect(user.dialog).to_be_hidden()
    assert [f"subject-of-{user.number}"] == await user.has()


@each_language
async def test_by_keyboard(world: World, user: User, language: tuple[str, ...]) -> None:
    """Tab never leaves the dialog for the page behind it; Enter on the action moves the account."""
    _, _, cancel, move = language
    await user.meets_the_conflict(language)
    met = []
    for key in [*["Tab"] * 6, *["Shift+Tab"] * 6]:
        await user.tab.keyboard.press(key)
        met.append(await user.focused())
    assert {cancel, move} <= set(met) <= {cancel, move, "BODY"}  # the body: where the browser's own buttons are
    while await user.focused() != move:
        await user.tab.keyboard.press("Tab")
    await user.tab.keyboard.press("Enter")
    await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
    assert [f"subject-of-{user.number}"] == await user.has()


async def test_a_user_cancels(world: World, user: User) -> None:
    """A user who cancels keeps the page: the token is gone, nothing moved, the focus is where they connect accounts."""
    before = world.transfers
    for way, language in [("press", GERMAN), ("Enter", ENGLISH), ("Escape", ENGLISH)]:
        await user.meets_the_conflict(language)
        if way == "press":
            await user.dialog.get_by_role("button", name=language[2]).click()
        else:
            await user.tab.keyboard.press(way)  # the button has the focus from the beginning
        await expect(user.dialog).to_be_hidden()
        await expect(user.token).to_have_value("")
        await expect(user.tab.get_by_role("button", name="Connect acme")).to_be_focused()
        assert ([], before) == (await user.has(), world.transfers)


async def test_the_focus_goes_back(user: User) -> None:
    """An element that had the focus before the dialog has it afterwards, whatever the markup names."""
    await user.open("/settings")
    await user.tab.get_by_role("link", name="Elsewhere").focus()
    await user.tab.evaluate("token => { location.hash = `transfer_token=${token}`; }", TOKEN)
    await expect(user.dialog.get_by_role("button", name="Cancel")).to_be_focused()
    await user.tab.keyboard.press("Escape")
    await expect(user.tab.get_by_role("link", name="Elsewhere")).to_be_focused()


async def test_the_page_behind_is_inert(user: User) -> None:
    """While the dialog asks, no press reaches the page behind it, and assistive technology does not see it."""
    await user.meets_the_conflict()
    corner = "document.querySelector('a').getBoundingClientRect()"
    hit = f"document.elementFromPoint({corner}.x, {corner}.y).tagName"
    assert "DIALOG" == await user.tab.evaluate(hit)
    debugger = await user.context.new_cdp_session(user.tab)
    tree = await debugger.send("Accessibility.getFullAXTree")
    told = {each["role"]["value"]: each for each in tree["nodes"] if not each["ignored"]}
    assert "link" not in told
    assert ENGLISH[1] == told["dialog"]["name"]["value"]
    assert told["dialog"]["description"]["value"].startswith("You have just signed in to it")


async def test_two_presses(world: World, user: User) -> None:
    """While the first press is under way a second one sends nothing, and nothing pretends that it can be undone."""
    await user.meets_the_conflict()
    await user.tab.evaluate("""() => {
      const note = name => event => { sessionStorage[name] = document.querySelector("dialog").ariaBusy; };
      addEventListener("submit", note("submitted"));
      addEventListener("close", note("closed"), true); // once the page is left, nothing is busy
    }""")
    cancel, move = [await user.middle_of(name) for name in ("Cancel", "Move it to me")]
    world.answering.clear()
    before = world.transfers
    try:
        async with user.tab.expect_request("**/accounts/transfer"):
            await user.tab.mouse.click(*move)
        await user.tab.mouse.click(*move)  # Playwright looks at no element before the answer is there
        await user.tab.mouse.click(*cancel)
        for _ in range(3):  # Chromium lets a page refuse only the first cancel after a click
            await user.tab.keyboard.press("Escape")
    finally:
        world.answering.set()
    await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
    assert before + 1 == world.transfers
    assert "true" == await user.tab.evaluate("sessionStorage.submitted")
    assert "true" != await user.tab.evaluate("sessionStorage.closed")


@pytest.mark.parametrize("way", ["Move it to me", "Cancel", "Escape"])
@pytest.mark.parametrize("unanswered", ["stopped", "empty"])
async def test_no_answer(world: World, user: User, unanswered: str, way: str) -> None:
    """If the answer leads nowhere, nothing counts for ten seconds; then the user can send once more, or cancel."""
    await user.tab.clock.install()
    token = await user.meets_the_conflict()
    points = {name: await user.middle_of(name) for name in ("Move it to me", "Cancel")}

    async def press(name: str) -> None:
        if name == "Escape":
            await user.tab.keyboard.press(name)
        else:
            await user.tab.mouse.click(*points[name])

    await user.tab.clock.pause_at(await user.tab.evaluate("Date.now() + 60_000"))
    await send_in_vain(world, user, unanswered, points["Move it to me"])
    before = world.transfers
    await user.tab.clock.run_for(9_999)
    for name in points:
        await press(name)
    await user.tab.evaluate("document.querySelector('dialog').requestClose()")  # as the Back button of a phone does
    for _ in range(3):
        await press("Escape")
    await expect(user.dialog).to_have_attribute("aria-busy", "true")
    assert before == world.transfers
    await user.tab.clock.run_for(1)
    await expect(user.dialog).not_to_have_attribute("aria-busy", "true")
    await expect(user.token).to_have_value(token)
    await press(way)
    if way == "Move it to me":
        await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
        assert [f"subject-of-{user.number}"] == await user.has()
    else:
        await expect(user.dialog).to_be_hidden()
        await expect(user.token).to_have_value("")
        assert before == world.transfers


async def test_the_wait_ends_with_the_dialog(world: World, user: User) -> None:
    """A dialog that the application closes while it waits does not shorten the wait of the next one."""
    await user.tab.clock.install()
    await user.open("/settings")
    await user.tab.clock.pause_at(await user.tab.evaluate("Date.now() + 60_000"))
    for passed in (6_000, 9_999):
        await user.tab.evaluate("token => { location.hash = `transfer_token=${token}`; }", TOKEN)
        await expect(user.dialog).to_be_visible()
        await send_in_vain(world, user, "empty", await user.middle_of("Move it to me"))
        await user.tab.clock.run_for(passed)
        await expect(user.dialog).to_have_attribute("aria-busy", "true")
        await user.tab.evaluate("document.querySelector('dialog').close()")
        await expect(user.token).to_have_value("")


async def send_in_vain(world: World, user: User, answer: str, move: tuple[float, float]) -> None:
    """Send the transfer, and keep the page: the user stops the browser, or the answer is empty."""
    async with user.tab.expect_event("requestfailed"):
        if answer == "empty":
            await user.context.route("**/accounts/transfer", lambda route: route.fulfill(status=204), times=1)
            await user.tab.mouse.click(*move)
            return
        debugger = await user.context.new_cdp_session(user.tab)
        world.answering.clear()
        world.arrived.clear()
        try:
            await user.tab.mouse.click(*move)
            await asyncio.wait_for(world.arrived.wait(), 10)
            await debugger.send("Page.stopLoading")
        finally:
            world.answering.set()


# -- where the token is -----------------------------------------------------------------------------------------------


async def test_the_token_is_nowhere_else(world: World, user: User, caplog: pytest.LogCaptureFixture) -> None:
    """No address, history, storage, global, console, log or request has the token; only the body of the transfer."""
    caplog.set_level(logging.DEBUG, logger="accountlink")
    caplog.set_level(logging.INFO)
    token = await user.meets_the_conflict()
    assert [] == await user.tab.evaluate(WHERE_ELSE, token)
    async with user.tab.expect_request("**/accounts/transfer") as posted:
        await user.dialog.get_by_role("button", name="Move it to me").click()
    await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
    assert f"transfer_token={token}" == (await posted.value).post_data
    assert [] == await user.tab.evaluate(WHERE_ELSE, token)
    assert [] == [each for each in [*world.sent, *user.said, caplog.text] if token in each]
    assert "the account is linked to user" in caplog.text


@pytest.mark.parametrize(
    ("place", "address"),
    [('performance.getEntriesByType("navigation")', "[0].name"), ("navigation.activation.entry.url", "")],
    ids=["performance", "navigation"],
)
async def test_a_place_that_remains(user: User, place: str, address: str) -> None:
    """The browser's record of how the page was opened keeps the token until a reload; the documentation warns of it."""
    token = await user.meets_the_conflict()
    assert token in await user.tab.evaluate(place + address)
    assert f"`{place}`" in PAGE
    await user.tab.reload()
    assert token not in await user.tab.evaluate(place + address)


async def test_the_token_leaves_the_address_first(world: World, user: User) -> None:
    """A script that follows in the head does not see the token any more."""
    world.pages["/spied"] = page_of(markup_of(), head=f'{SCRIPT}<script src="/spy.js"></script>')
    seen = "document.documentElement.dataset.seen = location.href + document.URL + window.name;"

    async def spy(route: Any) -> None:
        await route.fulfill(content_type="text/javascript", body=seen)

    await user.context.route("**/spy.js", spy)
    await user.open(f"/spied?a=b#transfer_token={TOKEN}")
    await expect(user.dialog).to_be_visible()
    address = f"{world.url}/spied?a=b"
    await expect(user.tab.locator("html")).to_have_attribute("data-seen", address * 2)


async def test_a_reload(world: World, user: User) -> None:
    """After a reload no dialog asks, and no token is left; to connect once more asks again."""
    await user.meets_the_conflict()
    await user.tab.reload()
    await expect(user.tab.get_by_role("heading", name="Connected accounts")).to_be_visible()
    await expect(user.dialog).to_be_hidden()
    await expect(user.token).to_have_value("")
    await user.meets_the_conflict()


async def test_back_after_a_transfer(world: World, user: User) -> None:
    """Back leads to the page with neither dialog nor token, and Forward as well."""
    await user.meets_the_conflict()
    await user.dialog.get_by_role("button", name="Move it to me").click()
    await expect(user.tab).to_have_url(f"{world.url}/settings?connection=success")
    await user.tab.evaluate("history.back()")
    await expect(user.tab).to_have_url(f"{world.url}/settings{CONFLICT}")
    await expect(user.dialog).to_be_hidden()
    await expect(user.token).to_have_value("")


async def test_the_back_forward_cache(world: World, user: User) -> None:
    """A page that comes back from the cache has neither dialog nor token, and asks at the next conflict."""
    await user.open("/settings")
    await user.tab.evaluate("""() => {
      addEventListener("pageshow", event => { document.title = event.persisted ? "from the cache" : "anew"; });
    }""")
    await user.tab.evaluate("token => { location.hash = `transfer_token=${token}`; }", TOKEN)
    await expect(user.dialog).to_be_visible()
    await user.tab.evaluate("location.href = '/elsewhere'")
    await expect(user.tab).to_have_title("Elsewhere")
    await user.tab.evaluate("history.back()")
    await expect(user.tab).to_have_title("from the cache")
    await expect(user.dialog).to_be_hidden()
    await expect(user.token).to_have_value("")
    await user.tab.evaluate("token => { location.hash = `transfer_token=${token}`; }", TOKEN)
    await expect(user.dialog).to_be_visible()
    await expect(user.token).to_have_value(TOKEN)


async def test_values_that_the_browser_puts_back(user: User) -> None:
    """A token that a browser puts back into the form of a page is removed, and the token of an open dialog stays."""
    show = "document.querySelector('dialog input').value = 'stale'; dispatchEvent(new PageTransitionEvent('pageshow'))"
    await user.open("/settings")
    await user.tab.evaluate(show)
    await expect(user.token).to_have_value("")
    await user.open(f"/settings#transfer_token={TOKEN}")
    await expect(user.dialog).to_be_visible()
    await user.tab.evaluate(show)
    await expect(user.token).to_have_value(TOKEN)


# -- odd addresses and odd pages --------------------------------------------------------------------------------------


REST: Final = {
    f"transfer_token={TOKEN}": "",
    f"tab=accounts&transfer_token={TOKEN}&a=%E4%A&b": "#tab=accounts&a=%E4%A&b",
    f"transfer%5Ftoken={TOKEN}": "",
    f"part&transfer_token={TOKEN}": "#part",
    f"transfer_token={'y' * (MAX_TOKEN - len(TOKEN))}{TOKEN}": "",
}
"""Fragments with a token, and what is left of each in the address."""
MALFORMED: Final = {
    "": "",
    "#": "#",
    "#accounts": "#accounts",
    "#transfer_token": "",
    "#transfer_token=": "",
    "#transfer_token=%": "",
    "#transfer_token=%00&x": "#x",
    "#transfer_token=a b": "",
    "#transfer_token=<img src=x onerror=alert(1)>": "",
    f"#transfer_token={TOKEN}&transfer_token={TOKEN}": "",
    f"#transfer_token={'x' * (MAX_TOKEN + 1)}": "",
    f"#transfer_token={'x' * 200_000}": "",
    f"#{'a&' * 5_000}transfer_token={TOKEN}&transfer_token=": f"#{'a&' * 4_999}a",
    f"#no_transfer_token={TOKEN}": f"#no_transfer_token={TOKEN}",
}
"""Fragments without a token that can be one, and what is left of each in the address."""


async def test_the_rest_of_the_address_stays(world: World, user: User) -> None:
    """Only the token leaves the address: path, query and the rest of the fragment are as they were."""
    for fragment, left in REST.items():
        await user.open(f"/settings?error=x&y=%20%2F#{fragment}")
        await expect(user.dialog).to_be_visible()
        await expect(user.token).to_have_value(re.compile(f"{TOKEN}$"))
        assert f"{world.url}/settings?error=x&y=%20%2F{left}" == user.tab.url


async def test_malformed_fragments(world: World, user: User) -> None:
    """What is no token opens nothing and is not kept; a fragment of another kind is left alone."""
    for fragment, left in MALFORMED.items():
        await user.open(f"/settings{fragment}")
        await expect(user.tab.get_by_role("heading", name="Connected accounts")).to_be_visible()
        await expect(user.dialog).to_be_hidden()
        await expect(user.token).to_have_value("")
        assert f"{world.url}/settings{left}" == await user.tab.evaluate("location.href")


async def test_a_path_that_looks_like_a_host(world: World, user: User) -> None:
    """The token leaves the address of every page, also of one whose path a browser would take for another host's."""
    world.pages["//elsewhere.example/a"] = page_of(markup_of())
    await user.open(f"{world.url}//elsewhere.example/a#transfer_token={TOKEN}")
    await expect(user.dialog).to_be_visible()
    assert f"{world.url}//elsewhere.example/a" == user.tab.url


async def test_a_new_fragment(world: World, user: User) -> None:
    """A token that comes by a new fragment of the open page is asked about; a newer one replaces it."""
    await user.open("/settings#top")
    for token in (TOKEN, "y" * 200):
        await user.tab.evaluate("token => { location.hash = `top&transfer_token=${token}`; }", token)
        await expect(user.token).to_have_value(token)
        await expect(user.dialog).to_be_visible()
        await expect(user.tab).to_have_url(f"{world.url}/settings#top")
    await user.tab.evaluate("location.hash = 'transfer_token=&bottom'")
    await expect(user.tab).to_have_url(f"{world.url}/settings#bottom")
    await expect(user.token).to_have_value("y" * 200)
    assert [] == await user.tab.evaluate(WHERE_ELSE, TOKEN)


@pytest.mark.parametrize(
    "markup",
    ["", markup_of().replace("data-accountlink-conflict", ""), markup_of().replace('method="post"', "")],
    ids=["no dialog", "another dialog", "a form that would GET"],
)
async def test_a_page_without_the_dialog(world: World, user: User, markup: str) -> None:
    """Where nobody can be asked, the token is dropped, and the console says so without it."""
    world.pages["/bare"] = page_of(markup)
    await user.open(f"/bare#transfer_token={TOKEN}")
    await expect(user.tab.get_by_role("heading", name="Connected accounts")).to_be_visible()
    await expect(user.dialog).to_be_hidden()
    assert f"{world.url}/bare" == user.tab.url
    [line] = user.said
    assert line.startswith("warning: accountlink: there is no <dialog[data-accountlink-conflict]> with a POST form")
    assert TOKEN not in line
    assert [""] * await user.token.count() == [await each.input_value() for each in await user.token.all()]


async def test_included_twice(world: World, user: User) -> None:
    """Included twice, and once more while the dialog asks, the script asks once, keeps the token, and sends it once."""
    world.pages["/twice"] = page_of(markup_of(), head=SCRIPT * 2)
    await user.open(f"/twice?q#transfer_token={TOKEN}&a")
    await expect(user.dialog).to_be_visible()
    await user.tab.add_script_tag(url="/static/accountlink/conflict-dialog.js")
    await user.tab.evaluate("dispatchEvent(new PageTransitionEvent('pageshow'))")
    await expect(user.token).to_have_value(TOKEN)
    assert f"{world.url}/twice?q#a" == user.tab.url
    before = world.transfers
    await user.dialog.get_by_role("button", name="Move it to me").click()
    await expect(user.tab).to_have_url(f"{world.url}/settings?error=token_forged")
    assert before + 1 == world.transfers


async def test_included_late(world: World, user: User) -> None:
    """A page that loads the script after everything else is late for the address, and still asks."""
    world.pages["/late"] = page_of(markup_of(), head="")
    await user.open(f"/late#transfer_token={TOKEN}")
    await expect(user.tab.get_by_role("heading", name="Connected accounts")).to_be_visible()
    await user.tab.add_script_tag(url="/static/accountlink/conflict-dialog.js")
    await expect(user.dialog).to_be_visible()
    await expect(user.token).to_have_value(TOKEN)
    assert f"{world.url}/late" == user.tab.url


# -- looks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "scheme", "width"),
    [(ENGLISH, "light", 1280), (ENGLISH, "dark", 1280), (ENGLISH, "light", 320), (GERMAN, "dark", 320)],
    ids=["light", "dark", "phone", "phone-de"],
)
async def test_axe_finds_nothing(
    world: World, browser: Browser, language: tuple[str, ...], scheme: Any, width: int
) -> None:
    """In both modes, on a phone and on a desk: no rule of axe is broken, and nothing scrolls sideways."""
    view = {"width": width, "height": 640}
    async with arriving(world, browser, color_scheme=scheme, viewport=view, reduced_motion="reduce") as user:
        await user.meets_the_conflict(language)
        assert [] == await violations(user.tab)
        box = await user.dialog.bounding_box()
        assert box is not None
        assert 0 < box["x"] < box["x"] + box["width"] < width
        for overflowing in ("document.documentElement", "document.querySelector('dialog')"):
            assert await user.tab.evaluate(f"{overflowing}.scrollWidth <= {overflowing}.clientWidth")


async def test_motion(world: World, browser: Browser) -> None:
    """The dialog moves as it appears, and does not for a user who wants less motion."""
    for wish, animation in {"no-preference": "accountlink-appear", "reduce": "none"}.items():
        async with arriving(world, browser, reduced_motion=wish) as user:
            await user.open(f"/settings#transfer_token={TOKEN}")
            await expect(user.dialog).to_have_css("animation-name", animation)


async def test_a_low_screen(world: World, browser: Browser) -> None:
    """On a screen that cannot hold the dialog, its title and its buttons are in sight at first."""
    async with arriving(world, browser, viewport={"width": 320, "height": 400}) as user:
        await user.meets_the_conflict(GERMAN)
        for seen in (user.dialog.get_by_role("heading"), *await user.dialog.get_by_role("button").all()):
            await expect(seen).to_be_in_viewport(ratio=1)


async def test_axe_finds_a_fault(world: World, user: User) -> None:
    """The helper sees what is wrong: a button without a name, a text that can hardly be read."""
    world.pages["/wrong"] = page_of(markup_of().replace("Cancel", ""))
    await user.open(f"/wrong#transfer_token={TOKEN}")
    await expect(user.dialog).to_be_visible()
    await user.tab.evaluate("document.getAnimations().forEach(each => each.finish())")
    await user.tab.evaluate("document.querySelector('dialog').style.setProperty('--accountlink-muted', '#aaa')")
    assert ["button-name", "color-contrast"] == [each.partition(":")[0] for each in await violations(user.tab)]


async def test_the_focus_is_visible(user: User) -> None:
    """The button that has the focus by the keyboard has a ring around it."""
    await user.meets_the_conflict()
    await user.tab.keyboard.press("Tab")
    await user.tab.keyboard.press("Shift+Tab")
    for button in ("Cancel", "Move it to me"):
        while await user.focused() != button:
            await user.tab.keyboard.press("Tab")
        ring = "getComputedStyle(document.activeElement).outline"
        assert "rgb(29, 79, 215) solid 3px" == await user.tab.evaluate(ring)


async def test_an_application_changes_the_colours(world: World, user: User) -> None:
    """The colours of the documentation's example count, and can still be read."""
    world.pages["/green"] = page_of(markup_of()).replace(
        "<title>", '<link rel="stylesheet" href="/colours.css">\n<title>', 1
    )
    await user.open(f"/green#transfer_token={TOKEN}")
    await expect(user.dialog.get_by_role("button", name="Move it to me")).to_have_css(
        "background-color", "rgb(11, 110, 79)"
    )
    await user.tab.evaluate("document.getAnimations().forEach(each => each.finish())")
    assert [] == await violations(user.tab)


# -- the markup -------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """The tags and attributes of markup, without its texts and its language."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value for name, value in attrs if name != "lang"}))


async def test_the_languages_differ_in_their_texts_only() -> None:
    """Both files have the same elements, nothing in them is inline, and the documentation shows the German one."""
    english, german = Outline(markup_of()).tags, Outline(markup_of("conflict-dialog.de.html")).tags
    assert english == german
    assert [] == [name for _, attributes in english for name in attributes if name == "style" or name.startswith("on")]
    assert markup_of("conflict-dialog.de.html").partition("\n")[2] == HTML[1]


async def test_the_policy_is_strict() -> None:
    """The documented policy allows nothing inline, and no other site but the provider."""
    assert policy_of("").split("; ") == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'self' ",
    ]
