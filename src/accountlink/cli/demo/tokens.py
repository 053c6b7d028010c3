"""Shows how long each token is valid and whether its grant still works, and lets two workers ask for one at once.

A real application has no such panel: it calls ``credentials`` wherever it needs a token, and shows users the health.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx2
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from accountlink import AccountLinker, AccountLinkError, LinkedAccount, TokenSet
from accountlink.cli.demo.answers import NO_STORE
from accountlink.cli.demo.backend import Endpoint, signed_in
from accountlink.cli.demo.models import Connection
from accountlink.cli.demo.providers import Providers
from accountlink.cli.demo.sealed import begins, in_utc

WORKERS: Final = 2
_ON_THE_WAY: Final = timedelta(milliseconds=300)
"""The time that an answer of a provider takes, as those of real ones do: no worker would have to wait without it."""
_AGO: Final = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Hold what a worker got that asked for a token.

    Attributes:
        tokens: The tokens; ``None`` if there was an error.
        code: The code of the error; ``None`` if there are tokens.
        waited: How long the worker waited.
    """

    tokens: TokenSet | None
    code: str | None
    waited: timedelta

    @property
    def access_token(self) -> str | None:
        """The whole access token, to compare it with another; it is shown nowhere."""
        return None if self.tokens is None else self.tokens.access_token.reveal()


async def let_expire(engine: AsyncEngine, *, user_id: int, link_id: int) -> None:
    """Move the end of a link's access token into the past, in the table, instead of waiting for it.

    Args:
        engine: The application's engine.
        user_id: The user.
        link_id: Their link.
    """
    link = update(Connection).where(Connection.id == link_id, Connection.user_id == user_id)
    async with engine.begin() as connection:
        await connection.execute(link.values(expires_at=datetime.now(UTC) - _AGO))


async def ask_at_once(
    new_engine: Callable[[], AsyncEngine],
    new_linker: Callable[[], AccountLinker[int, int]],
    *,
    user_id: int,
    link_id: int,
) -> list[Asked]:
    """Let two workers ask for the token of one link at the same instant, and return what each got.

    Like two processes they share the database, and nothing else.

    Args:
        new_engine: Opens an engine on the application's database.
        new_linker: Makes a linker as the application's.
        user_id: The user.
        link_id: Their link.
    """
    async with AsyncExitStack() as cleanup:
        workers = []
        for _ in range(WORKERS):
            engine, linker = new_engine(), new_linker()
            cleanup.push_async_callback(engine.dispose)
            cleanup.push_async_callback(linker.aclose)
            async with engine.connect():  # now, so that neither of them has to afterwards
                workers.append((linker, engine))
        asking = (_ask(linker, engine, user_id=user_id, link_id=link_id) for linker, engine in workers)
        return await asyncio.gather(*asking)


async def _ask(linker: AccountLinker[int, int], engine: AsyncEngine, *, user_id: int, link_id: int) -> Asked:
    began, tokens, code = time.monotonic(), None, None
    try:
        tokens = await linker.credentials(engine, user_id=user_id, link_id=link_id)
    except AccountLinkError as error:
        code = error.code
    return Asked(tokens=tokens, code=code, waited=timedelta(seconds=time.monotonic() - began))


class Distant(httpx2.AsyncBaseTransport):
    """Answer a POST as late as a provider far away does.

    Args:
        transport: Answers.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request."""
        if request.method == "POST":
            await asyncio.sleep(_ON_THE_WAY.total_seconds())
        return await self._transport.handle_async_request(request)


class Tokens:
    """Answer for the tokens of the user's links.

    Args:
        engine: The application's engine.
        linker: The application's linker, which renews tokens.
        providers: The pretend providers.
        new_engine: Opens an engine for a worker.
        new_linker: Makes a linker for a worker.
    """

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        linker: AccountLinker[int, int],
        providers: Providers,
        new_engine: Callable[[], AsyncEngine],
        new_linker: Callable[[], AccountLinker[int, int]],
    ) -> None:
        self._engine = engine
        self._linker = linker
        self._providers = providers
        self._new_engine = new_engine
        self._new_linker = new_linker

    def posts(self) -> dict[str, Endpoint]:
        """Return what answers the panel's buttons, by path."""
        return {
            "/tokens/{link_id:int}/expire": self.expire,
            "/tokens/{link_id:int}/ask": self.ask,
            "/tokens/{link_id:int}/withdraw": self.withdraw,
        }

    async def shown(self, user_id: int | None) -> list[dict[str, Any]]:
        """Return the state of the user's tokens, by link."""
        if user_id is None:
            return []
        its = select(Connection.id, Connection.provider, Connection.expires_at)
        live = its.where(Connection.user_id == user_id, Connection.deleted_at.is_(None)).order_by(Connection.id)
        async with self._engine.connect() as connection:
            links = (await connection.execute(live)).all()
        health = await self._linker.health(self._engine, user_id=user_id)
        now = datetime.now(UTC)
        return [
            {
                "id": link.id,
                "provider": link.provider,
                "expires_at": _moment(link.expires_at),
                "is_over": link.expires_at is not None and in_utc(link.expires_at) <= now,
                "health": health[link.id].state.value,
                "provider_code": health[link.id].provider_code,
                "since": _moment(health[link.id].since),
                "calls": self._calls(link.provider),
            }
            for link in links
            if link.id in health  # it may have been disconnected between the two looks
        ]

    async def expire(self, request: Request) -> Response:
        """Let a link's token be over now."""
        link = await self._own(request)
        await let_expire(self._engine, user_id=link.user_id, link_id=link.id)
        return JSONResponse({}, headers=NO_STORE)

    async def ask(self, request: Request) -> Response:
        """Let two workers ask for a link's token, and say what each got, and how often the provider was asked."""
        link = await self._own(request)
        before = self._calls(link.provider)
        asked = await ask_at_once(self._new_engine, self._new_linker, user_id=link.user_id, link_id=link.id)
        return JSONResponse(
            {
                "workers": [
                    {
                        "access_token": begins(None if each.tokens is None else each.tokens.access_token),
                        "code": each.code,
                        "waited": each.waited.total_seconds(),
                    }
                    for each in asked
                ],
                "is_same": len({each.access_token for each in asked}) == 1 and asked[0].tokens is not None,
                "calls": self._calls(link.provider) - before,
            },
            headers=NO_STORE,
        )

    async def withdraw(self, request: Request) -> Response:
        """End the grants of an account at its provider, as a user does in the provider's own settings.

        Nothing tells the application: it learns so when it next asks for a new token.
        """
        link = await self._own(request)
        self._providers.fakes[link.provider].revoke_consent(str(link.account_id))
        return JSONResponse({}, headers=NO_STORE)

    async def _own(self, request: Request) -> LinkedAccount[int, int]:
        """Return the link that a request names, if it is the signed-in user's."""
        user_id: Any = signed_in(request)
        return await self._linker.account(self._engine, user_id=user_id, link_id=request.path_params["link_id"])

    def _calls(self, provider: str) -> int:
        """Return how many token calls the provider has counted since the demo began; none for one of ``--once``."""
        fake = self._providers.fakes.get(provider)
        return 0 if fake is None else fake.calls["/token"]


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else in_utc(moment).isoformat()
