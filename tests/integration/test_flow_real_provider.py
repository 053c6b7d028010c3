"""LinkFlow against a real OpenID provider: what succeeds, and what is refused before a request leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Change, CredentialVault, Linked, OwnershipConflict, pending_credentials
from accountlink.errors import (
    ConsentDeclined,
    FlowNotStartedHere,
    FlowRejected,
    FlowReplayed,
    ProviderFailed,
    ProviderMismatch,
    TicketRejected,
)
from accountlink.providers import oidc as described
from accountlink.web import Finished, LinkFlow, flow_states
from tests.support.issued import Issued, texts_of
from tests.support.models import EXCLUSIVE, SECRETS, make_tables
from tests.support.oidc import Issuer, OidcProvider
from tests.support.routers import api_client, application, leave
from tests.support.vaulted import KEY

CALLBACK = "https://app.example/accounts/callback"
TABLES = make_tables(EXCLUSIVE)
STATES = flow_states(TABLES.metadata)
LINKS = TABLES.Connection.__table__
SEALED = make_tables(EXCLUSIVE)
SEALED_STATES = flow_states(SEALED.metadata)
PENDING = pending_credentials(SEALED.metadata)


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture
def acme(oidc: OidcProvider) -> Iterator[Issuer]:
    with oidc.issuer(redirect_uris=[f"{CALLBACK}/acme"]) as opened:
        yield opened


@pytest.fixture
def other(oidc: OidcProvider) -> Iterator[Issuer]:
    """A second provider of the application, which an attacker may have taken over."""
    with oidc.issuer(redirect_uris=[f"{CALLBACK}/other"]) as opened:
        yield opened


@pytest.fixture
async def flow(engine: AsyncEngine, acme: Issuer, other: Issuer) -> LinkFlow[int, int]:
    async with engine.begin() as connection:
        await connection.run_sync(TABLES.metadata.create_all)
    providers = [
        described(slug, issuer=issuer.url, client_id=issuer.client_id, client_secret=issuer.client_secret)
        for slug, issuer in (("acme", acme), ("other", other))
    ]
    return LinkFlow(
        TABLES.linker(),
        engine,
        providers=providers,
        callback_url=CALLBACK,
        page="https://app.example/settings",
        states=STATES,
        secrets=SECRETS,
    )


@dataclass(kw_only=True)
class User:
    """A signed-in user of the application, and their browser."""

    flow: LinkFlow[int, int]
    user_id: int
    cookie: str | None = None
    browser: httpx2.AsyncClient = field(default_factory=lambda: httpx2.AsyncClient(trust_env=False))

    async def start(self, provider: str = "acme", **options: Any) -> str:
        """Begin a flow, and return the provider's address."""
        started = await self.flow.start(user_id=self.user_id, provider=provider, browser=self.cookie, **options)
        self.cookie = started.browser
        return started.url

    async def answer(self, issuer: Issuer, account: str = "ada", **options: Any) -> dict[str, str]:
        """Begin a flow, sign in there and consent, and return what comes back."""
        return returned(await issuer.sign_in(self.browser, await self.start(**options), account=account))

    async def finish(self, parameters: dict[str, str], *, provider: str = "acme") -> Finished[int, int]:
        """Come back with parameters."""
        return await self.flow.finish(
            user_id=self.user_id, provider=provider, browser=self.cookie, parameters=parameters
        )

    async def linked(self, parameters: dict[str, str]) -> Linked[int, int]:
        """Come back with parameters, to an account that is linked."""
        outcome = (await self.finish(parameters)).outcome
        assert isinstance(outcome, Linked)
        return outcome


@pytest.fixture
async def ann(flow: LinkFlow[int, int]) -> AsyncIterator[User]:
    user = User(flow=flow, user_id=1)
    async with user.browser:
        yield user


@pytest.fixture
async def bob(flow: LinkFlow[int, int]) -> AsyncIterator[User]:
    user = User(flow=flow, user_id=2)
    async with user.browser:
        yield user


def returned(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


async def rows(engine: AsyncEngine) -> list[tuple[int, str, str, str]]:
    """Return the owner, provider, account and e-mail of every link."""
    async with engine.connect() as connection:
        columns = LINKS.c.user_id, LINKS.c.provider, LINKS.c.account_id, LINKS.c.email
        return [tuple(row) for row in await connection.execute(sa.select(*columns))]


# -- success ------------------------------------------------------------------------------------------------------


async def test_an_account_is_linked(ann: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A user who signs in and consents has the account linked, by one request for tokens."""
    linked = await ann.linked(await ann.answer(acme))
    assert Change.CREATED is linked.change
    assert [(1, "acme", "ada", "ada@example.org")] == await rows(engine)
    assert 1 == acme.requests("token")


async def test_a_refresh_token_comes(ann: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A flow that asks for offline access stores tokens that the provider accepts, and so does one that reconnects."""
    linked = await ann.linked(await ann.answer(acme, scopes=["offline_access"]))
    first = await stored(engine)
    again = await ann.linked(await ann.answer(acme, expect=linked.account.id))
    second = await stored(engine)
    assert Change.UPDATED is again.change
    assert first[1] != second[1]
    for access, refresh in (first, second):
        told = await ann.browser.get(f"{acme.url}/me", headers={"Authorization": f"Bearer {access}"})
        assert "ada" == told.json()["sub"]
        form = {"grant_type": "refresh_token", "refresh_token": refresh}
        answer = await ann.browser.post(f"{acme.url}/token", data=form, auth=(acme.client_id, acme.client_secret))
        assert 200 == answer.status_code


async def stored(engine: AsyncEngine) -> tuple[str, str]:
    async with engine.connect() as connection:
        access, refresh = (await connection.execute(sa.select(LINKS.c.access_token, LINKS.c.refresh_token))).one()
    assert access
    assert refresh
    return access, refresh


async def test_a_changed_email_is_no_other_account(ann: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A user whose e-mail address changed at the provider keeps the link, with the new address."""
    first = await ann.linked(await ann.answer(acme))
    acme.set_account("ada", {"email": "lovelace@example.org", "email_verified": True})
    second = await ann.linked(await ann.answer(acme))
    assert (first.account.id, Change.UPDATED) == (second.account.id, second.change)
    assert [(1, "acme", "ada", "lovelace@example.org")] == await rows(engine)


async def test_one_email_at_two_providers(
    ann: User, bob: User, acme: Issuer, other: Issuer, engine: AsyncEngine
) -> None:
    """An e-mail address that another provider asserts leads to no conflict, and to nobody's account."""
    other.set_account("mallory", {"email": "ada@example.org", "email_verified": True})
    await ann.linked(await ann.answer(acme))
    outcome = (await bob.finish(await bob.answer(other, "mallory", provider="other"), provider="other")).outcome
    assert isinstance(outcome, Linked)
    expected = [(1, "acme", "ada", "ada@example.org"), (2, "other", "mallory", "ada@example.org")]
    assert expected == sorted(await rows(engine))


async def test_an_account_of_another_user(ann: User, bob: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A user who proves control of another user's account meets the conflict, and can take the account over."""
    await ann.linked(await ann.answer(acme))
    outcome = (await bob.finish(await bob.answer(acme))).outcome
    assert isinstance(outcome, OwnershipConflict)
    assert [1] == [row[0] for row in await rows(engine)]
    assert outcome.transfer_token is not None
    await bob.flow.linker.transfer(engine, outcome.transfer_token, user_id=bob.user_id)
    assert [2] == [row[0] for row in await rows(engine)]


@pytest.fixture
async def issued() -> AsyncIterator[Issued]:
    """The network, which remembers what token endpoints answered."""
    async with httpx2.AsyncHTTPTransport() as network:
        yield Issued(network)


@pytest.mark.parametrize(("framework", "kind"), [("fastapi", "asyncpg"), ("starlette", "sqlite")])
async def test_a_claimant_keeps_their_tokens(engine: AsyncEngine, acme: Issuer, issued: Issued, framework: str) -> None:
    """Through the routes, the claimant's link has the tokens that the provider issued in their own callback."""
    async with engine.begin() as connection:
        await connection.run_sync(SEALED.metadata.create_all)
    linker = SEALED.linker(vault=CredentialVault(keys=[KEY]), pending=PENDING)
    flow = LinkFlow(
        linker,
        engine,
        providers=[described("acme", issuer=acme.url, client_id=acme.client_id, client_secret=acme.client_secret)],
        callback_url=CALLBACK,
        page="https://app.example/settings",
        states=SEALED_STATES,
        secrets=SECRETS,
        transport=issued,
    )

    async def connects(client: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient) -> httpx2.Response:
        left = await leave(client, scopes="offline_access")
        return await client.get(await acme.sign_in(elsewhere, left, account="ada"))

    app = application(framework, flow)
    async with (
        api_client(app, "1") as ann,
        api_client(app, "2") as bob,
        httpx2.AsyncClient(trust_env=False) as anns_browser,
        httpx2.AsyncClient(trust_env=False) as bobs_browser,
    ):
        assert 200 == (await connects(ann, anns_browser)).status_code
        anns = issued.newest()
        conflict = (await connects(bob, bobs_browser)).json()
        bobs = issued.newest()
        assert anns == texts_of(await linker.stored_credentials(engine, user_id=1, provider="acme"))
        moved = await bob.post("/accounts/transfer", json={"transfer_token": conflict["transfer_token"]})
        assert ("transferred", True) == (moved.json()["change"], moved.json()["has_credentials"])

        access, refresh = texts_of(await linker.stored_credentials(engine, user_id=2, provider="acme"))
        assert bobs == (access, refresh)
        assert None not in {*anns, *bobs}
        assert 4 == len({*anns, *bobs})
        told = await bobs_browser.get(f"{acme.url}/me", headers={"Authorization": f"Bearer {access}"})
        assert "ada" == told.json()["sub"]
        form = {"grant_type": "refresh_token", "refresh_token": refresh}
        renewed = await bobs_browser.post(f"{acme.url}/token", data=form, auth=(acme.client_id, acme.client_secret))
        assert 200 == renewed.status_code


# -- refusals -----------------------------------------------------------------------------------------------------


async def test_a_user_cancels(ann: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A user who cancels is told so, and nothing is asked or written."""
    parameters = returned(await acme.cancel(ann.browser, await ann.start()))
    with pytest.raises(ConsentDeclined):
        await ann.finish(parameters)
    assert ([], 0) == (await rows(engine), acme.requests("token"))


async def test_a_reload(ann: User, acme: Issuer) -> None:
    """A callback that is loaded again is told from a forgery, and its code is not sent a second time."""
    parameters = await ann.answer(acme)
    await ann.linked(parameters)
    with pytest.raises(FlowReplayed):
        await ann.finish(parameters)
    assert 1 == acme.requests("token")


async def test_a_code_of_another_flow(ann: User, bob: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A stolen code is worth nothing in the thief's flow: the provider refuses its verifier."""
    stolen = await ann.answer(acme)
    parameters = await bob.answer(acme, "ben")
    with pytest.raises(ProviderFailed) as refusal:
        await bob.finish(parameters | {"code": stolen["code"]})
    assert "token" == refusal.value.step
    assert [] == await rows(engine)


async def test_a_used_code(ann: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A code that somebody else has exchanged is refused by the provider."""
    parameters = await ann.answer(acme)
    form = {"grant_type": "authorization_code", "code": parameters["code"], "redirect_uri": f"{CALLBACK}/acme"}
    key = next(iter(ann.flow._journeys._keys.values()))
    form["code_verifier"] = key.verifier(parameters["state"])
    answer = await ann.browser.post(f"{acme.url}/token", data=form, auth=(acme.client_id, acme.client_secret))
    assert 200 == answer.status_code
    with pytest.raises(ProviderFailed) as refusal:
        await ann.finish(parameters)
    assert "token" == refusal.value.step
    assert [] == await rows(engine)


async def test_mix_up(ann: User, acme: Issuer, other: Issuer, engine: AsyncEngine) -> None:
    """An answer of another issuer than the flow's goes nowhere: no token endpoint sees anything."""
    state = returned(await ann.start())["state"]
    theirs = await ann.answer(other, "ben", provider="other")
    with pytest.raises(ProviderMismatch):  # the other issuer's answer at the callback of this one
        await ann.finish(theirs | {"state": state})
    ours = await ann.answer(acme)
    with pytest.raises(ProviderMismatch):  # this issuer's code at the callback of the other one, which wants it
        await ann.finish(ours | {"iss": other.url}, provider="other")
    nameless = await ann.answer(acme)
    del nameless["iss"]
    with pytest.raises(ProviderMismatch):
        await ann.finish(nameless)
    assert ([], 0, 0) == (await rows(engine), acme.requests("token"), other.requests("token"))


async def test_another_user_ends_the_flow(ann: User, bob: User, acme: Issuer, engine: AsyncEngine) -> None:
    """An answer that reaches another user, another browser or nobody links nothing; who began it can still end it."""
    parameters = await ann.answer(acme)
    await bob.start()  # bob has a browser cookie too
    switched = User(flow=ann.flow, user_id=bob.user_id, cookie=ann.cookie, browser=ann.browser)
    elsewhere = User(flow=ann.flow, user_id=ann.user_id, cookie=bob.cookie, browser=bob.browser)
    for wrong in (bob, switched, elsewhere):
        with pytest.raises(FlowNotStartedHere):
            await wrong.finish(parameters)
    with pytest.raises(FlowNotStartedHere):
        await ann.flow.finish(user_id=None, provider="acme", browser=ann.cookie, parameters=parameters)
    assert ([], 0) == (await rows(engine), acme.requests("token"))
    await ann.linked(parameters)
    assert [1] == [row[0] for row in await rows(engine)]


@pytest.mark.parametrize("state", ["A" * 43, "", None])
async def test_a_forged_error(ann: User, acme: Issuer, state: str | None) -> None:
    """An error that no provider sent shows none of its text, and the running flow survives it."""
    parameters = await ann.answer(acme)
    forged = {"error": "server_error", "error_description": "<b>Call 555-0100</b>", "iss": acme.url}
    with pytest.raises(FlowNotStartedHere) as refusal:
        await ann.finish(forged if state is None else forged | {"state": state})
    shown = f"{refusal.value!s}{refusal.value!r}{ann.flow.after(refusal.value)}"
    assert "555" not in shown
    await ann.linked(parameters)


async def test_an_error_of_the_provider(ann: User, acme: Issuer) -> None:
    """An error with the flow's own state ends the flow with a fixed text."""
    parameters = await ann.answer(acme)
    del parameters["code"]
    with pytest.raises(FlowRejected) as refusal:
        await ann.finish(parameters | {"error": "server_error", "error_description": "<b>Call 555-0100</b>"})
    assert "provider_error" == refusal.value.code
    assert "555" not in f"{refusal.value!s}{refusal.value!r}{ann.flow.after(refusal.value)}"


async def test_a_ticket(ann: User, bob: User, acme: Issuer, engine: AsyncEngine) -> None:
    """A ticket that another user or nobody opens, or a link preview, stays good for its user, once."""
    ticket = (await ann.flow.ticket(user_id=ann.user_id, provider="acme")).url.rpartition("/")[2]
    for user_id in (bob.user_id, None):
        with pytest.raises(TicketRejected):
            await ann.flow.offer(ticket, user_id=user_id)
        with pytest.raises(TicketRejected):
            await ann.flow.start_with(ticket, user_id=user_id, browser=None)
    for _ in range(2):  # a preview, and the user
        assert "acme" == (await ann.flow.offer(ticket, user_id=ann.user_id)).provider.slug
    started = await ann.flow.start_with(ticket, user_id=ann.user_id, browser=None)
    ann.cookie = started.browser
    with pytest.raises(TicketRejected):
        await ann.flow.start_with(ticket, user_id=ann.user_id, browser=None)
    await ann.linked(returned(await acme.sign_in(ann.browser, started.url, account="ada")))
    assert [1] == [row[0] for row in await rows(engine)]
