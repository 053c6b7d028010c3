"""Sealed and kept tokens with a lost connection, a cancellation or a killed process: stored or not, and truly said."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import await_only

from accountlink import AlreadyOwner, OutcomeUnknown, OwnershipConflict, StoreUnavailable, TokenSet, Transferred
from tests.faults.stepping import Moment, Stepped
from tests.faults.test_lost_lines import ENOUGH, Line, result_of, through
from tests.faults.watch import Watch, checked_out, soon, watched_engine, watching
from tests.support.databases import Database, rows
from tests.support.gate import just_before
from tests.support.models import identity, tokens
from tests.support.processes import Process, Say, Wait
from tests.support.vaulted import Vaulted
from tests.support.wire import Lose, Message

POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
TABLES: dict[str, dict[str, Any]] = {"version": {}, "all": {"ledger": True, "outbox": True}}
TABLE = pytest.mark.parametrize("table", ["version", pytest.param("all", marks=pytest.mark.stress)])
WARM = 7
FORMER, NEW = ("former", "former"), ("new", "new")
BROUGHT = TokenSet(access_token="new", refresh_token="new")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


class Case:
    """A call about the tokens of one account, and what it is to leave there."""

    def __init__(self, vaulted: Vaulted, engine: AsyncEngine, account: str) -> None:
        self.vaulted, self.engine, self.account = vaulted, engine, account
        self.linker = vaulted.linker

    async def before(self) -> None:
        """Prepare what the call needs."""
        await self.vaulted.linked(self.engine, 1, self.account, credentials=tokens(*FORMER))

    async def call(self, bind: Any) -> object:
        """Make the call."""
        raise NotImplementedError

    async def is_done(self) -> bool:
        """Say whether the call has changed what it is to change; fail if it has done half of it."""
        raise NotImplementedError

    def is_right(self, outcome: object, *, retried: bool) -> bool:
        """Say whether this is a true outcome of a call that has been done, perhaps by an attempt before."""
        raise NotImplementedError

    async def _stored(self, user_id: int) -> tuple[str, str | None] | None:
        links = await self.linker.accounts(self.engine, user_id=user_id)
        for link in links:
            if link.account_id == self.account:
                found = await self.linker.stored_credentials(self.engine, user_id=user_id, link_id=link.id)
                refresh = found.refresh_token
                return found.access_token.reveal(), None if refresh is None else refresh.reveal()
        return None

    async def _kept(self) -> list[Any]:
        return [row for row in await self.vaulted.kept(self.engine) if row.account_id == self.account]


class Keeps(Case):
    """A conflict that keeps the claimant's tokens."""

    async def call(self, bind: Any) -> object:
        return await self.linker.link(bind, user_id=2, identity=identity(self.account), credentials=BROUGHT)

    async def is_done(self) -> bool:
        assert FORMER == await self._stored(1)
        return len(await self._kept()) == 1

    def is_right(self, outcome: object, *, retried: bool) -> bool:
        return isinstance(outcome, OwnershipConflict)


class Transfers(Case):
    """A transfer that takes the kept tokens."""

    token = ""

    async def before(self) -> None:
        await super().before()
        self.token = await self.vaulted.conflict(self.engine, 2, self.account, credentials=BROUGHT)

    async def call(self, bind: Any) -> object:
        return await self.linker.transfer(bind, self.token, user_id=2)

    async def is_done(self) -> bool:
        if await self._kept():
            assert (FORMER, None) == (await self._stored(1), await self._stored(2))
            return False
        assert (None, NEW) == (await self._stored(1), await self._stored(2))
        return True

    def is_right(self, outcome: object, *, retried: bool) -> bool:
        if isinstance(outcome, Transferred):
            return outcome.has_credentials
        return retried and isinstance(outcome, AlreadyOwner)


class Replaces(Case):
    """A replacement of the owner's tokens."""

    async def call(self, bind: Any) -> object:
        (link_id,) = [
            link.id for link in await self.linker.accounts(bind, user_id=1) if link.account_id == self.account
        ]
        return await self.linker.replace_credentials(
            bind, user_id=1, link_id=link_id, tokens=BROUGHT, presented="former"
        )

    async def is_done(self) -> bool:
        found = await self._stored(1)
        assert found in (FORMER, NEW)
        return found == NEW

    def is_right(self, outcome: object, *, retried: bool) -> bool:
        return outcome is True


CASES: dict[str, type[Case]] = {"a conflict": Keeps, "a transfer": Transfers, "a replacement": Replaces}
CASE = pytest.mark.parametrize("what", CASES)


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


async def prepared(vaulted: Vaulted, engine: AsyncEngine, what: str, account: str) -> Case:
    case = CASES[what](vaulted, engine, account)
    await case.before()
    return case


# -- lost lines -------------------------------------------------------------------------------------------------------


@POSTGRESQL
@CASE
@TABLE
async def test_a_line_cut_anywhere_is_replaced(
    database: Database, engine: AsyncEngine, line: Line, what: str, table: str
) -> None:
    """F02, F03: whichever message is lost, a new line gives the truth, and the tokens are there."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    cut = through(line, database)
    for number in range(WARM):
        await (await prepared(vaulted, engine, what, f"warm-{number}")).call(cut)
    for passed in range(ENOUGH):
        case = await prepared(vaulted, engine, what, f"sub-{passed}")
        line.cut_after(passed)
        outcome = await result_of(case.call, cut)
        assert case.is_right(outcome, retried=True), (passed, outcome)
        assert await case.is_done(), passed
        if not line.is_cut:
            line.spare()
            assert case.is_right(outcome, retried=False)
            break
    assert passed > 1, "nothing was cut"


def writes(message: Message) -> bool:
    """Whether a message runs the statement that writes: a link's, a transfer's, or a replacement."""
    sql = message.runs or ""
    return "accountlink_pending_credentials SET" in sql or "UPDATE connections SET" in sql or "DO UPDATE SET" in sql


@POSTGRESQL
@CASE
@pytest.mark.parametrize("lose", Lose, ids=lambda lose: lose.name)
async def test_a_lost_reply_is_found_out(
    database: Database, engine: AsyncEngine, line: Line, what: str, lose: Lose
) -> None:
    """F03: the write was committed and its answer lost, or it never came: AlreadyOwner then, and the tokens there."""
    vaulted = await Vaulted().create(engine)
    case = await prepared(vaulted, engine, what, "sub")
    line.cut_when(writes, lose=lose)
    outcome = await result_of(case.call, through(line, database))
    assert line.is_cut
    assert case.is_right(outcome, retried=True)
    if what == "a transfer":
        assert isinstance(outcome, AlreadyOwner if lose is Lose.REPLY else Transferred)
    assert await case.is_done()


@POSTGRESQL
async def test_a_lost_reply_after_which_others_are_stored_is_unknown(
    database: Database, engine: AsyncEngine, line: Line
) -> None:
    """F03: the tokens may have been stored, and the link has others by now: neither true nor false would be right."""
    vaulted = await Vaulted().create(engine)
    await vaulted.linked(engine, credentials=tokens(*FORMER))
    replace = partial(vaulted.linker.replace_credentials, user_id=1, provider="acme", tokens=BROUGHT)
    reads: list[Message] = []

    def second_read(message: Message) -> bool:
        if message.runs is not None and message.runs.startswith("SELECT connections.id") and message.kind != "Parse":
            reads.append(message)
        return len(reads) == 2

    line.cut_when(writes, lose=Lose.REPLY)
    hold = line.hold(second_read)
    going = asyncio.create_task(result_of(partial(replace, presented="former"), through(line, database)))
    async with asyncio.timeout(10):
        await hold.reached.wait()
    assert NEW == await vaulted.whole(engine, 1)
    await vaulted.linked(engine, credentials=tokens("third", "third"))
    hold.released.set()
    assert isinstance(await going, OutcomeUnknown)
    assert ("third", "third") == await vaulted.whole(engine, 1)


@POSTGRESQL
@CASE
@pytest.mark.parametrize("how", ["engine", "session", "connection"])
async def test_a_backend_killed_between_the_statements(
    database: Database, engine: AsyncEngine, watch: Watch, what: str, how: str
) -> None:
    """F02: an engine takes another connection; a caller's transaction is gone, and nothing has changed."""
    vaulted = await Vaulted().create(engine)
    case = await prepared(vaulted, engine, what, "sub")
    killed = watched_engine(database)
    last = {"a conflict": "WITH", "a transfer": "SET user_id=", "a replacement": "UPDATE connections"}[what]
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'under-test'"
    done = just_before(killed, last, partial(watch.rows, kill))
    async with AsyncExitStack() as stack:
        bind: Any = killed
        if how == "session":
            bind = await stack.enter_async_context(AsyncSession(killed))
        elif how == "connection":
            bind = await stack.enter_async_context(killed.connect())
        outcome = await result_of(case.call, bind)
        assert [[(True,)]] == done
        if how == "engine":
            assert case.is_right(outcome, retried=False)
            assert await case.is_done()
        else:
            assert isinstance(outcome, StoreUnavailable)
            await bind.rollback()
            assert not await case.is_done()
            assert case.is_right(await case.call(bind), retried=False)
            await bind.commit()
            assert await case.is_done()
    await killed.dispose()


# -- cancellation -----------------------------------------------------------------------------------------------------


@CASE
@TABLE
@pytest.mark.parametrize("how", ["engine", pytest.param("session", marks=pytest.mark.stress)])
async def test_cancelled_anywhere_it_is_done_or_not(
    database: Database, watch: Watch, what: str, table: str, how: str
) -> None:
    """F10, F11: after a cancellation anywhere the tokens are stored as a whole or not at all, and a retry is right."""
    vaulted = Vaulted(**TABLES[table])
    await vaulted.create(first := database.engine())
    await first.dispose()
    engine = watched_engine(database)
    for moment in (Moment.AT_ONCE, Moment.TOO_LATE):
        for at in range(1, ENOUGH):
            case = await prepared(vaulted, engine, what, f"{moment.name}-{at}")
            where = f"{moment.name} at suspension {at}"
            async with AsyncExitStack() as stack:
                bind: Any = engine
                if how == "session":
                    bind = await stack.enter_async_context(AsyncSession(engine))
                    await bind.execute(sa.text("SELECT 1"))
                run = Stepped(_coroutine(case.call, bind), at=at, moment=moment)
                end = await run.ended()
                assert not run.swallowed, (where, end)
                if how == "session":
                    await bind.rollback()
            assert 0 == checked_out(engine), where
            assert [] == await soon(partial(watch.left_behind, engine)), where
            done = await case.is_done()
            assert not (done and how == "session"), where
            if not (done and what == "a replacement"):  # whose retry says that the link has other tokens
                assert case.is_right(await case.call(engine), retried=True), where
            assert await case.is_done(), where
            if not run.struck:
                break
    await engine.dispose()
    gc.collect()


async def _coroutine(call: Callable[[Any], Any], bind: Any) -> object:
    return await call(bind)


# -- killed processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        "DELETE FROM accountlink_pending_credentials",
        pytest.param("UPDATE connections", marks=pytest.mark.stress),
        pytest.param("COMMIT", marks=pytest.mark.stress),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_process_killed_within_a_transfer_has_moved_nothing(
    database: Database, engine: AsyncEngine, part: str
) -> None:
    """F02: killed before any of the statements that SQLite needs for a transfer: nothing moved, and all still kept."""
    vaulted = await Vaulted().create(engine)
    case = await prepared(vaulted, engine, "a transfer", "sub")
    assert isinstance(case, Transfers)
    process = Process(transfer_and_stop, url=database.url, token=case.token, part=part)
    assert "stopped" == await process.hear()
    process.kill()
    assert not await case.is_done()
    outcome = await case.call(engine)
    assert isinstance(outcome, Transferred)
    assert await case.is_done()
    assert [("ok",)] == await rows(engine, "PRAGMA integrity_check")


async def transfer_and_stop(say: Say, wait: Wait, *, url: str, token: str, part: str) -> None:
    """Redeem a token in a process of its own, and stop for good before a statement with the part, or the commit."""
    engine, vaulted = create_async_engine(url), Vaulted()

    def stop(*_: object) -> None:
        say("stopped")
        await_only(wait())

    def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement:
            stop()

    sa.event.listen(engine.sync_engine, "before_cursor_execute", look)
    if part == "COMMIT":
        sa.event.listen(engine.sync_engine, "commit", stop)
    await vaulted.linker.transfer(engine, token, user_id=2)
