"""Cancel a call at its k-th suspension, for every k: TH3's way of failing, applied to cancellation.

A call suspends whenever it yields a future to the event loop. :class:`Stepped` wraps the call's coroutine and passes
on each of those futures, so it sees every suspension, in SQLAlchemy and in the drivers alike, and can cancel the task
exactly there. A sweep cancels at the first suspension, then at the second, and so on, until a run ends without having
come to the one that was to be cancelled: then there is no further one.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Moment(enum.Enum):
    """When, during the k-th suspension, the task is cancelled."""

    AT_ONCE = "before what it waits for has begun to happen"
    TOO_LATE = "when what it waits for has happened, and before it hears of it"
    TWICE = "at once, and again at the next suspension, within the clean-up"
    ALWAYS = "at once, and again at every later suspension"


class Stepped(Generic[T]):
    """Awaits a coroutine, counts its suspensions, and cancels the task that awaits it at the k-th of them."""

    def __init__(self, call: Coroutine[Any, Any, T], *, at: int | None = None, moment: Moment = Moment.AT_ONCE) -> None:
        self.suspensions = 0
        self._call, self._at, self._moment = call, at, moment

    @property
    def struck(self) -> bool:
        """Whether the k-th suspension came."""
        return self._at is not None and self.suspensions >= self._at

    async def run(self) -> T:
        """Await the call, as a task of its own that can be cancelled without the caller being so."""
        return await asyncio.create_task(self._awaited())

    async def _awaited(self) -> T:
        return await self

    def __await__(self) -> Generator[Any, Any, T]:
        task = asyncio.current_task()
        assert task is not None
        pending: BaseException | None = None
        while True:
            try:
                future = self._call.send(None) if pending is None else self._call.throw(pending)
            except StopIteration as stop:
                result: T = stop.value
                return result
            pending = None
            self.suspensions += 1
            self._strike(task, future)
            try:
                yield future
            except BaseException as error:  # noqa: BLE001  # whatever the loop throws is the call's to hear
                pending = error

    def _strike(self, task: asyncio.Task[Any], future: Any) -> None:  # a future, or nothing for a bare yield
        if self._at is None:
            return
        due = self.suspensions == self._at
        due |= self._moment is Moment.TWICE and self.suspensions == self._at + 1
        due |= self._moment is Moment.ALWAYS and self.suspensions > self._at
        if not due:
            return
        if self._moment is Moment.TOO_LATE and future is not None:
            future.add_done_callback(lambda _: task.cancel())  # comes before the task's own, which resumes it
        else:
            task.cancel()
