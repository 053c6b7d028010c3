"""The browser of the tests, with a page of ours and with the real OpenID provider."""

from __future__ import annotations

import secrets
from urllib.parse import urlencode

import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]  # Authlib ships no types
from playwright.async_api import Browser, Error, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.chromium import VARIABLE, required_chromium
from tests.support.oidc import Issuer, OidcProvider
from tests.support.serving import serve

in_one_loop = pytest.mark.asyncio(loop_scope="session")


async def greet(request: Request) -> Response:
    name = request.cookies.get("name", "nobody")
    return HTMLResponse(f"<title>Hello</title><h1>Hello, {name}</h1><form method=post><button>Be ada</button></form>")


async def remember(request: Request) -> Response:
    response = RedirectResponse("/", status_code=303)
    response.set_cookie("name", "ada", httponly=True, samesite="lax")
    return response


async def returned(request: Request) -> Response:
    return HTMLResponse("<title>Back</title>")


def site(url: str) -> Starlette:
    routes = [Route("/", greet), Route("/", remember, methods=["POST"]), Route("/callback", returned)]
    return Starlette(routes=routes)


@in_one_loop
async def test_a_button_sets_a_cookie(chromium: Browser) -> None:
    """A user presses a button of a page that is served on loopback, and has its cookie; another user has not."""
    async with serve(site) as url:
        ada, other = await chromium.new_context(), await chromium.new_context()
        page = await ada.new_page()
        await page.goto(url)
        await expect(page.get_by_role("heading")).to_have_text("Hello, nobody")
        await page.get_by_role("button", name="Be ada").click()
        await expect(page.get_by_role("heading")).to_have_text("Hello, ada")
        assert [("name", "ada", True)] == [
            (each["name"], each["value"], each["httpOnly"]) for each in await ada.cookies()
        ]
        page = await other.new_page()
        await page.goto(url)
        await expect(page.get_by_role("heading")).to_have_text("Hello, nobody")


def authorization_url(issuer: Issuer, redirect_uri: str) -> str:
    challenge = create_s256_code_challenge(secrets.token_urlsafe(48))
    request = {"client_id": issuer.client_id, "redirect_uri": redirect_uri, "response_type": "code", "scope": "openid"}
    return f"{issuer.url}/auth?{urlencode(request)}&code_challenge={challenge}&code_challenge_method=S256"


@in_one_loop
async def test_a_user_answers_two_providers(chromium: Browser, oidc: OidcProvider) -> None:
    """A user with the pages of two issuers in two tabs consents in one and cancels in the other, and returns twice."""
    async with serve(site) as url:
        callback = f"{url}/callback"
        with oidc.issuer(redirect_uris=[callback]) as first, oidc.issuer(redirect_uris=[callback]) as second:
            user = await chromium.new_context()
            tabs = [(await user.new_page(), issuer) for issuer in (first, second)]
            for tab, issuer in tabs:
                await tab.goto(authorization_url(issuer, callback))
            for (tab, issuer), (button, expected) in zip(
                tabs, [("Continue as ada", "code="), ("Cancel", "error=access_denied&")], strict=True
            ):
                await tab.get_by_role("button", name=button).click()
                await expect(tab).to_have_title("Back")
                assert tab.url.startswith(f"{callback}?{expected}")
                assert urlencode({"iss": issuer.url}) in tab.url


@in_one_loop
async def test_no_page_reaches_another_machine(chromium: Browser) -> None:
    """A name of another machine is not even looked up."""
    page = await chromium.new_page()
    with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
        await page.goto("https://accountlink.example")


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Chromium a test is skipped with the remedy; where Chromium was promised it fails."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no chromium on PATH\. Install"):
        required_chromium()
    monkeypatch.setenv(VARIABLE, "required")
    with pytest.raises(pytest.fail.Exception, match=r"no chromium on PATH\. Install"):
        required_chromium()
