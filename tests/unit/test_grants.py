"""Outcomes of grants are frozen and silent; and what a unique violation comes to, as a table."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict
from datetime import UTC, datetime
from typing import Any, assert_never

import pytest

from accountlink import (
    AlreadyGranted,
    BlockedByConstraint,
    Grant,
    Granted,
    IssuedGrant,
    RetryTransaction,
    Revoked,
    StoreBusy,
)
from accountlink.grants.decide import after_violation
from accountlink.values.facts import Failure, Obstacle, Trouble, UniqueIndex
from accountlink.values.grants import issued_with
from accountlink.values.secrecy import Concealed

TOKEN = "token-canary-1c5f"
ENDS = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GRANT = Grant(id=7, grantor_id="giver-canary", grantee_id="taker-canary", expires_at=ENDS)
ISSUED = issued_with(Concealed(TOKEN), IssuedGrant(id=7, grantor_id="giver-canary", expires_at=ENDS))
OUTCOMES: dict[str, Any] = {
    "grant_issued": ISSUED,
    "granted": Granted(grant=GRANT),
    "already_granted": AlreadyGranted(grant=GRANT),
    "revoked": Revoked(grant=GRANT),
}
EACH = pytest.mark.parametrize(("code", "outcome"), OUTCOMES.items(), ids=OUTCOMES)


@EACH
def test_an_outcome_has_its_code_and_no_truth_value(code: str, outcome: Any) -> None:
    """An outcome is matched: asking whether it is true is a mistake, and changing it too."""
    assert code == outcome.code
    with pytest.raises(TypeError, match="no truth value"):
        bool(outcome)
    for name in ("grant", "id", "code", "anything"):
        with pytest.raises(FrozenInstanceError):
            setattr(outcome, name, None)


@EACH
def test_an_outcome_shows_no_token_and_no_user(code: str, outcome: Any) -> None:
    """A28: a repr names neither user, and nothing at all shows the token of an issued grant."""
    assert [] == [word for word in (TOKEN, "canary") if word in repr(outcome)]
    assert TOKEN not in str(asdict(outcome))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert TOKEN.encode() not in pickle.dumps(outcome, protocol)


def test_a_token_is_read_where_it_was_issued_and_nowhere_else() -> None:
    """A28: the issued grant tells its token; a copy that came out of a pickle, or by the constructor, has none."""
    assert TOKEN == ISSUED.token
    for other in (pickle.loads(pickle.dumps(ISSUED)), copy.copy(ISSUED)):  # noqa: S301  # our own bytes
        assert ISSUED == other
        with pytest.raises(AttributeError):
            _ = other.token


def test_the_outcomes_of_a_redemption_are_exhaustive() -> None:
    """A caller matches the two, and a type checker holds that there is no third."""

    def told(outcome: Granted | AlreadyGranted) -> str:
        match outcome:
            case Granted():
                return "new"
            case AlreadyGranted():
                return "as before"
            case _:
                assert_never(outcome)

    assert ["new", "as before"] == [told(Granted(grant=GRANT)), told(AlreadyGranted(grant=GRANT))]


INDEX = UniqueIndex(name="one", schema=None, table="shares", columns=("grantor_id", "grantee_id"))


def violated(trouble: Trouble = Trouble.UNIQUE) -> Failure:
    return Failure(trouble=trouble, sqlstate="23505", constraint="one", error=LookupError("the database's own"))


def behind(index: UniqueIndex | None = INDEX, **facts: Any) -> Obstacle[Any, Any]:
    return Obstacle(**({"index": index, "ours": True, "is_key": True} | facts))


@pytest.mark.parametrize(
    ("obstacle", "again", "owned", "expected"),
    [
        pytest.param(behind(ours=False), True, True, LookupError, id="another table's"),
        pytest.param(behind(), True, True, None, id="a race"),
        pytest.param(behind(), True, False, None, id="a race in a caller's transaction"),
        pytest.param(behind(None), True, True, None, id="an index that is gone"),
        pytest.param(behind(None), False, True, StoreBusy, id="an index that is gone, for ever"),
        pytest.param(behind(), False, True, BlockedByConstraint, id="no race after all"),
        pytest.param(behind(snapshot=True), True, False, RetryTransaction, id="a caller's kept snapshot"),
        pytest.param(behind(snapshot=True), True, True, None, id="our own kept snapshot"),
        pytest.param(behind(is_key=False, rule="stale-unique"), True, True, BlockedByConstraint, id="a stale key"),
    ],
)
def test_what_a_violation_comes_to(
    obstacle: Obstacle[Any, Any], again: bool, owned: bool, expected: type[BaseException] | None
) -> None:
    """Only what a race alone can violate is run again; all else is the truth about the index, or the database's own."""
    verdict = after_violation(violated(), obstacle, again=again, owned=owned)
    assert (expected or type(None)) is type(verdict)


def test_a_blocking_index_is_named() -> None:
    """The error names the index, its columns and the doctor's rule; a deferrable constraint has a rule of its own."""
    obstacle = behind(is_key=False, rule="key-compares-differently")
    blocked = after_violation(violated(), obstacle, again=True, owned=True)
    assert isinstance(blocked, BlockedByConstraint)
    assert ("one", INDEX.columns, "key-compares-differently") == (blocked.constraint, blocked.columns, blocked.rule)
    deferred = after_violation(violated(Trouble.DEFERRABLE), behind(), again=True, owned=True)
    assert isinstance(deferred, BlockedByConstraint)
    assert "deferrable-key" == deferred.rule
