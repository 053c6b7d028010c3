"""OAuth's refresh tokens, redeemed at the built-in provider and at answers of every shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]  # Authlib ships no types

from accountlink import ConfigurationError, TokenSet
from accountlink.providers import OAuthClient, RefreshBehaviour, oidc
from accountlink.testing.fake_provider import FakeProvider, Lost
from accountlink.vault.oauth import OAuthRefresher, TokenAnswer, failure_of, retry_moment
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, RenewalFailed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = timedelta(seconds=5)
OLD = TokenSet(access_token="access-0", refresh_token="refresh-0", client="web")


def client(**fields: Any) -> OAuthClient:
    given: dict[str, Any] = {
        "name": "web",
        "client_id": "id",
        "client_secret": "client-canary",
        "token_endpoint": "https://provider.example/token",
    }
    return OAuthClient(**(given | fields))


def refresher(
    answer: Callable[[httpx2.Request], httpx2.Response], *clients: OAuthClient, **options: Any
) -> OAuthRefresher:
    return OAuthRefresher({"acme": clients or [client()]}, transport=httpx2.MockTransport(answer), **options)


ANSWERS: dict[str, tuple[int, dict[str, str], dict[str, Any] | str, type[RenewalFailed] | None]] = {
    "success": (200, {}, {"access_token": "a", "expires_in": 60}, None),
    "invalid_grant as 400": (400, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_grant as 403": (403, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_grant as 200": (200, {}, {"error": "bad_refresh_token"}, GrantEnded),
    "invalid_grant as 500": (500, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_client": (401, {}, {"error": "invalid_client"}, ClientRefused),
    "unauthorized_client": (400, {}, {"error": "unauthorized_client"}, ClientRefused),
    "invalid_scope": (400, {}, {"error": "invalid_scope"}, ClientRefused),
    "an opaque 400": (400, {}, "no", ProviderUnavailable),
    "an unknown code": (400, {}, {"error": "E1234"}, ProviderUnavailable),
    "without access_token": (200, {}, {"token_type": "Bearer"}, ProviderUnavailable),
    "503": (503, {}, "", ProviderUnavailable),
    "429": (429, {"Retry-After": "120"}, "", ProviderUnavailable),
    "a redirect": (302, {"Location": "https://other.example/"}, "", ProviderUnavailable),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_answer_is_read_by_its_code(name: str) -> None:
    status, headers, body, expected = ANSWERS[name]

    def answer(_request: httpx2.Request) -> httpx2.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return httpx2.Response(status, headers={"Content-Type": "application/json"} | headers, text=text)

    renewing = refresher(answer).renew("acme", OLD, deadline=DEADLINE)
    if expected is None:
        assert "a" == (await renewing).access_token.reveal()
        return
    with pytest.raises(expected) as raised:
        await renewing
    if isinstance(raised.value, ProviderUnavailable):
        assert (
            name in ("an opaque 400", "an unknown code", "without access_token", "a redirect")
        ) is raised.value.opaque
        assert not raised.value.uncertain


async def test_a_form_is_read_too() -> None:
    """GitHub answers with a form unless it is asked for JSON."""
    form = httpx2.Response(
        200, headers={"Content-Type": "application/x-www-form-urlencoded"}, text="access_token=a&expires_in=60"
    )
    tokens = await refresher(lambda _: form).renew("acme", OLD, deadline=DEADLINE)
    assert "a" == tokens.access_token.reveal()


async def test_what_is_sent() -> None:
    """The refresh token goes in the body, once, to the address of its own client."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"access_token": "a", "instance_url": "https://eu1", "other": "x"})

    other = client(name="app", token_endpoint="https://provider.example/other", auth_method="client_secret_post")
    renewer = refresher(answer, client(), other, extra={"acme": ["instance_url"]})
    new = await renewer.renew("acme", OLD, deadline=DEADLINE)
    assert (["instance_url"], "web", None) == (list(new.extra), new.client, new.expires_at)
    await renewer.renew("acme", TokenSet(access_token="a", refresh_token="refresh-1", client="app"), deadline=DEADLINE)
    first, second = seen
    assert ("/token", "/other") == (first.url.path, second.url.path)
    assert b"grant_type=refresh_token&refresh_token=refresh-0" == first.content
    assert first.headers["Authorization"].startswith("Basic ")
    assert b"client_secret=client-canary" in second.content
    assert "Authorization" not in second.headers


@pytest.mark.parametrize(
    ("error", "uncertain"), [(httpx2.ConnectError("no"), False), (httpx2.ReadTimeout("slow"), True)]
)
async def test_a_lost_answer_is_told_from_a_request_that_was_not_sent(error: Exception, uncertain: bool) -> None:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        raise error

    with pytest.raises(ProviderUnavailable) as raised:
        await refresher(answer).renew("acme", OLD, deadline=DEADLINE)
    assert (uncertain, False) == (raised.value.uncertain, raised.value.opaque)


@pytest.mark.parametrize("then", ["works", "ends"])
async def test_a_lost_answer_is_asked_for_again_within_a_grace_period(then: str) -> None:
    asked: list[str] = []

    def answer(_request: httpx2.Request) -> httpx2.Response:
        asked.append("once")
        if len(asked) == 1:
            raise httpx2.RemoteProtocolError("the line is cut")
        ended = httpx2.Response(400, json={"error": "invalid_grant"})
        return ended if then == "ends" else httpx2.Response(200, json={"access_token": "a"})

    patient = client(behaviour=RefreshBehaviour(rotates=True, grace=timedelta(seconds=30)))
    renewing = refresher(answer, patient).renew("acme", OLD, deadline=DEADLINE)
    if then == "works":
        assert "a" == (await renewing).access_token.reveal()
    else:
        with pytest.raises(GrantEnded) as raised:
            await renewing
        assert "lost_in_refresh" == raised.value.provider_code
    assert 2 == len(asked)


def test_the_right_client_or_none() -> None:
    renewer = refresher(lambda _: httpx2.Response(200), client(), client(name="app"))
    assert renewer.can_renew("acme", OLD)
    assert not renewer.can_renew("acme", TokenSet(access_token="a"))
    for tokens in (
        TokenSet(access_token="a", refresh_token="r"),
        TokenSet(access_token="a", refresh_token="r", client="x"),
    ):
        with pytest.raises(ConfigurationError, match="knows"):
            renewer.can_renew("acme", tokens)
    with pytest.raises(ConfigurationError, match="address"):
        OAuthRefresher({"acme": [client(token_endpoint=None)]})
    provider = oidc("acme", issuer="https://provider.example", client_id="id", client_secret="s")
    assert OAuthRefresher.of([provider]).can_renew("acme", TokenSet(access_token="a", refresh_token="r"))


def test_retry_after() -> None:
    """Seconds or a date, at most an hour, and nothing that is neither."""
    assert NOW + timedelta(seconds=7) == retry_moment("7", now=NOW)
    assert NOW + timedelta(minutes=1) == retry_moment("Thu, 01 Jan 2026 00:01:00 GMT", now=NOW)
    assert NOW + timedelta(hours=1) == retry_moment("999999999999", now=NOW)
    assert NOW == retry_moment("Wed, 31 Dec 2025 00:00:00 GMT", now=NOW)
    assert [None, None, None] == [retry_moment(text, now=NOW) for text in (None, "soon", "-1")]
    failed = failure_of(TokenAnswer(status=503, retry_after="60", members={}), now=NOW)
    assert isinstance(failed, ProviderUnavailable)
    assert NOW + timedelta(minutes=1) == failed.retry_at


# -- at the built-in provider -----------------------------------------------------------------------------------------


class AtProvider:
    """A user's grant at the built-in provider, obtained by its own code."""

    def __init__(self, **options: Any) -> None:
        self.fake = FakeProvider(redirect_uris=["https://app.example/callback"], **options)
        self.fake.add_account("sub-1", email="ann@example.com")
        self.fake.sign_in_as("sub-1")
        self.transport = httpx2.ASGITransport(app=self.fake)
        registered = OAuthClient(
            client_id=self.fake.client_id,
            client_secret=self.fake.client_secret,
            metadata_url=self.fake.server_metadata_url,
        )
        self.refresher = OAuthRefresher({"acme": [registered]}, transport=self.transport)

    async def tokens(self) -> TokenSet:
        """Obtain tokens by a code."""
        verifier = "v" * 43
        async with httpx2.AsyncClient(transport=self.transport, base_url=self.fake.issuer) as browser:
            asked = {
                "response_type": "code",
                "client_id": self.fake.client_id,
                "redirect_uri": "https://app.example/callback",
                "scope": "openid offline_access",
                "code_challenge": create_s256_code_challenge(verifier),
                "code_challenge_method": "S256",
            }
            back = await browser.get("/authorize", params=asked)
            code = dict(parse_qsl(urlsplit(back.headers["Location"]).query))["code"]
            answer = await browser.post(
                "/token",
                data={
                    "grant_type": "authorization_code",
                    "code": code,
                    "redirect_uri": "https://app.example/callback",
                    "code_verifier": verifier,
                },
                auth=(self.fake.client_id, self.fake.client_secret),
            )
        return TokenSet.from_response(answer.json(), received_at=datetime.now(UTC))

    async def renewed(self, tokens: TokenSet) -> TokenSet:
        return await self.refresher.renew("acme", tokens, deadline=DEADLINE)


async def test_a_rotating_provider_is_asked_with_the_newest_token() -> None:
    """Each renewal gives a new refresh token, and the address comes from the discovery document, once."""
    at = AtProvider()
    first = await at.tokens()
    second = await at.renewed(first)
    third = await at.renewed(second)
    assert 3 == len({tokens.refresh_token for tokens in (first, second, third)})
    assert 1 == at.fake.calls["/.well-known/openid-configuration"]
    with pytest.raises(GrantEnded) as raised:
        await at.renewed(first)
    assert "invalid_grant" == raised.value.provider_code
    with pytest.raises(GrantEnded):
        await at.renewed(third)


async def test_a_provider_that_does_not_rotate_sends_no_refresh_token() -> None:
    at = AtProvider(behaviour=RefreshBehaviour(rotates=False))
    first = await at.tokens()
    for _ in range(2):
        assert (await at.renewed(first)).refresh_token is None


async def test_a_spent_token_works_within_the_grace() -> None:
    at = AtProvider(behaviour=RefreshBehaviour(rotates=True, grace=timedelta(minutes=1)))
    first = await at.tokens()
    assert (await at.renewed(first)).access_token != (await at.renewed(first)).access_token


async def test_plans_of_the_built_in_provider() -> None:
    """A provider that is told to fail does so in each form, and the grant lives."""
    at = AtProvider()
    tokens = await at.tokens()
    at.fake.fail_next("token", status=429, retry_after="30")
    with pytest.raises(ProviderUnavailable) as raised:
        await at.renewed(tokens)
    assert raised.value.retry_at is not None
    at.fake.fail_next("token", status=403, error="invalid_grant")
    with pytest.raises(GrantEnded):
        await at.renewed(tokens)
    at.fake.fail_next("token", lost=Lost.REQUEST)
    with pytest.raises(ProviderUnavailable) as raised:
        await at.renewed(tokens)
    assert raised.value.uncertain
    at.fake.forge_next("token", lambda answer: {**answer, "expires_in": None})
    assert (await at.renewed(tokens)).expires_at is None
