"""An application around the blocks of the documentation: what they take as given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, LinkedAccountMixin, LinkPolicy, ProviderIdentity, Removal, TokenSet, tune_sqlite

CLAIMS: Final = {"sub": "248289761001", "email": "ada@example.org", "email_verified": True}
TOKEN_RESPONSE: Final = {"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 3600, "scope": "openid email"}


class Base(DeclarativeBase):
    """Tables of an application."""


class User(Base):
    """Somebody who can sign in."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Connection(LinkedAccountMixin, Base):
    """A user's links."""

    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


@dataclass(kw_only=True)
class Application:
    """Its engine, a session, a signed-in user, and what the provider vouched for."""

    engine: AsyncEngine
    session: AsyncSession
    linker: AccountLinker[int, int]
    user: User
    identity: ProviderIdentity
    tokens: TokenSet


async def started(name: str = "application") -> Application:
    """Make its tables in an SQLite file of this name, and one user."""
    engine = tune_sqlite(create_async_engine(f"sqlite+aiosqlite:///{name}.db"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    session = AsyncSession(engine, expire_on_commit=False)
    user = User(id=1)
    session.add(user)
    await session.commit()
    return Application(
        engine=engine,
        session=session,
        linker=AccountLinker(Connection, secrets=["an example, at least 32 bytes, not random"]),
        user=user,
        identity=ProviderIdentity(provider="google", account_id="248289761001", email="ada@example.org"),
        tokens=TokenSet(access_token="at-1", refresh_token="rt-1"),
    )


@dataclass(frozen=True)
class Answer:
    """Represent a redirect of a web framework."""

    url: str
    status_code: int


def redirect(url: str, status_code: int = 302) -> Answer:
    """Answer with a redirect."""
    return Answer(url, status_code)
