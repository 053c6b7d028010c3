"""Redeems one transfer token many times at once, in a process of its own; the answers are counted on its output.

``python -m tests.support.redeemers '{"url": ..., "table": ..., "token": ..., "user": 2, "times": 20}'``

It says ``ready`` once it is, and begins when it is sent a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import tune_sqlite
from tests.support.claims import CLAIMED, Case


async def redeem(*, url: str, table: str, token: str, user: int, times: int) -> Counter[str]:
    """Wait for the word to begin, redeem, and count how it ended."""
    postgresql = url.startswith("postgresql")
    engine = create_async_engine(url, pool_size=times if postgresql else 4)
    if not postgresql:
        tune_sqlite(engine, busy_timeout=30_000)
    case = Case(CLAIMED[table]("any"), engine)
    await case.linker.accounts(engine, user_id=case.user(99))  # so that the pool is warm
    print("ready", flush=True)  # noqa: T201  # heard by the parent
    await asyncio.to_thread(sys.stdin.readline)
    ends = await asyncio.gather(*(case.ended(token, user) for _ in range(times)))
    await engine.dispose()
    return Counter(ends)


def main(told: str) -> None:
    """Do what the command line says, and report the results."""
    given: dict[str, Any] = json.loads(told)
    sys.stdout.write(json.dumps(asyncio.run(redeem(**given))))


if __name__ == "__main__":
    main(sys.argv[1])
