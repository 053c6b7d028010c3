"""Records the SQL statements that a request made, so that the page can show them."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

KEPT = 40
"""The number of statements that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Hold one statement.

    Attributes:
        number: Its number since the demo started.
        cause: The request that made it, such as ``"POST /accounts/transfer"``.
        sql: Its text, with a placeholder where each value goes. The values, tokens among them, are not recorded.
    """

    number: int
    cause: str
    sql: str


class Statements:
    """Keep the latest statements of an engine that were made for a request of the user's.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._latest: deque[Statement] = deque(maxlen=KEPT)
        self._cause: ContextVar[str | None] = ContextVar("cause", default=None)
        self._count = 0
        self.listen(engine)

    def listen(self, engine: AsyncEngine) -> None:
        """Keep the statements of one more engine, too."""
        event.listen(engine.sync_engine, "after_cursor_execute", self._executed)
        event.listen(engine.sync_engine, "commit", self._committed)

    @contextmanager
    def caused_by(self, request: str) -> Iterator[None]:
        """Record what is executed inside the block, in this task and in those that it starts."""
        token = self._cause.set(request)
        try:
            yield
        finally:
            self._cause.reset(token)

    def latest(self) -> Sequence[Statement]:
        """Return the latest statements, the newest last."""
        return tuple(self._latest)

    def clear(self) -> None:
        """Forget them."""
        self._latest.clear()

    def _executed(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._record(statement)

    def _committed(self, _connection: Any) -> None:
        self._record("COMMIT")

    def _record(self, sql: str) -> None:
        cause = self._cause.get()
        if cause is not None:
            self._count += 1
            self._latest.append(Statement(number=self._count, cause=cause, sql=sql))
