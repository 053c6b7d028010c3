"""Try the MCP server without an account anywhere: a provider of accountlink's own stands in for Acme.

python examples/mcp/try_it.py [--port 8000]

This program is the agent of user 1. It calls the tool, and shows you what the MCP server asks of you.
"""

import argparse
import asyncio
import logging
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable
from os import environ
from pathlib import Path

import httpx2
import uvicorn
from mcp import Client, types
from mcp.client import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that this file can be started by its path

from accountlink.testing.fake_provider import FakeProvider

ACCOUNT = "248289761001"


def provider_at(port: int, *, folder: str) -> FakeProvider:
    """Return a provider that knows one account, and set what the example's modules read.

    Args:
        port: The port of everything. As a site, ``localhost`` is the application and ``127.0.0.1`` the provider.
        folder: Where the database is.
    """
    site, issuer = f"http://localhost:{port}", f"http://127.0.0.1:{port}/provider"
    acme = FakeProvider(issuer=issuer, redirect_uris=[f"{site}/accounts/callback/acme"])
    acme.add_account(ACCOUNT, email="ada@example.org", name="Ada")
    acme.sign_in_as(ACCOUNT)  # so it answers at once; a real provider would ask
    environ.update(
        SITE=site,
        AUTHORIZATION_SERVER=site,
        ACME_ISSUER=issuer,
        ACME_API=f"{issuer}/userinfo",
        ACME_CLIENT_ID=acme.client_id,
        ACME_CLIENT_SECRET=acme.client_secret,
        DATABASE_URL=f"sqlite+aiosqlite:///{folder}/connections.db",
    )
    for name in ("TRANSFER_SECRET", "FLOW_SECRET", "SESSION_SECRET", "ACCESS_TOKEN_SECRET", "VAULT_KEY"):
        environ[name] = secrets.token_urlsafe(32)  # forgotten at the end
    return acme


async def ask_on_terminal(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    """Show what the MCP server asks of the user, as each client does in its own way."""
    assert isinstance(params, types.ElicitRequestURLParams)
    print(f"The MCP server asks: {params.message}")
    print(f"1. Sign in: {environ['SITE']}/settings")
    print(f"2. Open:    {params.url}")
    print("Then press Enter.", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return types.ElicitResult(action="accept")  # which means: the user has seen the address


async def agent(acme: FakeProvider, *, token: str, time_passes: Callable[[], Awaitable[None]]) -> None:
    """Call the tool without an account, with an expired token, and after the user has withdrawn their consent.

    Args:
        acme: The provider.
        token: The agent's access token for the MCP server.
        time_passes: Lets the access tokens of the provider be over.
    """
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        transport = streamable_http_client(f"{environ['SITE']}/mcp", http_client=http)
        async with Client(transport, elicitation_callback=ask_on_terminal) as client:
            print("Your agent calls the tool.")
            await call(client)
            await time_passes()
            print("An hour later it calls the tool again.")
            await call(client)
            print(f"Acme has issued tokens {acme.calls['/token']} times.")
            acme.revoke_consent(ACCOUNT)
            await time_passes()
            print("You withdraw your consent at Acme, and an hour later the agent calls again.")
            await call(client)


async def call(client: Client) -> None:
    """Call the tool, and show its answer."""
    result = await client.call_tool("read_profile", {})
    print("The tool answers:", *(each.text for each in result.content if isinstance(each, types.TextContent)))


async def demonstrate(port: int, folder: str) -> None:
    """Serve the MCP server and the provider, and be the agent."""
    acme = provider_at(port, folder=folder)
    from examples.mcp.stand_in import app, end_access_tokens, make_tables, token_of  # noqa: PLC0415  (set above)

    logging.getLogger().setLevel(logging.WARNING)  # the SDK's server has set it to INFO
    app.mount("/", acme)  # every path that the application does not have
    await make_tables()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not (server.started or serving.done()):  # noqa: ASYNC110  (uvicorn says it in no other way)
        await asyncio.sleep(0.01)
    try:
        await agent(acme, token=token_of(1), time_passes=end_access_tokens)
    finally:
        server.should_exit = True
        await serving


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="An MCP server whose tool uses the user's own account.")
    parser.add_argument("--port", type=int, default=8000, help="where to listen; 8000 by default")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(demonstrate(parser.parse_args().port, folder))


if __name__ == "__main__":
    main()
