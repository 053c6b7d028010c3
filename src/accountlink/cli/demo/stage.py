"""Sets up the backend, the provider and the browsers, all in this process: nothing reaches a network."""

import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from sqlalchemy import URL, Select, insert, make_url, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import AccountLinker, CredentialVault, LinkEvent, OAuthRefresher, tune_sqlite
from accountlink.cli.demo.backend import CALLBACK, create_app
from accountlink.cli.demo.models import Base, Connection, User, outbox, pending, refreshes
from accountlink.cli.demo.providers import registered_at
from accountlink.extras import how_to_install
from accountlink.testing.fake_provider import FakeProvider

ORIGIN = "https://app.example"
ISSUER = "https://idp.example"
PROVIDER = "demo"


class CannotStart(Exception):
    """The demo cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Hold the parts that the story plays on."""

    engine: AsyncEngine
    linker: AccountLinker[int, int]
    new_linker: Callable[[], AccountLinker[int, int]]
    provider: FakeProvider
    app: httpx2.AsyncBaseTransport

    def new_engine(self) -> AsyncEngine:
        """Return one more engine on the database, as each process of an application has one."""
        return open_engine(self.engine.url)

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield a browser that keeps cookies, follows redirects, and shows pages of two hosts and no other."""
        async with httpx2.AsyncClient(
            base_url=ORIGIN,
            follow_redirects=True,
            transport=httpx2.MockTransport(_unreachable),
            mounts={f"{ORIGIN}": self.app, ISSUER: httpx2.ASGITransport(app=self.provider)},
            headers={"Sec-Fetch-Site": "same-origin"},  # each form of the story is on a page of our own
            trust_env=False,
        ) as browser:
            yield browser

    async def events(self) -> list[LinkEvent[int, int]]:
        """Take everything out of the outbox, as a worker that sends notices does."""
        taken = []
        async for delivery in self.linker.events(self.engine):
            taken.append(delivery.event)
            await delivery.acknowledge()
        return taken

    async def rows(self) -> list[dict[str, Any]]:
        """Return all rows of the connections table, every column, as they are stored now."""
        return await self._all(select(Connection.__table__).order_by(Connection.id))

    async def kept(self) -> list[dict[str, Any]]:
        """Return all rows of pending credentials: the sealed tokens of users who met a conflict."""
        return await self._all(select(pending).order_by(pending.c.user_id))

    async def _all(self, query: Select[Any]) -> list[dict[str, Any]]:
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def read(self, user_id: int) -> str:
        """Return the access token that the application reads for the user's account."""
        stored = await self.linker.stored_credentials(self.engine, user_id=user_id, provider=PROVIDER)
        return stored.access_token.reveal()


def _unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError(f"{request.url.host} is not part of the demo")


@asynccontextmanager
async def set_stage(*, people: dict[int, str], database_url: str | None) -> AsyncIterator[Stage]:
    """Yield a stage with fresh tables and these users in it.

    Args:
        people: Name by user id.
        database_url: An async SQLAlchemy URL; ``None`` for a SQLite file that is deleted afterwards.

    Raises:
        CannotStart: The database cannot be used.
    """
    async with AsyncExitStack() as cleanup:
        url: str | URL
        if database_url is None:
            url = file_url(Path(cleanup.enter_context(TemporaryDirectory(prefix="accountlink-demo-"))))
        else:
            url = database_url
        engine = open_engine(url)
        cleanup.push_async_callback(engine.dispose)
        await prepare_tables(engine, people, fresh=True)
        provider = FakeProvider(issuer=ISSUER, redirect_uris=[f"{ORIGIN}{CALLBACK}/{PROVIDER}"])
        registered, transport = [registered_at(provider, slug=PROVIDER)], httpx2.ASGITransport(app=provider)
        new_linker = partial(
            AccountLinker,
            Connection,
            secrets=[secrets.token_urlsafe(32)],
            outbox=outbox,
            vault=CredentialVault(keys=[secrets.token_bytes(32)]),
            pending=pending,
            refresher=OAuthRefresher.of(registered, transport=transport),
            refreshes=refreshes,
        )
        linker = new_linker()
        app = create_app(
            engine=engine,
            linker=linker,
            providers=registered,
            origin=ORIGIN,
            secret=secrets.token_urlsafe(32),
            transport=transport,
        )
        yield Stage(
            engine=engine, linker=linker, new_linker=new_linker, provider=provider, app=httpx2.ASGITransport(app=app)
        )


def file_url(folder: Path) -> URL:
    """Return the URL of the SQLite file in a folder, whatever characters the folder's name has."""
    return URL.create("sqlite+aiosqlite", database=str(folder / "demo.sqlite3"))


def open_engine(database_url: str | URL) -> AsyncEngine:
    """Return an engine on the database, an SQLite file tuned. Its errors show no values.

    Raises:
        CannotStart: The URL is not one that works here, or the file cannot be opened.
    """
    try:
        url = make_url(database_url)
        engine = create_async_engine(url, hide_parameters=True)
    except (SQLAlchemyError, ImportError, ValueError, TypeError) as problem:
        if (command := how_to_install(problem.name if isinstance(problem, ImportError) else None)) is not None:
            raise CannotStart(f"--database-url needs a driver that is not installed: {command}") from None
        raise CannotStart(
            f"--database-url is not one that works here ({type(problem).__name__}); write it with an async "
            "driver, such as postgresql+asyncpg://user@host/name"
        ) from None
    if url.get_backend_name() != "sqlite":
        return engine
    if url.database and not url.database.startswith("file:"):
        _probe(url.database)
    return tune_sqlite(engine)


def _probe(file: str) -> None:
    """Open the file once before aiosqlite does.

    After a failed open aiosqlite's thread still reports to the event loop, which may be closed by then: the
    answer to a mistyped path would be a traceback from a thread.
    """
    try:
        sqlite3.connect(file).close()
    except sqlite3.Error as problem:
        raise CannotStart(f"the database file {file} cannot be opened: {problem}") from None


async def prepare_tables(engine: AsyncEngine, people: dict[int, str], *, fresh: bool) -> None:
    """Make the tables that are missing, and the people.

    Args:
        engine: The database.
        people: Name by user id.
        fresh: Whether the tables are dropped first.

    Raises:
        CannotStart: The tables could not be made.
    """
    with _explained(engine):
        async with engine.begin() as connection:
            if fresh:
                await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
            known = set(await connection.scalars(select(User.id)))
            missing = [{"id": user_id, "name": name} for user_id, name in people.items() if user_id not in known]
            if missing:
                await connection.execute(insert(User), missing)


@contextmanager
def _explained(engine: AsyncEngine) -> Iterator[None]:
    """Turn a failure of the block into an explanation that quotes no password.

    Raises:
        CannotStart: The tables could not be made.
    """
    try:
        yield
    except (SQLAlchemyError, OSError, TypeError) as problem:  # TypeError: a parameter of the URL that the driver lacks
        where = engine.url.set(query={}).render_as_string()  # which masks the password, but none in the query
        orig = getattr(problem, "orig", None) or problem
        cause = orig.__cause__ or orig
        raise CannotStart(
            f"the tables could not be made at {where}: {type(cause).__name__}. Look at the address, and whether the "
            "role may make tables there. Tables that another version of the demo has left are dropped by --fresh"
        ) from None
