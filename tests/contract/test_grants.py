"""Grants: a token works once, not for its grantor, and until it expires; all refusals are the same."""

from __future__ import annotations

import asyncio
import logging
import pickle
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AccountMapping,
    AccountNotFound,
    AlreadyGranted,
    BlockedByConstraint,
    ConfigurationError,
    Granted,
    GrantMapping,
    GrantRejected,
    OwnershipConflict,
    RetryTransaction,
    Revoked,
    ShareGrants,
    StoreBusy,
    Transferred,
    grants_table,
    transfer_ledger,
)
from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.judge.asking import judge
from accountlink.doctor.judge.uniqueness import Verdict
from accountlink.doctor.subjects import subject_of
from tests.support.binds import BINDS, bound
from tests.support.canaries import locals_of
from tests.support.claims import SlowClock, Statements
from tests.support.databases import Database, rows, run_sql
from tests.support.effort import Effort
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, identity, make_tables
from tests.support.shares import HOUR, OWN, PAIRED, SHARED, Shared, Sharing, own, patients

pytestmark = pytest.mark.each_driver

HOWS = pytest.mark.parametrize("how", BINDS)
EACH = pytest.mark.parametrize("case", SHARED, indirect=True)
OWNED = pytest.mark.parametrize("case", OWN, indirect=True)
PAIRS = pytest.mark.parametrize("case", PAIRED, indirect=True)
PLAIN = ("patients", "patients-pairs", "patients-index")


@pytest.fixture
async def case(engine: AsyncEngine, request: pytest.FixtureRequest) -> Sharing:
    """Each table of grants in turn, made in the database."""
    return await Sharing.made(SHARED[request.param](), engine)


def one_transaction(case: Sharing, how: str) -> bool:
    """Whether a bind cannot have the two statements that a pair's rule takes."""
    return case.shares.mapping.one_active_per_pair and how == "autocommit" and case.engine.dialect.name != "sqlite"


# -- issuing ----------------------------------------------------------------------------------------------------------


@EACH
@HOWS
async def test_a_grant_is_issued(case: Sharing, how: str) -> None:
    """A31: an issued grant can be redeemed, has the given expiry, and gives access to no user yet."""
    assert case.clock is not None
    async with bound(case.engine, how) as bind:
        issued = await case.issue(1, bind, expires_in=timedelta(days=7))
    assert case.clock.now + timedelta(days=7) == issued.expires_at
    assert (case.user(1), 1, None) == (issued.grantor_id, issued.max_uses, issued.link_id)
    assert {issued.id: True} == await case.flags()
    assert [] == await case.active(grantor_id=1)


@EACH
async def test_the_table_holds_the_hash_of_a_token(case: Sharing, request: pytest.FixtureRequest) -> None:
    """A28: what the table holds redeems nothing; only a column mapped as `token` holds the token itself."""
    issued = await case.issue()
    stored = repr(await case.stored())
    assert (issued.token in stored) is ("token" in case.shares.mapping.columns)
    assert 43 == len(issued.token)
    column = case.shares.mapping.columns.get("token_hash")
    if column is not None:
        async with case.engine.connect() as connection:
            held = (await connection.execute(sa.select(column))).scalar_one()
        assert "grant_rejected" == await case.ended(case.redeem(held))


@EACH
async def test_a_token_is_told_once_and_nowhere_else(
    case: Sharing, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A28: no repr, encoder, pickle or log of statements has the token; a copy that travelled has none."""
    monkeypatch.setattr(case.engine.sync_engine, "echo", True)
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    issued = await case.issue()
    outcome = await case.redeem(issued.token)
    await case.revoke(token=issued.token)
    said = [caplog.text, repr(issued), str(asdict(issued)), repr(outcome), str(asdict(outcome))]
    assert "INSERT" in caplog.text
    assert [] == [text for text in said if issued.token in text]
    assert issued.token.encode() not in pickle.dumps(issued)
    with pytest.raises(AttributeError):
        _ = pickle.loads(pickle.dumps(issued)).token  # noqa: S301  # our own bytes


@OWNED
async def test_tokens_are_not_alike(case: Sharing) -> None:
    """A18: a hundred tokens of one grantor are a hundred texts, each of 256 bits."""
    tokens = {(await case.issue()).token for _ in range(100)}
    assert 100 == len(tokens)


async def test_what_cannot_be_served_is_refused_before_any_sql(engine: AsyncEngine) -> None:
    """Wrong kinds, wrong types, several uses in a table of one row each: named with the remedy, and nothing is sent."""
    case = await Sharing.made(SHARED["own"](), engine)
    plain = Sharing(patients()(), engine)
    statements = Statements(engine)
    calls: list[tuple[Any, str]] = [
        (case.shares.issue(engine, grantor_id="1", expires_in=HOUR), "grantor_id is str"),
        (case.shares.issue(engine, grantor_id=None, expires_in=HOUR), "grantor_id is NoneType"),
        (case.shares.issue(engine, grantor_id=2**70, expires_in=HOUR), "outside"),
        (case.shares.issue(engine, grantor_id=1, link_id="7", expires_in=HOUR), "link_id is str"),
        (case.issue(expires_in=60), "expires_in"),
        (case.issue(expires_in=timedelta(0)), "expires_in"),
        (case.issue(expires_in=timedelta.max), "expires_in"),
        *((case.issue(max_uses=wrong), "max_uses") for wrong in (0, -1, True, 1.0, 2**31, None)),
        (plain.issue(max_uses=2), "one row per token"),
        (plain.issue(link_id=7), "no 'link_id'"),
        (case.shares.redeem(engine, "t", grantee_id="2"), "grantee_id is str"),
        (case.revoke(), "grant_id or a token"),
        (case.revoke(grant_id=7, token="t"), "not both"),
        (case.revoke(grant_id=7), "grant_id is int"),
        (case.shares.active(engine), "needs a grantor_id"),
        (case.shares.active(engine, grantee_id="2"), "grantee_id is str"),
    ]
    for call, named in calls:
        with pytest.raises(ConfigurationError, match=named):
            await call
    assert [] == statements.seen


# -- redeeming --------------------------------------------------------------------------------------------------------


@EACH
@HOWS
async def test_whoever_presents_the_token_has_the_access(case: Sharing, how: str) -> None:
    """A18: the token's grant is the grantee's, by its id, from now on."""
    issued = await case.issue()
    if one_transaction(case, how):
        async with bound(case.engine, how) as bind:
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                await case.redeem(issued.token, 2, bind)
        return
    async with bound(case.engine, how) as bind:
        outcome = await case.redeem(issued.token, 2, bind)
    assert isinstance(outcome, Granted)
    grant = outcome.grant
    assert (issued.id, case.user(1), case.user(2)) == (grant.id, grant.grantor_id, grant.grantee_id)
    assert (issued.expires_at, None) == (grant.expires_at, grant.ended_at)
    assert [issued.id] == await case.active(grantee_id=2)
    assert [issued.id] == await case.active(grantor_id=1, grantee_id=2)
    assert [] == await case.active(grantor_id=2)


@EACH
@HOWS
async def test_the_same_user_again_is_told_that_they_have_it(case: Sharing, how: str) -> None:
    """F03: a retry by the same user returns their grant, and writes nothing."""
    issued = await case.issue()
    first = await case.redeem(issued.token)
    before = await case.stored()
    if one_transaction(case, how):
        return
    assert case.clock is not None
    case.clock.move(minutes=59)
    async with bound(case.engine, how) as bind:
        again = await case.redeem(issued.token, 2, bind)
    assert isinstance(again, AlreadyGranted)
    assert first.grant == again.grant
    assert before == await case.stored()


@EACH
@pytest.mark.parametrize("how", ["connection", "session"])
async def test_a_callers_rollback_takes_the_redemption_back(case: Sharing, how: str) -> None:
    """A redemption in a caller's transaction belongs to it: after a rollback the token can be redeemed again."""
    issued = await case.issue()
    before = await case.stored()
    async with case.engine.connect() as connection:
        bind: Any = connection if how == "connection" else AsyncSession(connection)
        assert isinstance(await case.redeem(issued.token, 3, bind), Granted)
        await bind.rollback()
        if how == "session":
            await bind.close()
    assert before == await case.stored()
    assert "granted" == await case.ended(case.redeem(issued.token))


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "an empty text": "",
    "bytes": b"token",
    "a number": 7,
    "a list": ["token"],
    "five megabytes": "a" * 5_000_000,
    "a lone surrogate": "\ud800",
    "NUL": "a\0b",
    "white space": " \t\r\n",
    "letters of many alphabets": "ключ.κλειδί",
    "a statement": "'; DROP TABLE accountlink_grants; --",
    "a pattern": "%",
}


async def refusals(case: Sharing) -> dict[str, tuple[Any, int]]:
    """A token of each kind that is refused, and who presents it."""
    assert case.clock is not None
    expired = await case.issue(expires_in=timedelta(minutes=1))
    case.clock.move(minutes=1)
    ended, used_up, of_their_own, redeemed, revoked = [await case.issue() for _ in range(5)]
    await case.revoke(grant_id=ended.id)
    await case.redeem(used_up.token, 7)
    await case.redeem(redeemed.token, 2)
    await case.revoke(token=redeemed.token)
    await case.redeem(revoked.token, 8)
    await case.revoke(token=revoked.token)
    tokens = {
        "expired": expired,
        "ended": ended,
        "used up": used_up,
        "once own": redeemed,
        "once another's": revoked,
    }
    refused: dict[str, tuple[Any, int]] = {name: (issued.token, 2) for name, issued in tokens.items()}
    refused |= {"their own": (of_their_own.token, 1), "their own, used up": (used_up.token, 1)}
    refused |= {"unknown": ("A" * 43, 2), "cut off": (used_up.token[:-1], 2), "longer": (used_up.token + "A", 7)}
    if case.shares.mapping.is_own:
        several = await case.issue(max_uses=2)
        await case.redeem(several.token, 5)
        await case.redeem(several.token, 6)
        refused |= {"used up by several": (several.token, 2), "their own for several": (several.token, 1)}
    return refused | {name: (token, 2) for name, token in HOSTILE.items()}


@EACH
@HOWS
async def test_all_refusals_are_one(case: Sharing, how: str) -> None:
    """A25, A26: all refusals have one class, code and text, no attribute, no cause, and one count of statements."""
    refused = await refusals(case)
    before = await case.stored()
    seen: dict[object, list[str]] = {}
    if one_transaction(case, how):
        return
    for name, (token, user) in refused.items():
        async with bound(case.engine, how) as bind:
            if how != "engine":
                await bind.execute(sa.text("SELECT 1"))
            statements = Statements(case.engine)
            with pytest.raises(GrantRejected) as caught:
                await case.redeem(token, user, bind)
            if how != "engine":
                await bind.execute(sa.text("SELECT 1"))
        error = caught.value
        told = (type(error), error.code, str(error), error.args, *vars(error), error.__cause__, error.__context__)
        seen.setdefault((*told, len(statements.seen)), []).append(name)
    assert [list(refused)] == list(seen.values())
    assert before == await case.stored()


@EACH
async def test_what_is_no_token_is_not_sent(case: Sharing) -> None:
    """A40: five megabytes for a token cost a look-up of a short text, like any other refusal."""
    sent: list[int] = []

    def note(_c: object, _cursor: object, _statement: str, parameters: Any, *_: object) -> None:
        values = parameters.values() if isinstance(parameters, dict) else parameters
        sent.extend(len(value) for value in values if isinstance(value, str))

    sa.event.listen(case.engine.sync_engine, "before_cursor_execute", note)
    assert "grant_rejected" == await case.ended(case.redeem("a" * 5_000_000))
    assert 0 < max(sent) < 100


@EACH
async def test_expiry_is_compared_at_use(case: Sharing) -> None:
    """A22: good one second before its end, refused at its end, access included, without any clean-up job."""
    assert case.clock is not None
    early, late, held = [await case.issue() for _ in range(3)]
    await case.redeem(held.token, 4)
    case.clock.move(hours=1, seconds=-1)
    assert "granted" == await case.ended(case.redeem(early.token, 3))
    assert [held.id] == await case.active(grantee_id=4)
    case.clock.move(seconds=1)
    assert "grant_rejected" == await case.ended(case.redeem(late.token, 2))
    assert "grant_rejected" == await case.ended(case.redeem(held.token, 4))
    assert [] == await case.active(grantor_id=1)
    assert {True} == set((await case.flags()).values())


@EACH
async def test_without_a_clock_the_databases_decides(
    case: Sharing, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20: a server whose clock is years off issues, redeems and expires like the others; SQLite has no other clock."""
    wrong = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("accountlink.grants.store.present", lambda: wrong)
    off = Sharing(case.shared, case.engine, clock=None)
    before = datetime.now(UTC)
    issued = await off.issue(1)
    if not database.is_postgresql:
        assert wrong + HOUR == issued.expires_at
        return
    assert abs(issued.expires_at - before - HOUR) < timedelta(minutes=1)
    assert "granted" == await off.ended(off.redeem(issued.token))
    assert [issued.id] == await off.active(grantee_id=2)
    waiting = await off.issue(1)
    case.clock = SlowClock()
    case.clock.now = datetime.now(UTC) - 2 * HOUR
    gone = await Sharing(case.shared, case.engine, clock=case.clock).issue(1)
    assert "grant_rejected" == await off.ended(off.redeem(gone.token))
    assert 1 == await off.shares.expire(case.engine)
    assert {issued.id: True, waiting.id: True, gone.id: False} == await case.flags()


# -- several uses -----------------------------------------------------------------------------------------------------


@OWNED
@HOWS
async def test_a_token_serves_as_many_users_as_it_says(case: Sharing, how: str) -> None:
    """F25: three users have a grant each, with an id of its own; the fourth is refused; a retry counts nothing."""
    if one_transaction(case, how):
        return
    issued = await case.issue(max_uses=3)
    ends, ids = [], set()
    for number in (2, 2, 3, 2, 3, 4, 5, 2):
        async with bound(case.engine, how) as bind:
            try:
                outcome = await case.redeem(issued.token, number, bind)
                ids.add((number, outcome.grant.id, outcome.grant.grantee_id))
            except GrantRejected as error:
                outcome = error
        ends.append(outcome.code)
    already, refused = "already_granted", "grant_rejected"
    assert ["granted", already, "granted", already, already, "granted", refused, already] == ends
    assert {case.user(2), case.user(3), case.user(4)} == {grantee for *_, grantee in ids}
    assert 3 == len(ids) == len({grant_id for _, grant_id, _ in ids} - {issued.id})
    assert {grant_id for _, grant_id, _ in ids} == set(await case.active(grantor_id=1))


@OWNED
async def test_the_grant_of_one_use_ends_alone(case: Sharing) -> None:
    """A31: revoked by its own id, one user's grant ends, for good, and the other's goes on."""
    issued = await case.issue(max_uses=3)
    one, other = [(await case.redeem(issued.token, number)).grant for number in (2, 3)]
    revoked = await case.revoke(grant_id=one.id)
    assert (one.id, True) == (revoked.grant.id, revoked.grant.ended_at is not None)
    assert [other.id] == await case.active(grantor_id=1)
    assert "grant_rejected" == await case.ended(case.redeem(issued.token, 2))
    assert "granted" == await case.ended(case.redeem(issued.token, 4))


@OWNED
@pytest.mark.parametrize("by", ["id", "token"])
async def test_what_was_issued_ends_with_all_that_came_of_it(case: Sharing, by: str) -> None:
    """A31: after a revocation by the issued grant's id or token no user has access, and none can get it."""
    issued, another = await case.issue(max_uses=3), await case.issue(max_uses=3)
    for number in (2, 3):
        await case.redeem(issued.token, number)
    kept = (await case.redeem(another.token, 4)).grant
    revoked = await case.revoke(**({"grant_id": issued.id} if by == "id" else {"token": issued.token}))
    assert (issued.id, None) == (revoked.grant.id, revoked.grant.grantee_id)
    assert [kept.id] == await case.active(grantor_id=1)
    assert ["grant_rejected"] * 2 == [await case.ended(case.redeem(issued.token, number)) for number in (2, 4)]
    assert {True, False} == set((await case.flags()).values())
    assert 2 == sum((await case.flags()).values())


@OWNED
async def test_a_use_counts_no_longer_than_its_token(case: Sharing) -> None:
    """A31: a use that a revocation could not see yet has ended with its token's row, whatever its own flag says."""
    issued = await case.issue(max_uses=2)
    used = (await case.redeem(issued.token)).grant
    assert [used.id] == await case.active(grantee_id=2)
    await run_sql(case.engine, "UPDATE accountlink_grants SET active = false WHERE max_uses = 2")
    assert (True, False) == ((await case.flags())[used.id], (await case.flags())[issued.id])
    assert [] == await case.active(grantee_id=2)
    assert "grant_rejected" == await case.ended(case.redeem(issued.token))


@OWNED
async def test_the_hash_of_a_use_is_no_tokens(case: Sharing) -> None:
    """A20: neither the stored hash of a use nor what it is made of can be presented as a token."""
    issued = await case.issue(max_uses=2)
    await case.redeem(issued.token, 2)
    user = str(case.user(2))
    presented = [f"{issued.token}{user}", f"{issued.token}:{user}", f"\xff{issued.token}{user}"]
    presented += [text for (text,) in await rows(case.engine, "SELECT token_hash FROM accountlink_grants")]
    assert {"grant_rejected"} == {await case.ended(case.redeem(each, 3)) for each in presented}


# -- ending -----------------------------------------------------------------------------------------------------------


@EACH
@HOWS
async def test_a_grantor_revokes(case: Sharing, how: str) -> None:
    """A31: by id or by token, redeemed or not: the access is gone; again is the same, with the first moment."""
    assert case.clock is not None
    waiting, held = await case.issue(), await case.issue()
    await case.redeem(held.token)
    first: dict[Any, Any] = {}
    before: list[tuple[Any, ...]] = []
    for hours in (0, 5):
        case.clock.move(hours=hours)
        for issued, named in ((waiting, {"grant_id": waiting.id}), (held, {"token": held.token})):
            async with bound(case.engine, how) as bind:
                outcome = await case.revoke(1, bind, **named)
            assert isinstance(outcome, Revoked)
            assert issued.id == outcome.grant.id
            assert outcome.grant == first.setdefault(issued.id, outcome.grant)
        before = before or await case.stored()
    assert before == await case.stored()
    assert {waiting.id: False, held.id: False} == await case.flags()
    assert [] == await case.active(grantor_id=1)


@EACH
@HOWS
async def test_nobody_revokes_for_another(case: Sharing, how: str) -> None:
    """A25, A31: another user's grant and none at all are one refusal, in one count of statements; a grantee's too."""
    held = await case.issue()
    await case.redeem(held.token)
    before = await case.stored()
    unknown = UUID(int=7) if isinstance(held.id, UUID) else 999_999
    named: list[tuple[int, dict[str, Any]]] = [
        *((user, given) for user in (2, 3) for given in ({"grant_id": held.id}, {"token": held.token})),
        (1, {"grant_id": unknown}),
        (1, {"token": "A" * 43}),
        *((1, {"token": token}) for token in HOSTILE.values() if token is not None),
    ]
    seen = set()
    for user, given in named:
        async with bound(case.engine, how) as bind:
            if how != "engine":
                await bind.execute(sa.text("SELECT 1"))
            statements = Statements(case.engine)
            with pytest.raises(GrantRejected) as caught:
                await case.revoke(user, bind, **given)
        seen.add((str(caught.value), *vars(caught.value), caught.value.__cause__, len(statements.seen)))
    assert 1 == len(seen)
    assert before == await case.stored()


async def test_an_id_that_no_row_can_have_is_refused_alike(engine: AsyncEngine) -> None:
    """A25: an id outside of its column is the same refusal as an unknown one, and no database error."""
    case = await Sharing.made(SHARED["counted"](), engine)
    assert "grant_rejected" == await case.ended(case.revoke(grant_id=2**70))


@EACH
@HOWS
async def test_what_has_expired_is_marked(case: Sharing, how: str) -> None:
    """A22: expire() ends what is over, redeemed or not, once, and nothing else, and says how many."""
    assert case.clock is not None
    over, held, ended, lasting = [
        await case.issue(expires_in=duration) for duration in (HOUR / 2, HOUR / 2, HOUR / 2, 2 * HOUR)
    ]
    await case.redeem(held.token)
    await case.revoke(grant_id=ended.id)
    counts = []
    for _ in range(3):
        async with bound(case.engine, how) as bind:
            counts.append(await case.shares.expire(bind))
        case.clock.move(minutes=30)
    assert [0, 2, 0] == counts
    assert {over.id: False, held.id: False, ended.id: False, lasting.id: True} == await case.flags()


async def test_expiring_waits_for_nobody(database: Database, engine: AsyncEngine) -> None:
    """A grant that a concurrent transaction is writing is left for the next expire (PostgreSQL)."""
    if not database.is_postgresql:
        return
    case = await Sharing.made(SHARED["own"](), engine)
    assert case.clock is not None
    held, free = await case.issue(), await case.issue()
    case.clock.move(hours=2)
    async with engine.begin() as connection:
        await connection.execute(sa.text("SELECT 1 FROM accountlink_grants WHERE id = :id FOR UPDATE"), {"id": held.id})
        async with asyncio.timeout(10):
            assert 1 == await case.shares.expire(engine)
    assert {held.id: True, free.id: False} == await case.flags()
    assert 1 == await case.shares.expire(engine)


# -- one pair, again and again ----------------------------------------------------------------------------------------


@EACH
async def test_a_pair_shares_again_and_again(case: Sharing, effort: Effort) -> None:
    """Two users share many times: no violation; with the rule one active grant, the last one, else all."""
    ids = []
    for _ in effort.rounds(12, full=100):
        issued = await case.issue()
        assert "granted" == await case.ended(case.redeem(issued.token))
        ids.append(issued.id)
    expected = ids[-1:] if case.shares.mapping.one_active_per_pair else ids
    assert set(expected) == set(await case.active(grantor_id=1))
    assert set(expected) == {key for key, on in (await case.flags()).items() if on}


@PAIRS
@pytest.mark.parametrize("how", ["engine", "connection", "session"])
async def test_a_later_grant_of_a_pair_ends_the_earlier(case: Sharing, how: str) -> None:
    """Only the earlier grant of that pair ends: grants of other pairs and waiting tokens stay."""
    others = {}
    for grantor, grantee in ((1, 3), (4, 2), (2, 1)):
        issued = await case.issue(grantor)
        others[issued.id] = await case.redeem(issued.token, grantee)
    gone, earlier, waiting, later = [await case.issue() for _ in range(4)]
    await case.redeem(gone.token)
    over = (await case.revoke(grant_id=gone.id)).grant
    await case.redeem(earlier.token)
    assert case.clock is not None
    case.clock.move(minutes=5)
    async with bound(case.engine, how) as bind:
        assert isinstance(await case.redeem(later.token, 2, bind), Granted)
        assert isinstance(await case.redeem(later.token, 2, bind), AlreadyGranted)
    assert {*others, waiting.id, later.id} == {key for key, on in (await case.flags()).items() if on}
    assert [later.id] == await case.active(grantor_id=1, grantee_id=2)
    assert over == (await case.revoke(grant_id=gone.id)).grant, "what had ended already ended then"
    before = await case.stored()
    assert "grant_rejected" == await case.ended(case.redeem(earlier.token))
    assert before == await case.stored()


@PAIRS
async def test_a_refused_token_ends_no_earlier_grant(case: Sharing) -> None:
    """A31: a grantee keeps access, whatever wrong tokens they or other users present."""
    held = await case.issue()
    await case.redeem(held.token)
    for token, user in (await refusals(case)).values():
        assert "grant_rejected" == await case.ended(case.redeem(token, user))
    issued = await case.issue()
    await case.redeem(issued.token, 9)
    assert "grant_rejected" == await case.ended(case.redeem(issued.token))
    last = await case.active(grantor_id=1, grantee_id=2)
    assert ([held.id] == last) or ([] == last and not (await case.flags())[held.id])


async def test_the_rule_can_be_said_in_three_places(engine: AsyncEngine) -> None:
    """On grants_table, on the mapping or on ShareGrants; the doctor reads it from the mapping in each case."""
    metadata = sa.MetaData()
    table = grants_table(metadata, one_active_per_pair=True)
    assert ShareGrants(table).mapping.one_active_per_pair
    assert patients(pairs=True)().shares().mapping.one_active_per_pair
    bare = patients()().grants
    assert isinstance(bare, GrantMapping)
    assert ShareGrants(bare, one_active_per_pair=True).mapping.one_active_per_pair
    assert not bare.one_active_per_pair
    assert not ShareGrants(bare).mapping.one_active_per_pair


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_kept_snapshot_needs_the_index(engine: AsyncEngine, level: str) -> None:
    """A caller's snapshot hides what others redeem: without a declared index a pair's rule is refused there."""
    kept = engine.execution_options(isolation_level=level)
    for name in ("patients-pairs", "patients-index"):
        case = await Sharing.made(SHARED[name](), engine)
        async with engine.begin() as connection:
            await connection.run_sync(case.shared.metadata.drop_all)
            await connection.run_sync(case.shared.metadata.create_all)
        one, two = await case.issue(), await case.issue()
        assert "granted" == await case.ended(case.redeem(one.token, 2, kept)), "an engine's own is READ COMMITTED"
        async with kept.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            if name == "patients-pairs":
                with pytest.raises(ConfigurationError, match="unique index"):
                    await case.redeem(two.token, 2, connection)
                await connection.execute(sa.text("SELECT 1"))
            else:
                assert "granted" == await case.ended(case.redeem(two.token, 2, connection))


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_lost_race_in_a_kept_snapshot_is_run_again(engine: AsyncEngine) -> None:
    """F04: another redemption of the pair, unseen by the caller's snapshot, is RetryTransaction; the retry wins."""
    case = await Sharing.made(SHARED["patients-index"](), engine)
    one, two = await case.issue(), await case.issue()
    async with engine.execution_options(isolation_level="REPEATABLE READ").connect() as connection:
        await connection.execute(sa.text("SELECT 1"))
        await case.redeem(one.token)
        with pytest.raises(RetryTransaction):
            await case.redeem(two.token, 2, connection)
        await connection.rollback()
        assert isinstance(await case.redeem(two.token, 2, connection), Granted)
        await connection.commit()
    assert {one.id: False, two.id: True} == await case.flags()


# -- linked accounts --------------------------------------------------------------------------------------------------


async def linked(engine: AsyncEngine, shared: Shared | None = None) -> Sharing:
    return await Sharing.made(shared or SHARED["own"](), engine)


@HOWS
async def test_only_a_live_link_of_ones_own_is_shared(engine: AsyncEngine, how: str) -> None:
    """A31: another user's link, a dead one and none at all are one answer, in one number of statements, and no row."""
    case = await linked(engine)
    mine, theirs, dead = await case.link(1, "a"), await case.link(2, "b"), await case.link(1, "c")
    assert case.shared.linker is not None
    await case.shared.linker.unlink(engine, user_id=1, link_id=dead)
    seen = set()
    for link_id in (theirs, dead, 999):
        async with bound(engine, how) as bind:
            statements = Statements(engine)
            with pytest.raises(AccountNotFound) as caught:
                await case.issue(1, bind, link_id=link_id)
        seen.add((str(caught.value), *vars(caught.value), len(statements.seen) if how == "engine" else 1))
    assert 1 == len(seen)
    assert [] == await case.stored()
    async with bound(engine, how) as bind:
        assert mine == (await case.issue(1, bind, link_id=mine)).link_id
    with pytest.raises(AccountNotFound):
        await case.issue(link_id=2**70)


async def test_a_grant_ends_with_its_link_and_does_not_come_back(engine: AsyncEngine) -> None:
    """A31, A32: unlinked, it counts no more, redeemed or not; restored under its id, the link has no old grants."""
    case = await linked(engine)
    link_id, other = await case.link(1, "a"), await case.link(1, "b")
    held, waiting, about_other, about_none = [
        await case.issue(link_id=about) for about in (link_id, link_id, other, None)
    ]
    await case.redeem(held.token)
    kept = {(await case.redeem(each.token)).grant.id for each in (about_other, about_none)}
    assert case.shared.linker is not None
    await case.shared.linker.unlink(engine, user_id=1, link_id=link_id)
    before = await case.stored()
    for _ in range(2):
        assert kept == set(await case.active(grantor_id=1))
        assert [] == await case.shares.active(engine, link_id=link_id)
        assert ["grant_rejected"] * 2 == [await case.ended(case.redeem(token)) for token in (held.token, waiting.token)]
        assert link_id == await case.link(1, "a")
    assert before == await case.stored(), "nothing had to be written"
    again = await case.issue(link_id=link_id)
    await case.redeem(again.token)
    assert [again.id] == [grant.id for grant in await case.shares.active(engine, link_id=link_id)]
    assert "revoked" == await case.ended(case.revoke(grant_id=held.id))


async def test_a_link_that_the_application_gives_away_is_not_the_grantors(engine: AsyncEngine) -> None:
    """A31: a row whose user the application's own SQL has changed takes no grant of its former owner along."""
    case = await linked(engine)
    link_id = await case.link()
    held, waiting = await case.issue(link_id=link_id), await case.issue(link_id=link_id)
    await case.redeem(held.token)
    await run_sql(engine, "UPDATE connections SET user_id = 9")
    assert [] == await case.active(grantor_id=1)
    assert "grant_rejected" == await case.ended(case.redeem(waiting.token))


def ledgered() -> Shared:
    tables = make_tables(EXCLUSIVE_SOFT)
    ledger = transfer_ledger(tables.metadata)
    mapping: AccountMapping[Any, Any] = AccountMapping(tables.Connection, policy=EXCLUSIVE_SOFT, version=None)
    grants = grants_table(tables.metadata, link_id=tables.Connection.id)
    secrets = ["test-secret-of-at-least-32-bytes-0001"]
    return Shared(tables.metadata, grants, AccountLinker(mapping, secrets=secrets, ledger=ledger))


@pytest.mark.parametrize("make", [own(), ledgered], ids=["version", "ledger"])
async def test_a_grant_ends_with_a_transfer_and_does_not_come_back(engine: AsyncEngine, make: Any) -> None:
    """A04, A31: grants give no access under the new owner, nor after the link returns to the former owner."""
    case = await linked(engine, make())
    linker = case.shared.linker
    assert linker is not None
    link_id = await case.link(1)
    held, waiting = await case.issue(link_id=link_id), await case.issue(link_id=link_id)
    await case.redeem(held.token)
    for claimant in (5, 1):
        conflict = await linker.link(engine, user_id=claimant, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        moved = await linker.transfer(engine, str(conflict.transfer_token), user_id=claimant)
        assert isinstance(moved, Transferred)
        assert [] == await case.shares.active(engine, link_id=link_id)
        assert ["grant_rejected"] * 2 == [await case.ended(case.redeem(token)) for token in (held.token, waiting.token)]
    fresh = await case.issue(link_id=link_id)
    assert "granted" == await case.ended(case.redeem(fresh.token))


async def test_where_nothing_counts_a_links_states_its_grants_hang_on_the_row_alone(engine: AsyncEngine) -> None:
    """Documented: without version or ledger a grant counts again when its grantor owns the row again."""
    tables = make_tables(EXCLUSIVE_SOFT)
    mapping: AccountMapping[Any, Any] = AccountMapping(tables.Connection, policy=EXCLUSIVE_SOFT, version=None)
    grants = grants_table(tables.metadata, link_id=tables.Connection.id)
    case = await linked(engine, Shared(tables.metadata, grants, AccountLinker(mapping)))
    assert case.shared.linker is not None
    link_id = await case.link()
    issued = await case.issue(link_id=link_id)
    await case.redeem(issued.token)
    await case.shared.linker.unlink(engine, user_id=1, link_id=link_id)
    assert [] == await case.active(grantor_id=1)
    await case.link()
    assert [issued.id] == await case.active(grantor_id=1)


async def test_a_deleted_link_takes_its_grants_with_it(engine: AsyncEngine) -> None:
    """A32: with the row of the link its grants go, so that a row that gets its id (SQLite) inherits none."""
    tables = make_tables(EXCLUSIVE)
    grants = grants_table(tables.metadata, link_id=tables.Connection.id)
    case = await linked(engine, Shared(tables.metadata, grants, tables.linker()))
    assert case.shared.linker is not None
    link_id = await case.link()
    issued = await case.issue(link_id=link_id)
    await case.redeem(issued.token)
    await case.shared.linker.unlink(engine, user_id=1, link_id=link_id)
    assert [] == await case.stored()
    await case.link(1, "another")
    assert [] == await case.active(grantor_id=1)


async def test_a_link_that_is_written_again_keeps_its_grants(engine: AsyncEngine) -> None:
    """A relink changes nothing of what is shared."""
    case = await linked(engine)
    issued = await case.issue(link_id=await case.link())
    await case.redeem(issued.token)
    for _ in range(3):
        await case.link()
    assert [issued.id] == await case.active(grantor_id=1)


def test_a_link_column_needs_the_links() -> None:
    """A31: grants that are about links cannot be had without the links they have to end with; nor links for nothing."""
    tables = make_tables(EXCLUSIVE_SOFT)
    table = grants_table(tables.metadata, link_id=tables.Connection.id)
    with pytest.raises(ConfigurationError, match="accounts=linker"):
        ShareGrants(table)
    for accounts in (tables.linker(), tables.Connection, tables.linker().mapping):
        assert ShareGrants(table, accounts=accounts).mapping.table is table
    bare = grants_table(sa.MetaData())
    with pytest.raises(ConfigurationError, match="no linked account"):
        ShareGrants(bare, accounts=tables.linker())
    wrong: Any = 7
    with pytest.raises(ConfigurationError, match="grants_table"):
        ShareGrants(wrong)
    with pytest.raises(ConfigurationError, match="AccountMapping"):
        ShareGrants(table, accounts=wrong)


# -- obstacles --------------------------------------------------------------------------------------------------------


@HOWS
async def test_a_key_on_the_pair_blocks_by_its_name(engine: AsyncEngine, how: str) -> None:
    """A full key on (patient, doctor): named, with the doctor's rule; the token stays, and the caller's work too."""
    case = await Sharing.made(patients()(), engine)
    await run_sql(engine, "CREATE UNIQUE INDEX once_ever ON patient_doctor_connections (patient_id, doctor_id)")
    first, second = await case.issue(), await case.issue()
    await case.redeem(first.token)
    await case.revoke(grant_id=first.id)
    before = await case.stored()
    async with bound(engine, how) as bind:
        with pytest.raises(BlockedByConstraint) as caught:
            await case.redeem(second.token, 2, bind)
        if how != "engine":
            assert 1 == (await bind.execute(sa.text("SELECT 1"))).scalar_one()
    blocked = caught.value
    assert ("once_ever", ("patient_id", "doctor_id"), "stale-unique") == (
        blocked.constraint,
        blocked.columns,
        blocked.rule,
    )
    assert second.token not in repr(blocked.__dict__)
    assert before == await case.stored()


async def test_a_users_foreign_key_is_the_applications(engine: AsyncEngine) -> None:
    """A27, A28: a grantee who is no user gets the database's own error without values; the token stays valid."""
    metadata = sa.MetaData()
    users = sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True))
    case = await Sharing.made(Shared(metadata, grants_table(metadata, user_id=users.c.id)), engine)
    await run_sql(engine, "INSERT INTO users VALUES (1), (2)")
    issued = await case.issue()
    for call in (case.redeem(issued.token, 424242), case.issue(424242)):
        with pytest.raises(sa.exc.IntegrityError) as caught:
            await call
        assert [] == [word for word in ("424242", issued.token) if word in f"{caught.value} {caught.value.params}"]
    assert "granted" == await case.ended(case.redeem(issued.token))
    await run_sql(engine, "DELETE FROM users WHERE id = 2")
    assert [] == await case.stored()


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("name", ["own", "patients-pairs"])
async def test_waiting_is_bounded(engine: AsyncEngine, name: str) -> None:
    """F06: while another transaction locks the row, the call raises StoreBusy; afterwards it works."""
    case = await Sharing.made(SHARED[name](), engine, options={"lock_timeout": timedelta(milliseconds=100)})
    issued = await case.issue()
    table = case.shares.mapping.table.name
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"SELECT 1 FROM {table} FOR UPDATE"))
        for call in (case.redeem(issued.token), case.revoke(token=issued.token)):
            with pytest.raises(StoreBusy) as caught:
                await asyncio.wait_for(call, 10)
            assert "55P03" == caught.value.sqlstate
    if name == "own":
        link_id = await case.link()
        async with engine.begin() as connection:
            await connection.execute(sa.text("SELECT 1 FROM connections FOR UPDATE"))
            with pytest.raises(StoreBusy):
                await asyncio.wait_for(case.issue(link_id=link_id), 10)
    if name == "patients-pairs":
        async with engine.begin() as connection:
            await case.redeem((await case.issue(3)).token, 2, connection)
            with pytest.raises(StoreBusy):
                await asyncio.wait_for(case.redeem(issued.token), 10)
    assert "granted" == await case.ended(case.redeem(issued.token))


@HOWS
@pytest.mark.parametrize("name", ["own", "patients"])
async def test_no_error_shows_a_token(engine: AsyncEngine, name: str, how: str) -> None:
    """A28: refused, misused, blocked, forbidden by a foreign trigger: no text, attribute or frame has the token."""
    case = await Sharing.made(SHARED[name](), engine)
    table, c = case.shares.mapping.table, case.shares.mapping.columns
    used, waiting = await case.issue(), await case.issue()
    await case.redeem(used.token)
    await case.revoke(grant_id=used.id)
    columns = f"{c['grantor_id'].name}, {c['grantee_id'].name}"
    await run_sql(engine, f"CREATE UNIQUE INDEX once_ever ON {table.name} ({columns})")
    calls: list[Any] = [
        lambda bind: case.redeem(used.token, 3, bind),
        lambda bind: case.redeem(waiting.token, 2, bind),
        lambda bind: case.shares.redeem(bind, waiting.token, grantee_id="no id"),
        lambda bind: case.shares.redeem("no bind", waiting.token, grantee_id=case.user(3)),  # type: ignore[arg-type]  # on purpose
        lambda bind: case.revoke(3, bind, token=waiting.token),
        lambda bind: case.revoke(3, bind, token=waiting.token, grant_id=waiting.id),
    ]
    for call in calls:
        async with bound(engine, how) as bind:
            with pytest.raises(AccountLinkError) as caught:
                await call(bind)
        told = [*locals_of(caught.value), ("attributes", repr(vars(caught.value)))]
        assert len(told) > 3
        assert [] == [where for where, text in told for token in (used.token, waiting.token) if token in text]
    async with engine.begin() as connection:
        await connection.run_sync(case.shared.metadata.drop_all)
    async with bound(engine, how) as bind:
        with pytest.raises(ConfigurationError) as absent:
            await case.redeem(waiting.token, 2, bind)
    assert isinstance(absent.value.__cause__, sa.exc.DBAPIError)
    assert [] == [where for where, text in locals_of(absent.value) if waiting.token in text]


# -- what else the table has ------------------------------------------------------------------------------------------


async def test_the_applications_columns_get_their_values(engine: AsyncEngine) -> None:
    """Python-side defaults and onupdate functions of columns that are not ours run, also inside one statement."""
    case = await Sharing.made(SHARED["counted"](), engine, options={"one_active_per_pair": True})
    found = "SELECT uses, touched, fixed FROM shares ORDER BY number"
    issued = await case.issue()
    assert [("the application's", 0, 1)] == await rows(engine, found)
    await case.redeem(issued.token)
    assert [("the application's", 7, 2)] == await rows(engine, found)
    await run_sql(engine, "UPDATE shares SET touched = 0, fixed = 0")
    await case.redeem((await case.issue()).token)
    assert [("the application's", 7, 2)] * 2 == await rows(engine, found), "the earlier one has ended"


async def test_a_flag_that_is_null_is_not_active(engine: AsyncEngine) -> None:
    """A row whose flag is null gives no access and cannot be redeemed."""
    case = await Sharing.made(SHARED["counted"](), engine)
    held, waiting = await case.issue(), await case.issue()
    await case.redeem(held.token)
    await run_sql(engine, 'UPDATE shares SET "on" = NULL')
    assert [] == await case.active(grantee_id=2)
    assert ["grant_rejected"] * 2 == [await case.ended(case.redeem(each.token)) for each in (held, waiting)]
    assert "revoked" == await case.ended(case.revoke(grant_id=held.id))


async def test_objects_that_a_session_holds_follow(engine: AsyncEngine) -> None:
    """The objects of the redeemed, the ended and the expired rows have the new values, the doctor's object included."""

    class Base(DeclarativeBase):
        pass

    class Doctor(Base):
        __tablename__ = "doctors"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Share(Base):
        __tablename__ = "shares"
        id: Mapped[int] = mapped_column(primary_key=True)
        grantor_id: Mapped[int]
        grantee_id: Mapped[int | None] = mapped_column(sa.ForeignKey("doctors.id"))
        token_hash: Mapped[str] = mapped_column(unique=True)
        expires_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
        created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
        active: Mapped[bool]
        grantee = relationship(Doctor)

    case = await Sharing.made(Shared(Base.metadata, GrantMapping(Share, one_active_per_pair=True)), engine)
    assert case.clock is not None
    await run_sql(engine, "INSERT INTO doctors VALUES (2)")
    earlier, later = await case.issue(), await case.issue(expires_in=2 * HOUR)
    await case.redeem(earlier.token)
    async with AsyncSession(engine) as session:
        query = sa.select(Share).options(selectinload(Share.grantee)).order_by(Share.id)
        one, two = (await session.execute(query)).scalars()
        assert (None, None, True) == (two.grantee_id, two.grantee, one.active)
        await case.redeem(later.token, 2, session)
        assert (2, 2, False) == (two.grantee_id, two.grantee.id, one.active)
        case.clock.move(hours=3)
        assert 1 == await case.shares.expire(session)
        assert two.active is False
        await session.commit()


# -- the table --------------------------------------------------------------------------------------------------------


@EACH
async def test_the_doctors_need_is_met(case: Sharing, request: pytest.FixtureRequest) -> None:
    """Each unique index of the table forbids nothing that the mapping allows, and what it needs is enforced."""
    mapping = case.shares.mapping

    def judged(connection: sa.Connection) -> tuple[list[str | None], dict[str, bool]]:
        table = read_catalogue(connection, mapping.table.name, schema=None).table
        assert table is not None
        subject = subject_of(mapping, schema=None)
        judgements = judge(connection, subject, table)
        met = {
            need.reason: any(judgement.enforces[need] is Verdict.YES for judgement in judgements)
            for need in subject.needs
        }
        return [judgement.rule for judgement in judgements if judgement.rule], met

    async with case.engine.connect() as connection:
        blocking, met = await connection.run_sync(judged)
    assert [] == blocking
    assert ["a pair has one active grant"] * (request.node.callspec.params["case"] == "patients-pairs") == [
        need for need, is_met in met.items() if not is_met
    ]


def test_a_table_of_grants_is_one_of_the_metadata() -> None:
    """Alembic's autogenerate sees it; asked for twice it is one table; another of its name is refused."""
    tables = make_tables(EXCLUSIVE_SOFT)
    table = grants_table(tables.metadata, user_id=tables.Note.id, link_id=tables.Connection.id)
    assert table is tables.metadata.tables["accountlink_grants"] is grants_table(tables.metadata)
    keys = {column.name: [key.target_fullname for key in column.foreign_keys] for column in table.columns}
    assert {"grantor_id": ["notes.id"], "grantee_id": ["notes.id"], "link_id": ["connections.id"]} == {
        name: targets for name, targets in keys.items() if targets
    }
    own_ = grants_table(tables.metadata, user_id=sa.Text, name="shares", schema="app")
    assert own_ is tables.metadata.tables["app.shares"]
    assert "link_id" not in own_.c
    with pytest.raises(ConfigurationError, match="another table"):
        grants_table(tables.metadata, name="notes")
    wrong: Any = "users.id"
    with pytest.raises(ConfigurationError, match="such as User"):
        grants_table(sa.MetaData(), user_id=wrong)


def test_a_mapping_that_cannot_serve_is_refused() -> None:
    """A grantee that takes no null, an id that is not unique, a column in two parts, a generated one: named."""

    def mapped(*columns: sa.Column[Any], **given: str) -> None:
        names = {column.name for column in columns}
        rest = [
            sa.Column(name, kind, primary_key=name == "id")
            for name, kind in (
                ("id", sa.Integer()),
                ("grantor_id", sa.Integer()),
                ("grantee_id", sa.Integer()),
                ("token_hash", sa.Text()),
                ("expires_at", sa.DateTime(timezone=True)),
                ("active", sa.Boolean()),
            )
            if name not in names
        ]
        table = sa.Table("t", sa.MetaData(), *columns, *rest)
        GrantMapping(table, **{role: table.c[name] for role, name in given.items()})  # type: ignore[arg-type]  # roles

    mapped()
    for kind, named in ((sa.Uuid(), "which is a text"), (sa.String(32), "32 characters")):
        table = grants_table(sa.MetaData())
        table.c.token_hash.type = kind
        with pytest.raises(ConfigurationError, match=named):
            ShareGrants(table)
    wrong: list[tuple[Any, str]] = [
        (lambda: mapped(sa.Column("grantee_id", sa.Integer, nullable=False)), "nullable"),
        (lambda: mapped(sa.Column("id", sa.Integer)), "identify"),
        (lambda: mapped(grantee_id="grantor_id"), "both"),
        (lambda: mapped(sa.Column("active", sa.Boolean, sa.Computed("1"))), "generated"),
    ]
    for make, named in wrong:
        with pytest.raises(ConfigurationError, match=named):
            make()
