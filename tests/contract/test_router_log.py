"""What the routes of a flow write into the application's log, and what never gets there."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.web import Impersonated
from tests.support.databases import run_sql
from tests.support.flows import SUBJECT, stage_on
from tests.support.routers import api_client, application, browser_of, come_back, connected, leave

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])
LOGGER = "accountlink.web"
INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The level and the text of each record since the last call."""
    records = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == LOGGER]
    caplog.clear()
    return records


async def test_each_outcome_is_logged(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """An operator reads who did what to which link, and who the owner of a conflict is."""
    caplog.set_level(logging.DEBUG, logger=LOGGER)
    stage = await stage_on(engine)
    app = application("starlette", stage.flow)
    async with browser_of(app, "4711") as owner, browser_of(app, "4712") as claimant:
        await connected(stage, owner)
        await connected(stage, owner)
        token = (await connected(stage, claimant)).headers["location"].partition("#transfer_token=")[2]
        for _ in range(2):
            await claimant.post("/accounts/transfer", data={"transfer_token": token})
        await claimant.post("/accounts/1/unlink")
    assert [
        (INFO, "user 4711, acme: link 1 created"),
        (INFO, "user 4711, acme: link 1 updated"),
        (INFO, "user 4712, acme: the account is linked to user 4711"),
        (INFO, "user 4712, acme: link 1 taken over from user 4711"),
        (INFO, "user 4712, acme: link 1 is theirs already"),
        (INFO, "user 4712, acme: link 1 disconnected"),
    ] == told(caplog)


async def test_each_refusal_is_logged_with_its_code(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A user's own doing is INFO; what an operator can do something about is a WARNING that says what it is."""
    caplog.set_level(logging.DEBUG, logger=LOGGER)
    stage = await stage_on(engine)
    app = application("starlette", stage.flow)
    async with browser_of(app) as browser, browser_of(app, None) as nobody, browser_of(app, "as-1") as acting:
        url = await leave(browser)
        await come_back(stage, browser, url)
        told(caplog)
        await browser.get("/accounts/callback/acme", params={"state": "x" * 43, "error": "canary"})
        await browser.post("/accounts/connect/canary")
        await browser.post("/accounts/transfer", data={"transfer_token": "canary"})
        await browser.post("/accounts/canary/unlink")
        await browser.post(
            "/accounts/connect/acme", headers={"origin": "https://canary.example", "sec-fetch-site": "cross-site"}
        )
        await nobody.post("/accounts/connect/acme")
        await acting.post("/accounts/connect/acme")
        assert [
            (INFO, "user 1, callback of acme: flow_not_started_here"),
            (INFO, "user 1, connect: unknown_provider"),
            (INFO, "user 1, transfer: token_forged"),
            (INFO, "user 1, unlink: account_not_found"),
            (INFO, "user 1, connect of acme: cross_site_request"),
            (INFO, "nobody, connect of acme: not_signed_in"),
            (INFO, "somebody for user 1, connect of acme: impersonation_refused"),
        ] == told(caplog)

        stage.provider.fail_next("token", error="canary", description="canary")
        await connected(stage, browser)
        await come_back(stage, browser, await leave(browser), iss="https://canary.example")
    [failed, mixed_up] = told(caplog)
    assert (WARNING, "user 1, callback of acme: provider_error: The provider failed at the step 'token'.") == (
        failed[0],
        failed[1].partition(" Let")[0],
    )
    assert WARNING == mixed_up[0]
    assert mixed_up[1].startswith("user 1, callback of acme: provider_mismatch: Another provider answered")


async def test_a_key_that_forbids_too_much_is_named(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """The user sees a code; the operator reads which key forbids the link."""
    stage = await stage_on(engine)
    await run_sql(engine, "CREATE UNIQUE INDEX one_each ON connections (provider)")
    async with browser_of(application("starlette", stage.flow)) as browser:
        await connected(stage, browser)
        stage.provider.add_account("another", email="another@example.org")
        stage.provider.sign_in_as("another")
        await connected(stage, browser)
    [(level, text)] = told(caplog)
    assert WARNING == level
    assert text.startswith("user 1, callback of acme: blocked_by_constraint: ")
    assert "'one_each' on (provider)" in text


async def test_a_failure_of_the_server_has_its_traceback(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A fixed word for the user, the cause for the developers."""
    stage = await stage_on(engine)
    async with browser_of(application("starlette", stage.flow)) as browser:
        url = await leave(browser)
        await run_sql(engine, "DROP TABLE connections")
        answer = await come_back(stage, browser, url)
    assert answer.headers["location"].endswith("?error=configuration_error")
    assert "The database has no table" in caplog.text
    assert [(ERROR, "user 1, callback of acme: configuration_error")] == told(caplog)


@pytest.mark.parametrize(
    "given", ["canary@example.org", Impersonated(user_id="canary@example.org")], ids=["user", "acting"]
)
async def test_what_is_no_users_id_is_not_logged(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    """An application that gives something else by mistake, such as an address, does not find it in its log."""
    stage = await stage_on(engine)
    async with browser_of(application("starlette", stage.flow, current_user=lambda _: given)) as browser:
        await browser.get("/accounts")
    assert "canary" not in caplog.text
    [(level, text)] = told(caplog)
    assert (ERROR, True) == (level, text.endswith("user of another type, accounts: configuration_error"))


async def test_nothing_secret_is_logged(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A28: no record, argument or traceback of accountlink's holds a token, an address or a text of the provider."""
    caplog.set_level(logging.DEBUG)
    stage = await stage_on(engine)
    app = application("starlette", stage.flow)
    secrets = {"ada@example.org", SUBJECT, "canary"}
    async with browser_of(app, "1") as owner, browser_of(app, "2") as claimant, api_client(app, "2") as client:
        for browser in (owner, claimant, client):
            url = await leave(browser)
            parameters = await stage.consent(url)
            answers = [await browser.get("/accounts/callback/acme", params=parameters) for _ in range(2)]
            secrets |= {parameters["state"], parameters["code"], *browser.cookies.values()} - {"1", "2"}
            token = answers[0].headers.get("location", "").partition("#transfer_token=")[2]
            if token:
                secrets.add(token)
                await owner.post("/accounts/transfer", data={"transfer_token": token})
        stage.provider.fail_next("authorize", error="<b>canary</b>", description="canary")
        await connected(stage, claimant)
        stage.provider.forge_next_id_token(lambda claims: claims | {"nonce": "canary"})
        await connected(stage, claimant)
        async with engine.connect() as connection:
            table: Any = stage.metadata.tables["connections"]
            secrets |= set((await connection.execute(sa.select(table.c.access_token))).scalars())
        url = await leave(claimant)
        await run_sql(engine, "DROP TABLE connections")
        await come_back(stage, claimant, url)
    logged = [record for record in caplog.records if record.name.startswith("accountlink")]
    formatted = [f"{logging.Formatter().format(record)} {record.args!r}" for record in logged]
    assert {INFO, WARNING, ERROR} == {record.levelno for record in logged}
    assert [] == [text for text in formatted if any(secret in text for secret in secrets)]
