"""Cloud provider accounts: one owner each, a flag instead of deletion, and a callback that says how it ended.

``accountlink demo --once`` tells how a link is made, refused and taken over. This tells what else can happen, with a
provider of its own in this process.

python examples/cloud/main.py [--database-url URL]
"""

import argparse
import asyncio
import logging
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx2
from sqlalchemy import inspect, make_url, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that this file can be started by its path

from accountlink import AccountLinkError, BlockedByConstraint, ProviderIdentity, tune_sqlite
from accountlink.providers import oidc
from accountlink.testing.fake_provider import FakeProvider
from examples import doctor
from examples.cloud.app import APP, CALLBACK, SETTINGS, make_app, make_flow
from examples.cloud.broken import FULL_KEYS, migrate
from examples.cloud.faults import lookup_fails, owner_vanishes
from examples.cloud.models import Base, CloudProviderAccount, make_linker

PAGE: Final = f"{APP}{SETTINGS}"
ADA, BEN = 1, 2
TOGETHER: Final = 20
"""How many callbacks of one user arrive at the same moment."""
SECRET: Final = secrets.token_urlsafe(48)
"""Yours come from a secret store, and outlive the process."""

linker = make_linker(SECRET)
provider = FakeProvider(redirect_uris=[f"{CALLBACK}/google"])
google = oidc(
    "google",
    issuer=provider.issuer,
    client_id=provider.client_id,
    client_secret=provider.client_secret,
    scopes=("email", "offline_access"),
)  # yours is the preset of that name


class UnexpectedOutcome(Exception):
    """A result differs from the story; the message says which."""


# -- the story ---------------------------------------------------------------------------------------------------------


async def back_again(engine: AsyncEngine) -> None:
    """The account goes to Ben and back to Ada: a token that has moved it once does not move it again."""
    await connect(engine, ADA, "account-9")
    bens = token_in(await connect(engine, BEN, "account-9"))
    url = await press(engine, BEN, "/transfer", transfer_token=bens)
    expect("the redirect", url, f"{PAGE}?connection=success")
    adas = token_in(await connect(engine, ADA, "account-9"))
    expect("the redirect", await press(engine, ADA, "/transfer", transfer_token=adas), url)
    url = await press(engine, BEN, "/transfer", transfer_token=bens)
    expect("the redirect", url, f"{PAGE}?error=token_superseded")
    [row] = await stored(engine, "account-9")
    expect("the owner", row["user_id"], ADA)
    print(f"Ben took Ada's account over, and Ada has it back; Ben's old token: {url}")


async def race(engine: AsyncEngine) -> None:
    """Many concurrent callbacks of Ada's, as from as many tabs: one row. Then one of them comes once more."""
    async with browser(engine, ADA) as tabs:
        callbacks = [await leave(tabs, "account-3") for _ in range(TOGETHER)]
        answers = await asyncio.gather(*(tabs.get(url, headers={"Accept": "application/json"}) for url in callbacks))
        told = [answer.json() for answer in answers]
        changes = Counter(each["change"] for each in told)
        expect("the changes", changes, Counter(created=1, updated=TOGETHER - 1))
        before = await stored(engine, "account-3")
        expect("the ids that they tell", [{each["id"] for each in told}], [{row["id"]} for row in before])
        print(f"{TOGETHER} callbacks of Ada's at once: 1 created, {changes['updated']} updated, one row")

        url = str((await tabs.get(callbacks[0])).url)
    expect("the redirect", url, f"{PAGE}?error=flow_replayed")
    expect("the row", await stored(engine, "account-3"), before)
    print(f"Ada loads one of them again: {url}")


async def mix_ups(engine: AsyncEngine) -> None:
    """A callback of Ada's reaches Ben's browser; and Ada renews a link with another account than the link's own."""
    async with browser(engine, ADA) as adas, browser(engine, BEN) as bens:
        callback = await leave(adas, "account-4")
        url = str((await bens.get(callback)).url)
        expect("Ben's redirect", url, f"{PAGE}?error=flow_not_started_here")
        expect("the rows", await stored(engine, "account-4"), [])
        print(f"Ben opens the address of Ada's callback: {url}")
        expect("Ada's redirect", str((await adas.get(callback)).url), f"{PAGE}?connection=success")

    before = await stored(engine, "account-4")
    sign_in_at_the_provider("account-5")
    url = await press(engine, ADA, "/connect/google", expect=str(before[0]["id"]))
    expect("the redirect", url, f"{PAGE}?error=account_mismatch")
    expect("the row", await stored(engine, "account-4"), before)
    print(f"Ada renews that link, and signs in to another account: {url}")


async def refusals(engine: AsyncEngine) -> None:
    """Ada says no at the provider; and the provider's answers are not what they should be. No row is written."""
    provider.fail_next("authorize", error="access_denied")
    await refused(engine, "Ada cancels at the provider", code="consent_declined")
    provider.fail_next("token", status=503)
    await refused(engine, "The provider is down", code="provider_error")
    provider.forge_next("token", lambda answer: without(answer, "access_token"))
    await refused(engine, "An answer without a token", code="provider_error")
    provider.forge_next_id_token(lambda claims: without(claims, "sub"))
    await refused(engine, "An answer without an account id", code="identity_not_proven")
    provider.forge_next_id_token(lambda claims: claims | {"aud": "another-application"})
    await refused(engine, "A token for another application", code="identity_not_proven")
    provider.forge_next_id_token(lambda claims: claims | {"sub": "account\x00 5"})
    await refused(engine, "An account id that cannot be one", code="invalid_identity")
    provider.forge_next("token", lambda answer: answer | {"refresh_token": "\x00"})
    await refused(engine, "A token that cannot be stored", code="invalid_credentials")


async def refused(engine: AsyncEngine, what: str, *, code: str) -> None:
    """Tell of one callback that links nothing."""
    url = await connect(engine, ADA, "account-5")
    expect("the redirect", url, f"{PAGE}?error={code}")
    expect("the rows", await stored(engine, "account-5"), [])
    print(f"{what}: {url}")


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
    url = await press(engine, ADA, f"/{row['id']}/unlink")
    expect("the redirect", url, f"{PAGE}?connection=unlinked")
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
    await mix_ups(engine)
    await refusals(engine)
    if engine.dialect.name == "postgresql":
        await faults(engine)
    else:
        print("(what happens when the owner's row vanishes is shown on PostgreSQL: --database-url)")
    await full_keys(engine)


# -- what the story needs ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def browser(engine: AsyncEngine, user_id: int, *, page: str = PAGE) -> AsyncIterator[httpx2.AsyncClient]:
    """Open a browser in which a user is signed in to the application. Nothing reaches a network."""
    to_provider = httpx2.ASGITransport(app=provider)
    flow = make_flow(
        linker,
        engine,
        provider=google,
        secret=SECRET,
        page=page,
        transport=to_provider,
    )
    app = make_app(flow, current_user=lambda request: int(request.cookies["user"]))  # yours asks for proof
    async with httpx2.AsyncClient(
        base_url=APP,
        transport=to_provider,  # for every other address
        mounts={APP: httpx2.ASGITransport(app=app)},
        cookies={"user": str(user_id)},
        headers={"Sec-Fetch-Site": "same-origin"},  # the buttons are on a page of the application's
        follow_redirects=True,
        trust_env=False,
    ) as client:
        yield client


async def press(engine: AsyncEngine, user_id: int, path: str, *, page: str = PAGE, **fields: str) -> str:
    """Let a user press a button, and return the address at which their browser is in the end."""
    async with browser(engine, user_id, page=page) as tab:
        return str((await tab.post(f"/accounts{path}", data=fields)).url)


async def connect(engine: AsyncEngine, user_id: int, account: str, *, page: str = PAGE) -> str:
    """Let a user go to the provider, sign in to an account there, and come back."""
    sign_in_at_the_provider(account)
    return await press(engine, user_id, "/connect/google", page=page)


async def leave(tab: httpx2.AsyncClient, account: str) -> str:
    """Let a user agree at the provider, and return the callback's address before the browser follows it."""
    sign_in_at_the_provider(account)
    answer = await tab.post("/accounts/connect/google", follow_redirects=False)
    answer = await tab.get(answer.headers["Location"], follow_redirects=False)
    return str(answer.headers["Location"])


def sign_in_at_the_provider(account: str) -> None:
    """Make up an account at the provider, with its e-mail address, and sign in to it."""
    with suppress(ValueError):  # it is there already
        provider.add_account(account, email=f"{account}@example.org")
    provider.sign_in_as(account)


def token_in(url: str) -> str:
    """Take the transfer token out of a conflict's redirect, as the page's script does."""
    return url.partition("#transfer_token=")[2]


def without(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the answer without one member."""
    return {key: value for key, value in answer.items() if key != name}


async def why_blocked(engine: AsyncEngine, account: str) -> BlockedByConstraint:
    """Return the error behind a redirect with ``blocked_by_constraint``: what an operator reads in the log."""
    try:
        identity = ProviderIdentity(provider="google", account_id=account)
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
