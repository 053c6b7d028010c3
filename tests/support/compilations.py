"""Counts the statements that SQLAlchemy compiles, as it says itself of each that it runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine.interfaces import CacheStats
from sqlalchemy.ext.asyncio import AsyncEngine

_OF_TRANSACTIONS = ("SAVEPOINT", "RELEASE", "ROLLBACK")
"""SQLAlchemy's own, a word and a name, which have no cache key and need none."""


class Compilations:
    """What an engine runs.

    Attributes:
        run: How many statements have run, those aside that begin or end something or were given as plain text.
        anew: Those of them that were not found in the cache of compiled statements, with the reason.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.run = 0
        self.anew: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        if context.compiled is None or statement.startswith(_OF_TRANSACTIONS):
            return
        self.run += 1
        if context.cache_hit is not CacheStats.CACHE_HIT:
            self.anew.append(f"{context.cache_hit.name}: {' '.join(statement.split())[:300]}")

    def reset(self) -> None:
        """Count from here."""
        self.run, self.anew = 0, []
