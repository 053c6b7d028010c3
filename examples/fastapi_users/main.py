"""Account linking for an application with fastapi-users: what it does alone, and with accountlink on the same table.

python examples/fastapi_users/main.py [--database-url URL]
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import UUID

from fastapi_users_db_sqlalchemy import (  # type: ignore[import-not-found]  # not where mypy runs: it pins SQLAlchemy < 2.1
    SQLAlchemyUserDatabase,
)
from sqlalchemy import func, inspect, make_url, select
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that this file can be started by its path

from accountlink import (
    AccountLinkError,
    Linked,
    OwnershipConflict,
    ProviderIdentity,
    TokenSet,
    tune_sqlite,
)
from examples.fastapi_users.models import Base, OAuthAccount, User, linker

GOOGLE: Final = "google"
DROP_KEY: Final = "DROP INDEX one_owner_of_an_account"
CREATE_KEY: Final = "CREATE UNIQUE INDEX one_owner_of_an_account ON oauth_account (oauth_name, account_id)"


class UnexpectedOutcome(Exception):
    """A result differs from the story; the message says which."""


# -- the story ---------------------------------------------------------------------------------------------------------


async def alone(engine: AsyncEngine) -> None:
    """Show fastapi-users without the key: it stores two owners of one account, and then no user can sign in by it."""
    ada, ben = await register(engine, "ada@example.org"), await register(engine, "ben@example.org")
    print("On the table as fastapi-users makes it, without a key:")
    await add_by_fastapi_users(engine, ada, "account-1", "ada@example.org")
    await add_by_fastapi_users(engine, ben, "account-1", "ada@example.org")
    expect("the owners", await owners(engine, "account-1"), sorted([ada, ben]))
    print("   fastapi-users gives Ada's account to Ben as well: 2 owners are stored")

    try:
        await signed_in(engine, "account-1")
    except MultipleResultsFound as problem:
        print(f"   whoever signs in with it now gets {type(problem).__name__}")
    else:
        raise UnexpectedOutcome("fastapi-users found one user, where two were stored")


async def add_the_key(engine: AsyncEngine) -> None:
    """Settle the rows that break the key, then make the key: the application's own migration.

    Who keeps an account is the application's to decide. Here it is the user whose own address it carries.
    """
    keeper = select(User.id).where(User.email == OAuthAccount.account_email).scalar_subquery()
    account = (OAuthAccount.oauth_name, OAuthAccount.account_id)
    doubled = select(*account).group_by(*account).having(func.count() > 1)
    async with AsyncSession(engine) as session:
        for provider, account_id in (await session.execute(doubled)).all():
            found = select(OAuthAccount).where(
                OAuthAccount.oauth_name == provider,
                OAuthAccount.account_id == account_id,
                OAuthAccount.user_id != keeper,
            )
            for surplus in (await session.scalars(found)).all():
                await session.delete(surplus)
        await session.commit()
    async with engine.begin() as connection:
        await connection.exec_driver_sql(CREATE_KEY)
    expect("the number of owners", len(await owners(engine, "account-1")), 1)
    print("The second owner is taken away, and the key is made:")

    late = await register(engine, "eve@example.org")
    try:
        await add_by_fastapi_users(engine, late, "account-1", "ada@example.org")
    except IntegrityError as problem:
        print(f"   fastapi-users cannot store a second one any more, and breaks off with {type(problem).__name__}")
    else:
        raise UnexpectedOutcome("the key let a second owner in")


async def together(engine: AsyncEngine) -> None:
    """Linked by accountlink on the same table, the account signs its owner in with fastapi-users."""
    cleo, dan = await register(engine, "cleo@example.org"), await register(engine, "dan@example.org")
    identity = ProviderIdentity(provider=GOOGLE, account_id="account-2", email="cleo@example.org")
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)

    print("With accountlink on that table:")
    first = await link(engine, cleo, identity, TokenSet(access_token="made-up-1", refresh_token="made-up-2"))  # noqa: S106
    again = await link(engine, cleo, identity, TokenSet(access_token="made-up-3", expires_at=ends))  # noqa: S106
    print(f"   Cleo connects an account twice: {first.change.value}, {again.change.value}, one row")
    expect("the user who signs in with it", await signed_in(engine, "account-2"), cleo)
    print("   fastapi-users finds Cleo by it: Cleo can sign in")
    before = await stored(engine, "account-2")
    expect("the tokens and their end", before, [(cleo, "made-up-3", "made-up-2", int(ends.timestamp()))])

    outcome = await linker.link(engine, user_id=dan, identity=identity, credentials=TokenSet(access_token="made-up-4"))  # noqa: S106
    if not isinstance(outcome, OwnershipConflict):
        raise UnexpectedOutcome(f"Dan should get a conflict, not {outcome.code}")
    expect("Cleo's row", await stored(engine, "account-2"), before)
    expect("the user who signs in with it", await signed_in(engine, "account-2"), cleo)
    print(f"   Dan connects the same account: {outcome.code}; Cleo's row is untouched, and Cleo can sign in")

    await linker.unlink(engine, user_id=cleo, link_id=again.account.id)
    expect("the user who signs in with it", await signed_in(engine, "account-2"), None)
    moved = await link(engine, dan, identity, TokenSet(access_token="made-up-5"))  # noqa: S106
    expect("the user who signs in with it", await signed_in(engine, "account-2"), dan)
    print(f"   Cleo disconnects, Dan connects: {moved.change.value}, and now it signs Dan in")


async def story(engine: AsyncEngine) -> None:
    """Tell it all, in a database without these tables.

    Raises:
        UnexpectedOutcome: Something did not come out as it should.
    """
    await make_tables(engine)
    await alone(engine)
    await add_the_key(engine)
    await together(engine)


# -- what the story needs ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def user_database(engine: AsyncEngine) -> AsyncIterator[Any]:
    """Yield fastapi-users' own database adapter, as its ``get_user_db`` dependency does."""
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield SQLAlchemyUserDatabase(session, User, OAuthAccount)


async def register(engine: AsyncEngine, email: str) -> UUID:
    """Register a user with fastapi-users, without a usable password."""
    async with user_database(engine) as users:
        user = await users.create({"email": email, "hashed_password": "none"})
    user_id: UUID = user.id
    return user_id


async def add_by_fastapi_users(engine: AsyncEngine, user_id: UUID, account_id: str, email: str) -> None:
    """Give a user a provider account with fastapi-users alone, as its "associate" callback does."""
    account = {
        "oauth_name": GOOGLE,
        "account_id": account_id,
        "account_email": email,
        "access_token": "made-up-access-token",
        "expires_at": None,
        "refresh_token": None,
    }
    async with user_database(engine) as users:
        await users.add_oauth_account(await users.get(user_id), account)


async def signed_in(engine: AsyncEngine, account_id: str) -> UUID | None:
    """Return the user whom fastapi-users signs in for a provider account, as its OAuth callback does."""
    async with user_database(engine) as users:
        user = await users.get_by_oauth_account(GOOGLE, account_id)
    return None if user is None else user.id


async def link(engine: AsyncEngine, user_id: UUID, identity: ProviderIdentity, tokens: TokenSet) -> Linked[UUID, UUID]:
    """Link, where the story allows no conflict."""
    outcome = await linker.link(engine, user_id=user_id, identity=identity, credentials=tokens)
    if not isinstance(outcome, Linked):
        raise UnexpectedOutcome(f"the account should be linked, and the outcome was {outcome.code}")
    return outcome


async def owners(engine: AsyncEngine, account_id: str) -> list[UUID]:
    """Return the users who have a provider account."""
    return sorted(user_id for user_id, *_ in await stored(engine, account_id))


async def stored(engine: AsyncEngine, account_id: str) -> list[tuple[Any, ...]]:
    """Return owner, tokens and expiry of a provider account's rows, as they are stored now."""
    found = select(
        OAuthAccount.user_id, OAuthAccount.access_token, OAuthAccount.refresh_token, OAuthAccount.expires_at
    ).where(OAuthAccount.account_id == account_id)
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(found)]


async def make_tables(engine: AsyncEngine) -> None:
    """Make the tables as fastapi-users alone does, without the key; refuse a database that has them."""
    async with engine.begin() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        if taken := sorted(set(names) & set(Base.metadata.tables)):
            raise UnexpectedOutcome(f"the database has a table {taken[0]} already; pass an empty database")
        await connection.run_sync(Base.metadata.create_all)
        await connection.exec_driver_sql(DROP_KEY)


def expect(what: str, found: object, expected: object) -> None:
    """Check one sentence of the story before it is printed."""
    if found != expected:
        raise UnexpectedOutcome(f"this is not how the story goes: {what} should be {expected!r}, not {found!r}")


@asynccontextmanager
async def opened(database_url: str | None) -> AsyncIterator[AsyncEngine]:
    """Open the database: the given one, or a temporary SQLite file."""
    with TemporaryDirectory(prefix="accountlink-fastapi-users-") as folder:
        url = make_url(database_url or f"sqlite+aiosqlite:///{folder}/users.sqlite3")
        engine = create_async_engine(url)
        if url.get_backend_name() == "sqlite":
            tune_sqlite(engine)
        try:
            yield engine
        finally:
            await engine.dispose()


async def run(database_url: str | None) -> None:
    """Tell the story in this database."""
    async with opened(database_url) as engine:
        await story(engine)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 0 if every result is as the story says."""
    parser = argparse.ArgumentParser(description="Account linking beside fastapi-users, on its own table.")
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="an empty database, such as postgresql+asyncpg://user@host/name; a temporary SQLite file unless given",
    )
    try:
        asyncio.run(run(parser.parse_args(arguments).database_url))
    except (UnexpectedOutcome, AccountLinkError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except (SQLAlchemyError, OSError, ModuleNotFoundError) as problem:  # whose text may carry a password or a token
        print(f"the database cannot be used: {type(problem).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
