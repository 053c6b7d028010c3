"""A cancelled call ends, and its clean-up is waited for."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")
GRACE: Final = 2.0
"""Seconds that clean-up has once its caller is cancelled."""


async def sheltered(work: Coroutine[Any, Any, T]) -> T:
    """Run work that is cancelled once at the most, and waited for until it has cleaned up.

    Cancel scopes with levels (anyio's, and so Starlette's) cancel again at every wait, and a second cancellation would
    break off what the first one set going: giving the connection back, and calling the server's statement off.
    """
    task = asyncio.ensure_future(_released(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # heard here, too late for the caller to be told
        raise


async def seen_through(work: Coroutine[Any, Any, object], *, grace: float = GRACE) -> None:
    """Run clean-up to its end even if its caller is cancelled; the cancellation is raised afterwards.

    Args:
        work: The clean-up.
        grace: How long it may take once its caller is cancelled, in seconds; then it is cancelled, too.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_released(work))
    until: float | None = None
    while not task.done():
        try:
            await asyncio.wait({task}, timeout=None if until is None else max(0.0, until - loop.time()))
        except asyncio.CancelledError:
            until = until or loop.time() + grace
        else:
            if not task.done():
                task.cancel()
    if until is not None:
        if not task.cancelled():
            task.exception()  # heard here, too late for the caller to be told
        raise asyncio.CancelledError
    await task


async def _released(work: Coroutine[Any, Any, T]) -> T:
    """Let go, when work is cancelled, of what its frames hold.

    SQLAlchemy's frames refer to themselves through the error, and so keep their cursor until the garbage collector
    comes by; SQLite keeps the write lock of a closed connection for as long as one of its cursors lives.
    """
    try:
        return await work
    except asyncio.CancelledError as cancelled:
        error: BaseException | None = cancelled
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        raise
