"""Holds calls back behind a lock until all of them wait for it, and lets them go at one moment (PostgreSQL).

Tasks of one process rarely meet in the server by chance: the first has answered before the second has asked. Behind a
lock that a rival holds, each has taken its snapshot and waits; when the rival ends, all of them look again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

_WAITING: Final = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
_LOOKS: Final = 1_000


async def behind(
    engine: AsyncEngine, rival: str, calls: Sequence[Awaitable[Any]], *, waiting: int, commit: bool = False
) -> list[Any]:
    """Make calls while a rival transaction holds them back, and return how they end, errors among them.

    Args:
        engine: An engine that the calls do not use.
        rival: What the rival does first: it takes the lock that the calls will wait for.
        calls: The calls, which begin together.
        waiting: How many have to wait before the rival ends: all, or as many as their engine has connections.
        commit: Whether the rival commits; it rolls back otherwise.
    """
    async with engine.connect() as holder, engine.connect() as watcher:
        await holder.exec_driver_sql(rival)
        running = [asyncio.ensure_future(call) for call in calls]
        for _ in range(_LOOKS):
            if (await watcher.scalar(_WAITING) or 0) >= waiting:
                break
            await watcher.rollback()
            await asyncio.sleep(0.005)
        else:
            raise AssertionError(f"fewer than {waiting} calls wait")
        await (holder.commit() if commit else holder.rollback())
    return await asyncio.gather(*running, return_exceptions=True)


def just_before(engine: AsyncEngine, part: str, action: Callable[[], Awaitable[object]]) -> list[object]:
    """Do something just before an engine is sent the first statement with a part, and return the list of its results.

    The statement waits until it is done: so it comes between that statement and the one before.

    Args:
        engine: The engine, which the action does not use.
        part: A text in the statement, such as ``"UPDATE connections"``.
        action: What is done.
    """
    done: list[object] = []

    def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement and not done:
            done.append(None)
            done[0] = await_only(action())

    sa.event.listen(engine.sync_engine, "before_cursor_execute", look)
    return done
