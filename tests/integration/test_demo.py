"""The demo tells its story, checks it, and its backend is one that may be copied."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from click.testing import CliRunner
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from accountlink.cli.commands import accountlink
from accountlink.cli.demo import story
from accountlink.cli.demo.backend import Backend
from accountlink.cli.demo.models import Base
from accountlink.cli.demo.stage import ORIGIN, Stage, set_stage
from accountlink.testing.fake_provider import Lost

NO_NETWORK = """
import sys

REFUSED = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}

def refuse(event, arguments):
    if event in REFUSED:
        raise RuntimeError(f"the demo reached for the network: {event}")

sys.addaudithook(refuse)
"""

STORY = r"""
1\. Alice signs in and links a provider account
   created: link \d+
   the browser is sent to https://app\.example/settings/accounts\?connection=success

2\. Alice connects the same account again
   updated: link \d+, the same id as before
   the browser is sent to https://app\.example/settings/accounts\?connection=success
   the same row holds the new tokens

3\. Bob signs in and connects the same provider account
   ownership conflict: https://app\.example/settings/accounts\?error=ownership_conflict#transfer_token=.{8}\.\.\.
   Alice's row is untouched: every column is as it was

4\. Bob takes it over, after proving control of it
   with the same token Alice gets nowhere: https://app\.example/settings/accounts\?error=token_for_another_user
   transferred: link \d+ is Bob's, under its id
   nothing of Alice's tokens is left in it
   a second click: it is Bob's already, and nothing is written
   the outbox tells a worker, who writes to Alice that it is gone

5\. Bob connects it, and it holds Bob's tokens
   updated: link \d+, the same id as before
   the browser is sent to https://app\.example/settings/accounts\?connection=success

6\. Bob disconnects
   unlinked: link \d+ is kept, marked as disconnected, and its tokens are wiped

7\. Bob reconnects
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
                    await connection.run_sync(Base.metadata.drop_all)
                yield stage

        monkeypatch.setattr(story, "set_stage", sabotaged)

    @staticmethod
    def _disconnecting_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
        async def disconnect(self: Backend, request: Request) -> Response:
            request.session["notice"] = "unlinked"
            return RedirectResponse(f"{ORIGIN}/settings/accounts", status_code=303)

        monkeypatch.setattr(Backend, "disconnect", disconnect)

    @staticmethod
    def _every_callback_says_success(monkeypatch: pytest.MonkeyPatch) -> None:
        async def callback(self: Backend, request: Request) -> Response:
            request.session["notice"] = "created"
            return RedirectResponse(f"{ORIGIN}/settings/accounts?connection=success", status_code=303)

        monkeypatch.setattr(Backend, "callback", callback)

    @staticmethod
    def _taking_over_only_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
        async def take_over(self: Backend, request: Request) -> Response:
            request.session["notice"] = "transferred"
            return RedirectResponse(f"{ORIGIN}/settings/accounts?connection=success", status_code=303)

        monkeypatch.setattr(Backend, "take_over", take_over)

    @pytest.mark.parametrize(
        ("outcome", "problem"),
        [
            (_provider_is_down, "error=not_proven instead of"),
            (_table_is_gone, "the demo broke off: ConfigurationError: The database has no table"),
            (_disconnecting_does_nothing, "the account is still on the page"),
            (_every_callback_says_success, "one row was expected, not 0"),
            (_taking_over_only_says_so, "a refusal was expected, not"),
        ],
        indirect=["outcome"],
    )
    def test_exits_1(self, outcome: tuple[int, str], problem: str) -> None:
        """Each printed line was looked up in the database: a backend that only claims it fails the test."""
        exit_code, explanation = outcome

        assert exit_code == 1
        assert explanation.startswith("accountlink: ")
        assert problem in explanation

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
    def test_once_is_required(self) -> None:
        """Without --once there is nothing yet, and the usage error says what there is."""
        told = run(["-m", "accountlink", "demo"])

        assert told.returncode == 2
        assert "accountlink demo --once" in told.stderr

    def test_knows_its_version(self) -> None:
        """--version names the program and its version."""
        told = run(["-m", "accountlink", "--version"])

        assert told.returncode == 0
        assert re.match(r"accountlink, version \d+\.\d+\.\d+", told.stdout)

    @pytest.mark.parametrize("missing", ["click", "rich"])
    def test_without_the_cli_extra(self, missing: str) -> None:
        """One plain line and exit 2 when the command line's own libraries are missing."""
        blocked = f"import sys; sys.modules[{missing!r}] = None; from accountlink.cli.app import main; main()"
        told = run(["-c", blocked])

        assert told.returncode == 2
        assert told.stderr == f'accountlink: the command line needs {missing}: pip install "accountlink[cli]"\n'

    @pytest.mark.parametrize("missing", ["starlette", "joserfc", "httpx2", "aiosqlite"])
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
    to_provider = await browser.post("/connect", follow_redirects=False)
    assert to_provider.status_code == 302
    to_callback = await browser.get(to_provider.headers["Location"], follow_redirects=False)
    location: str = to_callback.headers["Location"]
    return location


def error_at(response: httpx2.Response) -> str | None:
    """Return the error in the address where the browser ended up."""
    return dict(parse_qsl(urlsplit(str(response.url)).query)).get("error")


class TestBackend:
    async def test_always_sends_pkce_state_and_nonce(self, stage: Stage) -> None:
        """Connecting is a POST, and leaves with S256, a state and a nonce."""
        async with stage.browser() as browser:
            await browser.post("/sign-in/1")
            assert (await browser.get("/connect")).status_code == 405
            started = await browser.post("/connect", follow_redirects=False)

        sent = dict(parse_qsl(urlsplit(started.headers["Location"]).query))
        assert sent["code_challenge_method"] == "S256"
        assert min(len(sent["state"]), len(sent["nonce"])) >= 20
        assert sent["redirect_uri"] == f"{ORIGIN}/callback"

    async def test_redirect_uri_ignores_the_host_header(self, stage: Stage) -> None:
        """Where the provider answers to comes from configuration, whatever the request claims."""
        async with stage.browser() as browser:
            await browser.post("/sign-in/1")
            forged = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
            started = await browser.post("/connect", headers=forged, follow_redirects=False)

        assert "evil.example" not in started.headers["Location"]

    async def test_flow_of_another_user_is_refused(self, stage: Stage) -> None:
        """A callback that Alice began, finished in Bob's browser: refused before any token request."""
        async with stage.browser() as alice, stage.browser() as bob:
            callback = await start(alice, 1)
            await start(bob, 2)
            finished = await bob.get(callback)

        assert error_at(finished) == "not_proven"
        assert (stage.provider.calls["/token"], await stage.rows()) == (0, [])

    async def test_user_changed_in_one_browser(self, stage: Stage) -> None:
        """Alice begins, Bob signs in at the same browser: Alice's flow ends with Alice's session."""
        async with stage.browser() as browser:
            callback = await start(browser, 1)
            await browser.post("/sign-in/2")
            finished = await browser.get(callback)
            await browser.post("/sign-in/1")
            finished_later = await browser.get(callback)

        assert error_at(finished) == "not_started_here" == error_at(finished_later)
        assert (stage.provider.calls["/token"], await stage.rows()) == (0, [])

    async def test_nobody_signed_in(self, stage: Stage) -> None:
        """Without a signed-in user nothing starts, nothing finishes and nothing shows."""
        async with stage.browser() as browser:
            assert (await browser.post("/connect")).status_code == 401
            assert (await browser.post("/disconnect/1")).status_code == 401
            assert (await browser.get("/settings/accounts")).status_code == 401
            callback = await browser.get("/callback?code=x&state=y", follow_redirects=False)

        assert callback.headers["Location"].endswith("?error=not_started_here")

    async def test_answer_of_another_issuer(self, stage: Stage) -> None:
        """A mixed-up answer is refused before the code is sent anywhere."""
        stage.provider.forge_next("authorize", lambda answer: answer | {"iss": "https://evil.example"})
        async with stage.browser() as browser:
            finished = await browser.get(await start(browser, 1))

        assert error_at(finished) == "not_proven"
        assert stage.provider.calls["/token"] == 0

    async def test_callback_delivered_twice(self, stage: Stage) -> None:
        """The second delivery of one callback changes nothing and asks the provider nothing."""
        async with stage.browser() as browser:
            callback = await start(browser, 1)
            first = await browser.get(callback)
            rows = await stage.rows()
            second = await browser.get(callback)

        assert str(first.url).endswith("?connection=success")
        assert error_at(second) == "not_started_here"
        assert (stage.provider.calls["/token"], await stage.rows()) == (1, rows)

    async def test_injected_error(self, stage: Stage) -> None:
        """A forged error is answered with fixed text, and the running flow survives it."""
        async with stage.browser() as browser:
            callback = await start(browser, 1)
            forged = await browser.get("/callback?error=<b>x</b>&error_description=<script>&iss=https://idp.example")
            finished = await browser.get(callback)

        assert error_at(forged) == "not_proven"
        assert "<" not in forged.text + str(forged.url)
        assert str(finished.url).endswith("?connection=success")

    @pytest.mark.parametrize(
        "forge",
        [
            lambda claims: claims | {"aud": "other", "azp": "demo-client"},
            lambda claims: claims | {"nonce": "other"},
            lambda claims: claims | {"iss": "https://evil.example"},
        ],
        ids=["audience, with our azp", "nonce", "issuer"],
    )
    async def test_forged_id_token(self, stage: Stage, forge: Any) -> None:
        """An ID token that is not for this application, this flow or of this issuer links nothing."""
        stage.provider.forge_next_id_token(forge)
        async with stage.browser() as browser:
            finished = await browser.get(await start(browser, 1))

        assert (error_at(finished), await stage.rows()) == ("not_proven", [])

    async def test_no_id_token(self, stage: Stage) -> None:
        """An access token alone does not identify a user."""

        def without_id_token(answer: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in answer.items() if name != "id_token"}

        stage.provider.forge_next("token", without_id_token)
        async with stage.browser() as browser:
            finished = await browser.get(await start(browser, 1))

        assert (error_at(finished), await stage.rows()) == ("not_proven", [])

    @pytest.mark.parametrize("failure", [{"status": 503}, {"error": "invalid_grant"}, {"lost": Lost.REPLY}])
    async def test_provider_fails(self, stage: Stage, failure: dict[str, Any]) -> None:
        """A token endpoint that fails is an error page, and connecting again works."""
        stage.provider.fail_next("token", **failure)
        async with stage.browser() as browser:
            failed = await browser.get(await start(browser, 1))
            again = await browser.get(await start(browser, 1))

        assert error_at(failed) == "not_proven"
        assert str(again.url).endswith("?connection=success")

    async def test_identity_that_cannot_be_one(self, stage: Stage) -> None:
        """An e-mail flag that is text is refused by the linker, and its code reaches the page."""
        stage.provider.change_account("sub-1", email_verified="false")
        async with stage.browser() as browser:
            finished = await browser.get(await start(browser, 1))

        assert (error_at(finished), await stage.rows()) == ("invalid_identity", [])

    async def test_changed_email_is_the_same_link(self, stage: Stage) -> None:
        """A subject that comes with a new e-mail address keeps its row, which gets the new address."""
        async with stage.browser() as browser:
            await browser.get(await start(browser, 1))
            (before,) = await stage.rows()
            stage.provider.change_account("sub-1", email="alice@elsewhere.example")
            await browser.get(await start(browser, 1))
            (after,) = await stage.rows()

        assert (before["id"], "alice@elsewhere.example") == (after["id"], after["email"])

    async def test_link_of_another_user_is_not_found(self, stage: Stage) -> None:
        """Bob cannot disconnect Alice's account, and learns nothing from trying."""
        async with stage.browser() as alice, stage.browser() as bob:
            await alice.get(await start(alice, 1))
            (row,) = await stage.rows()
            await bob.post("/sign-in/2")
            hers = await bob.post(f"/disconnect/{row['id']}")
            nobodys = await bob.post("/disconnect/999999")

        assert error_at(hers) == "account_not_found" == error_at(nobodys)
        assert await stage.rows() == [row]

    async def test_conflict_is_kept_from_caches_and_referers(self, stage: Stage) -> None:
        """The redirect that carries a transfer token is neither cached nor passed on."""
        async with stage.browser() as alice, stage.browser() as bob:
            await alice.get(await start(alice, 1))
            conflict = await bob.get(await start(bob, 2), follow_redirects=False)

        assert "#transfer_token=" in conflict.headers["Location"]
        assert conflict.headers["Cache-Control"] == "no-store"
        assert conflict.headers["Referrer-Policy"] == "no-referrer"

    async def test_taking_over_is_a_post_of_a_token(self, stage: Stage) -> None:
        """A GET moves nothing; without a user, with no token or a made-up one, nothing moves either (A23)."""
        async with stage.browser() as alice, stage.browser() as bob:
            await alice.get(await start(alice, 1))
            rows = await stage.rows()
            conflict = await bob.get(await start(bob, 2))
            token = str(conflict.url).partition("#transfer_token=")[2]
            assert (await bob.get("/take-over", params={"transfer_token": token})).status_code == 405
            async with stage.browser() as nobody:
                assert (await nobody.post("/take-over", data={"transfer_token": token})).status_code == 401
            for body in ({}, {"transfer_token": ""}, {"transfer_token": token[:-4]}, {"transfer_token": "\u2028"}):
                assert error_at(await bob.post("/take-over", data=body)) == "token_forged"
            assert rows == await stage.rows()

    async def test_session_cookie(self, stage: Stage) -> None:
        """The session's cookie can be set by this host alone, and read by no script."""
        async with stage.browser() as browser:
            signed_in = await browser.post("/sign-in/1", follow_redirects=False)

        cookie = signed_in.headers["Set-Cookie"]
        assert cookie.startswith("__Host-session=")
        assert {"path=/", "httponly", "samesite=lax", "secure"} <= {part.strip().lower() for part in cookie.split(";")}
