"""The server of the tests: there for a ``with`` block, and gone afterwards."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.serving import serve


async def test_an_application_is_served() -> None:
    """An application knows its own address, answers there, and answers no longer when the block is left."""

    def build(url: str) -> Starlette:
        async def address(_: Request) -> Response:
            return PlainTextResponse(url)

        return Starlette(routes=[Route("/", address)])

    async with httpx2.AsyncClient(trust_env=False) as client:
        async with serve(build) as url:
            assert url == (await client.get(url)).text
        with pytest.raises(httpx2.TransportError):
            await client.get(url)


async def test_an_application_that_does_not_start() -> None:
    """An application whose lifespan fails makes its test fail, and ends no test run."""

    def lifespan(_: Starlette) -> AbstractAsyncContextManager[None]:
        raise OSError

    with pytest.raises(RuntimeError, match="its lifespan failed"):
        async with serve(lambda _: Starlette(lifespan=lifespan)):
            pytest.fail("it was served")
