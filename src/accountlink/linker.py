"""Provide AccountLinker, which links, transfers, reads and unlinks a user's provider accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, assert_never, overload

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.sessions import forget_held, hand_over_held, refresh_held
from accountlink.database.transactions import Bind, Needs, Place, place_of, place_on, read, run
from accountlink.errors import (
    AccountMismatch,
    AccountNotFound,
    AmbiguousAccount,
    ConfigurationError,
    LastAccount,
    LinkBlocked,
    OutcomeUnknown,
    StoreBusy,
)
from accountlink.linking.call import Call
from accountlink.linking.decide import Answer, Arm
from accountlink.linking.events import link_events
from accountlink.linking.refusals import explain
from accountlink.linking.store import AccountStore
from accountlink.outbox.consuming import Batch, Delivery, Feed
from accountlink.outbox.table import checked_outbox
from accountlink.tables.arguments import (
    NO_TIME,
    check_callable,
    check_span,
    mapping_of,
    milliseconds,
)
from accountlink.tables.mapping import AccountMapping, HasIds
from accountlink.tables.pending import checked_pending
from accountlink.tables.refreshes import checked_refreshes
from accountlink.tables.rows import present
from accountlink.transfers.redeeming import Guard, Transfers, ledger_of
from accountlink.transfers.signing import LEEWAY
from accountlink.values.credentials import TokenSet, checked_scopes, checked_token
from accountlink.values.events import LinkEvent
from accountlink.values.facts import Failure
from accountlink.values.health import Health, HealthState
from accountlink.values.identity import ProviderIdentity
from accountlink.values.keys import Secrets
from accountlink.values.outcomes import (
    AlreadyOwner,
    Change,
    Linked,
    LinkedAccount,
    LinkId,
    OwnershipConflict,
    Transferred,
    Unlinked,
    UserId,
    conflict_with,
)
from accountlink.values.policy import Ownership, Removal
from accountlink.values.secrecy import Concealed
from accountlink.vault.refresher import Refresher
from accountlink.vault.vault import CredentialVault

if TYPE_CHECKING:
    from accountlink.vault.renewing import Renewing
    from accountlink.vault.sealing import Sealing
    from accountlink.vault.stored import StoredCredentials
    from accountlink.vault.upkeep import KeptAlive

TRANSFER_LIFETIME: Final = timedelta(minutes=10)
LOCK_TIMEOUT: Final = timedelta(seconds=10)
LEASE: Final = timedelta(minutes=1)
MIN_VALID: Final = timedelta(minutes=1)

Values = Mapping[Any, object]
"""Application columns to fill: mapped attributes or columns of the table, and their values."""


class AccountLinker(Generic[UserId, LinkId]):
    """Link users to provider accounts, idempotently: repeated calls give one live row.

    One linker serves an application; it holds no connection and no state of any call.

    Args:
        accounts: A model with :class:`LinkedAccountMixin`, or an :class:`AccountMapping` onto a table of your own.
        secrets: Keys that sign transfer tokens, at least 32 bytes each, newest first; without them there are no tokens.
        clock: Returns the present moment, aware; it decides the moments in rows and the end of tokens.
        guard_last: Says whether a user has another way to sign in. It is called with the connection and the user id
            before their last account is unlinked or transferred. Without it the last account may be taken away.
        ledger: The table that ``transfer_ledger(Base.metadata)`` makes. With it the conflicts of a table of links
            without a ``version`` column carry transfer tokens. A table that has the column does not use a ledger.
        outbox: The table that ``link_outbox(Base.metadata)`` makes. It gets an event for each change of a link and for
            each conflict, in the same transaction. :meth:`events` reads it. Without it there are no events.
        vault: Seals the tokens that calls write. Without it the table contains them in plain text.
        pending: The table that ``pending_credentials(Base.metadata)`` makes. It keeps the sealed tokens of a claimant
            between a conflict and the transfer. It needs a vault, secrets, and a table of links whose conflicts carry
            transfer tokens. Without it a transferred link has no tokens until the claimant links again.
        refresher: Renews tokens at the providers. It needs a vault and ``refreshes``.
        refreshes: The table that ``refresh_states(Base.metadata)`` makes. It coordinates renewals, and has the health
            of each grant.
        transfer_lifetime: How long a transfer token can be redeemed.
        lock_timeout: How long a transaction of accountlink's own waits for a lock, if the PostgreSQL server, role or
            connection sets no ``lock_timeout`` itself; ``None`` waits without a limit. In a caller's transaction, for
            the lock of a whole table, and on SQLite (``busy_timeout``), the connection's own setting decides.

    Raises:
        ConfigurationError: The model or mapping cannot serve its policy, the secrets are unusable, or a table is not a
            ledger or not an outbox.
    """

    @overload
    def __init__(
        self,
        accounts: AccountMapping[UserId, LinkId],
        *,
        secrets: Secrets = ...,
        clock: Callable[[], datetime] = ...,
        guard_last: Guard[UserId] | None = ...,
        ledger: sa.Table | None = ...,
        outbox: sa.Table | None = ...,
        vault: CredentialVault | None = ...,
        pending: sa.Table | None = ...,
        refresher: Refresher | None = ...,
        refreshes: sa.Table | None = ...,
        transfer_lifetime: timedelta = ...,
        lock_timeout: timedelta | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        accounts: type[HasIds[UserId, LinkId]],
        *,
        secrets: Secrets = ...,
        clock: Callable[[], datetime] = ...,
        guard_last: Guard[UserId] | None = ...,
        ledger: sa.Table | None = ...,
        outbox: sa.Table | None = ...,
        vault: CredentialVault | None = ...,
        pending: sa.Table | None = ...,
        refresher: Refresher | None = ...,
        refreshes: sa.Table | None = ...,
        transfer_lifetime: timedelta = ...,
        lock_timeout: timedelta | None = ...,
    ) -> None: ...

    def __init__(
        self,
        accounts: AccountMapping[UserId, LinkId] | type[HasIds[UserId, LinkId]],
        *,
        secrets: Secrets = (),
        clock: Callable[[], datetime] = present,
        guard_last: Guard[UserId] | None = None,
        ledger: sa.Table | None = None,
        outbox: sa.Table | None = None,
        vault: CredentialVault | None = None,
        pending: sa.Table | None = None,
        refresher: Refresher | None = None,
        refreshes: sa.Table | None = None,
        transfer_lifetime: timedelta = TRANSFER_LIFETIME,
        lock_timeout: timedelta | None = LOCK_TIMEOUT,
    ) -> None:
        self.mapping: Final[AccountMapping[UserId, LinkId]] = mapping_of(accounts)
        ledger_table = ledger_of(self.mapping, ledger)
        self.ledger: Final[sa.Table | None] = ledger_table
        outbox_table = None if outbox is None else checked_outbox(outbox)
        self.pending: Final[sa.Table | None] = None if pending is None else checked_pending(pending)
        check_span("transfer_lifetime", transfer_lifetime)
        self._store: Final = AccountStore(
            self.mapping,
            ledger_table,
            outbox_table,
            self.pending,
            keeps_for=transfer_lifetime + LEEWAY,
            clock=check_callable("clock", clock),
        )
        tables = (self.mapping.table, ledger_table, outbox, pending, refreshes)
        self._tables: Final = [table for table in tables if table is not None]
        self._feed: Final[Feed[LinkEvent[UserId, LinkId]]] = Feed(
            owner="AccountLinker",
            outbox=outbox_table,
            reading=partial(link_events, self.mapping),
            clock=self._store.now,
            tables=self._tables,
        )
        self._calls: Final = self._store.calls
        self._transfers: Final = Transfers(
            self._store, secrets=secrets, ledger=ledger_table, lifetime=transfer_lifetime, guard=guard_last
        )
        self.vault: Final[CredentialVault | None] = _checked_vault(vault)
        self._stored: Final = None if self.vault is None else self.vault.stored_in(self._store)
        if pending is not None:
            self._transfers.check_keeping(has_vault=self.vault is not None)
        self._lock_timeout: Final = milliseconds("lock_timeout", lock_timeout)
        self._renewing: Final = self._with_refresher(refresher, refreshes)
        self._guard: Final = None if guard_last is None else check_callable("guard_last", guard_last)
        self._needs: Final = Needs.STATEMENT if guard_last is None else Needs.TRANSACTION
        self._place: Final = partial(
            place_of,
            mapping=self.mapping,
            tables=self._tables,
            wanted_by="guard_last",
            lock_timeout=self._lock_timeout,
        )

    # -- linking ------------------------------------------------------------------------------------------------------

    async def link(
        self,
        bind: Bind,
        *,
        user_id: UserId,
        identity: ProviderIdentity,
        credentials: TokenSet | None = None,
        expect: LinkId | None = None,
        values: Values | None = None,
        update_values: Values | None = None,
    ) -> Linked[UserId, LinkId] | OwnershipConflict:
        """Link a user to the provider account that the provider has just vouched for.

        Args:
            bind: The transaction to use. With a session or a connection the work runs in one savepoint of the caller's
                transaction, and accountlink neither commits nor rolls back. With an engine, or a connection in
                AUTOCOMMIT, accountlink uses its own transaction: one statement where the database can, tried again
                when that is safe.
            user_id: The signed-in user's id, in the column's own Python type.
            identity: The identity that the provider vouched for in this callback; never one from a request.
            credentials: The tokens; without them those of a live row stay, and a restored row has none.
            expect: The id of the one link of the user to reconnect; without it any link of the user may be written.
            values: Application columns of a new row.
            update_values: Application columns to set on a new row, on update, and on restore.

        Returns:
            ``Linked``: the row now holds this identity and these credentials; ``change`` says whether it was
                created, updated or restored.
            ``OwnershipConflict``: another user is the live owner; nothing was written, also not in the owner's row.

        Raises:
            InvalidIdentity: Under ``Key.EMAIL`` the identity has no e-mail address, or one without a normal form.
                Raised before any SQL.
            ConfigurationError: The mapping cannot serve the call. Raised before any SQL.
            LinkBlocked: The user's dead row carries one of the policy's ``blocked_reasons``.
            AccountNotFound: ``expect`` names no link of this user.
            AccountMismatch: ``expect`` names a link to another account; or, under ``Key.EMAIL``, the user's live link
                with this address holds another account id.
            BlockedByConstraint: Another unique constraint forbids the write, or a column treats another spelling of the
                account id (or of the e-mail key) as equal.
            OwnerLookupFailed: The database refused the write, and the look-up of the owner failed.
            OwnerNotFound: The database keeps refusing the write, and no row that can be seen explains it.
            RetryTransaction: The caller's transaction lost a race, and has to run again from its start.
            StoreBusy: A lock, a statement or a connection took longer than the time limit.
            StoreUnavailable: The connection failed before anything could have been committed.
            OutcomeUnknown: The connection was lost around the commit; calling again is safe.
            sqlalchemy.exc.DBAPIError: Any other violation (a foreign key, a check, another table's unique index), as
                SQLAlchemy raised it, without the statement's parameters.
        """
        call_of = partial(
            self._calls.link,
            identity=identity,
            credentials=credentials,
            expect=expect,
            values=values,
            update_values=update_values,
            seal=None if self._stored is None else await self._sealing(self._stored, credentials),
        )
        call = call_of(user_id=user_id)
        place = await self._place(bind)
        answer = await self._settled(place, call, identity.provider)
        if answer.arm is Arm.RESPELT:  # the tokens have to be sealed for the id as the row has it
            answer = await self._settled(place, call_of(user_id=answer.user_id), identity.provider)
        outcome = self._outcome(answer, identity, call.user_id)
        if isinstance(outcome, OwnershipConflict):
            if outcome.transfer_token is not None:
                self._transfers.prepare(place, call.shape)
        elif place.session is not None:
            await refresh_held(place, place.session, self.mapping, outcome.account.id)
        return outcome

    async def _sealing(self, stored: StoredCredentials[UserId, LinkId], credentials: object) -> Sealing | None:
        """Return what seals a call's tokens, with its key, before any transaction begins."""
        return None if credentials is None else await stored.vault.ready()

    async def _settled(self, place: Place, call: Call, provider: str) -> Answer[UserId, LinkId]:
        """Run a link until the database has answered it."""
        store, patience = self._store, Patience()
        repeated = call if store.outbox is None else call.changed(is_repeated=True)

        async def silent() -> Answer[UserId, LinkId] | Failure | None:
            """Insert after several runs without an answer, so that a unique index names the row in the way."""
            if patience.runs > 0:
                return None
            patience.causes -= 1
            patience.runs = min(1, patience.causes)
            return None if call.link_id is not None else await place.attempt(partial(call.within, place, store.probe))

        async def refused(violation: Failure) -> Answer[UserId, LinkId] | None:
            """Find the cause of a unique violation, and write what belongs to a conflict that is found."""
            look = partial(store.obstacle, call=call)
            settled = await explain(place, violation, look, provider=provider, patience=patience)
            if settled is not None and settled.account is not None and (store.outbox is not None or call.keeps):
                note = partial(store.note_conflict, owned=settled.account)
                await run(place, partial(repeated.within, place, note), patience)
            return settled

        return await run(
            place,
            partial(call.within, place, store.link),
            patience,
            again=partial(repeated.within, place, store.link),
            silent=silent,
            refused=refused,
        )

    def _outcome(
        self, answer: Answer[UserId, LinkId], identity: ProviderIdentity, user_id: UserId
    ) -> Linked[UserId, LinkId] | OwnershipConflict:
        match answer.arm:
            case Arm.CREATED | Arm.UPDATED | Arm.RESTORED if answer.account is not None:
                return Linked(account=answer.account, change=Change(answer.arm.value))
            case Arm.CONFLICT if answer.account is not None:
                return self._conflict(answer.account, answer.version, identity, user_id, table=answer.table)
            case Arm.BLOCKED:
                raise LinkBlocked(provider=identity.provider, reason=str(answer.why))
            case Arm.MISMATCH:
                raise AccountMismatch(provider=identity.provider)
            case Arm.MISSING:
                raise AccountNotFound
            case Arm.RESPELT:  # another row of the user, with a third spelling, has come between
                raise StoreBusy
            case Arm.CREATED | Arm.UPDATED | Arm.RESTORED | Arm.CONFLICT:
                raise AssertionError(f"{answer.arm} without a row")  # a statement that reads nothing back
            case _:
                assert_never(answer.arm)

    def _conflict(
        self,
        owned: LinkedAccount[UserId, LinkId],
        version: int | None,
        identity: ProviderIdentity,
        claimant: UserId,
        *,
        table: str = "",
    ) -> OwnershipConflict:
        offer = self._transfers.offer(owned, version, table=table, claimant=claimant, now=self._store.now())
        token, expires_at = offer or (None, None)
        conflict = OwnershipConflict(
            provider=identity.provider,
            account_id=identity.account_id,
            transfer_token=token,
            expires_at=expires_at,
        )
        return conflict_with(owned.user_id, conflict)

    # -- transferring -------------------------------------------------------------------------------------------------

    async def transfer(
        self,
        bind: Bind,
        token: str,
        *,
        user_id: UserId,
        credentials: TokenSet | None = None,
        max_auth_age: timedelta | None = None,
    ) -> Transferred[UserId, LinkId] | AlreadyOwner[UserId, LinkId]:
        """Give another user's link to the user who has proved control of the provider account.

        The row keeps its id, so that the application's references to it stay valid. Nothing of the former owner's
        credentials is left in it. Idempotent: a second call with the token, even an expired one, returns
        ``AlreadyOwner``.

        Args:
            bind: As for :meth:`link`. On PostgreSQL two statements: one reads, and one decides and writes. With
                ``pending=`` and without ``credentials`` one more reads the tokens that the conflict has kept.
            token: The ``transfer_token`` of the user's :class:`OwnershipConflict`, unchanged.
            user_id: The signed-in user's id, in the column's own Python type; never one from a request.
            credentials: The claimant's tokens. Without them the link gets those that the conflict has kept, if the
                linker keeps them (``pending=``), and else has none until the claimant links again.
            max_auth_age: The greatest age of a token; an older one is refused, even if it has not expired yet.

        Returns:
            ``Transferred``: this call gave the link to the claimant; ``previous_owner_id`` is the former owner.
            ``AlreadyOwner``: the claimant already had a live link to the account; nothing was written.

        Raises:
            TokenForged: The token is not a transfer token of this linker. Raised before any SQL.
            TokenForAnotherUser: The token was given to another user. Raised before any SQL.
            TokenExpired: The token has expired, or is older than ``max_auth_age``.
            TokenSuperseded: The link has another owner or another state than when the token was issued.
            ConfigurationError: The mapping, its policy or the linker cannot serve the call. Raised before any SQL.
            LinkBlocked: The claimant's own dead row of the account carries one of the policy's ``blocked_reasons``.
            LastAccount: The link is the owner's last one, and ``guard_last`` says that they cannot sign in another way.
            BlockedByConstraint: Another unique constraint forbids the write.
            OwnerLookupFailed, OwnerNotFound, RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for
                :meth:`link`.
            sqlalchemy.exc.DBAPIError: Any other violation, as for :meth:`link`.
        """
        presented, token = self._transfers.read(token), ""  # error reports that show a frame's locals show no token
        user_id = self._store.checked_id("user_id", user_id, what="user_id")
        if max_auth_age is not None:
            check_span("max_auth_age", max_auth_age, least=NO_TIME)
        now = self._store.now()
        seal = None if self._stored is None else await self._sealing(self._stored, credentials)
        call = self._calls.transfer(now=now, user_id=user_id, credentials=credentials, seal=seal)
        claim = self._transfers.checked(presented, claimant=user_id)
        place = await self._place(bind, needs=self._needs)
        outcome = await self._transfers.redeem(place, claim, call, now=now, max_age=max_auth_age)
        if place.session is not None and isinstance(outcome, Transferred):
            await hand_over_held(place, place.session, self.mapping, outcome.account.id)
        return outcome

    # -- reading ------------------------------------------------------------------------------------------------------

    async def accounts(
        self, bind: Bind, *, user_id: UserId, provider: str | None = None
    ) -> Sequence[LinkedAccount[UserId, LinkId]]:
        """List a user's live links, oldest first.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.
            provider: The slug of a provider, to list only its links.

        Returns:
            The links; an empty sequence if the user has none.

        Raises:
            InvalidIdentity: The provider is not a valid slug.
            ConfigurationError, StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        call = self._calls.reading(user_id=user_id, provider=provider)
        return await read(await self._place(bind), partial(self._store.accounts, call=call))

    async def unlinked(
        self, bind: Bind, *, user_id: UserId, provider: str | None = None
    ) -> Sequence[LinkedAccount[UserId, LinkId]]:
        """List the user's removed links that linking their accounts again would restore, the newest first.

        The list leaves out a link that was removed for one of the policy's ``blocked_reasons``, and a link whose
        account the user has linked again. It does not say whether another user has the account now: :meth:`link`
        then returns an ``OwnershipConflict``.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.
            provider: The slug of a provider, to list only its links.

        Returns:
            The removed links; an empty sequence if there are none.

        Raises:
            ConfigurationError: The policy has ``Removal.DELETE``, which keeps no removed links, or the id is of the
                wrong type.
            InvalidIdentity: The provider is not a valid slug.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        if self.mapping.policy.removal is Removal.DELETE:
            raise ConfigurationError("unlinked() needs Removal.SOFT: Removal.DELETE keeps no row of a removed link.")
        call = self._calls.reading(user_id=user_id, provider=provider)
        return await read(await self._place(bind), partial(self._store.unlinked, call=call))

    async def account(
        self, bind: Bind, *, user_id: UserId, link_id: LinkId | None = None, provider: str | None = None
    ) -> LinkedAccount[UserId, LinkId]:
        """Return one live link of a user, by its id or by its provider.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.
            link_id: The link's id, in the column's own Python type. Give this or ``provider``, or both.
            provider: The provider's slug. Alone it is enough if the user has one account there.

        Returns:
            The link.

        Raises:
            AccountNotFound: The user has no such live link; it may be another user's.
            AmbiguousAccount: The provider alone matches several links of the user.
            ConfigurationError: Neither argument was given, or an id is of the wrong type.
            InvalidIdentity: The provider is not a valid slug.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        call = self._named("account", user_id=user_id, link_id=link_id, provider=provider)
        found = await read(await self._place(bind), partial(self._store.accounts, call=call))
        if not found:
            raise AccountNotFound
        if len(found) > 1:
            raise AmbiguousAccount(provider=found[0].provider, count=len(found))
        return found[0]

    async def find_owner(self, bind: Bind, *, provider: str, account_id: str) -> LinkedAccount[UserId, LinkId] | None:
        """Return the live link of a provider account, whoever owns it, for a sign-in; ``None`` if nobody owns it.

        Args:
            bind: As for :meth:`link`.
            provider: The provider's slug.
            account_id: The provider's id of the account, from a validated callback.

        Returns:
            The owner's link, or ``None`` if nobody owns the account.

        Raises:
            ConfigurationError: The policy is not ``Ownership.EXCLUSIVE``, so that an account may have several owners.
            InvalidIdentity: The provider or the account id is not valid.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        if self.mapping.policy.ownership is not Ownership.EXCLUSIVE:
            raise ConfigurationError(
                "find_owner() needs Ownership.EXCLUSIVE: otherwise an account may have several owners."
            )
        call = self._calls.finding(provider=provider, account_id=account_id)
        if call is None:
            return None
        return await read(await self._place(bind), partial(self._store.find_owner, call=call))

    # -- credentials --------------------------------------------------------------------------------------------------

    async def credentials(
        self,
        engine: AsyncEngine,
        *,
        user_id: UserId,
        link_id: LinkId | None = None,
        provider: str | None = None,
        min_valid: timedelta = MIN_VALID,
        require: Collection[str] = frozenset(),
        rejected: str | None = None,
    ) -> TokenSet:
        """Return tokens of a link that are valid now, without the refresh token.

        One statement reads the row. Whether the access token has expired is decided by the database's clock.

        Args:
            engine: An engine.
            user_id: The user's id, in the column's own Python type.
            link_id: The link's id, in the column's own Python type. Give this or ``provider``, or both.
            provider: The provider's slug. Alone it is enough if the user has one account there.
            min_valid: How long the access token should last at least. A token that ends sooner is given out where no
                other can be had, as long as it is valid.
            require: The scopes that the user must have granted.
            rejected: An access token of this link that the provider's API has just refused. It is given out again only
                if it is younger than 60 seconds, because then it lacks rights, and a new token would too.

        Returns:
            The tokens.

        Raises:
            NeedsConsent: The link has no access token, or it has expired or was ``rejected``, and there is no refresh
                token.
            MissingScopes: The user has not granted some of the scopes. Raised before a token is opened.
            CredentialsUnreadable: The access token cannot be opened.
            AccountNotFound: The user has no such live link; it may be another user's.
            AmbiguousAccount: The provider alone matches several links of the user.
            ConfigurationError: The linker has no vault; ``engine`` is not an engine; neither ``link_id`` nor
                ``provider`` was given; scopes are required, and the table has no column for them; or the access token
                has expired or was ``rejected``, there is a refresh token, and this linker does not renew tokens.
            InvalidCredentials: ``require`` is not a set of scopes, or ``rejected`` is not a token.
            InvalidIdentity: The provider is not a valid slug.
            StoreBusy, StoreUnavailable: As for :meth:`link`.
        """
        refused, rejected = Concealed[object](rejected), None  # error reports that show a frame's locals show no token
        stored = self._with_vault("credentials")
        _check_engine("credentials", engine)
        check_span("min_valid", min_valid, least=NO_TIME)
        scopes = checked_scopes(require)
        call = self._named("credentials", user_id=user_id, link_id=link_id, provider=provider)
        known = checked_token("rejected", refused)
        if self._renewing is not None:
            place_on(engine)  # refuses what is not supported, before a task begins
            return await self._renewing.valid(engine, call, min_valid=min_valid, require=scopes, rejected=known)
        return await stored.valid(await stored.find(await self._place(engine), call), require=scopes, rejected=known)

    async def health(self, bind: Bind, *, user_id: UserId) -> dict[LinkId, Health]:
        """Return the health of each live link of a user: whether its tokens work, may work, or need the user.

        It says what :meth:`credentials` would say, and opens no token but an access token that is over and has no
        refresh token beside it: the refresher says whether it renews that one. So a damaged envelope is not found here,
        nor a refresh token that the refresher does not take.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.

        Returns:
            The health by the link's id, oldest link first.

        Raises:
            ConfigurationError: The linker does not renew tokens, or the id is of the wrong type.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        renewing = self._with_renewing("health")
        call = self._calls.reading(user_id=user_id)
        return await renewing.upkeep.health(await self._place(bind), call)

    def unhealthy(
        self, engine: AsyncEngine, *, state: HealthState | None = None
    ) -> AsyncIterator[tuple[LinkId, Health]]:
        """Yield the live links of all users whose last renewal failed, whose grant has ended, or that have no token.

        These are the links for which :meth:`health` says so.

        Args:
            engine: An engine. The links are read page by page.
            state: ``FAILING`` or ``NEEDS_CONSENT``; without it both.

        Yields:
            The link's id, and the health of its grant.

        Raises:
            ConfigurationError: The linker does not renew tokens, or ``state`` is another one.
            StoreBusy, StoreUnavailable: As for :meth:`link`, when the next page is read.
        """
        renewing = self._with_renewing("unhealthy")
        _check_engine("unhealthy", engine)
        ill = (HealthState.FAILING, HealthState.NEEDS_CONSENT)
        if state is not None and state not in ill:
            raise ConfigurationError("state=... takes HealthState.FAILING or HealthState.NEEDS_CONSENT.")
        return renewing.upkeep.unhealthy(engine, frozenset(ill if state is None else [state]))

    async def keep_alive(self, engine: AsyncEngine, *, idle: timedelta, limit: int | None = None) -> KeptAlive:
        """Renew the grants of all users that were neither renewed nor linked for some time.

        Providers end grants that nobody uses. Run this regularly, in any number of processes: each grant is renewed
        once.

        Args:
            engine: An engine. Leases are taken in short transactions, and no connection is held while a provider is
                asked.
            idle: How long a grant may be unused; shorter than the time after which the provider ends it.
            limit: The most grants of this call; ``None`` for all of them.

        Returns:
            How many grants were renewed, failed, turned out to have ended, or could not be opened.

        Raises:
            ConfigurationError: The linker does not renew tokens; or ``idle`` or ``limit`` cannot be one.
            StoreBusy, StoreUnavailable: As for :meth:`link`.
            Exception: What the refresher raised for a grant, unchanged, after all others were looked at; or what the
                source of the vault's keys raised.
        """
        renewing = self._with_renewing("keep_alive")
        _check_engine("keep_alive", engine)
        check_span("idle", idle)
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigurationError("limit=... of keep_alive() is a whole number of grants, 1 or more, or None.")
        return await renewing.upkeep.keep_alive(engine, idle=idle, limit=limit)

    @property
    def renews_tokens(self) -> bool:
        """Whether this linker renews tokens, and so knows the health of each link."""
        return self._renewing is not None

    def _with_renewing(self, method: str) -> Renewing[UserId, LinkId]:
        if self._renewing is None:
            raise ConfigurationError(
                f"{method}() needs AccountLinker(vault=..., refresher=..., refreshes=refresh_states(Base.metadata))."
            )
        return self._renewing

    async def aclose(self) -> None:
        """Wait for renewals of tokens that are under way in this event loop, before the loop ends."""
        if self._renewing is not None:
            await self._renewing.aclose()

    def _with_refresher(
        self, refresher: Refresher | None, refreshes: sa.Table | None
    ) -> Renewing[UserId, LinkId] | None:
        """Return what renews tokens, or ``None`` without a refresher."""
        if refresher is None and refreshes is None:
            return None
        if refresher is None or refreshes is None or self._stored is None:
            raise ConfigurationError(
                "Renewing tokens needs all of vault=..., refresher=... and refreshes=refresh_states(Base.metadata)."
            )
        from accountlink.vault.renewing import Renewing  # noqa: PLC0415  # an extra: the vault needs it

        def place(engine: AsyncEngine) -> Place:
            return place_on(engine, tables=self._tables, lock_timeout=self._lock_timeout)

        return Renewing(self._stored, checked_refreshes(refreshes), refresher, place=place)

    async def stored_credentials(
        self, bind: Bind, *, user_id: UserId, link_id: LinkId | None = None, provider: str | None = None
    ) -> TokenSet:
        """Return all tokens of a link as they stand in its row, valid or not: for tests, exports and own refreshes.

        Args:
            bind: As for :meth:`link`. Keys that the vault's source has to fetch are fetched after the row was read.
            user_id: The user's id, in the column's own Python type.
            link_id: The link's id, in the column's own Python type. Give this or ``provider``, or both.
            provider: The provider's slug. Alone it is enough if the user has one account there.

        Returns:
            The tokens, with the refresh token.

        Raises:
            NeedsConsent: The link has no access token.
            CredentialsUnreadable: A token cannot be opened.
            AccountNotFound, AmbiguousAccount, InvalidIdentity: As for :meth:`credentials`.
            ConfigurationError: The linker has no vault, or neither ``link_id`` nor ``provider`` was given.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
        """
        stored = self._with_vault("stored_credentials")
        call = self._named("stored_credentials", user_id=user_id, link_id=link_id, provider=provider)
        return await stored.whole(await stored.find(await self._place(bind), call))

    async def replace_credentials(
        self,
        bind: Bind,
        *,
        user_id: UserId,
        tokens: TokenSet,
        presented: str,
        link_id: LinkId | None = None,
        provider: str | None = None,
    ) -> bool:
        """Store tokens that were obtained elsewhere, if the link still has the token that they were obtained with.

        What the tokens leave out stays: the refresh token, scopes, the OAuth client, members of ``extra``. The link's
        ``version`` stays too, so that transfer tokens remain valid. Of two callers who have used one refresh token,
        only the first can store another one in its place. Where the provider lets the refresh token stay, both store
        what they got, one after the other.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.
            tokens: The new tokens.
            presented: The refresh token that was sent to the provider for them; where there was none, the access token.
            link_id: The link's id, in the column's own Python type. Give this or ``provider``, or both.
            provider: The provider's slug. Alone it is enough if the user has one account there.

        Returns:
            ``True`` if the link has the tokens now; ``False`` if it has other tokens than those presented. Nothing was
                written then.

        Raises:
            CredentialsUnreadable: A stored token cannot be opened.
            InvalidCredentials: ``presented`` is not a token.
            AccountNotFound, AmbiguousAccount, InvalidIdentity: As for :meth:`credentials`.
            ConfigurationError: The linker has no vault, neither ``link_id`` nor ``provider`` was given, or the table
                has no column for something that the tokens bring.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`link`.
            OutcomeUnknown: The reply was lost, and the link has other tokens by now; these may have been stored before.
        """
        sent, presented = Concealed[object](presented), ""  # error reports that show a frame's locals show no token
        stored = self._with_vault("replace_credentials")
        known = checked_token("presented", sent)
        if known is None:
            raise ConfigurationError("replace_credentials() needs presented=...: what the tokens were obtained with.")
        sealing = await stored.vault.ready()
        self._check_named("replace_credentials", link_id=link_id, provider=provider)
        call = self._calls.replacing(user_id=user_id, link_id=link_id, provider=provider, tokens=tokens, seal=sealing)
        place = await self._place(bind)
        written = await stored.replace(place, call, sealing, presented=known)
        if written is not None and place.session is not None:
            await refresh_held(place, place.session, self.mapping, written)
        return written is not None

    def _with_vault(self, method: str) -> StoredCredentials[UserId, LinkId]:
        if self._stored is None:
            raise ConfigurationError(f"{method}() needs AccountLinker(vault=CredentialVault(keys=[...])).")
        return self._stored

    def _named(self, method: str, *, user_id: object, link_id: object, provider: str | None) -> Call:
        """Return the call that reads one link."""
        self._check_named(method, link_id=link_id, provider=provider)
        return self._calls.reading(user_id=user_id, provider=provider, link_id=link_id)

    def _check_named(self, method: str, *, link_id: object, provider: object) -> None:
        if provider is None and link_id is None:
            raise ConfigurationError(f"{method}() needs a link_id or a provider.")

    # -- more ---------------------------------------------------------------------------------------------------------

    def check_user(self, user_id: UserId) -> None:
        """Refuse a value that cannot be a user's id in this table, before anything begins.

        Args:
            user_id: The user's id, in the column's own Python type.

        Raises:
            ConfigurationError: It is of another type, or outside what the column can hold.
        """
        self._store.checked_id("user_id", user_id, what="user_id")

    def events(
        self, engine: AsyncEngine, *, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Delivery[LinkEvent[UserId, LinkId]], None]:
        """Deliver the events of this table's links, oldest first, each to one consumer at a time.

        Each event is delivered at least once. An event that is not acknowledged is delivered again, to this consumer or
        to another; an acknowledged event is deleted. Any number of consumers, in any number of processes, share the
        events among them.

        A consumer that leaves the loop releases its event: at once with ``contextlib.aclosing``, otherwise when Python
        collects the iterator.

        Args:
            engine: An engine; each delivery is a transaction of its own. On PostgreSQL a delivery holds a connection,
                and the wait for events holds none.
            poll: The pause before the outbox is read again when no event is left; ``None`` ends the iteration instead.
            lease: The longest time for which a consumer holds an event on SQLite, which cannot lock it. The events of a
                consumer that has died stay unavailable to others for so long. On PostgreSQL the transaction holds it.

        Yields:
            Deliveries. An event that is not acknowledged before the next one is asked for comes again after all others:
            with ``poll=None`` in the next call.

        Raises:
            ConfigurationError: There is no outbox, or ``engine`` is not an engine of a supported database.
            StoreBusy, StoreUnavailable: As for :meth:`link`, when the next event is asked for.
        """
        return self._feed.consume("events", engine, Delivery, poll=poll, lease=lease, size=1)

    def batches(
        self, engine: AsyncEngine, *, size: int = 100, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Batch[LinkEvent[UserId, LinkId]], None]:
        """Deliver many events of this table's links, oldest first, in batches that are each acknowledged as a whole.

        An acknowledged batch is deleted as a whole; any other comes again. Everything else is as for :meth:`events`.

        Args:
            engine: An engine; each batch is a transaction of its own.
            size: The most events of a batch, up to 10,000.
            poll: The pause before the outbox is read again when no event is left; ``None`` ends the iteration instead.
            lease: The longest time for which a consumer holds a batch on SQLite.

        Yields:
            Batches of at least one event, oldest first. The events of a batch that is not acknowledged before the next
            one is asked for come again after all others: with ``poll=None`` in the next call.

        Raises:
            ConfigurationError: There is no outbox, ``engine`` is not an engine of a supported database, or ``size`` is
                out of range.
            StoreBusy, StoreUnavailable: As for :meth:`link`, when the next batch is asked for.
        """
        return self._feed.consume("batches", engine, Batch, poll=poll, lease=lease, size=size)

    # -- unlinking ----------------------------------------------------------------------------------------------------

    async def unlink(
        self, bind: Bind, *, user_id: UserId, link_id: LinkId, reason: str | None = None
    ) -> Unlinked[UserId, LinkId]:
        """Disconnect one of a user's links, and wipe its credentials.

        Tokens that a conflict of the user has kept for the account go, too (``pending=``).

        Idempotent: a link that is dead already stays unchanged, with its first timestamp and reason. Under
        ``Removal.DELETE`` the row is gone after the first call, and a second call raises ``AccountNotFound``.

        Args:
            bind: As for :meth:`link`.
            user_id: The user's id, in the column's own Python type.
            link_id: The link's id, in the column's own Python type.
            reason: A text for the mapping's ``reason`` column. One of the policy's ``blocked_reasons`` forbids
                restoring the link.

        Returns:
            ``Unlinked``, with the row as it is now, or as it was when it was deleted.

        Raises:
            AccountNotFound: The user has no such link.
            LastAccount: The link is the user's last one, and ``guard_last`` says that they cannot sign in another way.
            ConfigurationError: The table has no column for the reason, an id is of the wrong type, or there is a guard
                and the connection is in AUTOCOMMIT.
            StoreBusy, StoreUnavailable, RetryTransaction, OutcomeUnknown: As for :meth:`link`.
        """
        call = self._calls.unlink(user_id=user_id, link_id=link_id, reason=reason)
        place = await self._place(bind, needs=self._needs)
        account = await self._removed(place, call)
        if place.session is not None:
            sync = forget_held if self.mapping.policy.removal is Removal.DELETE else refresh_held
            await sync(place, place.session, self.mapping, account.id)
        return Unlinked(account=account)

    async def _removed(self, place: Place, call: Call) -> LinkedAccount[UserId, LinkId]:
        """Run an unlink until the database has answered it."""
        store, guard, patience = self._store, self._guard, Patience()

        def removed(connection: sa.Connection, call: Call) -> LinkedAccount[UserId, LinkId] | None:
            """Unlink; with a guard, lock the user's live links first, so that two calls cannot remove the last two."""
            is_last = guard is not None and store.locks_last(connection, call)
            if guard is not None and is_last and not place.ask(guard, connection, Concealed(call.user_id)):
                raise LastAccount
            return store.unlink(connection, call)

        async def silent() -> None:
            if not await read(place, partial(store.exists, call=call)):
                # An earlier attempt, whose answer was lost, may have deleted the link.
                raise OutcomeUnknown if patience.ambiguous else AccountNotFound

        return await run(place, partial(call.within, place, removed), patience, silent=silent)


def _check_engine(method: str, engine: object) -> None:
    """Refuse another bind than an engine, for a method that takes transactions of its own."""
    if not isinstance(engine, AsyncEngine):
        raise ConfigurationError(
            f"{method}() takes an engine, not {type(engine).__name__}: renewing tokens takes transactions of its own. "
            "In a transaction of yours, call stored_credentials()."
        )


def _checked_vault(vault: object) -> CredentialVault | None:
    if vault is None or isinstance(vault, CredentialVault):
        return vault
    raise ConfigurationError(f"vault=... takes a CredentialVault, not {type(vault).__name__}.")
