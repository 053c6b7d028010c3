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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinker, CredentialVault, OAuthRefresher, TokenSet, refresh_states, tune_sqlite
from accountlink.providers import OAuthClient
from accountlink.vault.renewing import Timing
from accountlink.vault.upkeep import AT_ONCE
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT
from tests.support.processes import Process, Say, Wait
from tests.support.vaulted import KEY, Vaulted

IDLE: Final = timedelta(days=30)
LINKED_AT: Final = datetime.now(UTC) - timedelta(days=40)
SHORT: Final = Timing(lease=timedelta(seconds=1), deadline=timedelta(milliseconds=800), poll=timedelta(milliseconds=20))
"""Times of renewals for tests, so that the leases of a killed process end soon."""


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
    url: str = ""

    def answer(self, presented: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        self.presented[presented] += 1
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
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"
    try:
        yield provider
    finally:
        server.close()


def refresher_at(url: str) -> OAuthRefresher:
    return OAuthRefresher({"acme": [OAuthClient(client_id="me", client_secret="secret", token_endpoint=url)]})


# -- the table --------------------------------------------------------------------------------------------------------


class Kept(Vaulted):
    """A table of links with the table of their renewals, and a linker that asks the provider at a URL."""

    def __init__(self, url: str, *, timing: Timing | None = None) -> None:
        super().__init__(EXCLUSIVE_SOFT, vault=CredentialVault(keys=[KEY]), pending=False)
        self.states = refresh_states(self.tables.metadata)
        self.keeping: AccountLinker[int, int] = self.other_linker(
            refresher=refresher_at(url), refreshes=self.states, clock=lambda: datetime.now(UTC)
        )
        assert self.keeping._renewing is not None
        if timing is not None:
            self.keeping._renewing.timing = timing

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
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
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
