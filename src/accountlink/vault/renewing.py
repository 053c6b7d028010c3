"""Renew the tokens of links: one caller asks the provider, and everybody else gets what came of it.

The tokens are renewed in a task of its own, so that a cancelled caller takes nobody along. The task takes a lease in
the database, asks the provider while it holds no connection, and stores the answer in the row that still has the
tokens which were presented. Within one process the callers share a task; between processes the lease decides who asks.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Generic
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.transactions import Place, run
from accountlink.errors import (
    AccountLinkError,
    AccountNotFound,
    NeedsConsent,
    OutcomeUnknown,
    RefreshRefused,
    RefreshUnavailable,
    StoreBusy,
    StoreUnavailable,
)
from accountlink.linking.call import Call, Occasion
from accountlink.tables.rows import present, read_moment
from accountlink.values.credentials import TokenSet
from accountlink.values.events import EventType
from accountlink.values.health import Health, HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Parameters, Secret
from accountlink.vault.contents import AccessToken
from accountlink.vault.lease_statements import LeaseStatements
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, Refresher
from accountlink.vault.renewal import (
    LOST,
    OPAQUE_AT_MOST,
    SHORTEST_PAUSE,
    Facts,
    Step,
    next_step,
    pause_after,
)
from accountlink.vault.sealing import Sealing
from accountlink.vault.stored import StoredCredentials, StoredTokens, grant_in

if TYPE_CHECKING:
    from accountlink.vault.upkeep import Upkeep


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Hold the times of renewals.

    Attributes:
        lease: How long a lease lasts. Nobody else asks the provider until it ends.
        deadline: How long a call of the provider may take, from before the lease: shorter than the lease.
        poll: The first pause of a caller who waits for another process; each one is longer, up to ten times that.
        storing: How long new tokens are tried to be stored while the database cannot be reached.
    """

    lease: timedelta = timedelta(seconds=30)
    deadline: timedelta = timedelta(seconds=20)
    poll: timedelta = timedelta(milliseconds=100)
    storing: timedelta = timedelta(minutes=1)


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
        return moment + (self.now - self.host)


class RefresherFailed(Exception):
    """Carry an error that is no answer of a provider, but one of the refresher's own code.

    Attributes:
        error: The error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Renewing(Generic[UserId, LinkId]):
    """Give out valid tokens of one table of links, and renew those that are over.

    Args:
        stored: Reads and replaces the tokens.
        states: The table of renewals.
        refresher: Asks the providers.
        place: Returns what runs work on an engine.
        timing: The times.
        chance: Returns a random number from 0 to 1.
    """

    def __init__(
        self,
        stored: StoredCredentials[UserId, LinkId],
        states: sa.Table,
        refresher: Refresher,
        *,
        place: Callable[[AsyncEngine], Place],
        timing: Timing = Timing(),  # frozen
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.stored: Final = stored
        self.refresher: Final = refresher
        self.timing = timing
        self.states: Final = states
        self.place: Final = place
        self._chance: Final = chance
        self._tasks: Final[dict[Hashable, asyncio.Task[TokenSet | AccountLinkError | None]]] = {}

    @cached_property
    def statements(self) -> LeaseStatements:
        """The builder of the statements, made at the first call."""
        accounts = self.stored.accounts
        return LeaseStatements(accounts.mapping, self.states, accounts.outbox)

    @cached_property
    def upkeep(self) -> Upkeep[UserId, LinkId]:
        """The object that looks after the grants of all users."""
        from accountlink.vault.upkeep import Upkeep  # noqa: PLC0415  # which stands on this module

        return Upkeep(self)

    # -- one caller ---------------------------------------------------------------------------------------------------

    async def valid(
        self,
        engine: AsyncEngine,
        call: Call,
        *,
        min_valid: timedelta,
        require: frozenset[str],
        rejected: Secret | None,
    ) -> TokenSet:
        """Return tokens that are valid now, renewed if need be.

        Args:
            engine: The engine.
            call: Names the link.
            min_valid: How long the access token should last.
            require: The scopes that the caller needs.
            rejected: An access token that the API has just refused.

        Raises:
            AccountLinkError: See :meth:`AccountLinker.credentials`.
        """
        found = await self.read(engine, call)
        self.stored.check_scopes(found, require)
        access = await self.stored.vault.access_token(found.access_token, found.bound_to)
        facts = self._facts(found, access, rejected=rejected)
        step = next_step(facts, min_valid=min_valid, jitter=self._chance())
        if isinstance(step, Step) and step is not Step.GIVE and not await self._is_renewable(found):
            step = NeedsConsent(since=found.expires_at) if facts.is_over else Step.GIVE
        if isinstance(step, AccountLinkError):
            raise step
        if step is Step.RENEW:
            renewed = await asyncio.shield(self._task(engine, call, found))
            if isinstance(renewed, TokenSet):
                return _without_refresh(renewed)
            if facts.is_over and renewed is not None:
                raise _anew(renewed)
        elif step is Step.GIVE_AND_RENEW:
            _ = self._task(engine, call, found)  # which nobody waits for
        assert access is not None  # noqa: S101  # what is not over is there
        return self.stored.given(found, access)

    def _facts(
        self, found: StoredTokens[UserId, LinkId], access: AccessToken | None, *, rejected: Secret | None
    ) -> Facts:
        """Return what decides about a row's access token."""
        return Facts(
            now=found.now,
            expires_at=found.expires_at,
            issued_at=None if access is None else access.issued_at,
            is_missing=access is None,
            is_rejected=access is not None and self.stored.is_refused(access, rejected, now=found.now),
            state=found.state,
        )

    async def _is_renewable(self, found: StoredTokens[UserId, LinkId]) -> bool:
        """Say whether the tokens can be renewed at all."""
        tokens, _ = await self.stored.opened(found)
        return tokens is not None and self.refresher.can_renew(found.account.provider, tokens)

    def _task(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]
    ) -> asyncio.Task[TokenSet | AccountLinkError | None]:
        """Return the task that renews the tokens of a link, begun unless it is under way."""
        loop = asyncio.get_running_loop()
        key = (id(loop), id(engine.sync_engine), found.bound_to.parts(), str(found.account.id))
        known = self._tasks.get(key)
        if known is not None and not known.done():
            return known
        return self._begun(key, self._renewed(engine, call, found))

    def _begun(
        self, key: Hashable, work: Coroutine[Any, Any, TokenSet | AccountLinkError | None]
    ) -> asyncio.Task[TokenSet | AccountLinkError | None]:
        """Return a task that :meth:`aclose` waits for."""
        task = asyncio.get_running_loop().create_task(work, name="accountlink: renew tokens")
        self._tasks[key] = task
        task.add_done_callback(partial(self._ended, key))
        return task

    def _ended(self, key: Hashable, task: asyncio.Task[TokenSet | AccountLinkError | None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # reading it keeps asyncio from logging what every caller was told, or what nobody asked

    async def renew_idle(
        self, engine: AsyncEngine, found: StoredTokens[UserId, LinkId], *, before: datetime
    ) -> TokenSet | AccountLinkError | None:
        """Renew the tokens of a link, valid or not, unless they were obtained since a moment or cannot be renewed.

        Args:
            engine: The engine.
            found: The tokens as they stood in the row some time ago.
            before: The moment.

        Returns:
            The new tokens, the error of the renewal, or ``None``: nothing was due, or somebody else renews them.

        Raises:
            AccountNotFound: The link has been unlinked or transferred meanwhile.
            CredentialsUnreadable: A token cannot be opened.
            RefresherFailed: The refresher raised an error of its own.
        """
        call = Call(user_id=found.account.user_id, link_id=found.account.id)
        if not await self._is_idle(found, before=before):
            return None
        renewed = await self._renewed_beside(engine, call, found)
        if renewed is not None:
            return renewed
        found = await self.read(engine, call)  # the row has changed, perhaps only its key
        if _is_leased(found) or not await self._is_idle(found, before=before):
            return None
        return await self._renewed_beside(engine, call, found)

    async def _is_idle(self, found: StoredTokens[UserId, LinkId], *, before: datetime) -> bool:
        """Say whether a link's tokens were obtained before a moment, and can be renewed now."""
        if found.state.obstacle(found.now) is not None:
            return False
        tokens, access = await self.stored.opened(found)
        if tokens is None or access is None or (access.issued_at is not None and access.issued_at >= before):
            return False
        return self.refresher.can_renew(found.account.provider, tokens)

    async def _renewed_beside(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError | None:
        """Renew the tokens of a link unless somebody else does, in a task that a cancelled caller does not end."""
        return await asyncio.shield(self._begun(object(), self._renewed_alone(engine, call, found)))

    async def _renewed_alone(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError | None:
        """Renew the tokens of a link unless somebody else does."""
        asked = asyncio.get_running_loop().time()
        try:
            lease = await self._lease(engine, call, found)
            if lease is None:
                return None
            deadline = asked + self.timing.deadline.total_seconds()
            return await self._ask(engine, call, found, lease, deadline=deadline)
        except AccountLinkError as error:
            return error.with_traceback(None)
        except Exception as error:  # noqa: BLE001  # the code of an application may raise anything
            raise RefresherFailed(error) from None

    async def health(self, place: Place, call: Call) -> dict[LinkId, Health]:
        """Return the health of each live link of the call's user."""
        found = await self.stored.all_of(place, call, statements=self.statements)
        return {each.account.id: each.health for each in found}

    async def aclose(self) -> None:
        """Wait for the renewals of this event loop that are under way."""
        loop = asyncio.get_running_loop()
        while mine := [task for task in self._tasks.values() if task.get_loop() is loop and not task.done()]:
            await asyncio.wait(mine)

    # -- one renewal --------------------------------------------------------------------------------------------------

    async def read(self, engine: AsyncEngine, call: Call) -> StoredTokens[UserId, LinkId]:
        """Read the tokens of the one live link that a call names, with the state of their renewals."""
        return await self.stored.find(self.place(engine), call, statements=self.statements)

    async def _renewed(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError:
        """Renew the tokens of a link, or wait for whoever does. Errors are returned, so that each caller gets one."""
        named = call.changed(link_id=found.account.id, identity={})
        began = asyncio.get_running_loop().time()
        until = began + 2 * self.timing.lease.total_seconds()
        seen, pause = found, self.timing.poll.total_seconds()
        try:
            while True:
                asked = asyncio.get_running_loop().time()
                lease = None if _is_leased(found) else await self._lease(engine, named, found)
                if lease is not None:
                    deadline = asked + self.timing.deadline.total_seconds()
                    return await self._ask(engine, named, found, lease, deadline=deadline)
                if asked > until:
                    return RefreshUnavailable(retry_at=found.state.leased_until)
                if _is_leased(found) or found is not seen:
                    await asyncio.sleep(pause * (0.5 + self._chance() / 2))
                    pause = min(pause * 1.5, 10 * self.timing.poll.total_seconds())
                found = await self.read(engine, named)
                settled = await self._settled(found, seen)
                if settled is not None:
                    return settled
        except AccountLinkError as error:
            return error.with_traceback(None)

    async def _settled(
        self, found: StoredTokens[UserId, LinkId], seen: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError | None:
        """Return what another caller has brought about meanwhile: new tokens, or an error; or ``None``."""
        if _texts(found) != _texts(seen):
            tokens, access = await self.stored.opened(found)
            _, before = await self.stored.opened(seen)
            is_new = access is not None and (before is None or access.token != before.token)
            if tokens is not None and is_new and not found.is_over:
                return tokens
        return found.state.obstacle(found.now)

    async def _lease(self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]) -> Lease | None:
        """Take the lease, or return ``None``: somebody has it, or the row has other tokens."""
        holder = str(uuid4())
        leased = call.changed(
            kept={
                **found.seen,
                "al_grant_id": _grant(found),
                "al_lease_by": holder,
                **self._moments("until", self.timing.lease, on_sqlite=_on_sqlite(engine)),
            }
        )
        taken = await run(self.place(engine), partial(self._taken, call=leased), Patience())
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
        on_sqlite = connection.dialect.name == "sqlite"
        build = partial(self.statements.lease, on_sqlite=on_sqlite)
        return self.stored.run_named(connection, call.parameters, ("lease", on_sqlite), build).all()

    async def _ask(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId], lease: Lease, *, deadline: float
    ) -> TokenSet | AccountLinkError:
        """Ask the provider, with the lease and without a connection, and store what it answers."""
        provider = found.account.provider
        try:
            tokens, _ = await self.stored.opened(found)
            sealing = await self.stored.vault.ready()  # now, since nothing may fail between the answer and its storing
        except Exception:  # of the source of the keys: nobody was asked, and whoever comes next need not wait
            await self._give_back(engine, call, lease)
            raise
        if tokens is None:
            await self._give_back(engine, call, lease)
            return NeedsConsent(since=found.expires_at)
        left = timedelta(seconds=max(0.0, deadline - asyncio.get_running_loop().time()))
        try:
            async with asyncio.timeout_at(deadline):
                new = await self.refresher.renew(provider, tokens, deadline=left)
        except GrantEnded as ended:
            code = LOST if lease.uncertain else ended.provider_code
            return await self._failed(engine, call, found, lease, state=HealthState.NEEDS_CONSENT, code=code)
        except ClientRefused as refused:
            return await self._refused(engine, call, lease, code=refused.provider_code)
        except ProviderUnavailable as away:
            if away.opaque and lease.opaque + 1 >= OPAQUE_AT_MOST:
                return await self._failed(
                    engine, call, found, lease, state=HealthState.NEEDS_CONSENT, code="refused_without_a_code"
                )
            return await self._failed(engine, call, found, lease, state=HealthState.FAILING, away=away)
        except TimeoutError:
            slow = ProviderUnavailable(uncertain=True)
            return await self._failed(engine, call, found, lease, state=HealthState.FAILING, away=slow)
        except Exception:  # a refresher of the application's own, which may have asked the provider
            unknown = ProviderUnavailable(uncertain=True)
            await self._failed(engine, call, found, lease, state=HealthState.FAILING, away=unknown)
            raise
        try:
            return await self._store(engine, call, found, lease, sealing, presented=tokens, new=new)
        except AccountNotFound:  # unlinked or transferred meanwhile: the new tokens are nobody's
            await self._give_back(engine, call, lease)
            raise

    async def _store(
        self,
        engine: AsyncEngine,
        call: Call,
        found: StoredTokens[UserId, LinkId],
        lease: Lease,
        sealing: Sealing,
        *,
        presented: TokenSet,
        new: TokenSet,
    ) -> TokenSet | AccountLinkError:
        """Store new tokens, patiently: the provider may never give them out again, and may have ended the old ones."""
        ends = asyncio.get_running_loop().time() + self.timing.storing.total_seconds()
        pause = self.timing.poll.total_seconds()
        while True:
            try:
                return await self._stored_once(engine, call, found, lease, sealing, presented=presented, new=new)
            except (StoreBusy, StoreUnavailable, OutcomeUnknown):
                if asyncio.get_running_loop().time() > ends:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 20 * self.timing.poll.total_seconds())

    async def _stored_once(
        self,
        engine: AsyncEngine,
        call: Call,
        found: StoredTokens[UserId, LinkId],
        lease: Lease,
        sealing: Sealing,
        *,
        presented: TokenSet,
        new: TokenSet,
    ) -> TokenSet | AccountLinkError:
        """Store new tokens where the row still has those that were presented, however it is sealed by now."""
        new = _by_database(new, lease)
        accounts = self.stored.accounts
        replacing = accounts.calls.replacing(
            user_id=call.user_id, link_id=call.link_id, provider=None, tokens=new, seal=sealing
        )
        for _ in range(5):
            ready = await self.stored.fitting(
                found, replacing, sealing, presented=_known(presented), issued_at=lease.by_database(present())
            )
            if ready is None:
                break
            leased = ready.changed(
                kept={
                    **ready.kept,
                    "al_lease_by": lease.holder,
                    "al_grant_id": _grant(found),
                    **self._moments("wait", timedelta(0), on_sqlite=_on_sqlite(engine)),
                }
            )
            if await run(self.place(engine), partial(self._written, call=leased), Patience()):
                return await self._now(engine, call)
            found = await self.read(engine, call)
        await self._give_back(engine, call, lease)
        return await self._now(engine, call)

    def _written(self, connection: sa.Connection, call: Call) -> bool:
        run_named, shape, statements = self.stored.run_named, call.shape, self.statements
        if connection.dialect.name != "sqlite":
            build: Callable[[], sa.Executable] = partial(statements.store, shape)
            return run_named(connection, call.parameters, ("store", shape), build).first() is not None
        build = partial(statements.replace, shape)
        row = run_named(connection, call.parameters, ("replace", shape), build).first()
        if row is not None:
            run_named(connection, call.parameters, "gave back", partial(statements.give_back, renewed=True))
        return row is not None

    async def _now(self, engine: AsyncEngine, call: Call) -> TokenSet | AccountLinkError:
        """Return the row's tokens, as every caller would be given them from now on."""
        found = await self.read(engine, call)
        tokens, access = await self.stored.opened(found)
        if tokens is None or access is None or found.is_over:
            return found.state.obstacle(found.now) or RefreshUnavailable()
        return tokens

    async def _failed(
        self,
        engine: AsyncEngine,
        call: Call,
        found: StoredTokens[UserId, LinkId],
        lease: Lease,
        *,
        state: HealthState,
        code: str | None = None,
        away: ProviderUnavailable | None = None,
    ) -> TokenSet | AccountLinkError:
        """Record a failed renewal, if the row still has the tokens that were presented; else return the row's."""
        before, _ = await self.stored.opened(found)
        wait = self._wait(lease, away)
        opaque = lease.opaque + 1 if away is not None and away.opaque else 0
        uncertain = away is not None and away.uncertain
        for _ in range(5):
            told = call.changed(
                occasion=Occasion.of(lease.by_database(present()), {"provider_code": code})
                if self.stored.accounts.outbox is not None
                else None,
                kept={
                    **found.seen,
                    "al_lease_by": lease.holder,
                    "al_opaque": opaque,
                    "al_uncertain": uncertain,
                    "al_provider_code": code,
                    **self._moments("wait", wait, on_sqlite=_on_sqlite(engine)),
                },
            )
            recorded = await run(self.place(engine), partial(self._recorded, call=told, state=state), Patience())
            for retry_at, since in recorded:
                if state is HealthState.NEEDS_CONSENT:
                    return NeedsConsent(provider_code=code, since=since)
                return RefreshUnavailable(retry_at=retry_at)
            found = await self.read(engine, call)
            tokens, _ = await self.stored.opened(found)
            if tokens is None or before is None or _known(tokens) != _known(before):
                break  # linked again, or renewed by somebody else
            if found.lease_by != lease.holder:
                break  # somebody else has the lease by now, and what they find out counts
        await self._give_back(engine, call, lease)
        return await self._now(engine, call)

    def _recorded(
        self, connection: sa.Connection, call: Call, state: HealthState
    ) -> list[tuple[datetime | None, datetime | None]]:
        accounts, on_sqlite = self.stored.accounts, connection.dialect.name == "sqlite"
        build = partial(self.statements.fail, state, on_sqlite=on_sqlite)
        rows = self.stored.run_named(connection, call.parameters, ("fail", state, on_sqlite), build).all()
        if rows and on_sqlite and state is HealthState.NEEDS_CONSENT and accounts.outbox is not None:
            for link in accounts.accounts(connection, call):
                accounts.tell(connection, EventType.CONSENT_NEEDED, link, call)
        return [(read_moment(row.retry_at), read_moment(row.since)) for row in rows]

    async def _refused(self, engine: AsyncEngine, call: Call, lease: Lease, *, code: str) -> RefreshRefused:
        """Give the lease back after the provider refused the application's client."""
        wait = pause_after(3, jitter=self._chance())
        told = call.changed(
            kept={
                "al_lease_by": lease.holder,
                "al_provider_code": code,
                **self._moments("wait", wait, on_sqlite=_on_sqlite(engine)),
            }
        )

        def refused(connection: sa.Connection) -> bool:
            on_sqlite = connection.dialect.name == "sqlite"
            build = partial(self.statements.refuse, on_sqlite=on_sqlite)
            self.stored.run_named(connection, told.parameters, ("refuse", on_sqlite), build)
            return True

        await run(self.place(engine), refused, Patience())
        return RefreshRefused(provider_code=code)

    async def _give_back(self, engine: AsyncEngine, call: Call, lease: Lease) -> None:
        """Give the lease back, and leave the rest of the state as it is."""
        told = Parameters(call.changed(kept={"al_lease_by": lease.holder}).parameters)

        def given(connection: sa.Connection) -> bool:
            build = partial(self.statements.give_back, renewed=False)
            self.stored.run_named(connection, told, "give back", build)
            return True

        await run(self.place(engine), given, Patience())

    # -- parts --------------------------------------------------------------------------------------------------------

    def _wait(self, lease: Lease, away: ProviderUnavailable | None) -> timedelta:
        """Return how long nobody asks the provider again: as long as it wants, or longer with each failure."""
        if away is not None and away.retry_at is not None:
            return max(SHORTEST_PAUSE, away.retry_at - present())
        return pause_after(lease.failures, jitter=self._chance())

    def _moments(self, name: str, span: timedelta, *, on_sqlite: bool) -> dict[str, Any]:
        """Return the parameters of a moment in the future: PostgreSQL adds the span to its own clock."""
        if not on_sqlite:
            return {f"al_{name}": span}
        now = datetime.now(UTC)
        return {"al_now": now, f"al_{name}": now + span}


def _on_sqlite(engine: AsyncEngine) -> bool:
    return engine.dialect.name == "sqlite"


def _is_leased(found: StoredTokens[Any, Any]) -> bool:
    until = found.state.leased_until
    return until is not None and until > found.now


def _texts(found: StoredTokens[Any, Any]) -> tuple[str | None, str | None]:
    return found.access_token, found.refresh_token


def _grant(found: StoredTokens[Any, Any]) -> str:
    return grant_in(found.access_token, found.refresh_token)


def _known(tokens: TokenSet) -> Secret:
    """Return the token that is presented to the provider."""
    return tokens.refresh_token or tokens.access_token


def _by_database(new: TokenSet, lease: Lease) -> TokenSet:
    """Return new tokens whose end is by the database's clock, whatever this machine's clock says."""
    if new.expires_at is None:
        return new
    return _changed(new, expires_at=lease.by_database(new.expires_at))


def _without_refresh(tokens: TokenSet) -> TokenSet:
    """Return what a caller gets of tokens: nothing of the refresh token, nor of the client that it belongs to."""
    return _changed(tokens, refresh_token=None, refresh_expires_at=None, client=None)


def _changed(tokens: TokenSet, **changes: Any) -> TokenSet:
    """Return a copy of a set of tokens with some fields changed."""
    fields: dict[str, Any] = {
        "access_token": tokens.access_token.reveal(),
        "refresh_token": None if tokens.refresh_token is None else tokens.refresh_token.reveal(),
        "expires_at": tokens.expires_at,
        "scopes": tokens.scopes,
        "token_type": tokens.token_type,
        "extra": {name: secret.reveal() for name, secret in tokens.extra.items()},
        "client": tokens.client,
        "refresh_expires_at": tokens.refresh_expires_at,
    }
    return TokenSet(**(fields | changes))


def _anew(error: AccountLinkError) -> AccountLinkError:
    """Return a copy of an error that several callers raise, so that their tracebacks do not grow into one."""
    again = copy.copy(error)
    return again.with_traceback(None)
