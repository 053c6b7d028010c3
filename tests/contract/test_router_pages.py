"""The routes' headers, cookies, the page of a ticket, and what no answer may hold."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final
from uuid import UUID

import pytest
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.routing import Mount

from accountlink.web import flow_states
from accountlink.web.starlette import link_routes
from tests.support.flows import APP, PAGE, Stage, stage_on
from tests.support.models import USER_TYPES
from tests.support.routers import (
    API,
    FRAMEWORKS,
    api_client,
    application,
    browser_of,
    come_back,
    connected,
    leave,
    named,
    named_later,
    signed_in,
    signed_in_later,
)

pytestmark = pytest.mark.parametrize("framework", FRAMEWORKS)

sqlite = pytest.mark.parametrize("kind", ["sqlite"])
EMAIL: Final = "ada@example.org"


async def ticket_of(stage: Stage, **more: Any) -> str:
    """Make a ticket for user 1, and return its path."""
    ticket = await stage.flow.ticket(user_id=1, provider="acme", **more)
    assert ticket.url.startswith(f"{APP}/accounts/tickets/")
    return ticket.url.removeprefix(APP)


# -- headers and cookies -----------------------------------------------------------------------------------------------


@sqlite
async def test_no_answer_is_kept_or_passed_on(engine: AsyncEngine, framework: str) -> None:
    """A23: successes, redirects, refusals and the page: none is stored, and none of their addresses is a referrer."""
    stage = await stage_on(engine)
    ticket = await ticket_of(stage)
    async with browser_of(application(framework, stage.flow)) as browser:
        left = await browser.post("/accounts/connect/acme")
        answers = [
            left,
            await come_back(stage, browser, left.headers["location"]),
            await browser.get("/accounts"),
            await browser.get(ticket),
            await browser.post("/accounts/callback/acme", data={"code": "x"}),
            await browser.post("/accounts/connect/none"),
            await browser.post("/accounts/connect/none", headers=API),
            await browser.delete("/accounts/1", headers={"sec-fetch-site": "cross-site", "origin": "null"}),
            await browser.delete("/accounts/1"),
        ]
    assert {200, 303, 403, 404} == {answer.status_code for answer in answers}
    kept = {(answer.headers["cache-control"], answer.headers["referrer-policy"]) for answer in answers}
    assert {("no-store", "no-referrer")} == kept


@sqlite
async def test_the_cookie_on_https_is_one_that_no_other_host_can_set(engine: AsyncEngine, framework: str) -> None:
    """A13: ``__Host-``, Secure, HttpOnly, SameSite=Lax, no Domain; the value is random, and stays for further flows."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        answers = [await browser.post("/accounts/connect/acme", headers=accept) for accept in ({}, API)]
    first, second = [answer.headers["set-cookie"] for answer in answers]
    pattern = r"__Host-accountlink=[A-Za-z0-9_-]{43}; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert re.fullmatch(pattern, first)
    assert first == second


@sqlite
async def test_the_cookie_on_localhost_works_without_https(engine: AsyncEngine, framework: str) -> None:
    """In development on plain http the cookie has another name and is not Secure; the whole flow works."""
    here = "http://localhost:8000"
    stage = await stage_on(engine, callback_url=f"{here}/accounts/callback", page=f"{here}/settings")
    async with browser_of(application(framework, stage.flow), base=here, origin=here) as browser:
        left = await browser.post("/accounts/connect/acme")
        assert re.fullmatch(
            r"accountlink=[A-Za-z0-9_-]{43}; Path=/; HttpOnly; SameSite=Lax", left.headers["set-cookie"]
        )
        answer = await browser.get("/accounts/callback/acme", params={"state": "x"})
    assert f"{here}/settings?error=flow_not_started_here" == answer.headers["location"]


@sqlite
@pytest.mark.parametrize("planted", ["x", "x" * 43, "é"])
async def test_a_planted_cookie_is_no_browsers(engine: AsyncEngine, framework: str, planted: str) -> None:
    """A13: a value that is not one of ours is replaced at the start; a foreign one ends no flow."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with browser_of(app) as starter, browser_of(app) as other:
        parameters = await stage.consent(await leave(starter))
        headers = {b"cookie": f"session=1; __Host-accountlink={planted}".encode()}
        answer = await other.get("/accounts/callback/acme", params=parameters, headers=headers)
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]


# -- tickets -----------------------------------------------------------------------------------------------------------


@sqlite
async def test_the_page_of_a_ticket_runs_and_loads_nothing(engine: AsyncEngine, framework: str) -> None:
    """A23: what is shown is escaped; no script, no frame, no other host; the form posts to its own address."""
    stage = await stage_on(engine, oidc_options={"name": 'Acme <script>alert("1")</script>'})
    ticket = await ticket_of(stage, scopes=["<img>", "calendar"])
    async with browser_of(application(framework, stage.flow, user_label=named)) as browser:
        page = await browser.get(ticket)
    assert "Acme &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in page.text
    assert "signed in as <strong>&lt;b&gt;User&lt;/b&gt; 1</strong>" in page.text
    assert "<code>&lt;img&gt;</code>" in page.text
    assert '<form method="post"><button type="submit">' in page.text
    found = set(re.findall(r"<([a-z0-9]+)", page.text))
    assert found <= {
        "html", "head", "meta", "title", "body", "main", "h1", "p", "strong", "ul", "li", "code", "form", "button",
    }  # fmt: skip
    assert (
        "default-src 'none'; base-uri 'none'; form-action 'self' https:; frame-ancestors 'none'"
        == page.headers["content-security-policy"]
    )
    assert ("nosniff", "DENY") == (page.headers["x-content-type-options"], page.headers["x-frame-options"])
    assert ticket.rpartition("/")[2] not in page.text


@sqlite
async def test_the_page_of_a_ticket_holds_no_personal_data(engine: AsyncEngine, framework: str) -> None:
    """Without a label of the application's it names the provider and the scopes alone."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        await connected(stage, browser)
        ticket = await ticket_of(stage, expect=1)
        page = await browser.get(ticket)
        shown = await browser.get(ticket, headers=API)
    assert ("Reconnect your acme account" in page.text, "signed in as" in page.text) == (True, False)
    assert {"provider": "acme", "scopes": ["openid", "email", "profile"], "reconnects": True} == shown.json()


@sqlite
async def test_anybody_elses_look_at_a_ticket_says_nothing_and_burns_nothing(
    engine: AsyncEngine, framework: str
) -> None:
    """A link preview, nobody, another user: one refusal for a ticket that is there and for one that is not."""
    stage = await stage_on(engine)
    ticket = await ticket_of(stage)
    app = application(framework, stage.flow)
    async with browser_of(app, None) as nobody, browser_of(app, "2") as other, browser_of(app, "1") as user:
        refusals = []
        for client in (nobody, other):
            for path in (ticket, f"/accounts/tickets/{'x' * 43}", "/accounts/tickets/x"):
                for method in ("GET", "POST"):
                    answer = await client.request(method, path)
                    refusals.append((answer.status_code, answer.headers["location"], answer.text))
                    answer = await client.request(method, path, headers=API)
                    assert (404, "ticket_rejected") == (answer.status_code, answer.json()["code"])
        assert {(303, f"{PAGE}?error=ticket_rejected", "")} == set(refusals)
        for _ in range(5):
            assert 200 == (await user.get(ticket)).status_code
        left = await user.post(ticket)
        assert (
            f"{PAGE}?connection=success" == (await come_back(stage, user, left.headers["location"])).headers["location"]
        )
        for method in ("GET", "POST"):
            assert f"{PAGE}?error=ticket_rejected" == (await user.request(method, ticket)).headers["location"]


# -- what no answer holds ----------------------------------------------------------------------------------------------


@sqlite
async def test_no_answer_holds_an_owner_an_address_or_a_token(engine: AsyncEngine, framework: str) -> None:
    """The owner of a conflict, e-mail addresses, account ids and tokens stay on the server, but the transfer token."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with api_client(app, "777001") as owner, api_client(app, "777002") as claimant:
        conflicts = [await connected(stage, owner), await connected(stage, claimant)]
        token, surrogate = conflicts[1].json()["transfer_token"], rb'{"transfer_token": "\ud800"}'
        answers = [
            *conflicts,
            await owner.get("/accounts"),
            await owner.post("/accounts/transfer", json={"transfer_token": token}),
            await claimant.post("/accounts/transfer", content=surrogate, headers={"content-type": "application/json"}),
            await claimant.post("/accounts/transfer", json={"transfer_token": token}),
            await claimant.post("/accounts/transfer", json={"transfer_token": token}),
            await claimant.get("/accounts"),
            await claimant.post("/accounts/1/unlink"),
        ]
    codes = [answer.json()["code"] if answer.status_code >= 400 else answer.status_code for answer in answers]
    expected = [200, "ownership_conflict", 200, "token_for_another_user", "token_forged", 200, 200, 200, 200]
    assert expected == codes
    assert "transferred" == answers[5].json()["change"]
    assert "already_owner" == answers[6].json()["change"]
    text = " ".join(answer.text.replace(token, "") for answer in answers)
    [row] = await stage.rows()
    secrets = ["777001", "777002", EMAIL, row["account_id"]]
    assert [] == [each for each in secrets if each in text.replace('"account_id"', "")]
    assert "access_token" not in text


@sqlite
async def test_a_conflict_is_a_problem_of_409(engine: AsyncEngine, framework: str) -> None:
    """An API client gets the transfer token and its end, and nothing of the owner."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with api_client(app, "1") as owner, api_client(app, "2") as claimant:
        await connected(stage, owner)
        conflict = await connected(stage, claimant)
    problem = conflict.json()
    assert (409, "application/problem+json") == (conflict.status_code, conflict.headers["content-type"])
    assert {"type", "title", "status", "code", "provider", "transfer_token", "expires_at"} == set(problem)
    assert ("ownership_conflict", "acme") == (problem["code"], problem["provider"])


# -- other tables and mounts -------------------------------------------------------------------------------------------


@sqlite
async def test_ids_of_each_type_go_out_and_come_back(engine: AsyncEngine, framework: str) -> None:
    """A number is a number while JavaScript can hold it, and text beyond that; both come back."""
    stage = await stage_on(engine)
    async with api_client(application(framework, stage.flow)) as client:
        await connected(stage, client)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE connections SET id = 9007199254740993")
        [listed] = (await client.get("/accounts")).json()
        assert "9007199254740993" == listed["id"]
        assert (200, listed["id"]) == (
            (answer := await client.delete(f"/accounts/{listed['id']}")).status_code,
            answer.json()["id"],
        )


@sqlite
async def test_routes_work_in_a_mount(engine: AsyncEngine, framework: str) -> None:
    """Starlette's routes may also be mounted; the list is then at the mount's path with a slash."""
    stage = await stage_on(engine)
    app = Starlette(routes=[Mount("/accounts", routes=link_routes(stage.flow, current_user=signed_in))])
    async with browser_of(app) as browser:
        answer = await connected(stage, browser)
        assert f"{PAGE}?connection=success" == answer.headers["location"]
        assert [1] == [each["id"] for each in (await browser.get("/accounts/")).json()]


@sqlite
async def test_a_user_may_be_asked_for_asynchronously(engine: AsyncEngine, framework: str) -> None:
    """`current_user` and `user_label` may be coroutines."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow, current_user=signed_in_later, user_label=named_later)
    async with browser_of(app) as browser:
        assert "&lt;b&gt;User" in (await browser.get(await ticket_of(stage))).text


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_the_routes_work_on_postgresql(engine: AsyncEngine, framework: str) -> None:
    """Records of flows in the table, users by UUID: a flow, its replay, a conflict, a transfer and an unlink."""
    stage = await stage_on(engine, states=flow_states, user_type=UUID)
    users = dict(zip("12", USER_TYPES[UUID], strict=True))

    def user_of(request: Request) -> Any:
        return users[request.cookies["session"]]

    app = application(framework, stage.flow, current_user=user_of)
    async with browser_of(app, "1") as owner, browser_of(app, "2") as claimant:
        parameters = await stage.consent(await leave(owner, return_to="/here"))
        answers = await asyncio.gather(*(owner.get("/accounts/callback/acme", params=parameters) for _ in range(2)))
        expected = {f"{APP}/here?connection=success", f"{PAGE}?error=flow_replayed"}
        assert expected == {answer.headers["location"] for answer in answers}
        token = (await connected(stage, claimant)).headers["location"].partition("#transfer_token=")[2]
        answer = await claimant.post("/accounts/transfer", data={"transfer_token": token})
        assert f"{PAGE}?connection=success" == answer.headers["location"]
        [listed] = (await claimant.get("/accounts")).json()
        assert 404 == (await owner.delete(f"/accounts/{listed['id']}")).status_code
        assert 200 == (await claimant.delete(f"/accounts/{listed['id']}")).status_code
