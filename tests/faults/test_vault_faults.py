"""Replacing tokens over a line that is lost: done or not done, told truthfully."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from accountlink import OutcomeUnknown, TokenSet
from tests.faults.test_lost_lines import Line, through
from tests.support.databases import Database
from tests.support.models import identity, tokens
from tests.support.vaulted import Vaulted
from tests.support.wire import Lose, Message, executes

pytestmark = [pytest.mark.each_driver, pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])]
NEW = TokenSet(access_token="access-2", refresh_token="refresh-2")
REPLACES = executes("UPDATE connections")


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    """A line to the server."""
    assert database.server is not None
    async with Line(database.server.host, database.server.port) as proxy:
        yield proxy


async def vaulted(database: Database) -> Vaulted:
    """A table with one link that has tokens."""
    made = await Vaulted().create(database.engine())
    await made.linker.link(database.engine(), user_id=1, identity=identity(), credentials=tokens())
    return made


@pytest.mark.parametrize("lose", Lose)
async def test_tokens_that_were_stored_are_said_to_be_stored(database: Database, line: Line, lose: Lose) -> None:
    """F03: the answer is lost after the commit. Only the new refresh token works: it is not disowned."""
    made = await vaulted(database)
    line.cut_when(REPLACES, lose=lose)
    assert await made.linker.replace_credentials(
        through(line, database), user_id=1, provider="acme", tokens=NEW, presented="refresh-1"
    )
    assert line.is_cut
    stored = await made.linker.stored_credentials(database.engine(), user_id=1, provider="acme")
    assert NEW.refresh_token == stored.refresh_token


async def test_tokens_that_were_replaced_since_are_unknown(database: Database, line: Line) -> None:
    """F03: the answer is lost, and meanwhile the link has other tokens: not "nothing was written"."""
    made = await vaulted(database)
    reads: list[Message] = []

    def second_read(message: Message) -> bool:
        if message.runs is not None and message.runs.startswith("SELECT connections.id") and message.kind != "Parse":
            reads.append(message)
        return len(reads) == 2

    line.cut_when(REPLACES, lose=Lose.REPLY)
    hold = line.hold(second_read)
    replacing = made.linker.replace_credentials(
        through(line, database), user_id=1, provider="acme", tokens=NEW, presented="refresh-1"
    )
    going = asyncio.create_task(replacing)
    async with asyncio.timeout(10):
        await hold.reached.wait()
    await made.linker.link(
        database.engine(), user_id=1, identity=identity(), credentials=tokens("access-3", "refresh-3")
    )
    hold.released.set()
    with pytest.raises(OutcomeUnknown):
        await going
