"""Stand in for the rest of your application: its sign-in, its page and its tables. Replace each with your own.

SITE=http://localhost:8000 uvicorn examples.fastapi.stand_in:app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from examples.fastapi.main import Base, app, engine, flow

__all__ = ["app"]

PAGE: Final = Path(__file__).with_name("settings.html")

if flow.site.is_secure:
    raise RuntimeError("This sign-in asks for no proof. Use it on http://localhost only, and write one of your own.")


@asynccontextmanager
async def tables(_: FastAPI) -> AsyncIterator[None]:
    """Make the tables. A migration does it for your application."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


router = APIRouter(lifespan=tables)


@router.post("/sign-in/{user_id}")
async def sign_in(request: Request, user_id: int) -> RedirectResponse:
    """Believe everybody. Yours asks for proof."""
    request.session.clear()  # nothing that another user left in this browser belongs to the new one
    request.session["user_id"] = user_id
    return RedirectResponse("/settings", status_code=303)


@router.post("/sign-out")
async def sign_out(request: Request) -> RedirectResponse:
    """End the session."""
    request.session.clear()
    return RedirectResponse("/settings", status_code=303)


@router.get("/settings")
async def settings(request: Request) -> HTMLResponse:
    """Show the page of the signed-in user's accounts."""
    user_id: int | None = request.session.get("user_id")
    who = "Nobody is signed in." if user_id is None else f"You are user {user_id}."
    return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("WHO", who))


app.include_router(router)
