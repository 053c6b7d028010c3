"""The decision tables: what each fact comes to, and that no refusal is ever read as success."""

from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountLinkError,
    BlockedByConstraint,
    LinkBlocked,
    LinkedAccount,
    LinkedAccountMixin,
    LinkPolicy,
    OutcomeUnknown,
    OwnerLookupFailed,
    OwnerNotFound,
    RetryTransaction,
    StoreBusy,
    StoreUnavailable,
    TokenExpired,
    TokenSuperseded,
)
from accountlink.database.patience import CAUSES, RETRIES, Patience, after_failure
from accountlink.database.transactions import Place, run
from accountlink.linking.call import Call
from accountlink.linking.decide import Answer, Arm, after_lookup_failure, after_violation
from accountlink.transfers.redeeming import after_lost_claim, of_claim
from accountlink.values.facts import Claimed, Failure, Obstacle, Step, Trouble, UniqueIndex

ERROR: Final = RuntimeError("as the driver raised it")
OWNER: Final[LinkedAccount[int, int]] = LinkedAccount(id=9, user_id=7, provider="google", account_id="1")
KEY: Final = UniqueIndex(name="uq_links", schema="public", table="links", columns=("provider", "account_id"))
HIDING_KEY: Final = UniqueIndex(
    name="uq_links", schema="public", table="links", columns=("provider", "account_id"), row_security=True
)
OTHER_INDEX: Final = UniqueIndex(
    name="one_per_provider", schema="public", table="links", columns=("user_id", "provider")
)


def failure(trouble: Trouble, **evidence: Any) -> Failure:
    return Failure(trouble=trouble, error=ERROR, **evidence)


def obstacle(index: UniqueIndex | None = KEY, **facts: Any) -> Obstacle[int, int]:
    return Obstacle(
        **({"index": index, "ours": True, "is_key": index not in {None, OTHER_INDEX}, "owner": None} | facts)
    )


VIOLATION: Final = failure(Trouble.UNIQUE, sqlstate="23505", constraint="uq_links", columns=("seen",))


def said(verdict: object) -> tuple[object, ...]:
    """A verdict with its evidence, to be compared."""
    if isinstance(verdict, AccountLinkError):
        return (type(verdict), vars(verdict))
    return (verdict,)


# -- a claim ----------------------------------------------------------------------------------------------------------

MINE: Final[LinkedAccount[int, int]] = LinkedAccount(id=41, user_id=2, provider="google", account_id="1")
CLAIMS: Final[dict[str, tuple[dict[str, Any], object]]] = {
    "as it was": ({}, Step.MOVE),
    "too old": ({"expired": True}, TokenExpired),
    "in another state": ({"fits": False}, TokenSuperseded),
    "dead": ({"live": False}, TokenSuperseded),
    "gone": ({"named": None}, TokenSuperseded),
    "barred from the account": ({"why": "fraud"}, LinkBlocked),
    "barred, and too old": ({"why": "fraud", "expired": True}, TokenExpired),
    "barred, and in another state": ({"why": "fraud", "fits": False}, TokenSuperseded),
    "too old, and in another state": ({"expired": True, "fits": False}, TokenExpired),
    "too old, and gone": ({"expired": True, "named": None}, TokenExpired),
    "the claimant's": ({"own": MINE}, Step.OWNED),
    "the claimant's, too old, in another state": ({"own": MINE, "expired": True, "fits": False}, Step.OWNED),
    "gone, and the claimant has another row": ({"own": MINE, "named": None, "expired": True}, Step.OWNED),
    "dead, and the claimant has another row": ({"own": MINE, "live": False}, Step.OWNED),
}


@pytest.mark.parametrize(("facts", "expected"), CLAIMS.values(), ids=CLAIMS)
def test_what_a_claim_comes_to(facts: dict[str, Any], expected: object) -> None:
    """A18, F03: the owner gets AlreadyOwner whatever else is wrong; then expiry counts; then the row's state."""
    given: dict[str, Any] = {"named": OWNER, "live": True, "version": 3, "own": None, "expired": False, "fits": True}
    given |= facts
    expired, fits = given.pop("expired"), given.pop("fits")
    decided = of_claim(Claimed(**given), expired=expired, fits=fits)
    assert expected == (decided if isinstance(decided, Step) else type(decided))


def test_a_refusal_after_a_lost_answer_is_unknown() -> None:
    """F03: the attempt whose answer was lost may be what changed the link, so that nothing is denied."""
    rejected = TokenSuperseded()
    assert rejected is after_lost_claim(rejected, ambiguous=False)
    assert isinstance(after_lost_claim(rejected, ambiguous=True), OutcomeUnknown)


# -- after a database error -----------------------------------------------------------------------------------------

STATE: Final = {"sqlstate": "40001"}
REACHED_NOT: Final = {"is_read_only": False}
DATABASE_ERRORS: Final[dict[str, tuple[Trouble, dict[str, Any], tuple[object, ...]]]] = {
    "serialization, own, retries left": (Trouble.SERIALIZATION, {"owned": True, "retries": 1}, (Step.AGAIN,)),
    "serialization, own, the last retry": (Trouble.SERIALIZATION, {"owned": True, "retries": RETRIES}, (Step.AGAIN,)),
    "serialization, own, no retries": (Trouble.SERIALIZATION, {"owned": True}, (StoreBusy, STATE)),
    "serialization, the caller's": (Trouble.SERIALIZATION, {}, (RetryTransaction, STATE)),
    "serialization, the caller's, retries left": (Trouble.SERIALIZATION, {"retries": 3}, (RetryTransaction, STATE)),
    "stale plan, own, retries left": (Trouble.STALE_PLAN, {"owned": True, "retries": 1}, (Step.AGAIN,)),
    "stale plan, the caller's, retries left": (Trouble.STALE_PLAN, {"retries": 1}, (Step.AGAIN,)),
    "stale plan, own, no retries": (Trouble.STALE_PLAN, {"owned": True}, (ERROR,)),
    "stale plan, the caller's, no retries": (Trouble.STALE_PLAN, {}, (RetryTransaction, STATE)),
    "busy, own": (Trouble.BUSY, {"owned": True, "retries": 3, "reconnects": 1}, (StoreBusy, STATE)),
    "busy, the caller's": (Trouble.BUSY, {}, (StoreBusy, STATE)),
    "lost, own, reconnects left": (Trouble.LOST, {"owned": True, "reconnects": 1}, (Step.AGAIN,)),
    "lost, own, reconnects left, ambiguous": (
        Trouble.LOST,
        {"owned": True, "reconnects": 1, "ambiguous": True},
        (Step.AGAIN,),
    ),
    "lost, own, no reconnects": (Trouble.LOST, {"owned": True, "retries": 3}, (StoreUnavailable, REACHED_NOT)),
    "lost, own, no reconnects, ambiguous": (Trouble.LOST, {"owned": True, "ambiguous": True}, (OutcomeUnknown, {})),
    "lost, the caller's": (Trouble.LOST, {}, (StoreUnavailable, REACHED_NOT)),
    "read-only, own, everything left": (
        Trouble.READ_ONLY,
        {"owned": True, "retries": 3, "reconnects": 1},
        (StoreUnavailable, {"is_read_only": True}),
    ),
    "read-only, the caller's": (Trouble.READ_ONLY, {}, (StoreUnavailable, {"is_read_only": True})),
    "read-only, own, ambiguous": (Trouble.READ_ONLY, {"owned": True, "ambiguous": True}, (OutcomeUnknown, {})),
    "lost, the caller's, reconnects left": (Trouble.LOST, {"reconnects": 1}, (StoreUnavailable, REACHED_NOT)),
    "lost, the caller's, ambiguous": (Trouble.LOST, {"ambiguous": True}, (OutcomeUnknown, {})),
    "serialization, own, no retries, ambiguous": (
        Trouble.SERIALIZATION,
        {"owned": True, "ambiguous": True},
        (OutcomeUnknown, {}),
    ),
    "busy, ambiguous": (Trouble.BUSY, {"owned": True, "ambiguous": True}, (OutcomeUnknown, {})),
    "deferrable, own": (Trouble.DEFERRABLE, {"owned": True, "retries": 3, "reconnects": 1}, (ERROR,)),
    "deferrable, the caller's": (Trouble.DEFERRABLE, {}, (ERROR,)),
    "unique, own": (Trouble.UNIQUE, {"owned": True, "retries": 3, "reconnects": 1}, (ERROR,)),
    "unique, the caller's": (Trouble.UNIQUE, {}, (ERROR,)),
    "another, own": (Trouble.OTHER, {"owned": True, "retries": 3, "reconnects": 1}, (ERROR,)),
    "another, the caller's": (Trouble.OTHER, {}, (ERROR,)),
}


@pytest.mark.parametrize(("trouble", "facts", "expected"), DATABASE_ERRORS.values(), ids=DATABASE_ERRORS)
def test_what_a_database_error_comes_to(trouble: Trouble, facts: dict[str, Any], expected: tuple[object, ...]) -> None:
    """Each row of the table: a safe failure is retried, and the others are raised with the database's own code."""
    state: dict[str, Any] = {"owned": False, "ambiguous": False, "retries": 0, "reconnects": 0} | facts
    error = failure(trouble, sqlstate="40001", constraint="uq_links", columns=("provider",))
    assert expected == said(after_failure(error, **state))


@given(
    st.sampled_from(Trouble),
    st.fixed_dictionaries(
        {
            "owned": st.booleans(),
            "ambiguous": st.booleans(),
            "retries": st.integers(0, 3),
            "reconnects": st.integers(0, 1),
        }
    ),
)
def test_a_database_error_is_never_an_answer(trouble: Trouble, state: dict[str, Any]) -> None:
    """An error is done again while something is left of trying again, or it is raised: it is never an outcome."""
    verdict = after_failure(failure(trouble), **state)
    assert verdict is Step.AGAIN or isinstance(verdict, Exception)
    assert verdict is not Step.AGAIN or state["retries"] or state["reconnects"]


# -- after a failed look-up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [True, False], ids=["own", "the caller's"])
@pytest.mark.parametrize("trouble", Trouble)
def test_what_a_failed_lookup_comes_to(trouble: Trouble, owned: bool) -> None:
    """A failed look-up is OwnerLookupFailed, unless the caller's own transaction cannot continue."""
    verdict = after_lookup_failure(failure(trouble, sqlstate="42501"), provider="google", owned=owned)
    if trouble is Trouble.SERIALIZATION and not owned:
        assert (RetryTransaction, {"sqlstate": "42501"}) == said(verdict)
    else:
        assert (OwnerLookupFailed, {"provider": "google", "sqlstate": "42501"}) == said(verdict)


# -- after a unique violation ---------------------------------------------------------------------------------------

STALE: Final = {"constraint": "one_per_provider", "columns": ("user_id", "provider"), "rule": "stale-unique"}
COUNTS_DELETED: Final = {
    "constraint": "uq_links",
    "columns": ("provider", "account_id"),
    "rule": "key-counts-deleted",
}
NOT_FOUND: Final = {"provider": "google", "constraint": "uq_links", "row_security": False}
HIDDEN: Final = NOT_FOUND | {"row_security": True}
CONFLICT: Final = (Step.CONFLICT,)
AGAIN: Final = (Step.AGAIN,)
VIOLATIONS: Final[dict[str, tuple[Obstacle[int, int], dict[str, Any], tuple[object, ...]]]] = {
    "another table's": (obstacle(ours=False), {}, (ERROR,)),
    "another table's, while an owner is seen": (obstacle(ours=False, owner=OWNER), {}, (ERROR,)),
    "another table's, index gone": (obstacle(None, ours=False), {"causes": 0}, (ERROR,)),
    "an owner": (obstacle(owner=OWNER), {}, CONFLICT),
    "an owner, nothing left to try": (obstacle(owner=OWNER), {"causes": 0}, CONFLICT),
    "an owner, the caller's": (obstacle(owner=OWNER), {"owned": False}, CONFLICT),
    "an owner, an old snapshot": (obstacle(owner=OWNER, snapshot=True), {"owned": False}, CONFLICT),
    "an owner, the index gone": (obstacle(None, owner=OWNER), {}, CONFLICT),
    "an owner, another index": (obstacle(OTHER_INDEX, owner=OWNER), {}, CONFLICT),
    "an owner beside a dead row": (obstacle(KEY, rule="key-counts-deleted", owner=OWNER, dead=True), {}, CONFLICT),
    "another index": (obstacle(OTHER_INDEX), {}, (BlockedByConstraint, STALE)),
    "another index, nothing left to try": (obstacle(OTHER_INDEX), {"causes": 0}, (BlockedByConstraint, STALE)),
    "another index, an old snapshot": (
        obstacle(OTHER_INDEX, snapshot=True),
        {"owned": False},
        (BlockedByConstraint, STALE),
    ),
    "another index, one's own live row": (obstacle(OTHER_INDEX, own_live=True), {}, (BlockedByConstraint, STALE)),
    "nobody, an old snapshot": (
        obstacle(snapshot=True),
        {"owned": False},
        (RetryTransaction, {"sqlstate": "23505"}),
    ),
    "nobody, an old snapshot, nothing left": (
        obstacle(snapshot=True),
        {"owned": False, "causes": 0},
        (RetryTransaction, {"sqlstate": "23505"}),
    ),
    "a dead row, an old snapshot": (
        obstacle(KEY, rule="key-counts-deleted", dead=True, snapshot=True),
        {"owned": False},
        (RetryTransaction, {"sqlstate": "23505"}),
    ),
    "index gone, an old snapshot": (
        obstacle(None, snapshot=True),
        {"owned": False},
        (RetryTransaction, {"sqlstate": "23505"}),
    ),
    "nobody, a snapshot of our own": (obstacle(snapshot=True), {}, AGAIN),
    "a dead row in a full key": (
        obstacle(KEY, rule="key-counts-deleted", dead=True),
        {},
        (BlockedByConstraint, COUNTS_DELETED),
    ),
    "a dead row in a full key, nothing left": (
        obstacle(KEY, rule="key-counts-deleted", dead=True),
        {"causes": 0},
        (BlockedByConstraint, COUNTS_DELETED),
    ),
    "a dead row, a snapshot of our own": (
        obstacle(KEY, rule="key-counts-deleted", dead=True, snapshot=True),
        {},
        (BlockedByConstraint, COUNTS_DELETED),
    ),
    "a dead row beside one's own live one": (
        obstacle(KEY, rule="key-counts-deleted", dead=True, own_live=True),
        {},
        AGAIN,
    ),
    "a dead row in a partial key": (obstacle(KEY, dead=True), {}, AGAIN),
    "a full key without a dead row in sight": (obstacle(KEY, rule="key-counts-deleted"), {}, AGAIN),
    "no dead row in sight, nothing left": (
        obstacle(KEY, rule="wrong-predicate"),
        {"causes": 0},
        (OwnerNotFound, NOT_FOUND),
    ),
    "a dead row in a key with another condition": (
        obstacle(KEY, rule="wrong-predicate", dead=True),
        {},
        (BlockedByConstraint, COUNTS_DELETED | {"rule": "wrong-predicate"}),
    ),
    "a key that ignores case": (obstacle(KEY, rule="key-compares-differently"), {}, AGAIN),
    "a key that ignores case, nothing left": (
        obstacle(KEY, rule="key-compares-differently"),
        {"causes": 0},
        (BlockedByConstraint, COUNTS_DELETED | {"rule": "key-compares-differently"}),
    ),
    "another index that ignores case": (
        obstacle(OTHER_INDEX, rule="key-compares-differently"),
        {},
        (BlockedByConstraint, STALE | {"rule": "key-compares-differently"}),
    ),
    "a dead row, the index gone": (obstacle(None, dead=True), {}, AGAIN),
    "one's own live row": (obstacle(own_live=True), {}, AGAIN),
    "nobody": (obstacle(), {}, AGAIN),
    "nobody, the last try": (obstacle(), {"causes": 1}, AGAIN),
    "nobody, the index gone": (obstacle(None), {}, AGAIN),
    "nobody, nothing left": (obstacle(), {"causes": 0}, (OwnerNotFound, NOT_FOUND)),
    "nobody, nothing left, the index gone": (obstacle(None), {"causes": 0}, (OwnerNotFound, NOT_FOUND)),
    "nobody, nothing left, the caller's": (
        obstacle(),
        {"causes": 0, "owned": False},
        (OwnerNotFound, NOT_FOUND),
    ),
    "one's own live row, nothing left": (obstacle(own_live=True), {"causes": 0}, (OwnerNotFound, NOT_FOUND)),
    "nobody, nothing left, row-level security": (obstacle(HIDING_KEY), {"causes": 0}, (OwnerNotFound, HIDDEN)),
    "nobody, less than nothing left": (obstacle(HIDING_KEY), {"causes": -1}, (OwnerNotFound, HIDDEN)),
}


@pytest.mark.parametrize(("found", "facts", "expected"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_a_unique_violation_comes_to(
    found: Obstacle[int, int], facts: dict[str, Any], expected: tuple[object, ...]
) -> None:
    """Each row of the table: the truth about what stands in the way, and else another run."""
    state: dict[str, Any] = {"causes": 3, "owned": True} | facts
    assert expected == said(after_violation(VIOLATION, found, provider="google", **state))


DEFERRED: Final = failure(Trouble.DEFERRABLE, sqlstate="55000", constraint="uq_links")
DEFERRABLE: Final[dict[str, tuple[Obstacle[int, int], tuple[object, ...]]]] = {
    "the key": (
        obstacle(KEY),
        (
            BlockedByConstraint,
            {"constraint": "uq_links", "columns": ("provider", "account_id"), "rule": "deferrable-key"},
        ),
    ),
    "the key, with an owner": (
        obstacle(KEY, rule="key-counts-deleted", owner=OWNER),
        (
            BlockedByConstraint,
            {"constraint": "uq_links", "columns": ("provider", "account_id"), "rule": "deferrable-key"},
        ),
    ),
    "another index": (obstacle(OTHER_INDEX), (BlockedByConstraint, STALE | {"rule": "deferrable-key"})),
    "gone": (
        obstacle(None),
        (BlockedByConstraint, {"constraint": "uq_links", "columns": (), "rule": "deferrable-key"}),
    ),
    "another table's": (obstacle(ours=False), (ERROR,)),
}


@pytest.mark.parametrize("causes", [0, 3])
@pytest.mark.parametrize(("found", "expected"), DEFERRABLE.values(), ids=DEFERRABLE)
def test_a_deferrable_key_is_named(found: Obstacle[int, int], expected: tuple[object, ...], causes: int) -> None:
    """A key that can be deferred serves no upsert: the error names it with its columns, whoever owns the account."""
    assert expected == said(after_violation(DEFERRED, found, provider="google", causes=causes, owned=True))


INDEXES: Final = st.none() | st.builds(
    UniqueIndex,
    name=st.none() | st.just("uq"),
    schema=st.none(),
    table=st.just("links"),
    columns=st.sampled_from([(), ("provider", "account_id")]),
    row_security=st.booleans(),
)
OBSTACLES: Final[st.SearchStrategy[Obstacle[int, int]]] = st.builds(
    Obstacle,
    index=INDEXES,
    ours=st.booleans(),
    is_key=st.booleans(),
    owner=st.sampled_from([None, OWNER]),
    version=st.none(),
    own_live=st.booleans(),
    dead=st.booleans(),
    snapshot=st.booleans(),
    rule=st.sampled_from([None, "stale-unique", "key-counts-deleted", "key-compares-differently"]),
)


@given(OBSTACLES, st.integers(-3, 3), st.booleans())
def test_a_violation_never_becomes_success(found: Obstacle[int, int], causes: int, owned: bool) -> None:
    """A unique violation is a conflict if the owner was seen, another run while one is left, or else an error."""
    verdict = after_violation(VIOLATION, found, provider="google", causes=causes, owned=owned)
    assert (verdict is Step.CONFLICT) == (found.ours and found.owner is not None)
    assert verdict is Step.CONFLICT or isinstance(verdict, Exception) or (verdict is Step.AGAIN and causes > 0)


@given(OBSTACLES, st.integers(0, 3), st.booleans())
def test_no_error_tells_whose_row_it_was(found: Obstacle[int, int], causes: int, owned: bool) -> None:
    """A25: whatever stands in the way, the error names no user."""
    verdict = after_violation(VIOLATION, found, provider="google", causes=causes, owned=owned)
    assert not isinstance(verdict, AccountLinkError) or str(OWNER.user_id) not in {*map(str, vars(verdict).values())}


# -- how often ------------------------------------------------------------------------------------------------------


class TooOften(BaseException):
    """The linker asked more often than any bound allows."""


class Base(DeclarativeBase):
    """Models of these tests."""


class Links(LinkedAccountMixin, Base):
    """Links of one owner."""

    __tablename__ = "links"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


class Scripted(Place):
    """A place that answers each piece of work by its name, always the same, and counts."""

    session = None

    def __init__(self, *, owned: bool, answers: dict[str, object], ambiguous: bool = False) -> None:
        self.owned, self.reconnects, self.committed = owned, True, ambiguous
        self.answers = answers
        self.asked: list[str] = []

    async def attempt(self, work: Any) -> Any:
        step = work.args[-1] if work.args else work.func
        self.asked.append(step.__name__)
        if len(self.asked) > 60:
            raise TooOften
        return self.answers[self.asked[-1]]


LINKER: Final = AccountLinker[Any, Any](Links)


async def settle(place: Scripted, *, may_insert: bool = True) -> Answer[int, int]:
    named = {"provider": "google", "account_id": "1"}
    call = Call(user_id=1, link_id=None if may_insert else 9, identity=named)
    answer: Answer[int, int] = await LINKER._settled(place, call, "google")
    return answer


CREATED: Final[Answer[int, int]] = Answer(arm=Arm.CREATED, account=OWNER)
ENDLESS: Final[dict[str, tuple[dict[str, object], type[Exception]]]] = {
    "refused, and nobody seen": ({"link": VIOLATION, "obstacle": obstacle()}, OwnerNotFound),
    "silent, then refused, and nobody seen": (
        {"link": None, "probe": VIOLATION, "obstacle": obstacle(HIDING_KEY)},
        OwnerNotFound,
    ),
    "silent, and nothing refuses": ({"link": None, "probe": None}, StoreBusy),
    "serialization": ({"link": failure(Trouble.SERIALIZATION)}, StoreBusy),
    "silent, then serialization": ({"link": None, "probe": failure(Trouble.SERIALIZATION)}, StoreBusy),
    "stale plan": ({"link": failure(Trouble.STALE_PLAN)}, RuntimeError),
    "busy": ({"link": failure(Trouble.BUSY)}, StoreBusy),
    "lost": ({"link": failure(Trouble.LOST)}, StoreUnavailable),
    "silent, then lost": ({"link": None, "probe": failure(Trouble.LOST)}, StoreUnavailable),
    "refused, then the look-up fails": (
        {"link": VIOLATION, "obstacle": failure(Trouble.OTHER, sqlstate="42501")},
        OwnerLookupFailed,
    ),
}


@pytest.mark.parametrize("owned", [True, False], ids=["own", "the caller's"])
@pytest.mark.parametrize(("answers", "expected"), ENDLESS.values(), ids=ENDLESS)
async def test_no_race_is_run_for_ever(answers: dict[str, object], expected: type[Exception], owned: bool) -> None:
    """A database that always gives one answer is asked a limited number of times; then the call raises.

    Row-level security that hides the owner's row is one that does: the statement finds nobody, and the index refuses.
    """
    place = Scripted(owned=owned, answers=answers)
    troubles = {answer.trouble for answer in answers.values() if isinstance(answer, Failure)}
    retried = not owned and troubles & {Trouble.SERIALIZATION, Trouble.STALE_PLAN}
    wanted = RetryTransaction if retried else expected
    with pytest.raises(wanted):
        await settle(place)
    assert len(place.asked) <= 30


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(None, StoreBusy), (VIOLATION, OwnerNotFound), (failure(Trouble.SERIALIZATION), StoreBusy)],
    ids=["silent", "refused", "serialization"],
)
async def test_no_reconnecting_is_run_for_ever(answer: object, expected: type[Exception]) -> None:
    """Where a link may not insert, nothing is probed, and the end comes as surely."""
    place = Scripted(owned=True, answers={"link": answer, "obstacle": obstacle()})
    with pytest.raises(expected):
        await settle(place, may_insert=False)
    assert "probe" not in place.asked
    assert len(place.asked) <= 30


async def test_an_answer_ends_the_run() -> None:
    """The first answer is the answer."""
    place = Scripted(owned=True, answers={"link": CREATED})
    assert CREATED is await settle(place)
    assert ["link"] == place.asked


async def test_a_refusal_with_an_owner_is_a_conflict() -> None:
    """A refused write whose owner can be seen is a conflict with that row, and is not tried again."""
    place = Scripted(owned=False, answers={"link": VIOLATION, "obstacle": obstacle(owner=OWNER, version=4)})
    assert Answer(arm=Arm.CONFLICT, account=OWNER, version=4) == await settle(place)
    assert ["link", "obstacle"] == place.asked


async def test_a_lost_commit_is_told_as_unknown() -> None:
    """A connection that was lost where a commit may have happened is OutcomeUnknown, after the one reconnect."""
    place = Scripted(owned=True, ambiguous=True, answers={"link": failure(Trouble.LOST)})
    with pytest.raises(OutcomeUnknown):
        await settle(place)
    assert ["link", "link"] == place.asked


async def test_a_catalogue_that_moves_under_the_look_up_is_asked_again() -> None:
    """DDL that another session commits meanwhile makes PostgreSQL's look-up fail (XX000): it is done again (F08)."""
    place = Scripted(owned=True, answers={"link": VIOLATION, "obstacle": failure(Trouble.OTHER, sqlstate="XX000")})
    with pytest.raises(OwnerLookupFailed) as raised:
        await settle(place)
    assert "XX000" == raised.value.sqlstate
    assert ["link", "obstacle"] * CAUSES == place.asked


async def test_a_catalogue_that_moves_under_the_doctor_is_read_again() -> None:
    """The doctor asks a bounded number of times more, and then tells what the database said."""
    place = Scripted(owned=True, answers={"obstacle": failure(Trouble.OTHER, sqlstate="XX000")})
    with pytest.raises(RuntimeError):
        await run(place, partial(LINKER._store.obstacle, call=Call()), Patience(writes=False, reads_catalogue=True))
    assert ["obstacle"] * (CAUSES + 1) == place.asked
