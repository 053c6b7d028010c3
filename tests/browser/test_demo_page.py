"""``accountlink demo`` in a browser: the whole story of two people, with a process that is killed and started again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect

from tests.support.axe import violations
from tests.support.databases import fresh_database
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="session")
SCREENSHOTS: Final = "ACCOUNTLINK_TEST_SCREENSHOTS"
TOKEN: Final = "transfer_token"
STARTED: Final = re.compile(r"The demo is at (http://localhost:\d+)")
CHOICE: Final = "Choose an account"
CONNECTED: Final = "Connected."
ANOTHER: Final = "Another user has connected this account. To move it to you, connect it once more."
USED: Final = "This answer was used already. Your accounts are below."
DISCONNECTED: Final = re.compile(r"Disconnected\. The row stays")
COPY: Final = "Copy the ciphertext of row 1 into row 2"
RESTORE: Final = "Restore the ciphertext of row 2"
INSIDE: Final = {"DIALOG", "BODY"}
EVENTS: Final = (
    "restored", "unlinked", "updated", "transferred", "conflict", "conflict", "conflict", "linked", "linked", "linked",
)  # fmt: skip
FOUND: Final = {
    "Calendar connections": "stale-unique",
    "Platform connections": "key-counts-deleted",
    "Cloud provider accounts": "key-counts-deleted",
    "Patients who share with doctors": "stale-unique",
}
JUMPS: Final = """() => new Promise(tell => {
  let sum = 0;
  new PerformanceObserver(list => {
    for (const shift of list.getEntries()) if (!shift.hadRecentInput) sum += shift.value;
  }).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => tell(sum), 50);
})"""
"""How far things moved since the page began to load, except for half a second after a press."""


class Demo:
    """Hold the demo as a process of its own, which a test may kill.

    Args:
        folder: Where it keeps its data, and where what it prints goes.
        options: Further options of the command.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options = folder, options
        self.url = ""
        self._printed = folder / "printed.txt"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, on the port that it had before."""
        port = ["--port", self.url.rpartition(":")[2]] if self.url else ["--port", "0"]
        with self._printed.open("ab") as printed:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "accountlink", "demo", "--no-browser",
                "--folder", str(self.folder / "data"), *port, *self._options,
                stdin=asyncio.subprocess.DEVNULL, stdout=printed, stderr=printed,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        seen = self.printed.count("The demo is at")
        async with asyncio.timeout(30):
            while self.printed.count("The demo is at") == seen:
                assert self._process.returncode is None, self.printed
                await asyncio.sleep(0.02)
        self.url = STARTED.findall(self.printed)[-1]

    async def end(self, by: signal.Signals = signal.SIGINT) -> int:
        """End it, and return its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(by)
        return await self._process.wait()

    @property
    def printed(self) -> str:
        """All that it printed."""
        return self._printed.read_text()

    def kill(self) -> None:
        """Let it end as by a power cut."""
        assert self._process is not None
        self._process.kill()


@asynccontextmanager
async def running(folder: Path, *options: str) -> AsyncIterator[Demo]:
    """Run the demo for the length of a ``with`` block."""
    demo = Demo(folder, *options)
    await demo.start()
    try:
        yield demo
    finally:
        await demo.end(signal.SIGKILL)


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def one_demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    """One demo for the module, on SQLite."""
    async with running(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest_asyncio.fixture(loop_scope="session")
async def demo(one_demo: Demo) -> Demo:
    """The demo, with empty tables."""
    async with httpx2.AsyncClient(base_url=one_demo.url) as client:
        await client.post("/sign-in/1", headers={"Sec-Fetch-Site": "same-origin"})
        emptied = await client.post("/demo/reset", json={})
        assert emptied.status_code == 200
    return one_demo


class Person:
    """A person at their own browser, who sees to it that no transfer token gets where it must not be.

    Args:
        demo: The demo.
        tab: Their tab.
    """

    def __init__(self, demo: Demo, tab: Page) -> None:
        self.demo, self.tab = demo, tab
        self.arrived: list[str] = []
        self.problems: list[str] = []
        tab.on("framenavigated", lambda frame: self.arrived.append(frame.url))
        tab.on("request", self._check)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("console", self._hear)

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type in {"warning", "error"}:
            self.problems.append(f"{said.text} {said.location['url']}")

    def _check(self, request: Request) -> None:
        """Note a token that a request carries anywhere but in the body of the one POST that redeems it."""
        for place, text in (
            ("address", request.url.partition("#")[0]),
            ("Referer", request.headers.get("referer", "")),
        ):
            if TOKEN in text:
                self.problems.append(f"the token is in the {place} of {request.method} {request.url}")

    async def signs_in(self, name: str) -> None:
        """Be somebody, from the first page that there is."""
        await self.tab.goto(self.demo.url)
        await self.press(f"Be {name}")
        await self.is_called(name)

    async def is_called(self, name: str) -> None:
        """See on the page who they are."""
        await expect(self.tab.locator("#who")).to_have_text(f"You are {name}")

    async def press(self, button: str) -> None:
        """Press a button with the mouse."""
        await self.tab.get_by_role("button", name=button, exact=True).click()

    async def sets_out(self, provider: str = "Orbit Calendar") -> None:
        """Begin to connect an account, until the provider's page is there."""
        await self.press(f"Connect {provider}")
        await expect(self.tab.get_by_role("heading", name=CHOICE)).to_be_visible()

    async def connects(self, account: str = "team", provider: str = "Orbit Calendar") -> None:
        """Connect an account."""
        await self.sets_out(provider)
        await self.tab.get_by_role("button", name=f"{account}@").click()

    async def reads(self, notice: str | re.Pattern[str]) -> None:
        """Read what the page says, at an address that says nothing."""
        await expect(self.tab.get_by_role("status")).to_have_text(notice)
        assert self.tab.url == f"{self.demo.url}/settings/accounts"

    async def has(self, *addresses: str) -> None:
        """See these accounts, and no other."""
        await expect(self.tab.locator("#accounts small")).to_have_text(list(addresses))

    async def reloads(self) -> None:
        """Press reload: the page says nothing that is no longer news, and asks nothing."""
        await self.tab.reload()
        await self.reads("")
        await expect(self.dialog).to_be_hidden()

    async def goes_back(self, *, to: str) -> None:
        """Press Back, and see the page with this heading."""
        await self.tab.go_back()
        await expect(self.tab.get_by_role("heading", name=to, exact=True)).to_be_visible()

    @property
    def dialog(self) -> Locator:
        """The dialog of a conflict."""
        return self.tab.get_by_role("dialog", name="Another user has connected this account")

    async def tabs_to(self, button: str, *, presses: int = 60) -> None:
        """Reach a button with the Tab key."""
        wanted = self.tab.get_by_role("button", name=button, exact=True)
        for _ in range(presses):
            await self.tab.keyboard.press("Tab")
            if await wanted.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"the Tab key does not reach {button!r}")

    async def keys(self, button: str) -> None:
        """Reach a button with the Tab key, and press Enter."""
        await self.tabs_to(button)
        await self.tab.keyboard.press("Enter")


@asynccontextmanager
async def person(demo: Demo, chromium: Browser, *, bears: str = "", **settings: Any) -> AsyncIterator[Person]:
    """Give a person a browser of their own, and check in the end that nothing went wrong in it but what they bear."""
    context = await chromium.new_context(**settings)
    context.set_default_timeout(15_000)
    somebody = Person(demo, await context.new_page())
    yield somebody
    await context.close()
    assert [each for each in somebody.problems if not bears or bears not in each] == []
    tokens = [url.partition(f"{TOKEN}=")[2] for url in somebody.arrived if TOKEN in url]
    assert not any(token in demo.printed for token in tokens)
    assert "transfer_token" not in demo.printed


async def tell(demo: Demo, chromium: Browser) -> None:
    """Tell the whole story of both people, with Back and reload after each step."""
    async with person(demo, chromium) as alice, person(demo, chromium) as bob:
        await alice.signs_in("Alice")
        await bob.signs_in("Bob")

        await meet(alice, bob)
        await part(alice, bob)
        told = bob.tab.get_by_role("region", name="Events that the worker took").locator("strong")
        await expect(told).to_have_text([*EVENTS])
        await expect(bob.tab.get_by_role("region", name="Statements that ran for users")).to_contain_text("INSERT INTO")


async def meet(alice: Person, bob: Person) -> None:
    """Let Alice connect accounts, and Bob meet the conflict."""
    # Alice connects an account, and a second one of the provider, and one of another.
    await alice.connects()
    await alice.reads(CONNECTED)
    await alice.reloads()
    await alice.has("team@orbit.example")
    await alice.goes_back(to=CHOICE)
    await alice.tab.get_by_role("button", name="team@").click()
    await alice.reads(USED)
    await alice.connects("alice")
    await alice.reads(CONNECTED)
    await alice.connects("alice", "Harbor Drive")
    await alice.has("team@orbit.example", "alice@orbit.example", "alice@harbor.example")

    # Bob meets the conflict. A reload forgets the offer, Escape declines it.
    await bob.connects()
    await expect(bob.dialog).to_be_visible()
    await bob.reads(ANOTHER)
    await bob.reloads()
    await bob.connects()
    await expect(bob.dialog).to_be_visible()
    await bob.tab.keyboard.press("Escape")
    await expect(bob.dialog).to_be_hidden()
    await bob.has()
    await alice.has("team@orbit.example", "alice@orbit.example", "alice@harbor.example")


async def part(alice: Person, bob: Person) -> None:
    """Let Bob take the account over, and do with it what a user does."""
    # Alice reads it on the page that is still open.
    await bob.connects()
    await bob.press("Move it to me")
    await bob.reads(CONNECTED)
    await bob.has("team@orbit.example")
    await expect(alice.tab.get_by_text("Bob has connected your account at Orbit Calendar")).to_be_visible()
    await alice.has("alice@orbit.example", "alice@harbor.example")
    await bob.reloads()
    await bob.goes_back(to="Connected accounts")
    await expect(bob.dialog).to_be_hidden()
    await alice.press("I have read this")
    await expect(alice.tab.get_by_role("list", name="Notices").get_by_role("listitem")).to_have_count(0)
    await alice.reloads()
    await expect(alice.tab.get_by_text("Bob has connected your account")).to_be_hidden()

    # Bob connects it, disconnects it, and connects it again: one row serves all along.
    await bob.press("Reconnect Orbit Calendar, team@orbit.example")
    await bob.tab.get_by_role("button", name="bob@").click()
    await bob.reads("You signed in with another account than the one that you wanted to reconnect.")
    await bob.press("Reconnect Orbit Calendar, team@orbit.example")
    await bob.tab.get_by_role("button", name="team@").click()
    await bob.reads(CONNECTED)
    await bob.press("Disconnect Orbit Calendar, team@orbit.example")
    await bob.reads(DISCONNECTED)
    await bob.has()
    await bob.reloads()
    await bob.goes_back(to="Connected accounts")
    await bob.has()
    await bob.connects()
    await bob.has("team@orbit.example")
    rows = bob.tab.get_by_role("region", name="The rows of everybody").get_by_role("row")
    await expect(rows.filter(has_text="team@orbit.example")).to_have_count(1)

    # A user who says no is told so.
    await bob.sets_out("Quill Code")
    await bob.press("Cancel")
    await bob.reads("You did not agree at the provider. Nothing was connected.")


async def test_the_story_by_mouse(demo: Demo, chromium: Browser) -> None:
    """The whole story, on SQLite."""
    await tell(demo, chromium)


@pytest.mark.stress
async def test_the_story_on_postgresql(tmp_path: Path, chromium: Browser, postgres: PostgresServer) -> None:
    """The whole story, on PostgreSQL; what is asked of PostgreSQL is also tested without a browser."""
    async with (
        fresh_database("asyncpg", tmp_path, postgres) as database,
        running(tmp_path, "--database-url", database.url) as demo,
    ):
        await tell(demo, chromium)


async def test_the_story_by_keyboard(demo: Demo, chromium: Browser) -> None:
    """Connect, meet the conflict, decline it, take the account over and disconnect it, without a mouse."""
    async with person(demo, chromium) as alice, person(demo, chromium) as bob:
        for somebody, name in ((alice, "Alice"), (bob, "Bob")):
            await somebody.tab.goto(demo.url)
            await expect(somebody.tab.get_by_role("button", name="Be Alice")).to_be_visible()
            await somebody.keys(f"Be {name}")
            await somebody.is_called(name)
            await somebody.keys("Connect Orbit Calendar")
            await expect(somebody.tab.get_by_role("heading", name=CHOICE)).to_be_visible()
            await somebody.keys("The team team@orbit.example")
        await alice.reads(CONNECTED)

        await expect(bob.dialog).to_be_visible()
        await expect(bob.dialog.get_by_role("button", name="Cancel")).to_be_focused()
        await bob.is_called("Bob")
        for _ in range(8):  # the focus stays inside, or in the browser's own bars
            await bob.tab.keyboard.press("Tab")
            assert await bob.tab.evaluate("() => document.activeElement.closest('dialog, body').tagName") in INSIDE
            assert not await bob.tab.evaluate("() => document.activeElement.matches('main *, header *')")
        await bob.tab.keyboard.press("Escape")
        await expect(bob.dialog).to_be_hidden()
        await expect(bob.tab.get_by_role("button", name="Connect Orbit Calendar")).to_be_focused()

        await bob.keys("Connect Orbit Calendar")
        await expect(bob.tab.get_by_role("heading", name=CHOICE)).to_be_visible()
        await bob.keys("The team team@orbit.example")
        await expect(bob.dialog).to_be_visible()
        await bob.keys("Move it to me")
        await bob.reads(CONNECTED)
        await expect(alice.tab.get_by_text("Bob has connected your account")).to_be_visible()
        await alice.keys("I have read this")
        await expect(alice.tab.get_by_text("Bob has connected your account")).to_be_hidden()
        await bob.keys("Disconnect Orbit Calendar, team@orbit.example")
        await bob.reads(DISCONNECTED)


async def test_two_tabs(demo: Demo, chromium: Browser) -> None:
    """One person connects in two tabs: both succeed, each shows the other's account, and switching is seen in both."""
    async with person(demo, chromium) as alice:
        await alice.signs_in("Alice")
        second = Person(demo, await alice.tab.context.new_page())
        await second.tab.goto(demo.url)
        await second.is_called("Alice")
        await alice.sets_out()
        await second.sets_out("Quill Code")
        await alice.tab.get_by_role("button", name="team@").click()
        await alice.reads(CONNECTED)
        await second.tab.get_by_role("button", name="team@").click()
        await second.reads(CONNECTED)
        for each in (alice, second):
            await each.has("team@orbit.example", "team@quill.example")
        await second.press("Switch to Bob")
        await alice.is_called("Bob")
        await alice.has()
        assert second.problems == []


async def test_what_others_change_meanwhile(demo: Demo, chromium: Browser) -> None:
    """A choice stays while accounts come; a token that was shown is gone when another tab is somebody else."""
    async with person(demo, chromium) as alice:
        await alice.signs_in("Alice")
        await alice.connects("team")
        await alice.reads(CONNECTED)
        await alice.connects("alice")
        await alice.has("team@orbit.example", "alice@orbit.example")
        choice = alice.tab.get_by_label("Let somebody use one of your accounts for a week")
        await choice.select_option(label="Orbit Calendar (alice@orbit.example)")
        chosen = await choice.input_value()
        second = Person(demo, await alice.tab.context.new_page())
        await second.tab.goto(demo.url)
        await second.connects("team", "Quill Code")
        await second.reads(CONNECTED)
        await alice.has("team@orbit.example", "alice@orbit.example", "team@quill.example")
        await expect(choice.get_by_role("option")).to_have_count(3)
        assert await choice.input_value() == chosen
        await alice.press("Make a token")
        await expect(alice.tab.locator("#token-text")).to_be_visible()
        await second.press("Switch to Bob")
        await alice.is_called("Bob")
        await expect(alice.tab.locator("#token-text")).to_be_hidden()
        assert second.problems == []


async def test_a_database_that_cannot_be_read(tmp_path: Path, chromium: Browser) -> None:
    """The page says so, and shows everything again when it can; it is never blank."""
    async with running(tmp_path) as demo, person(demo, chromium, bears="503") as alice:
        await alice.signs_in("Alice")
        file = tmp_path / "data" / "demo.sqlite3"
        with closing(sqlite3.connect(file)) as other:
            other.execute("ALTER TABLE accountlink_demo_told RENAME TO away")
            await alice.tab.goto(demo.url)
            said = alice.tab.get_by_role("status")
            await expect(said).to_contain_text("cannot read its database")
            assert "--fresh makes new tables" in demo.printed
            other.execute("ALTER TABLE away RENAME TO accountlink_demo_told")
            await expect(said).to_have_text("")
            await alice.is_called("Alice")


async def test_killed_in_mid_flow(tmp_path: Path, chromium: Browser) -> None:
    """A demo that is killed while somebody is at the provider, on the way back, or before the dialog, goes on."""
    gone = "net::ERR_"  # the page goes on looking
    async with (
        running(tmp_path) as demo,
        person(demo, chromium, bears=gone) as alice,
        person(demo, chromium, bears=gone) as bob,
    ):
        await alice.signs_in("Alice")
        await bob.signs_in("Bob")
        await alice.sets_out()
        demo.kill()
        await demo.start()
        await alice.tab.get_by_role("button", name="team@").click()
        await alice.reads(CONNECTED)

        on_the_way = asyncio.Event()

        async def restart(route: Route) -> None:
            answer = await route.fetch(max_redirects=0)
            assert "/accounts/callback/orbit?code=" in answer.headers["location"]
            demo.kill()
            await demo.end()
            await demo.start()
            on_the_way.set()
            await route.fulfill(response=answer)

        await bob.tab.route("**/orbit/authorize?*answer=*", restart, times=1)
        await bob.connects()
        await expect(bob.dialog).to_be_visible()
        assert on_the_way.is_set()
        demo.kill()
        await demo.end()
        await demo.start()
        await bob.press("Move it to me")
        await bob.reads(CONNECTED)
        await bob.has("team@orbit.example")
        await alice.has()
        assert 0 == await demo.end()


async def test_sharing(demo: Demo, chromium: Browser) -> None:
    """Make a token, use it, use it again, revoke; what was refused is said."""
    async with person(demo, chromium) as alice, person(demo, chromium) as bob:
        await alice.signs_in("Alice")
        await alice.connects()
        await alice.reads(CONNECTED)
        await bob.signs_in("Bob")
        for _ in range(2):
            await alice.press("Make a token")
            await alice.reads("The token is made.")
            token = await alice.tab.locator("#token-text").inner_text()
            await expect(alice.tab.get_by_text("waits for somebody")).to_be_visible()
            await bob.tab.get_by_label("Use a token that somebody gave you").fill(f" {token} ")
            await bob.press("Use it")
            await bob.reads("You have the access now.")
            await expect(
                bob.tab.get_by_text("You may use Orbit Calendar (team@orbit.example) of Alice")
            ).to_be_visible()
            await expect(alice.tab.get_by_text("Bob may use Orbit Calendar (team@orbit.example)")).to_be_visible()
            await alice.press("Revoke")
            await alice.reads("Revoked.")
            await expect(bob.tab.get_by_text("You may use Orbit Calendar")).to_be_hidden()
            await bob.tab.get_by_label("Use a token that somebody gave you").fill(token)
            await bob.press("Use it")
            await bob.reads("This token is unknown, used up, your own, or over.")
            assert "409 (Conflict)" in bob.problems.pop()
            assert token not in demo.printed
        await expect(alice.tab.get_by_text("may use")).to_have_count(0)


async def test_the_vault(demo: Demo, chromium: Browser) -> None:
    """A moved ciphertext is refused in its row alone, and put back; a claimant's tokens come with the transfer."""
    settings: dict[str, Any] = {"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 800}}
    async with person(demo, chromium) as alice, person(demo, chromium, **settings) as bob:
        await alice.signs_in("Alice")
        await alice.connects()
        await alice.reads(CONNECTED)
        await bob.signs_in("Bob")
        await bob.connects("bob")
        await bob.reads(CONNECTED)
        entries = bob.tab.locator("#envelopes li")
        alices, bobs, waiting = entries.nth(0), entries.nth(1), entries.nth(2)
        row = re.compile(r"^Row 1, Alice.*al1.*Access token")
        await expect(entries).to_have_text([row, re.compile(r"^Row 2, Bob.*al1.*Access token")])

        # The row alone is refused, and its account asks to be connected again.
        await bob.press(COPY)
        await bob.reads("Row 2 now has the ciphertext of row 1. See below how it is read.")
        await expect(bobs).to_contain_text("Refused: credentials_unreadable (access_token, not_authentic)")
        await expect(alices).to_have_text(row)
        await expect(bob.tab.locator("#accounts")).to_contain_text("Its tokens cannot be read. Reconnect it.")
        await expect(bob.tab.get_by_role("button", name=RESTORE)).to_be_focused()
        await keep(bob.tab, "vault-light-1280")
        assert await violations(bob.tab) == []
        await bob.tab.set_viewport_size({"width": 360, "height": 800})
        await bob.tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
        await bob.reloads()
        await expect(bobs).to_contain_text("Refused")
        await bobs.scroll_into_view_if_needed()
        assert await violations(bob.tab) == []
        assert await bob.tab.evaluate("() => document.documentElement.scrollWidth") <= 360
        assert await bob.tab.evaluate(JUMPS) == 0
        await keep(bob.tab, "vault-dark-360")

        # By keyboard: the focus stays where it was.
        await bob.tab.get_by_role("button", name=RESTORE).focus()
        await bob.tab.keyboard.press("Enter")
        await bob.reads("Row 2 has its own ciphertext again.")
        await expect(bobs).not_to_contain_text("Refused")
        await expect(bob.tab.get_by_role("button", name=COPY)).to_be_focused()

        # The grant that waited is in the row, and the account is ready.
        await bob.connects()
        await expect(bob.dialog).to_be_visible()
        await expect(waiting).to_have_text(re.compile(r"^Waits for Bob.*al1"))
        grant = await waiting.locator("dd").nth(2).inner_text()
        await bob.press("Move it to me")
        await bob.reads(CONNECTED)
        await expect(entries).to_have_text([re.compile(r"^Row 1, Bob.*Access token"), re.compile(r"^Row 2, Bob")])
        assert grant == await alices.locator("dd").nth(2).inner_text()
        await expect(bob.tab.locator("#accounts span")).to_have_text(["Works: it has your tokens."] * 2)


async def test_tokens_that_expire(demo: Demo, chromium: Browser) -> None:
    """Two workers renew a token by one call; after the consent is withdrawn, reconnecting repairs the same link."""
    settings: dict[str, Any] = {"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 800}}
    async with person(demo, chromium, **settings) as alice:
        await alice.signs_in("Alice")
        await alice.connects()
        await alice.reads(CONNECTED)
        which = "Orbit Calendar (team@orbit.example)"
        grant = alice.tab.locator("#grants li")
        came = alice.tab.get_by_role("region", name="What came of it")
        await expect(grant).to_have_text(re.compile(r"Valid until .*Works"))

        # One call for both.
        await alice.press(f"Let the token expire: {which}")
        await expect(grant).to_contain_text("Over since")
        await alice.press(f"Two workers ask at once: {which}")
        await expect(came).to_contain_text("Both have the same token. Orbit Calendar counted 1 token call.")
        await expect(came.get_by_role("listitem")).to_have_text(
            [re.compile(rf"^Worker {n} got the token .{{6}}…") for n in (1, 2)]
        )
        await expect(grant).to_have_text(re.compile(r"Valid until .*Works"))

        # By keyboard: the next call finds out that the consent is withdrawn. The focus stays.
        await alice.tab.get_by_role("button", name="Withdraw consent at the provider").focus()
        await alice.tab.keyboard.press("Enter")
        await expect(came).to_contain_text("Withdrawn at Orbit Calendar. The application does not know it yet")
        await alice.press(f"Let the token expire: {which}")
        await alice.tab.get_by_role("button", name="Two workers ask at once").focus()
        await alice.tab.keyboard.press("Enter")
        await expect(came).to_contain_text("The grant has ended: reconnect the account. Orbit Calendar counted 1 token")
        await expect(grant).to_contain_text("(invalid_grant)")
        await expect(alice.tab.get_by_role("button", name="Two workers ask at once")).to_be_focused()
        health = alice.tab.locator("#accounts span")
        await expect(health).to_have_text(
            re.compile(r"^Needs reconnect since .*: Orbit Calendar has ended the access\.$")
        )
        events = alice.tab.get_by_role("region", name="Events that the worker took")
        await expect(events.locator("li").first).to_contain_text("consent_needed of Alice, row 1")
        await keep(alice.tab, "tokens-light-1280")
        assert await violations(alice.tab) == []
        await alice.tab.set_viewport_size({"width": 360, "height": 800})
        await alice.tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
        await alice.reloads()
        await expect(health).to_contain_text("Needs reconnect")
        assert await violations(alice.tab) == []
        assert await alice.tab.evaluate("() => document.documentElement.scrollWidth") <= 360
        assert await alice.tab.evaluate(JUMPS) == 0
        await keep(alice.tab, "tokens-dark-360")

        # Another account is not the one to repair; the same one is, and keeps its row.
        await alice.press("Reconnect Orbit Calendar, team@orbit.example")
        await alice.tab.get_by_role("button", name="alice@").click()
        await alice.reads("You signed in with another account than the one that you wanted to reconnect.")
        await expect(health).to_contain_text("Needs reconnect")
        await alice.press("Reconnect Orbit Calendar, team@orbit.example")
        await alice.tab.get_by_role("button", name="team@").click()
        await alice.reads(CONNECTED)
        await expect(health).to_have_text("Works: it has your tokens.")
        await expect(grant).to_have_text(re.compile(r"Valid until .*Works"))
        await expect(alice.tab.locator("#rows tr")).to_have_text([re.compile(r"^1Alice")])


async def test_the_doctor(demo: Demo, chromium: Browser) -> None:
    """Each of the four systems is broken, diagnosed and repaired, and nothing of it stays."""
    async with person(demo, chromium) as alice:
        await alice.signs_in("Alice")
        diagnosis = alice.tab.get_by_role("region", name="Diagnosis")
        for system, rule in FOUND.items():
            await alice.press(f"Break it: {system}")
            await expect(diagnosis.get_by_role("heading")).to_have_text(system)
            await expect(diagnosis).to_be_focused()
            await expect(diagnosis).to_contain_text(rule)
            await expect(diagnosis).to_contain_text("After it, the doctor finds nothing.")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
async def test_it_is_accessible(demo: Demo, chromium: Browser, scheme: str, width: int) -> None:
    """Nothing for axe to find, nothing is wider than the screen, and nothing jumps while a page loads."""
    size = {"width": width, "height": 800}
    settings: dict[str, Any] = {"color_scheme": scheme, "viewport": size, "reduced_motion": "reduce"}
    async with person(demo, chromium, **settings) as alice, person(demo, chromium, **settings) as bob:

        async def holds(somebody: Person, name: str) -> None:
            assert await violations(somebody.tab) == [], name
            assert await somebody.tab.evaluate("() => document.documentElement.scrollWidth") <= width
            if await somebody.dialog.is_visible():
                box = await somebody.dialog.bounding_box()
                assert box is not None
                assert (box["x"] >= 0, box["x"] + box["width"] <= width) == (True, True), box
            assert name == "doctor" or await somebody.tab.evaluate(JUMPS) == 0, name
            await keep(somebody.tab, f"{name}-{scheme}-{width}")

        await alice.tab.goto(demo.url)
        await expect(alice.tab.get_by_role("button", name="Be Alice")).to_be_visible()
        await holds(alice, "nobody")
        await alice.press("Be Alice")
        await alice.sets_out()
        await holds(alice, "provider")
        await alice.tab.get_by_role("button", name="team@").click()
        await alice.reads(CONNECTED)
        await alice.press("Make a token")
        await alice.reads("The token is made.")
        await bob.signs_in("Bob")
        await bob.connects()
        await expect(bob.dialog).to_be_visible()
        await holds(bob, "conflict")
        await bob.press("Move it to me")
        await bob.reads(CONNECTED)
        await expect(alice.tab.get_by_text("Bob has connected your account")).to_be_visible()
        await alice.reloads()
        await holds(alice, "former-owner")
        await alice.tab.set_viewport_size({"width": 320, "height": 256})  # as at 400 %
        notice = await alice.tab.get_by_role("list", name="Notices").bounding_box()
        assert notice is not None
        assert 0 <= notice["y"] <= notice["y"] + notice["height"] <= 256
        await alice.tab.set_viewport_size({"width": width, "height": 800})
        await alice.press("Break it: Cloud provider accounts")
        await expect(alice.tab.get_by_text("After it, the doctor finds nothing.")).to_be_visible()
        await holds(alice, "doctor")


async def test_a_link_with_a_text_of_its_own(demo: Demo, chromium: Browser) -> None:
    """Every site can link to the page: it shows none of the texts, and no dialog for what is no token."""
    async with person(demo, chromium) as alice:
        await alice.signs_in("Alice")
        await alice.tab.goto(f"{demo.url}/settings/accounts?error=<img src=x onerror=alert(1)>#x=<script>")
        await expect(alice.tab.get_by_role("status")).to_have_text("That did not work. Please try again.")
        assert await alice.tab.locator("img[src=x]").count() == 0


async def keep(tab: Page, name: str) -> None:
    """Keep a picture of the page where a variable asks for pictures."""
    if folder := os.environ.get(SCREENSHOTS):
        await tab.screenshot(path=Path(folder) / f"{name}.png", full_page="conflict" not in name)
