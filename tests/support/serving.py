"""Serves an application on loopback, for clients that need a real address: a browser, another process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator in uvicorn
        """Leave the signals to the test run."""
        return nullcontext()


@asynccontextmanager
async def serve(build: Callable[[str], ASGIApp]) -> AsyncIterator[str]:
    """Serve an application in the test's event loop, for the length of a ``with`` block.

    Args:
        build: Makes the application. It is given the application's own address, ``http://localhost:`` and a port.

    Yields:
        This address. As a site it differs from ``127.0.0.1``, where the OpenID provider is.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://localhost:{listener.getsockname()[1]}"
        config = uvicorn.Config(build(url), ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = _Server(config)
        running = asyncio.create_task(_run(server, listener))
        try:
            while not server.started and not running.done():  # noqa: ASYNC110  (uvicorn tells it in no other way)
                await asyncio.sleep(0.001)
            if running.done():
                await running
            yield url
        finally:
            server.should_exit = True
            await running


async def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit as end:  # it would end the test run
        raise RuntimeError("the application did not start: its lifespan failed") from end
