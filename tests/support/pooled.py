"""One process of an application behind a pooler: each user sends different queries, and checks every answer.

They ask in transactions, in AUTOCOMMIT, and through accountlink, in turn.

A process says how many answers were right, how many were somebody else's, and how many calls failed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinkError, Linked
from accountlink.database.pooler import pooler_options
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables, tokens
from tests.support.processes import Process, Say, Wait

PROCESSES = 4
USERS = 12


async def behind(url: str, *, rounds: int, recipe: bool) -> Mapping[str, int]:
    """Run the processes at the same time, and add up what they counted."""
    running = [Process(_ask, url=url, process=number, rounds=rounds, recipe=recipe) for number in range(PROCESSES)]
    total: Counter[str] = Counter()
    try:
        async with asyncio.timeout(60):
            for said in await asyncio.gather(*(process.rest() for process in running)):
                total.update(*said)
    finally:
        for process in running:
            process.kill()
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


async def _ask(say: Say, _wait: Wait, *, url: str, process: int, rounds: int, recipe: bool) -> None:
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
    say(count)
    await engine.dispose()
