"""Requests with a linked account's token: to its own origins alone, and once more after a refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import ConfigurationError, LinkedAccountAuth, MissingScopes
from accountlink.testing import FakeRefresher, link_with_expired_token
from tests.contract.test_renewing import Provider, Renewed

API = "https://api.example"


class Api:
    """An API that accepts one token."""

    def __init__(self, accepts: str) -> None:
        self.accepts = accepts
        self.seen: list[tuple[str, str]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        token = request.headers.get("Authorization", "")
        self.seen.append((token, request.content.decode()))
        return httpx2.Response(200 if token == f"Bearer {self.accepts}" else 401)


def client(auth: httpx2.Auth, answer: Callable[[httpx2.Request], httpx2.Response]) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(auth=auth, transport=httpx2.MockTransport(answer))


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_request_gets_a_valid_token(engine: AsyncEngine) -> None:
    """An expired token is renewed before the request is sent."""
    case = await Renewed(Provider()).create(engine)
    linker = case.other_linker(refresher=FakeRefresher(), refreshes=case.states)
    link_id = await link_with_expired_token(linker, engine, user_id=1)
    api = Api("renewed-access-token-1")
    auth = LinkedAccountAuth(linker, engine, user_id=1, link_id=link_id, origins=[API])
    async with client(auth, api) as http:
        assert 200 == (await http.post(f"{API}/things", content=b"body")).status_code
    assert [("Bearer renewed-access-token-1", "body")] == api.seen


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_token_that_cannot_stand_in_a_header_is_not_shown(engine: AsyncEngine) -> None:
    """httpx2 would show it in the text of its error; so it is refused before, and without its text."""
    case = await Renewed(Provider()).create(engine)
    linker = case.other_linker(refresher=FakeRefresher(), refreshes=case.states)
    api = Api("none")
    odd: list[dict[str, str]] = [
        *({"access_token": f"canary{end}"} for end in ("\n", "\r\nX-Other: 1", " ", "\t", "\x7f", "ü", "\u2028")),
        *({"access_token": "canary", "token_type": kind} for kind in ("Bea\nrer", " MAC", "Bearér")),
    ]
    for number, tokens in enumerate(odd):
        link_id = await link_with_expired_token(
            linker, engine, user_id=1, account_id=str(number), expires_at=None, refresh_token=None, **tokens
        )
        auth = LinkedAccountAuth(linker, engine, user_id=1, link_id=link_id, origins=[API])
        async with client(auth, api) as http:
            with pytest.raises(ConfigurationError, match="header") as raised:
                await http.get(API)
        assert "canary" not in str(raised.value)
    assert [] == api.seen


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_refused_token_is_replaced_once(engine: AsyncEngine) -> None:
    """After a 401 the request is sent again, with its body, if another token can be had."""
    case = await Renewed(Provider()).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(minutes=5)
    await case.link(engine, ends_in=timedelta(hours=1))
    api = Api("access-1")
    auth = LinkedAccountAuth(case.linkers[0], engine, user_id=1, provider="acme", origins=[API])
    async with client(auth, api) as http:
        assert 200 == (await http.post(f"{API}/things", content=b"body")).status_code
        assert [("Bearer access-0", "body"), ("Bearer access-1", "body")] == api.seen
        api.accepts = "another"
        assert 401 == (await http.get(f"{API}/things")).status_code
    assert 3 == len(api.seen)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_no_other_origin_gets_a_token(engine: AsyncEngine) -> None:
    case = await Renewed(Provider()).create(engine)
    await case.link(engine, ends_in=timedelta(hours=1))
    api = Api("access-0")
    auth = LinkedAccountAuth(case.linkers[0], engine, user_id=1, provider="acme", origins=[API])
    others = [
        "https://evil.example/",
        "http://api.example/",
        f"{API}:8443/",
        "https://api.example.evil/",
        f"{API}@evil/",
    ]
    async with client(auth, api) as http:
        for url in others:
            with pytest.raises(ConfigurationError):
                await http.get(url)
        assert 200 == (await http.get(f"{API}:443/x?y=1")).status_code
    assert 1 == len(api.seen)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_redirect_to_another_origin_gets_no_token(engine: AsyncEngine) -> None:
    case = await Renewed(Provider()).create(engine)
    await case.link(engine, ends_in=timedelta(hours=1))
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        if request.url.host == "api.example":
            return httpx2.Response(302, headers={"Location": "https://evil.example/"})
        return httpx2.Response(200)

    auth = LinkedAccountAuth(case.linkers[0], engine, user_id=1, provider="acme", origins=[API])
    async with client(auth, answer) as http:
        await http.get(API, follow_redirects=True)
    assert ["api.example", "evil.example"] == [request.url.host for request in seen]
    assert "Authorization" not in seen[1].headers


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_what_is_refused(engine: AsyncEngine) -> None:
    case = await Renewed(Provider()).create(engine)
    await case.link(engine, ends_in=timedelta(hours=1))
    linker = case.linkers[0]
    odd: list[Any] = [(), "https://api.example", ["api.example"], [f"{API}/path"], ["http://api.example"]]
    odd += [None, 7, b"https://api.example", [None], [API, None], [API.encode()], [7], ["\ud800"], [""]]
    for origins in odd:
        with pytest.raises(ConfigurationError):
            LinkedAccountAuth(linker, engine, user_id=1, provider="acme", origins=origins)
    auth = LinkedAccountAuth(linker, engine, user_id=1, provider="acme", origins=[API], require={"admin"})
    api = Api("access-0")
    async with client(auth, api) as http:
        with pytest.raises(MissingScopes):
            await http.get(API)
    with (
        httpx2.Client(auth=auth, transport=httpx2.MockTransport(api)) as http,
        pytest.raises(ConfigurationError, match="AsyncClient"),
    ):
        http.get(API)
    assert [] == api.seen
