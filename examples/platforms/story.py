"""Two stories about platform connections, each checked against the rows before a line of it is printed."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import assert_never
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Change, Linked, LinkedAccount, OwnershipConflict, ProviderIdentity, TokenSet, Unlinked
from examples import doctor
from examples.platforms import broken
from examples.platforms.models import PlatformConnection, linker

BAKERY, AGENCY = UUID(int=0xBA), UUID(int=0xA6)


class UnexpectedOutcome(Exception):
    """A result differs from the story."""


# -- what an application writes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page as Meta lists it for the person who has just consented: with a token of its own, and no refresh token."""

    id: str
    name: str
    access_token: str = field(repr=False)

    @property
    def identity(self) -> ProviderIdentity:
        """Return the identity that Meta vouches for: the user who consented manages this page."""
        return ProviderIdentity(provider="meta", account_id=self.id)

    @property
    def tokens(self) -> TokenSet:
        """Return the page token; Meta gives it no expiry."""
        return TokenSet(access_token=self.access_token, scopes={"pages_manage_posts", "pages_read_engagement"})


async def connect_page(engine: AsyncEngine, *, org_id: UUID, page: Page) -> Linked[UUID, UUID]:
    """Connect a page to an organisation. The name is given to a new row only: the organisation may change it."""
    outcome = await linker.link(
        engine,
        user_id=org_id,
        identity=page.identity,
        credentials=page.tokens,
        values={PlatformConnection.account_name: page.name},
    )
    return _linked(outcome)


async def reconnect_page(engine: AsyncEngine, *, org_id: UUID, link_id: UUID, page: Page) -> Linked[UUID, UUID]:
    """Reconnect one given page, and take its present name from Meta. Another page raises ``AccountMismatch``."""
    outcome = await linker.link(
        engine,
        user_id=org_id,
        identity=page.identity,
        credentials=page.tokens,
        expect=link_id,
        update_values={PlatformConnection.account_name: page.name},
    )
    return _linked(outcome)


def _linked(outcome: Linked[UUID, UUID] | OwnershipConflict) -> Linked[UUID, UUID]:
    match outcome:
        case Linked():
            return outcome
        case OwnershipConflict():
            raise UnexpectedOutcome("under PER_USER a page belongs to no organisation alone")
        case _:
            assert_never(outcome)


async def disconnect(engine: AsyncEngine, *, org_id: UUID, link_id: UUID) -> LinkedAccount[UUID, UUID]:
    """Disconnect a page: the row stays, marked, and its tokens are wiped."""
    outcome = await linker.unlink(engine, user_id=org_id, link_id=link_id)
    match outcome:
        case Unlinked(account=account):
            return account
        case _:
            assert_never(outcome)


# -- what Meta answers, here made up -----------------------------------------------------------------------------------

SHOP, CAFE = "100000000000001", "100000000000002"


def listed_by_meta(page_id: str, name: str, *, consent: int) -> Page:
    """Return a page as Meta lists it: each consent brings a new token."""
    return Page(id=page_id, name=name, access_token=f"fake-page-token-{consent}")


# -- the table as it should be -----------------------------------------------------------------------------------------


async def pages_of_organisations(engine: AsyncEngine) -> None:
    """A bakery and its agency connect pages; the bakery disconnects one and comes back."""
    print("Pages of two organisations")
    shop = listed_by_meta(SHOP, "Example Bakery", consent=1)
    mine = await connect_page(engine, org_id=BAKERY, page=shop)
    check("the first page", found=mine.change, expected=Change.CREATED)
    check("its row", found=await stored(engine, mine), expected=("Example Bakery", "fake-page-token-1", "live"))
    say("created: the bakery connects its page, with the page's own token and its name")

    cafe = await connect_page(engine, org_id=BAKERY, page=listed_by_meta(CAFE, "Example Café", consent=2))
    check("the second page", found=cafe.change, expected=Change.CREATED)
    say("created: the bakery connects a second page")

    theirs = await connect_page(engine, org_id=AGENCY, page=listed_by_meta(SHOP, "Example Bakery", consent=3))
    check("the page of two organisations", found=theirs.change, expected=Change.CREATED)
    check("the first row", found=await stored(engine, mine), expected=("Example Bakery", "fake-page-token-1", "live"))
    say("created: the agency connects the bakery's page too; the bakery's row is untouched")

    await disconnect(engine, org_id=BAKERY, link_id=mine.account.id)
    check("the bakery's row", found=await stored(engine, mine), expected=("Example Bakery", None, "deleted"))
    check("the agency's", found=await stored(engine, theirs), expected=("Example Bakery", "fake-page-token-3", "live"))
    say("disconnected: the bakery's row is kept, marked as deleted, its token wiped; the agency's is untouched")

    renamed = listed_by_meta(SHOP, "Example Bakery & Sons", consent=4)
    back = await connect_page(engine, org_id=BAKERY, page=renamed)
    check("the page that comes back", found=back.change, expected=Change.RESTORED)
    check("its id", found=back.account.id, expected=mine.account.id)
    check("its row", found=await stored(engine, mine), expected=("Example Bakery", "fake-page-token-4", "live"))
    say("restored: the bakery connects it again: the same id, so whatever hangs on it is back, with the new token")
    say("   values= fills new rows only: the name is still the one that the row was made with")

    again = await reconnect_page(engine, org_id=BAKERY, link_id=mine.account.id, page=renamed)
    check("the reconnect", found=(again.change, again.account.id), expected=(Change.UPDATED, mine.account.id))
    check("its row", found=await stored(engine, mine), expected=("Example Bakery & Sons", "fake-page-token-4", "live"))
    say("updated: update_values= takes over the name that the page has at Meta now")

    left = await linker.accounts(engine, user_id=BAKERY, provider="meta")
    check("the bakery's pages", found=[account.account_id for account in left], expected=[SHOP, CAFE])
    say(f"left to the bakery: {len(left)} pages")


# -- the table as it was -----------------------------------------------------------------------------------------------


async def key_that_counts_deleted_rows(engine: AsyncEngine) -> None:
    """The table of ``broken.py``: a plain INSERT fails, accountlink restores the row, and the repair helps both.

    Args:
        engine: A database with the tables of ``broken.first_release``.
    """
    print("\nThe unique index that counts deleted rows")
    page = listed_by_meta(SHOP, "Example Bakery", consent=1)
    first = await connect_page(engine, org_id=BAKERY, page=page)
    await disconnect(engine, org_id=BAKERY, link_id=first.account.id)
    say("the bakery connects a page and disconnects it; the dead row still occupies the key")

    refusal = await bare_insert(engine, page)
    expected = {"postgresql": "SQLSTATE 23505", "sqlite": "SQLITE_CONSTRAINT_UNIQUE"}[engine.dialect.name]
    check("what a bare INSERT meets", found=refusal, expected=expected)
    say(f"a bare INSERT of the same page fails: {refusal}")

    back = await connect_page(engine, org_id=BAKERY, page=page)
    check("the page that comes back", found=back.change, expected=Change.RESTORED)
    check("its id", found=back.account.id, expected=first.account.id)
    check("its row", found=await stored(engine, back), expected=("Example Bakery", "fake-page-token-1", "live"))
    say("restored: accountlink finds the organisation's own dead row and revives it; it has nothing to insert")
    say("   so the index does not stop accountlink here; it stops everything else that inserts into the table")

    report = await doctor.look_at(engine, linker)
    causes = [(finding.rule, finding.object) for finding in report.findings]
    check("what the doctor finds", found=causes, expected=[("key-counts-deleted", broken.full_key.name)])
    say(f"accountlink doctor: key-counts-deleted, {broken.full_key.name}")
    for statement in await doctor.run(engine, report):
        say(f"   {statement}")
    check("what the doctor finds then", found=(await doctor.look_at(engine, linker)).findings, expected=())
    check(
        "the row after the repair",
        found=await stored(engine, back),
        expected=("Example Bakery", "fake-page-token-1", "live"),
    )
    say("a second look finds nothing, and the row is as it was")
    await disconnect(engine, org_id=BAKERY, link_id=first.account.id)
    check("what a bare INSERT meets after the repair", found=await bare_insert(engine, page), expected=None)
    say("a bare INSERT passes now (and is rolled back): it would have been a second row, under another id")
    again = await connect_page(engine, org_id=BAKERY, page=page)
    check("the page under the right key", found=again.change, expected=Change.RESTORED)
    check("its id under the right key", found=again.account.id, expected=first.account.id)
    say("restored: accountlink gives the same answer as before, the same id")


async def bare_insert(engine: AsyncEngine, page: Page) -> str | None:
    """Insert a connection as code without accountlink does, undo it, and return the name of the refusal, if any."""
    now = datetime.now(UTC)
    statement = insert(PlatformConnection).values(
        org_id=BAKERY,
        platform="meta",
        account_id=page.id,
        account_name=page.name,
        page_access_token=page.access_token,
        connected_at=now,
        updated_at=now,
    )
    async with engine.connect() as connection:
        try:
            await connection.execute(statement)
        except IntegrityError as error:
            return name_of(error)
        finally:
            await connection.rollback()
    return None


def name_of(error: IntegrityError) -> str:
    """Return the database's own name for a refusal; never its text, which carries the row."""
    state = getattr(error.orig, "sqlstate", None)
    return f"SQLSTATE {state}" if state else str(getattr(error.orig, "sqlite_errorname", None))


# -- how the stories look at the database ------------------------------------------------------------------------------


async def stored(engine: AsyncEngine, linked: Linked[UUID, UUID]) -> tuple[str | None, str | None, str]:
    """Return the name and the page token of a link's row as they are stored, and whether it is live or deleted."""
    columns = (PlatformConnection.account_name, PlatformConnection.page_access_token, PlatformConnection.deleted_at)
    async with engine.connect() as connection:
        result = await connection.execute(select(*columns).where(PlatformConnection.id == linked.account.id))
        name, token, deleted_at = result.one()
    return name, token, "live" if deleted_at is None else "deleted"


def check(what: str, *, found: object, expected: object) -> None:
    """Stop the story if it differs from what happened."""
    if found != expected:
        raise UnexpectedOutcome(f"{what}: {found!r}, where {expected!r} was expected")


def say(line: str) -> None:
    """Print one line of the story."""
    print(f"   {line}")
