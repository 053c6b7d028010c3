"""SignInFlow: a visitor proves whose account at a provider they control; nothing is linked, nobody is signed in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinkError, ConfigurationError
from accountlink.errors import (
    ConsentDeclined,
    FlowExpired,
    FlowNotStartedHere,
    FlowReplayed,
    IdentityNotProven,
    ProviderFailed,
    ProviderMismatch,
    ReturnTargetRejected,
    TicketRejected,
    UnknownProvider,
)
from accountlink.testing.fake_provider import FakeProvider
from accountlink.web import LinkFlow, ProvenIdentity, SignInFlow, Started, Unbound, flow_states
from tests.support.databases import create
from tests.support.flows import APP, CALLBACK, FLOW_SECRETS, PAGE, SUBJECT, Hosts, fake, preset, stage_on

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])

SIGN_IN_CALLBACK: Final = f"{APP}/sign-in/callback"


@dataclass(kw_only=True)
class Door:
    """A sign-in with fake providers, and what visitors do."""

    flow: SignInFlow
    providers: dict[str, FakeProvider]
    network: Hosts

    async def start(self, slug: str = "acme", **more: Any) -> Started:
        return await self.flow.start(**{"provider": slug, "browser": None} | more)

    async def consent(self, url: str) -> dict[str, str]:
        async with httpx2.AsyncClient(transport=self.network) as browser:
            answer = await browser.get(url)
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def finish(self, started: Started, parameters: dict[str, str], **more: Any) -> ProvenIdentity:
        asked = {"provider": "acme", "browser": started.browser, "parameters": parameters}
        return await self.flow.finish(**asked | more)


async def door_on(engine: AsyncEngine, *, slugs: tuple[str, ...] = ("acme",), **options: Any) -> Door:
    """Make the table of states, a provider for each slug, and a sign-in with them."""
    metadata = sa.MetaData()
    states = flow_states(metadata)
    await create(engine, metadata)
    providers = {slug: fake(slug) for slug in slugs}
    for slug, each in providers.items():
        each.add_client(each.client_id, client_secret=each.client_secret, redirect_uris=[f"{SIGN_IN_CALLBACK}/{slug}"])
    network = Hosts({f"{slug}.example": each for slug, each in providers.items()})
    given: dict[str, Any] = {
        "providers": [preset(slug, each) for slug, each in providers.items()],
        "callback_url": SIGN_IN_CALLBACK,
        "page": PAGE,
        "states": states,
        "secrets": FLOW_SECRETS,
        "transport": network,
    }
    return Door(flow=SignInFlow(engine, **given | options), providers=providers, network=network)


async def test_a_visitor_proves_an_identity(engine: AsyncEngine) -> None:
    """The identity and the tokens come back, and where to go; the sign-in has a redirect URI of its own."""
    door = await door_on(engine)
    started = await door.start(return_to="/basket")
    assert [f"{SIGN_IN_CALLBACK}/acme"] == parse_qs(urlsplit(started.url).query)["redirect_uri"]
    proven = await door.finish(started, await door.consent(started.url))
    assert ("acme", SUBJECT, "ada@example.org") == (
        proven.identity.provider, proven.identity.account_id, proven.identity.email,
    )  # fmt: skip
    assert proven.tokens.access_token.reveal()
    assert f"{APP}/basket" == proven.return_to == proven.redirect_url
    again = await door.start()
    assert PAGE == (await door.finish(again, await door.consent(again.url))).redirect_url


@pytest.mark.parametrize("browser", [None, "", "x" * 43, "bearer", Unbound.BEARER])
async def test_another_browser_cannot_end_a_sign_in_and_burns_nothing(engine: AsyncEngine, browser: Any) -> None:
    """A09: an attacker's callback, opened in the victim's browser, does not sign the victim in as the attacker."""
    door = await door_on(engine)
    started = await door.start()
    parameters = await door.consent(started.url)
    with pytest.raises(FlowNotStartedHere):
        await door.finish(started, parameters, browser=browser)
    assert 0 == door.providers["acme"].calls["/token"]
    assert SUBJECT == (await door.finish(started, parameters)).identity.account_id


async def test_a_victims_cookie_of_another_sign_in_does_not_help(engine: AsyncEngine) -> None:
    """A09: the victim is in the middle of a sign-in of their own, and gets the attacker's answer."""
    door = await door_on(engine)
    attackers, victims = await door.start(), await door.start()
    with pytest.raises(FlowNotStartedHere):
        await door.finish(victims, await door.consent(attackers.url))


async def test_every_sign_in_has_a_browser(engine: AsyncEngine) -> None:
    """A visitor has no bearer token: whoever asks for a sign-in without a cookie gets one with a cookie."""
    door = await door_on(engine)
    values = {(await door.start(browser=each)).browser for each in (None, Unbound.BEARER, "bearer")}
    assert 3 == len(values - {None})


async def test_a_state_of_another_purpose_is_refused(engine: AsyncEngine) -> None:
    """A20: of a link, a ticket and a sign-in, none serves for another, in one table and in one browser."""
    stage = await stage_on(engine, states=flow_states)
    providers = [preset("acme", stage.provider)]
    given: dict[str, Any] = {"states": stage.states, "secrets": FLOW_SECRETS, "transport": stage.network}
    sign_in = SignInFlow(engine, providers=providers, callback_url=CALLBACK, page=PAGE, **given)
    linking = await stage.start(1)
    visiting = await sign_in.start(provider="acme", browser=linking.browser)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.rpartition("/")[2]
    answers = {
        "link": await stage.consent(linking.url),
        "sign-in": await stage.consent(visiting.url),
        "ticket": {"state": ticket, "code": "x", "iss": stage.provider.issuer},
    }
    uses: dict[str, Callable[[dict[str, str]], Awaitable[object]]] = {
        "link": lambda answer: stage.finish(linking, answer, 1),
        "sign-in": lambda answer: sign_in.finish(provider="acme", browser=linking.browser, parameters=answer),
        "ticket": lambda answer: stage.flow.start_with(answer["state"], user_id=1, browser=linking.browser),
    }
    for purpose, use in uses.items():
        for other, answer in answers.items():
            if other != purpose:
                with pytest.raises((FlowNotStartedHere, TicketRejected)):
                    await use(answer)
    assert 0 == stage.asked_for_tokens()
    for purpose, use in uses.items():  # and nothing was burned
        await use(answers[purpose])


async def test_nothing_is_linked(engine: AsyncEngine) -> None:
    """A sign-in writes no link: what follows is the application's decision."""
    stage = await stage_on(engine)
    sign_in = SignInFlow(
        engine,
        providers=[preset("acme", stage.provider)],
        callback_url=CALLBACK,
        page=PAGE,
        states=stage.states,
        secrets=FLOW_SECRETS,
        transport=stage.network,
    )
    started = await sign_in.start(provider="acme", browser=None)
    await sign_in.finish(provider="acme", browser=started.browser, parameters=await stage.consent(started.url))
    assert [] == await stage.rows()


async def test_a_sign_in_ends_once_and_in_time(engine: AsyncEngine) -> None:
    """A09: a reload is told from a forgery, and ten minutes are enough."""
    ahead = [timedelta()]
    door = await door_on(engine, clock=lambda: datetime.now(UTC) + ahead[0])
    started = await door.start()
    parameters = await door.consent(started.url)
    await door.finish(started, parameters)
    with pytest.raises(FlowReplayed):
        await door.finish(started, parameters)
    late = await door.start()
    parameters = await door.consent(late.url)
    ahead[0] = timedelta(minutes=10, seconds=1)
    with pytest.raises(FlowExpired):
        await door.finish(late, parameters)
    assert 1 == door.providers["acme"].calls["/token"]


async def test_a_sign_in_has_the_checks_of_a_flow(engine: AsyncEngine) -> None:
    """A11, A15, A33: another provider, another issuer, a refusal and a forged token, each with its own error."""
    door = await door_on(engine, slugs=("acme", "bolt"))
    acme = door.providers["acme"]

    async def refused(kind: type[AccountLinkError], /, *, slug: str = "acme", **changes: str) -> AccountLinkError:
        started = await door.start(return_to="/basket")
        with pytest.raises(kind) as raised:
            await door.finish(started, await door.consent(started.url) | changes, provider=slug)
        return raised.value

    for error, options in (
        (ProviderMismatch, {"slug": "bolt"}),
        (ProviderMismatch, {"iss": "https://bolt.example"}),
        (ConsentDeclined, {"error": "access_denied"}),
        (ProviderFailed, {"error": "<b>canary</b>"}),
        (ProviderFailed, {"code": "x" * 5_000}),
    ):
        raised = await refused(error, **options)
        assert f"{APP}/basket?error={raised.code}" == door.flow.after(raised)
    assert 0 == acme.calls["/token"]
    acme.forge_next_id_token(lambda claims: claims | {"nonce": "another"})
    await refused(IdentityNotProven)
    assert f"{PAGE}?error=flow_not_started_here" == door.flow.after(FlowNotStartedHere())


async def test_what_cannot_begin(engine: AsyncEngine) -> None:
    """An unknown provider, a foreign return target and unusable addresses are refused before anything begins."""
    door = await door_on(engine)
    assert ["acme"] == [*door.flow.providers]
    with pytest.raises(UnknownProvider):
        await door.start("none")
    with pytest.raises(UnknownProvider):
        await door.finish(await door.start(), {}, provider="none")
    with pytest.raises(ReturnTargetRejected):
        await door.start(return_to="//evil.example")
    refused: list[dict[str, Any]] = [
        {"providers": []},
        {"callback_url": "http://app.example/"},
        {"secrets": ["short"]},
        {"states": None},
        {"clock": None},
    ]
    for wrong in refused:
        with pytest.raises(ConfigurationError):
            await door_on(engine, **wrong)


async def test_a_browser_that_starts_too_often_loses_the_oldest(engine: AsyncEngine) -> None:
    """A40: a browser has 200 open sign-ins at most, and no user loses a flow by them."""
    stage = await stage_on(engine)
    linking = await stage.start(1)
    parameters = await stage.consent(linking.url)
    sign_in = SignInFlow(
        engine,
        providers=[preset("acme", stage.provider)],
        callback_url=CALLBACK,
        page=PAGE,
        states=stage.states,
        secrets=FLOW_SECRETS,
        transport=stage.network,
    )
    for _ in range(205):
        await sign_in.start(provider="acme", browser=linking.browser)
    assert 201 == len(stage.states)
    assert isinstance(stage.flow, LinkFlow)
    await stage.finish(linking, parameters)
