"""Make Starlette's routes of a flow."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

from accountlink.errors import ConfigurationError
from accountlink.extras import explained
from accountlink.tables.arguments import check_callable, check_kind
from accountlink.web.asked import Answer, Asked
from accountlink.web.fields import LARGEST
from accountlink.web.flow import LinkFlow
from accountlink.web.routes import ROUTES, LinkRoute, LinkRoutes

try:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise explained("accountlink.web.starlette", missing) from None

CurrentUser = Callable[[Request], Any]
UserLabel = Callable[[Request], str | Awaitable[str | None] | None]


def link_routes(
    flow: LinkFlow[Any, Any], *, current_user: CurrentUser, user_label: UserLabel | None = None, prefix: str = ""
) -> list[Route]:
    """Make the routes by which users connect and disconnect their accounts.

    Args:
        flow: The flow.
        current_user: Takes the request and returns the id of the signed-in user, in the column's own Python type;
            ``None`` if nobody is signed in; ``Impersonated(user_id=...)`` if somebody acts for the user. It may be
            asynchronous.
        user_label: Takes the request and returns a name of the signed-in user, to show them on the page of a ticket.
        prefix: The path under which the routes are, such as ``"/accounts"``. Without it, put them into a ``Mount``;
            the list of accounts is then at the mount's path with ``/`` at its end.

    Returns:
        The routes, in the order in which Starlette must try them.

    Raises:
        ConfigurationError: An argument cannot work.
    """
    check_kind("flow", flow, LinkFlow)
    check_callable("current_user", current_user)
    label = check_callable("user_label", _nameless if user_label is None else user_label)
    if prefix and not re.fullmatch(r"(/[^/{}]+)+", prefix):
        raise ConfigurationError('prefix=... is a path such as "/accounts", without a slash at its end.')
    answering = LinkRoutes(flow)

    def made(route: LinkRoute) -> Route:
        async def endpoint(request: Request) -> Response:
            user = await _awaited(current_user(request)) if route.has_user else None
            name = await _awaited(label(request)) if route.has_label else None
            return response_of(await answering.answer(route, await asked_by(request, user=user, label=name)))

        made = Route(f"{prefix}{route.path}" or "/", endpoint, methods=[route.method], name=f"accountlink_{route.name}")
        made.methods = {route.method}  # Starlette adds HEAD, and would run a GET for it
        return made

    return [made(route) for route in ROUTES]


async def asked_by(request: Request, *, user: object, label: str | None) -> Asked[Any]:
    """Return the parts of a request that the routes look at."""
    return Asked(
        headers={name: ",".join(request.headers.getlist(name)) for name in request.headers},
        cookies=request.cookies,
        query=request.query_params.multi_items(),
        path=request.path_params,
        body=await _body(request),
        user=user,
        label=label,
    )


def response_of(answer: Answer) -> Response:
    """Return an answer as Starlette's response."""
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


async def _body(request: Request) -> bytes:
    """Read a body, and stop where it is longer than a route accepts."""
    body = b""
    async for chunk in request.stream():
        body += chunk[: LARGEST + 1 - len(body)]
        if len(body) > LARGEST:
            break
    return body


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _nameless(_: Request) -> None:
    """Give no name: then the page of a ticket shows none."""
