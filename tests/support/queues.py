"""Task queues without their brokers: as much of Celery and arq as the documentation's tasks use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any


class RetryLater(Exception):
    """Raised by ``Task.retry``, as Celery raises ``celery.exceptions.Retry``.

    Attributes:
        eta: The moment of the next attempt.
        countdown: The seconds until then.
    """

    def __init__(self, *, eta: datetime | None, countdown: float | None) -> None:
        super().__init__("the task is queued again")
        self.eta = eta
        self.countdown = countdown


@dataclass(kw_only=True)
class Task:
    """What a task with ``bind=True`` gets as its first argument."""

    max_retries: int

    def retry(self, *, exc: Exception, eta: datetime | None = None, countdown: float | None = None) -> RetryLater:
        """Return the exception that the task raises, so that it is queued again."""
        assert isinstance(exc, Exception)
        assert eta is None or eta.tzinfo is not None, "Celery reads a moment without a zone in a zone of its own"
        return RetryLater(eta=eta, countdown=countdown)


@dataclass
class Celery:
    """An application whose tasks a test runs by name, as a worker does."""

    _tasks: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def task(self, *, bind: bool, max_retries: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function."""
        assert bind

        def registered(function: Callable[..., Any]) -> Callable[..., Any]:
            self._tasks[function.__name__] = lambda *given: function(Task(max_retries=max_retries), *given)
            return function

        return registered

    def run(self, name: str, *arguments: object) -> RetryLater | str:
        """Run a task: "done", or when it is to be run again."""
        try:
            self._tasks[name](*arguments)
        except RetryLater as later:
            return later
        return "done"


class Retry(Exception):
    """Raised by a task of arq that is to be run again.

    Attributes:
        defer: How long to wait.
    """

    def __init__(self, defer: timedelta) -> None:
        super().__init__("the task is deferred")
        self.defer = defer
