"""The router on http://localhost, in Chromium, with a real OpenID provider: what a user meets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import pytest_asyncio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from playwright.async_api import Browser, BrowserContext, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.providers import oidc as described
from accountlink.web import LinkFlow, flow_states
from accountlink.web.fastapi import link_router
from tests.support.models import EXCLUSIVE, SECRETS, make_tables
from tests.support.oidc import OidcProvider
from tests.support.serving import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")
TABLES = make_tables(EXCLUSIVE)
STATES = flow_states(TABLES.metadata)
SETTINGS = """<!doctype html><title>Settings</title><link rel="icon" href="data:,">
<form method="post" action="/accounts/connect/acme"><button>Connect acme</button></form>
<form method="post" action="/accounts/transfer">
<input type="hidden" name="transfer_token"><button>Transfer</button></form>
<script>
document.querySelector("input").value = new URLSearchParams(location.hash.slice(1)).get("transfer_token");
</script>"""


def current_user(request: Request) -> int | None:
    user = request.cookies.get("user")
    return None if user is None else int(user)


@pytest_asyncio.fixture(loop_scope="session")
async def site(engine: AsyncEngine, oidc: OidcProvider) -> AsyncIterator[str]:
    """An application with the router and one page; its users are who their cookie says they are."""
    async with engine.begin() as connection:
        await connection.run_sync(TABLES.metadata.create_all)
    with ExitStack() as issuers:

        def build(url: str) -> FastAPI:
            acme = issuers.enter_context(oidc.issuer(redirect_uris=[f"{url}/accounts/callback/acme"]))
            provider = described("acme", issuer=acme.url, client_id=acme.client_id, client_secret=acme.client_secret)
            flow = LinkFlow(
                TABLES.linker(),
                engine,
                providers=[provider],
                callback_url=f"{url}/accounts/callback",
                page=f"{url}/settings",
                states=STATES,
                secrets=SECRETS,
            )
            app = FastAPI()
            app.include_router(link_router(flow, current_user=current_user), prefix="/accounts")
            app.add_api_route("/settings", lambda: HTMLResponse(SETTINGS), response_model=None)
            return app

        async with serve(build) as url:
            yield url


async def signed_in(chromium: Browser, site: str, user: int) -> BrowserContext:
    """Give a user a browser in which they are signed in."""
    context = await chromium.new_context(base_url=site)
    await context.add_cookies([{"name": "user", "value": str(user), "url": site, "sameSite": "Lax"}])
    return context


async def at_the_provider(context: BrowserContext) -> Page:
    """Lead a user from the settings to the provider's page, in a new tab."""
    page = await context.new_page()
    await page.goto("/settings")
    await page.get_by_role("button", name="Connect acme").click()
    await expect(page).to_have_title("Sign in")
    return page


async def press(page: Page, button: str) -> str:
    """Press a button of the provider's page, and return the query with which the settings are shown again."""
    await page.get_by_role("button", name=button).click()
    await expect(page).to_have_title("Settings")
    return page.url.partition("/settings")[2]


async def test_a_user_connects_an_account(chromium: Browser, site: str) -> None:
    """A user connects an account on localhost, and its cookie is one that no script and no other site can use."""
    context = await signed_in(chromium, site, 1)
    assert "?connection=success" == await press(await at_the_provider(context), "Continue as ada")
    [cookie] = [each for each in await context.cookies(site) if each["name"] == "accountlink"]
    assert (True, "Lax", False) == (cookie["httpOnly"], cookie["sameSite"], cookie["secure"])


async def test_a_user_cancels_and_tries_again(chromium: Browser, site: str) -> None:
    """A user who cancels is told so, and can connect the account with the next click."""
    page = await at_the_provider(await signed_in(chromium, site, 1))
    assert "?error=consent_declined" == await press(page, "Cancel")
    await page.get_by_role("button", name="Connect acme").click()
    assert "?connection=success" == await press(page, "Continue as ada")


async def test_a_user_loads_the_callback_again(chromium: Browser, site: str) -> None:
    """A callback that is loaded again says that it was used, and the Back button leads to no error page."""
    page = await at_the_provider(await signed_in(chromium, site, 1))
    async with page.expect_request("**/accounts/callback/**") as callback:
        await press(page, "Continue as ada")
    await page.goto((await callback.value).url)
    assert page.url.endswith("/settings?error=flow_replayed")
    for _ in range(2):
        answer = await page.go_back()
        assert answer is None or answer.status < 500


async def test_a_user_has_two_tabs(chromium: Browser, site: str) -> None:
    """A user who begins in two tabs can end both flows, in either order."""
    context = await signed_in(chromium, site, 1)
    first, second = await at_the_provider(context), await at_the_provider(context)
    assert "?connection=success" == await press(second, "Continue as ada")
    assert "?connection=success" == await press(first, "Continue as ben")


async def test_cookies_are_lost_on_the_way(chromium: Browser, site: str) -> None:
    """A user whose browser forgot the flow's cookie meanwhile is told to begin again."""
    context = await signed_in(chromium, site, 1)
    page = await at_the_provider(context)
    await context.clear_cookies(name="accountlink")
    assert "?error=flow_not_started_here" == await press(page, "Continue as ada")


async def test_another_user_signs_in_on_the_way(chromium: Browser, site: str) -> None:
    """A flow that one user began links nothing to the user who is signed in at its end."""
    context = await signed_in(chromium, site, 1)
    page = await at_the_provider(context)
    await context.add_cookies([{"name": "user", "value": "2", "url": site}])
    assert "?error=flow_not_started_here" == await press(page, "Continue as ada")


async def test_a_user_takes_an_account_over(chromium: Browser, site: str) -> None:
    """A user who meets a conflict finds the token in the fragment, and the account is theirs at the next click."""
    ann, bob = await signed_in(chromium, site, 1), await signed_in(chromium, site, 2)
    await press(await at_the_provider(ann), "Continue as ada")
    page = await at_the_provider(bob)
    shown = await press(page, "Continue as ada")
    assert shown.startswith("?error=ownership_conflict#transfer_token=")
    await page.get_by_role("button", name="Transfer").click()
    await page.wait_for_url("**/settings?connection=*")
    json = {"Accept": "application/json"}
    listed = [await (await user.request.get("/accounts", headers=json)).json() for user in (ann, bob)]
    assert [0, 1] == [len(accounts) for accounts in listed]
