"""Runs coroutines in processes of their own, forked from one that has loaded the library and what tests need of it.

To start an interpreter and to load the library takes longer than what the process is there to do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

_FORKING: Final = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        *("aiosqlite", "asyncpg", "psycopg"),
        *("tests.support.claims", "tests.support.renewers", "tests.support.shares", "tests.support.told"),
    ]
)
Say: TypeAlias = Callable[[object], None]
"""Tells the test something."""
Wait: TypeAlias = Callable[[], Awaitable[object]]
"""Waits until the test says to go on."""


class Process:
    """A process that runs a coroutine, with a line to it.

    Args:
        run: A function of a module, which the process imports; called with the two ways to talk to the test.
        told: Its keyword arguments.
    """

    def __init__(self, run: Callable[..., Coroutine[Any, Any, None]], **told: Any) -> None:
        self._line, far = _FORKING.Pipe()
        self._process = _FORKING.Process(target=_run, args=(run, far, told), daemon=True)
        self._process.start()
        far.close()

    async def hear(self) -> Any:
        """Wait for what the process says next; EOFError means that it has ended."""
        return await asyncio.to_thread(self._line.recv)

    def go(self) -> None:
        """Let the process go on."""
        self._line.send(None)

    async def rest(self) -> list[Any]:
        """Wait for the process to end, and return what it says until then."""
        said = []
        try:
            while True:
                said.append(await self.hear())
        except EOFError:
            await asyncio.to_thread(self._process.join)
            assert 0 == self._process.exitcode  # what is wrong stands in its stderr
            return said
        finally:
            self._line.close()

    def kill(self) -> None:
        """End the process without a warning to it."""
        self._process.kill()
        self._process.join()


def _run(run: Callable[..., Coroutine[Any, Any, None]], line: Connection, told: dict[str, Any]) -> None:
    asyncio.run(run(line.send, lambda: asyncio.to_thread(line.recv), **told))


async def begin(running: list[Process]) -> None:
    """Wait until all processes say that they are ready, and let them go on together."""
    for each in running:
        assert "ready" == await each.hear()
    for each in running:
        each.go()
