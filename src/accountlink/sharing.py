"""Provide ShareGrants, which gives a user access to another user's things by a token."""

from __future__ import annotations

import secrets as randomness
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.sessions import hand_over_held, refresh_held
from accountlink.database.transactions import Bind, Needs, Place, Work, nothing_more, place_of, read, run
from accountlink.errors import AccountNotFound, ConfigurationError, GrantRejected
from accountlink.grants.call import TOKEN_BYTES, TOKEN_LENGTH, GrantCall, GrantCalls
from accountlink.grants.decide import after_violation
from accountlink.grants.events import grant_events
from accountlink.grants.mapping import GrantMapping
from accountlink.grants.store import GrantStore
from accountlink.linker import LEASE, LOCK_TIMEOUT, AccountLinker
from accountlink.linking.live_links import LiveLinks
from accountlink.outbox.consuming import Batch, Delivery, Feed
from accountlink.outbox.table import checked_outbox
from accountlink.tables.arguments import (
    check_callable,
    check_kind,
    mapping_of,
    milliseconds,
)
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.mixin import LinkedAccountMixin
from accountlink.tables.type_layers import plain_type
from accountlink.values.events import GrantEvent
from accountlink.values.facts import Failure
from accountlink.values.grants import AlreadyGranted, Grant, Granted, IssuedGrant, Revoked, issued_with
from accountlink.values.secrecy import Concealed

T = TypeVar("T")
Accounts = AccountLinker[Any, Any] | AccountMapping[Any, Any] | type[LinkedAccountMixin]
"""The place of the links: a linker, a mapping, or a model with the mixin."""


class ShareGrants:
    """Give one user access to another user's things: a token is issued, redeemed, and ended by time or its grantor.

    One object serves an application; it holds no connection and no state of any call.

    Args:
        grants: The table that ``grants_table(Base.metadata)`` makes, or a :class:`GrantMapping` onto a table of your
            own with one row per token.
        accounts: The :class:`AccountLinker` (or the mapping or model) of the linked accounts that grants are about, if
            the table has a ``link_id``. A grant ends when its account is unlinked or transferred.
        outbox: The table that ``link_outbox(Base.metadata)`` makes, a linker's or another one. It gets an event when a
            grant is issued, redeemed or revoked, in the same transaction. :meth:`events` reads it. Without it there
            are no events.
        clock: Returns the present moment, aware. Without it PostgreSQL's own clock decides when a grant ends, which is
            the same for all servers of the application; on SQLite this machine's clock decides.
        one_active_per_pair: Whether a redemption ends the earlier grant of the same grantor and grantee. On PostgreSQL
            a redemption is then a transaction with one more statement. The mapping or ``grants_table`` can set this
            too.
        lock_timeout: As for :class:`AccountLinker`.

    Raises:
        ConfigurationError: The table cannot serve, a ``link_id`` has no ``accounts``, or a table is not an outbox.
    """

    def __init__(
        self,
        grants: sa.Table | GrantMapping,
        *,
        accounts: Accounts | None = None,
        outbox: sa.Table | None = None,
        clock: Callable[[], datetime] | None = None,
        one_active_per_pair: bool = False,
        lock_timeout: timedelta | None = LOCK_TIMEOUT,
    ) -> None:
        self.mapping: Final = _mapping_of(grants, one_active_per_pair=one_active_per_pair)
        outbox_table = None if outbox is None else checked_outbox(outbox)
        given = None if clock is None else check_callable("clock", clock)
        self._store: Final = GrantStore(self.mapping, _links_of(self.mapping, accounts), outbox_table, clock=given)
        self._tables: Final = _tables_of(self.mapping, accounts, outbox_table)
        self._feed: Final[Feed[GrantEvent]] = Feed(
            owner="ShareGrants",
            outbox=outbox_table,
            reading=partial(grant_events, self.mapping),
            clock=self._store.now,
            tables=self._tables,
        )
        owner = None if accounts is None else IdType.of(_accounts_of(accounts).columns["user_id"])
        self._calls: Final = GrantCalls(self.mapping, self._store, owner=owner)
        self._place: Final = partial(
            place_of,
            mapping=self.mapping,
            tables=self._tables,
            wanted_by="one_active_per_pair",
            lock_timeout=milliseconds("lock_timeout", lock_timeout),
        )

    # -- issuing ------------------------------------------------------------------------------------------------------

    async def issue(
        self, bind: Bind, *, grantor_id: Any, link_id: Any = None, expires_in: timedelta, max_uses: int = 1
    ) -> IssuedGrant:
        """Make a token by which another user can get access.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement.
            grantor_id: The id of the signed-in user, who gives the access; never one from a request.
            link_id: The id of the linked account that the grant is about: live, and the grantor's own.
            expires_in: The time after which the token and the access expire.
            max_uses: The number of users who can redeem the token; above 1 only in the library's own table.

        Returns:
            ``IssuedGrant``, whose ``token`` no later call returns.

        Raises:
            AccountNotFound: The grantor has no such live link: it does not exist, or it is another user's.
            ConfigurationError: The table cannot serve the call. Raised before any SQL.
            BlockedByConstraint: Another unique constraint forbids the row.
            RetryTransaction, StoreBusy, StoreUnavailable: As for :meth:`AccountLinker.link`.
            OutcomeUnknown: A grant may exist whose token nobody has. Issue another.
            sqlalchemy.exc.DBAPIError: Any other violation, such as a grantor who is no user, without parameters.
        """
        token = Concealed(randomness.token_urlsafe(TOKEN_BYTES))
        call = self._calls.issue(
            token, grantor_id=grantor_id, link_id=link_id, expires_in=expires_in, max_uses=max_uses
        )
        place, call = await self._place(bind), self._store.timed(call, expires_in)
        made, retried = partial(call.within, place, self._store.issue), partial(self._store.issued, call=call)
        grant = await self._settled(place, made, retried=retried)
        if grant is None:
            raise AccountNotFound
        await self._in_step(place, grant.id, ())
        issued = IssuedGrant(
            id=grant.id,
            grantor_id=grant.grantor_id,
            link_id=grant.link_id,
            expires_at=grant.expires_at,
            max_uses=max_uses,
        )
        return issued_with(token, issued)

    # -- redeeming ----------------------------------------------------------------------------------------------------

    async def redeem(self, bind: Bind, token: str, *, grantee_id: Any) -> Granted | AlreadyGranted:
        """Give the access to the user who presents the token.

        One statement decides. Idempotent: a second call with the same user and token returns the same grant, as long as
        that lasts. A grantee cannot pass the access on: no other user can redeem a token for one use again.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement; with ``one_active_per_pair`` a
                transaction with two, since the second has to see what the one before it committed.
            token: The text that the user presented; any other value is refused as an unknown token is.
            grantee_id: The id of the signed-in user, who gets the access; never one from a request.

        Returns:
            ``Granted``: this call gave the grantee the access.
            ``AlreadyGranted``: the grantee already had the access by this token; nothing was written.

        Raises:
            GrantRejected: The token is unknown, expired, ended, used up, the user's own, another user's, or not a
                token. The error, and the number of statements, are the same for each reason.
            ConfigurationError: The user id is of the wrong type, or ``one_active_per_pair`` is set and the connection
                is in AUTOCOMMIT.
            BlockedByConstraint: Another unique constraint forbids the write, such as one on every pair.
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
            sqlalchemy.exc.DBAPIError: Any other violation, as for :meth:`issue`.
        """
        presented, token = Concealed[object](token), ""  # error reports that show a frame's locals show no token
        call = self._calls.redeem(presented, grantee_id=grantee_id)
        place = await self._place(bind, needs=Needs.SNAPSHOTS if self.mapping.one_active_per_pair else Needs.STATEMENT)
        work = partial(self._store.timed(call).within, place, self._store.redeem)
        redeemed = await self._settled(place, work, silent=nothing_more)
        if redeemed.outcome is None:
            raise GrantRejected
        await self._in_step(place, redeemed.outcome.grant.id, redeemed.ended)
        return redeemed.outcome

    # -- ending -------------------------------------------------------------------------------------------------------

    async def revoke(self, bind: Bind, *, grantor_id: Any, grant_id: Any = None, token: str | None = None) -> Revoked:
        """End a grant, redeemed or not. Idempotent: the moment of the first end stays.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement.
            grantor_id: The id of the signed-in user, who gave the access; never one from a request.
            grant_id: The grant's id. The id of an issued grant ends every use of its token; the id of a redeemed one
                ends that one. Give this or ``token``.
            token: The grant's token.

        Returns:
            ``Revoked``, with the grant as it is now.

        Raises:
            GrantRejected: This user has issued no such grant.
            ConfigurationError: Neither or both were given, or an id is of the wrong type. Raised before any SQL.
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
        """
        presented = None if token is None else Concealed[object](token)
        token = None  # error reports that show a frame's locals show no token
        call = self._calls.revoke(grantor_id=grantor_id, grant_id=grant_id, token=presented)
        place = await self._place(bind)
        ended = await run(place, partial(self._store.timed(call).within, place, self._store.revoke), Patience())
        if ended is None:
            raise GrantRejected
        await self._in_step(place, ended.grant.id, ended.others)
        return Revoked(grant=ended.grant)

    async def expire(self, bind: Bind) -> int:
        """Mark expired grants as ended. An expired grant gives no access, even where this is never called.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement, which waits for no lock: a grant that
                a concurrent transaction is writing is left for the next call.

        Returns:
            The number of grants that were marked.

        Raises:
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
        """
        place, call = await self._place(bind), self._store.timed(GrantCall())
        ended = await run(place, partial(self._store.expire, call=call), Patience())
        if place.session is not None:
            for grant_id in ended:
                await refresh_held(place, place.session, self.mapping, grant_id)
        return len(ended)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def active(
        self, bind: Bind, *, grantor_id: Any = None, grantee_id: Any = None, link_id: Any = None
    ) -> Sequence[Grant]:
        """List the grants that give access now: redeemed, not ended, not expired, and with their link unchanged.

        Call this whenever access is checked: a row's own columns do not show that its link has changed.

        Args:
            bind: As for :meth:`AccountLinker.link`.
            grantor_id: The id of a user, to list only the grants that they gave.
            grantee_id: The id of a user, to list only the grants that they have.
            link_id: The id of a linked account, to list only the grants about it.

        Returns:
            The grants, the earliest first.

        Raises:
            ConfigurationError: None of the three was given, or an id is of the wrong type.
            RetryTransaction, StoreBusy, StoreUnavailable: As for :meth:`AccountLinker.link`.
        """
        call = self._calls.active(grantor_id=grantor_id, grantee_id=grantee_id, link_id=link_id)
        place = await self._place(bind)
        return await read(place, partial(self._store.active, call=self._store.timed(call)))

    def events(
        self, engine: AsyncEngine, *, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Delivery[GrantEvent], None]:
        """Deliver the events of this table's grants, oldest first, each to one consumer at a time.

        Args:
            engine: An engine; each delivery is a transaction of its own.
            poll: The pause before the outbox is read again when no event is left; ``None`` ends the iteration instead.
            lease: The longest time for which a consumer holds an event on SQLite.

        Yields:
            Deliveries, oldest first. An event that is not acknowledged before the next one is asked for comes again.

        Raises:
            ConfigurationError: There is no outbox, or ``engine`` is not an engine of a supported database.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`issue`, when the next event is asked for.
        """
        return self._feed.consume("events", engine, Delivery, poll=poll, lease=lease, size=1)

    def batches(
        self, engine: AsyncEngine, *, size: int = 100, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Batch[GrantEvent], None]:
        """Deliver the events of this table's grants in batches, each acknowledged as a whole.

        Args:
            engine: An engine; each batch is a transaction of its own.
            size: The most events of a batch, up to 10,000.
            poll: The pause before the outbox is read again when no event is left; ``None`` ends the iteration instead.
            lease: The longest time for which a consumer holds a batch on SQLite.

        Yields:
            Batches, oldest first. A batch that is not acknowledged before the next one is asked for comes again.

        Raises:
            ConfigurationError: There is no outbox, ``engine`` is not an engine of a supported database, or ``size`` is
                out of range.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`issue`, when the next batch is asked for.
        """
        return self._feed.consume("batches", engine, Batch, poll=poll, lease=lease, size=size)

    # -- running ------------------------------------------------------------------------------------------------------

    async def _settled(
        self,
        place: Place,
        work: Work[T | None],
        *,
        silent: Callable[[], Awaitable[None]] | None = None,
        retried: Work[T | None] | None = None,
    ) -> T:
        """Run a write until the database has answered it, again after a unique violation that a race can explain.

        Args:
            place: Runs the work.
            work: The write.
            silent: Is given if the write returns ``None`` when a concurrent transaction came between.
            retried: Finds the row that an earlier attempt may have written, whose answer was lost.
        """
        patience = Patience()

        async def refused(violation: Failure) -> T | None:
            if patience.ambiguous and retried is not None:
                written = await read(place, retried)
                if written is not None:
                    return written
            look = partial(self._store.obstacle, failure=violation)
            obstacle = await run(place, look, Patience(writes=False, reads_catalogue=True))
            error = after_violation(violation, obstacle, again=patience.causes > 0, owned=place.owned)
            if error is not None:
                raise error
            return None

        return await run(place, work, patience, silent=silent, refused=refused)

    async def _in_step(self, place: Place, grant_id: object, others: Sequence[object]) -> None:
        """Update the objects that the caller's session has of the written rows."""
        if place.session is None:
            return
        await hand_over_held(place, place.session, self.mapping, grant_id)
        for other in others:
            await refresh_held(place, place.session, self.mapping, other)


def _mapping_of(grants: object, *, one_active_per_pair: bool) -> GrantMapping:
    if isinstance(grants, sa.Table):
        mapping = GrantMapping(grants)
    elif isinstance(grants, GrantMapping):
        mapping = grants
    else:
        raise ConfigurationError(
            "ShareGrants takes the table that grants_table(Base.metadata) makes, or a GrantMapping of your own table."
        )
    check_kind("one_active_per_pair", one_active_per_pair, bool)
    _check_token(mapping.columns[mapping.token_role], mapping)
    return mapping.with_one_active_per_pair() if one_active_per_pair else mapping


def _check_token(column: sa.Column[Any], mapping: GrantMapping) -> None:
    kind = plain_type(column.type)
    if isinstance(kind, sa.String) and kind.length is not None and kind.length < TOKEN_LENGTH:
        raise ConfigurationError(
            f"{column.name!r} of {mapping.name!r} takes {kind.length} characters, and a token, or its hash, has "
            f"{TOKEN_LENGTH}. Widen it."
        )


def _tables_of(mapping: GrantMapping, accounts: Accounts | None, outbox: sa.Table | None) -> list[sa.Table]:
    """Return the tables that the statements of grants name."""
    ledger = accounts.ledger if isinstance(accounts, AccountLinker) else None
    links = None if accounts is None else _accounts_of(accounts).table
    return [table for table in (mapping.table, links, ledger, outbox) if table is not None]


def _accounts_of(accounts: Accounts) -> AccountMapping[Any, Any]:
    return mapping_of(accounts.mapping if isinstance(accounts, AccountLinker) else accounts)


def _links_of(mapping: GrantMapping, accounts: Accounts | None) -> LiveLinks | None:
    """Return the linked accounts that the grants of a table are about, or ``None`` if they are about none."""
    if "link_id" not in mapping.columns:
        if accounts is not None:
            raise ConfigurationError(
                f"{mapping.name!r} has no 'link_id' column mapped, so its grants are about no linked account. Make the "
                "table with grants_table(..., link_id=Connection.id), or leave accounts= out."
            )
        return None
    if accounts is None:
        raise ConfigurationError(
            f"{mapping.name!r} has a 'link_id', and its grants have to end with the linked account. Pass "
            "accounts=linker, or map link_id=None."
        )
    linker = accounts if isinstance(accounts, AccountLinker) else None
    return LiveLinks(_accounts_of(accounts), None if linker is None else linker.ledger, grants=mapping.table)
