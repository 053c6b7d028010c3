"""Transfers in a race: with each other, in one process and in several, and with everything else that moves a link."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountNotFound,
    AlreadyOwner,
    Linked,
    OwnershipConflict,
    TokenSuperseded,
    Transferred,
    Unlinked,
)
from tests.support.claims import CLAIMED, Case
from tests.support.databases import Database, rows
from tests.support.effort import Effort
from tests.support.models import identity, tokens
from tests.support.processes import Process, begin
from tests.support.redeemers import redeem

RACED = ("mixin-exclusive", "mixin-exclusive-soft", "exclusive-soft-ledger")
"""With a version, deleted and soft, and with a ledger."""
POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])


@pytest.fixture(params=RACED)
def table(request: pytest.FixtureRequest) -> str:
    """The tables that are raced, by name."""
    return str(request.param)


@pytest.fixture
async def case(database: Database, table: str) -> Case:
    """A table and a pool that makes calls wait for one another."""
    links = CLAIMED[table](database.kind)
    engine = database.engine(pool_size=32 if database.is_postgresql else 4, max_overflow=0)
    await links.create(engine)
    return Case(links, engine)


async def together(*calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def later(milliseconds: float, call: Any) -> Any:
    await asyncio.sleep(milliseconds / 1000)
    return await call


# -- one token --------------------------------------------------------------------------------------------------------


async def test_a_hundred_redemptions_by_the_claimant_are_one(case: Case, effort: Effort) -> None:
    """A18, F25: a hundred at once: one `Transferred`, 99 `AlreadyOwner`, and the version rises by one."""
    for round_ in effort.rounds(1, full=4):
        account = f"sub-{round_}"
        await case.link(1, account)
        token = await case.claim(2, account)
        ends = Counter(await asyncio.gather(*(case.ended(token, 2) for _ in range(100))))
        assert {"transferred": 1, "already_owner": 99} == ends
    assert {case.user(2)} == {user for (user,) in await case.links.stored(case.engine, "user_id")}


async def test_a_hundred_redemptions_by_another_user_are_none(case: Case) -> None:
    """A18: a hundred concurrent calls by another user are refused, change nothing, and leave the token valid."""
    await case.link(1)
    token = await case.claim(2)
    before = await case.stored()
    ends = Counter(await asyncio.gather(*(case.ended(token, 3) for _ in range(100))))
    assert {"token_for_another_user": 100} == ends
    assert before == await case.stored()
    assert "transferred" == await case.ended(token, 2)


@pytest.mark.parametrize(
    "table", ["mixin-exclusive-soft", pytest.param("exclusive-soft-ledger", marks=pytest.mark.stress)]
)
async def test_processes_redeem_one_token_once(case: Case, database: Database, table: str, effort: Effort) -> None:
    """A18, F25: redemptions by several processes at once are one transfer; by another user they are none."""
    number = 5 if effort.full else 2
    calls = 20 * number
    await case.link(1)
    token = await case.claim(2)
    stranger = await processes(database, table, token, user=3, number=number)
    assert {"token_for_another_user": calls} == stranger
    assert {case.user(1)} == {user for (user,) in await case.links.stored(case.engine, "user_id")}
    claimant = await processes(database, table, token, user=2, number=number)
    assert {"transferred": 1, "already_owner": calls - 1} == claimant
    assert {case.user(2)} == {user for (user,) in await case.links.stored(case.engine, "user_id")}


async def processes(database: Database, table: str, token: str, *, user: int, number: int) -> Counter[str]:
    """Let processes redeem a token twenty times each, all at the same moment."""
    told = {"url": database.url, "table": table, "token": token, "user": user, "times": 20}
    running = [Process(redeem, **told) for _ in range(number)]
    await begin(running)
    ends: Counter[str] = Counter()
    for each in running:
        ends.update(*await each.rest())
    return ends


# -- other movers -----------------------------------------------------------------------------------------------------


async def test_of_two_claimants_one_has_the_link(case: Case, effort: Effort) -> None:
    """A18: two users with a good token each, sixteen times at once: one has it, the other's token is superseded."""
    for round_ in effort.rounds(2, full=20):
        account = f"sub-{round_}"
        await case.link(1, account)
        claims = {user: await case.claim(user, account) for user in (2, 3)}
        users = [2, 3] * 16
        ends = await together(*(case.transfer(claims[user], user) for user in users))
        winners = {user for user, end in zip(users, ends, strict=True) if isinstance(end, Transferred | AlreadyOwner)}
        assert 1 == len(winners)
        assert {"Transferred": 1, "AlreadyOwner": 15, "TokenSuperseded": 16} == Counter(type(e).__name__ for e in ends)
        owner = await case.linker.find_owner(case.engine, provider="acme", account_id=account)
        assert owner is not None
        assert {case.user(user) for user in winners} == {owner.user_id}


async def test_a_transfer_races_an_unlink(case: Case, effort: Effort) -> None:
    """A32: either the owner has unlinked and the token is superseded, or the link is the claimant's and not found."""
    seen: Counter[tuple[str, str]] = Counter()
    for round_ in effort.rounds(16, full=40):
        account = f"sub-{round_}"
        link_id = await case.link(1, account)
        token = await case.claim(2, account)
        calls = [
            case.transfer(token, 2, credentials=tokens("claimants")),
            later(round_ % 8 * 0.3, case.linker.unlink(case.engine, user_id=case.user(1), link_id=link_id)),
        ]
        ends = await together(*(calls if round_ % 2 else calls[::-1]))
        moved, gone = ends if round_ % 2 else ends[::-1]
        seen[type(moved).__name__, type(gone).__name__] += 1
        owner = await case.linker.find_owner(case.engine, provider="acme", account_id=account)
        match moved, gone:
            case Transferred(), AccountNotFound():
                assert owner is not None
                assert case.user(2) == owner.user_id
            case TokenSuperseded(), Unlinked():
                assert owner is None
            case _:
                raise AssertionError((moved, gone))
    roles = await case.links.stored(case.engine, "user_id", "live", "access_token")
    assert {(case.user(2), True, "claimants"), (case.user(1), False, None)} >= set(roles)
    print(f"\n{dict(seen)}")  # noqa: T201  # which of them won, how often


async def test_a_transfer_races_a_relink(case: Case, effort: Effort) -> None:
    """The owner links again meanwhile: the claim survives, and none of the owner's tokens stays in the row."""
    for round_ in effort.rounds(16, full=40):
        account = f"sub-{round_}"
        await case.link(1, account)
        token = await case.claim(2, account)
        calls = [
            case.transfer(token, 2, credentials=tokens("claimants")),
            case.linker.link(
                case.engine, user_id=case.user(1), identity=identity(account), credentials=tokens("renewed")
            ),
        ]
        ends = await together(*(calls if round_ % 2 else calls[::-1]))
        moved, linked = ends if round_ % 2 else ends[::-1]
        assert isinstance(moved, Transferred), moved
        assert isinstance(linked, Linked | OwnershipConflict), linked
        if isinstance(linked, OwnershipConflict):
            assert case.user(2) == linked.owner_id
    assert {(case.user(2), "claimants")} == set(await case.links.stored(case.engine, "user_id", "access_token"))


async def test_everybody_at_once_leaves_one_owner(case: Case, effort: Effort) -> None:
    """A18, A32: owner, two claimants and a newcomer link, unlink and redeem: one live row at most, and only its own."""
    for round_ in effort.rounds(3, full=15):
        account = f"sub-{round_}"
        link_id = await case.link(1, account)
        claims = {user: await case.claim(user, account) for user in (2, 3)}
        link = case.linker.link
        ends = await together(
            *(case.transfer(claims[user], user, credentials=tokens(f"of-{user}")) for user in (2, 3) * 3),
            *(
                link(case.engine, user_id=case.user(user), identity=identity(account), credentials=tokens(f"of-{user}"))
                for user in (1, 2, 3, 4)
            ),
            case.linker.unlink(case.engine, user_id=case.user(1), link_id=link_id),
        )
        allowed = (Transferred, AlreadyOwner, TokenSuperseded, Linked, OwnershipConflict, Unlinked, AccountNotFound)
        assert [] == [end for end in ends if not isinstance(end, allowed)]
    live: Counter[str] = Counter()
    for user, account, is_live, access in await case.links.stored(
        case.engine, "user_id", "account_id", "live", "access_token"
    ):
        live[account] += is_live
        number = next(number for number in (1, 2, 3, 4) if case.user(number) == user)
        assert access in (
            f"of-{number}",
            *((None,) if not is_live else ()),
            *(("former-access",) if number == 1 else ()),
        )
    assert set(live.values()) <= {0, 1}


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_there_and_back_while_a_transfer_waits_supersedes_it(case: Case, database: Database, how: str) -> None:
    """A04: away and back in one transaction that a transfer waits for: the row looks the same, the token is over."""
    link_id = await case.link(1)
    token = await case.claim(2)
    others = database.engine()
    async with AsyncSession(others) as rival, AsyncSession(case.engine) as session:
        if case.soft:
            await case.linker.unlink(rival, user_id=case.user(1), link_id=link_id)
            outcome = await case.linker.link(
                rival, user_id=case.user(1), identity=identity(), credentials=tokens("new")
            )
        else:
            third = await case.claim(3)
            assert isinstance(await case.transfer(third, 3, rival), Transferred)
            back = await case.linker.link(rival, user_id=case.user(1), identity=identity())
            assert isinstance(back, OwnershipConflict)
            outcome = await case.transfer(str(back.transfer_token), 1, rival, credentials=tokens("new"))
        assert isinstance(outcome, Linked | Transferred)
        assert link_id == outcome.account.id
        waiter = asyncio.create_task(case.transfer(token, 2, case.engine if how == "engine" else session))
        await waiting(others)
        await rival.commit()
        with pytest.raises(TokenSuperseded):
            await waiter
    assert [(case.user(1), "new")] == await case.links.stored(case.engine, "user_id", "access_token")


CHANGES = {
    "another owner": "user_id = 9, access_token = 'of-9'",
    "dead": "deleted_at = now()",
    "another account": "account_id = 'other'",
}


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "session"])
@pytest.mark.parametrize("table", ["mixin-exclusive-soft", "exclusive-soft-ledger"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_the_applications_own_code_changes_meanwhile_counts(
    case: Case, database: Database, change: str, how: str
) -> None:
    """A04: code that knows no version changes owner, life or account while a transfer waits: it is superseded."""
    await case.link(1)
    token = await case.claim(2)
    others = database.engine()
    async with others.connect() as rival, AsyncSession(case.engine) as session:
        await rival.exec_driver_sql(f"UPDATE connections SET {change}")
        waiter = asyncio.create_task(case.transfer(token, 2, case.engine if how == "engine" else session))
        await waiting(others)
        await rival.commit()
        before = await case.stored()
        with pytest.raises(TokenSuperseded):
            await waiter
    assert before == await case.stored()
    if "version" not in case.links.mapping.columns:
        assert [] == await rows(others, "SELECT * FROM accountlink_transfer_ledger"), "an epoch for nothing"


async def waiting(engine: AsyncEngine) -> None:
    """Wait until a backend waits for a lock."""
    for _ in range(500):
        if (await rows(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


@POSTGRESQL
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_races_at_stricter_isolation(case: Case, database: Database, level: str, effort: Effort) -> None:
    """F04, F05: where a snapshot is kept, transactions of accountlink's own are tried again until they know."""
    setting = {"default_transaction_isolation": level.lower()}
    options = f"-c default_transaction_isolation={level.lower().replace(' ', chr(92) + ' ')}"
    args: dict[str, Any] = {"server_settings": setting} if database.kind == "asyncpg" else {"options": options}
    engine = database.engine(connect_args=args, pool_size=16, max_overflow=0)
    assert [(level.lower(),)] == await rows(engine, "SHOW transaction_isolation")
    for round_ in effort.rounds(2, full=5):
        account = f"sub-{round_}"
        await case.link(1, account)
        claims = {user: await case.claim(user, account) for user in (2, 3)}
        users = [2, 3] * 8
        ends = await together(*(case.transfer(claims[user], user, engine) for user in users))
        kinds = Counter(type(end).__name__ for end in ends)
        assert 1 == kinds["Transferred"], kinds
        assert {"Transferred", "AlreadyOwner", "TokenSuperseded"} >= set(kinds)
