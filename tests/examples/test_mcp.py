"""The MCP server of the examples: two processes of it, one database, and a real provider."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from unittest.mock import patch

import httpx2
import pytest
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import OctKey
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker
from tests.support.databases import Database, create
from tests.support.oidc import Issuer, OidcProvider

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "examples" / "mcp"
SECRETS: Final = ("TRANSFER_SECRET", "FLOW_SECRET", "SESSION_SECRET", "ACCESS_TOKEN_SECRET")
INITIALIZE: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "a test", "version": "1"},
}
PLAIN: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each client to load the certificates of authorities: nothing here speaks TLS."""


def test_it_has_sixty_lines() -> None:
    """The server has at most sixty lines beside its models, empty ones among them."""
    lines = (FOLDER / "main.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    assert "noqa" not in "".join(lines)


# -- what the test has of the application ----------------------------------------------------------------------------


@pytest.fixture
def kind() -> str:
    return "asyncpg"


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@dataclass(kw_only=True)
class Servers:
    """The processes of the MCP server; the first one is also where browsers go."""

    ports: list[int]
    environment: dict[str, str]
    issuer: Issuer
    engine: AsyncEngine
    linker: AccountLinker[int, int]
    end_provider: Callable[[], None]

    def token(self, user_id: int, **claims: Any) -> str:
        """An access token of the application's authorization server."""
        site = self.environment["SITE"]
        said = {"iss": site, "aud": f"{site}/mcp", "sub": str(user_id), "exp": int(time.time()) + 600} | claims
        return jwt.encode({"alg": "HS256"}, said, OctKey.import_key(self.environment["ACCESS_TOKEN_SECRET"]))

    async def run(self, statement: str) -> list[tuple[Any, ...]]:
        async with self.engine.begin() as connection:
            found = await connection.execute(sa.text(statement))
            return [tuple(row) for row in found] if found.returns_rows else []

    async def status(self, token: str) -> int:
        """Return the status of a request to the MCP server with an access token."""
        request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(verify=PLAIN, headers=headers) as client:
            answer = await client.post(f"http://localhost:{self.ports[1]}/mcp", json=request)
        return answer.status_code

    async def expire(self, link_id: int) -> None:
        """Let the access token of a link be over."""
        await self.run(f"UPDATE connections SET expires_at = now() - interval '1 second' WHERE id = {link_id}")

    async def end_grant(self, link_id: int, *, user_id: int = 1) -> None:
        """Withdraw the user's consent at the provider; the access token is over, too."""
        stored = await self.linker.stored_credentials(self.engine, user_id=user_id, link_id=link_id)
        assert stored.refresh_token is not None
        form = {"token": stored.refresh_token.reveal(), "token_type_hint": "refresh_token"}
        async with httpx2.AsyncClient(verify=PLAIN, auth=(self.issuer.client_id, self.issuer.client_secret)) as client:
            answer = await client.post(f"{self.issuer.url}/token/revocation", data=form)
        assert 200 == answer.status_code
        await self.expire(link_id)


@dataclass(kw_only=True)
class Agent:
    """The agent of a user, and the user behind it, with a browser."""

    servers: Servers
    user_id: int
    account: str = "ada"
    connects: bool = True
    asked: list[str] = field(default_factory=list)
    """The addresses that the user was asked to open."""

    async def call(self, process: int = 0, *, can_ask: bool = True, mode: Any = "2026-07-28") -> str:
        """Call the tool at one of the processes."""
        from mcp import Client, MCPError, UrlElicitationRequiredError
        from mcp.client.streamable_http import streamable_http_client

        headers = {"Authorization": f"Bearer {self.servers.token(self.user_id)}"}
        address = f"http://localhost:{self.servers.ports[process]}/mcp"
        async with httpx2.AsyncClient(verify=PLAIN, headers=headers, timeout=30) as http:
            transport = streamable_http_client(address, http_client=http)
            callback = self.answer if can_ask else None
            async with Client(transport, mode=mode, elicitation_callback=callback) as client:
                try:
                    result = await client.call_tool("read_profile", {})
                except MCPError as refused:  # a client of 2025-11-25 gets the address in an error, and calls again
                    [asked] = UrlElicitationRequiredError.from_error(refused.error).elicitations
                    await self.answer(None, asked)
                    result = await client.call_tool("read_profile", {})
        return "".join(each.text for each in result.content if each.type == "text")

    async def answer(self, context: Any, params: Any) -> Any:
        """Do what the user does whom the client asks: open the address, or decline."""
        from mcp_types import ElicitResult

        self.asked.append(params.url)
        if not self.connects:
            return ElicitResult(action="decline")
        await self.connect(params.url)
        return ElicitResult(action="accept")

    async def connect(self, url: str) -> str:
        """Open a ticket in the user's browser, sign in at the provider, and return the page one ends at."""
        site = self.servers.environment["SITE"]
        headers = {"sec-fetch-site": "same-origin"}
        async with httpx2.AsyncClient(verify=PLAIN, headers=headers, timeout=30) as browser:
            await browser.post(f"{site}/sign-in/{self.user_id}")
            shown = await browser.get(url)
            assert 200 == shown.status_code, shown.text
            left = await browser.post(url)
            back = await self.servers.issuer.sign_in(browser, left.headers["location"], account=self.account)
            return (await browser.get(back)).headers["location"]


_PROCESSES: Final = """
import os, sys
import uvicorn
from examples.mcp.stand_in import app

ports = [int(port) for port in sys.argv[1:]]
for port in ports[1:]:
    if os.fork() == 0:
        ports = [port]
        break
uvicorn.run(app, host="127.0.0.1", port=ports[0], log_level="warning")
if ports[1:]:
    sys.exit(sum(os.waitpid(-1, 0)[1] for _ in ports[1:]))
"""
"""Runs the application on each port, in a process each: forks of one that has loaded it, but has no connection yet."""


@contextmanager
def running(ports: list[int], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a process of the server on each port, until they have been asked to end."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROCESSES, *map(str, ports)],
        cwd=folder,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        process_group=0,
    ) as first:
        try:
            yield
        finally:
            os.killpg(first.pid, signal.SIGTERM)
            _, said = first.communicate(timeout=30)
    assert not re.search("WARNING|ERROR|Traceback", said), said


async def listening(ports: list[int]) -> None:
    transport = httpx2.AsyncHTTPTransport(verify=PLAIN, retries=12)
    async with httpx2.AsyncClient(transport=transport) as client:
        for port in ports:
            assert 200 == (await client.get(f"http://localhost:{port}/settings")).status_code


@contextmanager
def models_with(environment: dict[str, str]) -> Iterator[ModuleType]:
    """Load the models of the example: its tables, and its linker."""
    with patch.dict(os.environ, environment):
        try:
            yield import_module("examples.mcp.models")
        finally:
            for name in [name for name in sys.modules if f"{name}.".startswith("examples.mcp.")]:
                del sys.modules[name]


@asynccontextmanager
async def application(oidc: OidcProvider, database: Database, folder: Path) -> AsyncIterator[Servers]:
    """Start two processes of the server on one database, beside a provider of their own."""
    ports = free_ports(2)
    site = f"http://localhost:{ports[0]}"
    with ExitStack() as provider:
        issuer = provider.enter_context(oidc.issuer(redirect_uris=[f"{site}/accounts/callback/acme"]))
        environment = {name: secrets.token_urlsafe(32) for name in (*SECRETS, "VAULT_KEY")} | {
            "SITE": site,
            "AUTHORIZATION_SERVER": site,
            "DATABASE_URL": database.url,
            "ACME_ISSUER": issuer.url,
            "ACME_API": f"{issuer.url}/me",
            "ACME_CLIENT_ID": issuer.client_id,
            "ACME_CLIENT_SECRET": issuer.client_secret,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        engine = database.engine()
        with models_with(environment) as models, running(ports, environment, folder):
            await create(engine, models.Base.metadata)
            await listening(ports)
            yield Servers(
                ports=ports,
                environment=environment,
                issuer=issuer,
                engine=engine,
                linker=models.linker,
                end_provider=provider.close,
            )


async def test_each_user_calls_with_their_own_account(oidc: OidcProvider, database: Database, tmp_path: Path) -> None:
    """Users connect by a ticket, two processes renew a token once, and an ended grant becomes a new ticket."""
    async with application(oidc, database, tmp_path) as servers:
        issuer = servers.issuer
        ada, ben = Agent(servers=servers, user_id=1), Agent(servers=servers, user_id=2, account="ben")

        # The first call asks each user to connect; their own account answers.
        assert '{"sub":"ada"}' == await ada.call()
        assert '{"sub":"ben"}' == await ben.call(process=1)
        assert [1, 1] == [len(ada.asked), len(ben.asked)]
        [(link_id,)] = await servers.run("SELECT id FROM connections WHERE user_id = 1")

        # An expired token, and calls at both processes at once: one of them renews it, and the grant lives.
        await servers.expire(link_id)
        before = issuer.requests("token")
        issuer.delay("token", seconds=0.7)  # long enough for each call to ask meanwhile
        got = await asyncio.gather(*(ada.call(process=number % 2) for number in range(4)))
        issuer.delay("token", seconds=0)
        assert ({'{"sub":"ada"}'}, before + 1) == (set(got), issuer.requests("token"))
        await servers.expire(link_id)
        assert '{"sub":"ada"}' == await ada.call(process=1)
        assert (before + 2, 1) == (issuer.requests("token"), len(ada.asked))

        # The grant ends at the provider. The user who declines is not asked twice; the one who agrees repairs the link.
        await servers.end_grant(link_id)
        ada.connects = False
        assert (await ada.call(process=1)).startswith("The account at Acme is not connected.")
        assert (await ada.call(can_ask=False)).startswith("Ask the user to connect")
        ada.connects = True
        assert '{"sub":"ada"}' == await ada.call(process=1)
        assert [(link_id,)] == await servers.run("SELECT id FROM connections WHERE user_id = 1")
        assert 3 == len(ada.asked)

        # A client of the protocol before 2026-07-28 gets the ticket in an error.
        await servers.end_grant(link_id)
        assert '{"sub":"ada"}' == await ada.call(mode="legacy")
        assert 4 == len(ada.asked)

        # A provider that is away: the tool says so, and asks the user for nothing.
        await servers.expire(link_id)
        servers.end_provider()
        assert re.search(r"Acme does not answer now. Call this tool again after 20\d\d-", await ada.call())
        assert 4 == len(ada.asked)

        # Nobody gets in with a token that the authorization server did not issue for this server and this moment.
        for good in ({}, {"aud": ["https://api.example", f"{servers.environment['SITE']}/mcp"]}):
            assert 200 == await servers.status(servers.token(1, **good))
        for wrong in ({"aud": ["https://mcp.example"]}, {"iss": "https://as.example"}, {"exp": 1_700_000_000}):
            assert 401 == await servers.status(servers.token(1, **wrong))
        for forged in (servers.token(1)[:-4], "no-token", "-"):
            assert 401 == await servers.status(forged)


# -- as a new user tries it -------------------------------------------------------------------------------------------


@pytest.mark.stress
async def test_the_program_as_a_new_user_starts_it(tmp_path: Path) -> None:
    """The program asks its user to connect, answers with their account, and asks again when the grant has ended."""
    [port] = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, FOLDER / "try_it.py", "--port", str(port)),
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = []
    headers = {"sec-fetch-site": "same-origin"}
    async with httpx2.AsyncClient(headers=headers, follow_redirects=True, timeout=30) as browser:
        async for line in process.stdout:
            lines.append(line.decode().strip())
            if lines[-1] == "Then press Enter.":
                page, ticket = (each.rpartition(" ")[2] for each in lines[-3:-1])
                await browser.post(page.replace("settings", "sign-in/1"))
                assert "?connection=success" in str((await browser.post(ticket)).url)
                process.stdin.write(b"\n")
                await process.stdin.drain()
    assert process.stderr is not None
    assert (b"", 0) == (await process.stderr.read(), await process.wait())
    told = [line for line in lines if not line.startswith(("1. Sign in", "2. Open"))]
    ask = ["The MCP server asks: Connect your account at Acme.", "Then press Enter."]
    profile = 'The tool answers: {"sub":"248289761001"}'
    assert told == [
        *("Your agent calls the tool.", *ask, profile),
        *("An hour later it calls the tool again.", profile, "Acme has issued tokens 2 times."),
        *("You withdraw your consent at Acme, and an hour later the agent calls again.", *ask, profile),
    ]
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240  (nothing else runs)
