"""Stand in for the rest of your application: its sign-in, its page, its tables and its authorization server.

uvicorn examples.mcp.stand_in:app
"""

import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from joserfc import jwt
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from examples.mcp.main import app
from examples.mcp.models import Base, Connection, engine
from examples.mcp.users import ISSUER, KEY, RESOURCE, SITE, user_of_browser

__all__ = ["app", "end_access_tokens", "make_tables", "token_of"]

if urlsplit(SITE).hostname != "localhost":
    raise RuntimeError("This sign-in asks for no proof. Use it on http://localhost only, and write one of your own.")


async def make_tables() -> None:
    """Make the tables. A migration does it for your application."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def end_access_tokens() -> None:
    """Let all access tokens of the provider be over, as if an hour had passed."""
    async with engine.begin() as connection:
        await connection.execute(update(Connection).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))


def token_of(user_id: int) -> str:
    """Return an access token for the MCP server, as an authorization server issues it to the agent of a user."""
    claims = {"iss": ISSUER, "aud": RESOURCE, "sub": str(user_id), "exp": int(time.time()) + 600}
    return jwt.encode({"alg": "HS256"}, claims, KEY)


async def sign_in(request: Request) -> Response:
    """Believe everybody. Yours asks for proof."""
    request.session.clear()
    request.session["user_id"] = int(request.path_params["user_id"])
    return RedirectResponse("/settings", status_code=303)


async def settings(request: Request) -> Response:
    """Show who is signed in."""
    user_id = user_of_browser(request)
    who = "Nobody is signed in." if user_id is None else f"You are user {user_id}."
    button = '<form method="post" action="/sign-in/1"><button>Sign in as user 1</button></form>'
    return HTMLResponse(f"<!doctype html><title>Settings</title><p>{who}</p>{button}")


app.routes.extend([Route("/sign-in/{user_id:int}", sign_in, methods=["POST"]), Route("/settings", settings)])
