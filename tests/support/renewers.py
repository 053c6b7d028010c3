"""A provider on loopback that rotates refresh tokens, and processes that ask for a token of one link there."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from urllib.parse import parse_qs

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinkError, TokenSet, tune_sqlite
from accountlink.providers import OAuthClient, RefreshBehaviour
from accountlink.tables import rows
from accountlink.tables.refreshes import refresh_states
from accountlink.vault import leases, renewal, renewing
from accountlink.vault.oauth import OAuthRefresher
from accountlink.vault.renewing import Timing
from tests.support.models import EXCLUSIVE_SOFT, Tables, identity, make_tables
from tests.support.processes import Say, Wait
from tests.support.vaulted import Vaulted

OVER: Final = timedelta(seconds=-5)
LIFETIME: Final = 1_800


@cache
def _tables() -> Tables:
    tables = make_tables(EXCLUSIVE_SOFT)
    refresh_states(tables.metadata)
    return tables


class RotatingProvider:
    """A token endpoint that rotates refresh tokens, and ends the grant when a spent one comes.

    Attributes:
        calls: Who presented which token, in order.
        most_at_once: How many calls were under way at one time, at most.
        plan: What happens to the next calls, one each: see the method ``_answer``.
        asked: Is set when a call has come.
        answers: The provider waits for this before it does anything.
        grace: Whether the token before the newest is accepted once more.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.under_way: set[object] = set()
        self.most_at_once = 0
        self.plan: list[str] = []
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self.answers.set()
        self.grace = self.ended = False
        self.newest = 0
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        call = object()
        self.under_way.add(call)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        gone: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = (line.partition(":") for line in head.split("\r\n"))
            fields = {name.lower(): value.strip() for name, _, value in lines}
            form = parse_qs((await reader.readexactly(int(fields["content-length"]))).decode())
            client, _, _ = base64.b64decode(fields["authorization"].removeprefix("Basic ")).decode().partition(":")
            self.calls.append((int(client.removeprefix("process-")), form["refresh_token"][0]))
            planned = self.plan.pop(0) if self.plan else ""
            self.asked.set()
            gone = asyncio.ensure_future(reader.read())
            gone.add_done_callback(lambda _: self._ended(call))  # a caller that gave up asks no longer
            await self.answers.wait()
            if planned == "unless it is gone" and gone.done():
                return
            answer = self._answer(planned, int(form["refresh_token"][0].removeprefix("refresh-")))
            if answer:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            gone.cancel()
            self._ended(call)
            writer.close()

    def _ended(self, call: object) -> None:
        self.under_way.discard(call)

    def _answer(self, planned: str, presented: int) -> bytes:
        """Return the answer to a refresh token; nothing if it is lost."""
        if planned.startswith(("503", "429")):
            return _http(planned, {})
        if self.ended or presented < self.newest - self.grace:
            self.ended = True
            return _http("400 Bad Request", {"error": "invalid_grant"})
        self.newest += 1
        told = {"access_token": f"access-{self.newest}", "refresh_token": f"refresh-{self.newest}"}
        return b"" if planned == "lost" else _http("200 OK", told | {"expires_in": LIFETIME})


def _http(status: str, members: dict[str, Any]) -> bytes:
    body = json.dumps(members).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def rotating() -> AsyncIterator[RotatingProvider]:
    """Serve a provider in the test's event loop."""
    provider = RotatingProvider()
    server = await asyncio.start_server(provider.handle, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"
    async with server:
        yield provider
        provider.answers.set()


def renewed(
    url: str, *, number: int = 0, lease: float = 20, deadline: float = 15, grace: bool = False, ahead: float = 0
) -> Vaulted:
    """A table whose tokens are renewed at the provider, as one process has it."""

    def present() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=ahead)

    client = OAuthClient(
        name="web",
        client_id=f"process-{number}",
        client_secret="s",
        token_endpoint=url,
        behaviour=RefreshBehaviour(rotates=True, grace=timedelta(seconds=30) if grace else timedelta(0)),
    )
    case = Vaulted(
        tables=_tables(),
        refresher=OAuthRefresher({"acme": [client]}, clock=present),
        refreshes=refresh_states(_tables().metadata),
    )
    case.clock.now = present()
    assert case.linker._renewing is not None
    case.linker._renewing.timing = Timing(
        lease=timedelta(seconds=lease), deadline=timedelta(seconds=deadline), poll=timedelta(milliseconds=20)
    )
    return case


async def link(case: Vaulted, engine: AsyncEngine, *, ends_in: timedelta = OVER) -> None:
    """Link an account whose token is over, or was issued half an hour before its end."""
    ends = datetime.now(UTC) + ends_in
    case.clock.now = ends - timedelta(seconds=LIFETIME)
    brought = TokenSet(access_token="access-0", refresh_token="refresh-0", expires_at=ends)
    await case.linker.link(engine, user_id=1, identity=identity(), credentials=brought)


def opened(url: str, **options: Any) -> AsyncEngine:
    """An engine of a process."""
    if url.startswith("postgresql"):
        return create_async_engine(url, **options)
    return tune_sqlite(create_async_engine(url, **options), busy_timeout=30_000)


async def ended(case: Vaulted, engine: AsyncEngine) -> str:
    """The access token that a caller gets, or the code of the error, with the provider's code."""
    try:
        tokens = await case.linker.credentials(engine, user_id=1, provider="acme")
    except AccountLinkError as error:
        return " ".join(filter(None, [error.code, getattr(error, "provider_code", None)]))
    except asyncio.CancelledError:
        return "cancelled"
    assert tokens.refresh_token is None
    return tokens.access_token.reveal()


async def ask(
    say: Say,
    wait: Wait,
    *,
    url: str,
    provider: str,
    number: int,
    times: int,
    cancels: bool = False,
    times_calls: bool = False,
    engine_options: dict[str, Any] | None = None,
    pause: float = 60,
    **options: Any,
) -> None:
    """Ask for the token of the link in many tasks as soon as the test says so.

    A process that cancels does so when the test says so once more, and waits for what is under way. One that times its
    calls says how many seconds the longest took, before it waits.
    """
    renewal.SHORTEST_PAUSE = timedelta(seconds=pause)  # type: ignore[misc]  # so that a busy machine ends none
    if ahead := options.get("ahead"):
        for module in (rows, renewing, leases):
            module.present = lambda: datetime.now(UTC) + timedelta(seconds=ahead)  # type: ignore[attr-defined]
    engine = opened(url, **(engine_options or {}))
    case = renewed(provider, number=number, **options)
    await case.linker.accounts(engine, user_id=99)
    say("ready")
    await wait()
    begun = time.perf_counter()
    callers = [asyncio.create_task(ended(case, engine)) for _ in range(times)]
    if cancels:
        await wait()
        for caller in callers:
            caller.cancel()
    ends = Counter(await asyncio.gather(*callers))
    if times_calls:
        say(time.perf_counter() - begun)
    await case.linker.aclose()
    await engine.dispose()
    say(ends)
