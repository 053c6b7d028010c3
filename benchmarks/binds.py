"""The ways of linking that are compared: by hand, by the library's statement, and by the library with each bind."""

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import assert_never

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from accountlink import AccountMapping, Change, Linked, OwnershipConflict, ProviderIdentity, TokenSet
from accountlink.linking.statements import Shape, Statements
from benchmarks.ground import LINKER, Connection
from benchmarks.verbs.by_hand import UPSERT

EXPIRES_AT = datetime.now(UTC) + timedelta(hours=1)
ACCESS_TOKEN, REFRESH_TOKEN, SCOPES = "a" * 64, "r" * 64, frozenset({"calendar", "mail"})
CORE = Statements(AccountMapping(Connection, policy=Connection.__link_policy__)).arms(
    Shape(email=True, credentials=("access_token", "refresh_token", "expires_at", "scopes"))
)


class Case(enum.Enum):
    """Name the situations that a call meets, each with its own answer."""

    FIRST = "first link"
    RELINK = "relink"
    CONFLICT = "conflict"


TITLES = {
    "floor": "asyncpg, hand-written upsert",
    "core": "Core statement, AUTOCOMMIT",
    "engine": "linker.link(engine)",
    "connection": "linker.link(connection) *",
    "session": "linker.link(session) *",
}
CORE_ANSWERS = {"created": Case.FIRST, "updated": Case.RELINK, "conflict": Case.CONFLICT}
Bind = AsyncEngine | AsyncConnection | AsyncSession
Link = Callable[[int, str], Awaitable[Case]]
"""The type of a function that links a user to an account id of one provider, and returns the case that it met."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Describe one way of linking."""

    name: str
    link: Link


@asynccontextmanager
async def opened(url: sa.URL) -> AsyncIterator[list[Contestant]]:
    """Yield the contestants on two pools of one connection: asyncpg's own and SQLAlchemy's."""

    async def keep(_: object) -> None:
        """Leave the connection as it is: asyncpg's own reset is a second round trip."""

    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1, reset=keep) as pool:
            yield [
                Contestant(name="floor", link=partial(by_hand, pool)),
                Contestant(name="core", link=partial(by_core, autocommit)),
                Contestant(name="engine", link=partial(by_linker, engine)),
                Contestant(name="connection", link=partial(in_transaction, engine)),
                Contestant(name="session", link=partial(in_session, engine)),
            ]
    finally:
        await engine.dispose()


async def by_hand(pool: "asyncpg.Pool[asyncpg.Record]", user_id: int, account_id: str) -> Case:
    """Run the hand-written upsert, prepared by asyncpg itself, and tell the outcomes apart."""
    identity = (user_id, "acme", account_id, f"{account_id}@example.com")
    credentials = (ACCESS_TOKEN, REFRESH_TOKEN, EXPIRES_AT, " ".join(sorted(SCOPES)))
    async with pool.acquire() as connection:
        row = await connection.fetchrow(UPSERT, *identity, *credentials, datetime.now(UTC))
    assert row is not None
    if row["user_id"] != user_id:
        return Case.CONFLICT
    return Case.FIRST if row["created"] else Case.RELINK


async def by_core(autocommit: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Run the library's statement on SQLAlchemy, without the library."""
    now = datetime.now(UTC)
    parameters = {
        "al_user_id": user_id,
        "al_provider": "acme",
        "al_account_id": account_id,
        "al_email": f"{account_id}@example.com",
        "al_access_token": ACCESS_TOKEN,
        "al_refresh_token": REFRESH_TOKEN,
        "al_expires_at": EXPIRES_AT,
        "al_scopes": " ".join(sorted(SCOPES)),
        "al_created_at": now,
        "al_updated_at": now,
    }
    async with autocommit.connect() as connection:
        row = (await connection.execute(CORE, parameters)).one()
    return CORE_ANSWERS[row[0]]


async def by_linker(bind: Bind, user_id: int, account_id: str) -> Case:
    """Call the library as an application does, with values that are made for this call."""
    outcome = await LINKER.link(
        bind,
        user_id=user_id,
        identity=ProviderIdentity(provider="acme", account_id=account_id, email=f"{account_id}@example.com"),
        credentials=TokenSet(
            access_token=ACCESS_TOKEN, refresh_token=REFRESH_TOKEN, expires_at=EXPIRES_AT, scopes=SCOPES
        ),
    )
    match outcome:
        case Linked(change=Change.CREATED):
            return Case.FIRST
        case Linked():
            return Case.RELINK
        case OwnershipConflict():
            return Case.CONFLICT
        case _:
            assert_never(outcome)


async def in_transaction(engine: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Call the library in a transaction of the caller."""
    async with engine.begin() as connection:
        return await by_linker(connection, user_id, account_id)


async def in_session(engine: AsyncEngine, user_id: int, account_id: str) -> Case:
    """Call the library in a session of the caller."""
    async with AsyncSession(engine) as session, session.begin():
        return await by_linker(session, user_id, account_id)
