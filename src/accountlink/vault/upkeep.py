"""Look after the grants of all users: list those that do not work, and renew those that nobody uses."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Generic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.transactions import read
from accountlink.errors import AccountNotFound, CredentialsUnreadable
from accountlink.tables.id_text import reader
from accountlink.tables.rows import present, read_moment
from accountlink.values.credentials import TokenSet
from accountlink.values.health import Health, HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Parameters
from accountlink.vault.lease_statements import UpkeepStatements
from accountlink.vault.renewing import RefresherFailed, Renewing
from accountlink.vault.stored import StoredTokens, grant_in

PAGE: Final = 500
"""The number of links that one statement reads."""
AT_ONCE: Final = 10
"""The number of grants that are renewed at one time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptAlive:
    """Count what became of idle grants.

    Attributes:
        renewed: Grants that were renewed.
        failed: Grants whose provider could not be reached, or refused the application; they are tried again later.
        ended: Grants that turned out to have ended: their users must link again.
        unreadable: Links whose tokens could not be opened.
    """

    renewed: int = 0
    failed: int = 0
    ended: int = 0
    unreadable: int = 0


class Upkeep(Generic[UserId, LinkId]):
    """Look after the grants of one table of links.

    Args:
        renewing: Renews the tokens.
    """

    def __init__(self, renewing: Renewing[UserId, LinkId]) -> None:
        self._renewing: Final = renewing
        self._stored: Final = renewing.stored
        accounts = renewing.stored.accounts
        self._statements: Final = UpkeepStatements(accounts.mapping, renewing.states)

    # -- listing ------------------------------------------------------------------------------------------------------

    async def unhealthy(
        self, engine: AsyncEngine, states: frozenset[HealthState]
    ) -> AsyncIterator[tuple[LinkId, Health]]:
        """Yield the links whose grants are in one of these states, page by page."""
        after: str | None = None
        while True:
            work = partial(self._page_of_states, engine=engine, states=states, after=after)
            last, found = await read(self._renewing.place(engine), work)
            for each in found:
                yield each
            if last is None:
                return
            after = last

    def _page_of_states(
        self, connection: sa.Connection, engine: AsyncEngine, states: frozenset[HealthState], after: str | None
    ) -> tuple[str | None, list[tuple[LinkId, Health]]]:
        """Read one page; return the last id in it, or ``None`` after the last page."""
        run, begins, on_sqlite = self._stored.run_named, after is None, connection.dialect.name == "sqlite"
        wanted = Parameters(al_states=sorted(state.value for state in states), al_now=datetime.now(UTC))
        if not begins:
            wanted["al_after"] = after
        build = partial(self._statements.in_states, PAGE, begins=begins, on_sqlite=on_sqlite)
        rows = run(connection, wanted, ("unhealthy", begins, on_sqlite), build).all()
        to_id = reader(self._stored.accounts.mapping.columns["id"].type, engine.dialect)
        known = dict(_read_ids(rows, to_id))
        if not known:
            return _last_of(rows), []
        links = run(connection, Parameters(al_ids=list(known)), "of ids", self._statements.of_ids)
        live = {row.id: grant_in(row.access_token, row.refresh_token) for row in links}
        found = [(link_id, _health(row)) for link_id, row in known.items() if live.get(link_id) == row.grant_id]
        return _last_of(rows), found

    # -- keeping alive ------------------------------------------------------------------------------------------------

    async def keep_alive(
        self,
        engine: AsyncEngine,
        *,
        idle: timedelta,
        limit: int | None,
    ) -> KeptAlive:
        """Renew the grants that were not renewed, and whose links were not linked again, for some time.

        Args:
            engine: The engine.
            idle: How long that is.
            limit: The most grants.

        Raises:
            Exception: What the refresher, or the source of the vault's keys, raised.
        """
        before = present() - idle
        work = _Work(
            grants=self._idle(engine, before=before),
            renew=partial(self._became, engine, before=before),
            left=limit,
        )
        return await work.done()

    async def _idle(self, engine: AsyncEngine, *, before: datetime) -> AsyncGenerator[StoredTokens[UserId, LinkId]]:
        """Yield the grants that may be idle, page by page.

        Those of a page come in a random order, so that workers which read the same page at once meet less often.
        """
        page: _Page | None = _Page()
        while page is not None:
            await self._stored.vault.ready()  # raises now what would fail each of them
            last, found = await read(self._renewing.place(engine), partial(self._idle_in, page=page, before=before))
            random.shuffle(found)
            for each in found:
                yield each
            page = None if last is None else _Page(after=last)

    def _idle_in(
        self, connection: sa.Connection, page: _Page, before: datetime
    ) -> tuple[Any, list[StoredTokens[UserId, LinkId]]]:
        """Read a page; return its last id, or ``None`` for the last page, and the grants in it that may be idle."""
        accounts, run = self._stored.accounts, self._stored.run_named
        on_sqlite, begins = connection.dialect.name == "sqlite", page.after is None
        place = Parameters() if begins else Parameters(al_after=page.after)
        build_end = partial(self._statements.page_end, PAGE, begins=begins)
        last = run(connection, place, ("page end", begins), build_end).scalar()
        if last is not None:
            place["al_last"] = last
        asked = Parameters(place, al_before=before, al_now=datetime.now(UTC))
        asked.update({f"al_{role}": moment for role, moment in accounts.stamped(("created_at",), before).items()})
        build = partial(
            self._statements.idle,
            self._stored.vault.account_role,
            begins=begins,
            ends=last is None,
            on_sqlite=on_sqlite,
        )
        rows = run(connection, asked, ("idle", begins, last is None, on_sqlite), build)
        return last, [self._stored.of_row(row) for row in rows]

    async def _became(
        self, engine: AsyncEngine, found: StoredTokens[UserId, LinkId], *, before: datetime
    ) -> str | None:
        """Renew one grant, and return the field of the count that it belongs to; ``None`` if nothing was due."""
        try:
            renewed = await self._renewing.renew_idle(engine, found, before=before)
        except AccountNotFound:  # unlinked or transferred meanwhile
            return None
        except CredentialsUnreadable:
            return "unreadable"
        if renewed is None:
            return None
        if isinstance(renewed, TokenSet):
            return "renewed"
        return "ended" if renewed.code == "needs_consent" else "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    """Name a page of links by the last id of the page before; the first page has none before it."""

    after: Any = None


class _Work(Generic[UserId, LinkId]):
    """Renew grants, several at one time, and count what became of them.

    Args:
        grants: The grants.
        renew: Renews one, and returns the field of the count that it belongs to.
        left: The most grants that count; ``None`` for all.
    """

    def __init__(
        self,
        *,
        grants: AsyncGenerator[StoredTokens[UserId, LinkId]],
        renew: Callable[[StoredTokens[UserId, LinkId]], Awaitable[str | None]],
        left: int | None,
    ) -> None:
        self._grants = grants
        self._renew = renew
        self._left = left
        self._turn = asyncio.Lock()
        self._counted: Counter[str] = Counter()
        self._failure: Exception | None = None

    async def done(self) -> KeptAlive:
        """Work to the end.

        Raises:
            Exception: What the refresher raised for a grant, after all others were looked at.
        """
        takers = [asyncio.ensure_future(self._take()) for _ in range(AT_ONCE)]
        try:
            await asyncio.gather(*takers)
        finally:
            for taker in takers:
                taker.cancel()
            await asyncio.gather(*takers, return_exceptions=True)
            await self._grants.aclose()
        if self._failure is not None:
            raise self._failure
        return KeptAlive(**self._counted)

    async def _take(self) -> None:
        """Renew one grant after another, until none is left."""
        while (found := await self._next()) is not None:
            try:
                became = await self._renew(found)
            except RefresherFailed as failed:  # one grant that its code cannot renew is not to end the others
                self._failure, became = self._failure or failed.error, "failed"
            if became is not None:
                self._counted[became] += 1
            elif self._left is not None:
                self._left += 1

    async def _next(self) -> StoredTokens[UserId, LinkId] | None:
        async with self._turn:
            if self._left == 0:
                return None
            found = await anext(self._grants, None)
            if found is not None and self._left is not None:
                self._left -= 1
            return found


def _last_of(rows: Sequence[sa.Row[Any]]) -> str | None:
    return rows[-1].link_id if len(rows) == PAGE else None


def _read_ids(rows: Sequence[sa.Row[Any]], to_id: Callable[[str], Any]) -> Iterator[tuple[Any, sa.Row[Any]]]:
    """Yield the ids of rows; a text that is none belongs to a link of the past, when the column had another type."""
    for row in rows:
        with suppress(Exception):  # the column's own type may raise anything
            yield to_id(row.link_id), row


def _health(row: sa.Row[Any]) -> Health:
    return Health(
        state=HealthState(row.state),
        provider_code=row.provider_code or row.refused,
        since=read_moment(row.since),
        retry_at=read_moment(row.retry_at),
    )
