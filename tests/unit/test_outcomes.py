"""Outcomes: frozen, without a truth value, and silent about the owner of an account."""

import copy
import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, assert_never, cast
from urllib.parse import parse_qs, parse_qsl, urlsplit
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink import (
    AccountNotFound,
    AlreadyOwner,
    Change,
    ConfigurationError,
    Linked,
    LinkedAccount,
    OwnershipConflict,
    Transferred,
    Unlinked,
)
from accountlink.values.outcomes import conflict_with

OWNER = "owner-canary-7f3a"
TOKEN = "eyJwIjoidHJhbnNmZXIifQ.c2lnbmF0dXJl"
ENDS = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
USER = UUID("00000000-0000-4000-8000-00000000beef")
ACCOUNT: LinkedAccount[UUID, int] = LinkedAccount(
    id=41, user_id=USER, provider="google", account_id="248289761001", email="ada@example.com"
)
LINKED: Linked[UUID, int] = Linked(account=ACCOUNT, change=Change.CREATED)
UNLINKED: Unlinked[UUID, int] = Unlinked(account=ACCOUNT)
FORMER = UUID("00000000-0000-4000-8000-0000000dead0")
TRANSFERRED: Transferred[UUID, int] = Transferred(account=ACCOUNT, previous_owner_id=FORMER)
OWNED: AlreadyOwner[UUID, int] = AlreadyOwner(account=ACCOUNT)
PLAIN = OwnershipConflict(provider="google", account_id="248289761001", transfer_token=TOKEN, expires_at=ENDS)
OUTCOMES: dict[str, Any] = {
    "Linked": LINKED,
    "OwnershipConflict": PLAIN,
    "Unlinked": UNLINKED,
    "Transferred": TRANSFERRED,
    "AlreadyOwner": OWNED,
}


def conflict(owner: object = OWNER, *, token: str | None = TOKEN) -> OwnershipConflict:
    return conflict_with(
        owner,
        OwnershipConflict(
            provider="google", account_id="248289761001", transfer_token=token, expires_at=ENDS if token else None
        ),
    )


# -- no truth value -------------------------------------------------------------------------------------------------

QUESTIONS: dict[str, Callable[[Any], object]] = {
    "bool": bool,
    "not": lambda outcome: not outcome,
    "if": lambda outcome: 1 if outcome else 2,
    "and": lambda outcome: outcome and 1,
    "or": lambda outcome: outcome or 1,
    "all": lambda outcome: all([outcome]),
    "filter": lambda outcome: list(filter(None, [outcome])),
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_an_outcome_has_no_truth_value(outcome: object, ask: Callable[[Any], object]) -> None:
    """A25: ``if await linker.link(...)`` would read a conflict as success, so it raises and says what to do."""
    with pytest.raises(TypeError) as caught:
        ask(outcome)
    assert f"{type(outcome).__name__} has no truth value: match on its class" == str(caught.value)


def test_outcomes_are_matched() -> None:
    """A match on the classes tells the outcomes apart, and binds their fields."""

    def read(outcome: Linked[UUID, int] | OwnershipConflict) -> object:
        match outcome:
            case Linked(account=account, change=change):
                return account.id, change
            case OwnershipConflict(provider=provider):
                return provider
            case _:
                assert_never(outcome)

    assert (41, Change.CREATED) == read(LINKED)
    assert "google" == read(PLAIN)


def test_each_outcome_has_a_stable_code() -> None:
    """The code of an outcome is the word that clients read, and belongs to its class."""
    assert {
        "Linked": "linked",
        "OwnershipConflict": "ownership_conflict",
        "Unlinked": "unlinked",
        "Transferred": "transferred",
        "AlreadyOwner": "already_owner",
    } == {name: outcome.code for name, outcome in OUTCOMES.items()}
    assert [] == [
        field.name for each in OUTCOMES.values() for field in dataclasses.fields(each) if field.name == "code"
    ]


def test_the_changes_are_three() -> None:
    """Created, updated and restored are all that a link can have done."""
    assert ["created", "updated", "restored"] == [change.value for change in Change]


# -- frozen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [*OUTCOMES.values(), ACCOUNT], ids=[*OUTCOMES, "LinkedAccount"])
def test_an_outcome_cannot_be_changed(outcome: Any) -> None:
    """No field can be set or deleted, and no attribute added: the error is the one that dataclasses raise."""
    for field in dataclasses.fields(outcome):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(outcome, field.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(outcome, field.name)


@pytest.mark.parametrize("outcome", [*OUTCOMES.values(), ACCOUNT], ids=[*OUTCOMES, "LinkedAccount"])
@pytest.mark.parametrize("name", ["owner_id", "_owner", "anything"])
def test_an_outcome_takes_no_further_attribute(outcome: Any, name: str) -> None:
    """An attribute that is no field is refused as an AttributeError, which FrozenInstanceError is."""
    with pytest.raises(AttributeError):
        setattr(outcome, name, 1)


def test_a_generic_outcome_can_be_made_with_its_types_named() -> None:
    """``Linked[UUID, int](...)``, as an application's own tests write it, makes the same value."""
    account = LinkedAccount[UUID, int](id=41, user_id=USER, provider="google", account_id="1")
    assert Linked(account=account, change=Change.CREATED) == Linked[UUID, int](account=account, change=Change.CREATED)
    assert Unlinked(account=account) == Unlinked[UUID, int](account=account)


@pytest.mark.parametrize("kind", [Linked, OwnershipConflict, Unlinked, Transferred, AlreadyOwner, LinkedAccount])
def test_an_outcome_is_keyword_only(kind: Any) -> None:
    """A08: provider and account id cannot be swapped by position."""
    with pytest.raises(TypeError):
        kind(ACCOUNT, Change.CREATED)


@pytest.mark.parametrize(
    "outcome", [LINKED, UNLINKED, TRANSFERRED, OWNED, ACCOUNT], ids=lambda each: type(each).__name__
)
def test_an_outcome_survives_a_copy(outcome: object) -> None:
    """A worker that gets an outcome by pickle has the same value."""
    for twin in (copy.copy(outcome), copy.deepcopy(outcome), pickle.loads(pickle.dumps(outcome))):  # noqa: S301  # ours
        assert outcome == twin


def test_a_snapshot_shows_neither_user_nor_email() -> None:
    """A28: a log of a snapshot names the link and the account, and not the person."""
    shown = f"{LINKED!r} {UNLINKED} {ACCOUNT} {TRANSFERRED} {OWNED!r}"
    assert "248289761001" in shown
    assert [] == [word for word in (str(USER), "beef", "ada@", str(FORMER), "dead0") if word in shown]


# -- the owner ------------------------------------------------------------------------------------------------------


def _walk_fields(value: Any) -> Any:
    """Encode as orjson does: the fields of dataclasses, and ``default`` for the rest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _walk_fields(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value)


def _walk_slots(value: Any) -> Any:
    """Encode without knowing dataclasses: every slot of every base, and the state of each value in it."""
    slots = [base.__dict__.get("__slots__", ()) for base in type(value).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return {name: _walk_slots(getattr(value, name)) for name in names if hasattr(value, name)} or str(value)


def _state(value: Any) -> Any:
    return value.__getstate__()


CHANNELS: dict[str, Callable[[OwnershipConflict], object]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "percent": lambda c: f"%s %r {c!s}" % (c, c),
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "fields": lambda c: [field.name for field in dataclasses.fields(c)],
    "dir of the fields": lambda c: [getattr(c, field.name) for field in dataclasses.fields(c)],
    "json of asdict": lambda c: json.dumps(dataclasses.asdict(c), default=str),
    "json default=str": lambda c: json.dumps(c, default=str),
    "json default=repr": lambda c: json.dumps({"outcome": c}, default=repr),
    "json default=asdict": lambda c: json.dumps(c, default=lambda o: dataclasses.asdict(o) if o is c else str(o)),
    "encoder by fields": _walk_fields,
    "encoder by slots": _walk_slots,
    "state": _state,
    "reduce": lambda c: c.__reduce_ex__(4),
    "as_problem": lambda c: c.as_problem(),
    "redirect_url": lambda c: c.redirect_url("https://app.example/settings"),
    "hash and equality": lambda c: (c == conflict("somebody else"), hash(c) == hash(conflict("somebody else"))),
    "match arguments": lambda c: c.__match_args__,
    "copy": lambda c: repr(copy.copy(c)) + repr(_walk_fields(copy.copy(c))),
    "deep copy": lambda c: repr(copy.deepcopy(c)),
    **{f"pickle {n}": partial(pickle.dumps, protocol=n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
def test_the_owner_leaves_by_no_channel(channel: Callable[[OwnershipConflict], object]) -> None:
    """A25: the owner is only for the server's log: no representation, encoder, copy or pickle contains the owner."""
    assert OWNER not in repr(channel(conflict()))


def test_the_owner_can_be_read_by_the_server() -> None:
    """A25: the property, and nothing else, tells who the owner is, as the column's own Python type."""
    assert USER == conflict(USER).owner_id
    assert 7 == conflict(7).owner_id


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), lambda c: dataclasses.replace(c, provider="x")],  # noqa: S301  # our own bytes
    ids=["copy", "deepcopy", "pickle", "replace"],
)
def test_the_owner_does_not_travel(copied: Callable[[OwnershipConflict], OwnershipConflict]) -> None:
    """A25: a copy, wherever it goes, does not know the owner; everything else is the same."""
    twin = copied(conflict())
    assert TOKEN == twin.transfer_token
    with pytest.raises(AttributeError):
        _ = twin.owner_id


def test_a_conflict_has_no_dict_to_look_into() -> None:
    """A25: ``vars`` has nothing to show."""
    with pytest.raises(TypeError):
        vars(conflict())


def test_conflicts_with_different_owners_are_alike() -> None:
    """A25: the conflict that leaves the server has the same bytes for every owner."""
    one, other = conflict(1), conflict("a quite different owner")
    assert one == other
    assert hash(one) == hash(other)
    assert (repr(one), pickle.dumps(one)) == (repr(other), pickle.dumps(other))
    assert json.dumps(one.as_problem()) == json.dumps(other.as_problem())


def test_a_transfer_token_is_not_shown() -> None:
    """A28: a log of a conflict holds no token that its reader could redeem."""
    assert TOKEN not in f"{conflict()!r} {conflict()}"


# -- as_problem -----------------------------------------------------------------------------------------------------


def test_a_conflict_is_a_problem_document() -> None:
    """A25: the document has a URI as its type, the status, the code and the token, and says nothing of the owner."""
    assert {
        "type": "urn:accountlink:ownership_conflict",
        "title": "This provider account is linked to another user.",
        "status": 409,
        "code": "ownership_conflict",
        "provider": "google",
        "transfer_token": TOKEN,
        "expires_at": "2026-01-02T03:04:05+00:00",
    } == json.loads(json.dumps(conflict().as_problem()))


def test_a_problem_without_a_token_says_so_by_silence() -> None:
    """Without a token there are no keys for it, and not two nulls."""
    assert {"type", "title", "status", "code", "provider"} == set(conflict(token=None).as_problem())


# -- redirect_url ---------------------------------------------------------------------------------------------------

BASES = {
    "bare": ("https://app.example/cb", "https://app.example/cb?{}"),
    "no path": ("https://app.example", "https://app.example?{}"),
    "relative": ("/settings", "/settings?{}"),
    "empty": ("", "?{}"),
    "an app's scheme": ("myapp://linked", "myapp://linked?{}"),
    "empty query": ("https://app.example/cb?", "https://app.example/cb?{}"),
    "one parameter": ("https://app.example/cb?tab=links", "https://app.example/cb?tab=links&{}"),
    "several": ("/cb?b=2&a=1&b=3", "/cb?b=2&a=1&b=3&{}"),
    "a flag and a blank": ("/cb?flag&blank=", "/cb?flag&blank=&{}"),
    "encoded": ("/cb?next=%2Fa%3Fb%3D1%26c&s=a+b%20c", "/cb?next=%2Fa%3Fb%3D1%26c&s=a+b%20c&{}"),
    "a second question mark": ("/cb?next=/a?b=1", "/cb?next=/a?b=1&{}"),
    "not ASCII": ("/cb?név=Ödön", "/cb?név=Ödön&{}"),
    "similar names": ("/cb?my_error=1&errors=2&connections=3", "/cb?my_error=1&errors=2&connections=3&{}"),
}


@pytest.mark.parametrize(("base", "expected"), BASES.values(), ids=BASES)
def test_a_redirect_keeps_the_query_of_its_base(base: str, expected: str) -> None:
    """A28: the query is merged, every byte of it kept, and the token is in the fragment alone."""
    assert expected.format("error=ownership_conflict") + f"#transfer_token={TOKEN}" == conflict().redirect_url(base)
    assert expected.format("error=ownership_conflict") == conflict(token=None).redirect_url(base)
    for done in (LINKED, TRANSFERRED, OWNED):
        assert expected.format("connection=success") == done.redirect_url(base)
    assert expected.format("connection=unlinked") == UNLINKED.redirect_url(base)


def test_a_redirect_sets_its_parameter_once() -> None:
    """A parameter of an earlier redirect is replaced in the query, so that no page reads the old answer."""
    assert "/cb?x=1&error=ownership_conflict" == conflict(token=None).redirect_url("/cb?error=old&x=1&error&error=")
    assert "/cb?connection=success" == LINKED.redirect_url("/cb?connection=failed")


def test_a_redirect_tells_one_ending() -> None:
    """A page that passes its own address on does not show an old error beside the success that follows."""
    assert "/cb?x=1&connection=success" == LINKED.redirect_url("/cb?error=ownership_conflict&x=1")
    assert "/cb?x=1&connection=unlinked" == UNLINKED.redirect_url("/cb?error&x=1")
    assert "/cb?x=1&error=ownership_conflict" == conflict(token=None).redirect_url("/cb?connection=success&x=1")
    assert "/cb?x=1&error=account_not_found" == AccountNotFound().redirect_url("/cb?x=1&connection=success")


UNFIT = {
    "fragment": "https://app.example/cb#top",
    "empty fragment": "https://app.example/cb#",
    "fragment after a query": "https://app.example/cb?a=1#top",
    "newline": "https://app.example/cb\r\nSet-Cookie: a=b",
    "space": "https://app.example/a b",
    "tab": "https://app.example/\tcb",
    "NUL": "https://app.example/\0",
    "delete": "https://app.example/\x7f",
    "a control of ISO 8859": "https://app.example/\x85",
    "a lone surrogate": "https://app.example/\ud800",
}


@pytest.mark.parametrize("base", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("outcome", [conflict(), conflict(token=None), LINKED], ids=["token", "no token", "linked"])
def test_an_unfit_base_is_refused(outcome: OwnershipConflict | Linked[UUID, int], base: str) -> None:
    """A28: a base with a fragment of its own, or one that could split a header, is refused and not repaired."""
    with pytest.raises(ConfigurationError) as caught:
        outcome.redirect_url(base)
    assert "configuration_error" == caught.value.code
    assert str(caught.value).startswith("The base of a redirect must not")
    assert TOKEN not in str(caught.value)


URL_TEXT = st.text(st.characters(exclude_characters="#&=?+%;", exclude_categories=("Cc", "Cs", "Zs")), max_size=8)


@given(st.lists(st.tuples(URL_TEXT.filter(lambda name: name not in {"", "connection", "error"}), URL_TEXT), max_size=5))
def test_the_token_is_never_in_the_query(pairs: list[tuple[str, str]]) -> None:
    """A28: the token is in the fragment, because browsers send a query to servers, logs and the next site."""
    base = "https://app.example/cb?" + "&".join(f"{name}={value}" for name, value in pairs)
    parts = urlsplit(conflict().redirect_url(base))
    assert {"transfer_token": [TOKEN]} == parse_qs(parts.fragment)
    assert TOKEN not in parts._replace(fragment="").geturl()
    kept = parse_qsl(urlsplit(base).query, keep_blank_values=True)
    assert [*kept, ("error", "ownership_conflict")] == parse_qsl(parts.query, keep_blank_values=True)


def test_a_code_is_safe_in_a_url() -> None:
    """A stable code needs no escaping."""
    codes = [outcome.code for outcome in OUTCOMES.values()]
    assert codes == [code for code in codes if re.fullmatch(r"[a-z_]+", code)]


def test_an_unbound_conflict_raises_a_plain_error() -> None:
    """A conflict that a test of an application made by hand has no owner, and says so as a missing attribute."""
    assert None is getattr(cast("Any", PLAIN), "owner_id", None)
