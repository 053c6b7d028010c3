"""No outcome is about another account id, even if a column treats two spellings as equal."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from accountlink import (
    AccountLinker,
    AccountMapping,
    AccountMismatch,
    AlreadyOwner,
    BlockedByConstraint,
    Change,
    ConfigurationError,
    InvalidIdentity,
    LastAccount,
    Linked,
    LinkPolicy,
    OwnershipConflict,
    Removal,
    Transferred,
    link_outbox,
    transfer_ledger,
)
from tests.support.binds import bound
from tests.support.databases import Database, create, rows, run_sql
from tests.support.loose import Loose, LowerCase, loose_links, loose_type
from tests.support.models import (
    EMAIL,
    EMAIL_SOFT,
    EXCLUSIVE,
    EXCLUSIVE_SOFT,
    PER_USER,
    PER_USER_SOFT,
    POLICIES,
    SECRETS,
    identity,
    make_tables,
    tokens,
)

RULE = "key-compares-differently"
BY_ACCOUNT = {name: policy for name, policy in POLICIES.items() if "email" not in name}
LOOSE = [("sqlite", "nocase"), ("asyncpg", "icu"), ("asyncpg", "citext")]
each_loose = pytest.mark.parametrize(("kind", "loose"), LOOSE, ids=["nocase", "icu", "citext"])
each_policy = pytest.mark.parametrize("policy", BY_ACCOUNT.values(), ids=BY_ACCOUNT)
each_kind = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])


async def made(database: Database, policy: LinkPolicy, loose: str, **options: Any) -> Loose:
    engine = database.engine()
    return await loose_links(engine, policy, await loose_type(engine, loose), **options)


def is_blocked(caught: pytest.ExceptionInfo[BlockedByConstraint], *, by: str | None = "loose_key") -> None:
    assert (by, RULE) == (caught.value.constraint, caught.value.rule)


@each_loose
@each_policy
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_another_spelling_in_the_way_blocks(database: Database, loose: str, policy: LinkPolicy, how: str) -> None:
    """A row that only compares equal gives neither a conflict nor a success, and nothing is written."""
    links = await made(database, policy, loose)
    linker = links.linker()
    await linker.link(links.engine, user_id=1, identity=identity("abc123"), credentials=tokens())
    before = await links.stored()
    # Under PER_USER only the user's own rows are in the way.
    users = (1,) if policy in (PER_USER, PER_USER_SOFT) else (1, 2)
    for user in users:
        async with bound(links.engine, how) as bind:
            with pytest.raises(BlockedByConstraint) as caught:
                await linker.link(bind, user_id=user, identity=identity("AbC123"), credentials=tokens("thief", "thief"))
        is_blocked(caught)
    assert before == await links.stored()
    again = await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    assert isinstance(again, Linked)
    assert Change.UPDATED is again.change


@each_loose
async def test_signing_in_finds_no_other_spelling(database: Database, loose: str) -> None:
    """The holder of ``AbC123`` is never signed in as the owner of ``abc123``."""
    links = await made(database, EXCLUSIVE, loose)
    linker = links.linker()
    await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    assert await linker.find_owner(links.engine, provider="acme", account_id="AbC123") is None
    found = await linker.find_owner(links.engine, provider="acme", account_id="abc123")
    assert found is not None
    assert (1, "abc123") == (found.user_id, found.account_id)


@each_loose
@each_policy
async def test_the_exact_row_decides_where_no_index_forbids_two(
    database: Database, loose: str, policy: LinkPolicy
) -> None:
    """Without a unique index two spellings are two accounts, each with its own row and owner."""
    links = await made(database, policy, loose, index="none")
    linker = links.linker()
    first = await linker.link(links.engine, user_id=1, identity=identity("abc123"), credentials=tokens())
    second = await linker.link(links.engine, user_id=2, identity=identity("AbC123"), credentials=tokens("second"))
    assert isinstance(first, Linked)
    assert isinstance(second, Linked)
    assert first.account.id != second.account.id
    for account_id, linked in (("abc123", first), ("AbC123", second)):
        again = await linker.link(links.engine, user_id=linked.account.user_id, identity=identity(account_id))
        assert isinstance(again, Linked)
        assert (Change.UPDATED, linked.account.id, account_id) == (
            again.change,
            again.account.id,
            again.account.account_id,
        )
        if policy in (EXCLUSIVE, EXCLUSIVE_SOFT):
            found = await linker.find_owner(links.engine, provider="acme", account_id=account_id)
            assert found is not None
            assert linked.account.id == found.id


@each_loose
@pytest.mark.parametrize("policy", [EXCLUSIVE_SOFT, PER_USER_SOFT], ids=["exclusive", "per-user"])
async def test_a_dead_row_of_another_spelling_is_not_restored(
    database: Database, loose: str, policy: LinkPolicy
) -> None:
    """Another spelling beside a dead row is a new row; where an index counts the dead one, it is blocked."""
    links = await made(database, policy, loose)
    linker = links.linker()
    first = await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    assert isinstance(first, Linked)
    await linker.unlink(links.engine, user_id=1, link_id=first.account.id)
    dead = await links.stored()
    second = await linker.link(links.engine, user_id=1, identity=identity("AbC123"))
    assert isinstance(second, Linked)
    assert (Change.CREATED, "AbC123") == (second.change, second.account.account_id)
    assert dead == (await links.stored())[:1]


@each_loose
@pytest.mark.parametrize("how", ["engine", "repeatable"])
async def test_a_dead_row_of_another_spelling_under_a_full_index_blocks(
    database: Database, loose: str, how: str
) -> None:
    """A dead row that an index counts is in the way by its spelling, also in a transaction of one snapshot."""
    links = await made(database, EXCLUSIVE_SOFT, loose, index="full")
    linker = links.linker()
    first = await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    assert isinstance(first, Linked)
    await linker.unlink(links.engine, user_id=1, link_id=first.account.id)
    before = await links.stored()
    if how == "repeatable":
        level = "SERIALIZABLE" if links.engine.dialect.name == "sqlite" else "REPEATABLE READ"
        async with links.engine.connect() as opened:
            connection = await opened.execution_options(isolation_level=level)
            with pytest.raises(BlockedByConstraint) as caught:
                await linker.link(connection, user_id=1, identity=identity("AbC123"))
    else:
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(links.engine, user_id=2, identity=identity("AbC123"))
    is_blocked(caught)
    assert before == await links.stored()


@each_loose
async def test_reconnecting_another_spelling_is_a_mismatch(database: Database, loose: str) -> None:
    """``expect=`` with another spelling is another account: nothing is written."""
    links = await made(database, EXCLUSIVE, loose)
    linker = links.linker()
    first = await linker.link(links.engine, user_id=1, identity=identity("abc123"), credentials=tokens())
    assert isinstance(first, Linked)
    before = await links.stored()
    with pytest.raises(AccountMismatch):
        await linker.link(
            links.engine,
            user_id=1,
            identity=identity("AbC123"),
            credentials=tokens("thief"),
            expect=first.account.id,
        )
    assert before == await links.stored()


@each_loose
async def test_a_transfer_is_about_its_own_spelling(database: Database, loose: str) -> None:
    """A claimant who has ``AbC123`` does not get AlreadyOwner for ``abc123``; the row of the token is transferred."""
    links = await made(database, EXCLUSIVE, loose, index="none")
    linker = links.linker()
    first = await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    await linker.link(links.engine, user_id=2, identity=identity("AbC123"))
    conflict = await linker.link(links.engine, user_id=2, identity=identity("abc123"))
    assert isinstance(first, Linked)
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    assert "abc123" == conflict.account_id
    moved = await linker.transfer(links.engine, conflict.transfer_token, user_id=2)
    assert isinstance(moved, Transferred)
    assert (first.account.id, "abc123") == (moved.account.id, moved.account.account_id)
    again = await linker.transfer(links.engine, conflict.transfer_token, user_id=2)
    assert isinstance(again, AlreadyOwner)
    assert (first.account.id, "abc123") == (again.account.id, again.account.account_id)


@each_loose
async def test_a_transfer_that_another_spelling_of_the_claimants_forbids(database: Database, loose: str) -> None:
    """A unique index for each user takes the claimant's ``AbC123`` for ``abc123``: blocked, and both stay."""
    links = await made(database, EXCLUSIVE, loose, index="none")
    await run_sql(links.engine, "CREATE UNIQUE INDEX per_user ON loose (user_id, provider, account_id)")
    linker = links.linker()
    await linker.link(links.engine, user_id=1, identity=identity("abc123"))
    await linker.link(links.engine, user_id=2, identity=identity("AbC123"))
    conflict = await linker.link(links.engine, user_id=2, identity=identity("abc123"))
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    before = await links.stored()
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.transfer(links.engine, conflict.transfer_token, user_id=2)
    is_blocked(caught, by="per_user")
    assert before == await links.stored()


@each_loose
async def test_a_providers_slug_in_another_case_is_another_provider(database: Database, loose: str) -> None:
    """A row of ``Acme`` from before is neither found, listed nor written under ``acme``; it blocks by its spelling."""
    links = await made(database, EXCLUSIVE, loose)
    await links.put(user_id=1, provider="Acme", account_id="abc123", access_token="kept")
    linker, before = links.linker(), await links.stored()
    assert await linker.find_owner(links.engine, provider="acme", account_id="abc123") is None
    assert [] == await linker.accounts(links.engine, user_id=1, provider="acme")
    assert ["Acme"] == [account.provider for account in await linker.accounts(links.engine, user_id=1)]
    for user in (1, 2):
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(links.engine, user_id=user, identity=identity("abc123"), credentials=tokens())
        is_blocked(caught)
    assert before == await links.stored()


@each_loose
@pytest.mark.parametrize("policy", [EMAIL, EMAIL_SOFT], ids=["delete", "soft"])
async def test_an_email_key_in_another_form_blocks(database: Database, loose: str, policy: LinkPolicy) -> None:
    """A row of ``Anna@X.org`` from before is not the key ``anna@x.org``, and is not written over."""
    links = await made(database, policy, loose)
    await links.put(user_id=1, provider="acme", account_id="abc123", email="Anna@X.org", access_token="kept")
    linker, before = links.linker(), await links.stored()
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(
            links.engine, user_id=1, identity=identity("abc123", email="Anna@X.org"), credentials=tokens()
        )
    is_blocked(caught)
    assert before == await links.stored()


@each_kind
async def test_an_email_key_in_another_form_under_an_index_on_lower_blocks(database: Database) -> None:
    """An index on ``lower(email)`` is named with the rule."""
    engine = database.engine()
    links = await loose_links(engine, EMAIL, sa.String(255), index="none")
    await run_sql(engine, "CREATE UNIQUE INDEX lowered ON loose (user_id, provider, lower(email))")
    await links.put(user_id=1, provider="acme", account_id="abc123", email="Anna@X.org", access_token="kept")
    linker, before = links.linker(), await links.stored()
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=1, identity=identity("abc123", email="Anna@X.org"), credentials=tokens())
    is_blocked(caught, by="lowered")
    assert before == await links.stored()


@each_loose
async def test_an_email_key_of_another_spelling_of_the_account_is_a_mismatch(database: Database, loose: str) -> None:
    """Under ``Key.EMAIL`` a live row that holds ``abc123`` is not written for ``AbC123``."""
    links = await made(database, EMAIL, loose)
    linker = links.linker()
    await linker.link(links.engine, user_id=1, identity=identity("abc123", email="a@x.org"), credentials=tokens())
    before = await links.stored()
    with pytest.raises(AccountMismatch):
        await linker.link(links.engine, user_id=1, identity=identity("AbC123", email="a@x.org"))
    assert before == await links.stored()


@each_loose
@pytest.mark.parametrize("policy", [EXCLUSIVE, PER_USER_SOFT], ids=["exclusive", "per-user-soft"])
async def test_two_spellings_that_race_give_one_row_of_one_spelling(
    database: Database, loose: str, policy: LinkPolicy
) -> None:
    """Each call answers only about its own spelling: linked, or blocked by the other; with an event for a change."""
    links = await made(database, policy, loose, outbox=link_outbox)
    linker = links.linker(outbox=links.metadata.tables["accountlink_events"])

    async def link(account_id: str) -> str | None:
        try:
            outcome = await linker.link(links.engine, user_id=1, identity=identity(account_id))
        except BlockedByConstraint as blocked:
            return blocked.rule
        assert isinstance(outcome, Linked)
        return outcome.account.account_id

    for number in range(3):
        spelt = (f"racer{number}", f"RACER{number}")
        answers = await asyncio.gather(*(link(spelt[n % 2]) for n in range(8)))
        (winner,) = set(answers) - {RULE}
        assert [4, 4] == [answers.count(winner), answers.count(RULE)]
        held = [row for row in await links.stored() if row[3].lower() == spelt[0]]
        assert [winner] == [row[3] for row in held]
    told = await rows(links.engine, "SELECT type FROM accountlink_events")
    assert {"linked": 3, "updated": 9} == {kind: [row[0] for row in told].count(kind) for (kind,) in set(told)}


@each_loose
async def test_a_ledger_and_an_outbox_hear_nothing_of_what_is_blocked(database: Database, loose: str) -> None:
    """A blocked spelling raises no epoch and tells no event."""
    engine = database.engine()
    kind = await loose_type(engine, loose)
    metadata = sa.MetaData()
    columns = [sa.Column(name, kind) for name in ("provider", "account_id")]
    table = sa.Table(
        "loose", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("user_id", sa.Integer), *columns
    )
    sa.Index("loose_key", table.c.provider, table.c.account_id, unique=True)
    ledger, outbox = transfer_ledger(metadata), link_outbox(metadata)
    await create(engine, metadata)
    linker = AccountLinker(AccountMapping(table, policy=EXCLUSIVE), secrets=SECRETS, ledger=ledger, outbox=outbox)
    await linker.link(engine, user_id=1, identity=identity("abc123"))
    for user in (1, 2):
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(engine, user_id=user, identity=identity("AbC123"))
        is_blocked(caught)
    assert [("linked",)] == await rows(engine, "SELECT type FROM accountlink_events")
    assert [] == await rows(engine, "SELECT * FROM accountlink_transfer_ledger")


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("loose", ["icu", "citext"])
async def test_the_mixins_columns_altered_behind_its_back(database: Database, loose: str) -> None:
    """A database whose columns were made loose, while the model says otherwise, gets the rule's name, too."""
    engine = database.engine()
    tables = make_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    kind = (await loose_type(engine, loose)).compile(dialect=engine.dialect)
    await run_sql(engine, f"ALTER TABLE connections ALTER account_id TYPE {kind}, ALTER provider TYPE {kind}")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("abc123"), credentials=tokens())
    before = await rows(engine, "SELECT * FROM connections")
    assert await linker.find_owner(engine, provider="acme", account_id="AbC123") is None
    for user in (1, 2):
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(engine, user_id=user, identity=identity("AbC123"))
        assert RULE == caught.value.rule
    assert before == await rows(engine, "SELECT * FROM connections")


@each_kind
async def test_a_type_that_changes_the_case_of_an_account_id(database: Database) -> None:
    """A spelling that an application's type would change is not linked, not found and not written."""
    engine = database.engine()
    links = await loose_links(engine, EXCLUSIVE, LowerCase())
    linker = links.linker()
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=2, identity=identity("AbC123"))
    assert (None, ("account_id",), RULE) == (caught.value.constraint, caught.value.columns, caught.value.rule)
    assert [] == await links.stored()
    await linker.link(engine, user_id=1, identity=identity("abc123"))
    assert await linker.find_owner(engine, provider="acme", account_id="AbC123") is None
    with pytest.raises(BlockedByConstraint):
        await linker.link(engine, user_id=2, identity=identity("AbC123"))
    conflict = await linker.link(engine, user_id=2, identity=identity("abc123"))
    assert isinstance(conflict, OwnershipConflict)


@each_kind
async def test_an_account_id_that_a_type_refuses(database: Database) -> None:
    """An id that an application's type cannot store is refused by its field; one in another form is not stored."""

    class AsUuid(sa.types.TypeDecorator[str]):
        impl = sa.Uuid
        cache_ok = True

        def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
            return None if value is None else UUID(value)

        def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
            return None if value is None else str(value)

    engine = database.engine()
    metadata = sa.MetaData()
    table = sa.Table(
        "uuids",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", AsUuid(), nullable=False),
        sa.UniqueConstraint("provider", "account_id"),
    )
    await create(engine, metadata)
    linker = AccountLinker(AccountMapping(table, policy=EXCLUSIVE))
    for number in range(2):
        linked = await linker.link(engine, user_id=1, identity=identity(str(UUID(int=0xABC))))
        assert isinstance(linked, Linked)
        assert (str(UUID(int=0xABC)), number > 0) == (linked.account.account_id, linked.change is Change.UPDATED)
    assert isinstance(await linker.link(engine, user_id=2, identity=identity(str(UUID(int=0xABC)))), OwnershipConflict)
    with pytest.raises(BlockedByConstraint):
        await linker.link(engine, user_id=2, identity=identity(str(UUID(int=0xABC)).upper()))
    for call in (
        linker.link(engine, user_id=2, identity=identity("no-uuid")),
        linker.find_owner(engine, provider="acme", account_id="no-uuid"),
    ):
        with pytest.raises(InvalidIdentity) as caught:
            await call
        assert "account_id" == caught.value.field


async def test_a_type_that_changes_texts_by_sql_is_refused() -> None:
    """A ``bind_expression`` on an account id is a ConfigurationError that names the column."""

    class Lowered(sa.types.TypeDecorator[str]):
        impl = sa.Text
        cache_ok = True

        def bind_expression(self, bindvalue: Any) -> Any:
            return sa.func.lower(bindvalue)

    columns = [sa.Column(name, sa.Text) for name in ("provider", "email")]
    ids = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("user_id", sa.Integer, nullable=False)]
    table = sa.Table("lowered", sa.MetaData(), *ids, *columns, sa.Column("account_id", Lowered()))
    with pytest.raises(ConfigurationError, match="'account_id' of 'lowered' has a type with a bind_expression"):
        AccountLinker(AccountMapping(table, policy=EXCLUSIVE))


@each_kind
@pytest.mark.parametrize("policy", [EXCLUSIVE, PER_USER_SOFT], ids=["exclusive", "per-user-soft"])
async def test_padded_ids_come_back_as_they_were_given(database: Database, policy: LinkPolicy) -> None:
    """``CHAR(n)`` fills up with blanks, which are no part of an account id."""
    engine = database.engine()
    links = await loose_links(engine, policy, sa.CHAR(40))
    linker = links.linker()
    for change in (Change.CREATED, Change.UPDATED):
        outcome = await linker.link(engine, user_id=1, identity=identity("abc123"))
        assert isinstance(outcome, Linked)
        assert (change, "acme", "abc123") == (outcome.change, outcome.account.provider, outcome.account.account_id)
    if policy.removal is Removal.DELETE:
        found = await linker.find_owner(engine, provider="acme", account_id="abc123")
        conflict = await linker.link(engine, user_id=2, identity=identity("abc123"))
        assert found is not None
        assert "abc123" == found.account_id
        assert isinstance(conflict, OwnershipConflict)
        assert conflict.transfer_token is not None
        moved = await linker.transfer(engine, conflict.transfer_token, user_id=2)
        assert isinstance(moved, Transferred)
        assert "abc123" == moved.account.account_id


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_the_mixins_columns_altered_to_padded_ones(database: Database) -> None:
    """A column that pads behind the model's back is linked, met in a conflict, and transferred as any other."""
    engine = database.engine()
    tables = make_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    await run_sql(engine, "ALTER TABLE connections ALTER account_id TYPE char(40), ALTER provider TYPE char(40)")
    linker = tables.linker()
    for change in (Change.CREATED, Change.UPDATED):
        outcome = await linker.link(engine, user_id=1, identity=identity("abc123"))
        assert isinstance(outcome, Linked)
        assert change is outcome.change
    conflict = await linker.link(engine, user_id=2, identity=identity("abc123"))
    assert isinstance(conflict, OwnershipConflict)
    assert conflict.transfer_token is not None
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id=2), Transferred)
    assert isinstance(await linker.transfer(engine, conflict.transfer_token, user_id=2), AlreadyOwner)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_blanks_at_the_end_are_another_spelling(database: Database) -> None:
    """SQLite's RTRIM takes ``abc123`` and a legacy row with blanks behind it for one: blocked, and not written."""
    engine = database.engine()
    links = await loose_links(engine, EXCLUSIVE, sa.String(255, collation="RTRIM"))
    await links.put(user_id=1, provider="acme", account_id="abc123  ")
    linker, before = links.linker(), await links.stored()
    assert await linker.find_owner(engine, provider="acme", account_id="abc123") is None
    with pytest.raises(BlockedByConstraint) as caught:
        await linker.link(engine, user_id=2, identity=identity("abc123"))
    is_blocked(caught)
    assert before == await links.stored()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_column_that_makes_numbers_of_texts(database: Database) -> None:
    """SQLite's numeric affinity stores ``007`` as 7: nothing is stored, and ``7`` is nobody's row for ``007``."""
    engine = database.engine()
    links = await loose_links(engine, EXCLUSIVE, sa.String(255))
    await run_sql(
        engine,
        "DROP TABLE loose",
        "CREATE TABLE loose (id INTEGER PRIMARY KEY, user_id INTEGER, provider TEXT, account_id STRING, email TEXT,"
        " access_token TEXT, refresh_token TEXT, expires_at TEXT, scopes TEXT, version INTEGER)",
    )
    linker = links.linker()
    with pytest.raises(ConfigurationError, match="'loose' does not hold the provider, the account id"):
        await linker.link(engine, user_id=1, identity=identity("007"))
    assert [] == await rows(engine, "SELECT * FROM loose")
    await run_sql(engine, "INSERT INTO loose (user_id, provider, account_id, version) VALUES (1, 'acme', 7, 1)")
    assert await linker.find_owner(engine, provider="acme", account_id="007") is None


@pytest.mark.parametrize(("kind", "loose"), [*LOOSE, ("asyncpg", "char")], ids=["nocase", "icu", "citext", "char"])
async def test_the_guard_is_asked_whatever_the_spelling_of_the_links_id(database: Database, loose: str) -> None:
    """A link id in another case, or without its padding, does not lead past ``guard_last``."""
    engine = database.engine()
    kind = sa.CHAR(40) if loose == "char" else await loose_type(engine, loose)
    metadata = sa.MetaData()
    table = sa.Table(
        "guarded",
        metadata,
        sa.Column("id", kind, primary_key=True, default="link-1"),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.UniqueConstraint("provider", "account_id"),
    )
    await create(engine, metadata)

    async def nothing_else(connection: object, user_id: int) -> bool:
        return False

    linker = AccountLinker(AccountMapping(table, policy=EXCLUSIVE), guard_last=nothing_else)
    await linker.link(engine, user_id=1, identity=identity("abc123"))
    for link_id in ("link-1", "LINK-1"):
        if loose != "char" or link_id == "link-1":
            with pytest.raises(LastAccount):
                await linker.unlink(engine, user_id=1, link_id=link_id)
    assert [(1,)] == await rows(engine, "SELECT user_id FROM guarded")


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("loose", ["icu", "citext"])
async def test_a_link_stays_one_statement_that_uses_the_keys_index(database: Database, loose: str) -> None:
    """The exact comparison costs no statement, and finds its rows by the index of the key."""
    links = await made(database, EXCLUSIVE, loose)
    linker, engine = links.linker(), links.engine
    await run_sql(
        engine,
        "INSERT INTO loose (user_id, provider, account_id, version) SELECT n, 'acme', 'sub-' || n, 1"
        " FROM generate_series(1, 5000) n",
        "ANALYZE loose",
    )
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    await linker.link(engine, user_id=7, identity=identity("sub-7"))
    await linker.find_owner(engine, provider="acme", account_id="sub-7")
    sa.event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert 2 == len(sent)
    for statement, parameters in sent:
        async with engine.connect() as connection:
            plan = "\n".join(row[0] for row in await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        assert "Seq Scan on loose" not in plan, plan
        assert "using loose_key" in plan, plan
