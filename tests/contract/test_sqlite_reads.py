"""What only reads on a tuned SQLite engine takes no write lock, and waits for no transaction of the application's."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from accountlink import ShareGrants, StoreBusy, grants_table, tune_sqlite
from accountlink.database.patience import Patience
from accountlink.database.transactions import place_on, read, run
from tests.support.databases import Database, rows
from tests.support.models import EXCLUSIVE_SOFT, make_tables, tokens
from tests.support.vaulted import Vaulted

BUSY_TIMEOUT = 5_000
"""Milliseconds: the default, so that a call that waits for the lock is far from one that does not."""
AT_ONCE = 2.0
"""Seconds, on a busy machine."""


class Refresher:
    """Renews any tokens at once."""

    def can_renew(self, provider: str, held: Any) -> bool:
        return True

    async def renew(self, provider: str, held: Any, *, deadline: timedelta) -> Any:
        return tokens("renewed", expires_at=datetime.now(UTC) + timedelta(hours=1))


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture
def case() -> Vaulted:
    made = Vaulted(tables=make_tables(EXCLUSIVE_SOFT), renews=True)
    made.linker = made.other_linker(refresher=Refresher(), refreshes=made.states)
    return made


def tuned(database: Database, *, busy_timeout: int = BUSY_TIMEOUT) -> AsyncEngine:
    return tune_sqlite(database.engine(), busy_timeout=busy_timeout)


def reads_of(case: Vaulted, engine: AsyncEngine, sharing: ShareGrants, link_id: int) -> dict[str, Any]:
    """Everything that only reads, by its name."""
    linker = case.linker
    mine: dict[str, Any] = {"user_id": 1}

    async def unhealthy() -> list[Any]:
        return [each async for each in linker.unhealthy(engine)]

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "credentials": partial(linker.credentials, engine, **mine, link_id=link_id),
        "stored_credentials": partial(linker.stored_credentials, engine, **mine, link_id=link_id),
        "health": partial(linker.health, engine, **mine),
        "unhealthy": unhealthy,
        "accounts": partial(linker.accounts, engine, **mine),
        "account": partial(linker.account, engine, **mine, link_id=link_id),
        "unlinked": partial(linker.unlinked, engine, **mine),
        "find_owner": partial(linker.find_owner, engine, provider="acme", account_id="sub-1"),
        "active": partial(sharing.active, engine, grantor_id=1),
    }
    return calls


@pytest.mark.parametrize("session_has", ["read", "written"])
async def test_a_read_on_the_engine_waits_for_no_session(database: Database, case: Vaulted, session_has: str) -> None:
    """A request's session is open and has read or written: each read on the engine is answered at once."""
    sharing: ShareGrants = ShareGrants(grants_table(case.metadata))
    engine = tuned(database)
    await case.create(engine)
    valid = tokens(expires_at=datetime.now(UTC) + timedelta(hours=9))
    case.clock.now = datetime.now(UTC)
    link_id = await case.linked(engine, credentials=valid)
    slow: dict[str, float] = {}
    async with AsyncSession(engine) as session:
        await session.execute(sa.select(case.table.c.id))
        if session_has == "written":
            session.add(case.tables.Note(text="not committed"))
            await session.flush()
        for name, call in reads_of(case, engine, sharing, link_id).items():
            begun = time.monotonic()
            await call()
            if (took := time.monotonic() - begun) > AT_ONCE:
                slow[name] = took
        await session.commit()
    assert {} == slow


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_renewal_that_gets_no_lock_asks_no_provider(database: Database, case: Vaulted, is_over: bool) -> None:
    """The caller's own session has the lock, and waits for the call: a token that lives is given out all the same."""
    engine = tuned(database, busy_timeout=100)
    await case.create(engine)
    ends = datetime.now(UTC) + timedelta(seconds=-5 if is_over else 30)
    case.clock.now = datetime.now(UTC) - timedelta(hours=1)
    link_id = await case.linked(engine, credentials=tokens("old", expires_at=ends))
    async with AsyncSession(engine) as session:
        await session.execute(sa.select(case.table.c.id))
        asking = case.linker.credentials(engine, user_id=1, link_id=link_id)
        if is_over:
            with pytest.raises(StoreBusy):
                await asking
        else:
            assert "old" == (await asking).access_token.reveal()
    assert "renewed" == (await case.linker.credentials(engine, user_id=1, link_id=link_id)).access_token.reveal()


@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=["ordinary", "autocommit"])
@pytest.mark.parametrize("is_tuned", [True, False], ids=["tuned", "untuned"])
async def test_the_statements_of_a_read_see_one_snapshot(
    database: Database, options: dict[str, Any], is_tuned: bool
) -> None:
    """What another connection commits between two statements of one read is seen by neither of them."""
    other = tuned(database)
    async with other.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (a)")
    engine = create_async_engine(database.url, **options)
    if is_tuned:
        tune_sqlite(engine)
    await rows(engine, "SELECT 1")
    writer = sa.create_engine(database.url.replace("+aiosqlite", ""))

    def work(connection: sa.Connection) -> list[int]:
        count = sa.text("SELECT count(*) FROM t")
        first = connection.execute(count).scalar_one()
        with writer.begin() as writes:
            writes.exec_driver_sql("INSERT INTO t VALUES (1)")
        return [first, connection.execute(count).scalar_one()]

    place = place_on(engine)
    assert [0, 0] == await read(place, work)
    # The connection goes back to the pool as it was: the next write is a transaction that takes the lock first.
    await run(place, lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (2)").rowcount, Patience())
    assert [(2,)] == await rows(other, "SELECT count(*) FROM t")
    writer.dispose()
    await engine.dispose()
