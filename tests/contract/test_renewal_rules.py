"""The seven rules by which tokens are renewed, each with an incident of 2026 that it prevents."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from accountlink import AccountNotFound, CredentialVault, NeedsConsent, TokenSet, link_outbox, tune_sqlite
from accountlink.errors import MissingScopes, RefreshUnavailable, StoreUnavailable
from accountlink.values.health import HealthState
from accountlink.vault.envelope import grant_of
from accountlink.vault.refresher import GrantEnded, ProviderUnavailable
from accountlink.vault.renewing import Renewing, Timing
from tests.contract.test_renewing import OVER, Provider, Renewed
from tests.faults.stepping import Moment, Stepped
from tests.support.databases import Database
from tests.support.models import EXCLUSIVE_SOFT, Tables, identity, make_tables
from tests.support.vaulted import KEY, OLD_KEY

QUICK = Timing(
    lease=timedelta(seconds=4),
    deadline=timedelta(seconds=3),
    poll=timedelta(milliseconds=10),
    storing=timedelta(seconds=5),
)
BOTH = [KEY, OLD_KEY]


@cache
def _tables(outbox: bool) -> Tables:
    tables = make_tables(EXCLUSIVE_SOFT)
    if outbox:
        link_outbox(tables.metadata)
    return tables


class Case(Renewed):
    """A table whose tokens are renewed, compiled once for all tests, and what is done by hand between two steps."""

    def __init__(
        self, provider: Provider | None = None, *, timing: Timing = QUICK, outbox: bool = False, **options: Any
    ):
        given: dict[str, Any] = {
            "tables": _tables(outbox),
            "outbox": outbox,
            "vault": CredentialVault(keys=BOTH),
        } | options
        super().__init__(provider or Provider(), timing=timing, **given)

    def renewing(self, number: int = 0) -> Renewing[Any, Any]:
        found = self.linkers[number]._renewing
        assert found is not None
        return found

    async def get(self, engine: AsyncEngine, number: int = 0, *, user_id: int = 1, **asked: Any) -> str:
        """The access token that a caller gets."""
        tokens = await self.linkers[number].credentials(engine, user_id=user_id, provider="acme", **asked)
        assert tokens.refresh_token is None
        return tokens.access_token.reveal()

    def ask(self, engine: AsyncEngine, number: int = 0, **asked: Any) -> asyncio.Task[str]:
        return asyncio.create_task(self.get(engine, number, **asked))

    async def held(self, engine: AsyncEngine, number: int = 0, **asked: Any) -> asyncio.Task[str]:
        """A caller whose call of the provider is under way, until ``provider.answers`` is set."""
        self.provider.answers.clear()
        caller = self.ask(engine, number, **asked)
        await asyncio.wait_for(self.provider.asked.wait(), 10)
        return caller

    async def about_to_lease(self, engine: AsyncEngine, number: int) -> tuple[asyncio.Task[str], asyncio.Event]:
        """A caller that has read the row, and asks for the lease as soon as the event is set."""
        renewing, reached, go = self.renewing(number), asyncio.Event(), asyncio.Event()
        lease = renewing.leases.take

        async def held(*given: Any, **more: Any) -> Any:
            reached.set()
            await go.wait()
            return await lease(*given, **more)

        renewing.leases.take = held  # type: ignore[method-assign]
        caller = self.ask(engine, number)
        await reached.wait()
        return caller, go

    async def let(self, caller: asyncio.Task[str]) -> str:
        """Let the provider answer, and return what the caller gets."""
        self.provider.answers.set()
        return await asyncio.wait_for(caller, 10)

    async def stored(self, engine: AsyncEngine, user_id: int = 1) -> tuple[str, str | None]:
        found = await self.linker.stored_credentials(engine, user_id=user_id, provider="acme")
        return found.access_token.reveal(), None if found.refresh_token is None else found.refresh_token.reveal()

    async def sealed_anew(self, engine: AsyncEngine, *, link_id: Any = None) -> None:
        """Seal the tokens of a row again, with the older key, if it still has those that were read."""
        other = self.other_linker(vault=CredentialVault(keys=BOTH[::-1]))
        stored = other._stored
        assert stored is not None
        named = {"link_id": link_id} if link_id is not None else {"provider": "acme"}
        found = await stored.find(await other._place(engine), other._calls.reading(user_id=1, **named))
        sealing = await stored.vault.ready()
        columns = {
            each.role: sealing.again(each, grant_id=grant_of(text), bound_to=found.bound_to)
            for each, text in zip(await stored.contents(found), (found.access_token, found.refresh_token), strict=True)
            if each is not None
        }
        c = self.table.c
        still = sa.and_(c.id == found.account.id, c.access_token == found.access_token)
        async with engine.begin() as connection:
            await connection.execute(sa.update(self.table).where(still).values(columns))

    async def lapse(self, engine: AsyncEngine) -> None:
        """Let the lease end now."""
        past = datetime.now(UTC) - timedelta(minutes=1)
        async with engine.begin() as connection:
            await connection.execute(sa.update(self.states).values(lease_until=past))

    @contextmanager
    def away(self, times: int, number: int = 0) -> Iterator[list[int]]:
        """Let the next transactions of a process fail as if the database could not be reached."""
        renewing, left = self.renewing(number), [times]
        place = renewing.place

        def gone(engine: AsyncEngine) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise StoreUnavailable
            return place(engine)

        for each in (renewing, renewing.leases):
            object.__setattr__(each, "place", gone)
        try:
            yield left
        finally:
            for each in (renewing, renewing.leases):
                object.__setattr__(each, "place", place)


@pytest.fixture
async def case(engine: AsyncEngine) -> Case:
    """A link whose token is over, and three processes."""
    made = await Case(processes=3).create(engine)
    await made.link(engine, ends_in=OVER)
    return made


# -- 1. the lease is taken, and the row looked at, in one statement on the database's clock --------------------------


async def test_1_who_takes_the_lease_has_the_newest_tokens(engine: AsyncEngine, case: Case) -> None:
    """speakeasy/gram#4612: a process won the lock, and used the row that it had read before the lock."""
    second, go = await case.about_to_lease(engine, 1)
    assert "access-1" == await case.get(engine, 0)
    go.set()
    assert "access-1" == await second
    assert ["refresh-0"] == case.provider.calls


async def test_1_a_host_whose_clock_is_ahead_takes_no_live_lease(
    engine: AsyncEngine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coder/coder#27479: each replica judged the lease by its own clock."""
    if engine.dialect.name == "sqlite":
        return  # its clock is the host's
    second, go = await case.about_to_lease(engine, 1)
    first = await case.held(engine)
    for module in ("accountlink.tables.rows", "accountlink.vault.renewing", "accountlink.vault.leases"):
        monkeypatch.setattr(f"{module}.present", lambda: datetime.now(UTC) + timedelta(hours=1))
    go.set()
    await asyncio.sleep(0.3)
    assert 1 == len(case.provider.calls)
    assert "access-1" == await case.let(first) == await second
    assert 1 == len(case.provider.calls)


async def test_1_a_lease_whose_answer_was_lost_is_the_callers_own(engine: AsyncEngine, case: Case) -> None:
    """The statement runs again after a lost line; it takes its own lease, and nothing is uncertain."""
    renewing = case.renewing()
    taken, runs = renewing.leases._taken, []

    def twice(connection: sa.Connection, call: Any) -> Any:
        runs.append(list(taken(connection, call)))
        return taken(connection, call)

    renewing.leases._taken = twice  # type: ignore[method-assign]
    case.provider.fails = [GrantEnded("invalid_grant")]
    with pytest.raises(NeedsConsent) as raised:
        await case.get(engine)
    assert ([1], "invalid_grant") == ([len(each) for each in runs], raised.value.provider_code)


async def test_1_an_application_that_holds_the_row_does_not_hold_callers_for_ever(engine: AsyncEngine) -> None:
    """A lock on the link's row is waited for as long as `lock_timeout` says; then the caller hears of it."""
    if engine.dialect.name == "sqlite":
        return  # its busy timeout is the engine's
    brief = Timing(lease=timedelta(seconds=0.3), deadline=timedelta(seconds=0.2), poll=timedelta(milliseconds=10))
    case = await Case(timing=brief, lock_timeout=timedelta(milliseconds=100)).create(engine)
    await case.link(engine, ends_in=OVER)
    async with engine.begin() as holder:
        await holder.execute(sa.select(case.table).with_for_update())
        with pytest.raises(RefreshUnavailable):
            await asyncio.wait_for(case.get(engine), 5)
    assert [] == case.provider.calls
    assert "access-1" == await case.get(engine)


# -- 2. the call is over before the lease is -----------------------------------------------------------------------


async def test_2_a_call_is_over_before_its_lease(engine: AsyncEngine, case: Case) -> None:
    """infusionsoft-php#220: the provider was slow at the top of the hour, the lock ended, and two refreshed."""
    for number in range(3):
        case.renewing(number).timing = Timing(
            lease=timedelta(seconds=1.5), deadline=timedelta(seconds=0.5), poll=timedelta(milliseconds=20)
        )
    assert Timing().deadline < Timing().lease
    case.provider.delay = 30
    got = await asyncio.gather(*(case.get(engine, number) for number in range(3)), return_exceptions=True)
    assert {RefreshUnavailable} == {type(each) for each in got}
    assert (1, 1) == (len(case.provider.calls), case.provider.most_at_once)


# -- 3. no call without a lease; who waits, waits long enough ----------------------------------------------------------


async def test_3_who_gets_no_lease_never_calls(engine: AsyncEngine, case: Case) -> None:
    """n8n-io/n8n#37828, simstudioai/sim#4722: after the wait they refreshed without the lock."""
    case.renewing().timing = Timing(
        lease=timedelta(seconds=0.2), deadline=timedelta(seconds=0.1), poll=timedelta(milliseconds=10)
    )
    first = await case.held(engine, 1)
    until = (await case.state(engine))["lease_until"]
    with pytest.raises(RefreshUnavailable) as raised:
        await asyncio.wait_for(case.get(engine), 5)
    assert raised.value.retry_at is not None
    assert raised.value.retry_at.replace(tzinfo=UTC) == until.replace(tzinfo=UTC)
    assert "access-1" == await case.let(first)
    assert 1 == len(case.provider.calls)


async def test_3_who_waits_waits_as_long_as_a_winner_may_take(engine: AsyncEngine, case: Case) -> None:
    """onyx-dot-app/onyx#13146: losers waited 5 s for winners who may take 30 s, and got 401."""
    first = await case.held(engine)
    second = case.ask(engine, 1)
    await asyncio.sleep(0.8)
    assert not second.done()
    assert "access-1" == await case.let(first) == await second


# -- 4. stored before it is used ---------------------------------------------------------------------------------------


async def test_4_nobody_gets_a_token_that_is_not_stored(engine: AsyncEngine, case: Case) -> None:
    """coder/coder#24228: the new token was validated first; the check was rate-limited, and the token lost."""
    renewing = case.renewing()
    renewing.timing = Timing(
        lease=timedelta(seconds=4), deadline=timedelta(seconds=3), poll=timedelta(milliseconds=10), storing=timedelta(0)
    )
    first = await case.held(engine)
    with case.away(10**6), pytest.raises(StoreUnavailable):
        await case.let(first)
    assert ("access-0", "refresh-0") == await case.stored(engine)


async def test_4_the_row_and_its_state_change_together(engine: AsyncEngine, case: Case) -> None:
    """One statement on PostgreSQL, one transaction on SQLite: a process that dies leaves both or neither."""
    first = await case.held(engine)
    stored, ran = case.renewing().stored, []
    run_named = stored.run_named

    def counted(connection: sa.Connection, parameters: Any, key: Any, build: Any) -> Any:
        if "al_access_token" in parameters:
            raw: Any = connection.connection.driver_connection
            ran.append(raw.in_transaction if connection.dialect.name == "sqlite" else key[0])
        return run_named(connection, parameters, key, build)

    stored.run_named = counted  # type: ignore[method-assign]
    assert "access-1" == await case.let(first)
    assert ran == ([True, True] if engine.dialect.name == "sqlite" else ["store"])
    state = await case.state(engine)
    assert (None, None, "ok") == (state["lease_by"], state["lease_until"], state["state"])


# -- 5. stored where the row still has what was presented -------------------------------------------------------------


async def test_5_a_lapsed_lease_throws_no_rotation_away(engine: AsyncEngine, case: Case) -> None:
    """damianvtran/local-operator#945: the lease had lapsed, and the server's rotation was thrown away."""
    first = await case.held(engine)
    await case.lapse(engine)
    assert "access-1" == await case.let(first)
    assert ("access-1", "refresh-1") == await case.stored(engine)


async def test_5_keys_rotated_by_hand_throw_no_rotation_away(engine: AsyncEngine, case: Case) -> None:
    """maximhq/bifrost#5919, with sealed columns: the texts differ, the token that was presented does not."""
    first = await case.held(engine)
    await case.sealed_anew(engine)
    assert "access-1" == await case.let(first)
    assert ("access-1", "refresh-1") == await case.stored(engine)


async def test_5_a_key_that_is_not_known_yet_throws_no_rotation_away(engine: AsyncEngine, case: Case) -> None:
    """The row was sealed again with a key that this process gets only later."""
    keys = Keys(BOTH)
    linker = case.other_linker(vault=CredentialVault(source=keys), refresher=case.provider, refreshes=case.states)
    assert linker._renewing is not None
    linker._renewing.timing = QUICK
    case.linkers[0] = linker
    first = await case.held(engine)
    await case.sealed_anew(engine)
    keys.fails = 5
    assert "access-1" == await case.let(first)
    assert keys.fails == 0
    assert ("access-1", "refresh-1") == await case.stored(engine)


@pytest.mark.parametrize("times", [1, 7])
async def test_5_a_database_that_is_away_throws_no_rotation_away(engine: AsyncEngine, case: Case, times: int) -> None:
    """damianvtran/local-operator#945 once more: what the provider has rotated is stored when that is possible again."""
    first = await case.held(engine)
    with case.away(times) as left:
        assert "access-1" == await case.let(first)
    assert 0 == left[0]
    assert ("access-1", "refresh-1") == await case.stored(engine)
    assert 1 == len(case.provider.calls)


async def test_5_a_database_that_is_away_longer_than_the_lease(engine: AsyncEngine, case: Case) -> None:
    """damianvtran/local-operator#945: who takes a lapsed lease lets its former holder store what it has."""
    first = await case.held(engine)
    with case.away(10**6) as left:
        case.provider.answers.set()
        while left[0] == 10**6:  # noqa: ASYNC110  # until the storing has failed once
            await asyncio.sleep(0.001)
        await case.lapse(engine)
        second = case.ask(engine, 1)
        while (await case.state(engine))["lease_until"].replace(tzinfo=UTC) < datetime.now(UTC):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        left[0] = 0
        assert "access-1" == await first == await second
    assert ("access-1", "refresh-1") == await case.stored(engine)
    assert ["refresh-0"] == case.provider.calls
    state = await case.state(engine)
    assert ("ok", 0, False, None) == tuple(state[name] for name in ("state", "failures", "uncertain", "lease_by"))
    assert state["refreshed_at"] is not None


async def test_5_a_table_that_is_away_throws_no_rotation_away(engine: AsyncEngine, case: Case) -> None:
    """A migration renames it for a moment; a right or a file may be missing likewise."""
    first = await case.held(engine)
    here = case.states.name
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"ALTER TABLE {here} RENAME TO elsewhere"))
    case.provider.answers.set()
    await asyncio.sleep(0.2)
    assert not first.done()
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"ALTER TABLE elsewhere RENAME TO {here}"))
    assert "access-1" == await asyncio.wait_for(first, 10)
    assert ("access-1", "refresh-1") == await case.stored(engine)


class _Said(Exception):
    """An error of a driver, with a SQLSTATE where the database has them."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("planned")
        if sqlstate is not None:
            self.sqlstate = sqlstate


PASSING = [
    *(
        sa.exc.DBAPIError("UPDATE", {}, _Said(state))
        for state in ("25006", "26000", "28000", "28P01", "55000", "53100")
    ),
    sa.exc.ProgrammingError("UPDATE", {}, _Said("42501")),
    sa.exc.OperationalError("UPDATE", {}, sqlite3.OperationalError("disk I/O error")),
]
LASTING = [
    sa.exc.IntegrityError("UPDATE", {}, _Said("23514")),
    sa.exc.DBAPIError("UPDATE", {}, _Said("22001")),
    sa.exc.IntegrityError("UPDATE", {}, sqlite3.IntegrityError("CHECK constraint failed")),
]


@pytest.mark.parametrize("error", [*PASSING, *LASTING], ids=lambda error: str(error.orig.__dict__.get("sqlstate", "-")))
async def test_5_what_may_be_mended_soon_throws_no_rotation_away(
    engine: AsyncEngine, case: Case, error: sa.exc.DBAPIError
) -> None:
    """Only a database that says no to a value says it for ever."""
    first, left = await case.held(engine), [3]
    leases = case.renewing().leases
    store = leases.store

    async def failing(*given: Any, **more: Any) -> bool:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return await store(*given, **more)

    leases.store = failing  # type: ignore[method-assign]
    if error in LASTING:
        with pytest.raises(sa.exc.DBAPIError):
            await case.let(first)
        assert 2 == left[0]
        return
    assert "access-1" == await case.let(first)
    assert ("access-1", "refresh-1") == await case.stored(engine)


@pytest.mark.parametrize("waits", [False, True])
async def test_an_id_that_is_another_links_by_now_gives_no_foreign_token(
    engine: AsyncEngine, case: Case, waits: bool
) -> None:
    """SQLite gives the id of a deleted row to the next one: the new link is not the one that was asked for."""
    first = await case.held(engine)
    if waits:
        caller = case.ask(engine, 1)
        await asyncio.sleep(0.1)
    else:
        caller = first
    table, other = case.table, TokenSet(access_token="of another", refresh_token="of another")
    async with engine.begin() as connection:
        link_id = await connection.scalar(sa.select(table.c.id))
        await connection.execute(sa.delete(table))
    await case.linker.link(engine, user_id=1, identity=identity("sub-9", provider="other"), credentials=other)
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).values(id=link_id))
    case.provider.answers.set()
    for each in {first, caller}:
        with pytest.raises(AccountNotFound):
            await asyncio.wait_for(each, 10)
    found = await case.linker.stored_credentials(engine, user_id=1, provider="other")
    assert "of another" == found.access_token.reveal()


async def test_scopes_are_looked_at_after_a_renewal_too(engine: AsyncEngine, case: Case) -> None:
    """The provider has granted fewer of them this time."""
    case.provider.scopes = frozenset({"write"})
    with pytest.raises(MissingScopes) as raised:
        await case.get(engine, require={"read"})
    assert frozenset({"read"}) == raised.value.missing
    assert "access-1" == await case.get(engine, require={"write"})


async def test_5_other_tokens_are_not_written_over(engine: AsyncEngine, case: Case) -> None:
    """maximhq/bifrost#5919: the user has linked again meanwhile, and their new tokens are the answer."""
    first = await case.held(engine)
    await case.link(engine, ends_in=timedelta(hours=1), refresh="refresh-x")
    await case.lapse(engine)
    assert "access-0" == await case.let(first)
    assert ("access-0", "refresh-x") == await case.stored(engine)
    assert 1 == len(case.provider.calls)


# -- 6. the end of a grant, under the same comparison ------------------------------------------------------------------


async def test_6_a_new_consent_is_not_ended_by_the_old_ones_refusal(engine: AsyncEngine) -> None:
    """vercel/ai#20674: a late `invalid_grant` of the old token disconnected the user who had just linked again."""
    case = await Case(outbox=True).create(engine)
    await case.link(engine, ends_in=OVER)
    case.provider.fails = [GrantEnded("invalid_grant")]
    first = await case.held(engine)
    await case.link(engine, ends_in=timedelta(hours=1), refresh="refresh-x")
    assert "access-0" == await case.let(first)
    health = await case.linkers[0].health(engine, user_id=1)
    assert [HealthState.OK] == [each.state for each in health.values()]
    assert [] == [each async for each in case.linkers[0].unhealthy(engine)]
    assert "consent_needed" not in await told(case, engine)


async def test_6_keys_rotated_by_hand_hide_no_end(engine: AsyncEngine) -> None:
    """coder/coder#24228: the row is read again before the end of the grant is stored, and it is stored once."""
    case = await Case(outbox=True, processes=2).create(engine)
    await case.link(engine, ends_in=OVER)
    case.provider.fails = [GrantEnded("invalid_grant")]
    first = await case.held(engine)
    await case.sealed_anew(engine)
    with pytest.raises(NeedsConsent) as raised:
        await case.let(first)
    assert "invalid_grant" == raised.value.provider_code
    for number in (0, 1, 0, 1):
        with pytest.raises(NeedsConsent):
            await case.get(engine, number)
    assert 1 == len(case.provider.calls)
    assert ["linked", "consent_needed"] == await told(case, engine)


async def test_6_a_relink_without_a_refresh_token_ends_once(engine: AsyncEngine) -> None:
    """The relink keeps the refresh token that was refused: the end is the row's, and is told once."""
    case = await Case(outbox=True).create(engine)
    await case.link(engine, ends_in=OVER)
    case.provider.fails = [GrantEnded("invalid_grant"), GrantEnded("invalid_grant")]
    first = await case.held(engine)
    await case.link(engine, ends_in=timedelta(seconds=30), refresh=None)
    assert "access-0" == await case.let(first)
    assert "access-0" == await case.get(engine)
    assert 1 == len(case.provider.calls)
    assert 1 == (await told(case, engine)).count("consent_needed")


async def test_6_a_living_token_is_given_out_whatever_was_refused(engine: AsyncEngine) -> None:
    """ctxinf/better-ccflare#407: a token that worked for another half an hour was not given out any more."""
    case = await Case().create(engine)
    await case.link(engine, ends_in=timedelta(seconds=30))
    case.provider.fails = [GrantEnded("invalid_grant")]
    assert ["access-0"] * 3 == [await case.get(engine) for _ in range(3)]
    assert 1 == len(case.provider.calls)


async def test_6_a_second_death_is_told_again(engine: AsyncEngine) -> None:
    case = await Case(outbox=True, processes=3).create(engine)
    for _ in range(2):
        await case.link(engine, ends_in=OVER)
        case.provider.fails = [GrantEnded("invalid_grant")]
        got = await asyncio.gather(*(case.get(engine, number) for number in (0, 1, 2) * 4), return_exceptions=True)
        assert {NeedsConsent} == {type(each) for each in got}
    assert 2 == len(case.provider.calls)
    assert 2 == (await told(case, engine)).count("consent_needed")


async def told(case: Case, engine: AsyncEngine) -> list[str]:
    """The types of all events, oldest first, each acknowledged."""
    found = []
    async for delivery in case.linkers[0].events(engine):
        found.append(delivery.event.type.value)
        await delivery.acknowledge()
    return found


# -- 7. a task of its own --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of a connect that was cancelled
@pytest.mark.parametrize("moment", Moment)
async def test_7_a_cancelled_caller_takes_nobody_along(engine: AsyncEngine, case: Case, moment: Moment) -> None:
    """coder/coder#22904: the renewal ended with the request that had begun it, and the rotation was lost.

    The first caller is cancelled at each of its suspensions in turn.
    """
    for at in range(1, 200):
        await case.link(engine, ends_in=OVER, refresh=f"refresh-at-{at}")
        before = len(case.provider.calls)
        first = Stepped(case.get(engine), at=at, moment=moment)
        ended, got = await asyncio.gather(first.ended(), case.get(engine))
        assert got.startswith("access-")
        assert got != "access-0"
        assert ended in (None, got)
        assert before + 1 == len(case.provider.calls)
        await case.renewing().aclose()
        assert {} == case.renewing()._tasks
        if not first.struck:
            break
    else:
        raise AssertionError("the sweep does not end")
    gc.collect()  # here, where what it finds is expected


async def test_7_all_callers_share_one_task_of_a_process(engine: AsyncEngine, case: Case) -> None:
    """coder/coder#27479: a lease is asked for once in a process, not by each of its callers."""
    renewing = case.renewing()
    taken, asked = renewing.leases._taken, []

    def counted(connection: sa.Connection, call: Any) -> Any:
        asked.append(call)
        return taken(connection, call)

    renewing.leases._taken = counted  # type: ignore[method-assign]
    assert {"access-1"} == set(await asyncio.gather(*(case.get(engine) for _ in range(20))))
    assert 1 == len(asked)
    assert {} == renewing._tasks


async def test_7_a_cancelled_renewal_cancels_no_caller(engine: AsyncEngine, case: Case) -> None:
    """PrefectHQ/fastmcp#3713: the map of renewals grew with each; and who was not cancelled does not hear that."""
    first = await case.held(engine)
    (tasks,) = case.renewing()._tasks.values()
    for task in list(tasks.values()):
        task.cancel()
    with pytest.raises(RefreshUnavailable):
        await case.let(first)
    assert {} == case.renewing()._tasks


async def test_7_a_renewal_that_is_cancelled_while_it_stores_has_stored(engine: AsyncEngine, case: Case) -> None:
    """An event loop that ends cancels its tasks; what the provider has rotated is stored first."""
    first = await case.held(engine)
    renewing = case.renewing()
    once = renewing._stored_once
    began = asyncio.Event()

    async def slow(*given: Any) -> Any:
        if not began.is_set():
            began.set()
            await asyncio.sleep(30)
        return await once(*given)

    renewing._stored_once = slow  # type: ignore[method-assign, assignment]
    case.provider.answers.set()
    await began.wait()
    (tasks,) = renewing._tasks.values()
    for task in list(tasks.values()):
        task.cancel()
    with pytest.raises(RefreshUnavailable):
        await first
    assert ("access-1", "refresh-1") == await case.stored(engine)


def test_7_loops_that_end_with_a_renewal_under_way_leave_nothing(tmp_path: Path) -> None:
    """PrefectHQ/fastmcp#3713: tasks of loops that were closed are forgotten, and no later loop waits for them."""
    case = Case()
    engine = tune_sqlite(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", poolclass=NullPool))

    async def begin(refresh: str) -> None:
        case.provider.asked, case.provider.answers = asyncio.Event(), asyncio.Event()
        await case.create(engine)
        await case.link(engine, ends_in=OVER, refresh=refresh)
        await case.lapse(engine)
        asking = case.ask(engine)
        await case.provider.asked.wait()
        assert not asking.done()

    async def end(refresh: str) -> None:
        case.provider.asked, case.provider.answers = asyncio.Event(), asyncio.Event()
        case.provider.answers.set()
        await case.link(engine, ends_in=OVER, refresh=refresh)
        await case.lapse(engine)
        assert (await case.get(engine)).startswith("access-")

    for number in range(3):
        asyncio.run(begin(f"a{number}"))  # which cancels the renewal
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin(f"b{number}"))
        loop.close()  # which does not
        asyncio.run(end(f"c{number}"))
        assert {} == case.renewing()._tasks
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # what this test is about


async def test_7_loops_of_several_threads_share_a_linker(engine: AsyncEngine, case: Case, database: Database) -> None:
    """Each loop has its own task and its own connections; the lease decides between them as between processes."""

    async def elsewhere() -> list[str]:
        other = create_async_engine(database.url, poolclass=NullPool)
        other = tune_sqlite(other, busy_timeout=30_000) if engine.dialect.name == "sqlite" else other
        got = await asyncio.gather(*(case.get(other) for _ in range(5)))
        await case.renewing().aclose()
        return got

    case.provider.answers, case.provider.asked = Everywhere(), Everywhere()
    case.provider.delay = 0.1
    loops = [asyncio.to_thread(asyncio.run, elsewhere()) for _ in range(3)]
    got = await asyncio.gather(*(case.get(engine) for _ in range(5)), *loops)
    assert {"access-1"} == set(got[:5]) | {each for some in got[5:] for each in some}
    assert 1 == len(case.provider.calls)
    assert {} == case.renewing()._tasks


class Everywhere(asyncio.Event):
    """An event that is always set, and belongs to no loop."""

    async def wait(self) -> Literal[True]:
        return True


# -- the early renewal -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def early(engine: AsyncEngine, **options: Any) -> AsyncIterator[Case]:
    """A link whose token has four of its 64 minutes left."""
    case = await Case(processes=2, **options).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(hours=1)
    await case.link(engine, ends_in=timedelta(minutes=4))
    yield case
    for number in (0, 1):
        await case.renewing(number).aclose()


FAILS: dict[str, Callable[[], Exception]] = {
    "away": ProviderUnavailable,
    "ended": lambda: GrantEnded("invalid_grant"),
    "anything": lambda: ValueError("a refresher of the application's own"),
    "cancelled": asyncio.CancelledError,  # type: ignore[dict-item]
}


@pytest.mark.parametrize("failure", FAILS)
async def test_nobody_hears_of_an_early_renewal_that_fails(engine: AsyncEngine, failure: str) -> None:
    async with early(engine) as case:
        case.provider.fails = [FAILS[failure]()]
        for number in (0, 1, 0, 1):
            assert "access-0" == await case.get(engine, number)
            await case.renewing(number).aclose()
        assert 1 == len(case.provider.calls)


async def test_a_caller_with_a_living_token_hears_of_no_failure(engine: AsyncEngine, case: Case) -> None:
    """A token that ends sooner than a caller wants is given out where no other can be had."""
    await case.link(engine, ends_in=timedelta(seconds=30))
    case.provider.fails = [ValueError("a refresher of the application's own")]
    assert "access-0" == await case.get(engine)
    assert "access-0" == await case.get(engine)
    assert 1 == len(case.provider.calls)


async def test_a_refresh_token_that_cannot_be_read_hides_no_living_access_token(engine: AsyncEngine) -> None:
    async with early(engine) as case:
        async with engine.begin() as connection:
            await connection.execute(sa.update(case.table).values(refresh_token="al1.damaged"))
        assert "access-0" == await case.get(engine)
        assert "access-0" == await case.get(engine, min_valid=timedelta(minutes=10))
    assert [] == case.provider.calls


# -- what the application brings ---------------------------------------------------------------------------------------


class Keys:
    """A source of keys that fails now and then."""

    def __init__(self, keys: list[bytes]) -> None:
        self._given = CredentialVault(keys=keys).source
        self.fails = 0

    def _look(self) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the key management service is away")

    async def current(self) -> Any:
        self._look()
        return await self._given.current()

    async def get(self, key_id: str) -> Any:
        self._look()
        return await self._given.get(key_id)


async def with_keys(engine: AsyncEngine) -> tuple[Case, Keys]:
    keys = Keys(BOTH)
    case = await Case(vault=CredentialVault(source=keys), processes=2).create(engine)
    await case.link(engine, ends_in=OVER)
    return case, keys


async def test_keys_that_are_away_before_the_call_hold_nobody_up(engine: AsyncEngine) -> None:
    """The error reaches the callers unchanged, and the lease is given back, so that the next one succeeds at once."""
    case, keys = await with_keys(engine)
    renewing = case.renewing()
    lease = renewing.leases.take

    async def then_away(*given: Any, **more: Any) -> Any:
        taken = await lease(*given, **more)
        keys.fails = 1
        return taken

    renewing.leases.take = then_away  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        await case.get(engine)
    assert [] == case.provider.calls
    renewing.leases.take = lease  # type: ignore[method-assign]
    assert "access-1" == await asyncio.wait_for(case.get(engine, 1), 2)


async def test_keys_that_are_away_after_the_call_lose_nothing(engine: AsyncEngine) -> None:
    """Storing needs no key that was not fetched before the call."""
    case, keys = await with_keys(engine)
    first = await case.held(engine)
    keys.fails = 1  # the reading of what was stored
    with pytest.raises(ConnectionError):
        await case.let(first)
    assert "access-1" == await case.get(engine)
    assert ("access-1", "refresh-1") == await case.stored(engine)
    assert 1 == len(case.provider.calls)


class Odd(Provider):
    """A refresher of the application's own that returns, or raises, whatever a test wants."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        self.calls.append("")
        return self.answer()  # type: ignore[no-any-return]


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


ANSWERS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "ConfigurationError"),
    "text": (lambda: "access-1", "ConfigurationError"),
    "over already": (
        lambda: TokenSet(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) - timedelta(hours=1)),
        "RefreshUnavailable",
    ),
    "a sum": (raising(ArithmeticError()), "ArithmeticError"),
    "its own task was cancelled": (raising(asyncio.CancelledError()), "RefreshUnavailable"),
    "a time-out": (raising(TimeoutError()), "RefreshUnavailable"),
    "a moment without a zone": (raising(ProviderUnavailable(datetime(2030, 1, 1))), "RefreshUnavailable"),  # noqa: DTZ001
    "the end of time": (raising(ProviderUnavailable(datetime.max.replace(tzinfo=UTC))), "RefreshUnavailable"),
    "a code that is none": (raising(GrantEnded(None)), "NeedsConsent"),  # type: ignore[arg-type]
    "a code that no column takes": (raising(GrantEnded("a\0b")), "NeedsConsent"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_whatever_a_refresher_does_it_is_asked_once(engine: AsyncEngine, name: str) -> None:
    """The caller hears of it, and nobody asks again at once: one call, and a moment for the next."""
    answer, expected = ANSWERS[name]
    case = await Case(Odd(answer), processes=2).create(engine)
    await case.link(engine, ends_in=OVER)
    got = await asyncio.gather(*(case.get(engine, number) for number in (0, 1) * 4), return_exceptions=True)
    assert expected in {type(each).__name__ for each in got}
    assert {expected, "RefreshUnavailable"} >= {type(each).__name__ for each in got}
    with pytest.raises((RefreshUnavailable, NeedsConsent)):
        await case.get(engine)
    assert 1 == len(case.provider.calls)


async def test_a_token_without_an_end_in_sight_is_stored(engine: AsyncEngine) -> None:
    """A moment at the end of time is stored as it is, whatever the clocks are."""
    ends = datetime.max.replace(tzinfo=UTC)
    case = await Case(Odd(lambda: TokenSet(access_token="a", refresh_token="r", expires_at=ends))).create(engine)
    await case.link(engine, ends_in=OVER)
    assert "a" == await case.get(engine)
    assert ("a", "r") == await case.stored(engine)


async def test_a_link_that_lost_its_refresh_token_meanwhile_asks_nobody(engine: AsyncEngine, case: Case) -> None:
    """Unlinked and linked again without a refresh token, while a caller waited for another's lease."""
    first = await case.held(engine)
    case.renewing(1).timing = replace(QUICK, poll=timedelta(seconds=0.5))
    second = case.ask(engine, 1)
    while not case.renewing(1)._tasks:  # noqa: ASYNC110  # nothing tells that it waits
        await asyncio.sleep(0.001)
    link_id = next(iter(await case.linker.accounts(engine, user_id=1))).id
    await case.linker.unlink(engine, user_id=1, link_id=link_id)
    await case.link(engine, ends_in=OVER, refresh=None)
    with pytest.raises((NeedsConsent, RefreshUnavailable)):
        await case.let(first)
    with pytest.raises((NeedsConsent, AccountNotFound)):  # the latter if it looked in between
        await second
    with pytest.raises(NeedsConsent):
        await case.get(engine)
    assert 1 == len(case.provider.calls)
