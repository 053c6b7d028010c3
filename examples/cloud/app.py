"""The application around the table: the flow, its routes, and the worker that informs users."""

from collections.abc import AsyncIterator
from typing import Final

import httpx2
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from accountlink import AccountLinker, EventType
from accountlink.providers import Provider
from accountlink.web import LinkFlow
from accountlink.web.starlette import CurrentUser, link_routes
from examples.cloud.models import flows

APP: Final = "https://app.example"
CALLBACK: Final = f"{APP}/accounts/callback"
SETTINGS: Final = "/settings/cloud"


def make_flow(
    linker: AccountLinker[int, int],
    engine: AsyncEngine,
    *,
    provider: Provider,
    secret: str,
    page: str = f"{APP}{SETTINGS}",
    transport: httpx2.AsyncBaseTransport | None = None,
) -> LinkFlow[int, int]:
    """Return the application's flow.

    Args:
        linker: The application's linker.
        engine: The application's engine; accountlink tries again by itself where that is safe.
        provider: Such as ``google(client_id=..., client_secret=...)`` of ``accountlink.providers``.
        secret: From your secret store, at least 32 bytes.
        page: Where the browser goes in the end, from the configuration, never from the request.
        transport: Replaces the network, for the story.
    """
    return LinkFlow(
        linker,
        engine,
        providers=[provider],
        callback_url=CALLBACK,
        page=page,
        states=flows,
        secrets=[secret],
        transport=transport,
    )


def make_app(flow: LinkFlow[int, int], *, current_user: CurrentUser) -> Starlette:
    """Return the application.

    Args:
        flow: Its flow.
        current_user: Returns the id of the user who is signed in.
    """
    return Starlette(
        routes=[Route(SETTINGS, settings), *link_routes(flow, current_user=current_user, prefix="/accounts")]
    )


async def settings(_: Request) -> Response:
    """Show the page; the script of a real one takes the transfer token from the address, and asks the user."""
    return PlainTextResponse("your cloud accounts")


async def notices_to_former_owners(
    linker: AccountLinker[int, int], engine: AsyncEngine
) -> AsyncIterator[tuple[int, int]]:
    """Yield the user to inform, and the link, for each account that was transferred since the last call.

    Runs in a worker, or in several. An event is acknowledged when the notice has gone out: a worker that dies in
    between leaves it to the next one.
    """
    async for delivery in linker.events(engine):
        if delivery.event.type is EventType.TRANSFERRED and delivery.event.other_user_id is not None:
            yield delivery.event.other_user_id, delivery.event.link_id
        await delivery.acknowledge()
