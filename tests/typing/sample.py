"""Show code of an application to a strict type checker. Nothing here runs; test_public_types.py checks it."""

from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import assert_never, assert_type
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountMapping,
    AlreadyGranted,
    AlreadyOwner,
    Batch,
    Change,
    Delivery,
    EventType,
    Grant,
    Granted,
    GrantMapping,
    IssuedGrant,
    Key,
    Linked,
    LinkedAccount,
    LinkedAccountMixin,
    LinkEvent,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    ProviderIdentity,
    Removal,
    Revoked,
    Secret,
    ShareGrants,
    TokenSet,
    Transferred,
    Unlinked,
    grants_table,
    link_outbox,
    transfer_ledger,
)


class Base(DeclarativeBase):
    """The application's own."""


class Connection(LinkedAccountMixin, Base):
    """A new table."""

    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    org_name: Mapped[str | None]


class Calendar(Base):
    """A table that was there before, with names of its own."""

    __tablename__ = "calendars"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    owner_id: Mapped[UUID]
    vendor: Mapped[str]
    vendor_uid: Mapped[str | None]
    vendor_mail: Mapped[str | None]
    gone_at: Mapped[datetime | None]


class Cloud(Base):
    """One that has the default names."""

    __tablename__ = "clouds"
    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    provider: Mapped[str]
    account_id: Mapped[str]


core_table = sa.Table("links", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))

linker = AccountLinker(Connection, secrets=["newest", "older"])
assert_type(linker, AccountLinker[UUID, int])

calendars = AccountMapping(
    Calendar,
    policy=LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT),
    id=Calendar.id,
    user_id=Calendar.owner_id,
    provider=Calendar.vendor,
    account_id=Calendar.vendor_uid,
    email=Calendar.vendor_mail,
    deleted_at=Calendar.gone_at,
)
assert_type(calendars, AccountMapping[UUID, int])
assert_type(AccountLinker(calendars), AccountLinker[UUID, int])
assert_type(AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id), AccountMapping[UUID, int])
assert_type(
    AccountMapping(Calendar, policy=LinkPolicy(), id=Calendar.number, user_id=Calendar.owner_id, account_id=None),
    AccountMapping[UUID, str],
)
assert_type(AccountMapping(Cloud, policy=LinkPolicy()), AccountMapping[int, str])
assert_type(AccountMapping(Cloud, policy=LinkPolicy(), id=Cloud.id), AccountMapping[int, str])
assert_type(AccountMapping(Connection, policy=Connection.__link_policy__), AccountMapping[UUID, int])
core = AccountMapping(core_table, policy=LinkPolicy(), id=core_table.c.id, email=core_table.c.mail)


async def callback(
    bind: AsyncSession | AsyncConnection | AsyncEngine, *, user: UUID, identity: ProviderIdentity, tokens: TokenSet
) -> str:
    """Link, and answer for every outcome that there is."""
    outcome = await linker.link(
        bind, user_id=user, identity=identity, credentials=tokens, expect=7, values={Connection.org_name: "acme"}
    )
    assert_type(outcome, Linked[UUID, int] | OwnershipConflict)
    match outcome:
        case Linked(account=account, change=change):
            assert_type(account, LinkedAccount[UUID, int])
            assert_type(account.id, int)
            assert_type(account.user_id, UUID)
            assert_type(change, Change)
            return outcome.redirect_url("/settings")
        case OwnershipConflict() as conflict:
            assert_type(conflict.transfer_token, str | None)
            assert_type(conflict.expires_at, datetime | None)
            return conflict.redirect_url("/settings")
        case _:
            assert_never(outcome)


async def others(bind: AsyncSession, user: UUID) -> None:
    """The other calls know the ids' types, too."""
    unlinked = await linker.unlink(bind, user_id=user, link_id=7, reason="left")
    assert_type(unlinked, Unlinked[UUID, int])
    assert_type(unlinked.redirect_url("/settings"), str)
    assert_type(await linker.unlinked(bind, user_id=user, provider="google"), Sequence[LinkedAccount[UUID, int]])
    for account in await linker.accounts(bind, user_id=user, provider="google"):
        assert_type(account, LinkedAccount[UUID, int])
    moved = await linker.transfer(bind, "token", user_id=user, max_auth_age=timedelta(minutes=2))
    match moved:
        case Transferred(account=taken, previous_owner_id=former):
            assert_type(taken, LinkedAccount[UUID, int])
            assert_type(former, UUID)
        case AlreadyOwner(account=held):
            assert_type(held, LinkedAccount[UUID, int])
        case _:
            assert_never(moved)
    owner = await linker.find_owner(bind, provider="google", account_id="1")
    assert_type(owner, LinkedAccount[UUID, int] | None)
    assert_type(await linker.account(bind, user_id=user, link_id=7), LinkedAccount[UUID, int])


async def another_way_in(connection: AsyncConnection, user_id: UUID) -> bool:
    """A guard gets the id as the column has it."""
    return user_id.int > 0 and not connection.closed


guarded = AccountLinker(Connection, guard_last=another_way_in, ledger=transfer_ledger(Base.metadata))
assert_type(guarded, AccountLinker[UUID, int])


shares = ShareGrants(grants_table(Base.metadata, user_id=sa.Uuid(), link_id=Connection.id), accounts=linker)
ShareGrants(GrantMapping(Calendar, grantor_id=Calendar.owner_id, expires_at=Calendar.gone_at), accounts=Connection)


async def share(bind: AsyncSession | AsyncEngine, user: UUID, other: UUID) -> str:
    """Give access, and answer for every outcome that there is."""
    issued = await shares.issue(bind, grantor_id=user, link_id=7, expires_in=timedelta(days=7))
    assert_type(issued, IssuedGrant)
    assert_type(issued.token, str)
    for grant in await shares.active(bind, grantee_id=other):
        assert_type(grant, Grant)
    assert_type(await shares.revoke(bind, grantor_id=user, grant_id=issued.id), Revoked)
    assert_type(await shares.expire(bind), int)
    outcome = await shares.redeem(bind, issued.token, grantee_id=other)
    match outcome:
        case Granted(grant=grant) | AlreadyGranted(grant=grant):
            return grant.expires_at.isoformat()
        case _:
            assert_never(outcome)


told = AccountLinker(Connection, outbox=link_outbox(Base.metadata))
assert_type(told, AccountLinker[UUID, int])


async def worker(engine: AsyncEngine) -> None:
    """Events know the ids' types, and a loop can be closed."""
    async with aclosing(told.events(engine, poll=timedelta(seconds=5))) as deliveries:
        async for delivery in deliveries:
            assert_type(delivery, Delivery[LinkEvent[UUID, int]])
            event = delivery.event
            assert_type(event.type, EventType)
            assert_type(event.user_id, UUID)
            assert_type(event.other_user_id, UUID | None)
            assert_type(event.link_id, int)
            await delivery.acknowledge()
    async with aclosing(told.batches(engine, size=10)) as batches:
        async for batch in batches:
            assert_type(batch, Batch[LinkEvent[UUID, int]])
            assert_type(batch.events, Sequence[LinkEvent[UUID, int]])
            await batch.acknowledge()


def secrets(tokens: TokenSet) -> tuple[str, str | None]:
    """A secret is read on purpose, and one that may be absent is asked for first."""
    assert_type(tokens.access_token, Secret)
    assert_type(tokens.refresh_token, Secret | None)
    return tokens.access_token.reveal(), tokens.refresh_token.reveal() if tokens.refresh_token else None
