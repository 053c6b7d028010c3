"""Cancel a call at its k-th suspension, for every k: fail everywhere, one place at a time.

A task suspends whenever its coroutine yields a future to the event loop. :class:`Stepped` runs a call in a task of its
own and wraps the coroutine of that task, and of each task that the call starts (a task factory sees to that, a context
variable tells them from others), so that it sees every suspension, in SQLAlchemy and in the drivers alike, sheltered
by a task or not. At the k-th of them it cancels the call's task. A sweep cancels at the first suspension, then at the
second, and so on, until a call ends without having come to the one that was to be struck: then there is no further one.

Source: SQLite's documentation, "How SQLite Is Tested": out-of-memory and I/O error tests in a loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_ENDLESS = 30.0


class Moment(enum.Enum):
    """When, around the k-th suspension, the call is cancelled."""

    AT_ONCE = "before what it waits for has happened"
    TOO_LATE = "when what it waits for has happened, and before it hears of it"
    TWICE = "at once, and again at the next suspension, within the clean-up"
    ALWAYS = "at once, and again at every later suspension, as cancel scopes with levels do"


class Stepped(Generic[T]):
    """Runs a call, counts the suspensions of its tasks, and cancels it at the k-th of them.

    Attributes:
        suspensions: How many there were while the call ran.
        swallowed: Whether the call was cancelled and ended otherwise than as cancelled.
    """

    def __init__(self, call: Coroutine[Any, Any, T], *, at: int | None = None, moment: Moment = Moment.AT_ONCE) -> None:
        self.suspensions = 0
        self.swallowed = False
        self._call, self._at, self._moment = call, at, moment
        self._task: asyncio.Task[T] | None = None

    @property
    def struck(self) -> bool:
        """Whether the k-th suspension came."""
        return self._at is not None and self.suspensions >= self._at

    async def ended(self) -> T | BaseException | None:
        """Run the call to its end: its result, its error, or ``None`` when it ended as cancelled.

        The ``CancelledError`` itself is not kept, and so no frame that it came through.
        """
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(_factory)
        token = _running.set(self)
        try:
            self._task = task = loop.create_task(self._call)
            _running.reset(token)
            _, pending = await asyncio.wait({task}, timeout=_ENDLESS)
            assert not pending, f"the call has not ended within {_ENDLESS:.0f} seconds"
        finally:
            loop.set_task_factory(before)
            self._task = None
        if task.cancelled():
            return None
        self.swallowed = self.struck
        return task.exception() or task.result()

    def suspended(self, future: asyncio.Future[Any] | None) -> None:
        """Count a suspension, and cancel if it is the one to strike; nothing counts after the call's end."""
        task = self._task
        if task is None or task.done():
            return
        self.suspensions += 1
        if self._at is None or self.suspensions < self._at:
            return
        late = self.suspensions - self._at
        if late and not (self._moment is Moment.ALWAYS or (self._moment is Moment.TWICE and late == 1)):
            return
        if self._moment is Moment.TOO_LATE and future is not None:
            future.add_done_callback(lambda _: task.cancel())  # comes before the one that resumes who waits for it
        else:
            task.cancel()


_running: ContextVar[Stepped[Any] | None] = ContextVar("_running", default=None)


class _Watched:
    """Awaits a coroutine, and tells of each future that it yields."""

    def __init__(self, run: Stepped[Any], coroutine: Coroutine[Any, Any, Any]) -> None:
        self._run, self._coroutine = run, coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: BaseException | None = None
        while True:
            try:
                future = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                thrown = None  # or an error that leaves would refer to this frame, and this frame to it
            self._run.suspended(future)
            try:
                yield future
            except BaseException as error:  # noqa: BLE001  # whatever the loop throws is the coroutine's to hear
                thrown = error


async def _watch(run: Stepped[Any], coroutine: Coroutine[Any, Any, T]) -> T:
    result: T = await _Watched(run, coroutine)
    return result


def _factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    run = _running.get()
    return asyncio.Task(coroutine if run is None else _watch(run, coroutine), loop=loop, **options)
