"""Grants under fire: from tasks and from processes, a token never works more often, or for more users, than it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.support.databases import Database, rows
from tests.support.effort import Effort
from tests.support.processes import Process, begin
from tests.support.redeemers import many, redeem_grants
from tests.support.shares import OWN, PAIRED, SHARED, Sharing, patients

EACH: Final = 25
"""How many calls a process makes."""
ONE_TABLE_EACH: Final = pytest.mark.parametrize("name", ["own", "own-pairs", "patients", "patients-index", "counted"])


def processes(effort: Effort) -> int:
    return 4 if effort.full else 2


def a_real_pool(database: Database) -> AsyncEngine:
    return database.engine(pool_size=32 if database.is_postgresql else 4, max_overflow=0)


async def made(name: str, database: Database, **options: Any) -> Sharing:
    return await Sharing.made(SHARED[name](), a_real_pool(database), clock=None, **options)


# -- tasks ------------------------------------------------------------------------------------------------------------


@ONE_TABLE_EACH
async def test_a_hundred_calls_of_one_user(database: Database, name: str, effort: Effort) -> None:
    """A18, F25: of a user's hundred calls one is granted, and 99 are answered that the user already has access."""
    case = await made(name, database)
    for _ in effort.rounds(1, full=10):
        issued = await case.issue()
        assert {"granted": 1, "already_granted": 99} == await many(case, [(issued.token, 2)] * 100)


@ONE_TABLE_EACH
async def test_a_hundred_users(database: Database, name: str, effort: Effort) -> None:
    """A18, F25: of a hundred users one gets the grant, 99 are refused, and the row has that one user."""
    case = await made(name, database)
    for _ in effort.rounds(1, full=10):
        issued = await case.issue()
        assert {"granted": 1, "grant_rejected": 99} == await many(case, [(issued.token, n) for n in range(2, 102)])
        assert 1 == len([grant_id for grant_id in await case.active(grantor_id=1) if grant_id == issued.id])


@pytest.mark.parametrize("name", OWN)
async def test_a_hundred_users_for_ten_uses(database: Database, name: str, effort: Effort) -> None:
    """F25: a token with ten uses gives ten users a grant; 90 are refused; a second call is AlreadyGranted."""
    case = await made(name, database)
    rounds = effort.rounds(1, full=5)
    for _ in rounds:
        issued = await case.issue(max_uses=10)
        assert {"granted": 10, "grant_rejected": 90} == await many(case, [(issued.token, n) for n in range(2, 102)])
        twice = await case.issue(max_uses=10)
        ends = await many(case, [(twice.token, n) for n in range(2, 52) for _ in range(2)])
        assert {"granted": 10, "already_granted": 10, "grant_rejected": 80} == ends
    if not case.shares.mapping.one_active_per_pair:
        assert 20 * len(rounds) == len(await case.active(grantor_id=1))
    over = "SELECT count(*) FROM accountlink_grants WHERE uses > max_uses"
    assert [(0,)] == await rows(case.engine, over)


@pytest.mark.parametrize("name", OWN)
async def test_the_last_use_of_a_user_who_clicks_twice(database: Database, name: str, effort: Effort) -> None:
    """F25: of a token with one use left, its taker's calls are one granted and the rest already granted."""
    case = await made(name, database)
    for round_ in effort.rounds(4, full=30):
        issued = await case.issue(max_uses=2)
        await case.redeem(issued.token, 1_000 + round_)
        assert {"granted": 1, "already_granted": 7} == await many(case, [(issued.token, 2)] * 8)


@pytest.mark.parametrize("name", PAIRED)
async def test_two_tokens_of_one_pair(database: Database, name: str, effort: Effort) -> None:
    """Redeemed at one instant, two tokens of a pair leave one active grant, with the unique index and without it."""
    case = await made(name, database)
    for _ in effort.rounds(6, full=40):
        tokens = [(await case.issue()).token for _ in range(4)]
        ends = await many(case, [(token, 2) for token in tokens])
        assert {"granted": 4} == ends
        assert 1 == len(await case.active(grantor_id=1, grantee_id=2))
        assert 1 == sum((await case.flags()).values())


@pytest.mark.parametrize("name", PAIRED)
async def test_two_tokens_of_one_pair_in_callers_transactions(database: Database, name: str, effort: Effort) -> None:
    """In transactions of the callers' own, while others issue and redeem: a pair has one active grant."""
    case = await made(name, database)

    async def one() -> str:
        async with AsyncSession(case.engine) as session, session.begin():
            issued = await case.issue(1, session)
        async with AsyncSession(case.engine) as session, session.begin():
            return str((await case.redeem(issued.token, 2, session)).code)

    for _ in effort.rounds(3, full=15):
        assert {"granted"} == set(await asyncio.gather(*(one() for _ in range(6))))
        assert 1 == sum((await case.flags()).values())


@ONE_TABLE_EACH
async def test_a_redemption_racing_a_revocation(database: Database, name: str, effort: Effort) -> None:
    """In any order of redeem and revoke the grant has ended afterwards, and each caller gets a true answer."""
    case = await made(name, database)
    several = {"max_uses": 3} if case.shares.mapping.is_own else {}
    for round_ in effort.rounds(8, full=40):
        issued = await case.issue(**(several if round_ % 2 else {}))
        calls = [case.ended(case.redeem(issued.token, number)) for number in (2, 2, 3)]
        calls.insert(round_ % 3, case.ended(case.revoke(grant_id=issued.id)))
        ends = Counter(await asyncio.gather(*calls))
        assert 1 == ends["revoked"]
        assert {"revoked", "granted", "already_granted", "grant_rejected"} >= set(ends)
        assert [] == await case.active(grantor_id=1)
        assert "grant_rejected" == await case.ended(case.redeem(issued.token))


@ONE_TABLE_EACH
async def test_a_grant_that_is_revoked_eight_times_at_once(database: Database, name: str, effort: Effort) -> None:
    """Eight concurrent revokes, by id and by token, all return Revoked with one moment."""
    case = await made(name, database)
    for round_ in effort.rounds(2, full=20):
        issued = await case.issue()
        if round_ % 2:
            await case.redeem(issued.token)
        named: list[dict[str, Any]] = [{"grant_id": issued.id}, {"token": issued.token}] * 4
        outcomes = await asyncio.gather(*(case.revoke(**each) for each in named))
        assert 1 == len({outcome.grant for outcome in outcomes})


async def test_everything_at_once(database: Database) -> None:
    """Concurrent redemptions, revocations and expiries raise no deadlock, and no grant that ended becomes active."""
    case = await made("own-pairs", database)
    issued = [await case.issue(grantor) for grantor in (1, 2) for _ in range(10)]
    calls = [case.ended(case.redeem(each.token, number)) for each in issued for number in (3, 4)]
    calls += [case.ended(case.revoke(1, grant_id=each.id)) for each in issued[:5]]
    ends = Counter(await asyncio.gather(*calls, *(case.shares.expire(case.engine) for _ in range(5))))
    assert 5 == ends["revoked"]
    assert {"revoked", "granted", "grant_rejected", 0} >= set(ends)
    flags = await case.flags()
    assert [False] * 5 == [flags[each.id] for each in issued[:5]]
    assert [] == await rows(
        case.engine,
        "SELECT grantor_id, grantee_id FROM accountlink_grants WHERE active AND grantee_id IS NOT NULL "
        "GROUP BY grantor_id, grantee_id HAVING count(*) > 1",
    )


# -- processes --------------------------------------------------------------------------------------------------------


async def in_processes(database: Database, name: str, work: list[list[tuple[str, int]]]) -> Counter[str]:
    """Start a process for each piece of work, let them begin together, and add up how their calls ended."""
    running = [Process(redeem_grants, url=database.url, table=name, calls=calls) for calls in work]
    await begin(running)
    ends: Counter[str] = Counter()
    for each in running:
        ends.update(*await each.rest())
    return ends


@pytest.mark.parametrize("name", ["own", pytest.param("patients-pairs", marks=pytest.mark.stress)])
async def test_one_token_in_several_processes(database: Database, name: str, effort: Effort) -> None:
    """A18, F25: calls of one user from several processes: one granted; of many users: one granted, the rest refused."""
    case = await made(name, database)
    number = processes(effort)
    calls = number * EACH
    own, others = await case.issue(), await case.issue()
    users = range(1_000, 1_000 + calls)
    work = [
        [call for user in users[at::number] for call in ((own.token, 2), (others.token, user))] for at in range(number)
    ]
    ends = await in_processes(database, name, work)
    assert {"granted": 2, "already_granted": calls - 1, "grant_rejected": calls - 1} == ends


async def test_uses_are_not_exceeded_from_several_processes(database: Database, effort: Effort) -> None:
    """F25: users from several processes for ten uses: ten have a grant, and the row counts ten."""
    case = await made("own", database)
    number = processes(effort)
    calls = number * EACH
    issued = await case.issue(max_uses=10)
    users = range(1_000, 1_000 + calls)
    work = [[(issued.token, user) for user in users[at::number]] for at in range(number)]
    assert {"granted": 10, "grant_rejected": calls - 10} == await in_processes(database, "own", work)
    assert 10 == len(await case.active(grantor_id=1))
    assert [(10,)] == await rows(case.engine, "SELECT uses FROM accountlink_grants WHERE max_uses = 10")


@pytest.mark.parametrize("name", [PAIRED[0], *(pytest.param(name, marks=pytest.mark.stress) for name in PAIRED[1:])])
async def test_tokens_of_one_pair_in_several_processes(database: Database, name: str, effort: Effort) -> None:
    """Tokens of one pair from several processes: all are granted, one after the other, and one is active."""
    case = await made(name, database)
    number = processes(effort)
    tokens = [(await case.issue()).token for _ in range(10 * number)]
    work = [[(token, 2) for token in tokens[at::number]] for at in range(number)]
    assert {"granted": len(tokens)} == await in_processes(database, name, work)
    assert 1 == sum((await case.flags()).values())
    assert 1 == len(await case.active(grantor_id=1, grantee_id=2))


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
async def test_an_engine_of_another_isolation(database: Database, level: str, effort: Effort) -> None:
    """Whatever the engine's own isolation: races end alike, and a pair has one active grant."""
    engine = database.engine(isolation_level=level, pool_size=16, max_overflow=0)
    case = await Sharing.made(patients(pairs=True)(), engine, clock=None)
    for _ in effort.rounds(3, full=10):
        tokens = [(await case.issue()).token for _ in range(4)]
        ends = await many(case, [(token, 2) for token in tokens * 2])
        assert (4, 4) == (ends["granted"], ends["already_granted"] + ends["grant_rejected"])
        assert 1 == sum((await case.flags()).values())
    plain = Sharing(patients()(), engine, clock=None)
    issued = await plain.issue()
    assert {"granted": 1, "grant_rejected": 19} == await many(plain, [(issued.token, n) for n in range(2, 22)])
