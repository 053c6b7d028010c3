"""A statement is compiled once: whatever a call brings, the next one of its kind finds it in SQLAlchemy's cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from accountlink import AccountLinkError, Key, LinkPolicy, Ownership, OwnershipConflict, Removal, link_outbox
from tests.support.binds import BINDS, bound
from tests.support.claims import Case, ledgered, without_version
from tests.support.compilations import Compilations
from tests.support.databases import run_sql
from tests.support.mapped import TABLES, Links, mixin
from tests.support.models import EMAIL_SOFT, EXCLUSIVE, PER_USER, identity, tokens
from tests.support.shares import OWN, SHARED, Sharing
from tests.support.told import outboxed
from tests.support.vaulted import Vaulted

WARM = 1
"""Rounds after which every statement has run."""
BLOCKING = LinkPolicy(
    key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons=frozenset({"abuse"})
)


async def another_way(_connection: AsyncConnection, user_id: Any) -> bool:
    return True


def plain(make: Callable[[str], Links], **options: Any) -> tuple[Callable[[str], Links], dict[str, Any]]:
    return make, options


CASES: dict[str, tuple[Callable[[str], Links], dict[str, Any]]] = {
    "version": plain(mixin(BLOCKING)),
    "version-outbox-guard": plain(outboxed(mixin(BLOCKING)), guard_last=another_way),
    "ledger": plain(ledgered(without_version(BLOCKING))),
    "ledger-outbox": plain(outboxed(ledgered(without_version(BLOCKING)))),
    "delete-ledger-outbox-guard": plain(outboxed(ledgered(without_version(EXCLUSIVE))), guard_last=another_way),
    "per-user-delete": plain(mixin(PER_USER)),
    "email-soft-outbox": plain(outboxed(mixin(EMAIL_SOFT))),
}


@pytest.fixture
def compilations(engine: AsyncEngine) -> Compilations:
    """Count what the test's engine compiles."""
    return Compilations(engine)


async def refused(call: Awaitable[Any]) -> Any:
    """Wait for a call, however it ends."""
    with suppress(AccountLinkError):
        return await call


async def every_call(case: Case, at: int) -> None:
    """Meet every arm of every call once, with users, accounts and values of this round's own."""
    linker, engine, policy = case.linker, case.engine, case.links.policy
    first, second, third = (case.user(10 * at + number) for number in (1, 2, 3))
    me = identity(f"sub-{at}", display_name=f"Ann {at}")
    c = case.links.mapping.table.c
    given = {c.label: f"label-{at}", c.score: at}

    linked: Any = await linker.link(engine, user_id=first, identity=me, credentials=tokens(f"access-{at}"))
    link_id = linked.account.id
    await linker.link(engine, user_id=first, identity=me)
    await linker.link(engine, user_id=first, identity=me, credentials=tokens(f"newer-{at}", None), update_values=given)
    await linker.link(engine, user_id=first, identity=identity(f"other-{at}"), values=given, update_values={c.score: 1})
    await linker.link(engine, user_id=first, identity=me, expect=link_id)
    await refused(linker.link(engine, user_id=first, identity=identity(f"third-{at}"), expect=link_id))
    await refused(linker.link(engine, user_id=first, identity=me, expect=10**6 + at))
    if policy.key is Key.ACCOUNT_ID:
        await linker.link(engine, user_id=first, identity=identity(f"mailless-{at}", email=None))
    else:
        await refused(linker.link(engine, user_id=first, identity=identity(f"x-{at}", email=f"sub-{at}@example.com")))
    conflict = await linker.link(engine, user_id=second, identity=me, credentials=tokens())
    if isinstance(conflict, OwnershipConflict) and conflict.transfer_token is not None:
        await linker.transfer(engine, conflict.transfer_token, user_id=second, credentials=tokens(f"theirs-{at}"))
        await linker.transfer(engine, conflict.transfer_token, user_id=second)
        back: Any = await linker.link(engine, user_id=first, identity=me)
        await linker.transfer(engine, back.transfer_token, user_id=first)
    await in_a_session(case, first, link_id, at)

    await linker.accounts(engine, user_id=first)
    await linker.accounts(engine, user_id=first, provider="acme")
    await linker.account(engine, user_id=first, link_id=link_id)
    await refused(linker.account(engine, user_id=first, provider="acme"))
    if policy.ownership is Ownership.EXCLUSIVE:
        await linker.find_owner(engine, provider="acme", account_id=me.account_id)

    await linker.unlink(engine, user_id=first, link_id=link_id)
    await refused(linker.unlink(engine, user_id=first, link_id=link_id))
    await refused(linker.unlink(engine, user_id=third, link_id=10**6 + at))
    await linker.link(engine, user_id=first, identity=me, credentials=tokens())
    if policy.blocked_reasons:
        await linker.unlink(engine, user_id=first, link_id=link_id, reason="abuse")
        await refused(linker.link(engine, user_id=first, identity=me))
    await refused(linker.link(engine, user_id=third, identity=identity(f"stale-{at}"), values={c.label: "taken"}))
    if case.linker._store.outbox is not None:
        await read_some(linker.events(engine))


async def in_a_session(case: Case, user_id: Any, link_id: Any, at: int) -> None:
    """Link and unlink where the session holds the row; and link in a connection's transaction."""
    async with AsyncSession(case.engine) as session:
        assert case.links.mapping.mapper is not None
        held = await session.get(case.links.mapping.mapper.class_, link_id)
        await case.linker.link(session, user_id=user_id, identity=identity(f"sub-{at}"), credentials=tokens())
        await case.linker.unlink(session, user_id=user_id, link_id=link_id)
        assert held is not None
        await session.rollback()
    async with case.engine.begin() as connection:
        await case.linker.link(connection, user_id=user_id, identity=identity(f"sub-{at}"), credentials=tokens())


async def read_some(events: AsyncIterator[Any]) -> None:
    """Read and acknowledge what there is."""
    async for delivery in events:
        await delivery.acknowledge()


def cached(engine: AsyncEngine) -> int:
    """How many compiled statements the engine keeps."""
    return len(engine.sync_engine._compiled_cache or ())


@pytest.mark.parametrize("name", CASES)
async def test_no_call_about_links_compiles_a_statement_again(
    engine: AsyncEngine, compilations: Compilations, name: str
) -> None:
    """Every arm of every call, with every bind and with values of its own, finds its statement compiled already."""
    make, options = CASES[name]
    links = make(engine.dialect.name)
    await links.create(engine)
    await run_sql(engine, "CREATE UNIQUE INDEX stale ON connections (label) WHERE label = 'taken'")
    case = Case(links, engine, options=options)
    await case.link(9, "stale", values={links.mapping.table.c.label: "taken"})
    for at in range(1, 1 + WARM):
        await every_call(case, at)
    compilations.reset()
    before = cached(engine)
    await every_call(case, 1 + WARM)
    assert [] == compilations.anew
    assert compilations.run > 25
    assert before == cached(engine)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_the_order_of_application_columns_makes_no_new_statement(
    engine: AsyncEngine, compilations: Compilations, kind: str
) -> None:
    """``values`` and ``update_values`` with their keys in another order find the statement that is there."""
    links = mixin(BLOCKING)(kind)
    await links.create(engine)
    case, c = Case(links, engine), links.mapping.table.c
    orders = [{c.label: "a", c.score: 1}, {c.score: 2, c.label: "b"}]
    for at, values in enumerate(orders, start=1):
        compilations.reset()
        await case.link(at, f"new-{at}", values=values)
        await case.link(at, f"new-{at}", update_values=values)
    assert [] == compilations.anew
    stored = await links.stored(engine, "user_id", "account_id")
    assert [(1, "new-1"), (2, "new-2")] == stored


GRANTS: dict[str, tuple[str, bool, bool]] = {
    "own": ("own", False, True),
    "own-outbox-database-clock": ("own", True, False),
    "own-pairs-outbox": ("own-pairs", True, True),
    "patients-pairs": ("patients-pairs", False, False),
    "counted-outbox": ("counted", True, True),
}
"""A table of grants, whether it has an outbox, and whether calls bring the moment."""


async def every_call_of_grants(case: Sharing, at: int) -> None:
    """Meet every answer of every call once, with users and tokens of this round's own."""
    own = case.shared.mapping.is_own
    one, two, three = (10 * at + number for number in (1, 2, 3))
    for more in [{}, {"max_uses": 3}] if own else [{}]:
        issued = await case.issue(one, **more)
        await case.redeem(issued.token, two)
        await case.redeem(issued.token, two)
        await refused(case.redeem(issued.token, three))
        await refused(case.redeem(issued.token, one))
        await case.revoke(one, grant_id=issued.id)
        await case.revoke(one, grant_id=issued.id)
    again = [await case.issue(one) for _ in range(2)]
    for issued in again:
        await case.redeem(issued.token, two)
    await case.revoke(one, token=again[1].token)
    await refused(case.revoke(three, token="no-token"))
    await refused(case.redeem("no-token", two))
    if case.shared.linker is not None:
        shared = await case.issue(one, link_id=await case.link(one, f"sub-{at}"))
        await case.redeem(shared.token, two)
    await case.active(grantor_id=one)
    await case.active(grantee_id=two)
    await case.active(grantor_id=one, grantee_id=two)
    await case.shares.expire(case.engine)
    if case.options:
        await read_some(case.shares.events(case.engine))


@pytest.mark.parametrize("name", GRANTS)
async def test_no_call_about_grants_compiles_a_statement_again(
    engine: AsyncEngine, compilations: Compilations, name: str
) -> None:
    """Every answer of every call finds its statement compiled already, for each caller and token."""
    table, told, brings_moment = GRANTS[name]
    shared = SHARED[table]()
    options: dict[str, Any] = {"outbox": link_outbox(shared.metadata)} if told else {}
    case = await Sharing.made(shared, engine, options=options, **({} if brings_moment else {"clock": None}))
    for at in range(1, 1 + WARM):
        await every_call_of_grants(case, at)
    compilations.reset()
    before = cached(engine)
    await every_call_of_grants(case, 1 + WARM)
    assert [] == compilations.anew
    assert compilations.run > (20 if table in OWN else 12)
    assert before == cached(engine)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_no_columns_type_keeps_a_statement_from_being_kept(
    engine: AsyncEngine, compilations: Compilations, name: str
) -> None:
    """Whatever types a table's columns have, linking, reading and unlinking are compiled once."""
    links = TABLES[name](engine.dialect.name)
    await links.create(engine)
    case = Case(links, engine)
    for at in (1, 2):
        compilations.reset()
        user = case.user(at)
        link_id = await case.link(at, f"sub-{at}")
        await case.link(at, f"sub-{at}")
        await case.linker.accounts(engine, user_id=user)
        await case.linker.unlink(engine, user_id=user, link_id=link_id)
        await case.link(at, f"sub-{at}")
    assert [] == compilations.anew
    assert compilations.run >= 5


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_a_tenants_schema_makes_no_new_statement(engine: AsyncEngine, compilations: Compilations) -> None:
    """Tenants by ``schema_translate_map`` share what is compiled: the second one finds all of the first one's."""
    links = outboxed(ledgered(without_version(BLOCKING)))("asyncpg")
    for tenant in ("north", "south"):
        await run_sql(engine, f"CREATE SCHEMA {tenant}")
        compilations.reset()
        theirs = engine.execution_options(schema_translate_map={None: tenant})
        async with theirs.begin() as connection:
            await connection.run_sync(links.metadata.create_all)
        case = Case(links, theirs)
        link_id = await case.link(1)
        await case.link(1)
        await case.transfer(await case.claim(2), 2)
        await case.linker.accounts(theirs, user_id=2)
        await case.linker.unlink(theirs, user_id=2, link_id=link_id)
        await case.link(2)
    assert [] == [told for told in compilations.anew if "CREATE" not in told]
    assert compilations.run > 6


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_no_statement_is_built_again(engine: AsyncEngine) -> None:
    """The first call of a kind builds its statements, and later calls reuse them for all values."""
    make, options = CASES["version-outbox-guard"]
    links = make(engine.dialect.name)
    await links.create(engine)
    case = Case(links, engine, options=options)
    store = case.linker._store
    await every_call(case, 1)
    built = dict(store._built)
    await every_call(case, 2)
    assert built == store._built
    assert 10 < len(built) < 40


def of_transfers(case: Case) -> set[Any]:
    """The keys of the statements of transfers that a linker has built."""
    built: dict[Any, Any] = dict(case.linker._store._built)
    return {key for key in built if key == "claimed" or key[0] == "move"}


@pytest.mark.parametrize("how", BINDS)
async def test_a_conflict_builds_the_statements_of_the_transfer_after_it(engine: AsyncEngine, how: str) -> None:
    """A transfer without credentials, on the same kind of bind as its conflict, builds no statement of a transfer."""
    links = CASES["ledger-outbox"][0](engine.dialect.name)
    await links.create(engine)
    case = Case(links, engine)
    await case.link(1)
    assert set() == of_transfers(case)
    async with bound(engine, how) as bind:
        conflict: Any = await case.linker.link(bind, user_id=case.user(2), identity=identity())
    built = of_transfers(case)
    assert 2 == len(built)
    async with bound(engine, how) as bind:
        outcome = await case.linker.transfer(bind, conflict.transfer_token, user_id=case.user(2))
    assert "transferred" == outcome.code
    assert built == of_transfers(case)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_a_transfer_builds_what_no_conflict_of_its_linker_has_built(engine: AsyncEngine) -> None:
    """A linker redeems a token though it has met no conflict, as in another process; and one with credentials."""
    links = CASES["ledger-outbox"][0](engine.dialect.name)
    await links.create(engine)
    case, other = Case(links, engine), Case(links, engine)
    await case.link(1)
    assert "transferred" == await other.ended(await case.claim(2), 2)
    assert 2 == len(of_transfers(other))
    assert "transferred" == await case.ended(await case.claim(3), 3, credentials=tokens())
    assert 3 == len(of_transfers(case))


async def every_call_of_a_vault(vaulted: Vaulted, engine: AsyncEngine, at: int) -> None:
    """Write, read, replace, keep and transfer tokens once, with users, accounts and tokens of this round's own."""
    linker = vaulted.linker
    first, second = 10 * at + 1, 10 * at + 2
    me = identity(f"sub-{at}")
    given = tokens(f"access-{at}", f"refresh-{at}", expires_at=None)
    linked: Any = await linker.link(engine, user_id=first, identity=me, credentials=given)
    link_id = linked.account.id
    await linker.link(engine, user_id=first, identity=me, credentials=given)
    for named in ({"link_id": link_id}, {"provider": "acme"}, {"link_id": link_id, "provider": "acme"}):
        await linker.credentials(engine, user_id=first, **named)
        await linker.stored_credentials(engine, user_id=first, **named)
    newer = tokens(f"newer-{at}", None, expires_at=None)
    assert await linker.replace_credentials(
        engine, user_id=first, link_id=link_id, tokens=newer, presented=f"refresh-{at}"
    )
    theirs = tokens(f"theirs-{at}", expires_at=None)
    for account, brought in (("kept", None), ("brought", theirs)):
        mine = identity(f"{account}-{at}")
        await linker.link(engine, user_id=first, identity=mine, credentials=given)
        conflict: Any = await linker.link(engine, user_id=second, identity=mine, credentials=theirs)
        outcome: Any = await linker.transfer(engine, conflict.transfer_token, user_id=second, credentials=brought)
        assert outcome.has_credentials
    await linker.unlink(engine, user_id=first, link_id=link_id)
    await linker.link(engine, user_id=first, identity=me, credentials=given)
    async with engine.begin() as connection:
        await linker.link(connection, user_id=second, identity=me, credentials=theirs)
        await linker.stored_credentials(connection, user_id=first, link_id=link_id)


@pytest.mark.parametrize("beside", ["nothing", "outbox", "ledger"])
async def test_no_call_about_tokens_compiles_a_statement_again(
    engine: AsyncEngine, compilations: Compilations, beside: str
) -> None:
    """Each verb of a vault, and a conflict that keeps tokens, finds its statement compiled already."""
    more: Any = {} if beside == "nothing" else {beside: True}
    vaulted = await Vaulted(**more).create(engine)
    for at in range(1, 1 + WARM):
        await every_call_of_a_vault(vaulted, engine, at)
    compilations.reset()
    before = cached(engine)
    await every_call_of_a_vault(vaulted, engine, 1 + WARM)
    assert [] == compilations.anew
    assert compilations.run > 18
    assert before == cached(engine)
