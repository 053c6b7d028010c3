"""Cloud provider accounts: one owner each, a flag instead of deletion, and a callback that says how it ended.

``accountlink demo --once`` tells how a link is made, refused and taken over. This tells what else can happen.

python examples/cloud/main.py [--database-url URL]
"""

import argparse
import asyncio
import logging
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import inspect, make_url, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that this file can be started by its path

from accountlink import AccountLinkError, BlockedByConstraint, Linked, ProviderIdentity, TokenSet, tune_sqlite
from examples import doctor
from examples.cloud.broken import FULL_KEYS, migrate
from examples.cloud.callback import callback, take_over
from examples.cloud.faults import lookup_fails, owner_vanishes
from examples.cloud.models import Base, CloudProviderAccount, make_linker

PAGE: Final = "https://app.example/settings/cloud"
PROVIDER: Final = "google"
ADA, BEN = 1, 2
TOGETHER: Final = 20
"""How many callbacks of one user arrive at the same moment."""

linker = make_linker(secrets.token_urlsafe(48))  # yours come from a secret store, and outlive the process


class UnexpectedOutcome(Exception):
    """A result differs from the story; the message says which."""


# -- the story ---------------------------------------------------------------------------------------------------------


async def back_again(engine: AsyncEngine) -> None:
    """The account goes to Ben and back to Ada: a token that has moved it once does not move it again."""
    await connect(engine, ADA, "account-9")
    bens = token_in(await connect(engine, BEN, "account-9"))
    url = await take_over(linker, engine, user_id=BEN, token=bens, page=PAGE)
    expect("the redirect", url, f"{PAGE}?connection=success")
    adas = token_in(await connect(engine, ADA, "account-9"))
    expect("the redirect", await take_over(linker, engine, user_id=ADA, token=adas, page=PAGE), url)
    url = await take_over(linker, engine, user_id=BEN, token=bens, page=PAGE)
    expect("the redirect", url, f"{PAGE}?error=token_superseded")
    [row] = await stored(engine, "account-9")
    expect("the owner", row["user_id"], ADA)
    print(f"Ben took Ada's account over, and Ada has it back; Ben's old token: {url}")


async def race(engine: AsyncEngine) -> None:
    """Many concurrent callbacks of Ada's, as from a double click or a proxy that sends again: one row."""
    urls = await asyncio.gather(*(connect(engine, ADA, "account-3") for _ in range(TOGETHER)))
    expect("the redirects", Counter(urls), Counter({f"{PAGE}?connection=success": TOGETHER}))
    expect("the number of rows", len(await stored(engine, "account-3")), 1)

    identity = ProviderIdentity(provider=PROVIDER, account_id="account-4", email="ada@example.org")
    tokens = TokenSet(access_token="made-up-access-token")  # noqa: S106  # nobody's
    calls = (linker.link(engine, user_id=ADA, identity=identity, credentials=tokens) for _ in range(TOGETHER))
    linked = [outcome for outcome in await asyncio.gather(*calls) if isinstance(outcome, Linked)]
    changes = Counter(outcome.change.value for outcome in linked)
    expect("the changes", changes, Counter(created=1, updated=TOGETHER - 1))
    [row] = await stored(engine, "account-4")
    expect("the ids that they tell", {outcome.account.id for outcome in linked}, {row["id"]})
    print(f"{TOGETHER} callbacks of Ada's at once: 1 created, {changes['updated']} updated, one row")


async def unusable(engine: AsyncEngine) -> None:
    """A provider without an account id, and one without a token: refused before any SQL, each with its code."""
    claims = {"email": "ada@example.org", "email_verified": True}
    url = await callback(
        linker, engine, user_id=ADA, provider=PROVIDER, claims=claims, token_response=token_response(), page=PAGE
    )
    expect("the redirect", url, f"{PAGE}?error=invalid_identity")
    print(f"A callback without an account id: {url}")

    url = await callback(
        linker, engine, user_id=ADA, provider=PROVIDER, claims={"sub": "account-5"}, token_response={}, page=PAGE
    )
    expect("the redirect", url, f"{PAGE}?error=invalid_credentials")
    expect("the rows", await stored(engine, "account-5"), [])
    print(f"A callback without a token: {url}")


async def faults(engine: AsyncEngine) -> None:
    """The owner's row is missing at the look-up: once, and every time; and the look-up fails. PostgreSQL only."""
    async with owner_vanishes(engine, times=1):
        url = await connect(engine, ADA, "account-6")
    expect("the redirect", url, f"{PAGE}?connection=success")
    expect("the number of rows", len(await stored(engine, "account-6")), 1)
    print(f"The owner's row is gone when it is looked for: tried again, {url}")

    async with owner_vanishes(engine, times=1_000):
        url = await connect(engine, ADA, "account-7")
        expect("the redirect", url, f"{PAGE}?error=database_inconsistency")
        print(f"The same each time: {url}")
        with lookup_fails(engine):
            url = await connect(engine, ADA, "account-7")
    expect("the redirect", url, f"{PAGE}?error=database_query_failed")
    expect("the rows", await stored(engine, "account-7"), [])
    print(f"The look-up itself fails: {url}")
    print("   neither left a row")


async def full_keys(engine: AsyncEngine) -> None:
    """With keys that count dead rows, no other user can link an account that Ada has disconnected; then a migration."""
    await migrate(engine, FULL_KEYS)
    await connect(engine, ADA, "account-8")
    [row] = await stored(engine, "account-8")
    await linker.unlink(engine, user_id=ADA, link_id=row["id"])
    before = await stored(engine, "account-8")

    url = await connect(engine, BEN, "account-8")
    expect("the redirect", url, f"{PAGE}?error=blocked_by_constraint")
    print(f"With full unique keys Ada disconnects, and Ben connects: {url}")
    blocked = await why_blocked(engine, "account-8")
    expect("the constraint", blocked.constraint, "uq_cloud_account")
    expect("its columns", blocked.columns, ("provider", "provider_account_id"))
    expect("the rule", blocked.rule, "key-counts-deleted")
    expect("Ada's row", await stored(engine, "account-8"), before)
    print(f"   {blocked.constraint} on ({', '.join(blocked.columns)}): {blocked.rule}")

    report = await doctor.look_at(engine, linker)
    expect("the causes", {finding.object for finding in report.findings}, {"uq_cloud_account", "uq_cloud_user_account"})
    expect("their rule", {finding.rule for finding in report.findings}, {"key-counts-deleted"})
    print("   accountlink doctor names both keys; the migration that it writes:")
    for statement in await doctor.run(engine, report):
        print(f"      {statement}")
    expect("what the doctor finds then", (await doctor.look_at(engine, linker)).findings, ())
    expect("Ada's row", await stored(engine, "account-8"), before)
    url = await connect(engine, BEN, "account-8")
    expect("the redirect", url, f"{PAGE}?connection=success")
    rows = await stored(engine, "account-8")
    expect("owner and flag", [(row["user_id"], row["is_active"]) for row in rows], [(ADA, False), (BEN, True)])
    print(f"With keys WHERE is_active: {url}")


async def story(engine: AsyncEngine) -> None:
    """Tell it all, in a database without the table.

    Raises:
        UnexpectedOutcome: Something did not come out as it should.
    """
    await make_tables(engine)
    await back_again(engine)
    await race(engine)
    await unusable(engine)
    if engine.dialect.name == "postgresql":
        await faults(engine)
    else:
        print("(what happens when the owner's row vanishes is shown on PostgreSQL: --database-url)")
    await full_keys(engine)


# -- what the story needs ----------------------------------------------------------------------------------------------


async def connect(engine: AsyncEngine, user_id: int, account: str) -> str:
    """Let a user come back from the provider, with everything that the provider says made up."""
    claims = {"sub": account, "email": f"{account}@example.org", "email_verified": True}
    return await callback(
        linker, engine, user_id=user_id, provider=PROVIDER, claims=claims, token_response=token_response(), page=PAGE
    )


def token_in(url: str) -> str:
    """Take the transfer token out of a conflict's redirect, as the page's script does."""
    return url.partition("#transfer_token=")[2]


def token_response() -> dict[str, Any]:
    """Make up what a token endpoint answers: new tokens each time."""
    return {
        "access_token": f"made-up-{secrets.token_hex(8)}",
        "refresh_token": f"made-up-{secrets.token_hex(8)}",
        "expires_in": 3600,
        "scope": "openid email files.read",
    }


async def why_blocked(engine: AsyncEngine, account: str) -> BlockedByConstraint:
    """Return the error behind a redirect with ``blocked_by_constraint``: what an operator reads in the log."""
    try:
        identity = ProviderIdentity(provider=PROVIDER, account_id=account)
        outcome = await linker.link(engine, user_id=BEN, identity=identity)
    except BlockedByConstraint as error:
        return error
    raise UnexpectedOutcome(f"the key should have blocked {account}, and the outcome was {outcome.code}")


async def stored(engine: AsyncEngine, account: str) -> list[dict[str, Any]]:
    """Return the rows of one provider account, every column, as they are stored now."""
    table = CloudProviderAccount.__table__
    query = select(table).where(CloudProviderAccount.provider_account_id == account).order_by(table.c.id)
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


async def make_tables(engine: AsyncEngine) -> None:
    """Make the table; refuse a database that already has it, because it may belong to another program."""
    async with engine.begin() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        if taken := sorted(set(names) & set(Base.metadata.tables)):
            raise UnexpectedOutcome(f"the database has a table {taken[0]} already; pass an empty database")
        await connection.run_sync(Base.metadata.create_all)


def expect(what: str, found: object, expected: object) -> None:
    """Check one sentence of the story before it is printed."""
    if found != expected:
        raise UnexpectedOutcome(f"this is not how the story goes: {what} should be {expected!r}, not {found!r}")


@asynccontextmanager
async def opened(database_url: str | None) -> AsyncIterator[AsyncEngine]:
    """Open the database: the given one, or a temporary SQLite file."""
    with TemporaryDirectory(prefix="accountlink-cloud-") as folder:
        url = make_url(database_url or f"sqlite+aiosqlite:///{folder}/cloud.sqlite3")
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
    parser = argparse.ArgumentParser(description="Connect cloud accounts, each with one owner.")
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="an empty database, such as postgresql+asyncpg://user@host/name; a temporary SQLite file unless given",
    )
    logging.basicConfig(handlers=[logging.NullHandler()])  # the story is on stdout; a server keeps its log
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
