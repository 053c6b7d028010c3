"""A database that takes no writes at the moment, as a standby: one error, for every verb that writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import ShareGrants, StoreUnavailable, grants_table
from tests.support.databases import Database
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables, tokens
from tests.support.vaulted import Vaulted

LATER = timedelta(hours=9)
OVER = timedelta(seconds=-5)


class Refresher:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def can_renew(self, provider: str, held: Any) -> bool:
        return True

    async def renew(self, provider: str, held: Any, *, deadline: timedelta) -> Any:
        self.calls += 1
        return tokens("renewed", expires_at=datetime.now(UTC) + LATER)


def reader(database: Database) -> AsyncEngine:
    """An engine on the same database, which takes no writes."""
    setting = {"default_transaction_read_only": "on"}
    if database.kind == "asyncpg":
        return database.engine(connect_args={"server_settings": setting})
    if database.kind == "psycopg":
        return database.engine(connect_args={"options": "-c default_transaction_read_only=on"})
    engine = database.engine()
    sa.event.listen(engine.sync_engine, "connect", lambda driver, _: driver.execute("PRAGMA query_only = ON"))
    return engine


async def told(awaited: Any) -> str | None:
    """The code of the error that says that the database takes no writes, or nothing if there was none."""
    try:
        await awaited
    except StoreUnavailable as error:
        shown = repr(error) + repr(error.__cause__)
        return error.code if error.is_read_only and "read-only" in str(error) and "INSERT" not in shown else shown
    return None


@pytest.mark.parametrize("bind", ["engine", "session"])
async def test_every_verb_that_writes_says_so(database: Database, bind: str) -> None:
    """`link`, `unlink`, `transfer`, renewals and grants raise StoreUnavailable; the provider is not asked."""
    refresher = Refresher()
    case = Vaulted(tables=make_tables(EXCLUSIVE_SOFT), renews=True, outbox=True)
    sharing: ShareGrants = ShareGrants(grants_table(case.metadata))
    linker = case.linker = case.other_linker(refresher=refresher, refreshes=case.states)
    writer = database.engine()
    await case.create(writer)
    case.clock.now = datetime.now(UTC)
    valid = await case.linked(writer, credentials=tokens(expires_at=datetime.now(UTC) + LATER))
    over = await case.linked(writer, account="sub-2", credentials=tokens(expires_at=datetime.now(UTC) + OVER))
    token = await case.conflict(writer)
    engine = reader(database)
    async with AsyncSession(engine) as session:
        given: Any = engine if bind == "engine" else session

        async def all_of(awaited: Any) -> str | None:
            code = await told(awaited)
            await session.rollback()
            return code

        new = tokens(expires_at=datetime.now(UTC) + LATER)
        writes = {
            "link": linker.link(given, user_id=1, identity=identity("sub-3"), credentials=new),
            "relink": linker.link(given, user_id=1, identity=identity()),
            "unlink": linker.unlink(given, user_id=1, link_id=valid),
            "transfer": linker.transfer(given, token, user_id=2),
            "replace": linker.replace_credentials(given, user_id=1, link_id=over, tokens=new, presented="refresh-1"),
            "issue": sharing.issue(given, grantor_id=1, expires_in=LATER),
        }
        assert dict.fromkeys(writes, "store_unavailable") == {name: await all_of(call) for name, call in writes.items()}
    assert "store_unavailable" == await told(linker.credentials(engine, user_id=1, link_id=over))
    await told(linker.keep_alive(engine, idle=timedelta(milliseconds=1)))
    assert 0 == refresher.calls
    await linker.aclose()


async def test_reads_still_work(database: Database) -> None:
    """A token that is valid is given out, and links and their health are listed."""
    case = Vaulted(tables=make_tables(EXCLUSIVE_SOFT), renews=True)
    linker = case.linker = case.other_linker(refresher=Refresher(), refreshes=case.states)
    writer = database.engine()
    await case.create(writer)
    case.clock.now = datetime.now(UTC)
    link_id = await case.linked(writer, credentials=tokens(expires_at=datetime.now(UTC) + LATER))
    engine = reader(database)
    given = await linker.credentials(engine, user_id=1, link_id=link_id)
    assert "access-1" == given.access_token.reveal()
    assert [link_id] == [link.id for link in await linker.accounts(engine, user_id=1)]
    assert [link_id] == list(await linker.health(engine, user_id=1))
