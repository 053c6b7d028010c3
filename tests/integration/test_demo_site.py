"""What the demo serves, without a browser: two hosts and no other, forms of its own pages, and what outlasts it."""

from __future__ import annotations

import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.commands import accountlink
from accountlink.cli.demo.place import database_url, lasting_secret
from accountlink.cli.demo.site import build, prepare_tables
from accountlink.cli.demo.stage import CannotStart, open_engine
from tests.support.databases import Database

PORT = 8750
HERE = f"http://localhost:{PORT}"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def engine(database: Database) -> AsyncEngine:
    """A database of a user's own, with the demo's tables."""
    engine = database.engine()
    await prepare_tables(engine, fresh=False)
    return engine


@pytest.fixture
async def browser(engine: AsyncEngine) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that reaches the demo alone; nobody is signed in. The worker behind the outbox does not run."""
    app = build(engine=engine, secret="an example, not random", port=PORT)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(
        base_url=HERE, transport=transport, headers=SAME_ORIGIN, follow_redirects=True, trust_env=False
    ) as client:
        yield client


async def connect(browser: httpx2.AsyncClient, *, user: int, account: str) -> str:
    """Sign in, connect an account of Orbit Calendar, and return the address at which the user ends up."""
    await browser.post(f"/sign-in/{user}")
    question = await browser.post("/accounts/connect/orbit")
    assert "Choose an account" in question.text
    assert question.url.host == "127.0.0.1"
    return str((await browser.get(f"{question.url}&answer=orbit-{account}")).url)


async def state(browser: httpx2.AsyncClient) -> dict[str, Any]:
    """Return what the page shows."""
    told: dict[str, Any] = (await browser.get("/demo/state")).json()
    return told


async def test_what_the_page_shows(browser: httpx2.AsyncClient) -> None:
    """The rows without their tokens, the statements without their values, and the shares of the user alone."""
    assert await connect(browser, user=1, account="team") == f"{HERE}/settings/accounts?connection=success"
    told = await state(browser)
    [row] = told["rows"]
    assert (row["user"], row["provider"], row["email"]) == ("Alice", "orbit", "team@orbit.example")
    assert (len(row["access_token"]), len(row["refresh_token"])) == (6, 6)
    causes = {statement["cause"] for statement in told["statements"]}
    assert causes == {"POST /accounts/connect/orbit", "GET /accounts/callback/orbit"}
    assert not any("team@" in statement["sql"] or "orbit-team" in statement["sql"] for statement in told["statements"])

    issued = (await browser.post("/demo/shares", json={"link_id": row["id"]})).json()
    assert len((await state(browser))["shares"]["waiting"]) == 1
    await browser.post("/sign-in/2")
    assert (await state(browser))["shares"] == {"given": [], "waiting": [], "received": []}
    assert (await browser.post("/demo/shares/redeem", json=issued)).json() == {"outcome": "granted"}
    [received] = (await state(browser))["shares"]["received"]
    refused = await browser.post(f"/demo/shares/{received['id']}/revoke", json={})
    assert (refused.status_code, refused.json()) == (409, {"error": "grant_rejected"})

    assert (await browser.post("/demo/reset", json={})).status_code == 200
    emptied = await state(browser)
    assert (emptied["rows"], emptied["statements"], len(emptied["people"])) == ([], [], 2)


async def test_reconnecting_another_account(browser: httpx2.AsyncClient) -> None:
    """The account that answers is the one that the user picked, whatever the application hoped for."""
    await connect(browser, user=1, account="team")
    [row] = (await state(browser))["rows"]
    question = await browser.post("/accounts/connect/orbit", data={"expect": str(row["id"])})
    arrived = await browser.get(f"{question.url}&answer=orbit-bob")
    assert str(arrived.url).endswith("?error=account_mismatch")
    declined = await browser.get(f"{(await browser.post('/accounts/connect/orbit')).url}&answer=no")
    assert str(declined.url).endswith("?error=consent_declined")


@pytest.mark.parametrize("host", ["attacker.example:8750", "localhost", "127.0.0.1:80", ""])
async def test_another_host(browser: httpx2.AsyncClient, host: str) -> None:
    """A name that somebody points at this machine gets nothing of the demo."""
    for path in ("/settings/accounts", "/demo/state", "/orbit/jwks"):
        answer = await browser.get(path, headers={"Host": host})
        assert (answer.status_code, "Alice" in answer.text) == (421, False)


async def test_what_another_site_cannot_do(browser: httpx2.AsyncClient) -> None:
    """A form of another site cannot post to the panels, and nobody can who is not signed in."""
    posts = ("/demo/shares", "/demo/shares/redeem", "/demo/reset", "/demo/doctor/calendar", "/demo/notices/1/read")
    for path in posts:
        assert (await browser.post(path, json={})).json() == {"error": "not_signed_in"}
    await browser.post("/sign-in/1")
    for path in posts:
        assert (await browser.post(path, data={"link_id": "1"})).status_code == 415
        assert (await browser.get(path)).status_code == 405


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"{}", b'{"token": 1}', b'{"link_id": "x"}', b"\xff"])
async def test_malformed_bodies(browser: httpx2.AsyncClient, body: bytes) -> None:
    """They are refused, by a word of their own."""
    await browser.post("/sign-in/1")
    for path in ("/demo/shares", "/demo/shares/redeem"):
        answer = await browser.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert set(answer.json()) == {"error"}
    assert (await browser.post("/demo/doctor/other", json={})).status_code == 404


async def test_the_page_and_its_policy(browser: httpx2.AsyncClient) -> None:
    """The page has no script and no style of its own, and its policy allows none."""
    page = await browser.get("/")
    assert str(page.url) == f"{HERE}/settings/accounts"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert f"form-action 'self' http://127.0.0.1:{PORT};" in policy
    assert "unsafe" not in policy
    assert not any(mark in page.text for mark in ("<script>", "<style", " style=", " onclick=", "CONFLICT_DIALOG"))
    assert "data-accountlink-conflict" in page.text
    for path in ("/static/page.js", "/static/page.css", "/static/icon.svg", "/static/accountlink/conflict-dialog.js"):
        assert (await browser.get(path)).status_code == 200


async def test_tables_are_kept_unless_they_shall_be_fresh(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A second start keeps what was connected; ``--fresh`` drops it."""
    await connect(browser, user=1, account="team")
    await prepare_tables(engine, fresh=False)
    assert len((await state(browser))["rows"]) == 1
    await prepare_tables(engine, fresh=True)
    told = await state(browser)
    assert (told["rows"], len(told["people"])) == ([], 2)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert {name for name in names if not name.startswith("accountlink_demo_")} == set()


def test_a_secret_that_lasts(tmp_path: Path) -> None:
    """It is made once, and only its owner can read it."""
    folder = tmp_path / "of" / "the demo"
    secret = lasting_secret(folder)
    assert len(secret) >= 32
    assert lasting_secret(folder) == secret
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert open_engine(database_url(folder)).url.database == str(folder / "demo.sqlite3")


def test_a_secret_that_was_not_written(tmp_path: Path) -> None:
    """A file that a crash left empty is said to be one: another secret would end every session unasked."""
    (tmp_path / "secret").write_text("")
    with pytest.raises(CannotStart, match="Delete it"):
        lasting_secret(tmp_path)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A port that was asked for is not silently replaced."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = CliRunner().invoke(accountlink, ["demo", "--folder", str(tmp_path), "--port", port])
    assert told.exit_code == 1
    assert told.stderr == f"accountlink: port {port} cannot be used (OSError): name another one\n"


def test_an_unusable_database(tmp_path: Path) -> None:
    """It is one line, and a password in its URL is not repeated."""
    url = "postgresql+asyncpg://me:hidden@127.0.0.1:9/none"
    told = CliRunner().invoke(accountlink, ["demo", "--folder", str(tmp_path), "--port", "0", "--database-url", url])
    assert told.exit_code == 1
    assert "could not be made at postgresql+asyncpg" in told.stderr
    assert "hidden" not in told.output
