"""Backfill and rotation of keys: every row is sealed as it should be, and nothing else of it moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from itertools import count, repeat
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import (
    AccountLinker,
    AccountMapping,
    ConfigurationError,
    CredentialVault,
    Key,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Removal,
    TokenSet,
    Transferred,
    VaultKey,
    tune_sqlite,
)
from accountlink.vault import rotation
from accountlink.vault.rotation import Mode, Progress, Unreadable, backfill, rotate_keys
from tests.contract.test_ids_as_text import Digits
from tests.support.databases import Database, create, run_sql
from tests.support.mapped import TABLES
from tests.support.models import EXCLUSIVE, POLICIES, identity, tokens
from tests.support.vaulted import KEY, OLD_KEY, Vaulted

OLD: Final = CredentialVault(keys=[OLD_KEY])
BOTH: Final = CredentialVault(keys=[KEY, OLD_KEY])
NEW: Final = CredentialVault(keys=[KEY])
Run = Callable[..., AsyncGenerator[Progress, None]]


async def ended(steps: AsyncGenerator[Progress, None]) -> Progress:
    """Run to the end, and return the last progress."""
    return [progress async for progress in steps][-1]


async def linked(linker: AccountLinker[Any, Any], engine: AsyncEngine, number: int, **options: Any) -> Any:
    """Link a user of this number to an account of this number."""
    credentials = tokens(f"access-{number}", f"refresh-{number}")
    given: dict[str, Any] = {"identity": identity(f"sub-{number}"), "credentials": credentials} | options
    return await linker.link(engine, user_id=number, **given)


async def everything(engine: AsyncEngine, table: sa.Table) -> list[dict[str, Any]]:
    """Read all columns but those of tokens."""
    async with engine.connect() as connection:
        rows = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
        return [{k: v for k, v in row._mapping.items() if k not in {"access_token", "refresh_token"}} for row in rows]


async def write(engine: AsyncEngine, table: sa.Table, user_id: Any, /, **values: Any) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).where(table.c.user_id == user_id).values(**values))


def ids_in(text: str | None) -> list[str]:
    """Return the key id and the grant id of an envelope."""
    assert text is not None
    return text.split(".")[1:3]


# -- what becomes of each row -----------------------------------------------------------------------------------------


@pytest.mark.each_driver
@pytest.mark.parametrize("policy", POLICIES)
async def test_rotation_seals_with_the_newest_key(engine: AsyncEngine, policy: str) -> None:
    """Every token is readable without the older key, its grant id is as before, and nothing else of a row moves."""
    vaulted = await Vaulted(POLICIES[policy], vault=OLD, pending=False).create(engine)
    for number in range(1, 6):
        await linked(vaulted.linker, engine, number)
    before, grants = await everything(engine, vaulted.table), await vaulted.column(engine, "access_token")
    rotated = await ended(rotate_keys(engine, vaulted.other_linker(vault=BOTH), batch_size=2))
    assert Progress(scanned=5, due=5, sealed=5) == rotated
    assert before == await everything(engine, vaulted.table)
    sealed = await vaulted.column(engine, "access_token", "refresh_token")
    for (old,), (access, refresh) in zip(grants, sealed, strict=True):
        assert [VaultKey(secret=KEY).id, ids_in(old)[1]] == ids_in(access) == ids_in(refresh)
    new = vaulted.other_linker(vault=NEW)
    for number in range(1, 6):
        stored = await new.stored_credentials(engine, user_id=number, provider="acme")
        assert tokens(f"access-{number}", f"refresh-{number}") == stored


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_backfill_seals_plain_text(engine: AsyncEngine, policy: str) -> None:
    """Plain text becomes envelopes of one grant, although this vault refuses to read plain text."""
    vaulted = await Vaulted(POLICIES[policy], pending=False).create(engine)
    plain = AccountLinker(vaulted.tables.Connection)
    for number in range(1, 6):
        await linked(plain, engine, number)
    before = await everything(engine, vaulted.table)
    assert Progress(scanned=5, due=5, sealed=5) == await ended(backfill(engine, vaulted.linker, batch_size=2))
    assert before == await everything(engine, vaulted.table)
    pairs = [ids_in(access) for access, _ in await vaulted.column(engine, "access_token", "refresh_token")]
    assert pairs == [ids_in(refresh) for _, refresh in await vaulted.column(engine, "access_token", "refresh_token")]
    assert 5 == len({grant for _, grant in pairs})
    for number in range(1, 6):
        stored = await vaulted.linker.stored_credentials(engine, user_id=number, provider="acme")
        assert tokens(f"access-{number}", f"refresh-{number}") == stored
    assert Progress(scanned=5, due=0) == await ended(backfill(engine, vaulted.linker))


async def test_nobody_knows_when_plain_text_was_obtained(engine: AsyncEngine) -> None:
    vaulted = await Vaulted(pending=False).create(engine)
    await linked(AccountLinker(vaulted.tables.Connection), engine, 1)
    await ended(backfill(engine, vaulted.linker))
    found = vaulted.linker._stored
    assert found is not None
    ((text,),) = await vaulted.column(engine, "access_token")
    bound_to = found.vault.bound_to(user_id=1, provider="acme", account_key="sub-1")
    access = await found.vault.access_token(text, bound_to)
    assert access is not None
    assert (None, {}, "Bearer") == (access.issued_at, dict(access.extra), access.type)


async def test_dead_rows_that_still_hold_tokens_are_sealed(engine: AsyncEngine) -> None:
    """Another program marked the row as dead, and left its tokens there."""
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    await linked(vaulted.linker, engine, 1)
    await linked(AccountLinker(vaulted.tables.Connection), engine, 2)
    await write(engine, vaulted.table, 1, deleted_at=datetime(2026, 1, 1))  # noqa: DTZ001  # as it stands there
    await write(engine, vaulted.table, 2, deleted_at=datetime(2026, 1, 1))  # noqa: DTZ001  # as it stands there
    linker = vaulted.other_linker(vault=BOTH)
    assert 1 == (await ended(rotate_keys(engine, linker))).sealed
    assert 1 == (await ended(backfill(engine, linker))).sealed
    key = VaultKey(secret=KEY).id
    assert {key} == {ids_in(access)[0] for (access,) in await vaulted.column(engine, "access_token")}


@pytest.mark.parametrize("text", ["al1.", "al1.broken", "al2.future", "al10.far.future"])
async def test_text_that_begins_as_an_envelope_is_never_sealed_twice(engine: AsyncEngine, text: str) -> None:
    """A backfill leaves it, and a rotation names the row."""
    vaulted = await Vaulted(vault=BOTH, pending=False).create(engine)
    link_id = (await linked(vaulted.linker, engine, 1)).account.id
    await write(engine, vaulted.table, 1, access_token=text)
    assert (0, 0) == ((end := await ended(backfill(engine, vaulted.linker))).sealed, end.left)
    end = await ended(rotate_keys(engine, vaulted.linker))
    reason = "malformed" if text.startswith("al1.") else "unknown_format"
    assert (0, (Unreadable(table="connections", link_id=link_id, reason=reason),)) == (end.sealed, end.unreadable)
    assert [(text,)] == await vaulted.column(engine, "access_token")


@pytest.mark.parametrize("text", ["al", "al.x", "alx1.x", "AL1.x", " al1.x", "al1", "al１.x"])  # noqa: RUF001  # a digit
async def test_text_that_only_looks_similar_is_plain(engine: AsyncEngine, text: str) -> None:
    vaulted = await Vaulted(vault=BOTH, pending=False).create(engine)
    await linked(vaulted.linker, engine, 1)
    await write(engine, vaulted.table, 1, access_token=text)
    assert (0, 0) == ((end := await ended(rotate_keys(engine, vaulted.linker))).sealed, end.left)
    assert (1, 0) == ((end := await ended(backfill(engine, vaulted.linker))).sealed, end.left)
    stored = await vaulted.linker.stored_credentials(engine, user_id=1, provider="acme")
    assert (text, "refresh-1") == (stored.access_token.reveal(), stored.refresh_token and stored.refresh_token.reveal())


async def test_rows_that_cannot_be_read_are_named_and_left(engine: AsyncEngine) -> None:
    """One row's fault keeps no other row from being sealed; the other column of the row is sealed, too."""
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    lost = vaulted.other_linker(vault=CredentialVault(keys=[bytes(32)]))
    ids = [(await linked(lost if number == 2 else vaulted.linker, engine, number)).account.id for number in range(1, 6)]
    access, refresh = (await vaulted.column(engine, "access_token", "refresh_token"))[2]
    await write(engine, vaulted.table, 4, access_token=access)
    await write(engine, vaulted.table, 5, access_token=refresh[:-1] + ("A" if refresh[-1] != "A" else "Q"))
    end = await ended(rotate_keys(engine, vaulted.other_linker(vault=BOTH), batch_size=2))
    assert (4, 0, 3) == (end.sealed, end.waiting, end.left)
    reasons = [(each.link_id, each.reason) for each in end.unreadable]
    assert [(ids[1], "unknown_key"), (ids[3], "not_authentic"), (ids[4], "not_authentic")] == reasons
    new = vaulted.other_linker(vault=NEW)
    for number in (1, 3):
        await new.stored_credentials(engine, user_id=number, provider="acme")
    newest = VaultKey(secret=KEY).id
    assert [newest] * 2 == [ids_in(text)[0] for (text,) in (await vaulted.column(engine, "refresh_token"))[3:]]


async def test_a_dry_run_counts_and_writes_nothing(engine: AsyncEngine) -> None:
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    lost = vaulted.other_linker(vault=CredentialVault(keys=[bytes(32)]))
    for number in range(1, 6):
        await linked(lost if number == 2 else vaulted.linker, engine, number)
    before = await vaulted.column(engine, "access_token", "refresh_token")
    linker = vaulted.other_linker(vault=BOTH)
    end = await ended(rotate_keys(engine, linker, mode=Mode.COUNT, batch_size=2))
    assert (5, 5, 0, 4, 1) == (end.scanned, end.due, end.sealed, end.waiting, len(end.unreadable))
    assert before == await vaulted.column(engine, "access_token", "refresh_token")
    assert 0 == (await ended(backfill(engine, linker, mode=Mode.COUNT))).left


# -- pending credentials ----------------------------------------------------------------------------------------------


async def test_pending_credentials_are_sealed_anew(engine: AsyncEngine) -> None:
    """A conflict before the rotation; after it, a transfer with the newest key alone."""
    vaulted = await Vaulted(vault=OLD).create(engine)
    vaulted.clock.now = datetime.now(vaulted.clock.now.tzinfo)
    await linked(vaulted.linker, engine, 1)
    held = {}
    for claimant in range(2, 7):
        conflict = await linked(vaulted.linker, engine, claimant, identity=identity("sub-1"))
        assert isinstance(conflict, OwnershipConflict)
        held[claimant] = conflict.transfer_token
    assert vaulted.pending is not None
    copy = sa.select(sa.literal("another_table"), *list(vaulted.pending.columns)[1:])
    async with engine.begin() as connection:
        await connection.execute(sa.insert(vaulted.pending).from_select(list(vaulted.pending.columns.keys()), copy))

    async def kept() -> list[Any]:
        rows = sorted(await vaulted.kept(engine))
        return [(row.table_name, row.user_id, row.kept_until, row.scopes, ids_in(row.access_token)[1]) for row in rows]

    before = await kept()
    end = await ended(rotate_keys(engine, vaulted.other_linker(vault=BOTH), batch_size=2))
    assert (6, 6, 0) == (end.scanned, end.sealed, end.left)
    assert before == await kept()
    keys = {(row.table_name, ids_in(row.access_token)[0]) for row in await vaulted.kept(engine)}
    assert {("connections", VaultKey(secret=KEY).id), ("another_table", VaultKey(secret=OLD_KEY).id)} == keys
    newest = vaulted.other_linker(vault=NEW)
    moved = await newest.transfer(engine, str(held[4]), user_id=4)
    assert isinstance(moved, Transferred)
    assert tokens("access-4", "refresh-4") == await newest.stored_credentials(engine, user_id=4, provider="acme")


async def test_pending_credentials_that_cannot_be_read_are_counted(engine: AsyncEngine) -> None:
    """They have no link's id, and their key would show a user and an account. Those that are over do not count."""
    vaulted = await Vaulted(vault=OLD).create(engine)
    await linked(vaulted.linker, engine, 1, credentials=None)
    await linked(vaulted.linker, engine, 2, identity=identity("sub-1"))
    linker = vaulted.other_linker(vault=NEW)
    assert (1, 0) == ((end := await ended(rotate_keys(engine, linker))).scanned, end.left)
    vaulted.clock.now = datetime.now(vaulted.clock.now.tzinfo)
    await linked(vaulted.linker, engine, 2, identity=identity("sub-1"))
    end = await ended(rotate_keys(engine, linker))
    lost = Unreadable(table="accountlink_pending_credentials", link_id=None, reason="unknown_key")
    assert (lost,) == end.unreadable


# -- every table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("mixin")])
async def test_mapped_tables(engine: AsyncEngine, kind: str, name: str) -> None:
    """Names, types and keys of the application's own; what the ORM or Core would write on each update stays."""
    links = TABLES[name](kind)
    await links.create(engine)
    mapping, table = links.mapping, links.mapping.table
    secret = {mapping.columns[role].name for role in ("access_token", "refresh_token")}
    old, both, new = (links.linker(vault=vault) for vault in (OLD, BOTH, NEW))
    for number in range(1, 6):
        credentials = tokens(f"access-{number}", f"refresh-{number}" if number % 2 else None)
        linker = links.linker() if number < 3 else old
        await linker.link(engine, user_id=links.user(number), identity=identity(f"s{number}"), credentials=credentials)

    async def others() -> list[Any]:
        async with engine.connect() as connection:
            columns = [column for column in table.columns if column.name not in secret]
            return sorted(map(repr, await connection.execute(sa.select(*columns))))

    before = await others()
    filled = await ended(backfill(engine, both, batch_size=2))
    rotated = await ended(rotate_keys(engine, both, batch_size=2))
    assert [(2, 0), (3, 0)] == [(end.sealed, end.left) for end in (filled, rotated)]
    assert before == await others()
    for number in range(1, 6):
        stored = await new.stored_credentials(engine, user_id=links.user(number), provider="acme")
        assert tokens(f"access-{number}", f"refresh-{number}" if number % 2 else None) == stored


IDS: Final[dict[str, tuple[Any, Callable[[int], Any]]]] = {
    "uuid": (sa.Uuid(), lambda _: uuid4()),
    "uuid-in-text": (sa.Uuid(as_uuid=False), lambda _: str(uuid4())),
    "digits": (Digits(), lambda _: uuid4()),
    "text": (sa.Text(), lambda number: f"Id {number} é_%"),
    "negative": (sa.BigInteger(), lambda number: 3 - number),
    "number": (sa.Numeric(20, 0), Decimal),
    "fraction": (sa.Numeric(20, 5), lambda number: Decimal(number) / 8),
    "bytes": (sa.LargeBinary(), lambda number: bytes([255 - number])),
    "moment": (sa.DateTime(), lambda number: datetime(2026, 1, 1, 0, 0, 0, number)),  # noqa: DTZ001  # an id
    "char": (sa.CHAR(9), lambda number: f"id {number}"),
}


@pytest.mark.parametrize("id_type", IDS)
async def test_each_type_of_link_id(engine: AsyncEngine, id_type: str) -> None:
    """Batches follow one another in the database's own order of the ids, whatever that is."""
    column, make = IDS[id_type]
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", column, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("user_id", "provider", "account_id", "access_token")),
        sa.UniqueConstraint("provider", "account_id"),
    )
    await create(engine, table.metadata)
    async with engine.begin() as connection:
        for number in range(5):
            row = {"user_id": "ann", "provider": "acme", "account_id": f"sub-{number}", "access_token": f"a-{number}"}
            await connection.execute(sa.insert(table).values(id=make(number), **row))
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=EXCLUSIVE), vault=NEW)
    end = await ended(backfill(engine, linker, batch_size=2))
    assert (5, 5, 0) == (end.scanned, end.sealed, end.left)
    for account in await linker.accounts(engine, user_id="ann"):
        stored = await linker.stored_credentials(engine, user_id="ann", link_id=account.id)
        assert f"a-{str(account.account_id)[4:]}" == stored.access_token.reveal()


async def test_a_row_without_an_account_and_one_without_room_are_left(engine: AsyncEngine) -> None:
    """Nothing can be bound to a missing e-mail key; an envelope that a column cuts off would be lost."""
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer),
        sa.Column("provider", sa.Enum("acme", "other", name="vendors", native_enum=False, create_constraint=False)),
        sa.Column("email", sa.Text),
        sa.Column("email_key", sa.Text),
        sa.Column("access_token", sa.String(8192)),
        sa.UniqueConstraint("user_id", "provider", "email_key"),
    )
    await create(engine, table.metadata)
    await run_sql(
        engine,
        "INSERT INTO links (id, user_id, provider, email_key, access_token) VALUES (1, 1, 'acme', NULL, 'a'), "
        f"(2, 2, 'gone', 'b', 'b'), (3, 3, 'acme', 'c', '{'c' * 6500}'), (4, 4, 'acme', 'd', 'd')",
    )
    policy = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.DELETE)
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=policy), vault=NEW)
    end = await ended(backfill(engine, linker))
    assert 1 == end.sealed
    assert [(1, "no_account"), (2, "no_account"), (3, "too_long")] == [(u.link_id, u.reason) for u in end.unreadable]


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_translated_schema(database: Database) -> None:
    """Only the rows of one tenant are sealed, also those of pending credentials."""
    # What is compiled for a map without None cannot serve one with it, so this engine shares nothing with other tests.
    engine = database.engine(pool_pre_ping=False)
    vaulted = Vaulted(vault=OLD)
    vaulted.clock.now = datetime.now(vaulted.clock.now.tzinfo)
    tenants = []
    for name in ("one", "two"):
        await run_sql(engine, f"DROP SCHEMA IF EXISTS tenant_{name} CASCADE", f"CREATE SCHEMA tenant_{name}")
        tenants.append(engine.execution_options(schema_translate_map={None: f"tenant_{name}"}))
        await create(tenants[-1], vaulted.tables.metadata)
        await linked(vaulted.linker, tenants[-1], 1)
        await linked(vaulted.linker, tenants[-1], 2, identity=identity("sub-1"))
    assert 2 == (await ended(rotate_keys(tenants[1], vaulted.other_linker(vault=BOTH)))).sealed
    old, newest = VaultKey(secret=OLD_KEY).id, VaultKey(secret=KEY).id
    found = [ids_in((await vaulted.column(tenant, "access_token"))[0][0])[0] for tenant in tenants]
    kept = [ids_in((await vaulted.kept(tenant))[0].access_token)[0] for tenant in tenants]
    assert [old, newest] == found == kept


# -- while the application runs ---------------------------------------------------------------------------------------


class Meanwhile:
    """A source of keys whose first answer takes its time: after a batch was read, and before the batch is written."""

    def __init__(self, happens: Callable[[], Awaitable[object]], *, always: bool = False) -> None:
        self._keys = {key.id: key for key in (VaultKey(secret=KEY), VaultKey(secret=OLD_KEY))}
        self._happens: Callable[[], Awaitable[object]] | None = happens
        self._always = always

    async def current(self) -> VaultKey:
        return self._keys[VaultKey(secret=KEY).id]

    async def get(self, key_id: str) -> VaultKey | None:
        if self._happens is not None:
            happens = self._happens
            self._happens = happens if self._always else None
            await happens()
        return self._keys.get(key_id)


Happens = Callable[[Vaulted, AsyncEngine, Any], Awaitable[object]]
CHANGED: Final = TokenSet(access_token="changed")


async def unlinked(vaulted: Vaulted, engine: AsyncEngine, link_id: Any) -> None:
    await vaulted.linker.unlink(engine, user_id=1, link_id=link_id)


async def restored(vaulted: Vaulted, engine: AsyncEngine, link_id: Any) -> None:
    await unlinked(vaulted, engine, link_id)
    await linked(vaulted.linker, engine, 1, credentials=CHANGED)


async def transferred(vaulted: Vaulted, engine: AsyncEngine, _: Any) -> None:
    conflict = await linked(vaulted.linker, engine, 9, identity=identity("sub-1"))
    await vaulted.linker.transfer(engine, conflict.transfer_token, user_id=9)


async def deleted(vaulted: Vaulted, engine: AsyncEngine, link_id: Any) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.delete(vaulted.table).where(vaulted.table.c.id == link_id))


MEANWHILE: Final[dict[str, tuple[Happens, int, str | None]]] = {
    "relink": (lambda v, engine, _: linked(v.linker, engine, 1, credentials=CHANGED), 1, "changed"),
    "replace": (
        lambda v, engine, link_id: v.linker.replace_credentials(
            engine, user_id=1, link_id=link_id, tokens=CHANGED, presented="refresh-1"
        ),
        1,
        "changed",
    ),
    "restore": (restored, 1, "changed"),
    "transfer": (transferred, 9, "access-9"),
    "new-link": (lambda v, engine, _: linked(v.linker, engine, 9, credentials=CHANGED), 9, "changed"),
    "unlink": (unlinked, 1, None),
    "delete": (deleted, 1, None),
    "another-user": (lambda v, engine, _: write(engine, v.table, 1, user_id=9), 9, None),
}
"""What the application does with the old key, as a server that has not been restarted yet; the user who has the link
then, and its access token, if it has one that can be read."""


@pytest.mark.parametrize("what", MEANWHILE)
async def test_what_happens_between_reading_and_writing_stays(engine: AsyncEngine, what: str) -> None:
    """The row has what the application wrote, and its user can read it; all other rows are sealed."""
    vaulted = await Vaulted(vault=OLD).create(engine)
    vaulted.clock.now = datetime.now(vaulted.clock.now.tzinfo)
    ids = {number: (await linked(vaulted.linker, engine, number)).account.id for number in range(1, 4)}
    happens, user_id, access = MEANWHILE[what]
    source = Meanwhile(lambda: happens(vaulted, engine, ids[1]))
    end = await ended(rotate_keys(engine, vaulted.other_linker(vault=CredentialVault(source=source))))
    new = vaulted.other_linker(vault=NEW)
    for number in (2, 3):
        expected = tokens(f"access-{number}", f"refresh-{number}")
        assert expected == await new.stored_credentials(engine, user_id=number, provider="acme")
    lost = [(ids[1], "not_authentic")] if what == "another-user" else []  # bound to the user that the row had
    assert lost == [(each.link_id, each.reason) for each in end.unreadable]
    assert 0 == end.waiting
    if access is not None:
        stored = await new.stored_credentials(engine, user_id=user_id, provider="acme")
        assert access == stored.access_token.reveal()
    elif what != "another-user":
        rows = {row[0]: row[1:] for row in await vaulted.column(engine, "id", "access_token", "refresh_token")}
        assert (None, None) == rows.get(ids[1], (None, None))


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_an_engine_of_another_isolation(database: Database, level: str) -> None:
    """Each batch sees what was committed before it, whatever the engine's own isolation."""
    engine = database.engine(isolation_level=level)
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    for number in (1, 2):
        await linked(vaulted.linker, engine, number)
    source = Meanwhile(lambda: linked(vaulted.linker, engine, 1, credentials=CHANGED))
    end = await ended(rotate_keys(engine, vaulted.other_linker(vault=CredentialVault(source=source))))
    assert (2, 0) == (end.sealed, end.left)
    stored = await vaulted.other_linker(vault=NEW).stored_credentials(engine, user_id=1, provider="acme")
    assert "changed" == stored.access_token.reveal()


@pytest.mark.parametrize("rows", ["one", "others"])
async def test_what_old_servers_keep_writing_is_counted(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    """A rotation gives up on rows that are written with an older key again and again, and says so."""
    monkeypatch.setattr(rotation, "_PAUSE", 0)
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    for number in (1, 2):
        await linked(vaulted.linker, engine, number)
    numbers = repeat(1) if rows == "one" else count(3)
    source = Meanwhile(lambda: linked(vaulted.linker, engine, next(numbers)), always=True)
    end = await ended(rotate_keys(engine, vaulted.other_linker(vault=CredentialVault(source=source))))
    sealed = 1 if rows == "one" else 6  # by five scans, the first of which finds two rows
    assert (2, sealed, 1, 1, ()) == (end.due, end.sealed, end.waiting, end.left, end.unreadable)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_locked_row_is_left_for_later(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the application's lock, and nobody can end in a deadlock; a scan after it seals the row."""
    monkeypatch.setattr(rotation, "_PAUSE", 0)
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    for number in (1, 2, 3):
        await linked(vaulted.linker, engine, number)
    linker = vaulted.other_linker(vault=BOTH)
    async with engine.begin() as connection:
        await connection.execute(sa.select(vaulted.table).where(vaulted.table.c.user_id == 2).with_for_update())
        async with asyncio.timeout(10):
            end = await ended(rotate_keys(engine, linker))
        assert (2, 1, 1) == (end.sealed, end.waiting, end.left)
    assert (1, 0) == ((end := await ended(rotate_keys(engine, linker))).sealed, end.left)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_busy_sqlite_database_is_left_for_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes no write lock; a batch that cannot be written is found by the next scan."""
    monkeypatch.setattr(rotation, "_PAUSE", 0)
    engine = database.engine()
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    await linked(vaulted.linker, engine, 1)
    other = tune_sqlite(create_async_engine(database.url), busy_timeout=1)
    async with engine.begin():
        end = await ended(rotate_keys(other, vaulted.other_linker(vault=BOTH)))
    assert (0, 1) == (end.sealed, end.waiting)
    assert (1, 0) == ((end := await ended(rotate_keys(other, vaulted.other_linker(vault=BOTH)))).sealed, end.left)
    await other.dispose()


# -- what it says, and what it refuses --------------------------------------------------------------------------------


async def test_nothing_shows_a_token(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """SQLAlchemy logs each statement with its parameters and each row that comes back."""
    caplog.set_level(logging.DEBUG)
    engine = database.engine(echo="debug")
    vaulted = await Vaulted(pending=False).create(engine)
    await linked(AccountLinker(vaulted.tables.Connection), engine, 1)
    caplog.clear()
    steps = [progress async for progress in backfill(engine, vaulted.linker)]
    assert 1 == steps[-1].sealed
    assert "access_token" in caplog.text
    assert [] == [secret for secret in ("access-1", "refresh-1", "example.com") if secret in caplog.text + repr(steps)]


async def test_a_source_that_fails_reaches_the_caller(engine: AsyncEngine) -> None:
    """The rows stay as they are."""
    vaulted = await Vaulted(vault=OLD, pending=False).create(engine)
    await linked(vaulted.linker, engine, 1)
    before = await vaulted.column(engine, "access_token")

    async def happens() -> None:
        raise OSError("no way to the key management service")

    linker = vaulted.other_linker(vault=CredentialVault(source=Meanwhile(happens)))
    with pytest.raises(OSError, match="no way"):
        await ended(rotate_keys(engine, linker))
    assert before == await vaulted.column(engine, "access_token")


@pytest.mark.parametrize("run", [backfill, rotate_keys])
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_odd_arguments_are_refused(engine: AsyncEngine, run: Run) -> None:
    vaulted = Vaulted(pending=False)
    for options in (
        {"batch_size": 0},
        {"batch_size": 10_001},
        {"batch_size": True},
        {"batch_size": "5"},
        {"mode": "seal"},
    ):
        with pytest.raises(ConfigurationError):
            await ended(run(engine, vaulted.linker, **options))
    with pytest.raises(ConfigurationError, match="has no vault"):
        await ended(run(engine, AccountLinker(vaulted.tables.Connection)))
    with pytest.raises(ConfigurationError, match="takes a AsyncEngine"):
        await ended(run(engine.sync_engine, vaulted.linker))
    with pytest.raises(ConfigurationError, match="The database has no table 'connections'"):
        await ended(run(engine, vaulted.linker))
