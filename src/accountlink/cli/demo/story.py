"""Tells the story, and checks every sentence of it against the redirects and the rows before printing it."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
from sqlalchemy.exc import SQLAlchemyError

from accountlink import AccountLinkError, Change, EventType
from accountlink.cli.demo.backend import ACCOUNTS, SETTINGS
from accountlink.cli.demo.stage import ORIGIN, PROVIDER, Stage, set_stage
from accountlink.cli.demo.tokens import WORKERS, ask_at_once, let_expire
from accountlink.cli.output import Output

PAGE = f"{ORIGIN}{SETTINGS}"
ALICE, BOB = 1, 2
PEOPLE = {ALICE: "Alice", BOB: "Bob"}
ACCOUNT = "248289761001"
EVENT_OF = {
    Change.CREATED: EventType.LINKED,
    Change.UPDATED: EventType.UPDATED,
    Change.RESTORED: EventType.RESTORED,
}
SHOWN_OF_TOKEN = 8
TOKENS = ("access_token", "refresh_token")
TOKEN_MARK = "#transfer_token="  # noqa: S105  # where a token begins, not a token


class UnexpectedOutcome(Exception):
    """A step did not come out as the story says; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Act as a person at their own browser."""

    user_id: int
    browser: httpx2.AsyncClient

    @property
    def name(self) -> str:
        """Their name."""
        return PEOPLE[self.user_id]

    async def sign_in(self) -> httpx2.Response:
        """Sign in to the backend."""
        return await self.browser.post(f"/sign-in/{self.user_id}")

    async def connect(self) -> httpx2.Response:
        """Press "connect", sign in at the provider, and be sent back through the callback."""
        return await self.browser.post(f"{ACCOUNTS}/connect/{PROVIDER}")

    async def take_over(self, token: str) -> httpx2.Response:
        """Press "it is mine" in the dialogue that a conflict opens."""
        return await self.browser.post(f"{ACCOUNTS}/transfer", data={"transfer_token": token})

    async def disconnect(self, link_id: int) -> httpx2.Response:
        """Press "disconnect" beside one account."""
        return await self.browser.post(f"{ACCOUNTS}/{link_id}/unlink")


async def tell(output: Output, *, database_url: str | None = None) -> None:
    """Tell the whole story.

    Args:
        output: Where to print.
        database_url: An async SQLAlchemy URL; ``None`` for a temporary SQLite file.

    Raises:
        CannotStart: The database cannot be used.
        UnexpectedOutcome: Something did not come out as it should.
    """
    async with AsyncExitStack() as cleanup:
        stage = await cleanup.enter_async_context(set_stage(people=PEOPLE, database_url=database_url))
        stage.provider.add_account(ACCOUNT, email="team@example.org", name="The team's calendar")
        stage.provider.sign_in_as(ACCOUNT)
        alice = Person(user_id=ALICE, browser=await cleanup.enter_async_context(stage.browser()))
        bob = Person(user_id=BOB, browser=await cleanup.enter_async_context(stage.browser()))
        try:
            await _tell(output, stage, alice, bob)
        except (AccountLinkError, SQLAlchemyError, httpx2.HTTPError) as problem:
            # Only our own errors are known to carry no parameter, address or token in their text.
            detail = f": {problem}" if isinstance(problem, AccountLinkError) else ""
            raise UnexpectedOutcome(f"the demo broke off: {type(problem).__name__}{detail}") from problem


async def _tell(output: Output, stage: Stage, alice: Person, bob: Person) -> None:
    output.heading("1. Alice signs in and links a provider account")
    link_id = await _link(output, stage, alice, expected=Change.CREATED)
    output.line(f"in the table its token is sealed: {await _envelope(stage, alice)}")

    output.heading("2. Alice connects the same account again")
    before = await stage.read(ALICE)
    await _link(output, stage, alice, expected=Change.UPDATED, link_id=link_id)
    _expect(await stage.read(ALICE) != before, "the new token was not stored")
    output.line("the same row holds the new tokens")

    output.heading("3. The access token is over, and two workers ask for it at once")
    await _renew(output, stage, alice, link_id)

    output.heading("4. Bob signs in and connects the same provider account")
    token = await _conflict(output, stage, owner=alice, claimant=bob)

    output.heading("5. Bob takes it over, after proving control of it")
    await _take_over(output, stage, former=alice, claimant=bob, token=token)

    output.heading("6. Bob connects the same account again")
    await _link(output, stage, bob, expected=Change.UPDATED, link_id=link_id)

    output.heading("7. Bob disconnects")
    await _unlink(output, stage, bob, link_id)

    output.heading("8. Bob reconnects")
    await _link(output, stage, bob, expected=Change.RESTORED, link_id=link_id)

    output.heading("In the end, without the tokens")
    output.table(["link", "owner", "provider", "account", "e-mail", "disconnected"], [_shown(await _only_row(stage))])


async def _link(output: Output, stage: Stage, person: Person, *, expected: Change, link_id: int | None = None) -> int:
    """Let the person sign in, connect, and end up with the expected change of the expected link."""
    await person.sign_in()
    arrived = await person.connect()
    accounts = await _accounts(person, arrived, at=f"{PAGE}?connection=success")
    row = await _only_row(stage)
    await _events(stage, (EVENT_OF[expected], person, None))
    _expect([account["id"] for account in accounts] == [row["id"]], "the page shows another link")
    _expect(link_id in {None, row["id"]}, f"link {link_id} was expected, not {row['id']}")
    _expect((row["user_id"], row["account_id"]) == (person.user_id, ACCOUNT), "the row is somebody else's")
    _expect(row["deleted_at"] is None, "the row is marked as disconnected")
    same = "" if link_id is None else ", the same id as before"
    output.line(f"{expected.value}: link {row['id']}{same}")
    output.line(f"the browser is sent to {arrived.url}")
    return int(row["id"])


async def _renew(output: Output, stage: Stage, person: Person, link_id: int) -> None:
    """Let two workers ask for a token that is over: both get the one that came of one token call."""
    before, calls = await stage.read(person.user_id), stage.provider.calls["/token"]
    await let_expire(stage.engine, user_id=person.user_id, link_id=link_id)
    asked = await ask_at_once(stage.new_engine, stage.new_linker, user_id=person.user_id, link_id=link_id)
    stored = await stage.read(person.user_id)
    _expect([stored] * WORKERS == [each.access_token for each in asked], "the workers did not get the stored token")
    _expect(stored != before, "the token was not renewed")
    _expect(stage.provider.calls["/token"] == calls + 1, "the provider was not asked once")
    output.line("both get the same new token, and the provider was asked once")


async def _conflict(output: Output, stage: Stage, *, owner: Person, claimant: Person) -> str:
    """Let the person connect an account of another user: they are told so and given a token, and nothing is touched."""
    owners_row = await _only_row(stage)
    await claimant.sign_in()
    arrived = await claimant.connect()
    address, mark, token = str(arrived.url).partition(TOKEN_MARK)
    accounts = await _accounts(claimant, arrived, at=f"{PAGE}?error=ownership_conflict")
    await _events(stage, (EventType.CONFLICT, claimant, owner))
    _expect(bool(mark) and len(token) > SHOWN_OF_TOKEN, "the conflict carries no transfer token")
    _expect(accounts == [], "the other user was given an account")
    _expect(await _only_row(stage) == owners_row, "the owner's row was touched")
    output.line(f"ownership conflict: {address}{mark}{token[:SHOWN_OF_TOKEN]}...")
    output.line(f"{owner.name}'s row is untouched: every column is as it was")
    kept = [row["user_id"] for row in await stage.kept()]
    _expect(kept == [str(claimant.user_id)], "the claimant's tokens are not kept")
    output.line(f"{claimant.name}'s own tokens are kept for the transfer, sealed")
    return token


async def _take_over(output: Output, stage: Stage, *, former: Person, claimant: Person, token: str) -> None:
    """Let the token be redeemed: not by the owner, by the claimant, and by the claimant again."""
    before, formers = await _only_row(stage), await stage.read(former.user_id)
    (kept,) = await stage.kept()
    address = str((await former.take_over(token)).url)
    _expect(address == f"{PAGE}?error=token_for_another_user", f"a refusal was expected, not {address}")
    _expect(await _only_row(stage) == before, "a refused transfer touched the row")
    output.line(f"with the same token {former.name} gets nowhere: {address}")

    await _accounts(claimant, await claimant.take_over(token), at=f"{PAGE}?connection=success")
    row = await _only_row(stage)
    _expect((row["id"], row["user_id"]) == (before["id"], claimant.user_id), "the row is not the claimant's")
    stored = [row[name] for name in TOKENS]
    _expect(stored == [kept[name] for name in TOKENS], "the link does not have the claimant's tokens")
    _expect(await stage.read(claimant.user_id) != formers, "the former owner's tokens are still stored")
    _expect(await stage.kept() == [], "the claimant's tokens are still kept elsewhere")
    output.line(f"transferred: link {row['id']} is {claimant.name}'s, under its id")
    output.line(f"it has the tokens that {claimant.name} brought, and nothing is left of {former.name}'s")

    await _accounts(claimant, await claimant.take_over(token), at=f"{PAGE}?connection=success")
    _expect(await _only_row(stage) == row, "a second click touched the row")
    output.line(f"a second click: it is {claimant.name}'s already, and nothing is written")

    await _events(stage, (EventType.TRANSFERRED, claimant, former))
    output.line(f"the outbox tells a worker, who writes to {former.name} that it is gone")


async def _unlink(output: Output, stage: Stage, person: Person, link_id: int) -> None:
    """Let the person disconnect: the row stays, marked, and the tokens are gone."""
    accounts = await _accounts(person, await person.disconnect(link_id), at=f"{PAGE}?connection=unlinked")
    row = await _only_row(stage)
    _expect(accounts == [], "the account is still on the page")
    await _events(stage, (EventType.UNLINKED, person, None))
    _expect(row["id"] == link_id and row["deleted_at"] is not None, "the row is not marked as disconnected")
    _expect(row["access_token"] is None and row["refresh_token"] is None, "the tokens are still stored")
    output.line(f"unlinked: link {link_id} is kept, marked as disconnected, and its tokens are wiped")


async def _events(stage: Stage, *expected: tuple[EventType, Person, Person | None]) -> None:
    """Let the worker behind the outbox take the events since the last time, and compare them."""
    told = [(event.type, event.user_id, event.other_user_id) for event in await stage.events()]
    wanted = [(kind, user.user_id, other and other.user_id) for kind, user, other in expected]
    _expect(told == wanted, f"the outbox tells {told}")


async def _envelope(stage: Stage, person: Person) -> str:
    """Return how the stored envelope begins, given that the application reads the token in it."""
    text, token = str((await _only_row(stage))["access_token"]), await stage.read(person.user_id)
    _expect(text.startswith("al1.") and token not in text, "the token is not sealed")
    return f"{text.rpartition('.')[0]}..."


async def _only_row(stage: Stage) -> dict[str, Any]:
    rows = await stage.rows()
    _expect(len(rows) == 1, f"one row was expected, not {len(rows)}")
    return rows[0]


async def _accounts(person: Person, arrived: httpx2.Response, *, at: str) -> list[dict[str, Any]]:
    """Return the accounts that the person is shown, given that they arrived at the page that was expected."""
    address = str(arrived.url).partition("#")[0]
    _expect(address == at, f"the browser was sent to {address} instead of {at}")
    _expect(arrived.status_code == httpx2.codes.OK, f"{address} answered {arrived.status_code}")
    listed = await person.browser.get(ACCOUNTS, headers={"Accept": "application/json"})
    accounts: list[dict[str, Any]] = listed.json()
    return accounts


def _shown(row: dict[str, Any]) -> list[str]:
    disconnected = "no" if row["deleted_at"] is None else "yes"
    owner = PEOPLE[row["user_id"]]
    return [str(row["id"]), owner, row["provider"], row["account_id"], row["email"], disconnected]


def _expect(condition: bool, otherwise: str) -> None:  # noqa: FBT001  # what is checked is not an option
    if not condition:
        raise UnexpectedOutcome(f"this is not how the story goes: {otherwise}")
