"""LinkPolicy: what can be kept is constructed, what cannot is refused with a way out."""

import copy
import dataclasses
import pickle
from itertools import product
from typing import Any, cast

import pytest

from accountlink import ConfigurationError, Key, LinkPolicy, Ownership, Removal

COMBINATIONS = list(product(Key, Ownership, Removal, (frozenset[str](), frozenset({"fraud", "abuse"}))))


def can_be_kept(key: Key, ownership: Ownership, removal: Removal, blocked: frozenset[str]) -> bool:
    by_email_alone = key is Key.EMAIL and ownership is Ownership.EXCLUSIVE
    remembers_nothing = bool(blocked) and removal is Removal.DELETE
    return not by_email_alone and not remembers_nothing


@pytest.mark.parametrize(
    ("key", "ownership", "removal", "blocked"), [each for each in COMBINATIONS if can_be_kept(*each)]
)
def test_a_policy_that_can_be_kept_is_made(
    key: Key, ownership: Ownership, removal: Removal, blocked: frozenset[str]
) -> None:
    """Every meaningful combination constructs, and holds what it was given."""
    policy = LinkPolicy(key=key, ownership=ownership, removal=removal, blocked_reasons=blocked)
    assert (key, ownership, removal, blocked) == dataclasses.astuple(policy)


@pytest.mark.parametrize(
    ("key", "ownership", "removal", "blocked"), [each for each in COMBINATIONS if not can_be_kept(*each)]
)
def test_a_policy_that_cannot_be_kept_is_refused(
    key: Key, ownership: Ownership, removal: Removal, blocked: frozenset[str]
) -> None:
    """A06: a policy that an e-mail address would have to prove, or a deleted row to remember, is refused."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(key=key, ownership=ownership, removal=removal, blocked_reasons=blocked)
    assert "configuration_error" == caught.value.code


def test_an_email_never_proves_ownership() -> None:
    """A06: Key.EMAIL with EXCLUSIVE is refused, and the message names both ways out."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(key=Key.EMAIL, ownership=Ownership.EXCLUSIVE)
    assert "never proves ownership" in str(caught.value)
    assert "Use Key.ACCOUNT_ID, or Ownership.PER_USER." in str(caught.value)


def test_a_deleted_row_remembers_no_reason() -> None:
    """A blocked reason with Removal.DELETE is refused, and the message names the removal that would serve."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(blocked_reasons={"fraud"}, removal=Removal.DELETE)
    assert "blocked_reasons needs Removal.SOFT" in str(caught.value)


def test_the_default_is_the_strict_policy() -> None:
    """A06: the default policy has the stable account id as the key, and one owner per account."""
    strict = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.DELETE, blocked_reasons=())
    assert strict == LinkPolicy()


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("key", "account_id", "Key"),
        ("key", Removal.SOFT, "Key"),
        ("ownership", "exclusive", "Ownership"),
        ("ownership", None, "Ownership"),
        ("removal", True, "Removal"),
        ("removal", Key.EMAIL, "Removal"),
    ],
)
def test_a_policy_takes_members_and_no_text(field: str, value: object, kind: str) -> None:
    """A text that reads like a member is refused by name, since a comparison with it would silently be false."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(**cast("Any", {field: value}))
    assert f"LinkPolicy({field}=...) takes a member of {kind}." == str(caught.value)


def test_one_text_is_no_set_of_reasons() -> None:
    """``blocked_reasons="fraud"`` is refused, for it would block the reasons "f", "r", "a", "u" and "d"."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(removal=Removal.SOFT, blocked_reasons="fraud")
    assert "LinkPolicy(blocked_reasons=...) takes a set of texts" in str(caught.value)


NO_REASONS: dict[str, object] = {
    "None in a set": {None},
    "None beside a text": {"fraud", None},
    "a number": {7},
    "a number beside a text": {"fraud", 7},
    "bytes": {b"fraud"},
    "an empty text": {""},
    "None": None,
    "no set": 7,
}


@pytest.mark.parametrize("reasons", NO_REASONS.values(), ids=NO_REASONS)
def test_a_reason_is_a_text(reasons: object) -> None:
    """A reason that is no text is refused: ``None`` would compare as IS NULL, and block every row without a reason."""
    with pytest.raises(ConfigurationError) as caught:
        LinkPolicy(removal=Removal.SOFT, blocked_reasons=cast("Any", reasons))
    assert "blocked_reasons" in str(caught.value)


@pytest.mark.parametrize(
    "reasons", [["fraud", "abuse"], ("abuse", "fraud"), {"fraud", "abuse"}, {"fraud": 1, "abuse": 2}]
)
def test_reasons_become_one_frozen_set(reasons: Any) -> None:
    """However the reasons are given, equal policies are equal and can key a dict."""
    policy = LinkPolicy(removal=Removal.SOFT, blocked_reasons=reasons)
    assert frozenset({"fraud", "abuse"}) == policy.blocked_reasons
    assert hash(LinkPolicy(removal=Removal.SOFT, blocked_reasons=frozenset({"abuse", "fraud"}))) == hash(policy)


def test_a_policy_does_not_follow_the_callers_set() -> None:
    """A set that the application changes later does not change a policy that is in force."""
    reasons = {"fraud"}
    policy = LinkPolicy(removal=Removal.SOFT, blocked_reasons=reasons)
    reasons.clear()
    assert frozenset({"fraud"}) == policy.blocked_reasons


def test_a_policy_is_frozen_keyword_only_and_survives_a_copy() -> None:
    """No policy is changed after its table was built from it."""
    policy = LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.removal = Removal.DELETE  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        cast("Any", LinkPolicy)(Key.ACCOUNT_ID)
    for twin in (copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):  # noqa: S301  # our own
        assert policy == twin


def test_a_replaced_policy_is_checked_again() -> None:
    """``dataclasses.replace`` cannot make a policy that the constructor would refuse."""
    policy = LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"})
    with pytest.raises(ConfigurationError):
        dataclasses.replace(policy, removal=Removal.DELETE)
