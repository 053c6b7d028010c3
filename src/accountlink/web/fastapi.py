"""Make FastAPI's router of a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accountlink.extras import explained
from accountlink.tables.arguments import check_callable, check_kind
from accountlink.web.flow import LinkFlow
from accountlink.web.openapi import described
from accountlink.web.routes import ROUTES, LinkRoute, LinkRoutes

try:
    from fastapi import APIRouter, Depends
    from starlette.requests import Request
    from starlette.responses import Response

    from accountlink.web.starlette import asked_by, response_of
except ModuleNotFoundError as missing:
    raise explained("accountlink.web.fastapi", missing) from None

Dependency = Callable[..., Any]


def link_router(
    flow: LinkFlow[Any, Any],
    *,
    current_user: Dependency,
    user_label: Dependency | None = None,
    name: str = "accountlink",
) -> APIRouter:
    """Make the router by which users connect and disconnect their accounts.

    Include it under a prefix: ``app.include_router(link_router(...), prefix="/accounts")``.

    Args:
        flow: The flow.
        current_user: A dependency that returns the id of the signed-in user, in the column's own Python type; ``None``
            if nobody is signed in; ``Impersonated(user_id=...)`` if somebody acts for the user. It may raise
            ``HTTPException`` itself.
        user_label: A dependency that returns a name of the signed-in user, to show them on the page of a ticket.
        name: The first part of the routes' names and operation ids. Give each router of an application its own.

    Raises:
        ConfigurationError: An argument is of another kind.
    """
    check_kind("flow", flow, LinkFlow)
    check_callable("current_user", current_user)
    named = check_callable("user_label", _nameless if user_label is None else user_label)
    answering, router = LinkRoutes(flow), APIRouter()
    signed_in, label = Depends(current_user), Depends(named)

    def endpoint_of(route: LinkRoute) -> Callable[..., Any]:
        async def answer(request: Request, user: Any = None, shown: Any = None) -> Response:
            return response_of(await answering.answer(route, await asked_by(request, user=user, label=shown)))

        async def with_user(request: Request, user: Any = signed_in) -> Response:
            return await answer(request, user)

        async def with_label(request: Request, user: Any = signed_in, shown: Any = label) -> Response:
            return await answer(request, user, shown)

        async def without_user(request: Request) -> Response:
            return await answer(request)

        if not route.has_user:
            return without_user
        return with_label if route.has_label else with_user

    for route in ROUTES:
        operation = f"{name}_{route.name}"
        router.add_api_route(
            route.path,
            endpoint_of(route),
            methods=[route.method],
            name=operation,
            operation_id=operation,
            response_class=Response,
            response_model=None,
            **described(route, [*flow.providers]),
        )
    return router


def _nameless() -> None:
    """Give no name: then the page of a ticket shows none."""
