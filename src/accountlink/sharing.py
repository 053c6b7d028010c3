"""ShareGrants: access that one user gives another, by a token that is issued first and redeemed later."""

from __future__ import annotations

import secrets as randomness
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database import attempts
from accountlink.database.sessions import hand_over_held, refresh_held
from accountlink.database.transactions import (
    AutocommitConnection,
    Bind,
    FreshTransactions,
    Place,
    Work,
    place_of,
)
from accountlink.errors import AccountNotFound, ConfigurationError, GrantRejected, OutcomeUnknown, StoreBusy
from accountlink.grants.events import grant_events
from accountlink.grants.mapping import GrantMapping
from accountlink.grants.store import GrantStore
from accountlink.linker import LEASE, LOCK_TIMEOUT, AccountLinker
from accountlink.linking.live_links import LiveLinks
from accountlink.outbox.consuming import Batch, Delivery, consume
from accountlink.outbox.deliveries import Hold, holder
from accountlink.outbox.table import checked_outbox
from accountlink.tables.arguments import (
    check_callable,
    check_id,
    check_kind,
    check_span,
    mapping_of,
    milliseconds,
    moment_of,
)
from accountlink.tables.exact import Spelling
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.mixin import LinkedAccountMixin
from accountlink.tables.type_layers import plain_type
from accountlink.values.decide import CAUSES, RUNS
from accountlink.values.events import GrantEvent
from accountlink.values.facts import Failure, Trouble
from accountlink.values.grants import AlreadyGranted, Grant, Granted, IssuedGrant, Revoked, after_violation, issued_with
from accountlink.values.secrecy import Concealed, ConcealedText, Parameters
from accountlink.values.text import storable

TOKEN_BYTES: Final = 32
"""Of randomness in a token: 256 bits."""
TOKEN_LENGTH: Final = 43
"""Characters: of a token in URL-safe base64 without padding, and of its SHA-256 too."""
MAX_TOKEN: Final = 4096
"""Characters: a longer text is no token, here or in a table that held tokens before."""
MAX_USES: Final = 2**31 - 1
_NO_TEXT: Final = b"\xff"
"""No text has this byte in UTF-8, so that what is hashed with it in front is the hash of no token."""
T = TypeVar("T")
Accounts = AccountLinker[Any, Any] | AccountMapping[Any, Any] | type[LinkedAccountMixin]
"""The place of the links: a linker, a mapping, or a model with the mixin."""


class ShareGrants:
    """Gives one user access to what is another's: a token is issued, redeemed once, and ends by time or by its grantor.

    One object serves an application; it holds no connection and no state of any call.

    Args:
        grants: The table that ``grants_table(Base.metadata)`` makes, or a :class:`GrantMapping` onto a table of your
            own with one row per token.
        accounts: The :class:`AccountLinker` (or the mapping or model) of the linked accounts that grants are about,
            where the table has a ``link_id``: a grant ends when its account is unlinked or transferred.
        outbox: The table that ``link_outbox(Base.metadata)`` makes, a linker's or one of its own: it gets an event when
            a grant is issued, redeemed or revoked, in the same transaction. :meth:`events` reads it. Without it nobody
            is told.
        clock: Returns the present moment, aware. Without it PostgreSQL's own clock decides when a grant ends, which is
            the same for all servers of the application; on SQLite it is this machine's.
        one_active_per_pair: Whether a grant that is redeemed ends the earlier one of the same grantor and grantee. On
            PostgreSQL that takes a transaction with one statement more. The mapping, or ``grants_table``, can say so
            too.
        lock_timeout: As for :class:`AccountLinker`.

    Raises:
        ConfigurationError: A table that cannot serve, a ``link_id`` without ``accounts``, or a table that is no outbox.
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
        told = None if outbox is None else checked_outbox(outbox)
        self._store: Final = GrantStore(self.mapping, _links_of(self.mapping, accounts), told, clock=clock is not None)
        self._tables: Final = _tables_of(self.mapping, accounts, told)
        self._owner_type: Final = None if accounts is None else IdType.of(_accounts_of(accounts).columns["user_id"])
        self._types: Final = {role: IdType.of(column) for role, column in self.mapping.columns.items()}
        self._spelling: Final = Spelling(self.mapping, self.mapping.token_role)
        self._clock: Final = _now if clock is None else check_callable("clock", clock)
        self._lock_timeout: Final = milliseconds("lock_timeout", lock_timeout)

    # -- issuing ------------------------------------------------------------------------------------------------------

    async def issue(
        self, bind: Bind, *, grantor_id: Any, link_id: Any = None, expires_in: timedelta, max_uses: int = 1
    ) -> IssuedGrant:
        """Make a token with which another user can get access.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement.
            grantor_id: The signed-in user, who gives the access; never what a request said.
            link_id: The linked account that the grant is about: live, and the grantor's own.
            expires_in: How long the grant lasts at most, token and access alike.
            max_uses: How many users can redeem the token; more than one in the library's own table only.

        Returns:
            ``IssuedGrant``, whose ``token`` no later call returns.

        Raises:
            AccountNotFound: The grantor has no such live link: it does not exist, or it is another user's.
            ConfigurationError: A call that the table cannot serve. Before any SQL.
            BlockedByConstraint: Another unique constraint forbids the row.
            RetryTransaction, StoreBusy, StoreUnavailable: As for :meth:`AccountLinker.link`.
            OutcomeUnknown: A grant may be there whose token nobody has. Issue another.
            sqlalchemy.exc.DBAPIError: Any other violation, such as a grantor who is no user, without parameters.
        """
        self._check("grantor_id", grantor_id)
        self._check_terms(expires_in, max_uses)
        token = Concealed(randomness.token_urlsafe(TOKEN_BYTES))
        parameters = Parameters(self._made(token), al_grantor_id=grantor_id, al_max_uses=max_uses)
        if link_id is not None:
            self._check_link(link_id)
            if self._owner_type is not None and not self._owner_type.holds(grantor_id):
                raise AccountNotFound
            parameters.update(al_link_id=link_id, al_shared_link=link_id, al_shared_owner=grantor_id)
        place = await self._place(bind)
        self._stamp(place, parameters, expires_in)
        patience = attempts.Patience()
        made = partial(self._store.issue, parameters=parameters)
        grant = await self._settled(place, made, patience, retried=partial(self._store.issued, parameters=parameters))
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

        One statement decides. Idempotent: the same user with the same token again has the same grant, as long as it
        lasts. A grantee cannot pass the access on: the token is theirs, or used up.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement; with ``one_active_per_pair`` a
                transaction with two, since the second has to see what the one before it committed.
            token: What was presented, of whatever kind and size.
            grantee_id: The signed-in user, who gets the access; never what a request said.

        Returns:
            ``Granted``: the grantee has the access, by this call.
            ``AlreadyGranted``: the grantee has it already, by this token; nothing was written.

        Raises:
            GrantRejected: Anything else: unknown, expired, ended, used up, their own, another's, no token at all. One
                answer, in one number of statements.
            ConfigurationError: A user id of the wrong type; ``one_active_per_pair`` on a connection in AUTOCOMMIT.
            BlockedByConstraint: Another unique constraint forbids it, such as one on every pair.
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
            sqlalchemy.exc.DBAPIError: Any other violation, as for :meth:`issue`.
        """
        presented, token = Concealed[object](token), ""  # a traceback with locals shows what a frame still holds
        self._check("grantee_id", grantee_id)
        parameters = Parameters(self._presented(presented, user=grantee_id), al_grantee_id=grantee_id)
        parameters["al_grantee_id_as_grantor_id"] = grantee_id
        place = await self._place(bind, pairs=self.mapping.one_active_per_pair)
        self._stamp(place, parameters)
        patience, redeem = attempts.Patience(), partial(self._store.redeem, parameters=parameters)
        for _ in range(RUNS):
            redeemed = await self._settled(place, redeem, patience)
            if redeemed is not None:
                break
        else:
            raise OutcomeUnknown if patience.ambiguous else StoreBusy
        if redeemed.outcome is None:
            raise GrantRejected
        await self._in_step(place, redeemed.outcome.grant.id, redeemed.ended)
        return redeemed.outcome

    # -- ending -------------------------------------------------------------------------------------------------------

    async def revoke(self, bind: Bind, *, grantor_id: Any, grant_id: Any = None, token: str | None = None) -> Revoked:
        """End a grant, redeemed or not. Idempotent: the moment of the first end stays.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement.
            grantor_id: The signed-in user, who gave the access; never what a request said.
            grant_id: The grant's id: of an issued one, which ends all that came of its token, or of one that was
                redeemed. Give this, or
            token: its token.

        Returns:
            ``Revoked``, with the grant as it is now.

        Raises:
            GrantRejected: This user has issued no such grant.
            ConfigurationError: Neither or both were given, or an id of the wrong type. Before any SQL.
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
        """
        presented = None if token is None else Concealed[object](token)
        token = None
        self._check("grantor_id", grantor_id)
        if (grant_id is None) == (presented is None):
            raise ConfigurationError("revoke() needs a grant_id or a token, and not both.")
        parameters = Parameters(al_grantor_id=grantor_id)
        if presented is not None:
            role = self.mapping.token_role
            parameters.update(self._presented(presented))
        else:
            role = "id"
            self._check("id", grant_id, what="grant_id", outside=GrantRejected)
            parameters["al_id"] = grant_id
        place = await self._place(bind)
        self._stamp(place, parameters)
        revoke = partial(self._store.revoke, parameters=parameters, role=role)
        ended = await attempts.run(place, revoke, attempts.Patience())
        if ended is None:
            raise GrantRejected
        await self._in_step(place, ended.grant.id, ended.others)
        return Revoked(grant=ended.grant)

    async def expire(self, bind: Bind) -> int:
        """Mark what has expired as ended; no grant lasts longer where this is never called.

        Args:
            bind: As for :meth:`AccountLinker.link`. On PostgreSQL one statement, which waits for nobody: a grant that
                somebody is just writing is left for the next time.

        Returns:
            How many grants were marked.

        Raises:
            RetryTransaction, StoreBusy, StoreUnavailable, OutcomeUnknown: As for :meth:`AccountLinker.link`.
        """
        place = await self._place(bind)
        parameters = self._store.moments(place.dialect, moment_of(self._clock))
        ended = await attempts.run(place, partial(self._store.expire, parameters=parameters), attempts.Patience())
        if place.session is not None:
            for grant_id in ended:
                attempts.done(place, await refresh_held(place.session, self.mapping, grant_id))
        return len(ended)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def active(
        self, bind: Bind, *, grantor_id: Any = None, grantee_id: Any = None, link_id: Any = None
    ) -> Sequence[Grant]:
        """List the grants that give access now: redeemed, not ended, not expired, and about a link that is as it was.

        Ask this whenever access is to be allowed; a row's own columns do not tell all of it.

        Args:
            bind: As for :meth:`AccountLinker.link`.
            grantor_id: Only those that this user gave.
            grantee_id: Only those that this user has.
            link_id: Only those about this linked account.

        Returns:
            The grants, the earliest first.

        Raises:
            ConfigurationError: None of the three was given, or an id of the wrong type.
            RetryTransaction, StoreBusy, StoreUnavailable: As for :meth:`AccountLinker.link`.
        """
        given = {"grantor_id": grantor_id, "grantee_id": grantee_id, "link_id": link_id}
        roles = tuple(role for role, value in given.items() if value is not None)
        if not roles:
            raise ConfigurationError("active() needs a grantor_id, a grantee_id or a link_id.")
        for role in roles:
            if role == "link_id":
                self._check_link(given[role])
            else:
                self._check(role, given[role])
        place = await self._place(bind)
        parameters = Parameters((f"al_{role}", given[role]) for role in roles)
        parameters |= self._store.moments(place.dialect, moment_of(self._clock))
        return await attempts.read(place, partial(self._store.active, parameters=parameters, roles=roles))

    def events(
        self, engine: AsyncEngine, *, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Delivery[GrantEvent], None]:
        """Deliver what happened to the grants of this table, as :meth:`AccountLinker.events` does for links.

        Args:
            engine: An engine; each delivery is a transaction of its own.
            poll: How long to wait when nothing is left, and to look again; ``None`` ends instead.
            lease: How long an event is in a consumer's hands on SQLite at the most.

        Yields:
            Deliveries, oldest first; one that is not acknowledged before the next is asked for comes again.

        Raises:
            ConfigurationError: There is no outbox, or this is no engine of a database that is supported.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`issue`, when the next event is asked for.
        """
        return consume(self._holding("events", engine), Delivery, poll=poll, lease=lease, size=1)

    def batches(
        self, engine: AsyncEngine, *, size: int = 100, poll: timedelta | None = None, lease: timedelta = LEASE
    ) -> AsyncGenerator[Batch[GrantEvent], None]:
        """Deliver what happened to the grants of this table in batches, as :meth:`AccountLinker.batches` does.

        Args:
            engine: An engine; each batch is a transaction of its own.
            size: How many events a batch has at the most, up to 10,000.
            poll: How long to wait when nothing is left, and to look again; ``None`` ends instead.
            lease: How long a batch is in a consumer's hands on SQLite at the most.

        Yields:
            Batches, oldest first; one that is not acknowledged before the next is asked for comes again.

        Raises:
            ConfigurationError: There is no outbox, this is no engine of a database that is supported, or no such size.
            StoreBusy, StoreUnavailable, RetryTransaction: As for :meth:`issue`, when the next batch is asked for.
        """
        return consume(self._holding("batches", engine), Batch, poll=poll, lease=lease, size=size)

    def _holding(
        self, what: str, engine: AsyncEngine
    ) -> Callable[[timedelta, int], tuple[Place, Callable[[], Hold[GrantEvent]]]]:
        if self._store.outbox is None:
            raise ConfigurationError(f"{what}() needs ShareGrants(outbox=link_outbox(Base.metadata)).")
        check_kind("engine", engine, AsyncEngine)
        reading = grant_events(self.mapping, self._store.outbox, engine.dialect)
        return partial(holder, engine, reading, partial(moment_of, self._clock), tables=self._tables)

    # -- what a call must bring ---------------------------------------------------------------------------------------

    def _check(self, role: str, value: object, *, what: str | None = None, outside: Any = None) -> None:
        check_id(what or role, value, self.mapping.columns[role].name, self._types[role], outside=outside)

    def _check_link(self, link_id: object) -> None:
        if "link_id" not in self.mapping.columns:
            raise ConfigurationError(
                f"{self.mapping.name!r} has no 'link_id' column mapped. Make the table with grants_table(..., "
                "link_id=Connection.id), map link_id=..., or pass no link_id."
            )
        self._check("link_id", link_id, outside=AccountNotFound)

    def _check_terms(self, expires_in: object, max_uses: object) -> None:
        check_span("expires_in", expires_in)
        if isinstance(max_uses, bool) or not isinstance(max_uses, int) or not 1 <= max_uses <= MAX_USES:
            raise ConfigurationError(f"max_uses= takes a whole number from 1 to {MAX_USES}.")
        if max_uses > 1 and not self.mapping.is_own:
            raise ConfigurationError(
                f"{self.mapping.name!r} has one row per token, which serves max_uses=1 only. Issue a token for each "
                "user, or use the library's own table: ShareGrants(grants_table(Base.metadata))."
            )

    def _made(self, token: Concealed[str]) -> Parameters:
        """The parameters of a new token.

        Raises:
            ConfigurationError: The column's type makes another text of it, by which it would never be found.
        """
        made = self._parameters(token.reveal())
        role = self.mapping.token_role
        if not self._spelling.keeps(made[f"al_{role}"]):
            raise ConfigurationError(
                f"{self.mapping.columns[role].name!r} of {self.mapping.name!r} has a type that changes the text it is "
                "given, and a token, or its hash, is compared byte by byte. Use a type that keeps it as it is."
            )
        return made

    def _presented(self, token: Concealed[Any], *, user: object = None) -> Parameters:
        """The parameters by which a token is looked up; what cannot be one is looked up, too, and not found."""
        text = token.reveal()
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TOKEN or not storable(text):
            text = randomness.token_urlsafe(TOKEN_BYTES)
        found = self._parameters(text, user=user)
        if not self._spelling.keeps(found[f"al_{self.mapping.token_role}"]):
            return self._parameters(randomness.token_urlsafe(TOKEN_BYTES), user=user)
        return found

    def _parameters(self, text: str, *, user: object = None) -> Parameters:
        if "token_hash" not in self.mapping.columns:
            return Parameters(al_token=ConcealedText(text))
        digest = sha256(text.encode()).digest()
        filled = Parameters(al_token_hash=ConcealedText(_base64(digest)))
        if user is not None and self.mapping.is_own:
            stored = self._types["grantee_id"].stored(user)
            use = sha256(_NO_TEXT + digest + str(stored).encode("utf-8", "surrogatepass")).digest()
            filled["al_use_hash"] = ConcealedText(_base64(use))
        return filled

    def _stamp(self, place: Place, parameters: Parameters, expires_in: timedelta | None = None) -> None:
        now = moment_of(self._clock)
        parameters |= self._store.moments(place.dialect, now, expires_in)
        parameters |= self._store.occasion(place.dialect, now, issues=expires_in is not None)
        if self._lock_timeout is not None and place.owned and place.dialect == "postgresql":
            parameters["al_lock_timeout"] = self._lock_timeout

    async def _place(self, bind: Bind, *, pairs: bool = False) -> Place:
        if pairs and isinstance(bind, AsyncEngine) and bind.dialect.name == "postgresql":
            fresh = FreshTransactions(engine=bind, dialect="postgresql")
            fresh.tables = self._tables
            return fresh
        place = attempts.reached(await place_of(bind, self.mapping))
        place.tables = self._tables
        if pairs and isinstance(place, AutocommitConnection) and place.dialect == "postgresql":
            raise ConfigurationError(
                "one_active_per_pair needs a transaction around two statements, and this connection is in AUTOCOMMIT. "
                "Pass the engine, or a connection in a transaction."
            )
        return place

    # -- running ------------------------------------------------------------------------------------------------------

    async def _settled(
        self,
        place: Place,
        work: Work[T],
        patience: attempts.Patience,
        *,
        retried: Work[T | None] | None = None,
    ) -> T:
        """Run a write until it is settled: a unique index that only a race can violate has it run again.

        Args:
            place: Where.
            work: The write.
            patience: What is left of trying again.
            retried: Finds what an attempt has written whose answer was lost.
        """
        causes = CAUSES
        while isinstance(result := await place.attempt(work), Failure):
            if result.trouble not in (Trouble.UNIQUE, Trouble.DEFERRABLE):
                await patience.recover(place, result)
                continue
            if patience.ambiguous and retried is not None:
                written = await attempts.read(place, retried)
                if written is not None:
                    return written
            causes -= 1
            obstacle = await attempts.read_catalogue(place, partial(self._store.obstacle, failure=result))
            error = after_violation(result, obstacle, again=causes > 0, owned=place.owned)
            if error is not None:
                raise error
        return result

    async def _in_step(self, place: Place, grant_id: object, others: Sequence[object]) -> None:
        """Keep the objects that the caller's session holds in step with what was written."""
        if place.session is None:
            return
        attempts.done(place, await hand_over_held(place.session, self.mapping, grant_id))
        for other in others:
            attempts.done(place, await refresh_held(place.session, self.mapping, other))


def _now() -> datetime:
    return datetime.now(UTC)


def _base64(digest: bytes) -> str:
    return urlsafe_b64encode(digest).decode().rstrip("=")


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
    """The tables that the statements of grants name."""
    ledger = accounts.ledger if isinstance(accounts, AccountLinker) else None
    links = None if accounts is None else _accounts_of(accounts).table
    return [table for table in (mapping.table, links, ledger, outbox) if table is not None]


def _accounts_of(accounts: Accounts) -> AccountMapping[Any, Any]:
    return mapping_of(accounts.mapping if isinstance(accounts, AccountLinker) else accounts)


def _links_of(mapping: GrantMapping, accounts: Accounts | None) -> LiveLinks | None:
    """The linked accounts that the grants of a table are about."""
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
