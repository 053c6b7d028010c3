"""What the demo serves, without a browser: two hosts and no other, forms of its own pages, and what outlasts it."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from sqlalchemy import insert, inspect, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, ProviderIdentity, ShareGrants, TokenSet
from accountlink.cli.commands import accountlink
from accountlink.cli.demo.models import Base, Connection, Moved, outbox, pending, refreshes, shares
from accountlink.cli.demo.place import lasting_secret
from accountlink.cli.demo.site import build, vault_of
from accountlink.cli.demo.stage import CannotStart, file_url, open_engine, prepare_tables
from accountlink.cli.demo.story import PEOPLE
from accountlink.cli.demo.worker import work
from tests.support.databases import Database

PORT = 8750
HERE = f"http://localhost:{PORT}"
SECRET = "an example, not random"
SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def engine(database: Database) -> AsyncEngine:
    """A database of a user's own, with the demo's tables."""
    engine = database.engine()
    await prepare_tables(engine, PEOPLE, fresh=False)
    return engine


@pytest.fixture
async def browser(engine: AsyncEngine) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that reaches the demo alone; nobody is signed in. The worker behind the outbox does not run."""
    async with reaching(engine) as client:
        yield client


def reaching(engine: AsyncEngine, *, secret: str = SECRET) -> httpx2.AsyncClient:
    """Start a demo, and return a browser that reaches it."""
    transport = httpx2.ASGITransport(app=build(engine=engine, secret=secret, port=PORT))
    return httpx2.AsyncClient(
        base_url=HERE, transport=transport, headers=SAME_ORIGIN, follow_redirects=True, trust_env=False
    )


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
    posts = (
        "/demo/shares", "/demo/shares/redeem", "/demo/reset", "/demo/doctor/calendar", "/demo/notices/read",
        "/demo/vault/1/copy", "/demo/vault/1/restore", "/demo/tokens/1/expire", "/demo/tokens/1/ask",
        "/demo/tokens/1/withdraw",
    )  # fmt: skip
    for path in posts:
        assert (await browser.post(path, json={})).json() == {"error": "not_signed_in"}
    await browser.post("/sign-in/1")
    for path in posts:
        assert (await browser.post(path, data={"link_id": "1"})).status_code == 415
        assert (await browser.get(path)).status_code == 405


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"{}", b'{"token": 1}', b'{"link_id": "x"}', b"\xff",
    b'{"link_id": null, "token": null, "event_id": null}', b'{"event_id": 18446744073709551616}', b"[" * 200_000,
    b'{"event_id": ' + b"9" * 5_000 + b"}",
])  # fmt: skip
async def test_malformed_bodies(browser: httpx2.AsyncClient, body: bytes) -> None:
    """They are refused, by a word of their own."""
    await browser.post("/sign-in/1")
    for path in ("/demo/shares", "/demo/shares/redeem", "/demo/notices/read", "/demo/vault/1/copy"):
        answer = await browser.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert set(answer.json()) == {"error"}
    assert (await browser.post("/demo/doctor/other", json={})).status_code == 404


async def test_who_can_sign_in(browser: httpx2.AsyncClient) -> None:
    """A user that there is, from a form of the demo's own pages."""
    for number in ("0", "3", str(2**63)):
        assert (await browser.post(f"/sign-in/{number}")).status_code == 404
    for path in ("/sign-in/2", "/sign-out"):
        for site in ("cross-site", "same-site", "none"):
            assert (await browser.post(path, headers={"Sec-Fetch-Site": site})).status_code == 403
    assert (await state(browser))["user"] is None
    await browser.post("/sign-in/2")
    assert (await state(browser))["user"] == {"id": 2, "name": "Bob"}
    [cookie] = browser.cookies.jar
    assert cookie.name == "accountlink-demo-session"  # no other application on localhost has it


async def test_tables_of_another_version(database: Database) -> None:
    """The page learns that the database cannot be read, and the terminal what to do."""
    engine = database.engine()
    await prepare_tables(engine, PEOPLE, fresh=False)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE accountlink_demo_told")
        await connection.exec_driver_sql("CREATE TABLE accountlink_demo_told (event_id INTEGER PRIMARY KEY)")
    app = build(engine=engine, secret=SECRET, port=PORT)
    async with httpx2.AsyncClient(base_url=HERE, transport=httpx2.ASGITransport(app=app), trust_env=False) as client:
        answer = await client.get("/demo/state")
    assert (answer.status_code, answer.json()) == (503, {"error": "database"})


# -- the vault ---------------------------------------------------------------------------------------------------------


async def links(browser: httpx2.AsyncClient) -> dict[int, dict[str, Any]]:
    """Return what the page shows of each link's tokens, by the link's id."""
    return {link["id"]: link for link in (await state(browser))["vault"]["links"]}


async def move(browser: httpx2.AsyncClient, link_id: int, step: str, **body: int) -> int:
    """Move an envelope, or put it back, and return the answer's status."""
    return (await browser.post(f"/demo/vault/{link_id}/{step}", json=body)).status_code


async def two_links(browser: httpx2.AsyncClient) -> tuple[int, int]:
    """Let Alice and Bob each connect an account, and return the ids of the links."""
    await connect(browser, user=1, account="alice")
    await connect(browser, user=2, account="bob")
    alices, bobs = (await state(browser))["rows"]
    return alices["id"], bobs["id"]


@SQLITE
async def test_what_stands_in_the_table(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """The page shows an envelope in its parts, and how the token in it begins; the token is nowhere in clear."""
    await connect(browser, user=1, account="team")
    [link] = (await links(browser)).values()
    linker = AccountLinker(Connection, vault=vault_of(SECRET))
    tokens = await linker.stored_credentials(engine, user_id=1, provider="orbit")
    assert tokens.refresh_token is not None
    access, refresh = tokens.access_token.reveal(), tokens.refresh_token.reveal()
    assert {"access_token": f"{access[:6]}…", "refresh_token": f"{refresh[:6]}…"} == link["read"]

    async with engine.connect() as connection:
        rows = [tuple(row) for table in Base.metadata.sorted_tables for row in await connection.execute(select(table))]
        stored = str(await connection.scalar(select(Connection.access_token)))
    form, key_id, grant_id, data = stored.split(".")
    shown = {
        "format": form, "key_id": key_id, "grant_id": grant_id, "data": f"{data[:6]}…{data[-6:]}", "length": len(data),
    }  # fmt: skip
    assert shown == link["envelope"]
    everything = f"{rows}{(await browser.get('/demo/state')).text}"
    assert [] == [token for token in (access, refresh) if token in everything]


async def test_a_ciphertext_in_another_row(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """It is refused in that row alone, also after a restart, until it is put back."""
    alices, bobs = await two_links(browser)
    before = await links(browser)
    assert 200 == await move(browser, bobs, "copy", **{"from": alices})
    refused = {"code": "credentials_unreadable", "role": "access_token", "reason": "not_authentic"}
    moved = before[bobs] | {"envelope": before[alices]["envelope"], "is_moved": True, "refused": refused}
    del moved["read"]
    assert {alices: before[alices], bobs: moved} == await links(browser)
    assert 409 == await move(browser, bobs, "copy", **{"from": alices})
    assert 409 == await move(browser, alices, "copy", **{"from": bobs})

    async with reaching(engine) as later:
        await later.post("/sign-in/1")
        assert {alices: before[alices], bobs: moved} == await links(later)
        assert 200 == await move(later, bobs, "restore")
        assert before == await links(later)
        assert 409 == await move(later, bobs, "restore")


async def test_what_cannot_be_moved(browser: httpx2.AsyncClient) -> None:
    """A row that is not there, a row into itself, a disconnected one; and a reconnected one has its own envelope."""
    alices, bobs = await two_links(browser)
    for from_id, to_id in ((alices, alices), (alices, 999), (999, bobs), (2**70, bobs)):
        assert 409 == await move(browser, to_id, "copy", **{"from": from_id})
    assert {409} == {await move(browser, 2**70, step, **{"from": alices}) for step in ("copy", "restore")}
    assert 200 == await move(browser, bobs, "copy", **{"from": alices})
    await connect(browser, user=2, account="bob")
    healed = await links(browser)
    assert (False, True) == (healed[bobs]["is_moved"], "read" in healed[bobs])
    assert 409 == await move(browser, bobs, "restore")
    assert healed == await links(browser)
    await browser.post(f"/accounts/{bobs}/unlink")
    assert [alices] == [*await links(browser)]
    assert 409 == await move(browser, alices, "copy", **{"from": bobs})


async def test_a_claimants_tokens_wait_for_the_transfer(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """The page shows them while they wait, and in the row afterwards; those whose time is over it does not show."""
    await connect(browser, user=1, account="team")
    for _ in range(2):
        arrived = await connect(browser, user=2, account="team")
    [waiting] = (await state(browser))["vault"]["waiting"]
    assert ("Bob", "orbit") == (waiting["user"], waiting["provider"])
    [link] = (await links(browser)).values()
    assert waiting["envelope"]["grant_id"] != link["envelope"]["grant_id"]
    async with engine.begin() as connection:
        await connection.execute(update(pending).values(kept_until=literal(PAST, pending.c.kept_until.type)))
    assert [] == (await state(browser))["vault"]["waiting"]

    arrived = await connect(browser, user=2, account="team")
    [waiting] = (await state(browser))["vault"]["waiting"]
    await browser.post("/accounts/transfer", data={"transfer_token": arrived.partition("#transfer_token=")[2]})
    told = await state(browser)
    [row], [link] = told["rows"], told["vault"]["links"]
    assert ("Bob", waiting["envelope"], []) == (row["user"], link["envelope"], told["vault"]["waiting"])
    assert {"access_token", "refresh_token"} == set(link["read"])


async def test_a_demo_of_before_the_vault_and_refreshes(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """Its tables get what is missing, its plain text is read, and connecting the account again seals it."""
    async with engine.begin() as connection:
        gone = [pending, refreshes, Base.metadata.tables[Moved.__tablename__]]
        await connection.run_sync(Base.metadata.drop_all, tables=gone)
    old = AccountLinker(Connection, outbox=outbox)
    for user_id, account in ((1, "team"), (2, "bob")):
        identity = ProviderIdentity(provider="orbit", account_id=f"orbit-{account}")
        tokens = TokenSet(access_token=f"in clear {account}", refresh_token="in clear")
        await old.link(engine, user_id=user_id, identity=identity, credentials=tokens)

    await prepare_tables(engine, PEOPLE, fresh=False)
    await browser.post("/sign-in/2")
    alices, bobs = (await links(browser)).values()
    assert (None, {"access_token": "in cle…", "refresh_token": "in cle…"}) == (bobs["envelope"], bobs["read"])
    assert ["ok"] == [each["health"] for each in (await state(browser))["tokens"]]
    assert 409 == await move(browser, bobs["id"], "copy", **{"from": alices["id"]})
    assert f"{HERE}/settings/accounts?connection=success" == await connect(browser, user=2, account="bob")
    sealed = (await links(browser))[bobs["id"]]
    assert ("al1", "in cle…") == (sealed["envelope"]["format"], alices["read"]["access_token"])
    assert "in cle…" not in sealed["read"].values()
    assert "?error=ownership_conflict" in await connect(browser, user=2, account="team")
    assert 1 == len((await state(browser))["vault"]["waiting"])


@SQLITE
async def test_another_secret_reads_no_token(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A demo with another folder's secret on one database says which key is missing; reconnecting helps."""
    await connect(browser, user=1, account="team")
    async with reaching(engine, secret="another example, not random") as other:
        [link] = (await links(other)).values()
        assert "unknown_key" == link["refused"]["reason"]
        await connect(other, user=1, account="team")
        [link] = (await links(other)).values()
        assert "refused" not in link


@SQLITE
async def test_a_link_without_tokens(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """The page learns that there are none: the user has to connect the account again."""
    await connect(browser, user=1, account="team")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE accountlink_demo_connections SET access_token = NULL"))
    [link] = (await links(browser)).values()
    assert (None, None) == (link["envelope"], link["refused"])


# -- tokens that expire ------------------------------------------------------------------------------------------------


async def ask(browser: httpx2.AsyncClient, link_id: int, *before: str) -> dict[str, Any]:
    """Press the panel's buttons, and in the end let two workers ask; return what they got."""
    for step in before:
        assert 200 == (await browser.post(f"/demo/tokens/{link_id}/{step}", json={})).status_code
    asked: dict[str, Any] = (await browser.post(f"/demo/tokens/{link_id}/ask", json={})).json()
    return asked


async def only_token(browser: httpx2.AsyncClient) -> dict[str, Any]:
    """Return what the page shows of the one link's token."""
    [token] = (await state(browser))["tokens"]
    shown: dict[str, Any] = token
    return shown


async def test_two_workers_and_one_token_call(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A valid token is given out; one that is over is renewed once for both workers, and shown nowhere."""
    await connect(browser, user=1, account="team")
    token = await only_token(browser)
    assert ("ok", False, 1) == (token["health"], token["is_over"], token["calls"])
    first = await ask(browser, token["id"])
    assert (True, 0) == (first["is_same"], first["calls"])

    second = await ask(browser, token["id"], "expire")
    assert (True, 1, [None, None]) == (second["is_same"], second["calls"], [each["code"] for each in second["workers"]])
    assert all(each["waited"] > 0.29 for each in second["workers"]), "both waited for the one answer"
    renewed = await only_token(browser)
    assert ("ok", False, 2) == (renewed["health"], renewed["is_over"], renewed["calls"])
    linker = AccountLinker(Connection, vault=vault_of(SECRET))
    text = (await linker.stored_credentials(engine, user_id=1, provider="orbit")).access_token.reveal()
    assert {f"{text[:6]}…"} == {each["access_token"] for each in second["workers"]}
    assert {f"{text[:6]}…"}.isdisjoint(each["access_token"] for each in first["workers"])
    statements = [each["sql"] for each in (await state(browser))["statements"]]
    assert any("INSERT INTO accountlink_demo_refreshes" in sql for sql in statements)


async def test_a_token_that_is_over(browser: httpx2.AsyncClient) -> None:
    """The page shows that it is over; of its link nothing else has changed."""
    await connect(browser, user=1, account="team")
    before, token = (await state(browser))["rows"], await only_token(browser)
    assert 200 == (await browser.post(f"/demo/tokens/{token['id']}/expire", json={})).status_code
    over = await only_token(browser)
    assert (True, True) == (over["is_over"], over["expires_at"] < token["expires_at"])
    assert before == (await state(browser))["rows"]


async def test_consent_that_is_withdrawn(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """The next renewal finds it out, once; the link needs reconnect until its own account is connected again."""
    await connect(browser, user=1, account="team")
    link_id = (await only_token(browser))["id"]
    assert 200 == (await browser.post(f"/demo/tokens/{link_id}/withdraw", json={})).status_code
    assert "ok" == (await only_token(browser))["health"]
    refused = await ask(browser, link_id, "expire")
    assert (False, 1) == (refused["is_same"], refused["calls"])
    assert ["needs_consent"] * 2 == [each["code"] for each in refused["workers"]]
    ended = await only_token(browser)
    assert ("needs_consent", "invalid_grant") == (ended["health"], ended["provider_code"])
    assert ended["since"] is not None
    async with engine.connect() as connection:
        told = (await connection.scalars(select(outbox.c.type).order_by(outbox.c.id))).all()
    assert ["linked", "consent_needed"] == told

    async def reconnect(account: str) -> tuple[str, list[tuple[int, str]]]:
        question = await browser.post("/accounts/connect/orbit", data={"expect": str(link_id)})
        arrived = await browser.get(f"{question.url}&answer=orbit-{account}")
        listed = (await browser.get("/accounts", headers={"accept": "application/json"})).json()
        return arrived.url.query.decode(), [(each["id"], each["health"]) for each in listed]

    assert ("error=account_mismatch", [(link_id, "needs_consent")]) == await reconnect("alice")
    assert ("connection=success", [(link_id, "ok")]) == await reconnect("team")
    again = await ask(browser, link_id, "expire")
    assert (True, 1) == (again["is_same"], again["calls"])


async def test_tokens_of_another_user(browser: httpx2.AsyncClient) -> None:
    """Nobody sees, ends or asks for a token of another user's link, or of one that is not there."""
    await connect(browser, user=1, account="team")
    link_id = (await only_token(browser))["id"]
    await browser.post("/sign-in/2")
    assert [] == (await state(browser))["tokens"]
    for each in (link_id, 0, 2**70):
        for step in ("expire", "ask", "withdraw"):
            refused = await browser.post(f"/demo/tokens/{each}/{step}", json={})
            assert (409, {"error": "account_not_found"}) == (refused.status_code, refused.json())
    await browser.post("/sign-in/1")
    asked = await ask(browser, link_id, "expire")
    assert (True, 1) == (asked["is_same"], asked["calls"])


@SQLITE
async def test_a_link_of_another_provider(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A link that ``--once`` has left in the same database is shown, too; its provider is not there to be asked."""
    await connect(browser, user=1, account="team")
    async with engine.begin() as connection:
        await connection.execute(update(Connection).values(provider="demo"))
    token = await only_token(browser)
    assert ("demo", "ok", 0) == (token["provider"], token["health"], token["calls"])
    assert 400 == (await browser.post(f"/demo/tokens/{token['id']}/withdraw", json={})).status_code


@SQLITE
async def test_a_grant_outlives_a_restart(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A demo that is started again renews the token of a grant that its providers gave before."""
    await connect(browser, user=1, account="team")
    async with reaching(engine) as later:
        await later.post("/sign-in/1")
        asked = await ask(later, (await only_token(later))["id"], "expire")
        assert (True, 1) == (asked["is_same"], asked["calls"])


# -- the worker and the server -----------------------------------------------------------------------------------------


async def test_an_odd_event_does_not_end_the_worker(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """An event that the worker cannot keep stays in the outbox; those after it are told all the same."""
    linker = AccountLinker(Connection, outbox=outbox)
    await connect(browser, user=1, account="team")
    async with engine.begin() as connection:
        odd = {name: outbox.c[name] for name, _ in outbox.c.items() if name != "id"} | {"user_id": literal(str(2**63))}
        await connection.execute(insert(outbox).from_select(list(odd), select(*odd.values()).limit(1)))
        await connection.execute(update(outbox).values(id=-outbox.c.id).where(outbox.c.user_id != "1"))  # the first
    await browser.post("/accounts/connect/orbit")
    worker = asyncio.create_task(work(engine, linker, ShareGrants(shares, accounts=linker, outbox=outbox)))
    async with asyncio.timeout(20):
        while not (await state(browser))["events"]:  # noqa: ASYNC110  # only the page's own look tells
            await asyncio.sleep(0.05)
    assert not worker.done()
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker


async def test_the_port_that_browsers_leave_out(engine: AsyncEngine) -> None:
    """On port 80 the addresses are those that browsers write."""
    app = build(engine=engine, secret=SECRET, port=80)
    async with httpx2.AsyncClient(
        base_url="http://localhost", transport=httpx2.ASGITransport(app=app), headers=SAME_ORIGIN, trust_env=False
    ) as browser:
        assert (await browser.get("/settings/accounts", headers={"Host": "localhost"})).status_code == 200
        await browser.post("/sign-in/1", headers={"Host": "localhost"})
        left = await browser.post("/accounts/connect/orbit", headers={"Host": "localhost"})
        assert left.headers["location"].startswith("http://127.0.0.1/orbit/authorize?")


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
    scripts = ("/static/page.js", "/static/parts.js", "/static/tokens.js")
    for path in (*scripts, "/static/page.css", "/static/icon.svg", "/static/accountlink/conflict-dialog.js"):
        assert (await browser.get(path)).status_code == 200
    for path in ("/static/index.html", "/static/../index.html", "/static/%2e%2e/index.html"):  # without its policy
        assert (await browser.get(path)).status_code == 404


async def test_tables_are_kept_unless_they_shall_be_fresh(browser: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    """A second start keeps what was connected; ``--fresh`` drops it."""
    await connect(browser, user=1, account="team")
    await prepare_tables(engine, PEOPLE, fresh=False)
    assert len((await state(browser))["rows"]) == 1
    await prepare_tables(engine, PEOPLE, fresh=True)
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
    assert open_engine(file_url(folder)).url.database == str(folder / "demo.sqlite3")


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a#b", "a b", "ü"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """What the demo keeps is in the folder, and nowhere else."""

    async def start(folder: Path) -> None:
        engine = open_engine(file_url(folder))
        await prepare_tables(engine, PEOPLE, fresh=False)
        await engine.dispose()

    folder = tmp_path / name
    lasting_secret(folder)
    asyncio.run(start(folder))
    assert {folder / "secret", folder / "demo.sqlite3"} <= {*folder.iterdir()}
    assert [folder] == [*tmp_path.iterdir()]


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
    assert told.stderr == f"accountlink: port {port} cannot be used (Address already in use): name another one\n"


def test_a_port_that_another_program_has_on_ipv6(tmp_path: Path) -> None:
    """Browsers look for localhost there first, and would open the other program."""
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = str(taken.getsockname()[1])
        told = CliRunner().invoke(accountlink, ["demo", "--folder", str(tmp_path), "--port", port])
    assert told.exit_code == 1
    assert "another program has it on ::1" in told.stderr


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql+asyncpg://me:hidden@127.0.0.1:9/none", "could not be made at postgresql+asyncpg"),
        ("postgresql+asyncpg://me@127.0.0.1:9/none?password=hidden", "could not be made at postgresql+asyncpg"),
        ("postgresql+asyncpg://me:hidden@127.0.0.1:9/none?no_such=x", "could not be made at postgresql+asyncpg"),
        ("postgresql+asyncpg://me:hidden@127.0.0.1:abc/none", "not one that works here"),
        ("", "not one that works here"),
    ],
)
def test_an_unusable_database(tmp_path: Path, url: str, problem: str) -> None:
    """It is one line, and a password in its URL is not repeated."""
    told = CliRunner().invoke(accountlink, ["demo", "--folder", str(tmp_path), "--port", "0", "--database-url", url])
    assert told.exit_code == 1
    assert problem in told.stderr
    assert "hidden" not in told.output
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "demo.sqlite3").exists()
