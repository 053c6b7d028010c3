"""LinkFlow: who ends a flow is who began it, and nothing goes to a provider before that is known."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AccountMapping,
    AccountMismatch,
    AccountNotFound,
    Change,
    ConfigurationError,
    InvalidCredentials,
    Linked,
    LinkedAccount,
    LinkPolicy,
    OwnershipConflict,
    Removal,
    Transferred,
)
from accountlink.errors import (
    ConsentDeclined,
    FlowExpired,
    FlowNotStartedHere,
    FlowRejected,
    FlowReplayed,
    IdentityNotProven,
    ImpersonationRefused,
    ProviderFailed,
    ProviderMismatch,
    RequestRejected,
    ReturnTargetRejected,
    TicketRejected,
    UnknownProvider,
)
from accountlink.testing.fake_provider import Lost
from accountlink.web import Finished, Impersonated, LinkFlow, Tokens, Unbound, flow_states
from tests.support.flows import APP, CALLBACK, FLOW_SECRETS, PAGE, SUBJECT, preset, stage_on
from tests.support.models import USER_TYPES

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])


class Clock:
    """The present moment, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def account(finished: Finished[Any, Any]) -> LinkedAccount[Any, Any]:
    """The linked account of a flow that went well."""
    assert isinstance(finished.outcome, Linked)
    return finished.outcome.account


def change(finished: Finished[Any, Any]) -> Change:
    """What linking did to the row."""
    assert isinstance(finished.outcome, Linked)
    return finished.outcome.change


def query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


# -- the way that goes well --------------------------------------------------------------------------------------------


async def test_a_flow_ends_in_a_link(engine: AsyncEngine) -> None:
    """The account that the provider vouched for is linked, with its tokens, and the browser goes to the page."""
    stage = await stage_on(engine)
    finished = await stage.connect()
    assert isinstance(finished.outcome, Linked)
    assert (Change.CREATED, SUBJECT, "ada@example.org") == (
        finished.outcome.change,
        finished.outcome.account.account_id,
        finished.outcome.account.email,
    )
    assert f"{PAGE}?connection=success" == finished.redirect_url
    assert frozenset({"openid", "email", "profile"}) == finished.outcome.account.scopes
    [row] = await stage.rows()
    assert row["access_token"]


async def test_another_users_account_is_a_conflict_with_a_token_in_the_fragment(engine: AsyncEngine) -> None:
    """The claimant gets a token in the fragment, and with it the account."""
    stage = await stage_on(engine)
    await stage.connect(1)
    conflict = await stage.connect(2)
    assert isinstance(conflict.outcome, OwnershipConflict)
    base, mark, token = conflict.redirect_url.partition("#transfer_token=")
    assert (f"{PAGE}?error=ownership_conflict", True) == (base, bool(mark))
    outcome = await stage.flow.linker.transfer(engine, token, user_id=2)
    assert isinstance(outcome, Transferred)


async def test_a_conflicts_token_goes_to_the_pages_origin_only(engine: AsyncEngine) -> None:
    """A24: an allowed return target of another origin gets the success, and never a transfer token."""
    elsewhere = "https://other.example/done"
    stage = await stage_on(engine, allowed_return_urls=[elsewhere])
    assert f"{elsewhere}?connection=success" == (await stage.connect(1, return_to=elsewhere)).redirect_url
    assert (await stage.connect(2, return_to=elsewhere)).redirect_url.startswith(f"{PAGE}?error=ownership_conflict#")
    assert (await stage.connect(2, return_to="/here")).redirect_url.startswith(f"{APP}/here?error=ownership_conflict#")


@pytest.mark.parametrize("user_type", USER_TYPES, ids=lambda each: each.__name__)
async def test_users_of_each_type_go_through(engine: AsyncEngine, user_type: type) -> None:
    """An id comes back in its own type; 7 and "7" are two users."""
    stage = await stage_on(engine, user_type=user_type)
    user, _ = USER_TYPES[user_type]
    assert user == account(await stage.connect(user)).user_id


async def test_the_address_at_the_provider_holds_what_protects_the_flow(engine: AsyncEngine) -> None:
    """A09, A14: a state and a nonce of 256 bits, PKCE by S256, the provider's own redirect URI, and nothing twice."""
    stage = await stage_on(engine)
    urls = [query((await stage.start()).url) for _ in range(2)]
    for asked in urls:
        assert ["S256"] == asked["code_challenge_method"]
        assert [f"{CALLBACK}/acme"] == asked["redirect_uri"]
        assert ["code"] == asked["response_type"]
        assert all(len(asked[name][0]) == 43 for name in ("state", "nonce", "code_challenge"))
    assert all(urls[0][name] != urls[1][name] for name in ("state", "nonce", "code_challenge"))


async def test_what_starts_and_ends_a_flow_shows_no_secret(engine: AsyncEngine) -> None:
    """A28: a line that logs what a flow returned holds neither its state, its nonce, its cookie nor a token."""
    stage = await stage_on(engine)
    ticket = await stage.flow.ticket(user_id=1, provider="acme")
    started = await stage.start(1)
    secret = [*query(started.url)["state"], *query(started.url)["nonce"], str(started.browser), ticket.url]
    finished = await stage.finish(started, await stage.consent(started.url))
    conflict = await stage.connect(2)
    secret += [row["access_token"] for row in await stage.rows()] + [conflict.redirect_url, "ada@example.org"]
    shown = repr([ticket, started, finished, conflict])
    assert [] == [each for each in secret if each in shown]


async def test_three_flows_in_one_browser_end_in_any_order(engine: AsyncEngine) -> None:
    """Each flow has its own record: two tabs and three providers do not disturb each other."""
    stage = await stage_on(engine, slugs=["acme", "bolt", "core"])
    first = await stage.start(1, "acme")
    others = [await stage.start(1, slug, browser=first.browser) for slug in ("bolt", "core")]
    assert {first.browser} == {each.browser for each in others}
    for slug, started in [("core", others[1]), ("acme", first), ("bolt", others[0])]:
        finished = await stage.finish(started, await stage.consent(started.url), slug=slug)
        assert Change.CREATED is change(finished)


# -- who ends is who began ---------------------------------------------------------------------------------------------


async def test_another_user_cannot_end_a_flow_and_burns_nothing(engine: AsyncEngine) -> None:
    """A10: the attacker begins, the victim's browser ends: refused before the token request. The starter still can."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    for other in (2, None):
        with pytest.raises(FlowNotStartedHere):
            await stage.finish(started, parameters, other)
    assert 0 == stage.asked_for_tokens()
    assert isinstance((await stage.finish(started, parameters, 1)).outcome, Linked)


@pytest.mark.parametrize("browser", [None, "", "x" * 43, "x" * 100_000, "é" * 43])
async def test_another_browser_cannot_end_a_flow_and_burns_nothing(engine: AsyncEngine, browser: str | None) -> None:
    """A09, A12: the callback opened in another browser of the same user, or without the cookie, is refused."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, parameters, browser=browser)
    assert 0 == stage.asked_for_tokens()
    assert isinstance((await stage.finish(started, parameters)).outcome, Linked)


async def test_a_flow_by_bearer_token_needs_its_user_and_no_cookie(engine: AsyncEngine) -> None:
    """A10: without a cookie the flow is bound to its user alone, who proves themselves at both ends."""
    stage = await stage_on(engine)
    started = await stage.start(1, browser=Unbound.BEARER)
    assert started.browser is None
    parameters = await stage.consent(started.url)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, parameters, 2, browser=Unbound.BEARER)
    assert isinstance((await stage.finish(started, parameters, 1, browser=Unbound.BEARER)).outcome, Linked)


@pytest.mark.parametrize("browser", [None, "bearer", "x" * 43])
async def test_a_flow_by_bearer_token_ends_by_one_only(engine: AsyncEngine, browser: str | None) -> None:
    """A10: an attacker begins without a cookie, and signs a victim in as themselves: the callback is refused."""
    stage = await stage_on(engine)
    started = await stage.start(1, browser=Unbound.BEARER)
    parameters = await stage.consent(started.url)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, parameters, 1, browser=browser)
    assert 0 == stage.asked_for_tokens()
    assert isinstance((await stage.finish(started, parameters, 1, browser=Unbound.BEARER)).outcome, Linked)


async def test_a_flow_with_a_cookie_does_not_end_by_a_bearer_token(engine: AsyncEngine) -> None:
    """A10: a bearer token does not stand in for the cookie of the browser that began."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, parameters, 1, browser=Unbound.BEARER)


@pytest.mark.parametrize("state", [None, "", "x" * 43, "x" * 42, "'; --", "\x00" * 43, "é" * 43, "x" * 1_000_000])
async def test_a_state_that_nobody_was_given_is_refused(engine: AsyncEngine, state: str | None) -> None:
    """A09: forged, missing or malformed states reach no token endpoint, and no SQL where they cannot be states."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    sent = parameters | {"state": state} if state is not None else {"code": parameters["code"]}
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, sent)
    assert 0 == stage.asked_for_tokens()


async def test_a_reload_is_told_from_a_forgery(engine: AsyncEngine) -> None:
    """An answer that comes again is a replay, for its user; for anybody else it was never theirs."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    await stage.finish(started, parameters)
    with pytest.raises(FlowReplayed):
        await stage.finish(started, parameters)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, parameters, 2)
    assert 1 == stage.asked_for_tokens()


async def test_a_double_click_asks_the_provider_once(engine: AsyncEngine) -> None:
    """F25: of twenty callbacks at once one ends the flow; the others are replays."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    ends = await asyncio.gather(*(stage.finish(started, parameters) for _ in range(20)), return_exceptions=True)
    assert {"Finished": 1, "FlowReplayed": 19} == {
        name: [type(end).__name__ for end in ends].count(name) for name in ("Finished", "FlowReplayed")
    }
    assert 1 == stage.asked_for_tokens()


async def test_a_flow_ends_within_ten_minutes(engine: AsyncEngine) -> None:
    """A09, A22: ten minutes after its start a flow is over, without any clean-up job."""
    clock = Clock()
    stage = await stage_on(engine, clock=clock)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    clock.ahead = timedelta(minutes=10)
    with pytest.raises(FlowExpired):
        await stage.finish(started, parameters)
    assert 0 == stage.asked_for_tokens()


async def test_a_removed_secret_ends_its_flows_and_an_older_one_does_not(engine: AsyncEngine) -> None:
    """A21: verifier and nonce come from the secret with which the flow began."""
    kept: list[Any] = []

    def states(metadata: sa.MetaData) -> Any:
        kept.append(flow_states(metadata))
        return kept[0]

    stage = await stage_on(engine, states=states)
    both = [(started := await stage.start(1), await stage.consent(started.url)) for _ in range(2)]
    newer = "another-secret-of-at-least-32-bytes-02"
    shared: dict[str, Any] = {
        "providers": [preset("acme", stage.provider)],
        "callback_url": CALLBACK,
        "page": PAGE,
        "states": kept[0],
        "transport": stage.network,
    }
    rotated = LinkFlow(stage.flow.linker, engine, secrets=[newer, *FLOW_SECRETS], **shared)
    removed = LinkFlow(stage.flow.linker, engine, secrets=[newer], **shared)
    (started, parameters), (later, others) = both
    asked: dict[str, Any] = {"user_id": 1, "provider": "acme"}
    finished = await rotated.finish(browser=started.browser, parameters=parameters, **asked)
    assert isinstance(finished.outcome, Linked)
    with pytest.raises(FlowExpired):
        await removed.finish(browser=later.browser, parameters=others, **asked)


async def test_who_acts_for_a_user_connects_nothing(engine: AsyncEngine) -> None:
    """An administrator who impersonates a user neither begins nor ends a flow, and uses no ticket."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.rpartition("/")[2]
    acting = Impersonated(user_id=1)
    for attempt in (
        lambda: stage.start(acting),
        lambda: stage.finish(started, parameters, acting),
        lambda: stage.flow.ticket(user_id=acting, provider="acme"),
        lambda: stage.flow.offer(ticket, user_id=acting),
        lambda: stage.flow.start_with(ticket, user_id=acting, browser=None),
    ):
        with pytest.raises(ImpersonationRefused):
            await attempt()
    assert isinstance((await stage.finish(started, parameters)).outcome, Linked)


async def test_a_users_id_of_another_type_is_refused_before_the_user_leaves(engine: AsyncEngine) -> None:
    """F22: an id from a session's cookie is often text; the mistake shows at the start, not after the provider."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    for attempt in (lambda: stage.start("1"), lambda: stage.start(True), lambda: stage.finish(started, {}, "1")):
        with pytest.raises(ConfigurationError, match="user_id"):
            await attempt()


# -- the provider's answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promised", [True, False])
async def test_an_answer_of_another_provider_is_refused(engine: AsyncEngine, promised: bool) -> None:
    """A11, A12: state, code and cookie of one provider at the callback of another reach neither token endpoint."""
    stage = await stage_on(engine, slugs=["acme", "evil"])
    if not promised:  # then no issuer tells the two apart
        silent = {"authorization_response_iss_parameter_supported": False}
        for provider in stage.providers.values():
            provider.forge_next("configuration", lambda document: document | silent)
    started = await stage.start(1, "acme")
    parameters = await stage.consent(started.url)
    sent = parameters if promised else {name: parameters[name] for name in ("state", "code")}
    with pytest.raises(ProviderMismatch):
        await stage.finish(started, sent, slug="evil")
    assert (0, 0) == (stage.asked_for_tokens("acme"), stage.asked_for_tokens("evil"))


@pytest.mark.parametrize("iss", [None, "", "https://evil.example", "https://acme.example/", "HTTPS://acme.example"])
async def test_another_issuer_is_refused(engine: AsyncEngine, iss: str | None) -> None:
    """A11, RFC 9207: an issuer that differs in a byte, or is missing though promised, gets no code sent anywhere."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    sent = {name: value for name, value in (parameters | {"iss": iss}).items() if value is not None}
    with pytest.raises(ProviderMismatch):
        await stage.finish(started, sent)
    assert 0 == stage.asked_for_tokens()


async def test_an_issuer_that_is_not_promised_may_be_missing_and_not_another(engine: AsyncEngine) -> None:
    """RFC 9207: who does not promise the parameter may leave it out; a wrong one is refused all the same."""
    stage = await stage_on(engine)
    silent = {"authorization_response_iss_parameter_supported": False}
    stage.provider.forge_next("configuration", lambda document: document | silent)
    started = await stage.start(1)
    wrong = await stage.consent(started.url) | {"iss": "https://evil.example"}
    with pytest.raises(ProviderMismatch):
        await stage.finish(started, wrong)
    again = await stage.start(1)
    parameters = await stage.consent(again.url)
    del parameters["iss"]
    assert isinstance((await stage.finish(again, parameters)).outcome, Linked)


async def test_a_declined_consent_has_a_code_of_its_own(engine: AsyncEngine) -> None:
    """The user pressed "cancel" at the provider; the browser goes back to where it came from."""
    stage = await stage_on(engine)
    started = await stage.start(1, return_to="/from")
    stage.provider.fail_next("authorize", error="access_denied")
    with pytest.raises(ConsentDeclined) as raised:
        await stage.finish(started, await stage.consent(started.url))
    assert f"{APP}/from?error=consent_declined" == stage.flow.after(raised.value)


async def test_a_providers_error_is_answered_with_a_fixed_text(engine: AsyncEngine, caplog: Any) -> None:
    """A33: nothing of what the URL says is in the error, in its redirect, or in a log."""
    caplog.set_level(logging.DEBUG)
    stage = await stage_on(engine)
    started = await stage.start(1)
    stage.provider.fail_next("authorize", error="<b>canary</b>", description="<script>canary</script>")
    with pytest.raises(ProviderFailed) as raised:
        await stage.finish(started, await stage.consent(started.url))
    assert f"{PAGE}?error=provider_error" == stage.flow.after(raised.value)
    assert "canary" not in str(raised.value) + repr(raised.value.__dict__) + caplog.text


async def test_a_forged_error_does_not_end_the_running_flow(engine: AsyncEngine) -> None:
    """A33: without the state an injected error reaches nothing."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    for forged in ({"error": "access_denied"}, {"error": "access_denied", "state": "x" * 43}):
        with pytest.raises(FlowNotStartedHere):
            await stage.finish(started, forged)
    assert isinstance((await stage.finish(started, parameters)).outcome, Linked)


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 500},
        {"status": 429},
        {"error": "invalid_grant", "description": "canary"},
        {"error": "invalid_client", "status": 401},
        {"lost": Lost.REQUEST},
        {"lost": Lost.REPLY},
    ],
    ids=lambda each: "-".join(map(str, each.values())),
)
@pytest.mark.parametrize("endpoint", ["token", "jwks", "userinfo", "configuration"])
async def test_a_provider_that_fails_is_a_typed_error(engine: AsyncEngine, endpoint: Any, failure: Any) -> None:
    """F24: each endpoint may be down, refuse, or lose the line; the user is told so, and nothing is linked."""
    stage = await stage_on(engine)
    if endpoint == "configuration":
        stage.provider.fail_next(endpoint, **failure)
        with pytest.raises(ProviderFailed) as raised:
            await stage.start(1)
    else:
        started = await stage.start(1)
        parameters = await stage.consent(started.url)
        if endpoint == "userinfo":
            without = {"email", "email_verified", "name"}
            stage.provider.forge_next_id_token(lambda claims: {n: v for n, v in claims.items() if n not in without})
        stage.provider.fail_next(endpoint, **failure)
        with pytest.raises(ProviderFailed) as raised:
            await stage.finish(started, parameters)
    assert "canary" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert [] == await stage.rows()


@pytest.mark.parametrize("answer", ["configuration", "jwks", "token", "userinfo"])
async def test_a_megabyte_is_refused(engine: AsyncEngine, answer: Any) -> None:
    """A40: no answer of a provider is read beyond its bound."""
    stage = await stage_on(engine)
    without = {"email", "email_verified", "name"}
    stage.provider.forge_next_id_token(lambda claims: {n: v for n, v in claims.items() if n not in without})
    stage.provider.forge_next(answer, lambda given: given | {"padding": "x" * 1_000_000})
    with pytest.raises((ProviderFailed, IdentityNotProven)):
        await stage.connect()
    assert [] == await stage.rows()


class Refusing(httpx2.AsyncBaseTransport):
    """Passes requests on, and gives the token response another status."""

    def __init__(self, status: int) -> None:
        self.network: Any = None
        self._status = status

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self.network.handle_async_request(request)
        if request.url.path != "/token":
            return cast("httpx2.Response", answer)
        return httpx2.Response(self._status, content=await answer.aread(), headers={"location": "https://x.example/"})


@pytest.mark.parametrize("status", [302, 304, 400, 401, 418])
async def test_a_refusal_with_tokens_in_it_is_a_refusal(engine: AsyncEngine, status: int) -> None:
    """RFC 6749, section 5.1: no token comes from a refusal or a redirect, which is not followed either."""
    network = Refusing(status)
    stage = await stage_on(engine, transport=network)
    network.network = stage.network
    with pytest.raises(ProviderFailed):
        await stage.connect()
    assert 1 == stage.asked_for_tokens()
    assert [] == await stage.rows()


class Respelt(httpx2.AsyncBaseTransport):
    """Passes requests on, and writes another text for one in each answer: JSON that Starlette does not write."""

    def __init__(self, text: bytes, other: bytes) -> None:
        self.network: Any = None
        self._text, self._other = text, other

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self.network.handle_async_request(request)
        body = (await answer.aread()).replace(self._text, self._other)
        return httpx2.Response(answer.status_code, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize("member", ["expires_in", "expires_at"])
@pytest.mark.parametrize("lifetime", ["1e999", "-1e999", "NaN", "1" + "0" * 400, "1e300", '"soon"', "[1]"])
async def test_a_lifetime_that_is_none_is_a_typed_error(engine: AsyncEngine, member: str, lifetime: str) -> None:
    """F24: ``1e999`` is JSON, and an infinite number in Python; such a lifetime, too, is an error with a code."""
    spelt = Respelt(b'"expires_in":3600', f'"{member}":{lifetime}'.encode())
    stage = await stage_on(engine, transport=spelt)
    spelt.network = stage.network
    with pytest.raises((ProviderFailed, InvalidCredentials)):
        await stage.connect()
    assert 1 == stage.asked_for_tokens()
    assert [] == await stage.rows()


async def test_userinfo_of_another_account_is_refused(engine: AsyncEngine) -> None:
    """OpenID Connect Core 1.0, section 5.3.2: userinfo whose sub differs is about somebody else."""
    stage = await stage_on(engine)
    without = {"email", "email_verified", "name"}
    stage.provider.forge_next_id_token(lambda claims: {n: v for n, v in claims.items() if n not in without})
    stage.provider.forge_next("userinfo", lambda told: told | {"sub": "another"})
    with pytest.raises(IdentityNotProven):
        await stage.connect()


async def test_claims_that_the_id_token_lacks_come_from_userinfo(engine: AsyncEngine) -> None:
    """Many providers tell the e-mail address in userinfo only."""
    stage = await stage_on(engine)
    without = {"email", "email_verified", "name"}
    stage.provider.forge_next_id_token(lambda claims: {n: v for n, v in claims.items() if n not in without})
    assert "ada@example.org" == account(await stage.connect()).email
    assert 1 == stage.provider.calls["/userinfo"]


async def test_a_discovery_document_of_another_issuer_is_refused(engine: AsyncEngine) -> None:
    """A11, A17: the document must name the issuer that was configured, byte by byte."""
    stage = await stage_on(engine)
    stage.provider.forge_next("configuration", lambda document: document | {"issuer": "https://evil.example"})
    with pytest.raises(ProviderMismatch):
        await stage.start(1)


@pytest.mark.parametrize("endpoint", ["authorization_endpoint", "token_endpoint"])
@pytest.mark.parametrize(
    "address",
    [
        "http://acme.example/token",
        "ftp://acme.example",
        "",
        7,
        None,
        "https:///token",
        "https://acme.example/中",
        "https://acme.example/a b",
        "https://acme.example/\r\nSet-Cookie: a=b",
        "https://acme.example:port/",
        "https://[::1",
    ],
)
async def test_a_discovery_document_with_an_unsafe_address_is_refused(
    engine: AsyncEngine, endpoint: str, address: object
) -> None:
    """No code is sent over plain http, no browser to an address that no header can hold, and nothing to none at all."""
    stage = await stage_on(engine)
    stage.provider.forge_next("configuration", lambda document: document | {endpoint: address})
    with pytest.raises(ProviderFailed):
        await stage.start(1)


async def test_what_a_request_adds_is_ignored(engine: AsyncEngine) -> None:
    """A37: claims come from the validated token, never from the callback's parameters."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    added = {"email": "eve@example.org", "sub": "other", "user": '{"name": "Eve"}', "scope": "admin"}
    finished = await stage.finish(started, await stage.consent(started.url) | added)
    linked = account(finished)
    assert (SUBJECT, "ada@example.org") == (linked.account_id, linked.email)
    assert "admin" not in (linked.scopes or ())


@pytest.mark.parametrize("flag", [True, False, None, "true", "false", 1])
async def test_an_email_flag_is_believed_only_where_the_preset_says_so(engine: AsyncEngine, flag: Any) -> None:
    """A05: by default the flag is dropped; it is never read from text."""
    seen: list[Any] = []

    def values(claims: Any) -> dict[Any, object]:
        seen.append(claims)
        return {}

    stage = await stage_on(engine, values=values)
    stage.provider.change_account(SUBJECT, email_verified=flag)
    finished = await stage.connect()
    assert isinstance(finished.outcome, Linked)
    [claims] = seen
    assert flag == claims.get("email_verified")


# -- reconnecting, scopes, return targets ------------------------------------------------------------------------------


async def test_reconnecting_forces_the_consent_screen_and_takes_that_account_only(engine: AsyncEngine) -> None:
    """A refresh token comes with a new consent; another account is a mismatch, and goes back to the return target."""
    stage = await stage_on(engine)
    link_id = account(await stage.connect()).id
    started = await stage.start(1, expect=link_id, return_to="/from")
    assert ["consent"] == query(started.url)["prompt"]
    finished = await stage.finish(started, await stage.consent(started.url))
    assert Change.UPDATED is change(finished)
    stage.provider.add_account("another")
    stage.provider.sign_in_as("another")
    again = await stage.start(1, expect=link_id, return_to="/from")
    with pytest.raises(AccountMismatch) as raised:
        await stage.finish(again, await stage.consent(again.url))
    assert f"{APP}/from?error=account_mismatch" == stage.flow.after(raised.value)


async def test_another_users_link_cannot_be_reconnected(engine: AsyncEngine) -> None:
    """A31: a foreign, a missing and another provider's link give one error, before anything begins."""
    stage = await stage_on(engine, slugs=["acme", "bolt"])
    link_id = account(await stage.connect()).id
    for user, slug, expect in ((2, "acme", link_id), (1, "acme", link_id + 1), (1, "bolt", link_id)):
        with pytest.raises(AccountNotFound):
            await stage.start(user, slug, expect=expect)


async def test_more_scopes_are_asked_for_beside_those_that_the_link_has(engine: AsyncEngine) -> None:
    """A step-up never loses what was granted before."""
    stage = await stage_on(engine)
    first = await stage.connect(scopes=["offline_access"])
    assert "offline_access" in (account(first).scopes or ())
    [asked] = query((await stage.start(scopes=["files"])).url)["scope"]
    assert {"openid", "email", "profile", "offline_access", "files"} == set(asked.split())
    [plain] = query((await stage.start()).url)["scope"]
    assert {"openid", "email", "profile"} == set(plain.split())


@pytest.mark.parametrize("scopes", ["openid", ["a b"], ['a"b'], [""], ["x" * 256], ["é"], [f"s{n}" for n in range(51)]])
async def test_scopes_that_are_none_are_refused(engine: AsyncEngine, scopes: Any) -> None:
    """RFC 6749, section 3.3: a scope token has neither blanks nor quotation marks."""
    stage = await stage_on(engine)
    with pytest.raises(RequestRejected):
        await stage.start(scopes=scopes)


async def test_a_return_target_that_leads_elsewhere_is_refused(engine: AsyncEngine) -> None:
    """A24: before anything begins."""
    stage = await stage_on(engine)
    with pytest.raises(ReturnTargetRejected):
        await stage.start(return_to="//evil.example")


async def test_an_unknown_provider_is_refused(engine: AsyncEngine) -> None:
    """Before anything begins or ends."""
    stage = await stage_on(engine)
    started = await stage.start()
    parameters = await stage.consent(started.url)
    with pytest.raises(UnknownProvider):
        await stage.start(slug="none")
    with pytest.raises(UnknownProvider):
        await stage.finish(started, parameters, slug="none")
    assert isinstance((await stage.finish(started, parameters)).outcome, Linked)


async def test_columns_of_the_application_come_from_the_validated_claims(engine: AsyncEngine) -> None:
    """values= sets them on a new row and on update."""
    labels = iter(["Ada", "Ada Lovelace"])
    columns: dict[str, Any] = {}

    def values(claims: Any) -> dict[Any, object]:
        assert SUBJECT == claims["sub"]
        return {columns["label"]: next(labels)}

    stage = await stage_on(engine, values=values)
    columns.update(stage.metadata.tables["connections"].columns)
    for expected in ("Ada", "Ada Lovelace"):
        assert isinstance((await stage.connect()).outcome, Linked)
        assert [expected] == [row["label"] for row in await stage.rows()]


async def test_tokens_can_be_discarded(engine: AsyncEngine) -> None:
    """An application that only wants to know whose account it is stores no token."""
    stage = await stage_on(engine, tokens=Tokens.DISCARDED)
    assert isinstance((await stage.connect()).outcome, Linked)
    [row] = await stage.rows()
    assert row["access_token"] is None


@pytest.mark.parametrize("missing", ["access_token", "scopes"])
async def test_a_table_that_cannot_keep_the_tokens_is_refused_at_once(engine: AsyncEngine, missing: str) -> None:
    """A user does not agree at the provider first; without the tokens such a table serves."""
    metadata = sa.MetaData()
    texts = {"provider", "account_id", "access_token", "scopes"} - {missing}
    table = sa.Table(
        "connections",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Text) for name in texts),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("provider", "account_id"),
    )
    stage = await stage_on(engine)
    mapping = AccountMapping(
        table,
        policy=LinkPolicy(removal=Removal.DELETE),
        **{column.name: column for column in table.columns if column.name != "id"},
    )
    options: dict[str, Any] = {
        "providers": stage.flow.providers.values(),
        "callback_url": CALLBACK,
        "page": PAGE,
        "states": stage.states,
        "secrets": FLOW_SECRETS,
    }
    with pytest.raises(ConfigurationError, match=f"{missing}=.*DISCARDED"):
        LinkFlow(AccountLinker(mapping), engine, **options)
    LinkFlow(AccountLinker(mapping), engine, tokens=Tokens.DISCARDED, **options)


# -- tickets -----------------------------------------------------------------------------------------------------------


async def test_a_ticket_begins_one_flow_of_its_user(engine: AsyncEngine) -> None:
    """Opening it changes nothing; another user and nobody burn nothing; the second use is refused."""
    stage = await stage_on(engine)
    made = await stage.flow.ticket(user_id=1, provider="acme", scopes=["calendar"])
    base, _, ticket = made.url.rpartition("/")
    assert f"{APP}/accounts/tickets" == base
    for user in (2, None):
        with pytest.raises(TicketRejected):
            await stage.flow.offer(ticket, user_id=user)
        with pytest.raises(TicketRejected):
            await stage.flow.start_with(ticket, user_id=user, browser=None)
    for _ in range(5):
        assert "acme" == (await stage.flow.offer(ticket, user_id=1)).provider.slug
    started = await stage.flow.start_with(ticket, user_id=1, browser=None)
    assert "calendar" in query(started.url)["scope"][0].split()
    assert isinstance((await stage.finish(started, await stage.consent(started.url))).outcome, Linked)
    for attempt in (stage.flow.offer(ticket, user_id=1), stage.flow.start_with(ticket, user_id=1, browser=None)):
        with pytest.raises(TicketRejected):
            await attempt


async def test_a_ticket_is_no_state_and_a_state_is_no_ticket(engine: AsyncEngine) -> None:
    """A20: what was made for one purpose is refused for another."""
    stage = await stage_on(engine)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.rpartition("/")[2]
    started = await stage.start(1)
    [state] = query(started.url)["state"]
    with pytest.raises(TicketRejected):
        await stage.flow.offer(state, user_id=1)
    with pytest.raises(FlowNotStartedHere):
        await stage.finish(started, {"state": ticket, "code": "x", "iss": stage.provider.issuer})


async def test_a_provider_that_is_down_burns_no_ticket(engine: AsyncEngine) -> None:
    """The user can try again later."""
    stage = await stage_on(engine)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.rpartition("/")[2]
    stage.provider.fail_next("configuration", status=503)
    with pytest.raises(ProviderFailed):
        await stage.flow.start_with(ticket, user_id=1, browser=None)
    assert (await stage.flow.start_with(ticket, user_id=1, browser=None)).url


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"callback_url": "http://app.example/callback"},
        {"callback_url": "/callback"},
        {"callback_url": f"{CALLBACK}?a=b"},
        {"callback_url": "https://user@app.example/callback"},
        {"page": "http://192.168.0.1/"},
        {"page": f"{PAGE}#fragment"},
        {"page": "https://app.example:port/"},
        {"allowed_return_urls": "https://other.example"},
        {"allowed_return_urls": ["other.example"]},
        {"trusted_origins": ["https://other.example/path"]},
        {"trusted_origins": ["https://other.example:443"]},
        {"trusted_origins": "https://other.example"},
        {"secrets": ["short"]},
        {"secrets": []},
        {"providers": []},
        {"providers": ["google"]},
        {"states": None},
        {"states": "flow_states"},
        {"values": "email"},
        {"clock": None},
        {"tokens": "stored"},
    ],
    ids=lambda each: "-".join(f"{name}-{value}" for name, value in each.items()),
)
async def test_a_flow_that_cannot_work_is_refused_at_once(engine: AsyncEngine, wrong: Any) -> None:
    """Each mistake has a message that names the argument."""
    stage = await stage_on(engine)
    right: dict[str, Any] = {
        "providers": [preset("acme", stage.provider)],
        "callback_url": CALLBACK,
        "page": PAGE,
        "states": stage.states,
        "secrets": FLOW_SECRETS,
    }
    with pytest.raises(ConfigurationError) as raised:
        LinkFlow(stage.flow.linker, engine, **right | wrong)
    assert any(name in str(raised.value).lower() for name in ("states", "secret", *wrong))


async def test_two_providers_of_one_slug_are_refused(engine: AsyncEngine) -> None:
    """A11: a redirect URI belongs to one provider."""
    stage = await stage_on(engine)
    with pytest.raises(ConfigurationError, match="slug"):
        LinkFlow(
            stage.flow.linker,
            engine,
            providers=[preset("acme", stage.provider)] * 2,
            callback_url=CALLBACK,
            page=PAGE,
            states=stage.states,
            secrets=FLOW_SECRETS,
        )


def test_every_refusal_of_a_flow_has_a_code_of_its_own(kind: str) -> None:
    """Nobody has to read a text to know what happened."""
    classes = [each for each in FlowRejected.__subclasses__() if each.__module__.startswith("accountlink")]
    codes = [each.code for each in classes]
    assert len(set(codes)) == len(codes)
    assert all(issubclass(each, AccountLinkError) for each in classes)
