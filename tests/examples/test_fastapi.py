"""The FastAPI application of the README: its forty lines, its program as a new user starts it, and its cookies."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import Request

from accountlink.testing.fake_provider import FakeProvider
from tests.support.forty_lines import FILE, loaded
from tests.support.pages import DOCS, README, blocks_of
from tests.support.serving import serve

FOLDER = FILE.parent
SETTINGS = FOLDER / "settings.html"
SITE = "https://app.example"


def test_it_has_forty_lines() -> None:
    """The application has at most forty lines, empty ones among them, and is no longer for it than a screen is wide."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert "noqa" not in FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [README, DOCS / "fastapi.md"], ids=["README", "docs"])
def test_the_page_shows_the_file(page: Path) -> None:
    """The README and the page about FastAPI show this file, letter by letter."""
    assert FILE.read_text(encoding="utf-8") in [block.source for block in blocks_of(page)]


def test_the_page_shows_the_script() -> None:
    """The HTML of the page about FastAPI is in the file that the browser tests use."""
    shown = [block.source for block in blocks_of(DOCS / "fastapi.md") if block.language == "html"]
    assert len(shown) == 3
    assert [] == [source for source in shown if source not in SETTINGS.read_text(encoding="utf-8")]


# -- as a new user starts it ------------------------------------------------------------------------------------------


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """Run the demonstration in a process of its own, until it is asked to end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-W", "error::ResourceWarning", str(FOLDER / "try_it.py"), "--port", port]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said == f"Open http://localhost:{port}/settings\n", process.communicate()
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
    assert "" == errors


def browser(site: str) -> httpx2.Client:
    """Open a browser that follows each redirect, and waits until the server listens."""
    transport = httpx2.HTTPTransport(retries=10)
    return httpx2.Client(
        base_url=site, headers={"sec-fetch-site": "same-origin"}, follow_redirects=True, transport=transport
    )


def test_the_program_as_a_new_user_starts_it(tmp_path: Path) -> None:
    """Without credentials and without a network two users connect one account, and the second one takes it over."""
    with started(tmp_path) as site, browser(site) as ada, browser(site) as ben:
        assert "You are user 1." in ada.post("/sign-in/1").text
        assert "You are user 2." in ben.post("/sign-in/2").text
        assert f"{site}/settings?connection=success" == str(ada.post("/accounts/connect/google").url)
        [listed] = ada.get("/accounts").json()
        assert "google" == listed["provider"]
        assert f"{site}/settings?connection=success" == str(ada.post("/accounts/connect/google").url)

        conflict = str(ben.post("/accounts/connect/google").url)
        assert f"{site}/settings?error=ownership_conflict" == conflict.partition("#")[0]
        token = conflict.partition("#transfer_token=")[2]
        assert [] == ben.get("/accounts").json()
        moved = ben.post("/accounts/transfer", data={"transfer_token": token})
        assert f"{site}/settings?connection=success" == str(moved.url)
        assert ([], [listed["id"]]) == (ada.get("/accounts").json(), [one["id"] for one in ben.get("/accounts").json()])
        again = ada.post("/accounts/transfer", data={"transfer_token": token})
        assert f"{site}/settings?error=token_for_another_user" == str(again.url)

        not_hers = ada.post(f"/accounts/{listed['id']}/unlink")
        assert f"{site}/settings?error=account_not_found" == str(not_hers.url)
        gone = ben.post(f"/accounts/{listed['id']}/unlink")
        assert f"{site}/settings?connection=unlinked" == str(gone.url)
        assert [] == ben.get("/accounts").json()
    assert {"connections.db"} == {path.name for path in tmp_path.iterdir()}


async def test_nobody_is_signed_in(tmp_path: Path) -> None:
    """Without a sign-in an API client gets a problem, and a browser comes back to the page with its code."""
    with loaded(tmp_path, site="http://localhost:8000") as main:
        transport = httpx2.ASGITransport(app=main.app)
        async with httpx2.AsyncClient(transport=transport, base_url=main.site) as client:
            told = await client.get("/accounts", headers={"accept": "application/json"})
            sent = await client.get("/accounts")
    assert (401, "not_signed_in") == (told.status_code, told.json()["code"])
    assert f"{main.site}/settings?error=not_signed_in" == sent.headers["location"]


# -- its cookies ------------------------------------------------------------------------------------------------------


async def test_its_cookies_on_https(tmp_path: Path) -> None:
    """On https both cookies are Secure, HttpOnly and SameSite=Lax, and no other host can set the flow's."""
    fakes: list[FakeProvider] = []

    def provider(url: str) -> FakeProvider:
        fakes.append(FakeProvider(issuer=url, redirect_uris=[f"{SITE}/accounts/callback/google"]))
        return fakes[0]

    async def sign_in(request: Request) -> None:
        request.session["user_id"] = 1

    async with serve(provider) as issuer:
        with loaded(tmp_path, site=SITE, google=fakes[0]) as main:
            main.app.add_api_route("/sign-in", sign_in, methods=["POST"])
            async with main.engine.begin() as connection:
                await connection.run_sync(main.Base.metadata.create_all)
            transport = httpx2.ASGITransport(app=main.app)
            async with httpx2.AsyncClient(transport=transport, base_url=SITE, headers={"origin": SITE}) as client:
                session = (await client.post("/sign-in")).headers["set-cookie"]
                left = await client.post("/accounts/connect/google")
            await main.engine.dispose()
    assert left.headers["location"].startswith(f"{issuer}/authorize?")
    assert re.fullmatch(
        r"__Host-accountlink=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax; Secure", left.headers["set-cookie"]
    )
    assert re.fullmatch(r"session=\S+; path=/; Max-Age=\d+; httponly; samesite=lax; secure", session)


def test_the_stand_in_stays_at_home(tmp_path: Path) -> None:
    """A sign-in that asks for no proof is refused on https, where it would be somebody's real application."""
    with loaded(tmp_path, site=SITE), pytest.raises(RuntimeError, match="asks for no proof"):
        from examples.fastapi import stand_in  # noqa: F401  (the import is refused)
