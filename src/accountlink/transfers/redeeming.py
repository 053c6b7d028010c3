"""Issue transfer tokens for conflicts, and redeem them."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any, Final, Generic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accountlink.database.patience import Patience
from accountlink.database.transactions import Place, nothing_more, run
from accountlink.errors import (
    AccountLinkError,
    ConfigurationError,
    LastAccount,
    LinkBlocked,
    OutcomeUnknown,
    TokenExpired,
    TokenForAnotherUser,
    TokenForged,
    TokenRejected,
    TokenSuperseded,
)
from accountlink.linking.call import Call
from accountlink.linking.refusals import explain
from accountlink.linking.statements import Shape
from accountlink.linking.store import AccountStore
from accountlink.tables.ledger import checked_ledger
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.pending import Pending, read_kept
from accountlink.transfers.signing import Claim, RowState, TransferSigner
from accountlink.transfers.statements import TransferStatements
from accountlink.values.events import EventType
from accountlink.values.facts import Claimed, Failure, Obstacle, Step
from accountlink.values.keys import Secrets
from accountlink.values.outcomes import AlreadyOwner, LinkedAccount, LinkId, Transferred, UserId
from accountlink.values.policy import Ownership
from accountlink.values.secrecy import Concealed, Parameters
from accountlink.values.tagging import can_return

Guard = Callable[[AsyncConnection, UserId], Awaitable[bool]]
"""Says whether the user has another way to sign in, inside the transaction that would take the last account away."""


def ledger_of(mapping: AccountMapping[Any, Any], ledger: object) -> sa.Table | None:
    """Return the ledger of a linker.

    Raises:
        ConfigurationError: The table is not a ledger, or the policy is not exclusive and so has no transfers.
    """
    if ledger is None:
        return None
    if mapping.policy.ownership is not Ownership.EXCLUSIVE:
        raise ConfigurationError(
            f"{mapping.name!r} is not EXCLUSIVE, so there are no conflicts and no transfers: leave ledger= out."
        )
    return checked_ledger(ledger)


class Transfers(Generic[UserId, LinkId]):
    """Issue and redeem the transfer tokens of one table."""

    def __init__(
        self,
        accounts: AccountStore[UserId, LinkId],
        *,
        secrets: Secrets,
        ledger: sa.Table | None,
        lifetime: timedelta,
        guard: Guard[UserId] | None,
    ) -> None:
        mapping = accounts.mapping
        self.accounts: Final = accounts
        self.guard: Final = guard
        self._mapping: Final = mapping
        self._ledger: Final = ledger
        self._signer: Final = (
            None if isinstance(secrets, (tuple, list)) and not secrets else TransferSigner(secrets, table=mapping.name)
        )
        self._lifetime: Final = lifetime
        self._prepared: Final[set[tuple[bool, Shape]]] = set()

    @cached_property
    def statements(self) -> TransferStatements:
        """The builder of the statements of a transfer, made at the first conflict."""
        return TransferStatements(self._mapping, self._ledger, self.accounts.outbox, self.accounts.pending)

    def prepare(self, place: Place, conflict: Shape) -> None:
        """Build the statements of the transfer that may follow a conflict, unless they are built already.

        They are those of a claimant who brings no credentials, but for those that the conflict has kept. A transfer
        builds what it does not find: in another process than the conflict's, or with credentials.

        Args:
            place: The place where the conflict was found.
            conflict: The shape of the claimant's call.
        """
        kept = conflict.credentials if conflict.keeps else ()
        shape = Shape(credentials=kept, bounded=place.lock_timeout is not None, takes=conflict.keeps)
        if (place.on_sqlite, shape) in self._prepared:
            return
        self._prepared.add((place.on_sqlite, shape))
        self.accounts.built("claimed", self.statements.claimed)
        if self.statements.pending is not None:
            self.accounts.built("kept", self.statements.pending.read)
        self.accounts.built(*self.moving(shape, in_steps=place.on_sqlite))

    def moving(self, shape: Shape, *, in_steps: bool) -> tuple[Hashable, Callable[[], sa.Executable]]:
        """Return the key and the builder of the statement that gives a row to the claimant.

        Args:
            shape: The shape of the claimant's call.
            in_steps: Whether the epoch and the event are written by statements of their own (SQLite).
        """
        wanted = Shape(credentials=shape.credentials, bounded=shape.bounded, takes=shape.takes and not in_steps)
        build = self.statements.move if in_steps else self.statements.move_and_tell
        return ("move", in_steps, wanted), partial(build, wanted)

    def check_keeping(self, *, has_vault: bool) -> None:
        """Refuse to keep claimants' credentials where no transfer could use them, or nothing would seal them.

        Args:
            has_vault: Whether the linker has a vault.

        Raises:
            ConfigurationError: There is no vault, or the table or the linker does not support transfers.
        """
        if not has_vault:
            raise ConfigurationError("pending=... needs vault=...: a claimant's tokens are kept sealed, or not at all.")
        self._check_able()

    def offer(
        self, owned: LinkedAccount[UserId, LinkId], version: int | None, *, table: str, claimant: UserId, now: datetime
    ) -> tuple[str, datetime] | None:
        """Return a transfer token for the claimant and its end, or ``None`` if the link cannot be transferred.

        Args:
            owned: The owner's row.
            version: Its version, or its epoch in the ledger.
            table: The name of its table, with the schema in which it was read.
            claimant: The user who has just proved control of the provider account.
            now: The present moment, aware.
        """
        if self._signer is None or version is None or not can_return(owned.id):
            return None
        expires_at = (now + self._lifetime).replace(microsecond=0)
        token = self._signer.sign(
            link_id=owned.id,
            claimant=claimant,
            state=RowState.of(owned, version, table),
            jti=randomness.token_bytes(16),
            issued_at=now,
            expires_at=expires_at,
        )
        return token, expires_at

    def read(self, token: object) -> Claim | None:
        """Return the content of a token, or ``None`` for a value that is not a genuine token; raise no error."""
        return None if self._signer is None else self._signer.read(token)

    def checked(self, claim: Claim | None, *, claimant: UserId) -> Claim:
        """Return the content of a token that is genuine and was given to this user.

        Args:
            claim: What :meth:`read` returned for the token.
            claimant: The user who presents the token.

        Raises:
            ConfigurationError: The table or the linker does not support transfers.
            TokenForged: The token is not genuine, or no link can have the id in it.
            TokenForAnotherUser: The token was given to another user.
        """
        self._check_able()
        if claim is None:
            raise TokenForged
        if not claim.is_for(claimant):
            raise TokenForAnotherUser
        if not self.accounts.may_be_id("id", claim.link_id):
            raise TokenForged
        return claim

    def _check_able(self) -> None:
        if self._mapping.policy.ownership is not Ownership.EXCLUSIVE:
            raise ConfigurationError(
                f"transfer() needs Ownership.EXCLUSIVE: nobody owns an account of {self._mapping.name!r} alone."
            )
        if self._signer is None:
            raise ConfigurationError("transfer() needs AccountLinker(secrets=[...]): without them there are no tokens.")
        if not self.accounts.tells_states:
            raise ConfigurationError(
                f"transfer() has to tell the states of a row apart, and {self._mapping.name!r} has no version column "
                "mapped. Add one, or make a ledger: AccountLinker(ledger=transfer_ledger(Base.metadata))."
            )

    async def redeem(
        self, place: Place, claim: Claim, call: Call, *, now: datetime, max_age: timedelta | None
    ) -> Transferred[UserId, LinkId] | AlreadyOwner[UserId, LinkId]:
        """Give the link to the claimant, or raise the reason for a refusal.

        Args:
            place: Runs the work.
            claim: The content of the token.
            call: The claimant, the claimant's credentials, and the moment.
            now: The present moment, aware.
            max_age: The greatest age of the token; ``None`` for any age until it expires.

        Raises:
            TokenExpired, TokenSuperseded, LinkBlocked, LastAccount: See :meth:`AccountLinker.transfer`.
        """
        redemption = _Redemption(transfers=self, place=place, claim=claim, call=call, now=now, max_age=max_age)
        work = partial(call.within, place, redemption.work)
        return await run(place, work, redemption.patience, silent=nothing_more, refused=redemption.refused)


@dataclass(kw_only=True, eq=False)
class _Redemption(Generic[UserId, LinkId]):
    """Hold the state of one redemption, which its attempts share.

    On PostgreSQL a redemption takes two statements. A token vouches for a keyed digest of the row, and the database
    does not get the key. So the first statement reads the row, and Python compares it with the token. The second
    writes the row if it is unchanged since. It alone decides: after any change between the two it writes nothing.
    """

    transfers: Transfers[UserId, LinkId]
    place: Place
    claim: Claim
    call: Call
    now: datetime
    max_age: timedelta | None
    provider: str = ""
    patience: Patience = field(default_factory=lambda: Patience(writes=False))

    def work(
        self, connection: sa.Connection, call: Call
    ) -> Transferred[UserId, LinkId] | AlreadyOwner[UserId, LinkId] | None:
        """Read, decide, and give the link to the claimant; return ``None`` if a concurrent transaction came between."""
        self.call = call
        claimed, fits = self._read(connection)
        decided = of_claim(claimed, expired=self.claim.has_expired(self.now, max_age=self.max_age), fits=fits)
        if isinstance(decided, (TokenRejected, LinkBlocked)):
            # An earlier attempt, whose answer was lost, may have moved the link and so caused the refusal.
            refused: AccountLinkError = after_lost_claim(decided, ambiguous=self.patience.ambiguous)
            raise refused
        if decided is Step.OWNED and claimed.own is not None:
            return AlreadyOwner(account=claimed.own)
        named = claimed.named
        assert named is not None  # noqa: S101  # it fits
        account = self._move(connection, named, claimed.version)
        if account is None:
            return None
        return Transferred(
            account=account, previous_owner_id=named.user_id, has_credentials="access_token" in self.call.credentials
        )

    def _read(self, connection: sa.Connection) -> tuple[Claimed[UserId, LinkId], bool]:
        """Read the state of the link that the token names, and whether the token fits that state."""
        accounts, statements, claim = self.transfers.accounts, self.transfers.statements, self.claim
        table, epoch, fits = accounts.name_on(connection), len(accounts.row_roles), False
        found: Claimed[UserId, LinkId] = Claimed()
        named_by_token = Parameters(self.call.parameters, al_id=claim.link_id)
        for row in accounts.run(connection, named_by_token, "claimed", statements.claimed):
            version, account = accounts.version_of(row, epoch=epoch), accounts.account(row)
            if not self._is_of_account(account):
                continue  # another account's row has the id of a deleted one
            live, mine, named = map(bool, row[-4:-1])
            found = replace(found, why=row[-1] or found.why)
            if live and mine:
                found = replace(found, own=account)
            if named:
                fits = version is not None and claim.fits(RowState.of(account, version, table))
                found = replace(found, named=account, live=live, version=version, table=table)
        if found.named is None and found.own is None:  # only a token whose row is gone costs this
            listed = accounts.accounts(connection, Call(user_id=self.call.user_id))
            return Claimed(own=next((account for account in listed if self._is_of_account(account)), None)), False
        return found, fits

    def _is_of_account(self, account: LinkedAccount[Any, Any]) -> bool:
        return account.account_id is not None and self.claim.is_of(account.provider, account.account_id)

    def _ask(self, guard: Guard[UserId], connection: sa.Connection, owner: Concealed[UserId]) -> None:
        """Ask the guard while the owner's live links are locked, so that two calls cannot take the last two."""
        of_owner = self.call.changed(user_id=self.call.owner)
        last = self.transfers.accounts.locks_last(connection, of_owner)
        if last and not self.place.ask(guard, connection, owner):
            raise LastAccount

    def _move(
        self, connection: sa.Connection, named: LinkedAccount[UserId, LinkId], version: int | None
    ) -> LinkedAccount[UserId, LinkId] | None:
        """Give the row to the claimant, or return ``None`` if the row has changed since it was read.

        Args:
            connection: The connection that has read the row.
            named: The row.
            version: Its version, or its epoch in the ledger.
        """
        accounts, guard, in_steps = self.transfers.accounts, self.transfers.guard, self.place.on_sqlite
        statements = self.transfers.statements
        call = accounts.calls.about_row(self.call, named, version, now=self.now)
        if statements.pending is not None and call.brought is None:
            call = self._taking(connection, statements.pending, call)
        self.call = call
        key, build = self.transfers.moving(call.shape, in_steps=in_steps)
        self.provider = named.provider
        if guard is not None:
            self._ask(guard, connection, Concealed(named.user_id))
        # Write the row; on SQLite its epoch and its event follow.
        self.patience.writes = True
        row = accounts.run(connection, call.parameters, key, build).first()
        if row is None:
            return None
        account = accounts.account(row)
        if in_steps:
            if accounts.keeps_epochs:
                accounts.raise_epoch(connection, call.parameters)
            if accounts.outbox is not None:
                accounts.tell(connection, EventType.TRANSFERRED, account, call, other=call.owner)
            if (pending := statements.pending) is not None:
                accounts.run(connection, call.parameters, "drop kept", pending.drop)
        return account

    def _taking(self, connection: sa.Connection, pending: Pending, call: Call) -> Call:
        """Return the call with the credentials that the claimant's conflict has kept, if it has kept any."""
        accounts = self.transfers.accounts
        row = accounts.run(connection, call.parameters, "kept", pending.read).first()
        return call if row is None else accounts.calls.taking(call, read_kept(row))

    async def refused(self, violation: Failure) -> None:
        """Find the cause of a unique violation."""
        await explain(self.place, violation, self._obstacle, provider=self.provider, patience=self.patience)

    def _obstacle(self, connection: sa.Connection, failure: Failure) -> Obstacle[UserId, LinkId]:
        """Collect the facts behind a unique violation, without the owner, whose account a transfer is meant to take."""
        return replace(self.transfers.accounts.obstacle(connection, self.call, failure), owner=None, version=None)


def of_claim(claimed: Claimed[Any, Any], *, expired: bool, fits: bool) -> Step | TokenRejected | LinkBlocked:
    """Decide what follows a genuine transfer token of this user, by the facts that the database holds.

    A claimant who has the account already is answered first, because the token may have expired since a transfer whose
    answer was lost.

    Args:
        claimed: The rows that were found.
        expired: Whether the token is too old.
        fits: Whether the row is in the state that the token was signed for.

    Returns:
        ``Step.OWNED``, ``Step.MOVE``, or the error to raise.
    """
    if claimed.own is not None:
        return Step.OWNED
    if expired:
        return TokenExpired()
    if claimed.named is None or not claimed.live or not fits:
        return TokenSuperseded()
    if claimed.why is not None:
        return LinkBlocked(provider=claimed.named.provider, reason=claimed.why)
    return Step.MOVE


def after_lost_claim(refused: AccountLinkError, *, ambiguous: bool) -> AccountLinkError:
    """Return the error for a refusal, or ``OutcomeUnknown`` if an earlier attempt may have moved the link."""
    return OutcomeUnknown() if ambiguous else refused
