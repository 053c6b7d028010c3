"""Renew the tokens of links: one caller asks the provider, and everybody else gets what came of it.

The tokens are renewed in a task of its own, so that a cancelled caller takes nobody along. The task takes a lease in
the database, asks the provider while it holds no connection, and stores the answer in the row that still has the
tokens which were presented. Within one process the callers share a task; between processes the lease decides who asks.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.transactions import Place
from accountlink.database.violations import FAILURES
from accountlink.database.violations import read as read_failure
from accountlink.errors import (
    AccountLinkError,
    AccountNotFound,
    ConfigurationError,
    NeedsConsent,
    OutcomeUnknown,
    RefreshRefused,
    RefreshUnavailable,
    StoreBusy,
    StoreUnavailable,
)
from accountlink.linking.call import Call
from accountlink.tables.rows import present
from accountlink.values.credentials import TokenSet
from accountlink.values.facts import Trouble
from accountlink.values.health import HealthState
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.secrecy import Secret, revealed
from accountlink.values.text import unstorable
from accountlink.vault.contents import AccessToken
from accountlink.vault.leases import Failure, Lease, Leases
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, Refresher
from accountlink.vault.renewal import (
    LONGEST_WAIT,
    LOST,
    OPAQUE_AT_MOST,
    OPAQUE_LATER,
    SHORTEST_PAUSE,
    Facts,
    Step,
    next_step,
    pause_after,
)
from accountlink.vault.sealing import Sealing
from accountlink.vault.stored import ATTEMPTS, Opened, StoredCredentials, StoredTokens

if TYPE_CHECKING:
    from accountlink.vault.upkeep import Upkeep

T = TypeVar("T")
_Task: TypeAlias = "asyncio.Task[TokenSet | AccountLinkError | None]"
LONGEST_CODE: Final = 200
"""The number of characters of a provider's code that are stored."""
_LASTING: Final = ("22", "23")
"""The classes of SQLSTATEs that say no to a value: it can never be stored. Whatever else fails may be mended soon."""


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
class _Asked:
    """Hold what a provider was asked with, and everything that is needed to store its answer.

    Attributes:
        call: Names the link.
        lease: The lease.
        tokens: The tokens that were presented.
        contents: What the link's columns contained.
        sealing: Seals the new tokens.
    """

    call: Call
    lease: Lease
    tokens: TokenSet
    contents: Opened
    sealing: Sealing


class _KeysAway(Exception):
    """Raised when a row that was sealed again cannot be opened; the error below it is the caller's to see."""


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
        self.leases: Final = Leases(stored, states, place=place)
        self._chance: Final = chance
        self._tasks: Final[dict[asyncio.AbstractEventLoop, dict[Hashable, _Task]]] = {}

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
        if isinstance(step, Step) and step is not Step.GIVE and not await self._is_renewable(found, facts):
            step = NeedsConsent(since=found.expires_at) if facts.is_over else Step.GIVE
        if isinstance(step, AccountLinkError):
            raise _naming(found, step)
        if step is Step.RENEW:
            renewed = await self._outcome(self._task(engine, call, found), facts)
            if isinstance(renewed, TokenSet):
                self.stored.check_granted(renewed.scopes, require, link_id=found.account.id)
                return _without_refresh(renewed)
            if facts.is_over and renewed is not None:
                raise _naming(found, _anew(renewed))
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

    async def _is_renewable(self, found: StoredTokens[UserId, LinkId], facts: Facts) -> bool:
        """Say whether the tokens can be renewed at all. Why they cannot is nobody's concern while the token lives."""
        try:
            tokens, _ = await self.stored.opened(found)
            return tokens is not None and self.refresher.can_renew(found.account.provider, tokens)
        except Exception:  # unreadable, an unknown client, or whatever the source of the keys and the refresher raise
            if facts.is_over:
                raise
            return False

    async def _outcome(self, task: _Task, facts: Facts) -> TokenSet | AccountLinkError | None:
        """Wait for a renewal; whatever it raises is raised only to a caller whose token is over."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled() or _is_cancelled():
                raise
            return RefreshUnavailable()  # somebody cancelled the renewal, and not this caller
        except Exception:  # of the application's own refresher, or its source of keys
            if facts.is_over:
                raise
            return None

    def _task(self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]) -> _Task:
        """Return the task that renews the tokens of a link, begun unless it is under way."""
        key = (id(engine.sync_engine), found.bound_to.parts(), str(found.account.id))
        known = self._tasks.get(asyncio.get_running_loop(), {}).get(key)
        if known is not None and not known.done():
            return known
        return self._begun(key, self._renewed(engine, call, found))

    def _begun(self, key: Hashable, work: Coroutine[Any, Any, TokenSet | AccountLinkError | None]) -> _Task:
        """Return a task that :meth:`aclose` waits for."""
        loop = asyncio.get_running_loop()
        if loop not in self._tasks:
            for other in [each for each in tuple(self._tasks) if each.is_closed()]:
                self._tasks.pop(other, None)  # a loop that was closed with a renewal under way ends none of them
        mine = self._tasks.setdefault(loop, {})
        mine[key] = task = loop.create_task(work, name="accountlink: renew tokens")
        task.add_done_callback(partial(self._ended, loop, key))
        return task

    def _ended(self, loop: asyncio.AbstractEventLoop, key: Hashable, task: _Task) -> None:
        mine = self._tasks.get(loop, {})
        if mine.get(key) is task:
            del mine[key]
        if not mine:
            self._tasks.pop(loop, None)
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
        if found.state.is_leased(found.now) or not await self._is_idle(found, before=before):
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
            lease = await self.leases.take(engine, call, found, lasting=self.timing.lease)
            if lease is None:
                return None
            deadline = asked + self.timing.deadline.total_seconds()
            return await self._ask(engine, call, found, lease, deadline=deadline)
        except AccountLinkError as error:
            return error.with_traceback(None)
        except Exception as error:  # noqa: BLE001  # the code of an application may raise anything
            raise RefresherFailed(error) from None

    async def aclose(self) -> None:
        """Wait for the renewals of this event loop that are under way."""
        loop = asyncio.get_running_loop()
        while under_way := [task for task in self._tasks.get(loop, {}).values() if not task.done()]:
            await asyncio.wait(under_way)

    # -- one renewal --------------------------------------------------------------------------------------------------

    async def read(self, engine: AsyncEngine, call: Call) -> StoredTokens[UserId, LinkId]:
        """Read the tokens of the one live link that a call names, with the state of their renewals."""
        return await self.stored.find(self.place(engine), call, statements=self.leases.statements)

    async def _again(
        self, engine: AsyncEngine, call: Call, seen: StoredTokens[UserId, LinkId]
    ) -> StoredTokens[UserId, LinkId]:
        """Read a link's tokens again.

        Raises:
            AccountNotFound: The link has gone, and its id may belong to another link by now, as in SQLite.
        """
        found = await self.read(engine, call)
        if found.bound_to.parts() != seen.bound_to.parts():
            raise AccountNotFound
        return found

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
                lease = None
                if not found.state.is_leased(found.now):
                    lease = await self.leases.take(engine, named, found, lasting=self.timing.lease)
                if lease is not None:
                    deadline = asked + self.timing.deadline.total_seconds()
                    return await self._ask(engine, named, found, lease, deadline=deadline)
                if asked > until:
                    return RefreshUnavailable(retry_at=found.state.leased_until)
                if found.state.is_leased(found.now) or found is not seen:
                    await asyncio.sleep(pause * (0.5 + self._chance() / 2))
                    pause = min(pause * 1.5, self._longest_pause)
                found = await self._again(engine, named, seen)
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

    async def _ask(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId], lease: Lease, *, deadline: float
    ) -> TokenSet | AccountLinkError:
        """Ask the provider, with the lease and without a connection, and store what it answers."""
        asked = await self._prepared(engine, call, found, lease, deadline=deadline)
        if not isinstance(asked, _Asked):
            return asked
        answer = await self._answer(found.account.provider, asked, deadline=deadline)
        try:
            if not isinstance(answer, TokenSet):
                return await self._fallen(engine, asked, found, answer)
            return await self._store(engine, asked, found, answer)
        except AccountNotFound:  # unlinked or transferred meanwhile: the new tokens are nobody's
            await self.leases.give_back(engine, call, lease)
            raise
        except _KeysAway as away:
            raise (away.__cause__ or away) from None
        except Exception as error:
            if answer is error or isinstance(error, (StoreBusy, StoreUnavailable, OutcomeUnknown)):
                raise
            return await self._fallen(engine, asked, found, error)  # it can never be stored: nobody asks again at once

    async def _stored_late(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError | None:
        """Return what the former holder of a lapsed lease stores at last, or ``None``.

        That caller may live, and have new tokens which it could not store, because the database was away. It tries
        again at least as often as this method waits; the tokens in the row may be spent.
        """
        await asyncio.sleep(2 * self._longest_pause)
        now = await self._again(engine, call, found)
        if (settled := await self._settled(now, found)) is not None or _texts(now) == _texts(found):
            return settled
        (new, _), (old, _) = await self.stored.opened(now), await self.stored.opened(found)
        is_other = new is None or old is None or _known(new) != _known(old)
        return RefreshUnavailable() if is_other else None

    @property
    def _longest_pause(self) -> float:
        """Seconds: the longest pause between two attempts, of waiting callers and of storing."""
        return 10 * self.timing.poll.total_seconds()

    async def _prepared(
        self, engine: AsyncEngine, call: Call, found: StoredTokens[UserId, LinkId], lease: Lease, *, deadline: float
    ) -> _Asked | TokenSet | AccountLinkError:
        """Fetch everything that the storing of an answer will need, or give the lease back."""
        try:
            late = None if found.lease_by is None else await self._stored_late(engine, call, found)
            contents = await self.stored.contents(found)
            tokens = self.stored.together(found, *contents)
            is_renewable = tokens is not None and self.refresher.can_renew(found.account.provider, tokens)
            sealing = await self.stored.vault.ready()  # now, since nothing may fail between the answer and its storing
        except Exception:  # nobody was asked: the next caller need not wait for the end of the lease
            await self.leases.give_back(engine, call, lease)
            raise
        in_time = asyncio.get_running_loop().time() < deadline
        if late is None and tokens is not None and is_renewable and in_time:
            return _Asked(call=call, lease=lease, tokens=tokens, contents=contents, sealing=sealing)
        await self.leases.give_back(engine, call, lease)
        return late or (RefreshUnavailable() if is_renewable else NeedsConsent(since=found.expires_at))

    async def _answer(self, provider: str, asked: _Asked, *, deadline: float) -> TokenSet | Exception:
        """Return the provider's answer, or how the call failed."""
        left = timedelta(seconds=deadline - asyncio.get_running_loop().time())
        lost = ProviderUnavailable(uncertain=True)
        try:
            async with asyncio.timeout_at(deadline):
                return _checked(await self.refresher.renew(provider, asked.tokens, deadline=left), provider)
        except TimeoutError:
            return lost
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return lost  # something of the refresher's own was cancelled
        except Exception as error:  # noqa: BLE001  # a refresher of the application's own may raise anything
            return error

    async def _fallen(
        self, engine: AsyncEngine, asked: _Asked, found: StoredTokens[UserId, LinkId], failure: Exception
    ) -> TokenSet | AccountLinkError:
        """Record how a renewal failed, and raise what is not one of the three known ways."""
        lease = asked.lease
        if isinstance(failure, ClientRefused):
            code, wait = _code(failure.provider_code), pause_after(3, jitter=self._chance())
            await self.leases.refuse(engine, asked.call, lease, code=code, wait=wait)
            return RefreshRefused(provider_code=code)
        away = failure if isinstance(failure, ProviderUnavailable) else ProviderUnavailable(uncertain=True)
        ended = None
        if isinstance(failure, GrantEnded):
            ended = LOST if lease.uncertain else _code(failure.provider_code)
        elif away.opaque and lease.opaque + 1 >= OPAQUE_AT_MOST:
            ended = "refused_without_a_code"
        if ended is not None:
            wait = pause_after(lease.failures, jitter=self._chance())
            end = Failure(state=HealthState.NEEDS_CONSENT, code=ended, wait=wait)
            return await self._patiently(partial(self._failed, engine, asked, found, end))
        passing = Failure(
            state=HealthState.FAILING,
            wait=self._wait(lease, away),
            opaque=lease.opaque + 1 if away.opaque else 0,
            uncertain=away.uncertain,
        )
        recorded = await self._failed(engine, asked, found, passing)
        if isinstance(failure, ProviderUnavailable):
            return recorded
        raise failure

    async def _store(
        self, engine: AsyncEngine, asked: _Asked, found: StoredTokens[UserId, LinkId], new: TokenSet
    ) -> TokenSet | AccountLinkError:
        """Store new tokens, patiently: the provider may never give them out again, and may have ended the old ones."""
        return await self._patiently(partial(self._stored_once, engine, asked, found, new))

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work until the database has done it, or has been away for too long.

        A cancellation does not throw away what the work is about: the event loop ends, perhaps, and there is time for
        one more attempt.
        """
        ends = asyncio.get_running_loop().time() + self.timing.storing.total_seconds()
        pause = self.timing.poll.total_seconds()
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                result = await work()
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    raise
                cancelled = error
                continue
            except (StoreBusy, StoreUnavailable, OutcomeUnknown, ConfigurationError, _KeysAway, *FAILURES) as error:
                if cancelled is not None:
                    raise cancelled from None
                if not _may_pass(error) or asyncio.get_running_loop().time() > ends:
                    raise
            else:
                if cancelled is not None:
                    raise cancelled
                return result
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._longest_pause)

    async def _stored_once(
        self, engine: AsyncEngine, asked: _Asked, found: StoredTokens[UserId, LinkId], new: TokenSet
    ) -> TokenSet | AccountLinkError:
        """Store new tokens where the row still has those that were presented, however it is sealed by now."""
        call, lease, now = asked.call, asked.lease, asked.lease.by_database(present())
        new = _by_database(new, lease)
        is_over = new.expires_at is not None and new.expires_at <= now
        new = self._storable(new)
        accounts = self.stored.accounts
        replacing = accounts.calls.replacing(
            user_id=call.user_id, link_id=call.link_id, provider=None, tokens=new, seal=asked.sealing
        )
        contents: Opened = asked.contents
        wait = pause_after(lease.failures, jitter=self._chance())
        for _ in range(ATTEMPTS):
            ready = self.stored.fitting(
                found, replacing, asked.sealing, contents, presented=_known(asked.tokens), issued_at=now
            )
            if ready is None:
                break
            if await self.leases.store(engine, ready, lease, found, wait=wait, is_over=is_over):
                return await self._now(engine, call, found)
            found = await self._again(engine, call, found)
            try:
                contents = await self.stored.contents(found)
            except Exception as error:  # sealed again with a key that this process lacks yet, or cannot fetch
                raise _KeysAway from error
        await self.leases.give_back(engine, call, lease)
        return await self._now(engine, call, found)

    async def _now(
        self, engine: AsyncEngine, call: Call, seen: StoredTokens[UserId, LinkId]
    ) -> TokenSet | AccountLinkError:
        """Return the row's tokens, as every caller would be given them from now on."""
        found = await self._again(engine, call, seen)
        tokens, access = await self.stored.opened(found)
        if tokens is None or access is None or found.is_over:
            return found.state.obstacle(found.now) or RefreshUnavailable()
        return tokens

    async def _failed(
        self, engine: AsyncEngine, asked: _Asked, found: StoredTokens[UserId, LinkId], failure: Failure
    ) -> TokenSet | AccountLinkError:
        """Record a failed renewal, if the row still has the tokens that were presented; else return the row's."""
        call, lease = asked.call, asked.lease
        newer: TokenSet | None = None
        for _ in range(ATTEMPTS):
            recorded = await self.leases.fail(engine, call, lease, found, failure)
            if recorded is not None:
                if newer is not None and not found.is_over:
                    return newer  # linked again without a refresh token: the one that failed stayed
                if failure.state is HealthState.NEEDS_CONSENT:
                    return NeedsConsent(provider_code=failure.code, since=recorded.since)
                return RefreshUnavailable(retry_at=recorded.retry_at)
            found = await self._again(engine, call, found)
            newer, _ = await self.stored.opened(found)
            if newer is None or _known(newer) != _known(asked.tokens):
                break  # linked again, or renewed by somebody else
            if found.lease_by != lease.holder:
                break  # somebody else has the lease by now, and what they find out counts
        await self.leases.give_back(engine, call, lease)
        return await self._now(engine, call, found)

    def _storable(self, new: TokenSet) -> TokenSet:
        """Return new tokens without what the table has no column for: the rest must not be lost with it."""
        columns = self.stored.accounts.mapping.columns
        none: dict[str, Any] = {"refresh_token": None, "expires_at": None, "scopes": frozenset()}
        return _changed(new, **{role: value for role, value in none.items() if role not in columns})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _wait(self, lease: Lease, away: ProviderUnavailable) -> timedelta:
        """Return how long nobody asks the provider again: as long as it wants, or longer with each failure."""
        wanted: object = away.retry_at
        if isinstance(wanted, datetime) and wanted.utcoffset() is not None:
            return min(max(SHORTEST_PAUSE, wanted - present()), LONGEST_WAIT)
        return pause_after(lease.failures + (OPAQUE_LATER if away.opaque else 0), jitter=self._chance())


def _checked(new: object, provider: str) -> TokenSet:
    if isinstance(new, TokenSet):
        return new
    raise ConfigurationError(f"The refresher returned {type(new).__name__} for {provider!r}. Return a TokenSet.")


def _code(code: object) -> str:
    """Return a provider's code as it can be stored, whatever a refresher of the application's own has put there."""
    return code[:LONGEST_CODE] if isinstance(code, str) and not unstorable(code) else "unknown"


def _is_cancelled() -> bool:
    """Say whether somebody wants the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_pass(error: BaseException) -> bool:
    """Say whether storing may work later: the database is away, read-only or full, a table or a right is missing.

    It cannot where the database, SQLAlchemy or accountlink refuse a value.
    """
    if isinstance(error, ConfigurationError):
        return isinstance(error.__cause__, DBAPIError) and _may_pass(error.__cause__)  # a table is missing
    if isinstance(error, (IntegrityError, DataError, OSError)):  # a bare one is the source of the keys'
        return False
    if isinstance(error, FAILURES):
        failure = read_failure(error)
        return failure.trouble is not Trouble.VALUE and (failure.sqlstate or "")[:2] not in _LASTING
    return True


def _texts(found: StoredTokens[Any, Any]) -> tuple[str | None, str | None]:
    return found.access_token, found.refresh_token


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
        "refresh_token": revealed(tokens.refresh_token),
        "expires_at": tokens.expires_at,
        "scopes": tokens.scopes,
        "token_type": tokens.token_type,
        "extra": {name: secret.reveal() for name, secret in tokens.extra.items()},
        "client": tokens.client,
        "refresh_expires_at": tokens.refresh_expires_at,
    }
    return TokenSet(**(fields | changes))


def _naming(found: StoredTokens[Any, Any], error: AccountLinkError) -> AccountLinkError:
    """Return an error that names the link, if it asks for a new flow of the user."""
    if isinstance(error, NeedsConsent):
        error.link_id = found.account.id
    return error


def _anew(error: AccountLinkError) -> AccountLinkError:
    """Return a copy of an error that several callers raise, so that their tracebacks do not grow into one."""
    again = copy.copy(error)
    return again.with_traceback(None)
