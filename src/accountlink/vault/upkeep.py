"""Look after grants: tell which do not work, and renew those that nobody uses."""

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

from accountlink.database.transactions import Place, read
from accountlink.errors import AccountNotFound, CredentialsUnreadable
from accountlink.linking.call import Call
from accountlink.tables.id_text import is_readable, reader
from accountlink.tables.rows import present
from accountlink.values.credentials import TokenSet
from accountlink.values.health import Health, HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Parameters
from accountlink.vault.lease_statements import UpkeepStatements
from accountlink.vault.renewing import RefresherFailed, Renewing
from accountlink.vault.stored import StoredTokens

PAGE: Final = 500
"""The number of links that one statement reads."""
AT_ONCE: Final = 10
"""The number of grants that are renewed at one time."""
_APART: Final = timedelta(days=1)
"""More than the clocks of this machine and of the database differ."""


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

    # -- health -------------------------------------------------------------------------------------------------------

    async def health(self, place: Place, call: Call) -> dict[LinkId, Health]:
        """Return the health of each live link of the call's user."""
        found = await self._stored.all_of(place, call, statements=self._statements)
        return {each.account.id: await self._health(each) for each in found}

    async def unhealthy(
        self, engine: AsyncEngine, states: frozenset[HealthState]
    ) -> AsyncIterator[tuple[LinkId, Health]]:
        """Yield the links whose grants are in one of these states, page by page.

        A renewal that failed stands in the table of renewals. A grant that needs its user may not: so all links are
        looked at, as they are where an id cannot be read back from that table.
        """
        kind = self._stored.accounts.mapping.columns["id"].type
        by_state = states == {HealthState.FAILING} and is_readable(kind, engine.dialect)
        read_page = self._failing_in if by_state else self._ill_in
        page: _Page | None = _Page()
        while page is not None:
            last, found = await read(self._renewing.place(engine), partial(read_page, page=page))
            for each in found:
                health = await self._health(each)
                if health.state in states:
                    yield each.account.id, health
            page = None if last is None else _Page(after=last)

    def _failing_in(
        self, connection: sa.Connection, page: _Page
    ) -> tuple[str | None, list[StoredTokens[UserId, LinkId]]]:
        """Read a page of states; return its last id, or ``None`` for the last page, and the links of its states."""
        run, begins, on_sqlite = self._stored.run_named, page.after is None, connection.dialect.name == "sqlite"
        wanted = Parameters(al_state=HealthState.FAILING.value)
        if not begins:
            wanted["al_after"] = page.after
        build = partial(self._statements.in_state, PAGE, begins=begins)
        texts = list(run(connection, wanted, ("in state", begins), build).scalars())
        last = texts[-1] if len(texts) == PAGE else None
        ids = list(_read_ids(texts, reader(self._stored.accounts.mapping.columns["id"].type, connection.dialect)))
        if not ids:
            return last, []
        build_links = partial(self._statements.of_ids, self._stored.vault.account_role, on_sqlite=on_sqlite)
        rows = run(connection, Parameters(al_ids=ids), ("of ids", on_sqlite), build_links)
        return last, [self._stored.of_row(row) for row in rows]

    def _ill_in(self, connection: sa.Connection, page: _Page) -> tuple[Any, list[StoredTokens[UserId, LinkId]]]:
        """Read a page; return its last id, or ``None`` for the last page, and the links in it that may be ill."""
        soon = self._stored.accounts.stamped(("expires_at",), present() + _APART)
        asked = Parameters({f"al_{role}": moment for role, moment in soon.items()})
        return self._read_page(connection, page, asked, self._statements.may_be_ill)

    async def _health(self, found: StoredTokens[UserId, LinkId]) -> Health:
        """Return the health of a link's grant: what :meth:`AccountLinker.credentials` would say of it."""
        known = found.health
        if known.state is HealthState.NEEDS_CONSENT or not found.is_spent or await self._may_renew(found):
            return known
        return Health(state=HealthState.NEEDS_CONSENT, since=found.expires_at)

    async def _may_renew(self, found: StoredTokens[UserId, LinkId]) -> bool:
        """Say whether the refresher renews from the access token, where there is no refresh token."""
        if not found.access_token:
            return False
        try:
            tokens, _ = await self._stored.opened(found)
            return tokens is not None and self._renewing.refresher.can_renew(found.account.provider, tokens)
        except Exception:  # noqa: BLE001  # unreadable, or what the source of the keys and the refresher raise
            return True  # which is nothing that the user could repair

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
        asked = Parameters(al_before=before, al_now=datetime.now(UTC))
        made = self._stored.accounts.stamped(("created_at",), before)
        asked.update({f"al_{role}": moment for role, moment in made.items()})
        return self._read_page(connection, page, asked, self._statements.idle)

    def _read_page(
        self, connection: sa.Connection, page: _Page, asked: Parameters, build: Callable[..., sa.Select[Any]]
    ) -> tuple[Any, list[StoredTokens[UserId, LinkId]]]:
        """Read a page of links; return its last id, or ``None`` for the last page, and what a query finds in it.

        Args:
            connection: The connection.
            page: The page.
            asked: What the query is asked with.
            build: Builds it.
        """
        run, on_sqlite, begins = self._stored.run_named, connection.dialect.name == "sqlite", page.after is None
        place = Parameters() if begins else Parameters(al_after=page.after)
        build_end = partial(self._statements.page_end, PAGE, begins=begins)
        last = run(connection, place, ("page end", begins), build_end).scalar()
        if last is not None:
            place["al_last"] = last
        shape = {"begins": begins, "ends": last is None, "on_sqlite": on_sqlite}
        query = partial(build, self._stored.vault.account_role, **shape)
        rows = run(connection, Parameters(place, **asked), (build.__name__, *shape.values()), query)
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


def _read_ids(texts: Sequence[str], to_id: Callable[[str], Any]) -> Iterator[Any]:
    """Yield ids; a text that is none belongs to a link of the past, when the column had another type."""
    for text in texts:
        with suppress(Exception):  # the column's own type may raise anything
            yield to_id(text)
