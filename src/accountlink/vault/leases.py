"""Take leases, record under them what a renewal came to, and give them back.

Who has the lease of a link asks the provider, and nobody else does until it ends. Each method is one statement on
PostgreSQL, in a transaction of its own: nothing is held in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, Final, Generic
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.transactions import Place, run
from accountlink.errors import StoreBusy
from accountlink.linking.call import Call, Occasion
from accountlink.tables.rows import present, read_moment
from accountlink.values.events import EventType
from accountlink.values.health import HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Parameters
from accountlink.vault.lease_statements import LeaseStatements
from accountlink.vault.stored import StoredCredentials, StoredTokens, grant_in


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Hold a lease that was taken.

    Attributes:
        holder: The random name under which the lease was taken.
        failures: How many renewals have failed in a row before this one.
        opaque: How many of them were refused without an OAuth error code.
        uncertain: Whether the provider may have renewed the tokens already, in an answer that was lost.
        now: The database's moment at which the lease was taken, aware.
        host: This machine's moment when the answer came, aware.
    """

    holder: str
    failures: int
    opaque: int
    uncertain: bool
    now: datetime
    host: datetime

    def by_database(self, moment: datetime) -> datetime:
        """Return a moment of this machine's clock by the database's clock."""
        try:
            return moment + (self.now - self.host)
        except OverflowError:  # at the end of time no clock matters
            return moment


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Hold how a renewal failed.

    Attributes:
        state: The health of the grant from now on: ``FAILING`` or ``NEEDS_CONSENT``.
        wait: How long nobody asks the provider again.
        code: The provider's code; ``None`` where it gave none.
        opaque: How many renewals in a row, this one included, were refused without an OAuth error code.
        uncertain: Whether the provider may have renewed the tokens in an answer that was lost.
    """

    state: HealthState
    wait: timedelta
    code: str | None = None
    opaque: int = 0
    uncertain: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Hold what the database has recorded of a failure.

    Attributes:
        retry_at: When the next attempt may be made, aware.
        since: When the grant's state began, aware.
    """

    retry_at: datetime | None
    since: datetime | None


class Leases(Generic[UserId, LinkId]):
    """Take and give back the leases of one table of links.

    Args:
        stored: Reads and replaces the tokens.
        states: The table of renewals.
        place: Returns what runs work on an engine.
    """

    def __init__(
        self, stored: StoredCredentials[UserId, LinkId], states: sa.Table, *, place: Callable[[AsyncEngine], Place]
    ) -> None:
        self._stored: Final = stored
        self._states: Final = states
        self.place: Final = place

    @cached_property
    def statements(self) -> LeaseStatements:
        """The builder of the statements, made at the first call."""
        accounts = self._stored.accounts
        return LeaseStatements(accounts.mapping, self._states, accounts.outbox)

    async def take(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId], *, lasting: timedelta
    ) -> Lease | None:
        """Take the lease of a link, or return ``None``: somebody has it, or the row has other tokens.

        Args:
            engine: The engine.
            call: Names the link.
            found: The tokens as they were read.
            lasting: How long the lease lasts, by the database's clock.

        Raises:
            StoreBusy: SQLite's lock for writing was not to be had in time.
        """
        holder = str(uuid4())
        leased = call.changed(
            kept={
                **found.seen,
                "al_grant_id": grant_id_of(found),
                "al_lease_by": holder,
                **_moment("until", lasting, engine),
            }
        )
        place = self.place(engine)
        try:
            taken = await run(place, partial(leased.within, place, self._taken), Patience())
        except StoreBusy:  # others are at the row: whoever waits looks at it again
            if engine.dialect.name == "sqlite":
                raise  # they are at the whole database, and may be the caller's own session, which waits for this call
            return None
        for row in taken:
            return Lease(
                holder=holder,
                failures=row.failures,
                opaque=row.opaque,
                uncertain=bool(row.uncertain),
                now=read_moment(row.now) or present(),
                host=present(),
            )
        return None

    def _taken(self, connection: sa.Connection, call: Call) -> Sequence[sa.Row[Any]]:
        on_sqlite, bounded = connection.dialect.name == "sqlite", call.shape.bounded
        build = partial(self.statements.lease, on_sqlite=on_sqlite, bounded=bounded)
        return self._stored.run_named(connection, call.parameters, ("lease", on_sqlite, bounded), build).all()

    async def store(
        self,
        engine: AsyncEngine,
        ready: Call,
        lease: Lease,
        found: StoredTokens[UserId, LinkId],
        *,
        wait: timedelta,
        is_over: bool,
    ) -> bool:
        """Store new tokens and give the lease back, and say whether the row still had what was presented.

        Args:
            engine: The engine.
            ready: The tokens, sealed for the row as it was found.
            lease: The lease.
            found: The row as it was found.
            wait: How long nobody asks again for tokens that are over already.
            is_over: Whether the new tokens are.
        """
        kept = {
            **ready.kept,
            "al_lease_by": lease.holder,
            "al_grant_id": grant_id_of(found),
            **_moment("wait", wait, engine),
        }
        written = partial(self._written, call=ready.changed(kept=kept), is_over=is_over)
        return await run(self.place(engine), written, Patience())

    def _written(self, connection: sa.Connection, call: Call, *, is_over: bool) -> bool:
        run_named, shape, statements = self._stored.run_named, call.shape, self.statements
        if connection.dialect.name != "sqlite":
            build: Callable[[], sa.Executable] = partial(statements.store, shape, is_over=is_over)
            return run_named(connection, call.parameters, ("store", shape, is_over), build).first() is not None
        build = partial(statements.replace, shape)
        row = run_named(connection, call.parameters, ("replace", shape), build).first()
        if row is not None:
            build = partial(statements.renewed_on_sqlite, is_over=is_over)
            run_named(connection, call.parameters, ("gave back", is_over), build)
        return row is not None

    async def fail(
        self, engine: AsyncEngine, call: Call, lease: Lease, found: StoredTokens[UserId, LinkId], failure: Failure
    ) -> Recorded | None:
        """Record how a renewal failed, and give the lease back.

        Returns:
            What was recorded, or ``None``: the row has not the tokens any more that were found in it.
        """
        told = call.changed(
            occasion=Occasion.of(lease.by_database(present()), {"provider_code": failure.code})
            if self._stored.accounts.outbox is not None
            else None,
            kept={
                **found.seen,
                "al_lease_by": lease.holder,
                "al_grant_id": grant_id_of(found),
                "al_opaque": failure.opaque,
                "al_uncertain": failure.uncertain,
                "al_provider_code": failure.code,
                **_moment("wait", failure.wait, engine),
            },
        )
        for row in await run(self.place(engine), partial(self._failed, call=told, state=failure.state), Patience()):
            return Recorded(retry_at=read_moment(row.retry_at), since=read_moment(row.since))
        return None

    def _failed(self, connection: sa.Connection, call: Call, state: HealthState) -> Sequence[sa.Row[Any]]:
        accounts, on_sqlite = self._stored.accounts, connection.dialect.name == "sqlite"
        build = partial(self.statements.fail, state, on_sqlite=on_sqlite)
        rows = self._stored.run_named(connection, call.parameters, ("fail", state, on_sqlite), build).all()
        if rows and on_sqlite and state is HealthState.NEEDS_CONSENT and accounts.outbox is not None:
            for link in accounts.accounts(connection, call):
                accounts.tell(connection, EventType.CONSENT_NEEDED, link, call)
        return rows

    async def refuse(self, engine: AsyncEngine, call: Call, lease: Lease, *, code: str, wait: timedelta) -> None:
        """Record that the provider refused the application's client, and give the lease back."""
        kept = {"al_lease_by": lease.holder, "al_provider_code": code, **_moment("wait", wait, engine)}
        told = call.changed(kept=kept)

        def refused(connection: sa.Connection) -> bool:
            on_sqlite = connection.dialect.name == "sqlite"
            build = partial(self.statements.refuse, on_sqlite=on_sqlite)
            self._stored.run_named(connection, told.parameters, ("refuse", on_sqlite), build)
            return True

        await run(self.place(engine), refused, Patience())

    async def give_back(self, engine: AsyncEngine, call: Call, lease: Lease) -> None:
        """Give the lease back, and leave the rest of the state as it is."""
        told = Parameters(call.changed(kept={"al_lease_by": lease.holder}).parameters)

        def given(connection: sa.Connection) -> bool:
            self._stored.run_named(connection, told, "give back", self.statements.give_back)
            return True

        await run(self.place(engine), given, Patience())


def grant_id_of(found: StoredTokens[Any, Any]) -> str:
    """Return the grant id of a row's tokens."""
    return grant_in(found.access_token, found.refresh_token)


def _moment(name: str, span: timedelta, engine: AsyncEngine) -> dict[str, Any]:
    """Return the parameters of a moment in the future: PostgreSQL adds the span to its own clock."""
    if engine.dialect.name != "sqlite":
        return {f"al_{name}": span}
    now = datetime.now(UTC)
    return {"al_now": now, f"al_{name}": now + span}
