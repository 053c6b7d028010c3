"""A renewal and another call about the same link, in every order of their statements.

Another call comes before each statement of a renewal in turn, and at last after all of them; on PostgreSQL the renewal
also comes between the statements of the other call. Nothing is resurrected or lost, no foreign token can be read, no
rotation is thrown away, and no renewal moves a version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from accountlink import (
    AccountLinkError,
    AccountNotFound,
    Linked,
    NeedsConsent,
    Ownership,
    OwnershipConflict,
    TokenSet,
    Transferred,
)
from accountlink.vault.renewing import Renewing
from tests.contract.test_renewal_rules import Case
from tests.contract.test_renewing import OVER
from tests.support.databases import Database
from tests.support.models import POLICIES, identity, make_tables

LEAST = 4
"""The statements of a renewal: it reads, takes the lease, stores, and reads."""
MOST = 20
"""More statements than a renewal has; a sweep that gets here does not end."""


def over(number: int) -> TokenSet:
    ends = datetime.now(UTC) + OVER
    return TokenSet(access_token=f"old-access-{number}", refresh_token=f"old-refresh-{number}", expires_at=ends)


def living(name: str, *, refresh: bool = True) -> TokenSet:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return TokenSet(
        access_token=f"{name}-access", refresh_token=f"{name}-refresh" if refresh else None, expires_at=ends
    )


@dataclass
class Round:
    """One link whose token is over, a claimant of it, and what another call does about it.

    Attributes:
        case: The table.
        engine: The engine of the other call.
        number: Tells the rounds apart.
        link_id: The link.
        token: The claimant's transfer token, issued before the renewal begins.
        result: What the other call returned.
    """

    case: Case
    engine: AsyncEngine
    number: int
    link_id: Any = None
    token: str = ""
    result: Any = None

    @property
    def account(self) -> str:
        return f"sub-{self.number}"

    async def begin(self, *, kept: TokenSet | None) -> None:
        outcome = await self.case.linker.link(
            self.engine, user_id=1, identity=identity(self.account), credentials=over(self.number)
        )
        assert isinstance(outcome, Linked)
        self.link_id = outcome.account.id
        conflict = await self.case.linker.link(
            self.engine, user_id=2, identity=identity(self.account), credentials=kept
        )
        assert isinstance(conflict, OwnershipConflict)
        assert conflict.transfer_token is not None
        self.token = conflict.transfer_token

    async def link(self, brought: TokenSet) -> None:
        await self.case.linker.link(self.engine, user_id=1, identity=identity(self.account), credentials=brought)

    async def relink(self) -> None:
        await self.link(living("new"))

    async def relink_without(self) -> None:
        await self.link(living("new", refresh=False))

    async def unlink(self) -> None:
        await self.case.linker.unlink(self.engine, user_id=1, link_id=self.link_id)

    async def restore(self) -> None:
        await self.unlink()
        await self.relink()

    async def restore_without(self) -> None:
        await self.unlink()
        await self.relink_without()

    async def transfer(self) -> None:
        outcome = await self.case.linker.transfer(self.engine, user_id=2, token=self.token)
        assert isinstance(outcome, Transferred)

    async def replace(self) -> None:
        self.result = await self.case.linker.replace_credentials(
            self.engine,
            user_id=1,
            link_id=self.link_id,
            tokens=living("new"),
            presented=f"old-refresh-{self.number}",
        )

    async def rotate_keys(self) -> None:
        await self.case.sealed_anew(self.engine, link_id=self.link_id)

    async def row(self) -> tuple[Any, ...]:
        table = self.case.table
        query = sa.select(table.c.user_id, table.c.version, table.c.deleted_at, table.c.access_token)
        async with self.engine.connect() as connection:
            return tuple((await connection.execute(query.where(table.c.id == self.link_id))).one())

    async def holds(self, user_id: int) -> tuple[str | None, str | None]:
        """The tokens that a user can read; ``None`` if the link is theirs and has none."""
        try:
            found = await self.case.linker.stored_credentials(self.engine, user_id=user_id, link_id=self.link_id)
        except NeedsConsent:
            return None, None
        return found.access_token.reveal(), None if found.refresh_token is None else found.refresh_token.reveal()


NEW = ("new-access", "new-refresh")
KEPT = ("kept-access", "kept-refresh")
OTHERS: dict[str, Callable[[Round], Awaitable[None]]] = {
    "relink": Round.relink,
    "relink without a refresh token": Round.relink_without,
    "unlink": Round.unlink,
    "restore": Round.restore,
    "restore without a refresh token": Round.restore_without,
    "transfer": Round.transfer,
    "transfer with kept tokens": Round.transfer,
    "replace_credentials": Round.replace,
    "key rotation": Round.rotate_keys,
}


async def check(name: str, this: Round, caller: asyncio.Task[str], seen: list[tuple[Any, ...]]) -> None:
    """Look at everything after both calls have ended."""
    case, provider = this.case, this.case.provider
    user, version, deleted, access = await this.row()
    if seen:
        assert seen == [(user, version, deleted)]  # what the other call left
    state = sa.select(case.states.c.lease_by, case.states.c.lease_until).where(
        case.states.c.link_id == str(this.link_id)
    )
    async with this.engine.connect() as connection:
        assert [(None, None)] == [tuple(row) for row in await connection.execute(state)] or not provider.calls
    assert not provider.ended
    assert len(provider.calls) == len(set(provider.calls))
    new = "new-access"
    match name:
        case "unlink":
            assert deleted is not None
            assert access is None
        case "transfer" | "transfer with kept tokens":
            assert (KEPT if "kept" in name else (None, None)) == await this.holds(2)
            with pytest.raises(AccountNotFound):
                await this.holds(1)
            with pytest.raises(AccountNotFound):
                await case.linkers[0].credentials(this.engine, user_id=1, link_id=this.link_id)
        case "relink" | "restore":
            assert NEW == await this.holds(1)
        case "restore without a refresh token":
            assert (new, None) == await this.holds(1)
        case _:
            stored = await this.holds(1)
            assert stored[1] not in provider.spent  # no rotation was thrown away
            if name == "replace_credentials":
                assert this.result is (stored == NEW)
            assert (
                await case.linkers[1].credentials(this.engine, user_id=1, link_id=this.link_id)
            ).refresh_token is None
    try:
        got = await caller
    except AccountLinkError as error:
        # The transfer or the unlink came first, or tokens without a refresh token and over had come in between.
        assert isinstance(error, AccountNotFound)  # noqa: PT017  # any other error is wrong
        assert "transfer" in name or "link" in name or "restore" in name
    else:
        assert got == new or got.startswith("access-")
        assert got.startswith("access-") is (len(provider.calls) > 0) or got == new


@contextmanager
def before_statement(renewing: Renewing[Any, Any], at: int, act: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Do something right before a statement of a renewal, by its number."""
    place, count = renewing.place, 0

    def stepped(engine: AsyncEngine) -> Any:
        return stepping(place(engine))

    def stepping(made: Any) -> Any:
        attempt, reading = made.attempt, made.reading()

        async def then(work: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                await act()
            return await attempt(work)

        made.attempt = then
        if reading is not made:
            made.reading = lambda: stepping(reading)
        return made

    for each in (renewing, renewing.leases):
        object.__setattr__(each, "place", stepped)
    yield
    for each in (renewing, renewing.leases):
        object.__setattr__(each, "place", place)


@contextmanager
def before_query(engine: AsyncEngine, at: int, act: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Do something right before a statement of an engine, by its number."""
    count = 0

    def stepped(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            await_only(act())

    event.listen(engine.sync_engine, "before_cursor_execute", stepped)
    yield
    event.remove(engine.sync_engine, "before_cursor_execute", stepped)


async def ask(this: Round) -> asyncio.Task[str]:
    """Ask for a valid token of the link, and wait for the end of the renewal."""

    async def got() -> str:
        tokens = await this.case.linkers[0].credentials(this.engine, user_id=1, link_id=this.link_id)
        return tokens.access_token.reveal()

    caller = asyncio.create_task(got())
    await asyncio.wait([caller])
    await this.case.renewing().aclose()
    return caller


async def begun(name: str, case: Case, engine: AsyncEngine, number: int) -> Round:
    case.provider.calls.clear()
    this = Round(case, engine, number)
    await this.begin(kept=living("kept") if "kept" in name else None)
    return this


@pytest.mark.parametrize("name", OTHERS)
async def test_another_call_before_each_statement_of_a_renewal(engine: AsyncEngine, name: str) -> None:
    """Threat A02 among them: what the former owner's renewal brings cannot be written after a transfer."""
    case = await Case(processes=2).create(engine)
    for at in range(1, MOST):
        this = await begun(name, case, engine, at)
        seen = await _interrupted(name, this, at)
        if not seen:
            assert at > LEAST
            return
    raise AssertionError("the sweep does not end")


async def _interrupted(name: str, this: Round, at: int) -> list[tuple[Any, ...]]:
    """Let the other call come before a statement of the renewal, or after it; return whether it came before one."""
    seen: list[tuple[Any, ...]] = []

    async def act() -> None:
        await OTHERS[name](this)
        seen.append((await this.row())[:3])

    with before_statement(this.case.renewing(), at, act):
        caller = await ask(this)
    if not seen:
        await OTHERS[name](this)
    await check(name, this, caller, seen)
    return seen


@pytest.mark.parametrize("kind", ["asyncpg"])
@pytest.mark.parametrize("name", OTHERS)
async def test_a_renewal_before_each_statement_of_another_call(
    database: Database, engine: AsyncEngine, name: str
) -> None:
    """A transfer token that was issued before the renewal works after it: no version moves."""
    case = await Case(processes=2).create(engine)
    other = database.engine()
    for at in range(1, MOST):
        this = await begun(name, case, engine, at)
        if not await _overtaken(name, this, other, at):
            return
    raise AssertionError("the sweep does not end")


async def _overtaken(name: str, this: Round, other: AsyncEngine, at: int) -> bool:
    """Let the renewal come before a statement of the other call, or after it; return whether it came before one."""
    callers: list[asyncio.Task[str]] = []

    async def act() -> None:
        callers.append(await ask(replace(this, engine=engine)))

    engine, this.engine = this.engine, other
    with before_query(other, at, act):
        await OTHERS[name](this)
    this.engine = engine
    came = bool(callers)
    if not came:
        await act()
    await check(name, this, callers[0], [])
    return came


@pytest.mark.parametrize(("policy", "ledger"), [*((each, False) for each in POLICIES), ("exclusive-soft", True)])
async def test_an_unlink_in_mid_call_under_each_policy(engine: AsyncEngine, policy: str, ledger: bool) -> None:
    """A row that is deleted, or dead, is not written; the next link of the account is renewed, and no epoch moves."""
    exclusive = POLICIES[policy].ownership is Ownership.EXCLUSIVE
    tables = make_tables(POLICIES[policy])
    case = await Case(tables=tables, ledger=ledger, pending=exclusive, processes=2).create(engine)
    link_id = await case.link(engine, ends_in=OVER)
    before = await epochs(case, engine)
    assert "access-1" == await case.get(engine)
    assert before == await epochs(case, engine)
    await case.link(engine, ends_in=OVER, refresh="refresh-again")
    case.provider.asked.clear()
    caller = await case.held(engine)
    await case.linker.unlink(engine, user_id=1, link_id=link_id)
    with pytest.raises(AccountNotFound):
        await case.let(caller)
    assert [] == [row for row in await case.column(engine, "access_token", "refresh_token") if row != (None, None)]
    await case.link(engine, ends_in=OVER, refresh="refresh-new")
    assert (await case.get(engine, 1)).startswith("access-")
    assert 3 == len(case.provider.calls)


async def epochs(case: Case, engine: AsyncEngine) -> list[Any]:
    """The versions of the links, or their epochs in the ledger."""
    ledger = case.options.get("ledger")
    if ledger is None:
        return await case.column(engine, "version")
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(ledger))]
