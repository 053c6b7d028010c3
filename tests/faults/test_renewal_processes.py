"""Several real processes ask for one expired token at a provider that rotates, and ends the grant at reuse.

Whatever becomes of the winner, the grant lives, or the callers hear truthfully that it does not; no process asks while
another has the lease, and nobody asks more often than stated.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.tables.refreshes import refresh_states
from tests.support import renewers
from tests.support.databases import Database
from tests.support.effort import Effort
from tests.support.processes import Process, begin
from tests.support.renewers import LIFETIME, OVER, RotatingProvider, link, renewed, rotating

STRESS = pytest.mark.stress
KINDS = ("asyncpg", "sqlite", "psycopg")
ONE = pytest.mark.parametrize("kind", ["asyncpg", *(pytest.param(each, marks=STRESS) for each in KINDS[1:])])


@pytest.fixture
async def provider() -> AsyncIterator[RotatingProvider]:
    async with rotating() as serving:
        yield serving


class Race:
    """A link whose token is over, and processes that ask for it."""

    def __init__(self, database: Database, engine: AsyncEngine, provider: RotatingProvider, effort: Effort) -> None:
        self.database, self.engine, self.provider = database, engine, provider
        self.processes, self.tasks = (8, 20) if effort.full else (3, 4)
        self.slowness = 8 if effort.full else 1  # so many processes connect for seconds
        self.running: list[Process] = []

    async def begin(
        self, *, of: dict[int, dict[str, Any]] | None = None, ends_in: timedelta = OVER, **options: Any
    ) -> None:
        """Start the processes, with options for some of them by their numbers, and let them ask together."""
        self.case = await renewed(self.provider.url).create(self.engine)
        await link(self.case, self.engine, ends_in=ends_in)
        self.version = await self.case.column(self.engine, "version")
        await self.engine.dispose()
        told = {"url": self.database.url, "provider": self.provider.url, "times": self.tasks} | options
        self.running = [
            Process(renewers.ask, **(told | {"number": number} | (of or {}).get(number, {})))
            for number in range(self.processes)
        ]
        await begin(self.running)

    async def asked(self) -> int:
        """Wait until a process asks the provider, and return its number."""
        await asyncio.wait_for(self.provider.asked.wait(), 30)
        return self.provider.calls[-1][0]

    async def ends(self, *, but: int | None = None) -> Counter[str]:
        """How the calls of all processes end, but for one that does not tell."""
        living = [each for number, each in enumerate(self.running) if number != but]
        said = await asyncio.gather(*(each.rest() for each in living))
        if self.provider.calls:
            assert 1 == self.provider.most_at_once
        assert self.version == await self.case.column(self.engine, "version")
        return sum((each for (each,) in said), Counter())

    @property
    def all(self) -> int:
        return self.processes * self.tasks

    async def again(self) -> str:
        """What a caller gets later, when the moment of the next attempt has come."""
        states = refresh_states(self.case.tables.metadata)
        past = datetime.now(UTC) - timedelta(minutes=1)
        async with self.engine.begin() as connection:
            await connection.execute(sa.update(states).where(states.c.retry_at.is_not(None)).values(retry_at=past))
        return await renewers.ended(self.case, self.engine)

    async def is_over(self) -> None:
        """Let the stored token be over."""
        table = self.case.table
        async with self.engine.begin() as connection:
            await connection.execute(sa.update(table).values(expires_at=datetime.now(UTC) + OVER))

    async def state(self) -> Any:
        states = refresh_states(self.case.tables.metadata)
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(states))).mappings().one()


@pytest.fixture
def race(database: Database, engine: AsyncEngine, provider: RotatingProvider, effort: Effort) -> Race:
    return Race(database, engine, provider, effort)


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "an hour ahead": {"of": {0: {"ahead": 3_600.0}, 1: {"ahead": -3_600.0}}},
    "a pool of one connection": {"pool": {"pool_size": 1, "max_overflow": 0}},
    "repeatable read": {"pool": {"isolation_level": "REPEATABLE READ"}},
    "a server in repeatable read": {"server": "repeatable read"},
    "autocommit": {"pool": {"isolation_level": "AUTOCOMMIT"}},
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(kind, how, marks=() if kind == "asyncpg" or (kind, how) == ("sqlite", "plain") else STRESS)
        for kind in KINDS
        for how in HOW
    ],
)
async def test_all_get_the_new_token_by_one_call(race: Race, how: str) -> None:
    """At most 1 call."""
    if "repeatable read" in how and race.engine.dialect.name == "sqlite":
        return  # which has SERIALIZABLE alone
    options = HOW[how].get("pool")
    if level := HOW[how].get("server"):
        by_driver = {
            "asyncpg": {"server_settings": {"default_transaction_isolation": level}},
            "psycopg": {"options": f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"},
        }
        options = {"connect_args": by_driver[race.engine.dialect.driver]}
    await race.begin(of=HOW[how].get("of"), engine_options=options)
    assert Counter({"access-1": race.all}) == await race.ends()
    assert ["refresh-0"] == [token for _, token in race.provider.calls]
    stored = await race.case.linker.stored_credentials(race.engine, user_id=1, provider="acme")
    assert stored.expires_at is not None
    assert abs(stored.expires_at - datetime.now(UTC) - timedelta(seconds=LIFETIME)) < timedelta(seconds=60)
    assert "access-1" == await renewers.ended(race.case, race.engine)


@ONE
@pytest.mark.parametrize("rotated", [False, True])
async def test_the_winner_is_killed_in_mid_call(race: Race, rotated: bool) -> None:
    """At most 2 calls, one after the other's lease. If the provider had rotated, the loss is told as ours."""
    race.provider.answers.clear()
    race.provider.plan = [""] if rotated else ["unless it is gone"]
    await race.begin(lease=3 * race.slowness, deadline=2 * race.slowness)  # in which another one asks on a busy machine
    dead = await race.asked()
    race.running[dead].kill()
    await asyncio.sleep(0.05)  # in which the provider hears that the line is cut
    race.provider.answers.set()
    ends = await race.ends(but=dead)
    others = (race.processes - 1) * race.tasks
    if not rotated:
        assert Counter({"access-1": others}) == ends
    else:
        assert Counter({"needs_consent lost_in_refresh": others}) == ends
    assert ["refresh-0"] * 2 == [token for _, token in race.provider.calls]
    assert rotated is race.provider.ended


@ONE
async def test_the_winner_is_cancelled_in_mid_call(race: Race) -> None:
    """At most 1 call: its task ends what it has begun."""
    race.provider.answers.clear()
    everyone = range(race.processes)
    await race.begin(of={number: {"cancels": True} for number in everyone})
    winner = await race.asked()
    for number in everyone:
        if number == winner:
            race.running[number].go()
    await asyncio.sleep(0.1)
    race.provider.answers.set()
    winners = await race.running[winner].rest()
    assert [Counter({"cancelled": race.tasks})] == winners
    for number in everyone:
        if number != winner:
            race.running[number].kill()
    assert "access-1" == await renewers.ended(race.case, race.engine)
    assert 1 == len(race.provider.calls)


@ONE
@pytest.mark.parametrize("grace", [False, True])
async def test_the_reply_is_lost(race: Race, grace: bool) -> None:
    """At most 1 call for all callers, and 2 within a provider's grace period; a later one tells the loss as ours."""
    race.provider.plan, race.provider.grace = ["lost"], grace
    await race.begin(grace=grace)
    ends = await race.ends()
    if grace:
        assert Counter({"access-2": race.all}) == ends
        assert ["refresh-0"] * 2 == [token for _, token in race.provider.calls]
        return
    assert Counter({"refresh_unavailable": race.all}) == ends
    assert 1 == len(race.provider.calls)
    assert ["needs_consent lost_in_refresh"] * 3 == [await race.again() for _ in range(3)]
    assert 2 == len(race.provider.calls)


@ONE
@pytest.mark.parametrize("answer", ["503 Service Unavailable", "429 Too Many Requests\r\nRetry-After: 120"])
async def test_the_provider_has_no_answer_now(race: Race, answer: str) -> None:
    """At most 1 call until the moment that is stored; then the grant lives."""
    race.provider.plan = [answer]
    await race.begin()
    assert Counter({"refresh_unavailable": race.all}) == await race.ends()
    assert 1 == len(race.provider.calls)
    wait = (await race.state())["retry_at"].replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(0) < wait < timedelta(seconds=121)
    assert ("429" in answer) is (wait > timedelta(seconds=61))
    assert "access-1" == await race.again()
    assert 2 == len(race.provider.calls)


@ONE
async def test_a_call_slower_than_the_lease(race: Race) -> None:
    """At most 1 call: it is given up before the lease ends, and a moment is stored."""
    race.provider.answers.clear()
    await race.begin(lease=2 * race.slowness, deadline=race.slowness)
    assert Counter({"refresh_unavailable": race.all}) == await race.ends()
    assert 1 == len(race.provider.calls)
    state = await race.state()
    assert ("failing", True, None) == (state["state"], bool(state["uncertain"]), state["lease_by"])


@ONE
@pytest.mark.parametrize("answer", ["200 OK", "503 Service Unavailable"])
async def test_a_token_that_lives_is_given_out_while_one_caller_renews_it(race: Race, answer: str) -> None:
    """1 call, and nobody waits for it: each caller has the old token before the provider answers anything.

    A provider that is down is nobody's concern until the token is over.
    """
    race.provider.answers.clear()
    race.provider.plan = [] if "200" in answer else [answer]
    await race.begin(ends_in=timedelta(minutes=4), times_calls=True)
    longest = max(await asyncio.gather(*(each.hear() for each in race.running)))
    print(f"\n{race.all} callers had a token before the provider answered; the longest call took {longest:.3f} s")  # noqa: T201  # a figure
    await race.asked()
    race.provider.answers.set()
    assert Counter({"access-0": race.all}) == await race.ends()
    assert ["refresh-0"] == [token for _, token in race.provider.calls]
    if "200" in answer:
        assert "access-1" == await renewers.ended(race.case, race.engine)
        return
    assert "failing" == (await race.state())["state"]
    assert "access-0" == await renewers.ended(race.case, race.engine)
    await race.is_over()
    assert "refresh_unavailable" == await renewers.ended(race.case, race.engine)
    assert 1 == len(race.provider.calls)
    assert "access-1" == await race.again()
