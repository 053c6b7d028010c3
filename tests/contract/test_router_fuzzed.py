"""Schemathesis over the router's OpenAPI: every answer to every request is one that is described."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.flows import Stage, stage_on
from tests.support.routers import SAME_ORIGIN, application

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES: Final = 15


@pytest.mark.parametrize("visitor", ["1", "as-1", ""], ids=["user", "impersonated", "nobody"])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_every_answer_is_described(tmp_path: Path, visitor: str, accept: str) -> None:
    """Whatever comes: a status, a media type and members that OpenAPI names, and never a failure of the server."""

    async def staged() -> Stage:
        # each request has an event loop of its own, so no connection is kept for the next
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'fuzzed.db'}", poolclass=NullPool)
        return await stage_on(engine)

    app = application("fastapi", asyncio.run(staged()).flow)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    headers = SAME_ORIGIN | {"cookie": f"session={visitor}"}
    seen: Counter[str] = Counter()

    def fuzz(operation: Any) -> None:
        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def answered(case: Any) -> None:
            given_headers = {**(case.headers or {}), **headers, "Accept": accept}
            answer = case.call(headers=given_headers, allow_redirects=False)
            seen[f"{operation.method} {answer.status_code}"] += 1
            case.validate_response(answer, checks=CHECKS)

        answered()

    results: Any = schema.get_all_operations()
    for result in results:
        fuzz(result.ok())
    assert {"get", "post", "delete"} == {each.partition(" ")[0] for each in seen}
    assert all(each.rpartition(" ")[2] < "5" for each in seen)
