"""OpenAPI of FastAPI's router: complete, under any prefix, and without answers that never come."""

from __future__ import annotations

from typing import Any, Final

import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.security import HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.web.fastapi import link_router
from accountlink.web.routes import ROUTES
from tests.support.flows import stage_on
from tests.support.routers import signed_in

BEARER: Final = Depends(HTTPBearer())

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the operations by their ids."""
    found = [each for path in document["paths"].values() for each in path.values()]
    return {operation["operationId"]: operation for operation in found}


async def test_every_route_is_described_under_any_prefix(engine: AsyncEngine) -> None:
    """Two routers in one application have different ids; each operation says what it does and what it answers."""
    stage = await stage_on(engine, slugs=["acme", "bolt"])
    app = FastAPI()
    app.include_router(link_router(stage.flow, current_user=signed_in), prefix="/accounts")
    app.include_router(link_router(stage.flow, current_user=signed_in, name="team"), prefix="/team/accounts/links")
    document = app.openapi()
    assert {f"{name}_{route.name}" for name in ("accountlink", "team") for route in ROUTES} == set(operations(document))
    assert {f"{prefix}{route.path}" for prefix in ("/accounts", "/team/accounts/links") for route in ROUTES} == set(
        document["paths"]
    )
    for name, operation in operations(document).items():
        assert operation["summary"].endswith("."), name
        assert "422" not in operation["responses"], name
        assert all(response["description"] for response in operation["responses"].values()), name
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "provider":
                assert ["acme", "bolt"] == parameter["schema"]["enum"]


async def test_the_dependencys_own_needs_are_described_too(engine: AsyncEngine) -> None:
    """A security scheme and the parameters of `current_user` appear, with the answer that a wrong one gets."""
    stage = await stage_on(engine)

    def user(tenant: int = Header(), token: Any = BEARER) -> int:
        return tenant

    app = FastAPI()
    app.include_router(link_router(stage.flow, current_user=user), prefix="/accounts")
    found = operations(app.openapi())
    assert [{"HTTPBearer": []}] == found["accountlink_connect"]["security"]
    assert {"tenant", "provider"} == {each["name"] for each in found["accountlink_connect"]["parameters"]}
    assert "422" in found["accountlink_connect"]["responses"]
    assert ("422" in found["accountlink_bounce"]["responses"], "security" in found["accountlink_bounce"]) == (
        False,
        False,
    )


async def test_fields_are_described_as_a_form_and_as_json(engine: AsyncEngine) -> None:
    """Each POST with fields takes both; JSON may hold a list of scopes and an id as a number."""
    stage = await stage_on(engine)
    app = FastAPI()
    app.include_router(link_router(stage.flow, current_user=signed_in), prefix="/accounts")
    bodies = {name: op["requestBody"] for name, op in operations(app.openapi()).items() if "requestBody" in op}
    assert {"accountlink_connect", "accountlink_finish", "accountlink_bounce", "accountlink_transfer"} == set(bodies)
    form, in_json = (each["schema"]["properties"] for each in bodies["accountlink_connect"]["content"].values())
    assert {"return_to", "expect", "scopes"} == set(form) == set(in_json)
    assert ("string", ["string", "array"]) == (
        form["scopes"]["type"],
        [each["type"] for each in in_json["scopes"]["anyOf"]],
    )
    assert ["transfer_token"] == bodies["accountlink_transfer"]["content"]["application/json"]["schema"]["required"]


async def test_a_transfer_says_whether_there_are_tokens(engine: AsyncEngine) -> None:
    """`has_credentials` is a boolean of the transfer's answer alone, and only where there was a transfer."""
    stage = await stage_on(engine)
    app = FastAPI()
    app.include_router(link_router(stage.flow, current_user=signed_in), prefix="/accounts")
    found = operations(app.openapi())
    schemas = {
        name.removeprefix("accountlink_"): operation["responses"]["200"]["content"]["application/json"]["schema"]
        for name, operation in found.items()
        if "200" in operation["responses"]
    }
    described = {name for name, schema in schemas.items() if "has_credentials" in schema.get("properties", {})}
    assert {"transfer"} == described
    transfer = schemas["transfer"]
    assert ("boolean", False) == (
        transfer["properties"]["has_credentials"]["type"],
        "has_credentials" in transfer["required"],
    )
