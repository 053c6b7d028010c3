"""One behavioural suite for every table of links: the mixin under each policy, and tables of the application's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    AccountMismatch,
    AccountNotFound,
    Change,
    ConfigurationError,
    InvalidIdentity,
    Key,
    Linked,
    Ownership,
    OwnershipConflict,
    Removal,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import Database
from tests.support.effort import Effort
from tests.support.mapped import TABLES, Links
from tests.support.models import Clock, identity, tokens

pytestmark = pytest.mark.each_driver

MANY = 30


@pytest.fixture(params=TABLES)
async def links(request: pytest.FixtureRequest, kind: str, engine: AsyncEngine) -> Links:
    """Each table of links in turn, created in the fresh database."""
    made: Links = TABLES[request.param](kind)
    await made.create(engine)
    return made


async def linked(linker: AccountLinker[Any, Any], bind: Any, **call: Any) -> Linked[Any, Any]:
    outcome = await linker.link(bind, **call)
    assert isinstance(outcome, Linked), outcome
    return outcome


@pytest.mark.parametrize("how", BINDS)
async def test_created_then_updated(engine: AsyncEngine, links: Links, how: str) -> None:
    """Two identical callbacks give one row with one id."""
    linker, user = links.linker(), links.user(1)
    async with bound(engine, how) as bind:
        first = await linked(linker, bind, user_id=user, identity=identity(), credentials=tokens())
    async with bound(engine, how) as bind:
        second = await linked(linker, bind, user_id=user, identity=identity(), credentials=tokens("access-2", None))
    assert (Change.CREATED, Change.UPDATED) == (first.change, second.change)
    assert first.account.id == second.account.id
    assert [(first.account.id, user, "access-2", "refresh-1")] == await links.stored(
        engine, "id", "user_id", "access_token", "refresh_token"
    )
    assert ("acme", user) == (second.account.provider, second.account.user_id)
    assert frozenset({"read", "write"}) == second.account.scopes


@pytest.mark.parametrize("how", BINDS)
async def test_conflict_or_a_row_for_each(engine: AsyncEngine, links: Links, how: str) -> None:
    """A second user of the same account: a conflict under EXCLUSIVE, a separate row under PER_USER."""
    linker, owner, other = links.linker(), links.user(1), links.user(2)
    await linked(linker, engine, user_id=owner, identity=identity(), credentials=tokens())
    before = await links.stored(engine, *links.mapping.columns)
    async with bound(engine, how) as bind:
        outcome = await linker.link(bind, user_id=other, identity=identity(), credentials=tokens("stolen"))
    if links.policy.ownership is Ownership.PER_USER:
        assert isinstance(outcome, Linked)
        assert Change.CREATED is outcome.change
        return
    assert isinstance(outcome, OwnershipConflict)
    assert owner == outcome.owner_id
    assert ("version" in links.mapping.columns) is (outcome.transfer_token is not None)
    assert before == await links.stored(engine, *links.mapping.columns)
    found = await linker.find_owner(engine, provider="acme", account_id="sub-1")
    assert found is not None
    assert owner == found.user_id


@pytest.mark.parametrize("how", BINDS)
async def test_unlinked_then_linked_again(engine: AsyncEngine, links: Links, how: str) -> None:
    """After unlinking, a soft row comes back under its id without its old credentials, a deleted one is made anew."""
    linker, user = links.linker(clock=Clock()), links.user(1)
    first = await linked(linker, engine, user_id=user, identity=identity(), credentials=tokens())
    with pytest.raises(AccountNotFound):
        await linker.unlink(engine, user_id=links.user(2), link_id=first.account.id)
    async with bound(engine, how) as bind:
        await linker.unlink(bind, user_id=user, link_id=first.account.id)
    assert [] == list(await linker.accounts(engine, user_id=user))
    soft = links.policy.removal is Removal.SOFT
    assert ([(False, None, None)] if soft else []) == await links.stored(
        engine, "live", "access_token", "refresh_token"
    )
    async with bound(engine, how) as bind:
        again = await linked(linker, bind, user_id=user, identity=identity(), credentials=tokens("access-2", None))
    assert (Change.RESTORED if soft else Change.CREATED) is again.change
    assert again.account.id == first.account.id or not soft
    assert [(True, "access-2", None)] == await links.stored(engine, "live", "access_token", "refresh_token")


async def test_moments_come_back_aware(engine: AsyncEngine, links: Links) -> None:
    """Whatever a column holds moments as, a snapshot has them aware and the row has them right."""
    linker = links.linker(clock=Clock())
    ends = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)
    account = (
        await linked(linker, engine, user_id=links.user(1), identity=identity(), credentials=tokens(expires_at=ends))
    ).account
    for role in ("created_at", "updated_at"):
        moment = getattr(account, role)
        assert (moment is None) is (role not in links.mapping.columns)
        assert moment is None or datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC) == moment
    ((held,),) = await links.stored(engine, "expires_at")
    assert held in (ends, ends.replace(tzinfo=None), int(ends.timestamp()))


async def test_many_accounts_at_one_provider(engine: AsyncEngine, links: Links) -> None:
    """Thirty accounts of one user at one provider are thirty links."""
    linker, user = links.linker(), links.user(1)
    for n in range(MANY):
        await linked(linker, engine, user_id=user, identity=identity(f"sub-{n}"), credentials=tokens())
    listed = await linker.accounts(engine, user_id=user, provider="acme")
    assert MANY == len({account.id for account in listed}) == len(listed)
    with pytest.raises(AccountNotFound):
        await linker.account(engine, user_id=links.user(2), link_id=listed[0].id)
    assert listed[0] == await linker.account(engine, user_id=user, link_id=listed[0].id)


VARIANTS = ("Straße@Example.com", "STRASSE@example.COM", "\uff33trasse@example.com", "stra\u00dfe@EXAMPLE.com")


async def test_email_variants(engine: AsyncEngine, links: Links) -> None:
    """F15: case and Unicode variants of an address meet under Key.EMAIL, and mean nothing under ACCOUNT_ID."""
    linker, user = links.linker(), links.user(1)
    by_email = links.policy.key is Key.EMAIL
    for n, variant in enumerate(VARIANTS):
        account = "sub-1" if by_email else f"sub-{n}"
        await linked(linker, engine, user_id=user, identity=identity(account, email=variant), credentials=tokens())
    assert (1 if by_email else len(VARIANTS)) == len(await linker.accounts(engine, user_id=user))
    for n, variant in enumerate(("Sub", "SUB", "\uff33ub")):
        await linked(linker, engine, user_id=user, identity=identity(variant, email=f"{n}@x.org"), credentials=tokens())
    assert (4 if by_email else 7) == len(await linker.accounts(engine, user_id=user))


async def test_an_email_key_guards_its_account_id(engine: AsyncEngine, links: Links) -> None:
    """A07: under Key.EMAIL another account id on a live address is a mismatch, where the table can tell."""
    linker, user = links.linker(), links.user(1)
    await linked(linker, engine, user_id=user, identity=identity("sub-1", email="a@x.org"), credentials=tokens())
    call = linker.link(engine, user_id=user, identity=identity("sub-2", email="A@x.org"), credentials=tokens())
    if links.policy.key is Key.ACCOUNT_ID:
        assert Change.CREATED is (await call).change  # type: ignore[union-attr]  # no conflict with oneself
    elif "account_id" in links.mapping.columns:
        with pytest.raises(AccountMismatch):
            await call
    else:
        assert Change.UPDATED is (await call).change  # type: ignore[union-attr]  # no conflict with oneself
    if links.policy.key is Key.EMAIL:
        with pytest.raises(InvalidIdentity):
            await linker.link(engine, user_id=user, identity=identity(email=None))


async def test_expecting_one_link(engine: AsyncEngine, links: Links) -> None:
    """expect= reconnects that link and no other, and never another user's."""
    linker, user = links.linker(), links.user(1)
    mine = (await linked(linker, engine, user_id=user, identity=identity(), credentials=tokens())).account.id
    again = await linked(linker, engine, user_id=user, identity=identity(), credentials=tokens(), expect=mine)
    assert (Change.UPDATED, mine) == (again.change, again.account.id)
    before = await links.stored(engine, *links.mapping.columns)
    with pytest.raises(AccountMismatch):
        await linker.link(engine, user_id=user, identity=identity("sub-2"), credentials=tokens(), expect=mine)
    with pytest.raises(AccountNotFound):
        await linker.link(engine, user_id=links.user(2), identity=identity(), credentials=tokens(), expect=mine)
    assert before == await links.stored(engine, *links.mapping.columns)


async def test_a_callers_transaction_is_his(engine: AsyncEngine, links: Links) -> None:
    """A link in a session is undone with it and committed with it; objects of the row are current."""
    linker, user = links.linker(), links.user(1)
    async with AsyncSession(engine) as session:
        await linked(linker, session, user_id=user, identity=identity(), credentials=tokens())
        await session.rollback()
    assert [] == await links.stored(engine, "id")
    async with AsyncSession(engine) as session:
        first = await linked(linker, session, user_id=user, identity=identity(), credentials=tokens())
        mapper = links.mapping.mapper
        held = None if mapper is None else await session.get(mapper.class_, first.account.id)
        await linked(linker, session, user_id=user, identity=identity(), credentials=tokens("access-2"))
        if mapper is not None:
            attribute = mapper.get_property_by_column(links.mapping.columns["access_token"]).key
            assert "access-2" == getattr(held, attribute)
            setattr(held, attribute, "by the ORM")  # which checks its version counter against the row's
        await session.commit()
    stored = "access-2" if links.mapping.mapper is None else "by the ORM"
    assert [(stored,)] == await links.stored(engine, "access_token")


async def test_one_user_in_a_race_with_themselves(database: Database, links: Links, effort: Effort) -> None:
    """Many tasks of one user on one account: one row, created once, whatever indexes there are."""
    tasks = 64 if effort.full else 24
    engine = database.engine(pool_size=24 if database.is_postgresql else 4, max_overflow=0)
    linker, user = links.linker(), links.user(1)
    rounds = effort.rounds(1, full=3)
    for round_ in rounds:
        account = identity(f"sub-{round_}")
        outcomes = await asyncio.gather(
            *(linker.link(engine, user_id=user, identity=account, credentials=tokens()) for _ in range(tasks))
        )
        changes = Counter(outcome.change for outcome in outcomes if isinstance(outcome, Linked))
        assert {Change.CREATED: 1, Change.UPDATED: tasks - 1} == changes
    assert len(rounds) == len(await links.stored(engine, "id"))


async def test_many_users_race_for_one_account(database: Database, links: Links) -> None:
    """32 users on one account: under EXCLUSIVE one owner whom all conflicts name, under PER_USER 32 rows."""
    engine = database.engine(pool_size=24 if database.is_postgresql else 4, max_overflow=0)
    linker = links.linker()
    outcomes = await asyncio.gather(
        *(linker.link(engine, user_id=links.user(n), identity=identity(), credentials=tokens()) for n in range(1, 33))
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Linked)]
    if links.policy.ownership is Ownership.PER_USER:
        assert 32 == len(winners) == len(await links.stored(engine, "id"))
        return
    owners = {outcome.owner_id for outcome in outcomes if isinstance(outcome, OwnershipConflict)}
    assert {winners[0].account.user_id} == owners
    assert 1 == len(winners) == len(await links.stored(engine, "id"))


async def test_wrong_calls_are_refused(engine: AsyncEngine, links: Links) -> None:
    """F22: a user id of another type, and a sessionmaker in place of a session, are refused before any SQL."""
    linker = links.linker()
    for wrong in ({1, "1"} - {links.user(1)}) - ({1} if isinstance(links.user(1), int) else {"1"}):
        if type(wrong) is not type(links.user(1)):
            with pytest.raises(ConfigurationError):
                await linker.link(engine, user_id=wrong, identity=identity(), credentials=tokens())
    assert [] == await links.stored(engine, "id")
