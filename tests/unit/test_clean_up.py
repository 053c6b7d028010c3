"""Clean-up that has to end: it begins and ends though its caller is cancelled, and within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from accountlink.database.cancellation import seen_through


class Room:
    """Something to clean up, by steps."""

    def __init__(self, steps: int = 3) -> None:
        self.steps, self.clean, self.broken_off = steps, False, False

    async def tidy(self) -> None:
        try:
            for _ in range(self.steps):
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.broken_off = True
            raise
        self.clean = True


async def cancelled(
    room: Room, cancel: Callable[[asyncio.Task[None]], object], *, grace: float = 5
) -> asyncio.Task[None]:
    """Clean up, and be cancelled meanwhile."""
    task = asyncio.create_task(seen_through(room.tidy(), grace=grace))
    await asyncio.sleep(0)
    cancel(task)
    await asyncio.wait({task}, timeout=10)
    return task


async def test_clean_up_is_waited_for() -> None:
    """Without a cancellation it is awaited like any other work."""
    room = Room()
    await seen_through(room.tidy())
    assert room.clean


async def test_result_of_clean_up() -> None:
    """The caller gets what the clean-up returns."""

    async def counted() -> int:
        await asyncio.sleep(0)
        return 3

    assert 3 == await seen_through(counted())


async def test_clean_up_ends_though_its_caller_is_cancelled() -> None:
    """A cancellation is heard when the clean-up has ended, and not before."""
    room = Room()
    task = await cancelled(room, asyncio.Task.cancel)
    assert (True, False, True) == (room.clean, room.broken_off, task.cancelled())


async def test_clean_up_ends_though_its_caller_is_cancelled_at_every_step() -> None:
    """A clean-up ends even if a cancel scope cancels again and again."""
    room = Room()

    def always(task: asyncio.Task[None]) -> None:
        if not task.done():
            task.cancel()
            asyncio.get_running_loop().call_soon(always, task)

    task = await cancelled(room, always)
    assert (True, False, True) == (room.clean, room.broken_off, task.cancelled())


async def test_clean_up_begins_though_its_caller_is_cancelled_already() -> None:
    """A task that is cancelled before its clean-up still runs its clean-up."""
    room = Room()

    async def leave() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await seen_through(room.tidy())

    task = asyncio.create_task(leave())
    await asyncio.wait({task}, timeout=10)
    assert (True, True) == (room.clean, task.cancelled())


async def test_clean_up_that_does_not_end_is_broken_off() -> None:
    """A server that does not answer keeps a cancelled caller no longer than the grace."""
    room = Room(steps=100_000)
    loop = asyncio.get_running_loop()
    before = loop.time()
    task = await cancelled(room, asyncio.Task.cancel, grace=0.05)
    assert (False, True, True) == (room.clean, room.broken_off, task.cancelled())
    assert loop.time() - before < 5


async def test_what_clean_up_raises_is_raised() -> None:
    """The caller gets the error of the clean-up, or the cancellation if the caller is cancelled."""

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise LookupError("nothing there")

    with pytest.raises(LookupError):
        await seen_through(fails())
    task = asyncio.create_task(seen_through(fails()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
