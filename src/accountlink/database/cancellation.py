"""End a cancelled call only after its clean-up has ended."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
GRACE: Final = 2.0
"""Seconds that clean-up has once its caller is cancelled."""


async def seen_through(work: Coroutine[Any, Any, T], *, grace: float = GRACE) -> T:
    """Run clean-up to its end, though its caller is cancelled, and raise the cancellation afterwards.

    Args:
        work: The clean-up.
        grace: How long it may take once its caller is cancelled, in seconds; then it is cancelled, too.

    Returns:
        The result of the clean-up.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
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
        let_go(task)
        raise asyncio.CancelledError
    return await task


def let_go(task: asyncio.Task[Any]) -> None:
    """Clear the frames of a task that has ended by cancellation, so that they keep no cursor.

    SQLAlchemy's frames refer to themselves through the error, and so keep their cursor until the garbage collector
    runs. SQLite keeps the write lock of a closed connection for as long as one of its cursors lives.
    """
    if not task.cancelled():
        task.exception()  # reading it keeps asyncio from logging an error that nobody can handle any more
        return
    try:
        task.result()
    except asyncio.CancelledError as cancelled:
        error: BaseException | None = cancelled
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
