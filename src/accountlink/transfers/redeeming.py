"""Transfers: what a conflict offers, and what becomes of it when it is redeemed."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any, Final, Generic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accountlink.database import attempts
from accountlink.database.transactions import Foreign, Place, ask
from accountlink.errors import ConfigurationError, LastAccount, LinkBlocked, TokenForAnotherUser, TokenRejected
from accountlink.linking.statements import Shape
from accountlink.linking.store import AccountStore
from accountlink.tables.ledger import checked_ledger
from accountlink.tables.mapping import AccountMapping
from accountlink.transfers.signing import Claim, RowState, Secrets, TransferSigner, can_return
from accountlink.transfers.statements import TransferStore
from accountlink.values.decide import Step, after_lost_claim, of_claim
from accountlink.values.facts import Failure, Obstacle
from accountlink.values.outcomes import AlreadyOwner, LinkedAccount, LinkId, Transferred, UserId
from accountlink.values.policy import Ownership
from accountlink.values.secrecy import Concealed, Parameters

Guard = Callable[[AsyncConnection, UserId], Awaitable[bool]]
"""Has the user another way to sign in? Asked inside the transaction that would take the last account away."""


def ledger_of(mapping: AccountMapping[Any, Any], ledger: object) -> sa.Table | None:
    """Return the ledger of a linker.

    Raises:
        ConfigurationError: It is none, or the table knows no conflicts that could end in a transfer.
    """
    if ledger is None:
        return None
    if mapping.policy.ownership is not Ownership.EXCLUSIVE:
        raise ConfigurationError(
            f"{mapping.name!r} is not EXCLUSIVE, so there are no conflicts and no transfers: leave ledger= out."
        )
    return checked_ledger(ledger)


class Transfers(Generic[UserId, LinkId]):
    """Issues and redeems the transfer tokens of one table."""

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
        self._mapping: Final = mapping
        self._accounts: Final = accounts
        self._ledger: Final = ledger
        self._signer: Final = (
            None if isinstance(secrets, (tuple, list)) and not secrets else TransferSigner(secrets, table=mapping.name)
        )
        self._lifetime: Final = lifetime
        self._guard: Final = guard

    @cached_property
    def _store(self) -> TransferStore[UserId, LinkId]:
        """Its statements are built when the first token is redeemed."""
        return TransferStore(self._accounts, self._ledger)

    def offer(
        self, owned: LinkedAccount[UserId, LinkId], version: int | None, *, table: str, claimant: UserId, now: datetime
    ) -> tuple[str, datetime] | None:
        """A token with which the claimant can have another user's link, and its end; ``None`` where there can be none.

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
            state=_state(owned, version, table),
            jti=randomness.token_bytes(16),
            issued_at=now,
            expires_at=expires_at,
        )
        return token, expires_at

    def claim(self, token: Concealed[object], *, claimant: UserId) -> Claim:
        """What a token says that is genuine and this user's.

        Raises:
            ConfigurationError: The table, or the linker, knows no transfers.
            TokenForged: It is not genuine.
            TokenForAnotherUser: It was given to another user.
        """
        claim = self._able().read(token.reveal())
        if not claim.is_for(claimant):
            raise TokenForAnotherUser
        return claim

    def _able(self) -> TransferSigner:
        name = self._mapping.name
        if self._mapping.policy.ownership is not Ownership.EXCLUSIVE:
            raise ConfigurationError(f"transfer() needs Ownership.EXCLUSIVE: nobody owns an account of {name!r} alone.")
        if self._signer is None:
            raise ConfigurationError("transfer() needs AccountLinker(secrets=[...]): without them there are no tokens.")
        if not self._accounts.tells_states:
            raise ConfigurationError(
                f"transfer() has to tell the states of a row apart, and {name!r} has no version column mapped. Add "
                "one, or make a ledger: AccountLinker(ledger=transfer_ledger(Base.metadata))."
            )
        return self._signer

    async def redeem(
        self, place: Place, claim: Claim, parameters: Parameters, *, shape: Shape, expired: bool
    ) -> Transferred[UserId, LinkId] | AlreadyOwner[UserId, LinkId]:
        """Let the link change hands, or say why not.

        Args:
            place: Where.
            claim: What the token says.
            parameters: The claimant, the link, the claimant's credentials, and the moment.
            shape: What of these there is.
            expired: Whether the token is too old for anything but ``AlreadyOwner``.

        Raises:
            TokenExpired: It is.
            TokenSuperseded: The link is not as it was when the token was issued.
            LinkBlocked: The claimant's own link to the account was removed for one of the policy's reasons.
            LastAccount: The link is the owner's last way to sign in.
            BlockedByConstraint, OwnerNotFound, OwnerLookupFailed: A unique index forbids it.
            StoreBusy, StoreUnavailable, RetryTransaction, OutcomeUnknown: The database's troubles.
        """
        redemption = _Redemption(
            accounts=self._accounts,
            store=self._store,
            claim=claim,
            parameters=parameters,
            shape=shape,
            expired=expired,
        )
        attempt: Callable[[], Awaitable[_End[UserId, LinkId] | Failure | None]] = partial(place.attempt, redemption.run)
        if self._guard is not None:
            attempt = partial(redemption.converse, place, self._guard)
        result: _End[UserId, LinkId] = await attempts.redeem(
            place, attempt, redemption.patience, look=redemption.obstacle, provider=lambda: redemption.provider
        )
        if isinstance(result, (TokenRejected, LinkBlocked)):
            raise after_lost_claim(result, ambiguous=redemption.patience.ambiguous)
        return result


_End = Transferred[UserId, LinkId] | AlreadyOwner[UserId, LinkId] | TokenRejected | LinkBlocked
"""What a redemption may come to, errors of the database aside."""


@dataclass(kw_only=True, eq=False)
class _Redemption(Generic[UserId, LinkId]):
    """One call: its attempts share what was read last."""

    accounts: AccountStore[UserId, LinkId] = field(repr=False)
    store: TransferStore[UserId, LinkId] = field(repr=False)
    claim: Claim
    parameters: Parameters
    shape: Shape
    expired: bool
    patience: attempts.Patience = field(default_factory=lambda: attempts.Patience(writes=False))
    owned: LinkedAccount[UserId, LinkId] | None = None
    read: Parameters = field(default_factory=Parameters)

    @property
    def provider(self) -> str:
        """The provider of the account, for messages."""
        return "" if self.owned is None else self.owned.provider

    def run(self, connection: sa.Connection) -> _End[UserId, LinkId] | None:
        """Read, decide, and let the link change hands; ``None`` when somebody came between."""
        ended = self._ended(connection)
        return self._moved(connection) if ended is None else ended

    async def converse(self, place: Place, guard: Guard[UserId]) -> _End[UserId, LinkId] | Failure | None:
        """Redeem under a lock on all of the owner's live links, so that two last ones cannot go concurrently."""
        try:
            return await place.converse(partial(self._talk, guard))
        except Foreign as raised:
            foreign = raised.error
        raise foreign

    async def _talk(self, guard: Guard[UserId], connection: AsyncConnection) -> _End[UserId, LinkId] | None:
        ended = await connection.run_sync(self._ended)
        if ended is not None:
            return ended
        last = await connection.run_sync(self.accounts.locks_last, self._of_owner())
        if last and not await ask(guard, connection, Concealed(self._owner())):
            raise LastAccount
        return await connection.run_sync(self._moved)

    def _of_owner(self) -> Parameters:
        bound = {name: value for name, value in self.parameters.items() if name == "al_lock_timeout"}
        return Parameters(bound, al_user_id=self.read["al_owner"], al_id=self.read["al_id"])

    def _ended(self, connection: sa.Connection) -> _End[UserId, LinkId] | None:
        """Read, and say how it ends if the link is not to change hands."""
        claimed = self.store.claimed(connection, self.parameters, self._is_of_account)
        owned, version = claimed.named, claimed.version
        fits = owned is not None and version is not None and self.claim.fits(_state(owned, version, claimed.table))
        decided = of_claim(claimed, expired=self.expired, fits=fits)
        if isinstance(decided, (TokenRejected, LinkBlocked)):
            return decided
        if decided is Step.OWNED and claimed.own is not None:
            return AlreadyOwner(account=claimed.own)
        assert owned is not None  # noqa: S101  # it fits
        self.owned, self.read = owned, self.accounts.codec.holding(owned, version)
        return None

    def _moved(self, connection: sa.Connection) -> Transferred[UserId, LinkId] | None:
        self.patience.writes = True
        account = self.store.move(connection, self.shape, Parameters(self.parameters | self.read))
        return None if account is None else Transferred(account=account, previous_owner_id=self._owner())

    def _owner(self) -> UserId:
        assert self.owned is not None  # noqa: S101  # it was read
        return self.owned.user_id

    def _is_of_account(self, account: LinkedAccount[Any, Any]) -> bool:
        return account.account_id is not None and self.claim.is_of(account.provider, account.account_id)

    def obstacle(self, connection: sa.Connection, failure: Failure) -> Obstacle[UserId, LinkId]:
        """What is behind a unique violation. That somebody owns the account is what a transfer is for."""
        found = self.accounts.obstacle(connection, Parameters(self.parameters | self.read), failure)
        return replace(found, owner=None, version=None)


def _state(owned: LinkedAccount[Any, Any], version: int, table: str) -> RowState:
    return RowState(
        owner=owned.user_id,
        provider=owned.provider,
        account_id=str(owned.account_id),
        version=version,
        table=table,
    )
