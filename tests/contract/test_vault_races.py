"""Conflicts, transfers and replaced tokens in a race, statement by statement: no token is lost, and none is another's.

What comes between two statements of a call is made to come there: see ``tests/support/gate.py``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import await_only

from accountlink import (
    AccountNotFound,
    AlreadyOwner,
    CredentialVault,
    Linked,
    OwnershipConflict,
    RetryTransaction,
    StoreBusy,
    TokenSet,
    TokenSuperseded,
    Transferred,
    Unlinked,
)
from tests.contract.test_gated_races import errors_of
from tests.support.binds import BINDS, bound
from tests.support.databases import Database, rows
from tests.support.effort import Effort
from tests.support.gate import behind, just_before
from tests.support.models import identity, tokens
from tests.support.processes import Process, Say, Wait, begin
from tests.support.vaulted import KEY, OLD_KEY, Vaulted

pytestmark = pytest.mark.parametrize("kind", ["asyncpg", pytest.param("psycopg", marks=pytest.mark.stress)])
HOWS = pytest.mark.parametrize("how", BINDS)
TABLES: dict[str, dict[str, Any]] = {"version": {}, "ledger": {"ledger": True}, "outbox": {"outbox": True}}
TABLE = pytest.mark.parametrize("table", ["version", "ledger", pytest.param("outbox", marks=pytest.mark.stress)])
MOVES = "SET user_id="
"""A part of the statement that decides a transfer."""


@pytest.fixture
def others(database: Database) -> AsyncEngine:
    """The engine of everybody else."""
    return database.engine()


async def made(engine: AsyncEngine, **options: Any) -> Vaulted:
    """A table of links, of which one user's has tokens."""
    vaulted = await Vaulted(**options).create(engine)
    await vaulted.linked(engine, credentials=tokens("former-access", "former-refresh"))
    return vaulted


# -- between the statements of a transfer -----------------------------------------------------------------------------


@HOWS
@TABLE
@pytest.mark.parametrize("kept", ["older", None])
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(MOVES, id="after the read"),
        pytest.param("accountlink_pending_credentials", id="before the read", marks=pytest.mark.stress),
    ],
)
async def test_a_second_callback_comes_between(
    database: Database, table: str, how: str, kept: str | None, part: str
) -> None:
    """The newest tokens win, also over none at all: a transfer that has read other ones reads again."""
    engine, others = database.engine(), database.engine()
    vaulted = await made(others, **TABLES[table])
    token = await vaulted.conflict(others, credentials=None if kept is None else tokens(kept, kept))
    newest = partial(vaulted.conflict, others, credentials=tokens("newest", "newest"))
    done = just_before(engine, part, newest)
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.transfer(bind, token, user_id=2)
    assert done
    assert isinstance(outcome, Transferred)
    assert outcome.has_credentials
    assert ("newest", "newest") == await vaulted.whole(others)
    assert [] == await vaulted.kept(others)


@HOWS
async def test_what_was_kept_goes_between(engine: AsyncEngine, others: AsyncEngine, how: str) -> None:
    """Tokens that were deleted since they were read are not used."""
    vaulted = await made(others)
    token = await vaulted.conflict(others, credentials=tokens())

    async def gone() -> None:
        async with others.begin() as connection:
            assert vaulted.pending is not None
            await connection.execute(sa.delete(vaulted.pending))

    just_before(engine, MOVES, gone)
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.transfer(bind, token, user_id=2)
    assert isinstance(outcome, Transferred)
    assert not outcome.has_credentials
    assert [(None, None)] == await vaulted.column(others, "access_token", "refresh_token")


@HOWS
@TABLE
@pytest.mark.parametrize("what", ["unlinks", "unlinks and links", "relinks", "is given way to another claimant"])
async def test_the_owner_acts_between(
    engine: AsyncEngine, others: AsyncEngine, table: str, how: str, what: str
) -> None:
    """What the owner does to the link supersedes the transfer; new tokens of the owner's do not survive it."""
    vaulted = await made(others, **TABLES[table])
    linker, brought = vaulted.linker, tokens("owners", "owners")
    ((link_id,),) = await vaulted.column(others, "id")
    token = await vaulted.conflict(others, credentials=tokens("claimants", "claimants"))
    third = await vaulted.conflict(others, 3, credentials=tokens("thirds", "thirds"))

    async def acts() -> None:
        if what.startswith("unlinks"):
            await linker.unlink(others, user_id=1, link_id=link_id)
        if what.endswith("links") and what != "unlinks":
            await vaulted.linked(others, credentials=brought)
        if what.startswith("is given"):
            await linker.transfer(others, third, user_id=3)

    just_before(engine, MOVES, acts)
    async with bound(engine, how) as bind:
        if what == "relinks":
            assert isinstance(await linker.transfer(bind, token, user_id=2), Transferred)
        else:
            with pytest.raises(TokenSuperseded):
                await linker.transfer(bind, token, user_id=2)
    expected = {
        "unlinks": (1, None),
        "unlinks and links": (1, "owners"),
        "relinks": (2, "claimants"),
        "is given way to another claimant": (3, "thirds"),
    }[what]
    assert [(expected[0],)] == await vaulted.column(others, "user_id")
    left = {row.user_id for row in await vaulted.kept(others)}
    assert {"2", "3"} - {str(expected[0])} == left
    if expected[1] is None:
        assert [(None, None)] == await vaulted.column(others, "access_token", "refresh_token")
    else:
        assert (expected[1], expected[1]) == await vaulted.whole(others, expected[0])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_second_callback_between_at_stricter_isolation(
    engine: AsyncEngine, others: AsyncEngine, level: str
) -> None:
    """F04, F05: the caller's transaction keeps its snapshot, so that it has to run again from its start."""
    vaulted = await made(others)
    token = await vaulted.conflict(others, credentials=tokens("older"))
    just_before(engine, MOVES, partial(vaulted.conflict, others, credentials=tokens("newest", "newest")))
    strict = engine.execution_options(isolation_level=level)
    async with AsyncSession(strict) as session:
        with pytest.raises(RetryTransaction):
            await vaulted.linker.transfer(session, token, user_id=2)
        await session.rollback()
        assert isinstance(await vaulted.linker.transfer(session, token, user_id=2), Transferred)
        await session.commit()
    assert ("newest", "newest") == await vaulted.whole(others)


@HOWS
async def test_a_callback_that_has_not_committed_makes_a_transfer_wait(
    engine: AsyncEngine, others: AsyncEngine, how: str
) -> None:
    """The transfer read older tokens, waits for the claimant's other callback, and uses that one's tokens."""
    vaulted = await made(others)
    token = await vaulted.conflict(others, credentials=tokens("older", "older"))
    async with AsyncSession(others) as rival, bound(engine, how) as bind:
        await vaulted.conflict(rival, credentials=tokens("newest", "newest"))
        waiter = asyncio.create_task(vaulted.linker.transfer(bind, token, user_id=2))
        await waiting(others)
        await rival.commit()
        assert isinstance(await waiter, Transferred)
    assert ("newest", "newest") == await vaulted.whole(others)
    assert [] == await vaulted.kept(others)


async def waiting(engine: AsyncEngine) -> None:
    """Wait until a backend waits for a lock."""
    for _ in range(1000):
        if (await rows(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("nobody waits for a lock")


# -- locks ------------------------------------------------------------------------------------------------------------


async def allowed(_connection: object, _user: object) -> bool:
    return True


@TABLE
@pytest.mark.parametrize("guarded", [False, True])
async def test_transfers_of_one_claimant_lock_in_one_order(
    database: Database, others: AsyncEngine, table: str, guarded: bool
) -> None:
    """Half of them bring tokens, and half take the kept ones: none waits for another in a circle."""
    vaulted = await made(others, **TABLES[table], **({"guard_last": allowed} if guarded else {}))
    token = await vaulted.conflict(others, credentials=tokens("kept"))
    pool = database.engine(pool_size=8, max_overflow=0)
    errors = errors_of(pool)
    calls = [
        vaulted.linker.transfer(pool, token, user_id=2, credentials=tokens("brought") if number % 2 else None)
        for number in range(8)
    ]
    outcomes = await behind(others, "SELECT 1 FROM connections FOR UPDATE", calls, waiting=8)
    assert {Transferred: 1, AlreadyOwner: 7} == Counter(map(type, outcomes))
    assert [] == errors
    assert (await vaulted.whole(others))[0] in ("kept", "brought")
    assert [] == await vaulted.kept(others)


@pytest.mark.parametrize("found", ["at once", "behind a violation"])
async def test_a_conflict_waits_no_longer_than_the_limit(engine: AsyncEngine, others: AsyncEngine, found: str) -> None:
    """F06: another transaction of the claimant's holds the kept row: StoreBusy, and the conflict leaves nothing."""
    vaulted = await Vaulted(lock_timeout=timedelta(milliseconds=150), outbox=True).create(others)
    link_id = await vaulted.linked(others, 2, credentials=tokens())
    await vaulted.linker.unlink(others, user_id=2, link_id=link_id)
    conflict = partial(vaulted.conflict, engine, credentials=tokens())
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(AsyncSession(others))
        holder = await stack.enter_async_context(AsyncSession(others))
        if found == "at once":
            await vaulted.linked(others, 1)
            await vaulted.conflict(holder, credentials=tokens())
        else:
            values: dict[str, Any] = {
                "table_name": "connections",
                "user_id": "2",
                "provider": "acme",
                "account_id": "sub-1",
            }
            values |= {"access_token": "x", "kept_until": datetime(2026, 1, 1, tzinfo=UTC)}
            assert vaulted.pending is not None
            await holder.execute(sa.insert(vaulted.pending).values(values))
            await vaulted.linked(owner, 1)
        waiter = asyncio.create_task(conflict())
        await waiting(others)
        await owner.commit()
        async with asyncio.timeout(5):
            with pytest.raises(StoreBusy) as raised:
                await waiter
        assert "55P03" == raised.value.sqlstate
        await holder.rollback()
    assert [] == await vaulted.kept(others)
    assert [] == await rows(others, "SELECT 1 FROM accountlink_events WHERE type = 'conflict'")


async def test_sweeps_of_many_claimants_wait_for_nobody(
    database: Database, others: AsyncEngine, effort: Effort
) -> None:
    """Each deletes the others' old rows after its own write, and none that is locked: no deadlock."""
    users, pool = range(2, 26), database.engine(pool_size=24, max_overflow=0)
    vaulted = await made(others)
    errors, old = errors_of(pool), {"kept_until": datetime(2025, 1, 1, tzinfo=UTC)}
    for _ in effort.rounds(3, full=100):
        calls = [vaulted.conflict(pool, user, credentials=tokens(f"of {user}")) for user in (*users, *reversed(users))]
        await asyncio.gather(*calls)
        assert {str(user) for user in users} == {row.user_id for row in await vaulted.kept(others)}
        async with others.begin() as connection:
            assert vaulted.pending is not None
            await connection.execute(sa.update(vaulted.pending).values(old))
    assert [] == errors


async def test_a_sweep_passes_over_a_row_that_is_locked(engine: AsyncEngine, others: AsyncEngine) -> None:
    """Another transaction holds an old row: the conflict does not wait for it, and deletes the other old rows."""
    vaulted = await made(others, lock_timeout=timedelta(milliseconds=150))
    for user in (3, 4):
        await vaulted.conflict(others, user, credentials=tokens())
    vaulted.clock.now += timedelta(minutes=12)
    async with others.connect() as holder:
        await holder.exec_driver_sql("SELECT 1 FROM accountlink_pending_credentials WHERE user_id = '3' FOR UPDATE")
        await vaulted.conflict(engine, credentials=tokens())
    assert {"2", "3"} == {row.user_id for row in await vaulted.kept(others)}


@pytest.mark.stress
async def test_processes_whose_conflicts_sweep(database: Database, others: AsyncEngine) -> None:
    """Eight processes with conflicts and transfers of the same few claimants, each of which ages what is kept."""
    vaulted = await made(others)
    for number in range(10):
        await vaulted.linked(others, 1, f"sub-{number}", credentials=tokens())
    running = [Process(claim_and_sweep, url=database.url, seed=seed) for seed in range(8)]
    await begin(running)
    ends: Counter[str] = Counter()
    for each in running:
        ends.update(*await each.rest())
    await asyncio.sleep(1)  # within which the server counts them
    ((deadlocks,),) = await rows(others, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    print(f"\n{dict(ends)}, {deadlocks} deadlocks")  # noqa: T201  # a measurement
    assert {"conflict", "transferred", "token_superseded", "already_owner"} >= set(ends)
    assert 0 == deadlocks


async def claim_and_sweep(say: Say, wait: Wait, *, url: str, seed: int) -> None:
    """Claim and transfer at random in a process of its own, and make all kept rows old now and then."""
    import random  # of the process

    from accountlink import AccountLinkError  # as above

    chance = random.Random(seed)  # noqa: S311  # a choice, not a secret
    engine = create_async_engine(url, pool_size=4)
    vaulted = Vaulted()
    say("ready")
    await wait()
    ends: Counter[str] = Counter()

    async def one() -> None:
        user, account = chance.randrange(2, 6), f"sub-{chance.randrange(10)}"
        try:
            outcome: Any = await vaulted.linker.link(
                engine, user_id=user, identity=identity(account), credentials=tokens()
            )
            if isinstance(outcome, OwnershipConflict):
                ends["conflict"] += 1
                if chance.random() < 0.4:
                    brought = tokens() if chance.random() < 0.5 else None
                    moved = await vaulted.linker.transfer(
                        engine, str(outcome.transfer_token), user_id=user, credentials=brought
                    )
                    ends[moved.code] += 1
        except AccountLinkError as error:
            ends[error.code] += 1

    for _ in range(100):
        await asyncio.gather(*(one() for _ in range(4)))
        if chance.random() < 0.3:
            vaulted.clock.now += timedelta(minutes=6)
    await engine.dispose()
    say(ends)


# -- several at once --------------------------------------------------------------------------------------------------


async def test_of_two_claimants_each_keeps_their_own(database: Database, others: AsyncEngine, effort: Effort) -> None:
    """One has the link, with their own tokens; what the other had kept is still theirs."""
    vaulted = await Vaulted().create(others)
    pool = database.engine(pool_size=8, max_overflow=0)
    for round_ in effort.rounds(3, full=40):
        account = f"sub-{round_}"
        link_id = await vaulted.linked(others, 1, account, credentials=tokens("former"))
        claims = {
            user: await vaulted.conflict(others, user, account, credentials=tokens(f"of {user}")) for user in (2, 3)
        }
        users = (2, 3) * 4
        ends = await asyncio.gather(
            *(vaulted.linker.transfer(pool, claims[user], user_id=user) for user in users), return_exceptions=True
        )
        assert {"Transferred": 1, "AlreadyOwner": 3, "TokenSuperseded": 4} == Counter(type(e).__name__ for e in ends)
        (winner,) = {user for user, end in zip(users, ends, strict=True) if isinstance(end, Transferred)}
        stored = await vaulted.linker.stored_credentials(others, user_id=winner, link_id=link_id)
        assert f"of {winner}" == stored.access_token.reveal()
        left = [row.user_id for row in await vaulted.kept(others) if row.account_id == account]
        assert [str(5 - winner)] == left


async def test_callbacks_and_transfers_of_one_claimant_lose_no_token(
    database: Database, others: AsyncEngine, effort: Effort
) -> None:
    """However they mix: the newest tokens are in the link, or still kept for the claimant."""
    vaulted = await Vaulted().create(others)
    pool = database.engine(pool_size=8, max_overflow=0)
    seen: Counter[str] = Counter()
    for round_ in effort.rounds(6, full=200):
        account = f"sub-{round_}"
        link_id = await vaulted.linked(others, 1, account, credentials=tokens("former"))
        token = await vaulted.conflict(others, 2, account, credentials=tokens("first", "first"))

        async def callback(account: str = account) -> Any:
            return await vaulted.linker.link(
                pool, user_id=2, identity=identity(account), credentials=tokens("second", "second")
            )

        calls: list[Awaitable[Any]] = [callback(), vaulted.linker.transfer(pool, token, user_id=2)]
        linked, moved = await asyncio.gather(*calls)
        assert isinstance(moved, Transferred | AlreadyOwner)
        stored = await vaulted.linker.stored_credentials(others, user_id=2, link_id=link_id)
        left = [row for row in await vaulted.kept(others) if row.account_id == account]
        if isinstance(linked, Linked):
            assert ("second", []) == (stored.access_token.reveal(), left)
        else:
            assert stored.access_token.reveal() == ("first" if left else "second")
        seen[f"{type(linked).__name__}, {'kept' if left else 'none kept'}"] += 1
    print(f"\n{dict(seen)}")  # noqa: T201  # which of them came first, how often


# -- a conflict that is found behind a violation ----------------------------------------------------------------------


@HOWS
@pytest.mark.parametrize("table", TABLES)
async def test_a_conflict_behind_a_violation_keeps_the_tokens(
    engine: AsyncEngine, others: AsyncEngine, table: str, how: str
) -> None:
    """F17: the claimant's dead row is restored while another user links: kept all the same, with one event."""
    vaulted = await Vaulted(**TABLES[table]).create(others)
    link_id = await vaulted.linked(others, 2, credentials=tokens())
    await vaulted.linker.unlink(others, user_id=2, link_id=link_id)
    errors = errors_of(engine)
    async with AsyncSession(others) as owner, bound(engine, how) as bind:
        await vaulted.linked(owner, 1, credentials=tokens("former"))
        waiter = asyncio.create_task(vaulted.conflict(bind, credentials=tokens("claimants", "claimants")))
        await waiting(others)
        await owner.commit()
        token = await waiter
    assert 1 == len(errors), "the violation did not come"
    assert 1 == len(await vaulted.kept(others))
    if table == "outbox":
        told = await rows(others, "SELECT user_id FROM accountlink_events WHERE type = 'conflict'")
        assert [("2",)] == told
    assert isinstance(await vaulted.linker.transfer(others, token, user_id=2), Transferred)
    assert ("claimants", "claimants") == await vaulted.whole(others)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_conflicts_of_one_claimant_at_stricter_isolation(
    engine: AsyncEngine, others: AsyncEngine, level: str
) -> None:
    """F04, F05: the second of two callers' transactions runs again; accountlink's own does so by itself."""
    vaulted = await made(others)
    strict = engine.execution_options(isolation_level=level)
    async with AsyncSession(strict) as one, AsyncSession(strict) as two:
        await two.execute(sa.text("SELECT 1"))
        await vaulted.conflict(one, credentials=tokens("one"))
        await two.execute(sa.select(vaulted.table.c.id))
        waiter = asyncio.create_task(vaulted.conflict(two, credentials=tokens("two")))
        await waiting(others)
        await one.commit()
        with pytest.raises(RetryTransaction):
            await waiter
        await two.rollback()
    (first,) = await vaulted.kept(others)
    calls = [vaulted.conflict(strict, user, credentials=tokens(f"of {user}")) for user in (2, 3, 4) * 4]
    await asyncio.gather(*calls)
    assert {"2", "3", "4"} == {row.user_id for row in await vaulted.kept(others)}
    assert first.access_token not in {row.access_token for row in await vaulted.kept(others)}


# -- replaced tokens --------------------------------------------------------------------------------------------------

NEW = TokenSet(access_token="new-access", refresh_token="new-refresh")


async def replaced(vaulted: Vaulted, bind: Any) -> bool:
    return await vaulted.linker.replace_credentials(
        bind, user_id=1, provider="acme", tokens=NEW, presented="former-refresh"
    )


async def sealed_again(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """Seal the tokens of the only link with another key, as a rotation of keys does."""
    other = vaulted.other_linker(vault=CredentialVault(keys=[OLD_KEY, KEY]))
    stored = await other.stored_credentials(engine, user_id=1, provider="acme")
    presented = stored.refresh_token
    assert presented is not None
    assert await other.replace_credentials(
        engine, user_id=1, provider="acme", tokens=stored, presented=presented.reveal()
    )


@HOWS
async def test_a_rotation_of_keys_between_does_not_lose_new_tokens(
    engine: AsyncEngine, others: AsyncEngine, how: str
) -> None:
    """The row changed and its tokens did not: it is read and written again, under the newest key of the caller."""
    vaulted = await made(others)
    vaulted.linker = vaulted.other_linker(vault=CredentialVault(keys=[KEY, OLD_KEY]))
    done = just_before(engine, "UPDATE connections", partial(sealed_again, vaulted, others))
    async with bound(engine, how) as bind:
        assert await replaced(vaulted, bind)
    assert done
    assert ("new-access", "new-refresh") == await vaulted.whole(others, 1)


async def test_a_row_that_changes_at_every_look_is_busy(engine: AsyncEngine, others: AsyncEngine) -> None:
    """The attempts are bounded, and nothing is written."""
    vaulted = await made(others)
    vaulted.linker = vaulted.other_linker(vault=CredentialVault(keys=[KEY, OLD_KEY]))
    sa.event.listen(engine.sync_engine, "before_cursor_execute", _each_time(vaulted, others))
    with pytest.raises(StoreBusy):
        await replaced(vaulted, engine)
    assert ("former-access", "former-refresh") == await vaulted.whole(others, 1)


def _each_time(vaulted: Vaulted, others: AsyncEngine) -> Callable[..., None]:
    def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "UPDATE connections" in statement:
            await_only(sealed_again(vaulted, others))

    return look


@HOWS
@pytest.mark.parametrize("what", ["links again", "unlinks", "loses the link", "replaces too"])
async def test_another_call_between_is_not_overwritten(
    engine: AsyncEngine, others: AsyncEngine, how: str, what: str
) -> None:
    """What the other call has stored stays, and the answer is true."""
    vaulted = await made(others)
    linker = vaulted.linker
    ((link_id,),) = await vaulted.column(others, "id")
    token = await vaulted.conflict(others, credentials=tokens("claimants", "claimants"))
    brought = TokenSet(access_token="other-access", refresh_token="other-refresh")
    acts: dict[str, Callable[[], Awaitable[Any]]] = {
        "links again": partial(vaulted.linked, others, credentials=brought),
        "unlinks": partial(linker.unlink, others, user_id=1, link_id=link_id),
        "loses the link": partial(linker.transfer, others, token, user_id=2),
        "replaces too": partial(
            linker.replace_credentials,
            others,
            user_id=1,
            link_id=link_id,
            tokens=brought,
            presented="former-refresh",
        ),
    }
    done = just_before(engine, "UPDATE connections", acts[what])
    async with bound(engine, how) as bind:
        if what in ("unlinks", "loses the link"):
            with pytest.raises(AccountNotFound):
                await replaced(vaulted, bind)
        else:
            assert not await replaced(vaulted, bind)
    assert [True] == [result is True or isinstance(result, int | Unlinked | Transferred) for result in done]
    if what == "unlinks":
        assert [(None, None)] == await vaulted.column(others, "access_token", "refresh_token")
    elif what == "loses the link":
        assert ("claimants", "claimants") == await vaulted.whole(others)
    else:
        assert ("other-access", "other-refresh") == await vaulted.whole(others, 1)
