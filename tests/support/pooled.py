"""One process of an application behind a pooler: each user sends different queries, and checks every answer.

They ask in transactions, in AUTOCOMMIT, and through accountlink, in turn.

Run as ``python -m tests.support.pooled '{...}'``; prints how many answers were right, were somebody else's, and failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinkError, Linked
from accountlink.database.pooler import pooler_options
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables, tokens

PROCESSES = 4
USERS = 12
ROOT = Path(__file__).parents[2]


async def behind(url: str, *, rounds: int, recipe: bool) -> Mapping[str, int]:
    """Run the processes at the same time, and add up what they counted."""
    tasks = [{"url": url, "rounds": rounds, "recipe": recipe, "process": number} for number in range(PROCESSES)]
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __name__, json.dumps(task)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for task in tasks
    ]
    total: Counter[str] = Counter()
    try:
        async with asyncio.timeout(60):
            for process, (said, complained) in zip(
                running, await asyncio.gather(*(process.communicate() for process in running)), strict=True
            ):
                assert 0 == process.returncode, complained.decode()[-2000:]
                total.update(json.loads(said))
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return total


class _Application:
    def __init__(self, engine: AsyncEngine, process: int) -> None:
        self.engine, self.process = engine, process
        self.linker = make_tables(EXCLUSIVE_SOFT).linker()

    async def ask(self, user: int, number: int) -> bool:
        """Ask once; whether the answer is the user's own."""
        name = f"p{self.process}-u{user}-{number % 5}"
        if number % 3 == 0:
            return await self.link(self.process * 100 + user, name, number)
        question = sa.text(f"SELECT '{name}', CAST(:user AS integer)")
        level = "AUTOCOMMIT" if number % 3 == 1 else "READ COMMITTED"
        async with self.engine.execution_options(isolation_level=level).connect() as connection:
            answers = []
            for _ in range(1 + number % 2):  # a second one may find a plan of the first, on another server
                answers += [tuple(row) for row in await connection.execute(question, {"user": user})]
            await connection.commit()
        return answers == [(name, user)] * len(answers)

    async def link(self, user: int, name: str, number: int) -> bool:
        if number % 4 == 3:
            found = await self.linker.accounts(self.engine, user_id=user)
            return {user} >= {account.user_id for account in found}
        credentials = tokens() if number % 2 else None
        outcome = await self.linker.link(self.engine, user_id=user, identity=identity(name), credentials=credentials)
        return isinstance(outcome, Linked) and (user, name) == (outcome.account.user_id, outcome.account.account_id)


async def main(url: str, process: int, rounds: int, *, recipe: bool) -> None:
    options: dict[str, Any] = pooler_options(url) if recipe else {}
    engine = create_async_engine(url, pool_size=USERS, max_overflow=0, **options)
    application = _Application(engine, process)
    count: Counter[str] = Counter(right=0, wrong=0, failed=0)

    async def use(user: int) -> None:
        for number in range(rounds):
            try:
                count["right" if await application.ask(user, number) else "wrong"] += 1
            except (SQLAlchemyError, AccountLinkError, ValueError, TypeError, LookupError):
                count["failed"] += 1  # of somebody else's rows, not every one can be read

    await asyncio.gather(*(use(user) for user in range(USERS)))
    sys.stdout.write(json.dumps(count))
    await engine.dispose()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(given["url"], given["process"], given["rounds"], recipe=given["recipe"]))
