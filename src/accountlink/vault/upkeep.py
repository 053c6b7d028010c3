"""Look after the grants of all users: list those that do not work, and renew those that nobody uses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Generic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.transactions import read
from accountlink.errors import AccountNotFound, CredentialsUnreadable
from accountlink.linking.call import Call
from accountlink.tables.id_text import reader
from accountlink.tables.rows import present, read_moment
from accountlink.values.credentials import TokenSet
from accountlink.values.health import Health, HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Parameters
from accountlink.vault.lease_statements import UpkeepStatements
from accountlink.vault.renewing import Renewing
from accountlink.vault.stored import grant_in

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
        after = ""
        while True:
            work = partial(self._page_of_states, engine=engine, states=states, after=after)
            last, found = await read(self._renewing.place(engine), work)
            for each in found:
                yield each
            if last is None:
                return
            after = last

    def _page_of_states(
        self, connection: sa.Connection, engine: AsyncEngine, states: frozenset[HealthState], after: str
    ) -> tuple[str | None, list[tuple[LinkId, Health]]]:
        """Read one page; return the last id in it, or ``None`` after the last page."""
        run = self._stored.run_named
        wanted = Parameters(al_states=sorted(state.value for state in states), al_after=after)
        rows = run(connection, wanted, "unhealthy", partial(self._statements.in_states, PAGE)).all()
        if not rows:
            return None, []
        to_id = reader(self._stored.accounts.mapping.columns["id"].type, engine.dialect)
        known = {to_id(row.link_id): row for row in rows}
        links = run(connection, Parameters(al_ids=list(known)), "of ids", self._statements.of_ids)
        live = {row.id: grant_in(row.access_token, row.refresh_token) for row in links}
        now = datetime.now(UTC)
        found = [
            (link_id, _health(row, now=now)) for link_id, row in known.items() if live.get(link_id) == row.grant_id
        ]
        return (rows[-1].link_id if len(rows) == PAGE else None), found

    # -- keeping alive ------------------------------------------------------------------------------------------------

    async def keep_alive(self, engine: AsyncEngine, *, idle: timedelta, limit: int | None) -> KeptAlive:
        """Renew the grants that were not renewed, and whose links were not linked again, for some time."""
        before = present() - idle
        counted: Counter[str] = Counter()
        after: Any = None
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            work = partial(self._idle_page, before=before, after=after, size=size)
            rows = await read(self._renewing.place(engine), work)
            gate = asyncio.Semaphore(AT_ONCE)
            became = await asyncio.gather(*(self._kept(engine, row, gate, before=before) for row in rows))
            counted.update(each for each in became if each is not None)
            if left is not None:
                left -= sum(each is not None for each in became)
            if len(rows) < size:
                break
            after = rows[-1].id
        return KeptAlive(**counted)

    def _idle_page(self, connection: sa.Connection, before: datetime, after: Any, size: int) -> list[sa.Row[Any]]:
        accounts = self._stored.accounts
        on_sqlite, begins = connection.dialect.name == "sqlite", after is None
        parameters = Parameters(al_before=before, al_size=size, al_now=datetime.now(UTC))
        parameters.update({f"al_{role}": value for role, value in accounts.stamped(("created_at",), before).items()})
        if not begins:
            parameters["al_after"] = after
        build = partial(self._statements.idle, begins=begins, on_sqlite=on_sqlite)
        return list(self._stored.run_named(connection, parameters, ("idle", begins, on_sqlite), build))

    async def _kept(
        self, engine: AsyncEngine, row: sa.Row[Any], gate: asyncio.Semaphore, *, before: datetime
    ) -> str | None:
        """Renew one grant, and return the field of the count that it belongs to; ``None`` if nothing was due."""
        call = Call(user_id=row.user_id, link_id=row.id)
        async with gate:
            try:
                renewed = await self._renewing.renew_idle(engine, call, before=before)
            except AccountNotFound:  # unlinked or transferred meanwhile
                return None
            except CredentialsUnreadable:
                return "unreadable"
        if renewed is None:
            return None
        if isinstance(renewed, TokenSet):
            return "renewed"
        return "ended" if renewed.code == "needs_consent" else "failed"


def _health(row: sa.Row[Any], *, now: datetime) -> Health:
    retry_at = read_moment(row.retry_at)
    return Health(
        state=HealthState(row.state),
        provider_code=row.provider_code or row.refused,
        since=read_moment(row.since),
        retry_at=None if retry_at is None or retry_at <= now else retry_at,
    )
