"""The routes of a flow: by FastAPI and by Starlette, for browsers and for API clients."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.flows import APP, CALLBACK, PAGE, stage_on
from tests.support.routers import FRAMEWORKS, api_client, application, browser_of, connected, leave, query_of

pytestmark = [
    pytest.mark.parametrize("kind", ["sqlite"]),
    pytest.mark.parametrize("framework", FRAMEWORKS),
]


async def test_a_browser_goes_to_the_provider_and_back(engine: AsyncEngine, framework: str) -> None:
    """A browser gets redirects: to the provider, and in the end to the page with the result."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        left = await browser.post("/accounts/connect/acme")
        assert 303 == left.status_code
        assert left.headers["location"].startswith("https://acme.example/")
        answer = await browser.get("/accounts/callback/acme", params=await stage.consent(left.headers["location"]))
    assert (303, f"{PAGE}?connection=success") == (answer.status_code, answer.headers["location"])


async def test_an_api_client_gets_json(engine: AsyncEngine, framework: str) -> None:
    """An API client gets the provider's address, and what became of the link."""
    stage = await stage_on(engine)
    async with api_client(application(framework, stage.flow)) as client:
        left = await client.post("/accounts/connect/acme", json={"return_to": "/here"})
        assert (200, ["url"]) == (left.status_code, list(left.json()))
        answer = await client.get("/accounts/callback/acme", params=await stage.consent(left.json()["url"]))
        [listed] = (await client.get("/accounts")).json()
    expected: dict[str, Any] = {
        "connection": "success",
        "change": "created",
        "id": 1,
        "provider": "acme",
        "return_to": f"{APP}/here",
    }
    assert (200, expected) == (answer.status_code, answer.json())
    assert ["id", "provider", "scopes", "created_at", "updated_at"] == list(listed)
    assert (1, "acme", ["email", "openid", "profile"]) == (listed["id"], listed["provider"], listed["scopes"])


async def test_a_conflict_ends_in_a_transfer_by_a_browser(engine: AsyncEngine, framework: str) -> None:
    """The claimant gets a token in the fragment, posts it by a form, and has the account."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with browser_of(app, "1") as owner, browser_of(app, "2") as claimant:
        await connected(stage, owner)
        conflict = await connected(stage, claimant)
        base, _, token = conflict.headers["location"].partition("#transfer_token=")
        assert f"{PAGE}?error=ownership_conflict" == base
        answer = await claimant.post("/accounts/transfer", data={"transfer_token": token})
        assert (303, f"{PAGE}?connection=success") == (answer.status_code, answer.headers["location"])
        assert [] == (await owner.get("/accounts")).json()


async def test_an_account_is_disconnected_by_both_ways(engine: AsyncEngine, framework: str) -> None:
    """A form posts to /unlink and is redirected; an API client sends DELETE and gets JSON."""
    stage = await stage_on(engine, slugs=["acme", "bolt"])
    async with browser_of(application(framework, stage.flow)) as browser:
        for slug in ("acme", "bolt"):
            await connected(stage, browser, slug)
        posted = await browser.post("/accounts/1/unlink")
        assert (303, f"{PAGE}?connection=unlinked") == (posted.status_code, posted.headers["location"])
        deleted = await browser.delete("/accounts/2")
        gone = {"connection": "unlinked", "change": "unlinked", "id": 2, "provider": "bolt", "return_to": None}
        assert (200, gone) == (deleted.status_code, deleted.json())


async def test_a_page_of_the_application_hands_the_answer_on(engine: AsyncEngine, framework: str) -> None:
    """Users with a bearer token and no cookie end their flow by POST /finish."""
    stage = await stage_on(engine)
    async with api_client(application(framework, stage.flow), None, authorization="Bearer 1") as client:
        left = await client.post("/accounts/connect/acme")
        assert "set-cookie" not in left.headers
        answer = await client.post("/accounts/finish/acme", json=await stage.consent(left.json()["url"]))
    assert (200, "created") == (answer.status_code, answer.json()["change"])


async def test_a_ticket_is_shown_and_used(engine: AsyncEngine, framework: str) -> None:
    """The user opens the address of a ticket, sees what it is for, and begins by a POST."""
    stage = await stage_on(engine)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.removeprefix(APP)
    async with browser_of(application(framework, stage.flow)) as browser:
        page = await browser.get(ticket)
        assert (200, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
        left = await browser.post(ticket)
        answer = await browser.get("/accounts/callback/acme", params=await stage.consent(left.headers["location"]))
    assert f"{PAGE}?connection=success" == answer.headers["location"]


async def test_a_posted_answer_is_bounced_to_a_get(engine: AsyncEngine, framework: str) -> None:
    """A cross-site POST brings no cookie (SameSite=Lax); the GET that it is bounced to brings them."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with browser_of(app) as browser, browser_of(app, None, **{"sec-fetch-site": "cross-site"}) as bare:
        parameters = await stage.consent(await leave(browser))
        posted = await bare.post(
            "/accounts/callback/acme",
            data=parameters | {"user": '{"email": "ada@example.org"}'},
            headers={"origin": "https://acme.example"},
        )
        address = posted.headers["location"]
        assert (303, f"{CALLBACK}/acme", parameters) == (
            posted.status_code,
            address.partition("?")[0],
            query_of(address),
        )
        answer = await browser.get(address)
    assert f"{PAGE}?connection=success" == answer.headers["location"]
