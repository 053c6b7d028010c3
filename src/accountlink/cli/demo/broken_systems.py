"""The four systems that broke: the table as each had it, how it got there, and what a user tried in vain.

The real tables have more columns; these have the ones that the fault is about. The names in them are made up.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    AlreadyGranted,
    Granted,
    GrantMapping,
    Key,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    ProviderIdentity,
    Removal,
    ShareGrants,
)

TABLES: Final = sa.MetaData()
ADA, BEN = 1, 2
BAKERY = 10
PATIENT, DOCTOR = 20, 21


@dataclass(frozen=True, kw_only=True)
class System:
    """Describe a system that broke.

    Attributes:
        slug: Its short name, for addresses.
        title: Its name for people.
        story: Two sentences: what broke, and why.
        mapping: Where accountlink finds what in the broken table.
        before: Writes the rows that were there before the user came.
        tried: What the user tried, in one line.
        attempt: Tries it, and returns the outcome in a word or two. It raises what stopped the user:
            ``BlockedByConstraint`` through accountlink, ``IntegrityError`` past it.
    """

    slug: str
    title: str
    story: str
    mapping: AccountMapping[int, int] | GrantMapping
    before: Callable[[AsyncEngine], Awaitable[object]]
    tried: str
    attempt: Callable[[AsyncEngine], Awaitable[str]]

    @property
    def table(self) -> sa.Table:
        """The broken table, with its wrong keys."""
        return self.mapping.table


def _account(provider: str, account_id: str, email: str | None = None) -> ProviderIdentity:
    return ProviderIdentity(provider=provider, account_id=account_id, email=email)


def _told(outcome: Linked[int, int] | OwnershipConflict) -> str:
    return f"{outcome.code}, {outcome.change.value}" if isinstance(outcome, Linked) else outcome.code


# -- 1. calendar connections: an old constraint that a migration missed ------------------------------------------------

_calendar_table = sa.Table(
    "accountlink_demo_broken_calendar",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("email", sa.Text, nullable=False),
    # Wrong, the old key: a user has one account per provider.
    sa.UniqueConstraint("user_id", "provider", name="accountlink_demo_broken_calendar_old_key"),
    # Right, the new key: a user has a mailbox once.
    sa.Index("accountlink_demo_broken_calendar_new_key", "user_id", "provider", "email", unique=True),
)
_calendar_mapping: AccountMapping[int, int] = AccountMapping(
    _calendar_table, policy=LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.DELETE)
)
_calendar_linker = AccountLinker(_calendar_mapping)


async def _ada_and_ben_have_a_calendar(engine: AsyncEngine) -> None:
    await _calendar_linker.link(engine, user_id=ADA, identity=_account("google", "g-1", "ada@example.com"))
    await _calendar_linker.link(engine, user_id=BEN, identity=_account("google", "g-2", "ben@example.com"))


async def _link_second_calendar(engine: AsyncEngine) -> str:
    second = _account("google", "g-3", "ada.work@example.com")
    return _told(await _calendar_linker.link(engine, user_id=ADA, identity=second))


_calendar = System(
    slug="calendar",
    title="Calendar connections",
    story="A user who had connected one Google calendar could not connect a second one. The migration that was to "
    "allow it dropped the old key on (user_id, provider) by a wrong name, and IF EXISTS made that a success.",
    mapping=_calendar_mapping,
    before=_ada_and_ben_have_a_calendar,
    tried="Ada, who has a Google calendar, links a second one",
    attempt=_link_second_calendar,
)


# -- 2. platform connections: a unique index that counts deleted rows --------------------------------------------------

_platform_table = sa.Table(
    "accountlink_demo_broken_platforms",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("org_id", sa.Integer, nullable=False),
    sa.Column("platform", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("deleted_at", sa.DateTime(timezone=True)),
    # Wrong: without the condition "deleted_at IS NULL" it counts deleted rows.
    sa.Index("accountlink_demo_broken_platforms_key", "org_id", "platform", "account_id", unique=True),
)
_platform_mapping: AccountMapping[int, int] = AccountMapping(
    _platform_table,
    policy=LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.PER_USER, removal=Removal.SOFT),
    user_id=_platform_table.c.org_id,  # an organisation is the user here
    provider=_platform_table.c.platform,
)
_platform_linker = AccountLinker(_platform_mapping)
_SHOP, _CAFE = _account("meta", "page-1"), _account("meta", "page-2")


async def _bakery_disconnects_its_shop(engine: AsyncEngine) -> None:
    await _platform_linker.link(engine, user_id=BAKERY, identity=_SHOP)
    shop = await _platform_linker.account(engine, user_id=BAKERY, provider="meta")
    await _platform_linker.unlink(engine, user_id=BAKERY, link_id=shop.id)
    await _platform_linker.link(engine, user_id=BAKERY, identity=_CAFE)


async def _insert_page_again(engine: AsyncEngine) -> str:
    """Do what the backend did before it had accountlink, which restores the deleted row and inserts nothing."""
    page = {"org_id": BAKERY, "platform": _SHOP.provider, "account_id": _SHOP.account_id}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(_platform_table).values(page))
    return "inserted"


_platform = System(
    slug="platforms",
    title="Platform connections",
    story="An organisation that had disconnected a page could not connect it again: the backend's INSERT was refused. "
    "Disconnecting only marks a row as deleted, and the unique index counts deleted rows too.",
    mapping=_platform_mapping,
    before=_bakery_disconnects_its_shop,
    tried="The backend, without accountlink, inserts a page that the bakery had disconnected",
    attempt=_insert_page_again,
)


# -- 3. cloud accounts: keys that dead rows occupy ---------------------------------------------------------------------

_cloud_table = sa.Table(
    "accountlink_demo_broken_cloud",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    # Wrong, both: without the condition "is_active" they count disconnected rows.
    sa.Index("accountlink_demo_broken_cloud_owner_key", "provider", "account_id", unique=True),
    sa.Index("accountlink_demo_broken_cloud_user_key", "user_id", "provider", "account_id", unique=True),
)
_cloud_mapping: AccountMapping[int, int] = AccountMapping(
    _cloud_table,
    policy=LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT),
    active=_cloud_table.c.is_active,
)
_cloud_linker = AccountLinker(_cloud_mapping)
_TEAM = _account("aws", "123456789012")


async def _ada_disconnects_the_team_account(engine: AsyncEngine) -> None:
    await _cloud_linker.link(engine, user_id=ADA, identity=_TEAM)
    account = await _cloud_linker.account(engine, user_id=ADA, provider="aws")
    await _cloud_linker.unlink(engine, user_id=ADA, link_id=account.id)
    await _cloud_linker.link(engine, user_id=BEN, identity=_account("aws", "210987654321"))


async def _ben_links_the_team_account(engine: AsyncEngine) -> str:
    return _told(await _cloud_linker.link(engine, user_id=BEN, identity=_TEAM))


_cloud = System(
    slug="cloud",
    title="Cloud provider accounts",
    story="A user could not connect an account that a colleague had disconnected, so nobody had it any more. "
    "The colleague's row was kept, marked as inactive, and both keys count inactive rows too.",
    mapping=_cloud_mapping,
    before=_ada_disconnects_the_team_account,
    tried="Ben links the account that Ada has disconnected",
    attempt=_ben_links_the_team_account,
)


# -- 4. patients who share with doctors: a key on the pair instead of the grant ----------------------------------------

_share_table = sa.Table(
    "accountlink_demo_broken_sharing",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("patient_id", sa.Integer, nullable=False),
    sa.Column("doctor_id", sa.Integer),  # null until the token is redeemed
    sa.Column("token_hash", sa.Text, nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    # Right: a row is one grant, found by its token.
    sa.Index("accountlink_demo_broken_sharing_token_key", "token_hash", unique=True),
    # Wrong: it allows each pair of patient and doctor once, for ever.
    sa.Index("accountlink_demo_broken_sharing_pair_key", "patient_id", "doctor_id", unique=True),
)
_share_mapping = GrantMapping(
    _share_table,
    one_active_per_pair=True,
    grantor_id=_share_table.c.patient_id,
    grantee_id=_share_table.c.doctor_id,
    active=_share_table.c.is_active,
)
_grants = ShareGrants(_share_mapping)


async def _share(engine: AsyncEngine) -> Granted | AlreadyGranted:
    """Let the patient issue a token, and the doctor redeem it."""
    issued = await _grants.issue(engine, grantor_id=PATIENT, expires_in=timedelta(days=7))
    return await _grants.redeem(engine, issued.token, grantee_id=DOCTOR)


async def _patient_ends_a_share(engine: AsyncEngine) -> None:
    shared = await _share(engine)
    await _grants.revoke(engine, grantor_id=PATIENT, grant_id=shared.grant.id)


async def _share_again(engine: AsyncEngine) -> str:
    return (await _share(engine)).code


_sharing = System(
    slug="sharing",
    title="Patients who share with doctors",
    story="A patient who had ended a doctor's access could never give that doctor access again. "
    "The unique key is on the pair of patient and doctor, and a pair may have many grants, one after the other.",
    mapping=_share_mapping,
    before=_patient_ends_a_share,
    tried="A patient who ended a doctor's access shares with that doctor again",
    attempt=_share_again,
)

SYSTEMS: Final = (_calendar, _platform, _cloud, _sharing)
"""The four systems, in the order in which the page shows them."""
