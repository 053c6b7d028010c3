"""Two stories about calendar connections, each checked against the rows before a line of it is printed."""

from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    BlockedByConstraint,
    Change,
    Linked,
    LinkedAccount,
    OwnershipConflict,
    ProviderIdentity,
    TokenSet,
    Unlinked,
)
from examples import doctor
from examples.calendar import broken
from examples.calendar.models import CalendarConnection, linker

ADA, BOB = "user_ada", "user_bob"


class UnexpectedOutcome(Exception):
    """A result differs from the story."""


# -- what an application writes ----------------------------------------------------------------------------------------


async def connect(
    engine: AsyncEngine, *, user_id: str, identity: ProviderIdentity, tokens: TokenSet
) -> Linked[str, int]:
    """Connect a mailbox: the end of an OAuth callback, once the provider's answer has been validated."""
    outcome = await linker.link(engine, user_id=user_id, identity=identity, credentials=tokens)
    match outcome:
        case Linked():
            return outcome
        case OwnershipConflict():
            raise UnexpectedOutcome("under PER_USER a mailbox belongs to nobody alone")
        case _:
            assert_never(outcome)


async def disconnect(engine: AsyncEngine, *, user_id: str, link_id: int) -> LinkedAccount[str, int]:
    """Disconnect a mailbox: the row and its tokens are deleted."""
    outcome = await linker.unlink(engine, user_id=user_id, link_id=link_id)
    match outcome:
        case Unlinked(account=account):
            return account
        case _:
            assert_never(outcome)


# -- what the providers answer, here made up ---------------------------------------------------------------------------


def google(email: str) -> ProviderIdentity:
    """Return what Google vouches for. The table has no column for the account id, so it is not stored."""
    return ProviderIdentity(provider="google", account_id=f"fake-sub-of-{email.lower()}", email=email)


def microsoft(email: str) -> ProviderIdentity:
    """Return what Microsoft vouches for."""
    return ProviderIdentity(provider="microsoft", account_id=f"fake-oid-of-{email.lower()}", email=email)


def first_consent(label: str) -> TokenSet:
    """Return the tokens of a first consent: with a refresh token, which many providers send only once."""
    return TokenSet(
        access_token=f"fake-access-{label}",
        refresh_token=f"fake-refresh-{label}",
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        scopes={"calendar.read", "calendar.write"},
    )


def later_consent(label: str) -> TokenSet:
    """Return the tokens of a later consent: without a refresh token."""
    return TokenSet(
        access_token=f"fake-access-{label}",
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        scopes={"calendar.read", "calendar.write"},
    )


# -- the table as it should be -----------------------------------------------------------------------------------------


async def several_accounts(engine: AsyncEngine) -> None:
    """Ada connects four mailboxes at two providers, reconnects one and disconnects one."""
    print("Several calendars of one user")
    private = await connect(engine, user_id=ADA, identity=google("ada@example.com"), tokens=first_consent("1"))
    others = [
        await connect(engine, user_id=ADA, identity=google("ada.work@example.com"), tokens=first_consent("2")),
        await connect(engine, user_id=ADA, identity=microsoft("ada@example.com"), tokens=first_consent("3")),
        await connect(engine, user_id=ADA, identity=microsoft("ada@school.example.com"), tokens=first_consent("4")),
    ]
    for linked in (private, *others):
        check("a new mailbox", found=linked.change, expected=Change.CREATED)
        say(f"created: Ada's {linked.account.provider} calendar {linked.account.email}")

    again = await connect(engine, user_id=ADA, identity=google("Ada@Example.COM"), tokens=later_consent("1b"))
    check("the same mailbox in another case", found=again.change, expected=Change.UPDATED)
    check("the id after the reconnect", found=again.account.id, expected=private.account.id)
    say("updated: Ada reconnects Ada@Example.COM; it is ada@example.com, and the same row")
    check(
        "the tokens after the reconnect",
        found=await stored_tokens(engine, private.account.id),
        expected=("fake-access-1b", "fake-refresh-1"),
    )
    say("   it holds the new access token, and still the refresh token, which came only with the first consent")

    shared = await connect(engine, user_id=BOB, identity=google("ada@example.com"), tokens=first_consent("5"))
    check("the mailbox of two users", found=shared.change, expected=Change.CREATED)
    say("created: Bob connects the same mailbox, as PER_USER allows; Ada's row stays Ada's")

    gone = await disconnect(engine, user_id=ADA, link_id=others[0].account.id)
    check("the row after the disconnect", found=await stored_tokens(engine, gone.id), expected=None)
    say(f"deleted: Ada disconnects {gone.email}; the row is gone, and its tokens with it")

    left = [(a.provider, a.email) for a in await linker.accounts(engine, user_id=ADA)]
    check(
        "Ada's calendars in the end",
        found=left,
        expected=[
            ("google", "ada@example.com"),
            ("microsoft", "ada@example.com"),
            ("microsoft", "ada@school.example.com"),
        ],
    )
    say("left to Ada: " + ", ".join(f"{provider} {email}" for provider, email in left))


# -- the table as it was -----------------------------------------------------------------------------------------------


async def stale_constraint(engine: AsyncEngine) -> None:
    """The table of ``broken.py``: the old migration changes nothing, the second account is refused until the repair.

    Args:
        engine: A database with the tables of ``broken.first_release``.
    """
    dialect = engine.dialect.name
    print("\nThe old constraint that a migration missed")
    before = await migrate(engine, broken.SILENT_DROP[dialect])
    check("the old key", found=before, expected={broken.TRUE_NAME: ("user_id", "provider")})
    after = await migrate(engine, broken.NEW_KEY)
    check("the old key after the migration", found=after.get(broken.TRUE_NAME), expected=("user_id", "provider"))
    say(f"the migration succeeds: {broken.SILENT_DROP[dialect]}")
    say(f"   no such name, and IF EXISTS says nothing: {broken.TRUE_NAME} (user_id, provider) is still there")

    first = await connect(engine, user_id=ADA, identity=google("ada@example.com"), tokens=first_consent("1"))
    say(f"{first.change.value}: Ada's google calendar {first.account.email}")
    rows = await stored_rows(engine)
    try:
        await connect(engine, user_id=ADA, identity=google("ada.work@example.com"), tokens=first_consent("2"))
    except BlockedByConstraint as error:
        named = (error.constraint, error.columns, error.rule)
    else:
        raise UnexpectedOutcome("the second account was linked, although the old constraint forbids it")
    check("what blocks", found=named, expected=(broken.TRUE_NAME, ("user_id", "provider"), "stale-unique"))
    check("the rows after the refusal", found=await stored_rows(engine) == rows, expected=True)
    say("blocked_by_constraint: Ada's second google calendar; no row was changed")
    say(f"   constraint {broken.TRUE_NAME}, columns user_id, provider, rule stale-unique")

    report = await doctor.look_at(engine, linker)
    causes = [(finding.rule, finding.object, finding.columns) for finding in report.findings]
    check("what the doctor finds", found=causes, expected=[("stale-unique", broken.TRUE_NAME, ("user_id", "provider"))])
    say(f"accountlink doctor: stale-unique, {broken.TRUE_NAME} (user_id, provider)")
    for statement in await doctor.run(engine, report):
        say(f"   {statement}")
    check("what the doctor finds then", found=(await doctor.look_at(engine, linker)).findings, expected=())
    async with engine.connect() as connection:
        keys = await broken.unique_keys(connection)
    check("what is unique after the repair", found=set(keys.values()), expected={("user_id", "provider", "email")})
    check("the rows after the repair", found=await stored_rows(engine) == rows, expected=True)
    say("a second look finds nothing, and no row was changed")
    second = await connect(engine, user_id=ADA, identity=google("ada.work@example.com"), tokens=first_consent("2"))
    check("the second account after the repair", found=second.change, expected=Change.CREATED)
    say(f"{second.change.value}: Ada's google calendar {second.account.email}")


# -- how the stories look at the database ------------------------------------------------------------------------------


async def migrate(engine: AsyncEngine, statement: str) -> dict[str, tuple[str | None, ...]]:
    """Run one statement of a migration and return what is unique in the table afterwards."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql(statement)
        return await broken.unique_keys(connection)


async def stored_tokens(engine: AsyncEngine, link_id: int) -> tuple[str, str | None] | None:
    """Return a row's tokens as they are stored; ``None`` when there is no such row."""
    query = select(CalendarConnection.access_token, CalendarConnection.refresh_token)
    async with engine.connect() as connection:
        row = (await connection.execute(query.where(CalendarConnection.id == link_id))).one_or_none()
    return None if row is None else (row.access_token, row.refresh_token)


async def stored_rows(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """Return all rows, every column, as they are stored."""
    async with engine.connect() as connection:
        result = await connection.execute(select(CalendarConnection.__table__).order_by(CalendarConnection.id))
        return [tuple(row) for row in result]


def check(what: str, *, found: object, expected: object) -> None:
    """Stop the story if it differs from what happened."""
    if found != expected:
        raise UnexpectedOutcome(f"{what}: {found!r}, where {expected!r} was expected")


def say(line: str) -> None:
    """Print one line of the story."""
    print(f"   {line}")
