"""A backfill and a rotation of keys while an application links, unlinks and reads; each is killed and resumed.

The application checks every answer, and every row at the end. The benchmark and the tests run this.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import CredentialVault, Linked, Plaintext, TokenSet, VaultKey, tune_sqlite
from accountlink.vault.rotation import Mode, Progress, backfill, rotate_keys
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, identity
from tests.support.processes import Process, Say, Wait
from tests.support.vaulted import KEY, OLD_KEY, Vaulted

RUNS: Final[dict[str, Callable[..., AsyncGenerator[Progress, None]]]] = {"backfill": backfill, "rotate": rotate_keys}
VAULTS: Final = {
    "backfill": CredentialVault(keys=[OLD_KEY], plaintext=Plaintext.READ),
    "rotate": CredentialVault(keys=[KEY, OLD_KEY]),
}
NEWEST: Final = {"backfill": VaultKey(secret=OLD_KEY).id, "rotate": VaultKey(secret=KEY).id}
LINKED_AT: Final = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
VERSION: Final = 7
PAUSE: Final = 0.005
"""Seconds between two calls, so that the application does not take the whole machine."""
CHANGING: Final = 20
"""Each row of this number is linked again and again; the others are only read."""


def opened(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    return engine if url.startswith("postgresql") else tune_sqlite(engine, busy_timeout=30_000)


async def seal(say: Say, wait: Wait, *, url: str, task: str, batch_size: int, stepping: bool) -> None:
    """Run the task in a process of its own: at once, or batch by batch as the test says."""
    engine = opened(url)
    linker = Vaulted(EXCLUSIVE_SOFT, vault=VAULTS[task], pending=False).linker
    say("ready")
    await wait()
    end = Progress(scanned=0, due=0)
    async for progress in RUNS[task](engine, linker, batch_size=batch_size):
        end = progress
        if stepping:
            say(progress.sealed)
            await wait()
    say((end.sealed, end.left))
    await engine.dispose()


@dataclass(kw_only=True)
class Application:
    """Links, reads, and knows what each row has to hold."""

    engine: AsyncEngine
    rows: int
    size: int
    vaulted: Vaulted = field(default_factory=lambda: Vaulted(EXCLUSIVE_SOFT, pending=False))
    changed: dict[int, TokenSet] = field(default_factory=dict)
    reads: int = 0
    links: int = 0
    closing: bool = False

    def tokens(self, number: int) -> TokenSet:
        """The tokens of a row, as they are expected now."""
        filling = "x" * self.size
        first = TokenSet(access_token=f"access-{number}-{filling}", refresh_token=f"refresh-{number}")
        return self.changed.get(number, first)

    async def fill(self) -> None:
        """Insert the rows, with their tokens in plain text."""
        await create(self.engine, self.vaulted.tables.metadata)
        async with self.engine.begin() as connection:
            for start in range(1, self.rows + 1, 1_000):
                numbers = range(start, min(start + 1_000, self.rows + 1))
                await connection.execute(sa.insert(self.vaulted.table), [self._row(number) for number in numbers])

    def _row(self, number: int) -> dict[str, Any]:
        tokens = self.tokens(number)
        assert tokens.refresh_token is not None
        return {
            "user_id": number,
            "provider": "acme",
            "account_id": f"sub-{number}",
            "access_token": tokens.access_token.reveal(),
            "refresh_token": tokens.refresh_token.reveal(),
            "updated_at": LINKED_AT,
            "version": VERSION,
        }

    async def read(self, task: str) -> None:
        """Read rows at random, and check what they hold, until it closes."""
        linker = self.vaulted.other_linker(vault=VAULTS[task])
        while not self.closing:
            number = random.randrange(1, self.rows + 1)  # noqa: S311  # no secret
            if number % CHANGING:
                stored = await linker.stored_credentials(self.engine, user_id=number, provider="acme")
                assert self.tokens(number) == stored
                self.reads += 1
            await asyncio.sleep(PAUSE)

    async def link(self, task: str) -> None:
        """Link some users again, now and then after an unlink, and check what their rows hold, until it closes."""
        linker = self.vaulted.other_linker(vault=VAULTS[task])
        while not self.closing:
            number = random.randrange(1, self.rows // CHANGING + 1) * CHANGING  # noqa: S311  # no secret
            tokens = TokenSet(access_token=f"new-{self.links}", refresh_token=f"new-refresh-{self.links}")
            if self.links % 5 == 0:
                account = await linker.account(self.engine, user_id=number, provider="acme")
                await linker.unlink(self.engine, user_id=number, link_id=account.id)
            linked = await linker.link(
                self.engine, user_id=number, identity=identity(f"sub-{number}"), credentials=tokens
            )
            assert isinstance(linked, Linked)
            self.changed[number] = tokens
            assert tokens == await linker.stored_credentials(self.engine, user_id=number, provider="acme")
            self.links += 1
            await asyncio.sleep(PAUSE)

    async def sealed(self, task: str) -> int:
        """Count the rows both of whose tokens are sealed with the newest key."""
        c, begin = self.vaulted.table.c, f"al1.{NEWEST[task]}."
        texts = [sa.func.substr(column, 1, len(begin)) == begin for column in (c.access_token, c.refresh_token)]
        async with self.engine.connect() as connection:
            return int(await connection.scalar(sa.select(sa.func.count()).where(*texts)) or 0)

    async def check(self, task: str) -> None:
        """Check that the newest key alone opens each row, what rows hold, and that no moment and no version moved."""
        key = OLD_KEY if task == "backfill" else KEY
        linker = self.vaulted.other_linker(vault=CredentialVault(keys=[key]))
        opening = self.vaulted.other_linker(vault=CredentialVault(keys=[bytes(32), key]))
        seen = [progress async for progress in rotate_keys(self.engine, opening, mode=Mode.COUNT)][-1]
        assert (self.rows, ()) == (seen.waiting, seen.unreadable)
        c = self.vaulted.table.c
        async with self.engine.connect() as connection:
            query = sa.select(c.user_id, c.updated_at, c.version).order_by(c.user_id)
            found = list(await connection.execute(query))
        assert list(range(1, self.rows + 1)) == [number for number, *_ in found]
        moved = {number for number, at, version in found if (at.replace(tzinfo=UTC), version) != (LINKED_AT, VERSION)}
        assert set(self.changed) == moved
        step = max(1, self.rows // 100)
        for number in [*range(1, self.rows + 1, step), *[*self.changed][-100:]]:
            stored = await linker.stored_credentials(self.engine, user_id=number, provider="acme")
            assert self.tokens(number) == stored


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one task.

    Attributes:
        task: The task.
        killed_at: The rows that were sealed when the first process was killed.
        resumed: The rows that the second process sealed.
        seconds: How long that took.
        reads: The rows that the application read meanwhile.
        links: The links that it made meanwhile.
    """

    task: str
    killed_at: int
    resumed: int
    seconds: float
    reads: int
    links: int


async def under_load(engine: AsyncEngine, *, rows: int, batch_size: int, size: int = 100) -> list[Figures]:
    """Seal a table of plain text, then rotate its key; kill each half-way, and resume it, under load all the time."""
    application = Application(engine=engine, rows=rows, size=size)
    await application.fill()
    return [await _task(application, task, batch_size) for task in RUNS]


async def _task(application: Application, task: str, batch_size: int) -> Figures:
    url = application.engine.url.render_as_string(hide_password=False)
    reads, links = application.reads, application.links
    application.closing = False
    load = asyncio.gather(application.read(task), application.read(task), application.link(task))
    first, second = (
        Process(seal, url=url, task=task, batch_size=batch_size, stepping=stepping) for stepping in (True, False)
    )
    try:
        await _work(_killed_half_way(first, application.rows), load)
        killed_at = await application.sealed(task)
        assert application.rows / 3 < killed_at < application.rows
        seconds, (resumed, left) = await _work(_to_the_end(second), load)
        assert 0 == left
    finally:
        application.closing = True
        first.kill()
        second.kill()
        await load
    await application.check(task)
    return Figures(
        task=task,
        killed_at=killed_at,
        resumed=resumed,
        seconds=seconds,
        reads=application.reads - reads,
        links=application.links - links,
    )


async def _work(work: Any, load: asyncio.Future[Any]) -> Any:
    """Wait for work, or for an error of the application, which never ends otherwise."""
    working = asyncio.ensure_future(work)
    await asyncio.wait([working, load], return_when=asyncio.FIRST_COMPLETED)
    if load.done():
        working.cancel()
        load.result()
    return await working


async def _killed_half_way(process: Process, rows: int) -> None:
    """Let a process begin the batch after the half, and kill it in the midst of that."""
    sealed = await process.hear()
    while sealed == "ready" or sealed < rows / 2:
        process.go()
        sealed = await process.hear()
    process.go()
    process.kill()


async def _to_the_end(process: Process) -> Any:
    assert "ready" == await process.hear()
    begun = time.perf_counter()
    process.go()
    (end,) = await process.rest()
    return time.perf_counter() - begun, end
