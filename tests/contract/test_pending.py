"""A claimant's tokens between the conflict and the transfer: kept, sealed, for them alone, and not for long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountNotFound,
    AlreadyOwner,
    CredentialsUnreadable,
    NeedsConsent,
    TokenExpired,
    TokenSet,
    TokenSuperseded,
    Transferred,
)
from tests.support.binds import BINDS, bound
from tests.support.claims import Statements
from tests.support.databases import rows
from tests.support.effort import Effort
from tests.support.models import EXCLUSIVE, identity, tokens
from tests.support.vaulted import Vaulted

HOWS = pytest.mark.parametrize("how", BINDS)
TABLES: dict[str, dict[str, Any]] = {
    "soft": {},
    "delete": {"policy": EXCLUSIVE},
    "ledger": {"ledger": True},
    "outbox": {"outbox": True},
    "all": {"ledger": True, "outbox": True},
    "no nulls": {"nulls": False},
}
WHOLE = TokenSet(
    access_token="claimants-access",
    refresh_token="claimants-refresh",
    expires_at=datetime(2026, 5, 1, 12, tzinfo=UTC),
    scopes={"read", "admin"},
    token_type="bearer",
    extra={"instance_url": "https://eu1.example"},
    client="web",
    refresh_expires_at=datetime(2027, 1, 1, tzinfo=UTC),
)
LIFETIME, LEEWAY = timedelta(minutes=10), timedelta(minutes=1)


@pytest.fixture
async def vaulted(engine: AsyncEngine) -> Vaulted:
    """A table of links, of which one user's has tokens."""
    made = await Vaulted().create(engine)
    await made.linked(engine, credentials=tokens("former-access", "former-refresh"))
    return made


def stood_still(vaulted: Vaulted) -> Any:
    """Let the clock of a linker stand still from now on; return what sets it."""
    moment = [datetime(2026, 1, 1, 12, tzinfo=UTC)]

    def set_to(now: datetime | None = None) -> datetime:
        moment[0] = now or moment[0]
        return moment[0]

    vaulted.linker = vaulted.other_linker(clock=set_to)
    return set_to


async def unreadable_for(vaulted: Vaulted, bind: Any, *users: Any, link_id: Any) -> None:
    for user in users:
        with pytest.raises(AccountNotFound):
            await vaulted.linker.stored_credentials(bind, user_id=user, link_id=link_id)


# -- from the conflict to the transfer --------------------------------------------------------------------------------


@pytest.mark.each_driver
@HOWS
@pytest.mark.parametrize("table", TABLES)
async def test_a_transfer_has_the_tokens_of_the_conflict(engine: AsyncEngine, table: str, how: str) -> None:
    """The new owner's tokens are there, the former owner's are not, and at no point does anybody read another's."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    former = tokens("former-access", "former-refresh")
    link_id = await vaulted.linked(engine, credentials=former)
    async with bound(engine, how) as bind:
        token = await vaulted.conflict(bind, credentials=WHOLE)
        await unreadable_for(vaulted, bind, 2, 3, link_id=link_id)
        assert former == await vaulted.linker.stored_credentials(bind, user_id=1, link_id=link_id)
    (kept,) = await vaulted.kept(engine)
    assert (vaulted.table.name, "2", "acme", "sub-1") == tuple(kept[:4])
    assert kept.access_token.split(".")[:3] == kept.refresh_token.split(".")[:3]
    assert not [text for text in map(str, kept) if "claimants" in text or "eu1.example" in text]
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.transfer(bind, token, user_id=2)
        assert isinstance(outcome, Transferred)
        assert outcome.has_credentials
        assert WHOLE == await vaulted.linker.stored_credentials(bind, user_id=2, link_id=link_id)
        await unreadable_for(vaulted, bind, 1, 3, link_id=link_id)
    assert [(kept.access_token, kept.refresh_token)] == await vaulted.column(engine, "access_token", "refresh_token")
    assert [] == await vaulted.kept(engine)
    assert isinstance(await vaulted.linker.transfer(engine, token, user_id=2), AlreadyOwner)


@HOWS
@pytest.mark.parametrize("table", TABLES)
async def test_a_transfer_without_tokens_leaves_none_of_the_former_owners(
    engine: AsyncEngine, table: str, how: str
) -> None:
    """Nothing was kept: every credential column is emptied, NOT NULL ones too."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    await vaulted.linked(engine, credentials=WHOLE)
    token = await vaulted.conflict(engine)
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.transfer(bind, token, user_id=2)
    assert isinstance(outcome, Transferred)
    assert not outcome.has_credentials
    empty = ("", "", "") if table == "no nulls" else (None, None, None)
    assert [empty] == await vaulted.column(engine, "access_token", "refresh_token", "scopes")
    with pytest.raises(NeedsConsent):
        await vaulted.whole(engine)


@HOWS
async def test_tokens_that_a_transfer_brings_go_before_those_kept(
    vaulted: Vaulted, engine: AsyncEngine, how: str
) -> None:
    token = await vaulted.conflict(engine, credentials=tokens())
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.transfer(bind, token, user_id=2, credentials=WHOLE)
    assert isinstance(outcome, Transferred)
    assert outcome.has_credentials
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=2, provider="acme")
    assert [] == await vaulted.kept(engine)


@pytest.mark.each_driver
async def test_the_end_of_a_kept_token_is_the_same_moment(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """SQLite drops a time zone: the end was five hours off."""
    ends = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    token = await vaulted.conflict(engine, credentials=tokens(expires_at=ends))
    await vaulted.linker.transfer(engine, token, user_id=2)
    stored = await vaulted.linker.stored_credentials(engine, user_id=2, provider="acme")
    assert ends == stored.expires_at


async def test_a_token_of_a_megabyte_comes_through(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """F23: a token of 1 MB is kept, transferred, replaced and read whole."""
    large = [name * 1_000_000 for name in "abcd"]
    token = await vaulted.conflict(engine, credentials=TokenSet(access_token=large[0], refresh_token=large[1]))
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert (large[0], large[1]) == await vaulted.whole(engine)
    assert await vaulted.linker.replace_credentials(
        engine,
        user_id=2,
        provider="acme",
        tokens=TokenSet(access_token=large[2], refresh_token=large[3]),
        presented=large[1],
    )
    assert (large[2], large[3]) == await vaulted.whole(engine)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("table", TABLES)
async def test_a_conflict_is_still_one_round_trip(engine: AsyncEngine, table: str) -> None:
    """With an engine; a transfer takes one more than without kept tokens, to read them."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    await vaulted.linked(engine, credentials=tokens())
    await vaulted.conflict(engine, credentials=tokens())
    sent = Statements(engine).seen
    token = await vaulted.conflict(engine, credentials=tokens())
    assert 1 == len(sent)
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert 4 == len(sent)


# -- several conflicts ------------------------------------------------------------------------------------------------


@HOWS
async def test_the_newest_tokens_win_and_one_row_is_left(vaulted: Vaulted, engine: AsyncEngine, how: str) -> None:
    async with bound(engine, how) as bind:
        found = [await vaulted.conflict(bind, credentials=tokens(f"access-{n}", f"refresh-{n}")) for n in range(5)]
    assert 1 == len(await vaulted.kept(engine))
    await vaulted.linker.transfer(engine, found[0], user_id=2)
    assert ("access-4", "refresh-4") == await vaulted.whole(engine)


@pytest.mark.each_driver
@HOWS
async def test_a_refresh_token_that_is_given_once_is_kept(vaulted: Vaulted, engine: AsyncEngine, how: str) -> None:
    """A later conflict without refresh token and scopes keeps the earlier ones, as a relink does."""
    await vaulted.conflict(engine, credentials=tokens("access-1", "refresh-1", scopes={"read"}))
    async with bound(engine, how) as bind:
        token = await vaulted.conflict(bind, credentials=TokenSet(access_token="access-2"))
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert ("access-2", "refresh-1") == await vaulted.whole(engine)
    (account,) = await vaulted.linker.accounts(engine, user_id=2)
    assert frozenset({"read"}) == account.scopes


async def test_a_refresh_token_whose_time_is_over_is_not_kept(vaulted: Vaulted, engine: AsyncEngine) -> None:
    await vaulted.conflict(engine, credentials=tokens("access-1", "refresh-1"))
    vaulted.clock.now += timedelta(minutes=12)
    token = await vaulted.conflict(engine, credentials=TokenSet(access_token="access-2"))
    (kept,) = await vaulted.kept(engine)
    assert (None, None) == (kept.refresh_token, kept.scopes)
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert ("access-2", None) == await vaulted.whole(engine)


async def test_a_conflict_without_tokens_leaves_those_of_an_earlier_one(vaulted: Vaulted, engine: AsyncEngine) -> None:
    await vaulted.conflict(engine, credentials=tokens("access-1", "refresh-1"))
    token = await vaulted.conflict(engine)
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert ("access-1", "refresh-1") == await vaulted.whole(engine)


async def test_each_claimant_account_and_provider_has_its_own(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """No transfer takes the tokens of another claimant, account or provider, and none deletes them."""
    names = [("acme", "sub-1"), ("acme", "sub-2"), ("other", "sub-1")]
    claims: dict[tuple[int, str, str], str] = {}
    for provider, account in names:
        who = identity(account, provider=provider)
        await vaulted.linker.link(engine, user_id=1, identity=who, credentials=tokens("former"))
        for user in (2, 3):
            brought = tokens(f"{user}-{provider}-{account}")
            outcome = await vaulted.linker.link(engine, user_id=user, identity=who, credentials=brought)
            claims[user, provider, account] = str(getattr(outcome, "transfer_token", None))
    for number, ((user, provider, account), token) in enumerate(claims.items()):
        if user == 2:
            moved = await vaulted.linker.transfer(engine, token, user_id=2)
            stored = await vaulted.linker.stored_credentials(engine, user_id=2, link_id=moved.account.id)
            assert f"2-{provider}-{account}" == stored.access_token.reveal()
            assert len(claims) - number // 2 - 1 == len(await vaulted.kept(engine))
    assert {"3"} == {row.user_id for row in await vaulted.kept(engine)}


async def test_each_table_has_its_own(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """Two tables of links with one table of pending credentials: equal users and accounts are told apart."""
    other = await Vaulted(nulls=False).create(engine)
    await other.linked(engine, credentials=tokens("former"))
    both = {"access-0": vaulted, "access-1": other}
    claims = [await each.conflict(engine, credentials=tokens(access)) for access, each in both.items()]
    assert ["cloud_links", "connections"] == sorted(row.table_name for row in await vaulted.kept(engine))
    for left, token, (access, each) in zip((1, 0), claims, both.items(), strict=True):
        await each.linker.transfer(engine, token, user_id=2)
        assert (access, "refresh-1") == await each.whole(engine)
        assert left == len(await vaulted.kept(engine))


@pytest.mark.parametrize("users", [("ann", "bob"), (UUID(int=1), UUID("ABCDEF01-2345-6789-ABCD-EF0123456789"))])
async def test_each_type_of_user_id_has_its_own(engine: AsyncEngine, users: tuple[Any, Any]) -> None:
    vaulted = await Vaulted(user_type=type(users[0])).create(engine)
    await vaulted.linked(engine, users[0], credentials=tokens("former"))
    token = await vaulted.conflict(engine, users[1], credentials=WHOLE)
    await vaulted.linker.transfer(engine, token, user_id=users[1])
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=users[1], provider="acme")
    assert [] == await vaulted.kept(engine)


# -- nothing that should not be there ---------------------------------------------------------------------------------


@asynccontextmanager
async def undone(engine: AsyncEngine, how: str) -> AsyncIterator[Any]:
    """A bind of the caller's, whose work is rolled back: all of it, or that of a savepoint."""
    kind, _, savepoint = how.partition(", ")
    async with engine.connect() as connection, AsyncSession(bind=connection) as session:
        bind: Any = session if kind == "session" else connection
        if not savepoint:
            yield bind
            await bind.rollback()
            return
        nested = await bind.begin_nested()
        yield bind
        await nested.rollback()
        await bind.commit()


@pytest.mark.parametrize("how", ["connection", "session", "connection, savepoint", "session, savepoint"])
@pytest.mark.parametrize("table", ["soft", "all"])
async def test_a_rollback_leaves_nothing(engine: AsyncEngine, table: str, how: str) -> None:
    """A conflict that is rolled back keeps nothing and deletes nothing; a transfer that is leaves what was kept."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    await vaulted.linked(engine, credentials=tokens("former"))
    await vaulted.conflict(engine, 3, credentials=tokens("of another"))
    vaulted.clock.now += timedelta(minutes=12)
    over = await vaulted.kept(engine)
    async with undone(engine, how) as bind:
        await vaulted.conflict(bind, credentials=WHOLE)
    assert over == await vaulted.kept(engine)
    token = await vaulted.conflict(engine, credentials=WHOLE)
    before = await vaulted.column(engine, *vaulted.linker.mapping.columns), await vaulted.kept(engine)
    async with undone(engine, how) as bind:
        assert isinstance(await vaulted.linker.transfer(bind, token, user_id=2), Transferred)
    assert before == (await vaulted.column(engine, *vaulted.linker.mapping.columns), await vaulted.kept(engine))
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=2, provider="acme")


async def test_nothing_is_kept_where_there_is_no_conflict(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """A first link, a relink, a restore, and a conflict without tokens keep nothing."""
    await vaulted.conflict(engine)
    link_id = await vaulted.linked(engine, 2, "sub-2", credentials=tokens())
    await vaulted.linked(engine, 2, "sub-2", credentials=tokens())
    await vaulted.linker.unlink(engine, user_id=2, link_id=link_id)
    await vaulted.linked(engine, 2, "sub-2", credentials=tokens())
    assert [] == await vaulted.kept(engine)


@pytest.mark.parametrize("moved", ["of another claimant", "of another account", "of the other column"])
async def test_a_moved_envelope_is_copied_and_not_opened(vaulted: Vaulted, engine: AsyncEngine, moved: str) -> None:
    """A29: an envelope that somebody has moved within the table of pending credentials is refused in the link."""
    t = vaulted.pending
    assert t is not None
    await vaulted.linked(engine, 1, "sub-2", credentials=tokens("former"))
    await vaulted.conflict(engine, 3, credentials=tokens())
    await vaulted.conflict(engine, 2, "sub-2", credentials=tokens())
    token = await vaulted.conflict(engine, credentials=tokens())
    mine = sa.and_(t.c.user_id == "2", t.c.account_id == "sub-1")
    theirs = {
        "of another claimant": (t.c.access_token, t.c.user_id == "3"),
        "of another account": (t.c.access_token, t.c.account_id == "sub-2"),
        "of the other column": (t.c.refresh_token, mine),
    }[moved]
    async with engine.begin() as connection:
        found = await connection.scalar(sa.select(theirs[0]).where(theirs[1]))
        await connection.execute(sa.update(t).where(mine).values(access_token=found))
    await vaulted.linker.transfer(engine, token, user_id=2)
    with pytest.raises(CredentialsUnreadable) as raised:
        await vaulted.whole(engine)
    assert ("access_token", "not_authentic") == (raised.value.role, raised.value.reason)


async def test_a_kept_envelope_in_the_owners_row_is_not_opened(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """A29: whoever may write the tables cannot read a claimant's tokens as the owner."""
    await vaulted.conflict(engine, credentials=WHOLE)
    ((access, refresh),) = [(row.access_token, row.refresh_token) for row in await vaulted.kept(engine)]
    async with engine.begin() as connection:
        await connection.execute(sa.update(vaulted.table).values(access_token=access, refresh_token=refresh))
    with pytest.raises(CredentialsUnreadable) as raised:
        await vaulted.whole(engine, 1)
    assert "not_authentic" == raised.value.reason


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("later", "has"), [(timedelta(0), True), (timedelta(microseconds=1), False)])
async def test_kept_tokens_end_with_the_transfer_token(
    vaulted: Vaulted, engine: AsyncEngine, later: timedelta, has: bool
) -> None:
    """To the microsecond: the lifetime of a token and a minute of leeway, by the linker's clock."""
    set_to = stood_still(vaulted)
    token = await vaulted.conflict(engine, credentials=WHOLE)
    (kept,) = await vaulted.kept(engine)
    end = set_to() + LIFETIME + LEEWAY
    assert end == kept.kept_until.replace(tzinfo=UTC)
    set_to(end)
    newest = await vaulted.conflict(engine)
    set_to(end + later)
    if has:
        outcome = await vaulted.linker.transfer(engine, token, user_id=2)
    else:
        with pytest.raises(TokenExpired):
            await vaulted.linker.transfer(engine, token, user_id=2)
        outcome = await vaulted.linker.transfer(engine, newest, user_id=2)
    assert isinstance(outcome, Transferred)
    assert has is outcome.has_credentials


@pytest.mark.parametrize("ahead", [-1, 0, 1], ids=["behind", "equal", "ahead"])
async def test_the_clock_of_another_server_is_a_minute_off(vaulted: Vaulted, engine: AsyncEngine, ahead: int) -> None:
    """Within its lifetime a token finds what was kept, though other servers sweep and redeem by other clocks."""
    set_to = stood_still(vaulted)
    began = set_to()
    other = vaulted.other_linker(clock=lambda: set_to() + ahead * timedelta(minutes=1))
    token = await vaulted.conflict(engine, credentials=WHOLE)
    set_to(began + LIFETIME)
    await other.link(engine, user_id=3, identity=identity(), credentials=tokens())
    assert {"2", "3"} == {row.user_id for row in await vaulted.kept(engine)}
    outcome = await other.transfer(engine, token, user_id=2)
    assert isinstance(outcome, Transferred)
    assert outcome.has_credentials
    assert WHOLE == await other.stored_credentials(engine, user_id=2, provider="acme")


@HOWS
async def test_tokens_whose_time_is_over_go_with_the_next_write(
    vaulted: Vaulted, engine: AsyncEngine, how: str
) -> None:
    """Whoever writes next: another claimant, or the same one, whose own row is then a new one."""
    for user in (2, 3):
        await vaulted.conflict(engine, user, credentials=tokens())
    vaulted.clock.now += timedelta(minutes=12)
    async with bound(engine, how) as bind:
        token = await vaulted.conflict(bind, credentials=WHOLE)
    assert ["2"] == [row.user_id for row in await vaulted.kept(engine)]
    await vaulted.linker.transfer(engine, token, user_id=2)
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=2, provider="acme")


async def test_a_write_deletes_a_hundred_old_rows_at_most(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """So no call takes long; and none deletes a row whose time is not over."""
    assert vaulted.pending is not None
    await vaulted.conflict(engine, 3, credentials=tokens())
    until = datetime(2025, 1, 1, tzinfo=UTC)
    old = {"table_name": "connections", "provider": "acme", "access_token": "x", "kept_until": until}
    async with engine.begin() as connection:
        many = [old | {"user_id": str(n % 7), "account_id": f"old-{n}"} for n in range(250)]
        await connection.execute(sa.insert(vaulted.pending), many)
    left = []
    for _ in range(4):
        await vaulted.conflict(engine, credentials=tokens())
        left.append(len(await vaulted.kept(engine)))
    assert [152, 52, 2, 2] == left


async def test_a_transfer_token_of_a_former_state_takes_nothing(vaulted: Vaulted, engine: AsyncEngine) -> None:
    """A04: superseded by another's transfer; the claimant's tokens stay theirs, and a new claim has them."""
    token = await vaulted.conflict(engine, 2, credentials=WHOLE)
    others = await vaulted.conflict(engine, 3, credentials=tokens("of 3", "of 3"))
    await vaulted.linker.transfer(engine, others, user_id=3)
    with pytest.raises(TokenSuperseded):
        await vaulted.linker.transfer(engine, token, user_id=2)
    assert ("of 3", "of 3") == await vaulted.whole(engine, 3)
    again = await vaulted.conflict(engine, 2)
    await vaulted.linker.transfer(engine, again, user_id=2)
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=2, provider="acme")


# -- many -------------------------------------------------------------------------------------------------------------


async def test_any_number_of_conflicts_leave_one_row(
    vaulted: Vaulted, engine: AsyncEngine, effort: Effort, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one claimant: one row, which the transfer uses. The stress run prints how long 10,000 take."""
    began = datetime.now(UTC)
    numbers = effort.rounds(20, full=10_000)
    for number in numbers:
        await vaulted.conflict(engine, credentials=tokens(f"access-{number}"))
    took = datetime.now(UTC) - began
    assert 1 == len(await vaulted.kept(engine))
    if effort.full:
        with capsys.disabled():
            print(f"\n{engine.dialect.driver}: {took}, {await size_of(engine)}")  # noqa: T201  # a measurement
    await vaulted.linker.transfer(engine, await vaulted.conflict(engine), user_id=2)
    assert (f"access-{numbers[-1]}", "refresh-1") == await vaulted.whole(engine)


async def size_of(engine: AsyncEngine) -> str:
    """The size of the table of pending credentials, with its indexes."""
    name = "accountlink_pending_credentials"
    if engine.dialect.name == "sqlite":
        pages = await rows(engine, "PRAGMA page_count")
        return f"the whole database has {pages[0][0] * 4} KB"
    query = f"SELECT pg_table_size('{name}') / 1024, pg_indexes_size('{name}') / 1024"
    before = (await rows(engine, query))[0]
    async with engine.connect() as connection:
        outside = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await outside.exec_driver_sql(f"VACUUM {name}")
    after = (await rows(engine, query))[0]
    return f"without any vacuum {before[0]} KB and {before[1]} KB of indexes, after one {after[0]} KB and {after[1]} KB"


@HOWS
@pytest.mark.parametrize("table", ["soft", "delete"])
async def test_an_unlink_takes_kept_tokens_along(engine: AsyncEngine, how: str, table: str) -> None:
    """A32: what a conflict kept before the user had the account does not come back by a transfer after the unlink."""
    made = await Vaulted(**TABLES[table]).create(engine)
    linker = made.linker
    first = await made.linked(engine, credentials=tokens())
    for user_id in (2, 3):
        await linker.link(engine, user_id=user_id, identity=identity(), credentials=tokens("kept", "kept"))
    await linker.unlink(engine, user_id=1, link_id=first)
    second = await made.linked(engine, 2)
    other = await made.linked(engine, 2, "sub-2")
    for link_id, left in ((other, ["2", "3"]), (second, ["3"])):
        async with bound(engine, how) as bind:
            await linker.unlink(bind, user_id=2, link_id=link_id)
        assert left == sorted(row.user_id for row in await made.kept(engine))
