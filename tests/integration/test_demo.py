"""The demo tells its story, checks it, and its backend is one that may be copied."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from click.testing import CliRunner
from sqlalchemy.ext.asyncio import create_async_engine

from accountlink.cli.commands import accountlink
from accountlink.cli.demo import story
from accountlink.cli.demo.backend import create_app
from accountlink.cli.demo.models import Base, User
from accountlink.cli.demo.providers import registered_at
from accountlink.cli.demo.stage import ORIGIN, PROVIDER, Stage, set_stage
from tests.support.forked import Forks

NO_NETWORK = """
import sys

REFUSED = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}

def refuse(event, arguments):
    if event in REFUSED:
        raise RuntimeError(f"the demo reached for the network: {event}")

sys.addaudithook(refuse)
"""

MAIN = "import warnings; warnings.simplefilter('error'); from accountlink.cli.app import main; main()"
BROKEN = """
import warnings
warnings.simplefilter("error")
from accountlink import AccountLinker, OwnerNotFound
from accountlink.cli.app import main

async def link(*_, **__):
    raise OwnerNotFound(provider="demo", constraint=None, row_security=False)

AccountLinker.link = link
main()
"""

STORY = r"""
1\. Alice signs in and links a provider account
   created: link \d+
   the browser is sent to https://app\.example/settings/accounts\?connection=success
   in the table its token is sealed: al1\.[\w-]{8}\.[\w-]{16}\.\.\.

2\. Alice connects the same account again
   updated: link \d+, the same id as before
   the browser is sent to https://app\.example/settings/accounts\?connection=success
   the same row holds the new tokens

3\. The access token is over, and two workers ask for it at once
   both get the same new token, and the provider was asked once

4\. Bob signs in and connects the same provider account
   ownership conflict: https://app\.example/settings/accounts\?error=ownership_conflict#transfer_token=.{8}\.\.\.
   Alice's row is untouched: every column is as it was
   Bob's own tokens are kept for the transfer, sealed

5\. Bob takes it over, after proving control of it
   with the same token Alice gets nowhere: https://app\.example/settings/accounts\?error=token_for_another_user
   transferred: link \d+ is Bob's, under its id
   it has the tokens that Bob brought, and nothing is left of Alice's
   a second click: it is Bob's already, and nothing is written
   the outbox tells a worker, who writes to Alice that it is gone

6\. Bob connects the same account again
   updated: link \d+, the same id as before
   the browser is sent to https://app\.example/settings/accounts\?connection=success

7\. Bob disconnects
   unlinked: link \d+ is kept, marked as disconnected, and its tokens are wiped

8\. Bob reconnects
   restored: link \d+, the same id as before
   the browser is sent to https://app\.example/settings/accounts\?connection=success

In the end, without the tokens
   link  owner  provider  account       e-mail            disconnected
   \d+ +Bob    demo      248289761001  team@example\.org  no
"""


@pytest.fixture(autouse=True)
def no_forced_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story is printed to a pipe, whatever the settings of the machine are."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as people do, in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=inherited | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture
def no_network(tmp_path: Path) -> dict[str, str]:
    """An environment in which a Python process cannot open a connection to anywhere."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    return {"PYTHONPATH": str(tmp_path)}


class TestStory:
    def test_told_without_a_network(self, no_network: dict[str, str]) -> None:
        """The whole story, as plain text, from a process that cannot reach anything."""
        told = run(["-m", "accountlink", "demo", "--once"], **no_network)

        assert (told.returncode, told.stderr) == (0, "")
        assert re.fullmatch(STORY, told.stdout), told.stdout

    def test_network_is_really_cut(self, no_network: dict[str, str]) -> None:
        """The environment of the test above does refuse connections."""
        attempt = run(["-c", "import socket; socket.create_connection(('127.0.0.1', 9))"], **no_network)

        assert attempt.returncode == 1
        assert "the demo reached for the network" in attempt.stderr

    def test_one_link_from_beginning_to_end(self) -> None:
        """Every link id that the story names is the same one."""
        told = CliRunner().invoke(accountlink, ["demo", "--once"])

        assert told.exit_code == 0
        assert len(set(re.findall(r"link (\d+)", told.stdout))) == 1

    def test_database_of_ones_own(self, tmp_path: Path) -> None:
        """A database that is given is used, and used again; the rows stay there."""
        url = f"sqlite+aiosqlite:///{tmp_path / 'mine.sqlite3'}"
        for _ in range(2):
            told = CliRunner().invoke(accountlink, ["demo", "--once", "--database-url", url])
            assert (told.exit_code, told.stderr) == (0, "")

        assert (tmp_path / "mine.sqlite3").stat().st_size > 0

    def test_drawn_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A terminal gets colours; NO_COLOR takes them away."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        coloured = CliRunner().invoke(accountlink, ["demo", "--once"], color=True)
        monkeypatch.setenv("NO_COLOR", "1")
        plain = CliRunner().invoke(accountlink, ["demo", "--once"], color=True)

        assert (coloured.exit_code, plain.exit_code) == (0, 0)
        assert "\x1b[1m" in coloured.stdout
        assert "\x1b" not in plain.stdout


def only_says_so(path: str, result: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Let the backend do nothing at one path, and send the browser on as if it had."""

    @asynccontextmanager
    async def sabotaged(**arguments: Any) -> AsyncIterator[Stage]:
        async with set_stage(**arguments) as stage:

            async def answer(request: httpx2.Request) -> httpx2.Response:
                if not request.url.path.endswith(path):
                    return await stage.app.handle_async_request(request)
                return httpx2.Response(303, headers={"Location": f"{ORIGIN}/settings/accounts?connection={result}"})

            yield replace(stage, app=httpx2.MockTransport(answer))

    return lambda monkeypatch: monkeypatch.setattr(story, "set_stage", sabotaged)


class TestChecksWhatItSays:
    """A story that goes wrong ends with exit code 1 and says where."""

    @pytest.fixture
    def outcome(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[int, str]:
        request.param(monkeypatch)
        told = CliRunner().invoke(accountlink, ["demo", "--once"])
        assert "Traceback" not in told.output
        return told.exit_code, told.stderr

    @staticmethod
    def _provider_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
        @asynccontextmanager
        async def sabotaged(**arguments: Any) -> AsyncIterator[Stage]:
            async with set_stage(**arguments) as stage:
                stage.provider.fail_next("token", status=503)
                yield stage

        monkeypatch.setattr(story, "set_stage", sabotaged)

    @staticmethod
    def _table_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
        @asynccontextmanager
        async def sabotaged(**arguments: Any) -> AsyncIterator[Stage]:
            async with set_stage(**arguments) as stage:
                async with stage.engine.begin() as connection:
                    gone = [table for table in Base.metadata.sorted_tables if table is not User.__table__]
                    await connection.run_sync(Base.metadata.drop_all, tables=gone)
                yield stage

        monkeypatch.setattr(story, "set_stage", sabotaged)

    @staticmethod
    def _rows_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
        @asynccontextmanager
        async def sabotaged(**arguments: Any) -> AsyncIterator[Stage]:
            async with set_stage(**arguments) as stage:
                empty = create_async_engine("sqlite+aiosqlite://")
                try:
                    yield replace(stage, engine=empty)
                finally:
                    await empty.dispose()

        monkeypatch.setattr(story, "set_stage", sabotaged)

    @staticmethod
    def _token_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
        async def stays(*_: Any, **__: Any) -> None: ...

        monkeypatch.setattr(story, "let_expire", stays)

    @staticmethod
    def _workers_ask_twice(monkeypatch: pytest.MonkeyPatch) -> None:
        @asynccontextmanager
        async def sabotaged(**arguments: Any) -> AsyncIterator[Stage]:
            async with set_stage(**arguments) as stage:

                async def once_more() -> None:
                    stage.provider.calls["/token"] += 1

                stage.provider.hold_next("configuration", until=once_more)  # the flow's
                stage.provider.hold_next("configuration", until=once_more)  # the workers'
                yield stage

        monkeypatch.setattr(story, "set_stage", sabotaged)

    @pytest.mark.parametrize(
        ("outcome", "problem"),
        [
            (_token_is_valid, "the token was not renewed"),
            (_workers_ask_twice, "the provider was not asked once"),
            (_provider_is_down, "error=provider_error instead of"),
            (_table_is_gone, "error=configuration_error instead of"),
            (_rows_cannot_be_read, "the demo broke off: OperationalError"),
            (only_says_so("/unlink", "unlinked"), "the account is still on the page"),
            (only_says_so("/callback/demo", "success"), "one row was expected, not 0"),
            (only_says_so("/transfer", "success"), "a refusal was expected, not"),
        ],
        indirect=["outcome"],
    )
    def test_exits_1(self, outcome: tuple[int, str], problem: str) -> None:
        """Each printed line was looked up in the database: a backend that only claims it fails the test."""
        exit_code, explanation = outcome

        assert exit_code == 1
        assert explanation.startswith("accountlink: ")
        assert problem in explanation

    def test_exits_1_with_one_line(self, forks: Forks) -> None:
        """A failure of the backend is one line: what a server would log stays away from the terminal."""
        told = forks.run(BROKEN, "demo", "--once")

        assert told.returncode == 1
        assert re.fullmatch(r"accountlink: .*error=database_inconsistency instead of.*\n", told.stderr), told.stderr

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("sqlite+aiosqlite:////nowhere/at/all.sqlite3", "unable to open database file"),
            ("not a url", "not one that works here"),
            ("nosuch+driver://host/name", "not one that works here"),
            ("sqlite:///sync.sqlite3", "not one that works here"),
            ("postgresql+asyncpg://me:hidden@127.0.0.1:9/none", "could not be made at postgresql+asyncpg"),
        ],
    )
    def test_unusable_database(self, url: str, problem: str) -> None:
        """A database that cannot be used is one line and exit 1; a password in its URL is not repeated."""
        told = CliRunner().invoke(accountlink, ["demo", "--once", "--database-url", url])

        assert told.exit_code == 1
        assert problem in told.stderr
        assert "hidden" not in told.output


class TestCommandLine:
    def test_once_serves_nothing(self) -> None:
        """The options of the page do not go with the story in the terminal."""
        told = CliRunner().invoke(accountlink, ["demo", "--once", "--port", "8750"])

        assert told.exit_code == 2
        assert "--once uses new tables and serves nothing" in told.stderr

    def test_knows_its_version(self) -> None:
        """--version names the program and its version."""
        told = run(["-m", "accountlink", "--version"])

        assert told.returncode == 0
        assert re.match(r"accountlink, version \d+\.\d+\.\d+", told.stdout)

    @pytest.mark.parametrize("missing", ["click", "rich"])
    def test_without_the_cli_extra(self, forks: Forks, missing: str) -> None:
        """One plain line and exit 2 when the command line's own libraries are missing."""
        told = forks.run(MAIN, missing=[missing])

        assert told.returncode == 2
        assert told.stderr == f'accountlink: the command line needs {missing}: pip install "accountlink[cli]"\n'

    @pytest.mark.parametrize("missing", ["starlette", "joserfc", "httpx2", "aiosqlite", "uvicorn", "cryptography"])
    def test_without_the_demo_extra(self, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
        """One plain line and exit 2 when only the demo's libraries are missing."""
        monkeypatch.setitem(sys.modules, missing, None)
        told = CliRunner().invoke(accountlink, ["demo", "--once"])

        assert told.exit_code == 2
        assert told.stderr == f'accountlink: the demo needs {missing}: pip install "accountlink[demo]"\n'


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with set_stage(people={1: "Alice", 2: "Bob"}, database_url=None) as stage:
        stage.provider.add_account("sub-1", email="alice@example.org")
        stage.provider.sign_in_as("sub-1")
        yield stage


async def start(browser: httpx2.AsyncClient, user_id: int) -> str:
    """Sign in and start connecting; return the callback's URL, not yet visited."""
    await browser.post(f"/sign-in/{user_id}")
    to_provider = await browser.post("/accounts/connect/demo", follow_redirects=False)
    assert to_provider.status_code == 303
    to_callback = await browser.get(to_provider.headers["Location"], follow_redirects=False)
    location: str = to_callback.headers["Location"]
    return location


def error_at(response: httpx2.Response) -> str | None:
    """Return the error in the address where the browser ended up."""
    return dict(parse_qsl(urlsplit(str(response.url)).query)).get("error")


class TestBackend:
    """The backend's own part: who is signed in. The checks of a flow are tested with LinkFlow and its routes."""

    async def test_user_changed_in_one_browser(self, stage: Stage) -> None:
        """Alice begins, Bob signs in at the same browser: only Alice can end Alice's flow, and still can."""
        async with stage.browser() as browser:
            callback = await start(browser, 1)
            await browser.post("/sign-in/2")
            finished = await browser.get(callback)
            assert error_at(finished) == "flow_not_started_here"
            assert (stage.provider.calls["/token"], await stage.rows()) == (0, [])
            await browser.post("/sign-in/1")
            assert str((await browser.get(callback)).url).endswith("?connection=success")

    async def test_nobody_signed_in(self, stage: Stage) -> None:
        """Without a signed-in user nothing starts, nothing finishes and nothing shows."""
        async with stage.browser() as browser:
            assert (await browser.get("/settings/accounts")).status_code == 200  # it asks for each thing that it shows
            assert (await browser.get("/accounts", headers={"Accept": "application/json"})).status_code == 401
            for path in ("/accounts/connect/demo", "/accounts/1/unlink", "/accounts/transfer"):
                assert error_at(await browser.post(path)) == "not_signed_in"
            callback = await browser.get("/accounts/callback/demo?code=x&state=y", follow_redirects=False)

        assert callback.headers["Location"].endswith("?error=flow_not_started_here")

    async def test_restart_in_mid_flow(self, stage: Stage) -> None:
        """A backend that starts anew ends the flows that the former one began."""

        def backend() -> httpx2.ASGITransport:
            app = create_app(
                engine=stage.engine,
                linker=stage.linker,
                providers=[registered_at(stage.provider, slug=PROVIDER)],
                origin=ORIGIN,
                secret="an example, at least 32 bytes, not random",
                transport=httpx2.ASGITransport(app=stage.provider),
            )
            return httpx2.ASGITransport(app=app)

        async with replace(stage, app=backend()).browser() as before, replace(stage, app=backend()).browser() as after:
            callback = await start(before, 1)
            after.cookies.update(before.cookies)
            finished = await after.get(callback)

        assert str(finished.url).endswith("?connection=success")

    async def test_link_of_another_user_is_not_found(self, stage: Stage) -> None:
        """Bob cannot disconnect Alice's account, and learns nothing from trying."""
        async with stage.browser() as alice, stage.browser() as bob:
            await alice.get(await start(alice, 1))
            (row,) = await stage.rows()
            await bob.post("/sign-in/2")
            hers = await bob.post(f"/accounts/{row['id']}/unlink")
            nobodys = await bob.post("/accounts/999999/unlink")

        assert error_at(hers) == "account_not_found" == error_at(nobodys)
        assert await stage.rows() == [row]

    async def test_session_cookie(self, stage: Stage) -> None:
        """The session's cookie can be set by this host alone, and read by no script."""
        async with stage.browser() as browser:
            signed_in = await browser.post("/sign-in/1", follow_redirects=False)

        cookie = signed_in.headers["Set-Cookie"]
        assert cookie.startswith("__Host-session=")
        assert {"path=/", "httponly", "samesite=lax", "secure"} <= {part.strip().lower() for part in cookie.split(";")}
