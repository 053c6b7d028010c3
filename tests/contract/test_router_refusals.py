"""The routes of a flow refuse: other sites, forged addresses, bodies that are not understood, and the wrong user."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.exceptions import HTTPException

from accountlink.errors import ConfigurationError
from accountlink.web.fastapi import link_router
from accountlink.web.starlette import link_routes
from tests.support.flows import APP, PAGE, stage_on
from tests.support.routers import (
    API,
    FRAMEWORKS,
    HTML,
    SAME_ORIGIN,
    SESSION,
    api_client,
    application,
    browser_of,
    come_back,
    connected,
    leave,
    query_of,
    signed_in_by_cookie,
)

pytestmark = [
    pytest.mark.parametrize("kind", ["sqlite"]),
    pytest.mark.parametrize("framework", FRAMEWORKS),
]

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
TRUSTED: Final = "https://spa.example"
UNSAFE: Final = [
    ("POST", "/accounts/connect/acme"),
    ("POST", "/accounts/finish/acme"),
    ("POST", "/accounts/transfer"),
    ("POST", "/accounts/1/unlink"),
    ("POST", f"/accounts/tickets/{'x' * 43}"),
    ("DELETE", "/accounts/1"),
]
"""Every unsafe route but the callback's, which only bounces."""


def code_of(answer: Any) -> tuple[int, str]:
    """Return the status and the code of a problem."""
    assert "application/problem+json" == answer.headers["content-type"]
    problem = answer.json()
    assert {"type", "title", "status", "code"} == set(problem)
    assert (answer.status_code, f"urn:accountlink:{problem['code']}") == (problem["status"], problem["type"])
    return answer.status_code, problem["code"]


# -- other sites -------------------------------------------------------------------------------------------------------

ACCEPTED: Final[list[Mapping[str, str]]] = [
    {"origin": APP},
    {"origin": TRUSTED},
    {"origin": TRUSTED, "sec-fetch-site": "cross-site"},
    {"origin": APP, "sec-fetch-site": "same-site"},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"origin": "null", "sec-fetch-site": "same-origin"},  # a form on a page with Referrer-Policy: no-referrer
]
REFUSED: Final[list[Mapping[str, str]]] = [
    {},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "Same-Origin, cross-site"},
    {"sec-fetch-site": ""},
    {"origin": "null"},
    {"origin": "null", "sec-fetch-site": "cross-site"},
    {"origin": ""},
    {"origin": "https://evil.example"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-site"},
    {"origin": "http://app.example"},
    {"origin": f"{APP}:8443"},
    {"origin": f"{APP}.evil.example"},
    {"origin": f"{APP}/"},
    {"origin": f"{APP}, https://evil.example"},
    {"origin": "https://evil.example", "host": "evil.example", "x-forwarded-host": "evil.example"},
]


async def test_pages_of_the_application_are_accepted(engine: AsyncEngine, framework: str) -> None:
    """The page's origin, a trusted one, and what the browser itself calls same-origin may send with cookies."""
    stage = await stage_on(engine, trusted_origins=[TRUSTED])
    async with browser_of(application(framework, stage.flow)) as browser:
        for name in SAME_ORIGIN:
            del browser.headers[name]
        answers = [await browser.post("/accounts/connect/acme", headers=headers) for headers in ACCEPTED]
    assert [303] * len(ACCEPTED) == [answer.status_code for answer in answers]
    assert all(answer.headers["location"].startswith("https://acme.example/") for answer in answers)


async def test_pages_of_other_sites_are_refused(engine: AsyncEngine, framework: str) -> None:
    """A34: every unsafe route answers another site with a plain 403, changes nothing, and starts nothing."""
    stage = await stage_on(engine, trusted_origins=[TRUSTED])
    async with browser_of(application(framework, stage.flow)) as browser:
        await connected(stage, browser)
        begun = len(stage.states)
        for name in SAME_ORIGIN:
            del browser.headers[name]
        for headers in REFUSED:
            for method, path in UNSAFE:
                answer = await browser.request(method, path, headers=headers)
                assert (403, "cross_site_request") == code_of(answer), (headers, path)
        assert [1] == [each["id"] for each in (await browser.get("/accounts")).json()]
    assert begun == len(stage.states)


async def test_a_client_without_cookies_needs_neither_header(engine: AsyncEngine, framework: str) -> None:
    """A program that carries a token and no cookie is nobody's browser."""
    stage = await stage_on(engine)
    async with api_client(application(framework, stage.flow), None, authorization="Bearer 1") as client:
        for name in SAME_ORIGIN:
            del client.headers[name]
        assert 200 == (await client.post("/accounts/connect/acme")).status_code
        assert (403, "cross_site_request") == code_of(
            await client.post("/accounts/connect/acme", headers={"cookie": "theme=dark"})
        )


async def test_a_start_by_get_does_not_exist(engine: AsyncEngine, framework: str) -> None:
    """A34: neither a link nor an image starts a flow, and no GET redeems a token or disconnects."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        for path in ("/accounts/connect/acme", "/accounts/finish/acme", "/accounts/transfer", "/accounts/1/unlink"):
            for method in ("GET", "HEAD"):
                assert 405 == (await browser.request(method, path)).status_code
    assert 0 == len(stage.states)


# -- who is signed in --------------------------------------------------------------------------------------------------


async def test_nobody_is_told_to_sign_in(engine: AsyncEngine, framework: str) -> None:
    """An API client gets 401, a browser goes to the page; in the callback the flow was not begun by nobody."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    expected = {"POST /accounts/tickets": (404, "ticket_rejected")}
    async with api_client(app, None) as client, browser_of(app, None) as browser:
        for method, path in [*UNSAFE, ("GET", "/accounts")]:
            answer = await client.request(method, path)
            assert expected.get(f"{method} {path[:17]}", (401, "not_signed_in")) == code_of(answer)
        for method, path in [UNSAFE[0], UNSAFE[2], UNSAFE[3], ("GET", "/accounts")]:
            answer = await browser.request(method, path)
            assert (303, f"{PAGE}?error=not_signed_in") == (answer.status_code, answer.headers["location"])
        answer = await browser.get("/accounts/callback/acme", params={"state": "x" * 43, "code": "y"})
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]


async def test_whoever_acts_for_a_user_may_look_and_nothing_else(engine: AsyncEngine, framework: str) -> None:
    """An impersonating administrator sees the list; each other route is refused, and the account stays."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.removeprefix(APP)
    async with browser_of(app, "1") as user, api_client(app, "as-1") as admin:
        await connected(stage, user)
        parameters = await stage.consent(await leave(user))
        admin.cookies.update({name: value for name, value in user.cookies.items() if name != SESSION})
        assert [1] == [each["id"] for each in (await admin.get("/accounts")).json()]
        for method, path in [*UNSAFE[:4], UNSAFE[5], ("POST", ticket), ("GET", ticket)]:
            assert (403, "impersonation_refused") == code_of(await admin.request(method, path))
        answer = await admin.get("/accounts/callback/acme", params=parameters)
        assert (403, "impersonation_refused") == code_of(answer)
        answer = await user.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?connection=success" == answer.headers["location"]


async def test_an_applications_own_refusal_goes_through(engine: AsyncEngine, framework: str) -> None:
    """What `current_user` raises is the application's, also in the callback; the bounce asks it nothing."""
    stage = await stage_on(engine)

    def refuse() -> None:
        raise HTTPException(status_code=418)

    def refuse_request(_: Any) -> None:
        refuse()

    refusal = refuse if framework == "fastapi" else refuse_request
    async with browser_of(application(framework, stage.flow, current_user=refusal)) as browser:
        assert 418 == (await browser.post("/accounts/connect/acme")).status_code
        assert 418 == (await browser.get("/accounts/callback/acme")).status_code
        assert 303 == (await browser.post("/accounts/callback/acme", data={"state": "x", "code": "y"})).status_code


@pytest.mark.parametrize("switch", ["user", "nobody", "browser"])
async def test_who_ends_a_flow_is_who_began_it(engine: AsyncEngine, framework: str, switch: str) -> None:
    """A10: the signed-in user switched, signed out, or the cookies were lost: refused, and nothing is burnt."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with browser_of(app, "1") as starter, browser_of(app, "1") as other:
        parameters = await stage.consent(await leave(starter))
        if switch != "browser":
            other.cookies.update(starter.cookies)
            other.cookies.set(SESSION, "2" if switch == "user" else "", domain="app.example")
        answer = await other.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]
        assert 0 == stage.asked_for_tokens()
        answer = await starter.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?connection=success" == answer.headers["location"]


async def test_a_header_that_an_attacker_adds_unbinds_no_flow(engine: AsyncEngine, framework: str) -> None:
    """A10: the attacker's own session with an Authorization header gets a flow that is bound to their browser."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow, current_user=signed_in_by_cookie)
    async with browser_of(app, "1", authorization="Bearer x") as attacker, browser_of(app, "1") as victim:
        left = await attacker.post("/accounts/connect/acme")
        assert "set-cookie" in left.headers
        parameters = await stage.consent(left.headers["location"])
        answer = await victim.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]
        answer = await victim.post("/accounts/finish/acme", json=parameters, headers={"authorization": "Bearer x"})
        assert (403, "flow_not_started_here") == code_of(answer)
    async with browser_of(app, None, authorization="Bearer x") as attacker:
        answer = await attacker.post("/accounts/connect/acme", headers=API)
        assert (401, "not_signed_in") == code_of(answer)


async def test_a_flow_by_bearer_token_does_not_end_in_a_browsers_callback(engine: AsyncEngine, framework: str) -> None:
    """A10: a flow without a cookie ends by a request with a token, and not in a browser that is led to the callback."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with api_client(app, None, authorization="Bearer 1") as client, browser_of(app, "1") as victim:
        parameters = await stage.consent((await client.post("/accounts/connect/acme")).json()["url"])
        answer = await victim.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]
        assert (403, "flow_not_started_here") == code_of(await victim.post("/accounts/finish/acme", json=parameters))
        assert 200 == (await client.post("/accounts/finish/acme", json=parameters)).status_code


# -- what a request may hold -------------------------------------------------------------------------------------------

MALFORMED: Final[list[tuple[str, bytes]]] = [
    (JSON, b"{"),
    (JSON, b"[]"),
    (JSON, b'"text"'),
    (JSON, b'{"return_to": "/a", "return_to": "/b"}'),
    (JSON, b'{"return_to": 7}'),
    (JSON, b'{"return_to": ["/a"]}'),
    (JSON, b'{"expect": true}'),
    (JSON, b'{"expect": 1.5}'),
    (JSON, b'{"scopes": [1]}'),
    (JSON, b'{"scopes": {"a": 1}}'),
    (JSON, b'{"scopes": ["a b"]}'),
    (JSON, b'{"scopes": "\\ud800"}'),
    (JSON, b"\xff"),
    (JSON, b"[" * 60_000),
    (JSON, b'{"expect": ' + b"9" * 5_000 + b"}"),
    (FORM, b"return_to=/a&return_to=/b"),
    (FORM, b"return_to"),
    (FORM, b"return_to=%ff"),
    (FORM, b"\xff=1"),
    (FORM, b"&".join(b"a%d=1" % n for n in range(200))),
    (FORM, b"return_to=" + b"x" * 70_000),
    (JSON, b" " * 70_000),
]


async def test_a_body_that_is_not_understood_is_refused(engine: AsyncEngine, framework: str) -> None:
    """A40: duplicates, wrong types, what is no JSON, and more than 64 KB: one code, and nothing begins."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with api_client(app) as client, browser_of(app) as browser:
        for media, body in MALFORMED:
            headers = {"content-type": media}
            answer = await client.post("/accounts/connect/acme", content=body, headers=headers)
            assert (400, "invalid_request") == code_of(answer), body[:80]
        answer = await browser.post("/accounts/connect/acme", content=b"[", headers={"content-type": JSON})
        assert f"{PAGE}?error=invalid_request" == answer.headers["location"]
    assert 0 == len(stage.states)


async def test_another_media_type_is_refused(engine: AsyncEngine, framework: str) -> None:
    """A34: JSON that a cross-site form could send as text/plain is no JSON."""
    stage = await stage_on(engine)
    async with api_client(application(framework, stage.flow)) as client:
        for media in ("text/plain", "multipart/form-data; boundary=x", "", "application/jsonp"):
            headers = {"content-type": media}
            answer = await client.post("/accounts/connect/acme", content=b"{}", headers=headers)
            assert (415, "unsupported_media_type") == code_of(answer), media


async def test_both_forms_of_fields_are_read(engine: AsyncEngine, framework: str) -> None:
    """The media type is compared without its case and its parameters; empty and unknown fields count as none."""
    stage = await stage_on(engine)
    fields = {"return_to": "/here", "expect": "", "scopes": "calendar mail", "user_id": "2", "email": "a@b.example"}
    bodies = {
        FORM: urlencode(fields),
        "Application/X-WWW-Form-Urlencoded; charset=UTF-8": urlencode(fields),
        "APPLICATION/JSON ;charset=utf-8": json.dumps(fields),
        JSON: json.dumps(fields | {"scopes": ["mail", "calendar"], "expect": None}),
    }
    async with browser_of(application(framework, stage.flow)) as browser:
        addresses = []
        for media, body in bodies.items():
            left = await browser.post("/accounts/connect/acme", content=body, headers={"content-type": media})
            addresses.append(left.headers["location"])
        assert ["openid email profile calendar mail"] * 4 == [query_of(address)["scope"] for address in addresses]
        answer = await come_back(stage, browser, addresses[-1])
    assert f"{APP}/here?connection=success" == answer.headers["location"]
    [row] = await stage.rows()
    assert (1, "ada@example.org") == (row["user_id"], row["email"])


async def test_a_parameter_that_comes_twice_consumes_nothing(engine: AsyncEngine, framework: str) -> None:
    """A callback with a duplicate is refused, by GET and by POST; the genuine one still works."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        parameters = await stage.consent(await leave(browser))
        for name in ("state", "code", "iss", "anything"):
            twice = urlencode([*parameters.items(), (name, parameters.get(name, "1")), (name, "2")])
            answer = await browser.get(f"/accounts/callback/acme?{twice}")
            assert f"{PAGE}?error=invalid_request" == answer.headers["location"]
            headers = {"content-type": FORM}
            answer = await browser.post("/accounts/callback/acme", content=twice, headers=headers)
            assert f"{PAGE}?error=invalid_request" == answer.headers["location"]
        answer = await browser.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?connection=success" == answer.headers["location"]


async def test_a_posted_answer_is_bounded_and_reaches_no_other_address(engine: AsyncEngine, framework: str) -> None:
    """The bounce leads to the configured address of a known provider, with what a flow reads, and of bounded length."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow), None) as browser:
        for path, fields, code in [
            ("/accounts/callback/none", {"code": "x"}, "unknown_provider"),
            ("/accounts/callback/acme", {"code": "x" * 7_000}, "invalid_request"),
            ("/accounts/callback/acme", {"code": "x" * 70_000}, "invalid_request"),
        ]:
            answer = await browser.post(path, data=fields)
            assert (303, f"{PAGE}?error={code}") == (answer.status_code, answer.headers["location"])
        answer = await browser.post("/accounts/callback/acme", data={"state": "a&b=c\r\nd", "id_token": "x"})
        assert "https://app.example/accounts/callback/acme?state=a%26b%3Dc%0D%0Ad" == answer.headers["location"]


# -- return targets, ids, hosts ----------------------------------------------------------------------------------------


async def test_a_return_target_elsewhere_is_refused(engine: AsyncEngine, framework: str) -> None:
    """A24: no flow begins with it, and nobody is sent there."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        for target in ("//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"):
            answer = await browser.post("/accounts/connect/acme", data={"return_to": target})
            assert f"{PAGE}?error=return_target_rejected" == answer.headers["location"], target
    assert 0 == len(stage.states)


async def test_errors_go_to_the_return_target_too(engine: AsyncEngine, framework: str) -> None:
    """A24, A33: a forged error has a fixed code; a genuine one goes where the flow wanted to go."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        parameters = await stage.consent(await leave(browser, return_to="/here?tab=1"))
        forged = {"error": "<b>x</b>", "error_description": "<b>call 555</b>", "state": "x" * 43}
        answer = await browser.get("/accounts/callback/acme", params=forged)
        assert f"{PAGE}?error=flow_not_started_here" == answer.headers["location"]
        genuine = {"error": "access_denied", "error_description": "<b>call 555</b>"} | {
            name: parameters[name] for name in ("state", "iss") if name in parameters
        }
        answer = await browser.get("/accounts/callback/acme", params=genuine)
    assert f"{APP}/here?tab=1&error=consent_declined" == answer.headers["location"]


async def test_an_id_that_is_no_link_of_the_user_is_not_found(engine: AsyncEngine, framework: str) -> None:
    """Another user's link, a missing one, and a text that is no id: one answer, and nothing happens."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow)
    async with api_client(app, "1") as client, api_client(app, "2") as other:
        await connected(stage, client)
        assert (404, "account_not_found") == code_of(await other.delete("/accounts/1"))
        for link_id in ("2", "0", "-1", "1.0", "01", "+1", "one", "9" * 30, "%00", "1%20", "é", "null"):
            answers = [
                await client.delete(f"/accounts/{link_id}"),
                await client.post(f"/accounts/{link_id}/unlink"),
                await client.post("/accounts/connect/acme", data={"expect": link_id}),
            ]
            assert [(404, "account_not_found")] * 3 == [code_of(answer) for answer in answers], link_id
        assert [1] == [each["id"] for each in (await client.get("/accounts")).json()]


async def test_a_link_is_reconnected_by_its_id(engine: AsyncEngine, framework: str) -> None:
    """`expect` may be a number in JSON, or text; another account at the provider is a mismatch."""
    stage = await stage_on(engine)
    stage.provider.add_account("other")
    async with api_client(application(framework, stage.flow)) as client:
        await connected(stage, client)
        url = (await client.post("/accounts/connect/acme", json={"expect": 1})).json()["url"]
        assert "updated" == (await come_back(stage, client, url)).json()["change"]
        stage.provider.sign_in_as("other")
        answer = await connected(stage, client, expect="1")
    assert (409, "account_mismatch") == code_of(answer)


async def test_a_forged_host_reaches_no_address(engine: AsyncEngine, framework: str) -> None:
    """A36: redirects, addresses and cookies come from the configuration."""
    stage = await stage_on(engine)
    forged = {"host": "evil.example", "x-forwarded-host": "evil.example", "forwarded": "host=evil.example"}
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.removeprefix(APP)
    async with browser_of(application(framework, stage.flow), **forged) as browser:
        left = await browser.post("/accounts/connect/acme")
        seen = [
            left,
            await come_back(stage, browser, left.headers["location"]),
            await browser.get("/accounts"),
            await browser.post("/accounts/connect/none"),
            await browser.post("/accounts/callback/acme", data={"code": "x"}),
            await browser.get("/accounts/callback/acme"),
            await browser.get(ticket),
            await browser.post(ticket),
            await browser.post("/accounts/transfer", data={"transfer_token": "x"}),
            await browser.post("/accounts/1/unlink"),
            await browser.delete("/accounts/1"),
        ]
    assert [] == [answer for answer in seen if "evil" in f"{answer.headers}{answer.text}"]


# -- twice, at once, and by programs -----------------------------------------------------------------------------------


async def test_a_double_click_is_one_success_and_one_replay(engine: AsyncEngine, framework: str) -> None:
    """Two callbacks at once: one links, the other says that the answer was used; a reload says so later."""
    stage = await stage_on(engine)
    async with browser_of(application(framework, stage.flow)) as browser:
        parameters = await stage.consent(await leave(browser))
        answers = await asyncio.gather(*(browser.get("/accounts/callback/acme", params=parameters) for _ in range(2)))
        expected = {f"{PAGE}?connection=success", f"{PAGE}?error=flow_replayed"}
        assert expected == {answer.headers["location"] for answer in answers}
        again = await browser.get("/accounts/callback/acme", params=parameters, headers=API)
        assert (409, "flow_replayed") == code_of(again)
        assert 1 == len((await browser.get("/accounts")).json())


async def test_head_consumes_nothing(engine: AsyncEngine, framework: str) -> None:
    """A23: a program that looks by HEAD, five times, burns neither a flow nor a ticket."""
    stage = await stage_on(engine)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.removeprefix(APP)
    async with browser_of(application(framework, stage.flow)) as browser:
        parameters = await stage.consent(await leave(browser))
        for _ in range(5):
            assert 405 == (await browser.head("/accounts/callback/acme", params=parameters)).status_code
            assert 405 == (await browser.head(ticket)).status_code
        assert 0 == stage.asked_for_tokens()
        answer = await browser.get("/accounts/callback/acme", params=parameters)
        assert f"{PAGE}?connection=success" == answer.headers["location"]
        assert 303 == (await browser.post(ticket)).status_code


async def test_errors_of_the_server_are_in_its_log(
    engine: AsyncEngine, framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong configuration is told to the log, and to nobody else."""
    stage = await stage_on(engine)
    app = application(framework, stage.flow, current_user=lambda: "x") if framework == "fastapi" else None
    app = app or application(framework, stage.flow, current_user=lambda _: "x")
    async with browser_of(app) as browser:
        answer = await browser.get("/accounts", headers=API)
        assert (500, "configuration_error") == code_of(answer)
        assert f"{PAGE}?error=configuration_error" == (await browser.get("/accounts")).headers["location"]
    told = [record for record in caplog.records if record.name == "accountlink.web"]
    assert [logging.ERROR] * 2 == [record.levelno for record in told]
    assert isinstance((told[0].exc_info or (None, None))[1], ConfigurationError)


async def test_arguments_of_another_kind_are_refused(engine: AsyncEngine, framework: str) -> None:
    """What cannot work is told when the application starts."""
    stage = await stage_on(engine)
    make: Any = link_router if framework == "fastapi" else link_routes
    for arguments in [
        {"flow": stage.flow.linker, "current_user": lambda: None},
        {"flow": stage.flow, "current_user": 7},
        {"flow": stage.flow, "current_user": lambda: None, "user_label": "name"},
        *([{"flow": stage.flow, "current_user": len, "prefix": "accounts/"}] if framework == "starlette" else []),
    ]:
        with pytest.raises(ConfigurationError):
            make(**arguments)


async def test_the_accept_header_tells_api_clients_from_browsers(engine: AsyncEngine, framework: str) -> None:
    """A client that names JSON with a greater weight than HTML gets JSON; ``*/*`` names neither, and is redirected."""
    stage = await stage_on(engine)
    preferring = ["application/json", "text/html;q=0.5, application/json", "Application/JSON, */*"]
    others = ["*/*", "", HTML["accept"], "text/html, application/json", "application/json;q=0", "x/json;;q=2,text/html"]
    async with browser_of(application(framework, stage.flow)) as client:
        for accept in preferring:
            answer = await client.post("/accounts/connect/none", headers={"accept": accept})
            assert (404, "unknown_provider") == code_of(answer)
        for accept in others:
            answer = await client.post("/accounts/connect/none", headers={"accept": accept})
            assert 303 == answer.status_code, accept
