"""Idle grants of a whole table, kept alive by two workers, one of which is killed half-way.

The provider runs on loopback. It rotates refresh tokens, counts how often each is presented, and ends a grant whose
tokens are used again later. As many providers do, it answers the newest spent token of a grant once more, since its
answer may have been lost. The benchmark and the tests run this.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinker, CredentialVault, TokenSet, refresh_states, tune_sqlite
from accountlink.vault.refresher import GrantEnded, Refresher
from accountlink.vault.upkeep import AT_ONCE, KeptAlive
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT
from tests.support.processes import Process, Say, Wait, begin
from tests.support.vaulted import KEY, Vaulted

IDLE: Final = timedelta(days=30)
LINKED_AT: Final = datetime.now(UTC) - timedelta(days=40)


# -- the provider -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class LoopbackProvider:
    """A token endpoint that rotates refresh tokens, and counts.

    A refresh token is ``grant.number``; the number of the one that counts rises by one at each renewal.
    """

    delay: float = 0.0
    presented: Counter[str] = field(default_factory=Counter)
    newest: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    port: int = 0
    half: int = 0
    is_half_way: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, presented: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        self.presented[presented] += 1
        if len(self.presented) == self.half:
            self.is_half_way.set()
        grant, _, number = presented.rpartition(".")
        newest = self.newest.setdefault(grant, int(number))
        if grant in self.ended or int(number) < newest - 1 or int(number) > newest:
            self.ended.add(grant)
            return 400, {"error": "invalid_grant"}
        self.newest[grant] = int(number) + 1
        renewed = f"{grant}.{int(number) + 1}"
        return 200, {"access_token": f"access-{renewed}", "refresh_token": renewed, "expires_in": 3600}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
                body = parse_qs((await reader.readexactly(int(fields[b"content-length"]))).decode())
                if self.delay:
                    await asyncio.sleep(self.delay)
                status, said = self.answer(body["refresh_token"][0])
                text = json.dumps(said).encode()
                head_lines = f"HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
                writer.write(head_lines.encode() + b"\r\n\r\n" + text)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, or was killed
        finally:
            writer.close()


@asynccontextmanager
async def loopback_provider(*, delay: float = 0.0) -> AsyncIterator[LoopbackProvider]:
    """Serve a provider in this process."""
    provider = LoopbackProvider(delay=delay)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()


class LoopbackRefresher:
    """Redeems refresh tokens at the provider, by as little code as there can be: its connections stay open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        return tokens.refresh_token is not None

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        assert tokens.refresh_token is not None
        reader, writer = self._open.pop() if self._open else await asyncio.open_connection("127.0.0.1", self._port)
        body = f"refresh_token={tokens.refresh_token.reveal()}"
        writer.write(f"POST /token HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        members = json.loads(await reader.readexactly(int(head.rpartition(b": ")[2])))
        self._open.append((reader, writer))
        if "error" in members:
            raise GrantEnded(members["error"])
        return TokenSet.from_response(members, received_at=datetime.now(UTC))

    async def aclose(self) -> None:
        for _, writer in self._open:
            writer.close()
            await writer.wait_closed()


# -- the table --------------------------------------------------------------------------------------------------------


class Kept(Vaulted):
    """A table of links with the table of their renewals, and a linker that renews them."""

    def __init__(self, refresher: Refresher) -> None:
        super().__init__(EXCLUSIVE_SOFT, vault=CredentialVault(keys=[KEY]), pending=False)
        self.states = refresh_states(self.tables.metadata)
        self.keeping: AccountLinker[int, int] = self.other_linker(
            refresher=refresher, refreshes=self.states, clock=lambda: datetime.now(UTC)
        )

    async def fill(self, engine: AsyncEngine, rows: int, *, expires_in: timedelta = timedelta(hours=1)) -> None:
        """Insert links whose tokens were obtained 40 days ago, and let PostgreSQL analyse the table."""
        await create(engine, self.tables.metadata)
        stored = self.keeping._stored
        assert stored is not None
        seal = await stored.vault.ready()
        async with engine.begin() as connection:
            for start in range(1, rows + 1, 1_000):
                numbers = range(start, min(start + 1_000, rows + 1))
                await connection.execute(sa.insert(self.table), [_row(seal, number, expires_in) for number in numbers])
        if engine.dialect.name == "postgresql":
            alone = engine.execution_options(isolation_level="AUTOCOMMIT")
            async with alone.connect() as connection:
                await connection.execute(sa.text("VACUUM ANALYZE"))


def _row(seal: Any, number: int, expires_in: timedelta) -> dict[str, Any]:
    tokens = TokenSet(access_token=f"access-{number}", refresh_token=f"{number}.0")
    account = f"sub-{number}"
    sealed = seal(tokens, user_id=number, provider="acme", account_key=account, issued_at=LINKED_AT)
    return {
        "user_id": number,
        "provider": "acme",
        "account_id": account,
        "expires_at": datetime.now(UTC) + expires_in,
        "created_at": LINKED_AT,
        "updated_at": LINKED_AT,
        **sealed,
    }


def opened(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    return engine if url.startswith("postgresql") else tune_sqlite(engine, busy_timeout=30_000)


# -- two workers, one of which is killed ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one worker did.

    Attributes:
        kept: What became of the grants.
        seconds: How long it took.
        cpu: The seconds of CPU of the worker's process.
        longest: The longest time that one of its connections was out of the pool, in seconds.
        statements: How many statements it ran.
    """

    kept: KeptAlive
    seconds: float
    cpu: float
    longest: float
    statements: int


class Watch:
    """Measures how long connections of an engine are out of the pool, and counts statements."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.longest = 0.0
        self.statements = 0
        self._since: dict[int, float] = {}
        sa.event.listen(engine.sync_engine, "checkout", self._out)
        sa.event.listen(engine.sync_engine, "checkin", self._back)
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._executes)

    def _out(self, _connection: object, record: object, *_: object) -> None:
        self._since[id(record)] = time.perf_counter()

    def _back(self, _connection: object, record: object) -> None:
        since = self._since.pop(id(record), None)
        self.longest = max(self.longest, 0.0 if since is None else time.perf_counter() - since)

    def _executes(self, *_: object) -> None:
        self.statements += 1


async def turn(engine: AsyncEngine, kept: Kept) -> Turn:
    """Keep all idle grants alive once."""
    watch = Watch(engine)
    begun, cpu = time.perf_counter(), time.process_time()
    counts = await kept.keeping.keep_alive(engine, idle=IDLE)
    return Turn(
        kept=counts,
        seconds=time.perf_counter() - begun,
        cpu=time.process_time() - cpu,
        longest=watch.longest,
        statements=watch.statements,
    )


async def keep(say: Say, wait: Wait, *, url: str, port: int) -> None:
    """Keep all idle grants alive in a process of its own, and say what that took."""
    engine = opened(url)
    refresher = LoopbackRefresher(port)
    say("ready")
    await wait()
    say(await turn(engine, Kept(refresher)))
    await refresher.aclose()
    await engine.dispose()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of two workers, one of which is killed half-way, and started again.

    Attributes:
        killed_at: The grants that were renewed when it was killed.
        in_flight: The grants that the killed worker was renewing then: each of them was presented twice.
        turns: What the worker that lived and the one that was started again did.
        last: What one more turn did, after the leases of the killed worker had ended.
        seconds: From the start to the end of both workers.
    """

    killed_at: int
    in_flight: int
    turns: list[Turn]
    last: Turn
    seconds: float


async def two_workers(engine: AsyncEngine, rows: int, *, filled: Callable[[], object] = lambda: None) -> Figures:
    """Keep a table of idle grants alive by two workers; kill one half-way, start it again, and check each grant.

    Each refresh token is presented once. Only those that the killed worker was presenting are presented once more.

    Args:
        engine: An engine on an empty database.
        rows: The number of grants.
        filled: Called when the table has its rows.
    """
    async with loopback_provider() as provider:
        refresher = LoopbackRefresher(provider.port)
        kept = Kept(refresher)
        await kept.fill(engine, rows)
        filled()
        url = engine.url.render_as_string(hide_password=False)
        victim, other, again = (Process(keep, url=url, port=provider.port) for _ in range(3))
        try:
            begun, provider.half = time.perf_counter(), rows // 2
            await begin([victim, other])
            await provider.is_half_way.wait()
            victim.kill()
            killed_at = len(provider.presented)
            await begin([again])
            (one,), (two,) = await asyncio.gather(other.rest(), again.rest())
            seconds = time.perf_counter() - begun
        finally:
            for each in (victim, other, again):
                each.kill()
        async with engine.begin() as connection:  # as if half a minute had gone by: the leases of the dead end
            await connection.execute(sa.update(kept.states).values(lease_until=LINKED_AT))
        last = await turn(engine, kept)
        await refresher.aclose()
        twice = await checked(engine, kept, provider, rows)
        return Figures(killed_at=killed_at, in_flight=twice, turns=[one, two], last=last, seconds=seconds)


async def checked(engine: AsyncEngine, kept: Kept, provider: LoopbackProvider, rows: int) -> int:
    """Check that each grant was renewed once and stored, and return how many tokens were presented twice."""
    assert {f"{number}.0" for number in range(1, rows + 1)} == set(provider.presented)
    assert set() == provider.ended
    twice = [presented for presented, times in provider.presented.items() if times > 1]
    assert len(twice) <= AT_ONCE
    assert {2} >= {provider.presented[each] for each in twice}
    for number in range(1, rows + 1, max(1, rows // 100)):
        stored = await kept.keeping.stored_credentials(engine, user_id=number, provider="acme")
        assert stored.refresh_token is not None
        assert f"{number}.1" == stored.refresh_token.reveal()
    s = kept.states.c
    async with engine.connect() as connection:
        healthy = await connection.scalar(
            sa.select(sa.func.count()).where(s.state == "ok", s.lease_by.is_(None), s.refreshed_at.is_not(None))
        )
    assert rows == healthy
    return len(twice)
