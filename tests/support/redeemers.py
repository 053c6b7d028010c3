"""Redeems tokens many times at once, in a process of its own, and says how the calls ended."""

from __future__ import annotations

import asyncio
from collections import Counter

from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import tune_sqlite
from tests.support.claims import CLAIMED, Case
from tests.support.processes import Say, Wait
from tests.support.shares import SHARED, Sharing


async def redeem(say: Say, wait: Wait, *, url: str, table: str, token: str, user: int, times: int) -> None:
    """Redeem one transfer token as soon as the test says so."""
    postgresql = url.startswith("postgresql")
    engine = create_async_engine(url, pool_size=times if postgresql else 4)
    if not postgresql:
        tune_sqlite(engine, busy_timeout=30_000)
    case = Case(CLAIMED[table]("any"), engine)
    await case.linker.accounts(engine, user_id=case.user(99))  # so that the pool is warm
    say("ready")
    await wait()
    ends = await asyncio.gather(*(case.ended(token, user) for _ in range(times)))
    await engine.dispose()
    say(Counter(ends))


async def many(case: Sharing, calls: list[tuple[str, int]]) -> Counter[str]:
    """Redeem tokens of grants, all at the same moment."""
    return Counter(await asyncio.gather(*(case.ended(case.redeem(token, user)) for token, user in calls)))


async def redeem_grants(say: Say, wait: Wait, *, url: str, table: str, calls: list[tuple[str, int]]) -> None:
    """Redeem tokens of grants for users as soon as the test says so."""
    engine = create_async_engine(url)
    if not url.startswith("postgresql"):
        tune_sqlite(engine, busy_timeout=30_000)
    case = Sharing(SHARED[table](), engine, clock=None)
    await many(case, [("warm", 1)] * 5)
    say("ready")
    await wait()
    ends = await many(case, calls)
    await engine.dispose()
    say(ends)
