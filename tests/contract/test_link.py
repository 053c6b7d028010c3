"""Linking, on each database, for each bind and each policy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker

from accountlink import (
    AccountLinker,
    AccountMismatch,
    AccountNotFound,
    Change,
    ConfigurationError,
    InvalidIdentity,
    Key,
    LinkBlocked,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Removal,
    Unlinked,
)
from tests.support.binds import BINDS, bound
from tests.support.databases import create, rows
from tests.support.models import (
    EMAIL,
    EMAIL_SOFT,
    EXCLUSIVE,
    EXCLUSIVE_SOFT,
    PER_USER,
    POLICIES,
    USER_TYPES,
    Clock,
    identity,
    make_tables,
    shared_tables,
    tokens,
)

pytestmark = pytest.mark.each_driver


async def linked(linker: AccountLinker[Any, Any], bind: Any, **call: Any) -> Linked[Any, Any]:
    outcome = await linker.link(bind, **call)
    assert isinstance(outcome, Linked), outcome
    return outcome


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_first_link_then_relink_writes_one_row(engine: AsyncEngine, policy: LinkPolicy, how: str) -> None:
    """Two identical callbacks give one row: created, then updated, with one id."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()

    async with bound(engine, how) as bind:
        first = await linked(linker, bind, user_id=1, identity=identity(), credentials=tokens())
    async with bound(engine, how) as bind:
        second = await linked(linker, bind, user_id=1, identity=identity(), credentials=tokens("access-2"))

    assert (Change.CREATED, Change.UPDATED) == (first.change, second.change)
    assert first.account.id == second.account.id
    assert await rows(engine, "SELECT id, user_id, provider, account_id, email, access_token FROM connections") == [
        (first.account.id, 1, "acme", "sub-1", "sub-1@example.com", "access-2")
    ]


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("policy", [EXCLUSIVE, EXCLUSIVE_SOFT], ids=["delete", "soft"])
async def test_another_users_account_is_a_conflict(engine: AsyncEngine, policy: LinkPolicy, how: str) -> None:
    """A second user gets the conflict, and the owner's row is the only one, unchanged."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker(clock=Clock())
    owner = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens())
    before = await rows(engine, "SELECT * FROM connections")

    async with bound(engine, how) as bind:
        outcome = await linker.link(bind, user_id=2, identity=identity(), credentials=tokens("mine"))

    assert isinstance(outcome, OwnershipConflict)
    assert ("acme", "sub-1", 1) == (outcome.provider, outcome.account_id, outcome.owner_id)
    assert outcome.transfer_token is not None
    assert outcome.expires_at is not None
    assert before == await rows(engine, "SELECT * FROM connections")
    assert owner.account.id == before[0][0]


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("policy", [POLICIES["per-user"], EMAIL], ids=["account-id", "email"])
async def test_per_user_links_of_two_users_do_not_meet(engine: AsyncEngine, policy: LinkPolicy, how: str) -> None:
    """PER_USER: each user has a separate row for the same provider account."""
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    for user in (1, 2):
        async with bound(engine, how) as bind:
            outcome = await linked(linker, bind, user_id=user, identity=identity(), credentials=tokens())
        assert Change.CREATED is outcome.change
    assert [(1,), (2,)] == await rows(engine, "SELECT user_id FROM connections ORDER BY user_id")


@pytest.mark.parametrize("how", BINDS)
@pytest.mark.parametrize("key", ["exclusive-soft", "per-user-soft", "email-soft"])
async def test_a_dead_row_is_restored_under_its_id(engine: AsyncEngine, key: str, how: str) -> None:
    """Linking again after a soft removal restores the row: same id, new credentials, nothing of the old ones."""
    tables = shared_tables(POLICIES[key])
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens())
    async with bound(engine, how) as bind:
        gone = await linker.unlink(bind, user_id=1, link_id=first.account.id, reason="asked to")
    assert isinstance(gone, Unlinked)
    assert gone.account.deleted_at is not None
    assert [(None, None, None, None, "asked to")] == await rows(
        engine, "SELECT access_token, refresh_token, expires_at, scopes, reason FROM connections"
    )
    async with bound(engine, how) as bind:
        again = await linked(
            linker, bind, user_id=1, identity=identity(), credentials=tokens("access-2", refresh=None, scopes={"x"})
        )
    assert (Change.RESTORED, first.account.id) == (again.change, again.account.id)
    assert again.account.deleted_at is None
    assert [("access-2", None, "x", None, None)] == await rows(
        engine, "SELECT access_token, refresh_token, scopes, reason, deleted_at FROM connections"
    )


async def test_restoring_brings_nothing_of_the_old_credentials_back(engine: AsyncEngine) -> None:
    """A32: credentials that the application left in a dead row do not come back with it."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens())
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE connections SET deleted_at = created_at")
    restored = await linked(linker, engine, user_id=1, identity=identity())
    assert Change.RESTORED is restored.change
    assert [(None, None, None, None)] == await rows(
        engine, "SELECT access_token, refresh_token, expires_at, scopes FROM connections"
    )


async def test_a_dead_row_of_another_user_leaves_the_account_free(engine: AsyncEngine) -> None:
    """A soft-removed link owns nothing: the next user gets a new row, and the dead row does not change."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens())
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    second = await linked(linker, engine, user_id=2, identity=identity(), credentials=tokens())
    assert Change.CREATED is second.change
    back = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    assert isinstance(back, OwnershipConflict)
    assert 2 == back.owner_id
    assert [(1, False), (2, True)] == [
        (user, bool(live))
        for user, live in await rows(engine, "SELECT user_id, deleted_at IS NULL FROM connections ORDER BY user_id")
    ]


async def test_the_newest_of_several_dead_rows_is_restored(engine: AsyncEngine) -> None:
    """The newest of several dead rows is restored, whatever their ids are."""
    tables = shared_tables(POLICIES["per-user-soft"])
    await create(engine, tables.metadata)
    insert = (
        "INSERT INTO connections (id, user_id, provider, account_id, score, deleted_at) VALUES "
        "(1, 1, 'acme', 'sub-1', 7, '2025-01-03 00:00:00'), (2, 1, 'acme', 'sub-1', 7, '2025-01-01 00:00:00')"
    )
    async with engine.begin() as connection:
        await connection.exec_driver_sql(insert)
    restored = await linked(tables.linker(), engine, user_id=1, identity=identity())
    assert (Change.RESTORED, 1) == (restored.change, restored.account.id)


async def test_a_relink_without_a_refresh_token_keeps_the_stored_one(engine: AsyncEngine) -> None:
    """Providers send a refresh token once; a later answer without one keeps it, one with another replaces it."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    stored = "SELECT access_token, refresh_token, scopes FROM connections"
    await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens("a1", "r1"))
    await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens("a2", None, scopes={"read"}))
    assert [("a2", "r1", "read")] == await rows(engine, stored)
    await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens("a3", "r3", scopes=()))
    assert [("a3", "r3", "read")] == await rows(engine, stored)
    await linked(linker, engine, user_id=1, identity=identity())
    assert [("a3", "r3", "read")] == await rows(engine, stored)


async def test_the_snapshot_says_what_the_row_holds(engine: AsyncEngine) -> None:
    """The returned account is the stored row: aware moments, scopes as granted."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    clock = Clock()
    outcome = await linked(
        tables.linker(clock=clock), engine, user_id=1, identity=identity(), credentials=tokens(scopes={"b", "a"})
    )
    account = outcome.account
    assert ("acme", "sub-1", "sub-1@example.com") == (account.provider, account.account_id, account.email)
    assert frozenset({"a", "b"}) == account.scopes
    assert datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC) == account.created_at == account.updated_at
    assert account.created_at is not None
    assert account.created_at.utcoffset() is not None
    later = await linked(tables.linker(clock=clock), engine, user_id=1, identity=identity())
    assert datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC) == later.account.created_at
    assert datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC) == later.account.updated_at
    assert [later.account] == list(await tables.linker().accounts(engine, user_id=1))


async def test_a_new_email_of_the_same_account_updates_the_row(engine: AsyncEngine) -> None:
    """A07: the same account id with a new address is the same link; without an address the stored one stays."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity(email="old@example.com"))
    second = await linked(linker, engine, user_id=1, identity=identity(email="new@example.com"))
    assert (Change.UPDATED, first.account.id) == (second.change, second.account.id)
    assert "new@example.com" == second.account.email
    third = await linked(linker, engine, user_id=1, identity=identity(email=None))
    assert "new@example.com" == third.account.email


async def test_a_recycled_email_is_another_account(engine: AsyncEngine) -> None:
    """A06, A07: the same address under another account id is never the same link, and proves no ownership."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linked(linker, engine, user_id=1, identity=identity("sub-1", email="same@example.com"))
    other = await linked(linker, engine, user_id=2, identity=identity("sub-2", email="same@example.com"))
    mine = await linked(linker, engine, user_id=1, identity=identity("sub-3", email="same@example.com"))
    assert (Change.CREATED, Change.CREATED) == (other.change, mine.change)
    assert [(3,)] == await rows(engine, "SELECT count(*) FROM connections")


async def test_an_email_key_meets_in_normal_form(engine: AsyncEngine) -> None:
    """A35, F15: variants of one address meet under Key.EMAIL; the address is stored as the provider wrote it."""
    tables = shared_tables(EMAIL)
    await create(engine, tables.metadata)
    linker = tables.linker()
    outcome = await linked(linker, engine, user_id=1, identity=identity("sub-1", email="Straße@Example.com"))
    for variant in ("STRASSE@example.COM", "\uff53trasse@example.com"):
        outcome = await linked(linker, engine, user_id=1, identity=identity("sub-1", email=variant))
    assert Change.UPDATED is outcome.change
    assert [("\uff53trasse@example.com", "strasse@example.com")] == await rows(
        engine, "SELECT email, email_key FROM connections"
    )
    apart = await linked(linker, engine, user_id=1, identity=identity("sub-2", email="strase@example.com"))
    assert Change.CREATED is apart.change


async def test_an_email_key_needs_an_email(engine: AsyncEngine) -> None:
    """Under Key.EMAIL an identity without an address is refused before any SQL (the table does not even exist)."""
    with pytest.raises(InvalidIdentity) as caught:
        await shared_tables(EMAIL).linker().link(engine, user_id=1, identity=identity(email=None))
    assert "email" == caught.value.field


async def test_under_an_email_key_another_account_id_is_a_mismatch(engine: AsyncEngine) -> None:
    """A07: a live row of this address with another account id is not overwritten; a dead one is not changed."""
    tables = shared_tables(EMAIL_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity("sub-1", email="a@example.com"))
    before = await rows(engine, "SELECT * FROM connections")
    with pytest.raises(AccountMismatch) as caught:
        await linker.link(engine, user_id=1, identity=identity("sub-2", email="A@example.com"))
    assert "acme" == caught.value.provider
    assert before == await rows(engine, "SELECT * FROM connections")
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    second = await linked(linker, engine, user_id=1, identity=identity("sub-2", email="A@example.com"))
    assert Change.CREATED is second.change
    third = await linked(linker, engine, user_id=1, identity=identity("sub-2", email="b@example.com"))
    assert Change.CREATED is third.change, "the same account id under a new address is another row"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("abc", "ABC"),
        ("user1", "user10"),
        ("1", "01"),
        ("a", "a b"),
        ("\u00e9", "e\u0301"),
        ("ß", "ss"),
        ("\uff2b", "K"),
    ],
)
async def test_near_equal_account_ids_stay_apart(engine: AsyncEngine, left: str, right: str) -> None:
    """A08: account ids are compared byte by byte."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    one = await linked(linker, engine, user_id=1, identity=identity(left, email=None))
    two = await linked(linker, engine, user_id=2, identity=identity(right, email=None))
    assert (Change.CREATED, Change.CREATED) == (one.change, two.change)
    assert [(left, 1), (right, 2)] == [
        (account.account_id, account.user_id)
        for account in (
            await linker.find_owner(engine, provider="acme", account_id=left),
            await linker.find_owner(engine, provider="acme", account_id=right),
        )
        if account is not None
    ]


async def test_a_number_and_its_text_are_one_account(engine: AsyncEngine) -> None:
    """A08: GitHub's numeric ids arrive as numbers and as text; both are the same account."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linked(linker, engine, user_id=1, identity=identity(583231, email=None))  # type: ignore[arg-type]  # as sent
    again = await linked(linker, engine, user_id=1, identity=identity("583231", email=None))
    assert Change.UPDATED is again.change


async def test_a_very_long_token_is_stored_whole(engine: AsyncEngine) -> None:
    """F23: access tokens may be signed documents of many kilobytes."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    long = "x" * 10_000
    await linked(tables.linker(), engine, user_id=1, identity=identity(), credentials=tokens(long, long))
    assert [(long, long)] == await rows(engine, "SELECT access_token, refresh_token FROM connections")


@pytest.mark.parametrize("user_type", [int, str, UUID])
async def test_user_ids_of_each_type(engine: AsyncEngine, user_type: type) -> None:
    """F22: user ids are int, str or UUID, the column's own Python type, there and back."""
    tables = make_tables(EXCLUSIVE, user_type=user_type)
    await create(engine, tables.metadata)
    linker = tables.linker()
    ann, bob = USER_TYPES[user_type]
    mine = await linked(linker, engine, user_id=ann, identity=identity())
    assert ann == mine.account.user_id
    conflict = await linker.link(engine, user_id=bob, identity=identity())
    assert isinstance(conflict, OwnershipConflict)
    assert ann == conflict.owner_id
    for wrong in {int, str, UUID, bool, float} - {user_type}:
        value = {int: 1, str: "1", UUID: UUID(int=1), bool: True, float: 1.0}[wrong]
        with pytest.raises(ConfigurationError, match="user_id is"):
            await linker.link(engine, user_id=value, identity=identity("other"))
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM connections")


async def test_a_number_that_the_column_cannot_hold_is_refused(engine: AsyncEngine) -> None:
    """F22: a user id beyond the column's range is refused before any SQL; such a link id simply does not exist."""
    tables = shared_tables(EXCLUSIVE)
    linker = tables.linker()
    with pytest.raises(ConfigurationError, match="outside what the column"):
        await linker.link(engine, user_id=2**63, identity=identity())
    with pytest.raises(AccountNotFound):
        await linker.unlink(engine, user_id=1, link_id=2**63)


async def test_expect_reconnects_this_link_and_no_other(engine: AsyncEngine) -> None:
    """expect= names the one link to reconnect; another identity is a mismatch and writes nothing."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity("sub-1"))
    await linked(linker, engine, user_id=2, identity=identity("sub-2"))
    ours = first.account.id

    same = await linked(linker, engine, user_id=1, identity=identity("sub-1"), expect=ours)
    assert (Change.UPDATED, ours) == (same.change, same.account.id)
    await linker.unlink(engine, user_id=1, link_id=ours)
    back = await linked(linker, engine, user_id=1, identity=identity("sub-1"), expect=ours)
    assert (Change.RESTORED, ours) == (back.change, back.account.id)

    before = await rows(engine, "SELECT * FROM connections ORDER BY id")
    for stranger in ("sub-3", "sub-2"):
        with pytest.raises(AccountMismatch):
            await linker.link(engine, user_id=1, identity=identity(stranger), expect=ours)
    with pytest.raises(AccountNotFound):
        await linker.link(engine, user_id=2, identity=identity("sub-1"), expect=ours)
    with pytest.raises(AccountNotFound):
        await linker.link(engine, user_id=1, identity=identity("sub-1"), expect=999)
    assert before == await rows(engine, "SELECT * FROM connections ORDER BY id")


async def test_expect_on_a_dead_link_whose_account_another_user_has_is_a_conflict(engine: AsyncEngine) -> None:
    """Reconnecting a link that was lost to another user in the meantime tells of the conflict."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity())
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    await linked(linker, engine, user_id=2, identity=identity())
    outcome = await linker.link(engine, user_id=1, identity=identity(), expect=first.account.id)
    assert isinstance(outcome, OwnershipConflict)


@pytest.mark.parametrize("how", BINDS)
async def test_a_blocked_reason_forbids_restoring(engine: AsyncEngine, how: str) -> None:
    """A link that was removed for a listed reason stays removed; for another reason it comes back."""
    policy = LinkPolicy(
        key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons={"fraud", "abuse"}
    )
    tables = shared_tables(policy)
    await create(engine, tables.metadata)
    linker = tables.linker()
    first = await linked(linker, engine, user_id=1, identity=identity(), credentials=tokens())
    await linker.unlink(engine, user_id=1, link_id=first.account.id, reason="fraud")
    before = await rows(engine, "SELECT * FROM connections")
    async with bound(engine, how) as bind:
        with pytest.raises(LinkBlocked) as caught:
            await linker.link(bind, user_id=1, identity=identity(), credentials=tokens())
    assert ("acme", "fraud") == (caught.value.provider, caught.value.reason)
    assert before == await rows(engine, "SELECT * FROM connections")
    other = await linked(linker, engine, user_id=1, identity=identity("sub-2"), credentials=tokens())
    await linker.unlink(engine, user_id=1, link_id=other.account.id, reason="holiday")
    back = await linked(linker, engine, user_id=1, identity=identity("sub-2"), credentials=tokens())
    assert Change.RESTORED is back.change


async def test_application_columns_are_filled(engine: AsyncEngine) -> None:
    """values= fills a new row only; update_values= fills it always; the model's own defaults still apply."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker, model = tables.linker(), tables.Connection
    filled = "SELECT label, score FROM connections"
    first = await linked(linker, engine, user_id=1, identity=identity(), values={model.label: "new"})
    assert [("new", 7)] == await rows(engine, filled)
    await linked(
        linker, engine, user_id=1, identity=identity(), values={model.label: "x"}, update_values={model.score: 8}
    )
    assert [("new", 8)] == await rows(engine, filled)
    await linker.unlink(engine, user_id=1, link_id=first.account.id)
    await linked(linker, engine, user_id=1, identity=identity(), update_values={model.label: None, model.score: 9})
    assert [(None, 9)] == await rows(engine, filled)
    await linked(linker, engine, user_id=1, identity=identity("sub-2"), update_values={model.label: "both"})
    assert [("both",)] == await rows(engine, "SELECT label FROM connections WHERE account_id = 'sub-2'")


async def test_values_that_are_not_the_applications_are_refused(engine: AsyncEngine) -> None:
    """A37: no column that accountlink writes, and no column of another table, is taken from values=."""
    tables = shared_tables(EXCLUSIVE)
    linker, model = tables.linker(), tables.Connection
    for column in (model.user_id, model.account_id, model.access_token, tables.Note.text):
        with pytest.raises(ConfigurationError):
            await linker.link(engine, user_id=1, identity=identity(), values={column: "x"})


async def test_credentials_that_the_table_cannot_hold_are_refused(engine: AsyncEngine) -> None:
    """Nothing is dropped in silence: credentials without a column for them are a configuration error."""
    from accountlink import AccountMapping

    tables = shared_tables(PER_USER)
    linker: AccountLinker[Any, Any] = AccountLinker(
        AccountMapping(tables.Connection, policy=PER_USER, refresh_token=None, scopes=None)
    )
    await create(engine, tables.metadata)
    with pytest.raises(ConfigurationError, match="refresh_token"):
        await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    with pytest.raises(ConfigurationError, match="scopes"):
        await linker.link(engine, user_id=1, identity=identity(), credentials=tokens(refresh=None))
    outcome = await linked(
        linker, engine, user_id=1, identity=identity(), credentials=tokens(refresh=None, scopes=frozenset())
    )
    assert outcome.account.scopes is None


async def test_a_conflict_without_secrets_carries_no_token(engine: AsyncEngine) -> None:
    """Without secrets nothing can be signed, and the redirect has no fragment."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker(secrets=())
    await linked(linker, engine, user_id=1, identity=identity())
    outcome = await linker.link(engine, user_id=2, identity=identity())
    assert isinstance(outcome, OwnershipConflict)
    assert (None, None) == (outcome.transfer_token, outcome.expires_at)
    assert "/done?error=ownership_conflict" == outcome.redirect_url("/done")


async def test_what_cannot_be_a_bind_is_refused_with_a_remedy(engine: AsyncEngine) -> None:
    """A sessionmaker, a scoped session, a sync engine: refused before any SQL, with the remedy."""
    linker = shared_tables(EXCLUSIVE).linker()
    maker = async_sessionmaker(engine)
    scoped: Any = async_scoped_session(maker, scopefunc=lambda: 1)
    for bind, remedy in ((maker, "maker.begin"), (scoped, "scoped"), (engine.sync_engine, "create_async_engine")):
        with pytest.raises(ConfigurationError, match=remedy):
            await linker.link(bind, user_id=1, identity=identity())  # type: ignore[arg-type]  # the mistake in question
    with pytest.raises(ConfigurationError, match="AsyncSession"):
        await linker.link(None, user_id=1, identity=identity())  # type: ignore[arg-type]  # the mistake in question


async def test_what_is_no_identity_or_token_set_is_refused(engine: AsyncEngine) -> None:
    """A provider's raw answer in place of an identity or a token set is refused with a typed error, before any SQL."""
    linker: Any = shared_tables(EXCLUSIVE).linker()
    for wrong in ({"identity": {"sub": "1"}}, {"identity": None}, {"credentials": {"access_token": "x"}}):
        with pytest.raises(ConfigurationError, match="takes a"):
            await linker.link(engine, **({"user_id": 1, "identity": identity()} | wrong))


async def test_a_session_of_a_sessionmaker_works(engine: AsyncEngine) -> None:
    """The usual way to a session is the right one."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    async with async_sessionmaker(engine, class_=AsyncSession).begin() as session:
        await linked(tables.linker(), session, user_id=1, identity=identity())
    assert [(1,)] == await rows(engine, "SELECT count(*) FROM connections")
