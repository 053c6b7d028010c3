"""Lines that are lost, servers that are gone, connections that went stale: answered truthfully, or named truthfully."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import (
    AccountLinker,
    AccountLinkError,
    BlockedByConstraint,
    Change,
    Linked,
    OutcomeUnknown,
    OwnershipConflict,
    StoreBusy,
    StoreUnavailable,
    Unlinked,
)
from accountlink.errors import FlowReplayed, TicketRejected
from accountlink.web import Started, flow_states
from tests.faults.watch import Watch, soon, watched_engine, watching
from tests.support.databases import Database, create, rows, run_sql
from tests.support.flows import stage_on
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, Tables, identity, shared_tables, tokens
from tests.support.wire import Lose, Message, WireProxy, executes

ENOUGH = 200
"""More requests and replies than any call has; a sweep that gets here does not end."""
WARM = 7
"""Calls after which each driver has prepared its statements (psycopg prepares at the sixth)."""
ROWS = "SELECT user_id, access_token FROM connections WHERE account_id = '{}'"
LINKS, UNLINKS, COMMITS = executes("WITH"), executes("WITH al_removed"), executes("COMMIT")
Call = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=["asyncpg", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by both drivers."""
    return str(request.param)


@pytest.fixture
async def watch(database: Database) -> AsyncIterator[Watch]:
    """A view of the database from outside."""
    async with watching(database) as made:
        yield made


class Line(WireProxy):
    """A line that can be cut for good."""

    for_good = False

    def count_down(self) -> bool:
        cut = super().count_down()
        if cut and self.for_good:
            self._server.close()
        return cut

    def strike(self, request: list[Message]) -> Any:
        fault = super().strike(request)
        if isinstance(fault, Lose) and self.for_good:
            self._server.close()
        return fault

    def spare(self) -> None:
        """Cut nothing after all."""
        self._until_cut = None

    def sever(self) -> None:
        """Cut every line that is open now, and take new ones."""
        for task in self._tasks:
            task.cancel()

    @property
    def is_cut(self) -> bool:
        """Whether what `cut_after` or `cut_when` wanted has come."""
        return self._until_cut is None and not self._armed


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


def through(line: Line, database: Database, **options: Any) -> AsyncEngine:
    url = make_url(database.url).set(port=line.port)
    return database.engine(**({"url": url, "pool_size": 1, "max_overflow": 0} | options))


async def tables_of(database: Database, policy: Any = EXCLUSIVE_SOFT) -> Tables:
    tables, engine = shared_tables(policy), database.engine()
    await create(engine, tables.metadata)
    if policy is EXCLUSIVE_SOFT:
        await run_sql(engine, "CREATE UNIQUE INDEX one_email ON connections (email)")
    await engine.dispose()
    return tables


async def result_of(call: Call, bind: Any) -> object:
    try:
        return await call(bind)
    except AccountLinkError as error:
        return error


class Links:
    """Links of each kind, on accounts of their own, and what each must come to however often it is tried."""

    NAMES = ("created", "relink", "conflict", "blocked")

    def __init__(self, tables: Tables, direct: AsyncEngine) -> None:
        self.linker: AccountLinker[Any, Any] = tables.linker()
        self._direct = direct

    async def prepared(self, name: str, account: str) -> Call:
        """Make what the call needs, past the line, and return the call."""
        if name != "created":
            owner, held = 2 if name == "conflict" else 1, f"{account}-held" if name == "blocked" else account
            await self.linker.link(
                self._direct,
                user_id=owner,
                identity=identity(held, email=f"{account}@example.com"),
                credentials=tokens("before"),
            )
        return lambda bind: self.linker.link(
            bind, user_id=1, identity=identity(account, email=f"{account}@example.com"), credentials=tokens("after")
        )

    @staticmethod
    def holds(name: str, outcome: object) -> bool:
        """Whether the outcome is the right one."""
        match outcome:
            case Linked(change=change):
                return change in {"created": (Change.CREATED, Change.UPDATED), "relink": (Change.UPDATED,)}.get(
                    name, ()
                )
            case OwnershipConflict():
                return name == "conflict"
            case BlockedByConstraint():
                return name == "blocked"
            case _:
                return False

    @staticmethod
    def undone(name: str) -> list[tuple[Any, ...]]:
        """Return the account's rows before the call."""
        return {"relink": [(1, "before")], "conflict": [(2, "before")]}.get(name, [])

    @staticmethod
    def done(name: str) -> list[tuple[Any, ...]]:
        """Return the account's rows after the call."""
        done: dict[str, list[tuple[Any, ...]]] = {"blocked": [], "conflict": [(2, "before")]}
        return done.get(name, [(1, "after")])


@pytest.mark.parametrize("state", ["warm", "cold"])
async def test_a_line_cut_anywhere_is_replaced(database: Database, watch: Watch, line: Line, state: str) -> None:
    """F02, F03, F12: whichever message of a link is lost, an engine's new line gives the truth, and one row."""
    tables = await tables_of(database)
    links = Links(tables, database.engine())
    engine = through(line, database)
    for name in Links.NAMES if state == "warm" else ("created",):
        for n in range(WARM if state == "warm" else 0):
            await result_of(await links.prepared(name, f"warm-{name}-{n}"), engine)
        for passed in range(ENOUGH):
            account = f"{name}-{passed}"
            call = await links.prepared(name, account)
            if state == "cold":
                await engine.dispose()
                engine = through(line, database)
            line.cut_after(passed)
            outcome = await result_of(call, engine)
            assert links.holds(name, outcome), (name, passed, outcome)
            assert links.done(name) == await watch.rows(ROWS.format(account)), (name, passed)
            if not line.is_cut:
                line.spare()
                assert passed > 1, "nothing was cut"
                break


@pytest.mark.parametrize("state", ["warm", "cold"])
async def test_a_server_that_stays_away_is_told_truthfully(
    database: Database, watch: Watch, line: Line, state: str
) -> None:
    """F02, F03, F12: no new line to be had: unknown if the link may be there, unavailable only if it cannot be."""
    tables = await tables_of(database)
    links = Links(tables, database.engine())
    told: dict[str, list[str]] = {}
    for name in ("created", "relink", "conflict") if state == "warm" else ("created",):
        for passed in range(ENOUGH):
            account = f"{name}-{passed}"
            call = await links.prepared(name, account)
            async with Line(line._upstream[0], line._upstream[1]) as lost:
                engine = through(lost, database)
                for n in range(WARM if state == "warm" else 0):
                    await result_of(await links.prepared(name, f"warm-{name}-{n}"), engine)
                lost.reset()
                lost.for_good = True
                lost.cut_after(passed)
                outcome = await result_of(call, engine)
                found = await watch.rows(ROWS.format(account))
                sent = any(map(LINKS, (message for trip in lost.log for message in trip.messages)))
                cut = lost.is_cut
                await engine.dispose()
            where = (name, passed, outcome, found)
            if not cut:
                assert links.holds(name, outcome), where
                break
            told.setdefault(name, []).append(getattr(outcome, "code", "linked"))
            assert isinstance(outcome, (StoreUnavailable, OutcomeUnknown)), where
            if sent:
                assert isinstance(outcome, OutcomeUnknown), where
            if isinstance(outcome, StoreUnavailable):
                assert links.undone(name) == found, where
            assert found in (links.undone(name), links.done(name)), where
            assert links.holds(name, await result_of(call, links._direct)), where
            assert links.done(name) == await watch.rows(ROWS.format(account)), where
    for name, codes in told.items():
        assert "outcome_unknown" == codes[-1], (name, codes)
        if state == "cold":
            assert "store_unavailable" == codes[0], (name, codes)


@pytest.mark.parametrize("how", ["session", "connection"])
async def test_a_line_cut_in_a_callers_transaction_is_unavailable(
    database: Database, watch: Watch, line: Line, how: str
) -> None:
    """F02, F12: the caller's line is cut within a link: StoreUnavailable, and nothing is committed; then it works."""
    tables = await tables_of(database)
    links = Links(tables, database.engine())
    engine = through(line, database)
    for name in Links.NAMES if how == "session" else ("created",):
        for passed in range(ENOUGH):
            account = f"{name}-{passed}"
            call = await links.prepared(name, account)
            if name == "created" and passed == 0:
                for n in range(WARM):
                    async with AsyncSession(engine) as session:
                        await result_of(await links.prepared(name, f"warm-{n}"), session)
            bind: Any = AsyncSession(engine) if how == "session" else await engine.connect().start()
            await bind.execute(sa.insert(tables.Note).values(text=account))
            line.cut_after(passed)
            outcome = await result_of(call, bind)
            where = (name, passed, outcome)
            if not line.is_cut:
                line.spare()
                assert links.holds(name, outcome), where
                await bind.close()
                break
            assert isinstance(outcome, StoreUnavailable), where
            await bind.rollback()
            assert links.undone(name) == await watch.rows(ROWS.format(account)), where
            assert links.holds(name, await result_of(call, bind)), where
            await bind.commit()
            await bind.close()
            assert links.done(name) == await watch.rows(ROWS.format(account)), where
            assert [] == await watch.rows(f"SELECT text FROM notes WHERE text = '{account}'"), where


@pytest.mark.parametrize("how", ["transaction", "autocommit"])
async def test_a_line_cut_while_the_sessions_objects_are_refreshed(
    database: Database, watch: Watch, line: Line, how: str
) -> None:
    """F12: the session holds the row, and the line is cut anywhere in link or unlink: a typed error, and a true one."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    direct, engine = database.engine(), through(line, database)
    if how == "autocommit":
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    for name in ("link", "unlink"):
        for passed in range(ENOUGH):
            mine = identity(f"{name}-{passed}")
            first = await linker.link(direct, user_id=1, identity=mine, credentials=tokens("before"))
            assert isinstance(first, Linked)
            link = partial(linker.link, user_id=1, identity=mine, credentials=tokens("after"))
            unlink = partial(linker.unlink, user_id=1, link_id=first.account.id)
            async with AsyncSession(engine) as session:
                held = await session.get(tables.Connection, first.account.id)
                line.cut_after(passed)
                outcome = await result_of(link if name == "link" else unlink, session)
                assert held is not None
                cut = line.is_cut
                line.spare()
            where = (name, passed, outcome)
            if not cut:
                assert isinstance(outcome, (Linked, Unlinked)), where
                break
            untouched = [(1, "before")] == await watch.rows(ROWS.format(f"{name}-{passed}"))
            assert isinstance(outcome, (StoreUnavailable, OutcomeUnknown)), where
            assert untouched or isinstance(outcome, OutcomeUnknown), where
            assert how == "autocommit" or isinstance(outcome, StoreUnavailable), where


READS: dict[str, Callable[[AccountLinker[Any, Any], Any], Awaitable[object]]] = {
    "accounts": lambda linker, bind: linker.accounts(bind, user_id=1),
    "account": lambda linker, bind: linker.account(bind, user_id=1, provider="acme"),
    "find_owner": lambda linker, bind: linker.find_owner(bind, provider="acme", account_id="sub-1"),
}


@pytest.mark.parametrize("name", READS)
async def test_a_read_that_loses_its_line(database: Database, line: Line, name: str) -> None:
    """F12: a read is answered on a new line; with none to be had it is unavailable, for a read commits nothing."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    direct, engine = database.engine(), through(line, database)
    await linker.link(direct, user_id=1, identity=identity())
    expected = await READS[name](linker, direct)
    for lose in Lose:
        await READS[name](linker, engine)
        line.cut_when(executes("SELECT"), lose=lose)
        assert expected == await READS[name](linker, engine)
        assert line.is_cut
    line.for_good = True
    line.cut_when(executes("SELECT"), lose=Lose.REPLY)
    with pytest.raises(StoreUnavailable):
        await READS[name](linker, engine)


@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
async def test_an_unlink_that_loses_its_line(
    database: Database, watch: Watch, line: Line, policy: Any, guarded: bool
) -> None:
    """F02, F03: any message of an unlink is lost, its COMMIT too: unlinked or of unknown outcome, never denied."""
    tables = await tables_of(database, policy)
    direct, engine = database.engine(), through(line, database)

    async def has_password(connection: AsyncConnection, user_id: int) -> bool:
        return True

    linker: AccountLinker[Any, Any] = tables.linker(guard_last=has_password if guarded else None)
    for passed in range(ENOUGH):
        first = await linker.link(direct, user_id=1, identity=identity(f"sub-{passed}"), credentials=tokens())
        assert isinstance(first, Linked)
        line.cut_after(passed)
        link_id = first.account.id
        outcome = await result_of(partial(linker.unlink, user_id=1, link_id=link_id), engine)
        where = (passed, outcome)
        assert isinstance(outcome, (Unlinked, OutcomeUnknown)), where
        live = await watch.rows(f"SELECT id FROM connections WHERE id = {link_id} AND access_token IS NOT NULL")
        if isinstance(outcome, Unlinked):
            assert [] == live, where
        if not line.is_cut:
            line.spare()
            break


@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize("lose", Lose, ids=lambda lose: lose.name)
async def test_an_unlink_whose_server_stays_away(
    database: Database, watch: Watch, line: Line, lose: Lose, guarded: bool
) -> None:
    """F02, F03: what commits an unlink is lost, or the answer to it, and no server: the outcome is unknown."""
    tables = await tables_of(database)
    direct, engine = database.engine(), through(line, database)

    async def has_password(connection: AsyncConnection, user_id: int) -> bool:
        return True

    linker: AccountLinker[Any, Any] = tables.linker(guard_last=has_password if guarded else None)
    first = await linker.link(direct, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(first, Linked)
    await linker.accounts(engine, user_id=1)
    line.for_good = True
    line.cut_when(COMMITS if guarded else UNLINKS, lose=lose)
    with pytest.raises(OutcomeUnknown):
        await linker.unlink(engine, user_id=1, link_id=first.account.id)
    assert line.is_cut
    live = await watch.rows("SELECT id FROM connections WHERE deleted_at IS NULL")
    assert ([] if lose is Lose.REPLY else [(first.account.id,)]) == live
    assert isinstance(await linker.unlink(direct, user_id=1, link_id=first.account.id), Unlinked)


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_guard_that_loses_a_line_of_its_own(database: Database, watch: Watch, how: str) -> None:
    """F07: an error of the guard is not taken for the database's: the guard is called once, its error unchanged."""
    tables = await tables_of(database)
    engine = database.engine()
    raised: list[OSError] = []

    async def guard(connection: AsyncConnection, user_id: int) -> bool:
        raised.append(kind("the guard's own"))
        raise raised[-1]

    linker: AccountLinker[Any, Any] = tables.linker(guard_last=guard)
    first = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(first, Linked)
    for kind in (ConnectionResetError, TimeoutError, OSError):
        raised.clear()
        async with AsyncSession(engine) as session:
            with pytest.raises(kind) as caught:
                await linker.unlink(engine if how == "engine" else session, user_id=1, link_id=first.account.id)
        assert raised == [caught.value]
    assert [(None,)] == await watch.rows("SELECT deleted_at FROM connections")


async def test_a_reply_that_is_lost_after_the_commit_is_an_update(database: Database, watch: Watch, line: Line) -> None:
    """F03: the link was committed and its answer lost: the second attempt says UPDATED, and there is one row."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = through(line, database)
    await linker.accounts(engine, user_id=1)
    for lose, change in ((Lose.REPLY, Change.UPDATED), (Lose.REQUEST, Change.CREATED)):
        line.cut_when(LINKS, lose=lose)
        outcome = await linker.link(engine, user_id=1, identity=identity(lose.name), credentials=tokens("after"))
        assert line.is_cut
        assert isinstance(outcome, Linked)
        assert change is outcome.change
        assert [(1, "after")] == await watch.rows(ROWS.format(lose.name))


async def test_an_autocommit_connection_that_loses_its_line(database: Database, watch: Watch, line: Line) -> None:
    """F02, F03: a caller's AUTOCOMMIT connection is not replaced; the outcome of a link on it is unknown."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    for lose in Lose:
        engine = through(line, database)
        async with engine.connect() as connection:
            bind = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await linker.accounts(bind, user_id=1)
            line.cut_when(LINKS, lose=lose)
            with pytest.raises(OutcomeUnknown):
                await linker.link(bind, user_id=1, identity=identity(lose.name), credentials=tokens("after"))
        found = [(1, "after")] if lose is Lose.REPLY else []
        assert found == await watch.rows(ROWS.format(lose.name))


KILL_IDLE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'under-test'"


async def test_stale_connections_of_a_pool_are_replaced(database: Database, watch: Watch) -> None:
    """F02, F07: every idle connection of a pool was ended by the server: no caller notices, alone or at once."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = watched_engine(database, pool_size=8, max_overflow=0)
    for round_ in range(3):
        connections = [await engine.connect().start() for _ in range(8)]
        for connection in connections:
            await connection.close()
        assert 8 == len(await watch.rows(KILL_IDLE))
        await asyncio.sleep(0.05)
        calls = 1 if round_ == 0 else 8
        outcomes = await asyncio.gather(
            *(linker.link(engine, user_id=1, identity=identity(f"{round_}-{n}")) for n in range(calls)),
            return_exceptions=True,
        )
        assert [Linked] * calls == [type(outcome) for outcome in outcomes], outcomes
        for n in range(8):  # whatever else of the pool is stale
            assert isinstance(await linker.link(engine, user_id=1, identity=identity(f"{round_}-{n}")), Linked)
        assert 8 >= len(await linker.accounts(engine, user_id=1)) / (round_ + 1)


async def test_severed_lines_of_a_pool_are_replaced(database: Database, line: Line) -> None:
    """F02, F12: every idle line of a pool was cut on the way: no caller notices, alone or at once."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = through(line, database, pool_size=8)
    for calls in (1, 8):
        connections = [await engine.connect().start() for _ in range(8)]
        for connection in connections:
            await connection.close()
        line.sever()
        outcomes = await asyncio.gather(
            *(linker.link(engine, user_id=1, identity=identity(f"{calls}-{n}")) for n in range(calls)),
            return_exceptions=True,
        )
        assert [Linked] * calls == [type(outcome) for outcome in outcomes], outcomes
        for n in range(8):
            assert isinstance(await linker.link(engine, user_id=1, identity=identity(f"{calls}-{n}")), Linked)
        assert 8 >= len(await linker.accounts(engine, user_id=1)) / (1 if calls == 1 else 2)


async def test_a_stale_connection_in_a_session_is_unavailable_once(database: Database, watch: Watch) -> None:
    """F07: a session that begins on a stale connection is told StoreUnavailable; run again, it succeeds."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = watched_engine(database, pool_size=1, max_overflow=0)
    async with AsyncSession(engine) as session:
        await session.execute(sa.text("SELECT 1"))
        await session.rollback()
        await watch.rows(KILL_IDLE)
        await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailable):
            await linker.link(session, user_id=1, identity=identity())
        await session.rollback()
        assert isinstance(await linker.link(session, user_id=1, identity=identity()), Linked)
        await session.commit()
    assert [(1,)] == await watch.rows("SELECT count(*) FROM connections")


WAITS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE wait_event_type = 'Lock' AND application_name = 'under-test'"
)


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_backend_that_is_killed_while_it_waits(database: Database, watch: Watch, how: str) -> None:
    """F07: the server ends a backend whose link waits for a rival (57P01): an engine tries again, a session is told."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine, others = watched_engine(database), database.engine()
    async with AsyncSession(others) as rival, AsyncSession(engine) as session:
        await linker.link(rival, user_id=1, identity=identity())
        bind: Any = engine if how == "engine" else session
        waiter = asyncio.create_task(result_of(lambda b: linker.link(b, user_id=2, identity=identity()), bind))

        async def nobody_was_killed() -> bool:
            return not await watch.rows(WAITS)

        assert not await soon(nobody_was_killed)
        if how == "session":
            assert isinstance(await asyncio.wait_for(waiter, 10), StoreUnavailable)
            await session.rollback()
            waiter = asyncio.create_task(result_of(lambda b: linker.link(b, user_id=2, identity=identity()), bind))
        await asyncio.sleep(0.05)
        await rival.commit()
        outcome = await asyncio.wait_for(waiter, 10)
    assert isinstance(outcome, OwnershipConflict), outcome
    assert [(1,)] == await watch.rows("SELECT user_id FROM connections")


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_too_many_connections_are_unavailable(database: Database, how: str) -> None:
    """F07: if the server refuses more connections (53300), the call raises StoreUnavailable: nothing was sent."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    direct = database.engine()
    await run_sql(direct, "CREATE ROLE few LOGIN CONNECTION LIMIT 1", "GRANT ALL ON ALL TABLES IN SCHEMA public TO few")
    await run_sql(direct, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO few")
    few = make_url(database.url).set(username="few")
    holder, engine = database.engine(url=few), database.engine(url=few)
    try:
        async with holder.connect():
            with pytest.raises(StoreUnavailable):
                await linker.link(engine if how == "engine" else AsyncSession(engine), user_id=1, identity=identity())
        await holder.dispose()
        left = "SELECT pid FROM pg_stat_activity WHERE usename = 'few'"  # a process of the server ends after its line
        assert [] == await soon(partial(rows, direct, left))
        assert isinstance(await linker.link(engine, user_id=1, identity=identity()), Linked)
        await engine.dispose()
    finally:
        await run_sql(direct, "DROP OWNED BY few", "DROP ROLE few")


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_a_refused_port_is_unavailable(database: Database, how: str) -> None:
    """F02: without a server every call raises StoreUnavailable, reads too."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    linker: AccountLinker[Any, Any] = tables.linker()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        engine = database.engine(url=make_url(database.url).set(port=taken.getsockname()[1]))
        bind: Any = engine if how == "engine" else AsyncSession(engine)
        calls: list[Call] = [
            lambda bind: linker.link(bind, user_id=1, identity=identity()),
            lambda bind: linker.unlink(bind, user_id=1, link_id=1),
            *(partial(read, linker) for read in READS.values()),
        ]
        for call in calls:
            assert isinstance(await result_of(call, bind), StoreUnavailable)


@pytest.mark.parametrize("how", ["engine", "session"])
async def test_an_exhausted_pool_is_busy(database: Database, how: str) -> None:
    """F07: no connection to be had from the pool in its time: StoreBusy, and it works when there is one."""
    tables = await tables_of(database)
    linker: AccountLinker[Any, Any] = tables.linker()
    engine = database.engine(pool_size=1, max_overflow=0, pool_timeout=0.05)
    bind: Any = engine if how == "engine" else AsyncSession(engine)
    async with engine.connect():
        with pytest.raises(StoreBusy):
            await linker.link(bind, user_id=1, identity=identity())
    assert isinstance(await linker.link(bind, user_id=1, identity=identity()), Linked)
    if how == "session":
        await bind.close()


@pytest.mark.parametrize("purpose", ["flow", "ticket"])
@pytest.mark.parametrize("lose", Lose)
async def test_a_flow_whose_use_was_not_answered_is_not_called_a_replay(
    line: Line, database: Database, purpose: str, lose: Lose
) -> None:
    """F03: a record was used and the reply was lost: nobody can say by whom, and the error does not either."""
    stage = await stage_on(through(line, database), states=flow_states)
    ticket = (await stage.flow.ticket(user_id=1, provider="acme")).url.rpartition("/")[2]
    started = await stage.start()
    parameters = await stage.consent(started.url)

    async def use() -> object:
        if purpose == "flow":
            return (await stage.finish(started, parameters)).outcome
        return await stage.flow.start_with(ticket, user_id=1, browser=None)

    line.cut_when(executes("UPDATE accountlink_flow_states"), lose=lose)
    if lose is Lose.REQUEST:
        assert isinstance(await use(), (Linked, Started))
    else:
        with pytest.raises(OutcomeUnknown):
            await use()
    assert line.is_cut
    assert stage.asked_for_tokens() == (purpose == "flow" and lose is Lose.REQUEST)
    with pytest.raises(FlowReplayed if purpose == "flow" else TicketRejected):
        await use()
