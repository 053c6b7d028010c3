"""Grants over cut lines, and calls that are cancelled: done or not done, told truthfully, and safe to make again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from accountlink import (
    AlreadyGranted,
    Granted,
    GrantMapping,
    IssuedGrant,
    OutcomeUnknown,
    Revoked,
    ShareGrants,
    StoreUnavailable,
    link_outbox,
)
from tests.faults.stepping import Moment, Stepped
from tests.faults.test_cancellation import ASYNCPG_CONNECTS
from tests.faults.test_lost_lines import ENOUGH, WARM, Line, result_of, through
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.databases import Database, create, rows, run_sql
from tests.support.shares import SHARED, Sharing
from tests.support.wire import Lose, executes

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
CALLS = ("issue", "redeem", "redeem one of several", "revoke")
EACH_CALL = pytest.mark.parametrize("name", [*CALLS, "redeem for a pair"])
pytestmark = [
    pytest.mark.each_driver,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]
Call = Callable[[Any], Awaitable[object]]


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """Whatever the event loop has to complain of."""
    loop, heard = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, context: heard.append(f"{context['message']}: {context.get('exception')!r}"))
    yield heard
    loop.set_exception_handler(None)


async def case_of(database: Database, name: str) -> Sharing:
    """A table of grants, made; nothing of it goes through any line."""
    made = await Sharing.made(SHARED["own-pairs" if name == "redeem for a pair" else "own"](), database.engine())
    return Sharing(made.shared, made.engine, clock=None)


class Scene:
    """One call, on a grant of its own, and what it must come to however often it is tried.

    Each scene has a new grantor, so that the grantor's rows belong to this scene only.
    """

    def __init__(self, case: Sharing, name: str, number: int) -> None:
        self._case, self._name, self._giver = case, name, number
        self._issued: Any = None

    async def prepared(self) -> Call:
        """Make what the call needs, past any line, and return the call."""
        case, giver = self._case, self._giver
        if self._name == "issue":
            return lambda bind: case.issue(giver, bind)
        if self._name == "redeem for a pair":
            earlier = await case.issue(giver)
            await case.redeem(earlier.token, 9_000)
        self._issued = issued = await case.issue(giver, max_uses=2 if "several" in self._name else 1)
        if self._name == "revoke":
            await case.redeem(issued.token, 9_000)
            return lambda bind: case.revoke(giver, bind, grant_id=issued.id)
        return lambda bind: case.redeem(issued.token, 9_000, bind)

    async def state(self) -> tuple[int, int, int]:
        """How many rows there are of the giver's, how many of them are active, and how many give access."""
        c, case = self._case.shares.mapping.columns, self._case
        async with case.engine.connect() as connection:
            of_giver = sa.select(c["active"]).where(c["grantor_id"] == case.user(self._giver))
            flags = (await connection.execute(of_giver)).scalars().all()
        return len(flags), sum(map(bool, flags)), len(await case.active(grantor_id=self._giver))

    @property
    def undone(self) -> tuple[int, int, int]:
        return {"issue": (0, 0, 0), "revoke": (1, 1, 1), "redeem for a pair": (2, 2, 1)}.get(self._name, (1, 1, 0))

    @property
    def done(self) -> tuple[int, int, int]:
        done = {"issue": (1, 1, 0), "revoke": (1, 0, 0), "redeem for a pair": (2, 1, 1)}
        return done.get(self._name, (2, 2, 1) if "several" in self._name else (1, 1, 1))

    async def holds(self, outcome: object, *, again: bool) -> bool:
        """Whether an outcome is the right one: of a first attempt, or of one after an answer was lost."""
        if isinstance(outcome, IssuedGrant):
            redeemed = await self._case.ended(self._case.redeem(outcome.token, 9_000))
            return self._name == "issue" and redeemed == "granted"
        if isinstance(outcome, Revoked):
            return self._name == "revoke" and outcome.grant.id == self._issued.id
        right = (Granted, AlreadyGranted) if again else (Granted,)
        return self._name.startswith("redeem") and isinstance(outcome, right)


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


# -- lines ------------------------------------------------------------------------------------------------------------


@POSTGRESQL
@EACH_CALL
async def test_a_line_cut_anywhere_is_replaced(database: Database, line: Line, name: str) -> None:
    """F02, F03, F12: whichever message is lost, an engine's new line tells the truth, and all was done once."""
    case = await case_of(database, name)
    engine = through(line, database)
    for number in range(1, WARM + 1):
        await (await Scene(case, name, number).prepared())(engine)
    for passed in range(ENOUGH):
        scene = Scene(case, name, 100 + passed)
        call = await scene.prepared()
        line.cut_after(passed)
        outcome = await result_of(call, engine)
        cut = line.is_cut
        line.spare()
        where = (passed, outcome)
        assert scene.done == await scene.state(), where
        assert await scene.holds(outcome, again=cut), where
        if not cut:
            assert passed > 1, "nothing was cut"
            break


@POSTGRESQL
@EACH_CALL
async def test_a_line_cut_anywhere_leaves_one_event(database: Database, line: Line, name: str) -> None:
    """F02, F03: whichever message is lost, and however often the call is tried, what it did is told once."""
    made = await case_of(database, name)
    outbox = link_outbox(made.shared.metadata)
    await create(made.engine, made.shared.metadata)
    case = Sharing(made.shared, made.engine, clock=None, options={"outbox": outbox})
    engine = through(line, database)
    for number in range(1, WARM + 1):
        await (await Scene(case, name, number).prepared())(engine)
    for passed in range(ENOUGH):
        call = await Scene(case, name, 100 + passed).prepared()
        await run_sql(case.engine, "DELETE FROM accountlink_events")
        line.cut_after(passed)
        outcome = await result_of(call, engine)
        cut = line.is_cut
        line.spare()
        told = {"issue": "grant_issued", "revoke": "grant_revoked"}.get(name, "grant_redeemed")
        assert [(told,)] == await rows(case.engine, "SELECT type FROM accountlink_events"), (passed, outcome)
        if not cut:
            assert passed > 1, "nothing was cut"
            break


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_a_default_function_is_called_once_for_all_attempts(database: Database, line: Line) -> None:
    """F03: an attempt after a lost line writes the row of the first, as an id that the application makes has to be."""
    made = count(1)
    metadata = sa.MetaData()
    table = sa.Table(
        "shares",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False, default=lambda: next(made)),
        sa.Column("grantor_id", sa.BigInteger, nullable=False),
        sa.Column("grantee_id", sa.BigInteger),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active", sa.Boolean),
    )
    shares = ShareGrants(GrantMapping(table), outbox=link_outbox(metadata))
    await create(database.engine(), metadata)
    engine = through(line, database)
    for lose in Lose:
        await shares.expire(engine)  # so that the engine has a line
        line.cut_when(executes("WITH"), lose=lose)
        await shares.issue(engine, grantor_id=1, expires_in=timedelta(hours=1))
        assert line.is_cut
    assert [(1,), (2,)] == await rows(database.engine(), "SELECT id FROM shares ORDER BY id")


@POSTGRESQL
@EACH_CALL
async def test_a_server_that_stays_away_is_told_truthfully(database: Database, name: str) -> None:
    """F02, F03: with no new line: unknown if it may have been done, unavailable only if not; and again, it is done."""
    case = await case_of(database, name)
    assert database.server is not None
    told: list[str] = []
    for passed in range(ENOUGH):
        scene = Scene(case, name, 100 + passed)
        call = await scene.prepared()
        async with Line(database.server.host, database.server.port) as lost:
            engine = through(lost, database)
            for number in range(WARM):
                await (await Scene(case, name, 10_000 + passed * WARM + number).prepared())(engine)
            lost.reset()
            lost.for_good = True
            lost.cut_after(passed)
            outcome = await result_of(call, engine)
            cut = lost.is_cut
            await engine.dispose()
        where, found = (passed, outcome), await scene.state()
        if not cut:
            assert await scene.holds(outcome, again=False), where
            break
        told.append(getattr(outcome, "code", ""))
        assert isinstance(outcome, (StoreUnavailable, OutcomeUnknown)), where
        assert found in ((scene.undone,) if isinstance(outcome, StoreUnavailable) else (scene.undone, scene.done)), (
            where
        )
        if name == "issue":  # whose token is lost with its answer: again, there is another one
            continue
        assert await scene.holds(await result_of(call, case.engine), again=True), where
        assert scene.done == await scene.state(), where
    assert "outcome_unknown" == told[-1], told


@POSTGRESQL
@EACH_CALL
async def test_a_line_cut_in_a_callers_transaction_is_unavailable(database: Database, line: Line, name: str) -> None:
    """F02, F12: the caller's line is cut: StoreUnavailable, nothing is committed; rolled back, it works."""
    case = await case_of(database, name)
    engine = through(line, database)
    for passed in range(ENOUGH):
        scene = Scene(case, name, 100 + passed)
        call = await scene.prepared()
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("SELECT 1"))
            line.cut_after(passed)
            outcome = await result_of(call, session)
            if not line.is_cut:
                line.spare()
                break
            assert isinstance(outcome, StoreUnavailable), (passed, outcome)
            await session.rollback()
            assert scene.undone == await scene.state(), passed
            outcome = await result_of(call, session)
            await session.commit()
        assert scene.done == await scene.state(), passed
        assert await scene.holds(outcome, again=False), (passed, outcome)


# -- cancellation -----------------------------------------------------------------------------------------------------


@EACH_CALL
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_call_cancelled_anywhere_is_whole_or_absent(
    database: Database, watch: Watch, complaints: list[str], name: str, how: str
) -> None:
    """F10, F11: cancelled at any suspension: done or not done, no leak, and calling again is right."""
    case = await case_of(database, name)
    await case.engine.dispose()
    engine = watched_engine(database)
    for moment in (Moment.AT_ONCE, Moment.TOO_LATE) if how == "engine" else (Moment.ALWAYS,):
        for at in range(1, ENOUGH):
            scene = Scene(case, name, 1_000 * (moment is Moment.TOO_LATE) + at)
            call: Any = await scene.prepared()
            await case.engine.dispose()
            where = (moment, at)
            async with AsyncExitStack() as stack:
                bind: Any = engine
                if how == "session":
                    bind = await stack.enter_async_context(AsyncSession(engine))
                    await bind.execute(sa.text("SELECT 1"))
                run = Stepped(call(bind), at=at, moment=moment)
                end = await run.ended()
                assert not run.swallowed, (where, end)
                if how == "session":
                    await bind.rollback()
            assert 0 == checked_out(engine), where
            assert [] == await soon(partial(watch.left_behind, engine)), where
            found = await scene.state()
            await case.engine.dispose()
            assert found in ((scene.undone, scene.done) if how == "engine" else (scene.undone,)), where
            if name != "issue" or found == scene.undone:
                assert await scene.holds(await call(engine), again=True), where
                assert scene.done[:2] == (await scene.state())[:2], where
                await case.engine.dispose()
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()
    assert [] == [complaint for complaint in complaints if complaint != ASYNCPG_CONNECTS]
