"""The grants of all users: those that are idle are kept alive, and those that do not work are listed, page by page."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    CredentialVault,
    HealthState,
    Linked,
    NeedsConsent,
    Plaintext,
    RefreshUnavailable,
    TokenSet,
    VaultKey,
    refresh_states,
)
from accountlink.vault import upkeep
from accountlink.vault.refresher import GrantEnded, ProviderUnavailable
from accountlink.vault.rotation import rotate_keys
from tests.contract.test_renewing import Provider
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, PER_USER, SECRETS, identity, make_tables
from tests.support.vaulted import KEY, OLD_KEY, Vaulted

MONTH = timedelta(days=30)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 4)


class Idle(Vaulted):
    """A table of links whose tokens were obtained 40 days ago."""

    def __init__(self, provider: Provider, **options: Any) -> None:
        super().__init__(EXCLUSIVE_SOFT, pending=False, **options)
        self.provider = provider
        self.states = refresh_states(self.metadata)
        self.keeping: AccountLinker[Any, Any] = self.other_linker(refresher=provider, refreshes=self.states)

    async def fill(self, engine: AsyncEngine, users: int, **tokens: Any) -> None:
        await self.create(engine)
        self.clock.now = datetime.now(UTC) - timedelta(days=40)
        for user_id in range(1, users + 1):
            given = {"access_token": f"access-of-{user_id}", "refresh_token": f"refresh-of-{user_id}"} | tokens
            await self.linker.link(
                engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=TokenSet(**given)
            )
        self.clock.now = datetime.now(UTC)

    async def execute(self, engine: AsyncEngine, statement: Any) -> None:
        async with engine.begin() as connection:
            await connection.execute(statement)


def of(*users: int) -> Counter[str]:
    return Counter(f"refresh-of-{user_id}" for user_id in users)


# -- keeping alive ----------------------------------------------------------------------------------------------------


async def test_each_grant_of_each_page_once(engine: AsyncEngine) -> None:
    """A page ends at the size of a page, at the end of the table, or in the midst of one."""
    for users in (1, 4, 9):
        case = Idle(Provider())
        await case.fill(engine, users)
        assert users == (await case.keeping.keep_alive(engine, idle=MONTH)).renewed
        assert of(*range(1, users + 1)) == Counter(case.provider.calls)
        await case.execute(engine, sa.delete(case.table))
        await case.execute(engine, sa.delete(case.states))


async def test_rows_that_change_meanwhile_are_neither_left_out_nor_renewed_twice(engine: AsyncEngine) -> None:
    """While a page is renewed, links before, in and behind it are linked again, and one is made."""
    case = Idle(Provider())
    await case.fill(engine, 12)
    renew, changed = case.provider.renew, asyncio.Lock()

    async def renew_and_change(provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        async with changed:
            if not case.provider.calls:
                for user_id in (1, 7, 12):  # not idle any more
                    await case.linker.link(
                        engine,
                        user_id=user_id,
                        identity=identity(f"sub-{user_id}"),
                        credentials=TokenSet(access_token="new"),
                    )
                await case.linker.link(engine, user_id=99, identity=identity("sub-99"))
        return await renew(provider, tokens, deadline=deadline)

    case.provider.renew = renew_and_change  # type: ignore[method-assign]
    kept = await case.keeping.keep_alive(engine, idle=MONTH)
    calls = Counter(case.provider.calls)
    assert {1} == set(calls.values())
    assert of(2, 3, 4, 5, 6, 8, 9, 10, 11) == calls - of(1, 7, 12)
    assert 0 == kept.ended == kept.failed


async def test_links_that_are_not_to_be_renewed_need_no_statement_of_their_own(engine: AsyncEngine) -> None:
    """Ended, without a refresh token, unlinked, or linked again: they are told apart from what a page reads."""
    case = Idle(Provider())
    await case.fill(engine, 6)
    case.provider.fails = [GrantEnded("invalid_grant")]
    assert 1 == (await case.keeping.keep_alive(engine, idle=MONTH, limit=1)).ended
    await case.linker.unlink(engine, user_id=2, link_id=2)
    await case.execute(engine, sa.update(case.table).where(case.table.c.user_id == 3).values(refresh_token=None))
    seen: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda _c, _u, text, *_: seen.append(text))
    kept = await case.keeping.keep_alive(engine, idle=timedelta(days=41))
    assert upkeep.KeptAlive() == kept
    assert 4 == sum("connections" in text for text in seen)  # two for each of the two pages


async def test_one_failure_stops_nobody(engine: AsyncEngine) -> None:
    """An error of the refresher's own code is raised after all other grants were renewed."""
    case = Idle(Provider())
    await case.fill(engine, 9)
    case.provider.fails = [KeyError("odd")]
    with pytest.raises(KeyError):
        await case.keeping.keep_alive(engine, idle=MONTH)
    assert of(*range(1, 10)) == Counter(case.provider.calls)
    async with engine.connect() as connection:
        states = Counter(await connection.scalars(sa.select(case.states.c.state)))
    assert {"ok": 8, "failing": 1} == states


async def test_a_source_of_keys_that_fails_lets_no_lease_begin(engine: AsyncEngine) -> None:
    """The error is raised unchanged, no token is presented, and no grant is marked."""

    class Failing:
        async def current(self) -> Any:
            raise OSError("the key service is away")

        async def get(self, key_id: str) -> Any:
            raise OSError("the key service is away")

    case = Idle(Provider())
    await case.fill(engine, 6)
    broken = case.other_linker(refresher=case.provider, refreshes=case.states, vault=CredentialVault(source=Failing()))
    with pytest.raises(OSError, match="away"):
        await broken.keep_alive(engine, idle=MONTH)
    assert [] == case.provider.calls
    async with engine.connect() as connection:
        assert 0 == await connection.scalar(sa.select(sa.func.count()).select_from(case.states))


async def test_unreadable_links_are_counted_and_rows_that_are_no_links_are_left_out(engine: AsyncEngine) -> None:
    case = Idle(Provider(), tables=make_tables(EXCLUSIVE_SOFT))
    case.table.c.account_id.nullable = True  # as in a table that had links before it had the column
    await case.fill(engine, 6)
    c = case.table.c
    await case.execute(engine, sa.update(case.table).where(c.user_id == 1).values(refresh_token="al1.broken"))
    await case.execute(engine, sa.update(case.table).where(c.user_id == 2).values(access_token="al9.later"))
    await case.execute(engine, sa.update(case.table).where(c.user_id == 3).values(account_id=None))
    kept = await case.keeping.keep_alive(engine, idle=MONTH)
    assert upkeep.KeptAlive(renewed=3, unreadable=2) == kept
    assert of(4, 5, 6) == Counter(case.provider.calls)


async def test_a_limit_counts_what_was_renewed_and_not_what_was_looked_at(engine: AsyncEngine) -> None:
    """Grants that are not idle, by their envelopes, do not use up the limit."""
    case = Idle(Provider())
    await case.fill(engine, 9)
    for user_id in range(1, 6):
        await case.linker.link(
            engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=TokenSet(access_token="new")
        )
    assert 3 == (await case.keeping.keep_alive(engine, idle=MONTH, limit=3)).renewed
    assert 1 == (await case.keeping.keep_alive(engine, idle=MONTH, limit=3)).renewed


async def test_keys_may_be_rotated_meanwhile(engine: AsyncEngine) -> None:
    """A row that was sealed anew after its page was read is renewed all the same."""
    case = Idle(Provider(), vault=CredentialVault(keys=[OLD_KEY]))
    await case.fill(engine, 4)
    newer = case.other_linker(vault=CredentialVault(keys=[KEY, OLD_KEY]))
    keeping = case.other_linker(
        vault=CredentialVault(keys=[KEY, OLD_KEY]), refresher=case.provider, refreshes=case.states
    )
    renew = case.provider.renew

    async def renew_and_rotate(provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        if not case.provider.calls:
            async for _ in rotate_keys(engine, newer):
                pass
        return await renew(provider, tokens, deadline=deadline)

    case.provider.renew = renew_and_rotate  # type: ignore[method-assign]
    assert 4 == (await keeping.keep_alive(engine, idle=MONTH)).renewed
    assert of(1, 2, 3, 4) == Counter(case.provider.calls)


async def test_a_cancelled_turn_lets_what_is_under_way_end(engine: AsyncEngine) -> None:
    case = Idle(Provider())
    await case.fill(engine, 3)
    case.provider.answers.clear()
    turn = asyncio.create_task(case.keeping.keep_alive(engine, idle=MONTH))
    await case.provider.asked.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    case.provider.answers.set()
    await case.keeping.aclose()
    async with engine.connect() as connection:
        kept = await connection.scalar(sa.select(sa.func.count()).where(case.states.c.refreshed_at.is_not(None)))
    assert len(case.provider.calls) == kept


async def test_a_key_that_cannot_be_had_gives_the_lease_back(engine: AsyncEngine) -> None:
    """The source fails once the lease is taken: no token is presented, and the next caller need not wait."""

    class Failing:
        async def current(self) -> VaultKey:
            raise OSError("the key service is away")

        async def get(self, key_id: str) -> VaultKey | None:
            return VaultKey(secret=KEY)

    case = Idle(Provider())
    await case.fill(engine, 1, expires_at=datetime.now(UTC) - timedelta(seconds=5))
    broken = case.other_linker(refresher=case.provider, refreshes=case.states, vault=CredentialVault(source=Failing()))
    with pytest.raises(OSError, match="away"):
        await broken.credentials(engine, user_id=1, provider="acme")
    assert [] == case.provider.calls
    async with engine.connect() as connection:
        lease = (await connection.execute(sa.select(case.states.c.lease_by, case.states.c.uncertain))).one()
    assert (None, False) == tuple(lease)
    await case.keeping.credentials(engine, user_id=1, provider="acme")
    assert of(1) == Counter(case.provider.calls)


# -- listing ----------------------------------------------------------------------------------------------------------


async def test_each_link_that_does_not_work_is_listed_once(engine: AsyncEngine) -> None:
    """Over pages, without the states of links that are gone, and of ids that the column does not take."""
    case = Idle(Provider())
    await case.fill(engine, 11)
    case.provider.fails = [GrantEnded("invalid_grant") for _ in range(11)]
    assert 11 == (await case.keeping.keep_alive(engine, idle=MONTH)).ended
    await case.linker.unlink(engine, user_id=3, link_id=3)
    name = sa.select(case.states.c.table_name).limit(1).scalar_subquery()
    for text in ("", "0x", "zzz", str(uuid4())):
        odd = {"table_name": name, "link_id": text, "grant_id": "g", "state": "needs_consent"}
        await case.execute(engine, sa.insert(case.states).values(odd))
    found = [link_id async for link_id, health in case.keeping.unhealthy(engine) if health.provider_code]
    assert [1, 2, *range(4, 12)] == sorted(found)
    assert [] == [each async for each in case.keeping.unhealthy(engine, state=HealthState.FAILING)]


class FromAccess(Provider):
    """A provider that renews from the access token."""

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        return tokens.refresh_token is None

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        self.calls.append(tokens.access_token.reveal())
        if self.fails:
            raise self.fails.pop(0)
        return TokenSet(access_token=f"new-{len(self.calls)}", expires_at=datetime.now(UTC) + timedelta(hours=1))


async def told(linker: AccountLinker[Any, Any], engine: AsyncEngine, *users: int) -> dict[int, HealthState]:
    """What ``health`` says of each user's one link. ``unhealthy`` lists those that are ill, and no other."""
    health: dict[Any, Any] = {}
    said = {}
    for user_id in users:
        mine = await linker.health(engine, user_id=user_id)
        health |= mine
        for each in mine.values():
            said[user_id] = each.state
    ill = {link_id: each for link_id, each in health.items() if each.state is not HealthState.OK}
    listed = [each async for each in linker.unhealthy(engine)]
    assert ill == dict(listed)
    assert len(ill) == len(listed)
    for state in (HealthState.FAILING, HealthState.NEEDS_CONSENT):
        found = {link_id: each async for link_id, each in linker.unhealthy(engine, state=state)}
        assert {link_id: each for link_id, each in ill.items() if each.state is state} == found
    return said


@pytest.mark.parametrize("nulls", [True, False], ids=["null", "empty text"])
async def test_health_and_the_list_say_what_credentials_says(engine: AsyncEngine, nulls: bool) -> None:
    """Links without a token, or with one that is over and that nothing renews, need their users, too."""
    case = Idle(Provider(), nulls=nulls)
    over, later = datetime.now(UTC) - timedelta(seconds=5), datetime.now(UTC) + timedelta(hours=1)
    await case.fill(engine, 0)
    given = {
        1: TokenSet(access_token="a", refresh_token="refresh-of-1", expires_at=later),
        2: None,
        3: TokenSet(access_token="a", expires_at=over),
        4: TokenSet(access_token="a", refresh_token="refresh-of-4", expires_at=over),
        5: TokenSet(access_token="a", refresh_token="refresh-of-5", expires_at=later),
        6: TokenSet(access_token="a", expires_at=later),
        7: TokenSet(access_token="a"),
        8: TokenSet(access_token="a", refresh_token="refresh-of-8", expires_at=over),
        9: TokenSet(access_token="a", refresh_token="refresh-of-9", expires_at=over),
        10: None,
    }
    links = {}
    for user_id, tokens in given.items():
        linked = await case.linker.link(
            engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=tokens
        )
        assert isinstance(linked, Linked)
        links[user_id] = linked.account.id
    await case.linker.unlink(engine, user_id=10, link_id=links[10])
    columns = case.linker.mapping.columns
    gone = {columns["access_token"]: None if nulls else ""}
    await case.execute(engine, sa.update(case.table).where(columns["user_id"] == 5).values(gone))
    for user_id, failure in ((8, GrantEnded("invalid_grant")), (9, ProviderUnavailable())):
        case.provider.fails = [failure]
        with pytest.raises(NeedsConsent if user_id == 8 else RefreshUnavailable):
            await case.keeping.credentials(engine, user_id=user_id, link_id=links[user_id])
    said = await told(case.keeping, engine, *given)
    assert {2, 3, 5, 8} == {user_id for user_id, state in said.items() if state is HealthState.NEEDS_CONSENT}
    assert [9] == [user_id for user_id, state in said.items() if state is HealthState.FAILING]
    assert {1, 4, 6, 7} == {user_id for user_id, state in said.items() if state is HealthState.OK}
    for user_id in (1, 4, 6, 7):
        await case.keeping.credentials(engine, user_id=user_id, link_id=links[user_id])
    for user_id in (2, 3, 5, 8):
        with pytest.raises(NeedsConsent):
            await case.keeping.credentials(engine, user_id=user_id, link_id=links[user_id])


async def test_a_refresher_may_renew_from_the_access_token(engine: AsyncEngine) -> None:
    """Then a link without a refresh token works, and its grant is kept alive."""
    case = Idle(FromAccess())
    over = datetime.now(UTC) - timedelta(seconds=5)
    await case.fill(engine, 6, refresh_token=None, expires_at=over)
    columns = case.linker.mapping.columns
    damaged = {columns["access_token"]: "al1.broken"}
    await case.execute(engine, sa.update(case.table).where(columns["user_id"] == 2).values(damaged))
    none = {columns["access_token"]: None}
    await case.execute(engine, sa.update(case.table).where(columns["user_id"] == 3).values(none))
    said = await told(case.keeping, engine, *range(1, 7))
    assert [3] == [user_id for user_id, state in said.items() if state is not HealthState.OK]
    assert "new-1" == (await case.keeping.credentials(engine, user_id=1, link_id=1)).access_token.reveal()
    case.provider.fails = [ProviderUnavailable()]
    kept = await case.keeping.keep_alive(engine, idle=MONTH)
    assert upkeep.KeptAlive(renewed=2, failed=1, unreadable=1) == kept
    said = await told(case.keeping, engine, *range(1, 7))
    assert Counter(ok=4, needs_consent=1, failing=1) == Counter(state.value for state in said.values())


@pytest.mark.parametrize("refresher", [Provider, FromAccess])
@pytest.mark.parametrize("ends", [sa.Integer, sa.DateTime, None], ids=["seconds", "naive", "no column"])
async def test_tables_with_fewer_columns_or_other_moments(engine: AsyncEngine, ends: Any, refresher: Any) -> None:
    """Without a column for refresh tokens, or for the end of a token; with its end in seconds, or without a zone."""
    metadata = sa.MetaData()
    table = sa.Table(
        "short_connections",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("access_token", sa.Text),
        *([] if ends is None else [sa.Column("expires_at", ends)]),
    )
    mapping: Any = AccountMapping(table, policy=PER_USER)
    vault = CredentialVault(keys=[KEY], plaintext=Plaintext.READ)
    keeping: AccountLinker[Any, Any] = AccountLinker(
        mapping, secrets=SECRETS, vault=vault, refresher=refresher(), refreshes=refresh_states(metadata)
    )
    await create(engine, metadata)
    now = datetime.now(UTC)
    for user_id, span in ((1, -5), (2, 3600), (3, -5), (4, None)):
        ended = None if span is None or ends is None else now + timedelta(seconds=span)
        tokens = None if user_id == 4 else TokenSet(access_token="a", expires_at=ended)
        await keeping.link(engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=tokens)
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).where(table.c.user_id == 3).values(access_token="plain text"))
    said = await told(keeping, engine, 1, 2, 3, 4)
    over = [1, 3] if refresher is Provider and ends is not None else []
    assert [*over, 4] == [user_id for user_id, state in said.items() if state is HealthState.NEEDS_CONSENT]


class Sixteen(sa.TypeDecorator[UUID]):
    """UUIDs in a column of bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> UUID | None:
        return None if value is None else UUID(bytes=bytes(value))


_DAYS = count(1)
ID_TYPES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "uuid": (sa.Uuid(), uuid4),
    "digits": (sa.Uuid(native_uuid=False), uuid4),
    "text": (sa.Text(), lambda: str(uuid4())),
    "bytes": (sa.LargeBinary(), lambda: uuid4().bytes),
    "uuid in bytes": (Sixteen(), uuid4),
    "date": (sa.Date(), lambda: date(2026, 1, 1) + timedelta(days=next(_DAYS))),
    "moment": (sa.DateTime(timezone=True), lambda: datetime.now(UTC)),
}


@pytest.mark.parametrize("name", ID_TYPES)
async def test_ids_of_any_type_are_paged(engine: AsyncEngine, name: str) -> None:
    """Also bytes and moments, whose text does not bring them back; in a table that knows no moment of a link."""
    metadata = sa.MetaData()
    id_type, made = ID_TYPES[name]
    table = sa.Table(
        "odd_connections",
        metadata,
        sa.Column("id", id_type, primary_key=True, default=made),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("access_token", "refresh_token")),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
    )
    states, provider = refresh_states(metadata), Provider()
    mapping: Any = AccountMapping(table, policy=PER_USER)
    keeping: AccountLinker[Any, Any] = AccountLinker(
        mapping, secrets=SECRETS, vault=CredentialVault(keys=[KEY]), refresher=provider, refreshes=states,
        clock=lambda: datetime.now(UTC) - timedelta(days=40),
    )  # fmt: skip
    await create(engine, metadata)
    for user_id in range(1, 10):
        given = TokenSet(access_token="a", refresh_token=f"refresh-of-{user_id}")
        await keeping.link(engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=given)
    provider.fails = [GrantEnded("invalid_grant"), ProviderUnavailable()]
    assert upkeep.KeptAlive(renewed=7, ended=1, failed=1) == await keeping.keep_alive(engine, idle=MONTH)
    assert of(*range(1, 10)) == Counter(provider.calls)
    said = await told(keeping, engine, *range(1, 10))
    assert Counter(ok=7, needs_consent=1, failing=1) == Counter(state.value for state in said.values())
    assert upkeep.KeptAlive() == await keeping.keep_alive(engine, idle=MONTH)
